"""What rounding explains is measured by a run in float64, which is made only as far as that decides."""

import math

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.float64_run import FAR, Float64Run, float64_run_of
from workbench.diagnose.compare.rounding import MIN_ALLOWED, StoredRun, recompute
from workbench.diagnose.compare.transitions import FLOAT64_PRECISION, entry, loop_dimension, transitions
from workbench.trace.schema import BRANCH_VELOCITIES
from workbench.trace.trace import Trace

pytestmark = pytest.mark.slow
STEPS = 4


@pytest.fixture
def replays(monkeypatch):
    """The places at which a pipeline began to make runs again."""
    begun = []
    original = wb.Pipeline.replay

    def replay(self, trace, stage="lm", *given, **named):
        begun.append(stage)
        return original(self, trace, stage, *given, **named)

    monkeypatch.setattr(wb.Pipeline, "replay", replay)
    return begun


def places(trace):
    for field, value in trace.items():
        if field.startswith(("flow/", "hift/")):
            for index in range(len(value)) if loop_dimension(field) else (None,):
                yield field, index


def test_its_steps_are_those_of_the_whole_run(pipe, trace, options):
    whole = pipe.replay(trace, "flow", options.but(**FLOAT64_PRECISION), wb.EVERYTHING)
    run = Float64Run(trace, pipe)
    for field, index in places(whole):
        x, exact = entry(trace, field, index), entry(whole, field, index)
        distance = float((x.double() - exact.double()).norm() / exact.double().norm())
        assert run.measured(field, index) == pytest.approx(max(MIN_ALLOWED, 10 * distance), rel=1e-6), field
    logp = run.measured("lm/logp", 0)
    assert MIN_ALLOWED <= logp < 1e-4


def test_equal_places_ask_for_no_run(pipe, trace, replays):
    run = Float64Run(trace, pipe)
    assert {run.allowed(field, index, 0.0) for field, index in places(trace)} == {MIN_ALLOWED}
    assert replays == []


def test_steps_are_made_as_far_as_they_decide(pipe, trace, replays):
    run = Float64Run(trace, pipe)
    near = run.allowed("flow/x", 1, 1e-5)  # knot 1 is where step 0 ends
    assert replays == ["flow/step/0"] and MIN_ALLOWED <= near < 1e-4
    run.allowed("flow/velocity", 2, 1e-5)
    assert replays == ["flow/step/0", "flow/step/1", "flow/step/2"]
    # Far beyond what was measured: the last step is not needed, nor is its mel for the vocoder.
    most = run.allowed("flow/x", STEPS, 1.0)
    assert len(replays) == 3 and near <= most < 1.0 / FAR
    assert run.allowed("flow/mel", None, 1.0) == most
    of_vocoder = run.allowed("hift/f0", None, 0.1)
    assert replays[3:] == ["hift"] and of_vocoder >= MIN_ALLOWED


def test_a_place_of_unknown_size_is_measured(pipe, trace, replays):
    run = Float64Run(trace, pipe)
    assert run.allowed("flow/mel", None, math.nan) < 1e-3
    assert len(replays) == STEPS


def test_a_candidate_that_is_far_off_diverges_where_it_did(pipe, trace, options, replays):
    wrong = pipe.replay(trace, "flow", options.but(cfg_rate=0.0), wb.EVERYTHING)
    replays.clear()
    found = compare(trace, wrong, pipe)
    assert len([place for place in replays if place.startswith("flow")]) < STEPS
    whole = pipe.replay(trace, "flow", options.but(**FLOAT64_PRECISION), wb.EVERYTHING)
    assert found.verdict == "DIVERGED" and "part at flow/velocity[0]" in found.line
    for row in found.rows.itertuples():
        if row.field.startswith("flow/") and row.verdict in ("ROUNDING", "DIVERGED"):
            index = None if loop_dimension(row.field) is None else row.index
            x, exact = (entry(one, row.field, index).double() for one in (trace, whole))
            explained = max(MIN_ALLOWED, 10 * float((x - exact).norm() / exact.norm()))
            assert (row.verdict == "DIVERGED") == (row.rel_l2 > explained), row.field


def test_a_run_that_begins_inside_the_ode_is_measured_from_there(pipe, trace):
    late = pipe.replay(trace, "flow/step/2", save=wb.EVERYTHING)
    run = float64_run_of(late, pipe)
    assert run.measured("flow/x", 0) == MIN_ALLOWED  # the state that it was given
    assert MIN_ALLOWED <= run.measured("flow/velocity", 1) < 1e-4
    moved = Trace(dict(late) | {"flow/x": 1.01 * late["flow/x"]}, late.attrs)
    assert not compare(late, moved, pipe).ok


def test_a_late_reference_without_states_is_measured_from_the_noise(pipe, trace, options):
    late = pipe.replay(trace, "flow/step/1", options.but(flow_dtype="bfloat16"), wb.NOTHING)
    found = compare(late, trace, pipe)  # half precision explains the difference of their mels
    assert "DIVERGED" not in set(found.rows["verdict"])
    impossible = Trace(late.data, late.attrs | {"first_step": 99})
    assert "DIVERGED" not in set(compare(impossible, trace, pipe).rows["verdict"])
    steps = Trace({name: value for name, value in late.items() if name != "flow/x"}, late.attrs)
    assert Float64Run(steps, pipe).measured("flow/velocity", 0) == MIN_ALLOWED  # of another step


def test_noise_that_differs_leaves_the_rounding_of_half_precision(pipe, trace, options):
    half = pipe.replay(trace, "flow", options.but(flow_dtype="bfloat16"), wb.EVERYTHING)
    run = Float64Run(half, pipe)
    run.allowed("flow/noise", None, 0.5)  # which is given, so that nothing rounds it
    assert run.allowed("flow/x", STEPS, 0.01) > 1e-4


def test_more_probabilities_than_tokens_are_no_error(pipe, trace):
    cut = Trace(dict(trace) | {"lm/drawn_token": trace["lm/drawn_token"][:-1]}, trace.attrs)
    louder = Trace(dict(cut) | {"lm/logp": cut["lm/logp"] * (1 + 1e-5)}, trace.attrs)
    assert not compare(cut, louder, pipe).ok


def test_without_inputs_or_a_pipeline_there_is_no_run(pipe, trace):
    assert float64_run_of(trace, None) is None
    assert float64_run_of(Trace({"flow/mel": trace["flow/mel"]}, {}), pipe) is None


def test_float64_is_asked_only_where_it_decides(pipe, trace, options):
    [first, second] = [step for step in transitions(trace) if step.outputs == BRANCH_VELOCITIES][:2]
    calls = []

    def counted(step):
        def recompute_and_count(pipe, trace, options):
            calls.append(options.flow_dtype)
            return step.recompute(pipe, trace, options)

        return step._replace(recompute=recompute_and_count)

    run = StoredRun(trace)
    result = recompute(counted(first), run, pipe, options)[0]
    assert result.allowed(0.0, run) == result.allowed(MIN_ALLOWED, run) == MIN_ALLOWED
    assert calls == ["float32"]
    measured = result.allowed(1e-5, run)
    assert calls == ["float32", "float64"] and MIN_ALLOWED <= measured < 1e-4
    other = recompute(counted(second), run, pipe, options)[0]
    assert other.allowed(1.0, run) == measured and calls.count("float64") == 1  # of the first step
    assert other.allowed(3 * measured, run) < 1e-4 and calls.count("float64") == 2
    assert torch.isfinite(other.exact()).all() and calls.count("float64") == 2
