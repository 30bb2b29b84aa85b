"""`compare`: verdicts of single places, the first place where two runs part, and the cause of the difference."""

import math
import re

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.distance import measure, where_is
from workbench.diagnose.compare.plausibility import inconsistent_lengths
from workbench.diagnose.compare.transitions import transitions
from workbench.errors import WorkbenchError

STEPS = 3


def changed(trace, **changes):
    """A copy of a trace with some fields changed; flow_mel is flow/mel, None leaves a field out."""
    data = {name: value.clone() for name, value in trace.items()}
    for key, value in changes.items():
        name = key.replace("_", "/", 1)
        if value is None:
            del data[name]
        else:
            data[name] = value
    return wb.Trace(data, trace.attrs)


@pytest.mark.slow
def test_a_run_matches_itself(pipe, trace):
    found = compare(trace, trace, pipe)
    assert found.verdict == "MATCH" and found.ok and found.causes == [] and not found.unchecked
    assert set(found.rows["verdict"]) == {"MATCH"} and str(found) == "MATCH"
    found.assert_ok()
    names = list(zip(found.rows["field"], found.rows["index"].fillna(-1), strict=True))
    assert names.index(("flow/velocity", 0)) < names.index(("flow/x", 1)) < names.index(("flow/velocity", 1))


@pytest.mark.slow
def test_fields_of_one_run_have_consistent_lengths(pipe, trace):
    assert (
        inconsistent_lengths(trace) == []
        and inconsistent_lengths(pipe.replay(trace, "flow/step/1", save=wb.EVERYTHING)) == []
    )
    assert (
        inconsistent_lengths(pipe.replay(trace, "flow", stop_after="flow/step/1", save=wb.EVERYTHING)) == []
    )


@pytest.mark.slow
def test_every_result_has_one_transition(trace):
    names = [(field, step.index) for step in transitions(trace) for field in step.outputs]
    assert len(names) == len(set(names)) == 4 + 3 + 2 + 1 + 4 * STEPS + 1 + 5
    assert all(step.can_recompute(trace) for step in transitions(trace))


@pytest.mark.slow
def test_the_cause_is_the_place_where_the_error_was_made(pipe, trace):
    """A wrong velocity at step 1 makes everything after it wrong; only that velocity is a cause."""
    options = pipe.checkpoint.options.but(**trace.attrs["options"])
    wrong_uncond = trace["flow/velocity_uncond"].clone()
    wrong_uncond[1] *= 1.3
    rate = options.cfg_rate
    velocity = trace["flow/velocity"].clone()
    velocity[1] = (1 + rate) * trace["flow/velocity_cond"][1] - rate * wrong_uncond[1]
    x = trace["flow/x"].clone()
    x[2] = x[1] + (trace["flow/t"][2] - trace["flow/t"][1]) * velocity[1]
    halfway = changed(trace, flow_x=x)
    tail = pipe.replay(halfway, "flow/step/2", save=wb.EVERYTHING)
    data = {name: tail[name] for name in ("flow/mel", *(n for n in tail if n.startswith("hift/")))}
    for name, own in (("flow/velocity_uncond", wrong_uncond), ("flow/velocity", velocity), ("flow/x", x)):
        data[name] = torch.cat(
            (own[: 2 if "velocity" in name else 3], tail[name][1 if name == "flow/x" else 0 :])
        )
    data["flow/velocity_cond"] = torch.cat((trace["flow/velocity_cond"][:2], tail["flow/velocity_cond"]))
    candidate = wb.Trace(dict(trace) | data, trace.attrs)
    found = compare(trace, candidate, pipe)
    assert found.verdict == "DIVERGED" and not found.ok
    assert [cause.name for cause in found.causes] == ["flow/velocity_uncond[1]"]
    assert "the runs part at flow/velocity_uncond[1]" in found.line
    rows = found.rows.set_index(["field", "index"])
    late = rows.loc[("flow/velocity_cond", 2)]
    assert late["verdict"] == "DIVERGED" and late["added"] <= late["added_allowed"]  # inherited
    with pytest.raises(WorkbenchError, match="first cause"):
        found.assert_ok()


@pytest.mark.slow
def test_rounding_is_no_error(pipe, trace):
    options = pipe.checkpoint.options.but(**trace.attrs["options"])
    double = pipe.replay(trace, "flow", options.but(flow_dtype="float64"), wb.EVERYTHING)
    rounded = compare(
        trace, wb.Trace(dict(trace) | {k: v for k, v in double.items() if "flow/v" in k}, trace.attrs), pipe
    )
    assert "ROUNDING" in set(rounded.rows["verdict"]) and rounded.ok
    half = pipe.replay(trace, "flow", options.but(flow_dtype="bfloat16"), wb.EVERYTHING)
    found = compare(trace, half, pipe)
    assert found.verdict == "DIVERGED" and found.causes[0].name == "flow/mu"
    assert any("flow_dtype" in text for text in found.input_differences)


@pytest.mark.slow
def test_a_missing_field_is_never_ok(pipe, trace):
    found = compare(trace, changed(trace, hift_f0=None), pipe)
    assert found.verdict == "MISSING" and not found.ok and "missing" in found.line
    assert "hift/source" in found.unchecked
    nothing = compare(trace, wb.Trace({}, {"sample_rate": 24000}))
    assert nothing.verdict == "MISSING" and "nothing was compared" in nothing.line
    mel = compare(trace, wb.Trace({"flow/mel": trace["flow/mel"]}, {"sample_rate": 24000}))
    assert mel.line.startswith("MISSING; what both sides have agrees: flow/mel; ")


def test_nan_on_either_side_is_never_ok(trace):
    mel = trace["flow/mel"].clone()
    mel[3, 5] = torch.nan
    for pair in (
        (trace, changed(trace, flow_mel=mel)),
        (changed(trace, flow_mel=mel), changed(trace, flow_mel=mel)),
    ):
        found = compare(*pair)
        assert found.verdict == "NONFINITE" and not found.ok and "flow/mel" in found.line


@pytest.mark.slow
def test_results_of_other_tokens_are_not_comparable(pipe, trace, options):
    other = pipe.synthesise(
        pipe.prepare("It is late.", "data/prompts/kumo_1.flac"), options=options.but(seed=8), save="flow/*"
    )
    found = compare(trace, other, pipe)
    assert found.input_differences and "text" in found.input_differences[0] and found.causes == []
    assert {"NOT COMPARABLE", "SHAPE"} & set(found.rows["verdict"])


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda y: 2 * y, "2 times"),
        (lambda y: y.T, "transposed"),
        (lambda y: torch.cat((y[:, :1], y[:, :-1]), 1), r"shifted by \+1"),
    ],
)
def test_simple_faults_of_a_tensor_give_hints(trace, change, hint):
    found = compare(trace, changed(trace, flow_mel=change(trace["flow/mel"]).contiguous()))
    assert any("flow/mel" in text for text in found.hints)
    assert re.search(hint, " ".join(found.hints))


def test_a_repeated_entry_gives_a_hint(trace):
    stale = trace["flow/velocity_cond"].clone()
    stale[2] = stale[1]
    found = compare(trace, changed(trace, flow_velocity_cond=stale))
    assert any("dumped twice" in text for text in found.hints)


@pytest.mark.slow
def test_runs_that_begin_inside_the_ode_are_compared(pipe, trace):
    part = pipe.replay(trace, "flow/step/1", save=wb.EVERYTHING)
    found = compare(trace, part, pipe)
    assert found.causes == [] and any("first_step" in text for text in found.input_differences)
    assert "NOT COMPARABLE" in set(found.rows["verdict"])
    again = pipe.replay(part, "flow/step/2")
    assert torch.equal(again.wav, trace.wav)
    with pytest.raises(WorkbenchError, match="knots 2 to 3"):
        pipe.replay(pipe.replay(trace, "flow/step/2", save="flow/x"), "flow/step/1")


def test_a_place_has_a_name_and_a_time():
    trace = wb.Trace({}, {"prompt_frames": 10, "sample_rate": 24000})
    assert where_is(("mel", "frame"), (3, 60), trace) == ("mel 3, frame 60 (target)", 1.0)
    words, seconds = where_is(("mel", "frame"), (3, 9), trace)
    assert words == "mel 3, frame 9 (prompt)" and math.isnan(seconds)
    assert where_is(("sample",), (12000,), trace) == ("sample 12000", 0.5)
    assert where_is(("draw", "vocab"), (5, 7), trace) == ("draw 5, vocab 7", 0.2)


def test_measure_of_a_doubled_tensor():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    row = measure(x, 2 * x, prompt_frames=1)
    assert row["rel_l2"] == 1 and row["norm_ratio"] == 2 and row["cosine"] == pytest.approx(1)
    assert row["snr_db"] == pytest.approx(0) and row["worst"] == (0, 1) and row["max_abs"] == 4
    assert row["prompt"] == pytest.approx(4.5**0.5) and row["target"] == pytest.approx(8**0.5)


@pytest.mark.slow
def test_a_comparison_has_html(pipe, trace):
    html = compare(trace, changed(trace, flow_mel=trace["flow/mel"] * 2), pipe)._repr_html_()
    assert "DIVERGED" in html and "first cause: flow/mel" in html and "<table" in html
