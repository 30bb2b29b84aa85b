"""`compare` on what other people record: coarse storage, cut fields, other checkpoints, logs counted from 0."""

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.distance import join_places
from workbench.diagnose.compare.float64_run import Float64Run
from workbench.diagnose.suspects.benchmark import RECOMMENDED, kept, rounded, stored, without_lm_inputs
from workbench.trace.schema import SUFFIX

pytestmark = pytest.mark.slow
STEPS = 3
WITHIN_ROUNDING = {"MATCH", "ROUNDING", "MISSING"}


@pytest.mark.parametrize(
    "form",
    [lambda x: x.half(), lambda x: x.bfloat16(), rounded],
    ids=["float16", "bfloat16", "3 decimals"],
)
def test_a_right_run_stored_coarsely_adds_no_error(pipe, trace, form):
    found = compare(trace, stored(trace, form), pipe)
    assert set(found.rows["verdict"]) <= WITHIN_ROUNDING and found.causes == [], found.line
    assert any("stored as" in hint for hint in found.hints)


def test_half_precision_inside_a_model_is_still_found_where_results_were_stored_in_it(pipe, trace):
    options = pipe.checkpoint.options.but(n_timesteps=3, seed=7, flow_dtype="bfloat16")
    half = pipe.replay(trace, "flow", options, wb.EVERYTHING)
    found = compare(trace, wb.Trace(half.data, {"prompt_frames": trace.prompt_frames}), pipe)
    assert found.causes and found.causes[0].name == "flow/mu"


def test_fields_that_need_no_lm_inputs_are_checked_without_them(pipe, trace):
    found = compare(trace, without_lm_inputs(trace), pipe)
    assert found.causes == [] and set(found.rows["verdict"]) <= WITHIN_ROUNDING
    assert list(found.unchecked) == ["lm/speech_token"]


def test_states_without_velocities_are_said_to_be_unchecked(pipe, trace):
    other = kept(pipe.replay(trace, "flow", _options(pipe, cfg_rate=0.0), wb.EVERYTHING), *RECOMMENDED)
    found = compare(trace, wb.Trace(other.data, {"prompt_frames": trace.prompt_frames}), pipe)
    assert found.verdict == "DIVERGED" and "flow/x[1]" in found.line
    assert "could not be checked: " in found.line and "flow/velocity" in found.unchecked["flow/x[1]"]


def _options(pipe, **changes):
    return pipe.checkpoint.options.but(n_timesteps=STEPS, seed=7, **changes)


def test_exact_and_float64_runs_differ_by_rounding(pipe, trace):
    for changes in ({"compute": "exact"}, {"flow_dtype": "float64", "hift_dtype": "float64"}):
        other = pipe.replay(trace, "flow", _options(pipe, **changes), wb.EVERYTHING)
        data = {name: value for name, value in trace.items() if name.startswith("lm/")} | dict(other.data)
        found = compare(trace, wb.Trace(data, {"prompt_frames": trace.prompt_frames}), pipe)
        assert found.verdict in ("MATCH", "ROUNDING") and found.ok, found.line


def test_fields_without_the_prompts_frames_are_compared_in_the_target(pipe, trace):
    p = trace.prompt_frames
    data = {name: trace[name] for name in ("lm/speech_token", "flow/mel", "hift/wav")}
    data |= {"flow/mu": trace["flow/mu"][:, p:], "flow/x": trace["flow/x"][..., p:]}
    found = compare(trace, wb.Trace(data, {"prompt_frames": 0}), pipe)
    rows = found.rows.set_index("field")
    assert set(found.rows["verdict"]) <= WITHIN_ROUNDING and found.causes == []
    assert "target's frames alone" in rows.loc["flow/mu", "note"]
    data["flow/mu"] = data["flow/mu"] + 0.1
    assert compare(trace, wb.Trace(data, {"prompt_frames": 0})).verdict == "DIVERGED"


def test_a_prompt_mel_of_another_length_than_its_tokens_is_named(pipe, trace):
    short = wb.Trace(dict(trace.data) | {"in/prompt_mel": trace["in/prompt_mel"][:, :-2]}, trace.attrs)
    found = compare(trace, short, pipe)
    problems = [hint for hint in found.hints if "not of one run" in hint]
    assert "in/prompt_mel" in problems[0] and "in/flow_prompt_token" in problems[0]
    assert not any("flow/mel has" in problem for problem in problems)


def test_a_run_of_another_checkpoint_is_not_judged(pipe, trace):
    other = wb.Trace(dict(trace.data) | {"hift/f0": trace["hift/f0"] * 2 + 50}, trace.attrs)
    found = compare(other, other, pipe)
    assert found.verdict == "MATCH" and found.causes is None and not found.unchecked.get("hift/f0")
    assert "not what this checkpoint gives" in found.line


def test_a_log_of_states_counted_from_0_is_moved_to_the_right_knots(trace):
    after_each_step = trace.statistics("flow/x")[1:]
    found = compare(trace, wb.Trace({"flow/x" + SUFFIX: after_each_step}, {}))
    assert set(found.rows.query("field == 'flow/x'")["verdict"]) <= {"ALIKE", "MISSING"}
    assert any("moved one knot on" in hint for hint in found.hints)
    in_place = compare(trace, wb.Trace({"flow/x" + SUFFIX: trace.statistics("flow/x")}, {}))
    assert not any("moved" in hint for hint in in_place.hints)


def test_an_added_error_is_never_called_rounding(pipe, trace):
    noise = torch.randn(trace["flow/velocity"].shape, generator=torch.Generator().manual_seed(0))
    velocity = trace["flow/velocity"] * (1 + 3e-6 * noise)
    found = compare(trace, wb.Trace(dict(trace.data) | {"flow/velocity": velocity}, trace.attrs), pipe)
    assert found.causes and found.verdict == "DIVERGED" and not found.ok


def test_the_table_shows_wrong_rows_and_folds_the_others(pipe, trace):
    wrong = wb.Trace(dict(trace.data) | {"flow/mel": trace["flow/mel"] + 0.1}, trace.attrs)
    found = compare(trace, wrong, pipe)
    assert found.wrong_rows["field"].tolist()[0] == "flow/mel" and len(found.wrong_rows) < len(found.rows)
    html = found._repr_html_()
    assert f"all {len(found.rows)} rows" in html and html.index("<details>") > html.index("flow/mel")


def test_places_of_one_field_are_joined():
    assert join_places(["flow/mu", "flow/x[1]", "flow/x[2]", "flow/x[3]"]) == "flow/mu, flow/x[1..3]"
    assert join_places(["lm/logp[4]", "lm/logp[1]"]) == "lm/logp[1, 4]"


def test_what_grew_from_the_rounding_of_its_inputs_is_rounding(pipe, recorded, monkeypatch):
    mel = recorded["flow/mel"]
    moved = mel + 1e-7 * mel.abs().mean() * torch.randn(mel.shape, generator=torch.Generator().manual_seed(0))
    theirs = pipe.replay(
        wb.Trace(dict(recorded) | {"flow/mel": moved}, recorded.attrs), "hift", save=wb.EVERYTHING
    )
    original = Float64Run.allowed

    def none_for_the_source(self, field, index, distance):
        return 0.0 if field == "hift/source" else original(self, field, index, distance)

    monkeypatch.setattr(Float64Run, "allowed", none_for_the_source)

    def verdict_of(found):
        return found.rows.set_index("field")["verdict"]["hift/source"]

    assert (
        verdict_of(wb.compare(recorded, theirs)) == "DIVERGED"
    )  # without a model nothing shows that it is right
    assert verdict_of(wb.compare(recorded, theirs, pipe)) == "ROUNDING"
    wrong = wb.Trace(dict(theirs) | {"hift/source": 1.01 * theirs["hift/source"]}, theirs.attrs)
    assert verdict_of(wb.compare(recorded, wrong, pipe)) == "DIVERGED"
