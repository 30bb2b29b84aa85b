"""Half precision: headroom of every module, one part at a time in half precision, and weights restored after it."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.diagnose import precision
from workbench.diagnose.benchmarks.trace_overhead import MODES, trace_cost, utterance_of_size
from workbench.diagnose.headroom import headroom
from workbench.diagnose.precision import PARTS, bisect_precision, module_in_dtype, repeatable
from workbench.errors import WorkbenchError


@pytest.fixture(scope="module")
def options(pipe):
    return pipe.checkpoint.options.but(n_timesteps=2, max_tokens=10, seed=7)


@pytest.mark.slow
def test_headroom_is_measured_at_the_largest_value(pipe, utt, options):
    trace = pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
    room = headroom(pipe, trace)
    last = room[(room["module"] == "proj_out") & (room["branch"] == "uncond")].set_index("step")
    for step in (0, 1):
        largest = float(trace["flow/velocity_uncond"][step].abs().max())
        assert last.loc[step, "max_abs"] == pytest.approx(largest, rel=1e-4)
        assert 2 ** last.loc[step, "doublings"] * largest == pytest.approx(65504, rel=1e-3)
    assert {"conv_pre", "resblocks.0"} <= set(room.loc[room["stage"] == "hift", "module"])
    assert not room["module"].str.contains("parametrizations").any() and (room["doublings"] > 0).all()
    wide = headroom(pipe, trace, "bfloat16")
    assert (wide["doublings"] > room["doublings"] + 100).all()
    with pytest.raises(WorkbenchError, match="dtype is 'int8'"):
        headroom(pipe, trace, "int8")


@pytest.mark.slow
def test_every_part_runs_alone_in_half_precision(pipe, utt, options):
    found = bisect_precision(pipe, utt, "bfloat16", options)
    stages = found.rows[found.rows["part"].isin(PARTS)]
    assert list(stages["part"]) == list(PARTS) and (stages["change"] > stages["single"]).all()
    assert set(found.recommended) == set(PARTS.values())
    for _, row in stages.iterrows():
        assert row["safe"] == (row["change"] <= row["limit"] and not row["nonfinite"])
        assert (found.recommended[PARTS[row["part"]]] == "bfloat16") == (row["part"] in found.safe_parts)
        assert row["safe"] or row["part"] not in found.safe_parts
    exact = options.but(**precision.ALL_FLOAT64)
    reference = pipe.synthesise(utt, options=exact)
    audible = {PARTS[part]: "bfloat16" for part in found.safe_parts if part != "lm"}
    together = pipe.replay(reference, "flow", exact.but(**audible))
    assert found.combined_change == precision._mel_change(pipe, reference, together).size
    assert found.line.startswith("bfloat16 is safe for") and "<table" in found._repr_html_()
    with pytest.raises(WorkbenchError, match="float32 is what changes nothing"):
        bisect_precision(pipe, utt, "float32", options)


def test_recommended_parts_were_measured_together(monkeypatch):
    """Each safe part alone stays below 1 dB, all together do not: those that change most stay in float64."""
    alone = {"lm": 0.001, "flow": 0.9, "vocoder": 0.1, "f0": 0.4, "source": 0.7, "head": 2.0}
    rows = pd.DataFrame(
        {"part": alone.keys(), "change": alone.values(), "safe": [c <= 1 for c in alone.values()]}
    )
    fake = SimpleNamespace(replay=lambda right, stage, options: options)

    def added(pipe, right, options):
        size = sum(c for part, c in alone.items() if getattr(options, PARTS[part]) == "float16")
        return precision.Change(size, 0)

    monkeypatch.setattr(precision, "_mel_change", added)
    exact = wb.Options(**precision.ALL_FLOAT64)
    safe_parts, change = precision._safe_together(fake, [None], [None], rows, "float16", exact)
    assert safe_parts == ("lm", "vocoder", "f0") and change == pytest.approx(0.5)
    found = precision.PrecisionMap("float16", rows, safe_parts, change)
    assert "for flow, source alone, but not beside them; not for head" in found.line
    assert found.recommended["f0_dtype"] == "float16" and found.recommended["flow_dtype"] == "float32"


@pytest.mark.slow
def test_an_f0_that_overflows_is_not_safe(pipe, utt, options):
    loud = wb.Pipeline(wb.Checkpoint.load("data/voices/tiny"), progress=False)
    name = "f0_predictor.classifier.weight"
    loud.checkpoint.weights["hift"][name] = loud.checkpoint.weights["hift"][name].float() * 1e6
    rows = bisect_precision(loud, utt, "float16", options).rows.set_index("part")
    assert not rows.loc["f0", "safe"]


def test_a_module_gets_its_weights_back():
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4).double()
    weight, x = linear.weight.clone(), torch.randn(2, 4, dtype=torch.float64)
    right = linear(x)
    with module_in_dtype(linear, torch.bfloat16):
        wrong = linear(x)
        assert wrong.dtype == torch.float64 and 1e-4 < float((wrong - right).detach().abs().max()) < 0.1
    assert torch.equal(linear.weight, weight) and torch.equal(linear(x), right)
    assert not linear._forward_hooks and not linear._forward_pre_hooks


@pytest.mark.slow
def test_runs_are_repeatable_and_recording_changes_nothing(pipe, utt, options):
    assert repeatable(pipe, utt, options) == {"determinism": 0.0, "observer": 0.0}


@pytest.mark.slow
def test_the_cost_of_recording_is_measured(pipe):
    short = utterance_of_size(pipe.config, text=4, prompt=10)
    cost = trace_cost(
        pipe, short, pipe.checkpoint.options.but(mask_stop_ids=True, max_tokens=8, n_timesteps=1), 1
    )
    assert list(cost.index) == list(MODES) and cost.loc["silent", "ratio"] == 1.0
    assert (cost["seconds"] > 0).all() and cost["megabytes"].is_monotonic_increasing
