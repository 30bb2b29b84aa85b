"""Two runs side by side: the first place where they part, and whether the error was made there."""

import math
import re

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.distance import measure, where_is
from workbench.diagnose.compare.misfits import misfits
from workbench.diagnose.compare.transitions import transitions
from workbench.errors import WorkbenchError

STEPS = 3


@pytest.fixture(scope="module")
def options(pipe):
    return pipe.checkpoint.options.but(n_timesteps=STEPS, max_tokens=12, seed=7)


@pytest.fixture(scope="module")
def whole(pipe, utt, options):
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)


def but(trace, **changes):
    """A copy with some fields changed; names have _ for /, None leaves a field out."""
    data = {name: value.clone() for name, value in trace.items()}
    for key, value in changes.items():
        name = key.replace("_", "/", 1)
        if value is None:
            del data[name]
        else:
            data[name] = value
    return wb.Trace(data, trace.attrs)


@pytest.mark.slow
def test_a_run_equals_itself(pipe, whole):
    found = compare(whole, whole, pipe)
    assert found.verdict == "MATCH" and found.ok and found.causes == [] and not found.unchecked
    assert set(found.rows["verdict"]) == {"MATCH"} and str(found) == "MATCH"
    found.assert_ok()
    names = list(zip(found.rows["field"], found.rows["index"].fillna(-1), strict=True))
    assert names.index(("flow/velocity", 0)) < names.index(("flow/x", 1)) < names.index(("flow/velocity", 1))


def test_a_run_is_of_one_run(pipe, whole):
    assert misfits(whole) == [] and misfits(pipe.replay(whole, "flow/step/1", save=wb.EVERYTHING)) == []
    assert misfits(pipe.replay(whole, "flow", stop_after="flow/step/1", save=wb.EVERYTHING)) == []


def test_every_result_is_worked_out_again(whole):
    names = [(field, step.index) for step in transitions(whole) for field in step.fields]
    assert len(names) == len(set(names)) == 3 + 3 + 2 + 1 + 4 * STEPS + 1 + 5
    assert all(step.ready(whole) for step in transitions(whole))


@pytest.mark.slow
def test_the_cause_is_where_the_error_was_made(pipe, whole):
    """A wrong velocity at step 1 spoils all that follows, and only it is named."""
    options = pipe.checkpoint.options.but(**whole.attrs["options"])
    spoilt = whole["flow/velocity_uncond"].clone()
    spoilt[1] *= 1.3
    rate = options.cfg_rate
    velocity = whole["flow/velocity"].clone()
    velocity[1] = (1 + rate) * whole["flow/velocity_cond"][1] - rate * spoilt[1]
    x = whole["flow/x"].clone()
    x[2] = x[1] + (whole["flow/t"][2] - whole["flow/t"][1]) * velocity[1]
    halfway = but(whole, flow_x=x)
    tail = pipe.replay(halfway, "flow/step/2", save=wb.EVERYTHING)
    data = {name: tail[name] for name in ("flow/mel", *(n for n in tail if n.startswith("hift/")))}
    for name, own in (("flow/velocity_uncond", spoilt), ("flow/velocity", velocity), ("flow/x", x)):
        data[name] = torch.cat(
            (own[: 2 if "velocity" in name else 3], tail[name][1 if name == "flow/x" else 0 :])
        )
    data["flow/velocity_cond"] = torch.cat((whole["flow/velocity_cond"][:2], tail["flow/velocity_cond"]))
    candidate = wb.Trace(dict(whole) | data, whole.attrs)
    found = compare(whole, candidate, pipe)
    assert found.verdict == "DIVERGED" and not found.ok
    assert [cause.name for cause in found.causes] == ["flow/velocity_uncond[1]"]
    assert "the runs part at flow/velocity_uncond[1]" in found.line
    rows = found.rows.set_index(["field", "index"])
    late = rows.loc[("flow/velocity_cond", 2)]
    assert late["verdict"] == "DIVERGED" and late["added"] <= late["added_allowed"]  # inherited
    with pytest.raises(WorkbenchError, match="first cause"):
        found.assert_ok()


@pytest.mark.slow
def test_rounding_is_told_from_error(pipe, whole):
    options = pipe.checkpoint.options.but(**whole.attrs["options"])
    double = pipe.replay(whole, "flow", options.but(flow_dtype="float64"), wb.EVERYTHING)
    rounded = compare(
        whole, wb.Trace(dict(whole) | {k: v for k, v in double.items() if "flow/v" in k}, whole.attrs), pipe
    )
    assert "ROUNDING" in set(rounded.rows["verdict"]) and rounded.ok
    half = pipe.replay(whole, "flow", options.but(flow_dtype="bfloat16"), wb.EVERYTHING)
    found = compare(whole, half, pipe)
    assert found.verdict == "DIVERGED" and found.causes[0].name == "flow/mu"
    assert any("flow_dtype" in guard for guard in found.guards)


@pytest.mark.slow
def test_missing_is_never_green(pipe, whole):
    found = compare(whole, but(whole, hift_f0=None), pipe)
    assert found.verdict == "MISSING" and not found.ok and "missing" in found.line
    assert "hift/source" in found.unchecked
    assert compare(whole, wb.Trace({}, {"sample_rate": 24000})).verdict == "MISSING"


def test_nan_never_passes(whole):
    mel = whole["flow/mel"].clone()
    mel[3, 5] = torch.nan
    for pair in ((whole, but(whole, flow_mel=mel)), (but(whole, flow_mel=mel), but(whole, flow_mel=mel))):
        found = compare(*pair)
        assert found.verdict == "NONFINITE" and not found.ok and "flow/mel" in found.line


@pytest.mark.slow
def test_other_tokens_cannot_be_compared(pipe, whole, options):
    other = pipe.synthesise(
        pipe.prepare("It is late.", "data/prompts/kumo_1.flac"), options=options.but(seed=8), save="flow/*"
    )
    found = compare(whole, other, pipe)
    assert found.guards and "text" in found.guards[0] and found.causes == []
    assert {"NOT COMPARABLE", "SHAPE"} & set(found.rows["verdict"])


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda y: 2 * y, "2 times"),
        (lambda y: y.T, "transposed"),
        (lambda y: torch.cat((y[:, :1], y[:, :-1]), 1), r"shifted by \+1"),
    ],
)
def test_hints(whole, change, hint):
    found = compare(whole, but(whole, flow_mel=change(whole["flow/mel"]).contiguous()))
    assert any("flow/mel" in text for text in found.hints)
    assert re.search(hint, " ".join(found.hints))


def test_the_same_tensor_dumped_twice(whole):
    stale = whole["flow/velocity_cond"].clone()
    stale[2] = stale[1]
    found = compare(whole, but(whole, flow_velocity_cond=stale))
    assert any("dumped twice" in text for text in found.hints)


@pytest.mark.slow
def test_a_run_from_inside_the_ode(pipe, whole):
    part = pipe.replay(whole, "flow/step/1", save=wb.EVERYTHING)
    found = compare(whole, part, pipe)
    assert found.causes == [] and any("first_step" in guard for guard in found.guards)
    assert "NOT COMPARABLE" in set(found.rows["verdict"])
    again = pipe.replay(part, "flow/step/2")
    assert torch.equal(again.wav, whole.wav)
    with pytest.raises(WorkbenchError, match="knots 2 to 3"):
        pipe.replay(pipe.replay(whole, "flow/step/2", save="flow/x"), "flow/step/1")


def test_worst_place_has_a_name_and_a_time():
    trace = wb.Trace({}, {"prompt_frames": 10, "sample_rate": 24000})
    assert where_is(("mel", "frame"), (3, 60), trace) == ("mel 3, frame 60 (target)", 1.0)
    words, seconds = where_is(("mel", "frame"), (3, 9), trace)
    assert words == "mel 3, frame 9 (prompt)" and math.isnan(seconds)
    assert where_is(("sample",), (12000,), trace) == ("sample 12000", 0.5)
    assert where_is(("draw", "vocab"), (5, 7), trace) == ("draw 5, vocab 7", 0.2)


def test_measures():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    row = measure(x, 2 * x, prompt_frames=1)
    assert row["rel_l2"] == 1 and row["norm_ratio"] == 2 and row["cosine"] == pytest.approx(1)
    assert row["snr_db"] == pytest.approx(0) and row["worst"] == (0, 1) and row["max_abs"] == 4
    assert row["prompt"] == pytest.approx(4.5**0.5) and row["target"] == pytest.approx(8**0.5)


@pytest.mark.slow
def test_it_shows_itself(pipe, whole):
    html = compare(whole, but(whole, flow_mel=whole["flow/mel"] * 2), pipe)._repr_html_()
    assert "DIVERGED" in html and "first cause: flow/mel" in html and "<table" in html
