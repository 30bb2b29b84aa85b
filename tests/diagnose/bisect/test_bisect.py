"""`bisect`: which taps to record next, and the first block and part that adds an error; never a right run."""

import copy
import random
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from workbench.diagnose.bisect import benchmark
from workbench.diagnose.bisect.benchmark import OtherProgram, in_rounds, stored
from workbench.diagnose.bisect.inside_faults import KINDS, Inside
from workbench.diagnose.bisect.model_run import recompute_taps
from workbench.diagnose.bisect.stages import stage_taps
from workbench.errors import WorkbenchError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def right(pipe, recorded):
    """A right run of 36 frames and three steps: the first tokens of prompt and target of `recorded`."""
    data = {name: recorded[name] for name in recorded if name.startswith("in/")}
    data["in/flow_prompt_token"] = recorded["in/flow_prompt_token"][:10]
    data["in/prompt_mel"] = recorded["in/prompt_mel"][:, :20]
    data["lm/speech_token"] = recorded["lm/speech_token"][:8]
    options = pipe.checkpoint.options.but(n_timesteps=3)
    return pipe.replay(wb.Trace(data, recorded.attrs), "flow", options, wb.EVERYTHING)


@pytest.fixture(scope="module")
def stage(pipe):
    return stage_taps(pipe, "flow")


@pytest.fixture
def estimator(pipe):
    """An estimator that a test may change."""
    return copy.deepcopy(pipe.stage("flow", "float32").decoder.estimator)


def program(pipe, right, estimator, fault=None):
    return OtherProgram(pipe, right, estimator, fault or Inside("", ""))


def every_tap(stage):
    return [tap.name for tap in stage.taps]


@torch.no_grad()
def spoil(estimator, *names):
    """Make the weights of submodules 1.1 times as large."""
    for name in names:
        estimator.get_submodule(name).weight.mul_(1.1)


@pytest.mark.parametrize("kind", ["weight scaled", "gate missing", "blocks swapped"])
def test_the_first_block_and_part_are_named(pipe, right, estimator, kind):
    fault = KINDS[kind](estimator, random.Random(1))
    without, first, second = in_rounds(program(pipe, right, estimator, fault), pipe, "float32")
    block = benchmark.block_of(fault.tap)
    assert without.first == "" and "input_embed" in without.next_taps
    assert first.block == block and second.block == block
    assert kind == "blocks swapped" or second.first == fault.tap
    assert second.next_taps == []


def test_a_sample_of_the_benchmark_is_right(pipe):
    rows = list(benchmark.measure(pipe, ["rope pairs"], ["float32"], 1, [0], benchmark.UTTERANCES[2:3]))
    [row] = benchmark.table(rows).to_dict("records")
    assert (row["faults"], row["first part %"]) == (1, 100)
    assert (row["right runs"], row["accused"]) == (1, 0)


def test_a_block_that_is_never_called_is_named(pipe, right, stage, estimator):
    name = "transformer_blocks.2"
    estimator.transformer_blocks[2].forward = lambda x, *rest: x
    theirs = program(pipe, right, estimator, Inside("", name, silent=name)).recorded(stage.blocks, [0], stage)
    found = wb.bisect(right, theirs, pipe)
    assert found.block == name and f"{name} is left out" in found.line
    assert any(text.startswith(f"flow/{name}: its output") for text in found.unchecked)


@pytest.mark.parametrize("view", benchmark.VIEWS)
def test_a_right_run_is_not_accused_however_its_taps_were_stored(pipe, right, stage, estimator, view):
    theirs = stored(program(pipe, right, estimator).recorded(every_tap(stage), [0, 2], stage), view)
    found = wb.bisect(right, theirs, pipe)
    assert (found.first, found.next_taps) == ("", []) and "no error inside" in found.line
    assert len(found.checked) >= 2 * (len(stage.taps) - 1)


def test_a_mask_may_be_recorded_without_its_axis_of_one(pipe, right, stage, estimator):
    theirs = program(pipe, right, estimator).recorded(stage.blocks, [0], stage)
    mask = torch.ones(2, right["flow/mu"].shape[-1])
    for given in (mask, mask[:, None]):
        taps = theirs.taps | {"flow/0/input.mask": given}
        assert wb.bisect(right, wb.Trace(theirs.data, theirs.attrs, taps), pipe).first == ""
    mask[:, -3:] = 0
    taps = theirs.taps | {"flow/0/input.mask": mask}
    assert wb.bisect(right, wb.Trace(theirs.data, theirs.attrs, taps), pipe).block == "transformer_blocks.0"


def test_branches_may_come_in_the_other_order(pipe, right, stage, estimator):
    theirs = program(pipe, right, estimator).recorded(stage.blocks, [0], stage)
    swapped = {name: tap.flip(0) for name, tap in theirs.taps.items() if "input." not in name}
    assert wb.bisect(right, wb.Trace(theirs.data, theirs.attrs, swapped), pipe).first == ""


def test_later_blocks_that_add_errors_of_their_own_are_listed(pipe, right, stage, estimator):
    spoil(estimator, "transformer_blocks.1.ff.ff.2", "transformer_blocks.3.attn.to_v")
    theirs = program(pipe, right, estimator).recorded(every_tap(stage), [1], stage)
    found = wb.bisect(right, theirs, pipe)
    assert found.first == "transformer_blocks.1.ff" and found.part == "feed-forward: second linear layer"
    assert found.others == ["transformer_blocks.3.attn.to_v"]
    assert found.to_frame().query("verdict == 'adds an error'")["tap"].tolist() == [
        found.first,
        *found.others,
    ]
    assert "transformer_blocks.3 add errors of their own" in found._repr_html_()


def test_missing_taps_are_unchecked_and_asked_for(pipe, right, stage, estimator):
    spoil(estimator, "transformer_blocks.2.attn.to_q")
    names = ["time_embed", "input_embed", "transformer_blocks.0", "transformer_blocks.3", "proj_out"]
    found = wb.bisect(right, program(pipe, right, estimator).recorded(names, [0], stage), pipe)
    assert found.block == "" and found.next_taps == ["transformer_blocks.1", "transformer_blocks.2"]
    assert "flow/transformer_blocks.4: its output was not recorded" in found.unchecked
    assert "transformer_blocks.1 or transformer_blocks.2 or transformer_blocks.3" in found.line


def test_taps_without_the_inputs_are_checked_from_block_to_block(pipe, right, stage, estimator):
    spoil(estimator, "transformer_blocks.2.ff.ff.2")
    taps = program(pipe, right, estimator).recorded(stage.blocks, [0], stage).taps
    taps = {name: tap for name, tap in taps.items() if "input." not in name}
    found = wb.bisect(None, wb.Trace({}, {}, taps), pipe)
    assert found.first == "transformer_blocks.2"
    assert any("input_embed: input.x" in text for text in found.unchecked)


def test_an_error_in_the_inputs_is_said_to_be_before_the_estimator(pipe, right, stage, estimator):
    other = wb.Trace(dict(right) | {"flow/mu": right["flow/mu"] * 1.1}, right.attrs)
    theirs = program(pipe, other, estimator).recorded(stage.blocks, [0], stage)
    found = wb.bisect(right, theirs, pipe)
    assert found.first == "input.mu" and "begins before the flow, in what it is given: input.mu" in found.line
    assert found.wrong == []
    # Without a right run, mu is compared with what follows from the tokens.
    assert wb.bisect(None, theirs, pipe).first == "input.mu"


def test_values_that_the_program_went_on_with_are_not_excused_by_storage(pipe, right, stage, estimator):
    block = estimator.transformer_blocks[1]
    forward = block.forward
    block.forward = lambda *args: forward(*args).bfloat16().float()
    found = wb.bisect(right, program(pipe, right, estimator).recorded(stage.blocks, [0], stage), pipe)
    assert found.block == "transformer_blocks.1" and "bfloat16" in found.line


def test_a_run_without_taps_is_asked_for_them_where_it_goes_wrong(pipe, right):
    velocity = right["flow/velocity_cond"].clone()
    velocity[1] *= 1.01
    theirs = wb.Trace(dict(right) | {"flow/velocity_cond": velocity}, right.attrs)
    found = wb.bisect(right, theirs, pipe)
    assert found.steps == [1] and "transformer_blocks.4" in found.next_taps
    assert "flow: no taps are recorded" in found.unchecked
    assert wb.bisect(right, right, pipe).next_taps == []


def test_the_snippet_and_the_mapping_lead_to_the_block(pipe, right, estimator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(estimator, "transformer_blocks.3.attn.to_out.0")
    asked = wb.bisect(right, wb.Trace({"flow/mel": right["flow/mel"]}, right.attrs), pipe)
    for _ in range(2):
        other = copy.deepcopy(estimator)
        model = SimpleNamespace(flow=SimpleNamespace(decoder=SimpleNamespace(estimator=other)))
        exec(asked.snippet, {"model": model})
        program(pipe, right, other).recorded((), (), stage_taps(pipe, "flow"))
        for name, text in asked.files().items():
            (tmp_path / name).write_text(text)
        theirs = wb.read_foreign("taps.safetensors", "taps.toml", options=right.attrs["options"])
        asked = wb.bisect(right, theirs, pipe)
        assert asked.block == "transformer_blocks.3"
    assert asked.first == "transformer_blocks.3.attn" and asked.next_taps == []


@pytest.mark.parametrize(("name", "wrong"), [("lm", "layers.1.mlp.up_proj"), ("hift", "resblocks.4")])
def test_lm_and_vocoder_are_bisected_too(pipe, right, name, wrong):
    stage = stage_taps(pipe, name)
    fields = stage.from_fields(pipe, right, 0)
    model, names = pipe.stage(name, "float32"), every_tap(stage)
    values = recompute_taps(stage, model, fields, names)
    taps = {f"{name}/0/{tap.name}": values[tap.name] for tap in stage.taps}
    healthy = wb.bisect(right, wb.Trace(right.data, right.attrs, taps), pipe, name)
    assert healthy.first == "" and len(healthy.checked) == len(stage.taps)
    # The program goes on with a wrong value.
    changed = recompute_taps(stage, model, fields | {wrong: values[wrong] * 1.01}, names)
    changed[wrong] = values[wrong] * 1.01
    taps = {f"{name}/0/{tap.name}": changed[tap.name] for tap in stage.taps}
    found = wb.bisect(right, wb.Trace(right.data, right.attrs, taps), pipe, name)
    assert found.first == wrong and found.others == []
    assert wb.bisect(right, right, pipe, name).next_taps


def test_an_unknown_stage_and_taps_that_fit_nowhere_are_named(pipe, right):
    with pytest.raises(WorkbenchError, match="stage is 'f0'; expected one of flow, lm, hift"):
        wb.bisect(right, right, pipe, "f0")
    taps = {"flow/0/transformer_blocks.99": torch.ones(2, 3, 256), "flow/x/proj_out": torch.ones(2, 3, 80)}
    found = wb.bisect(right, wb.Trace(right.data, right.attrs, taps), pipe)
    assert [text for text in found.unchecked if "99" in text] and found.next_taps == []
    assert [text for text in found.unchecked if "flow/x/proj_out" in text]


def test_taps_of_another_shape_and_nan_are_findings(pipe, right, stage, estimator):
    theirs = program(pipe, right, estimator).recorded(stage.blocks, [0], stage)
    taps = theirs.taps | {"flow/0/transformer_blocks.1": theirs.taps["flow/0/transformer_blocks.1"][:, 1:]}
    found = wb.bisect(right, wb.Trace(theirs.data, theirs.attrs, taps), pipe)
    assert found.first == "transformer_blocks.1" and "expected" in found.line
    broken = theirs.taps["flow/0/transformer_blocks.1"].clone()
    broken[0, 0, 0] = torch.nan
    taps = theirs.taps | {"flow/0/transformer_blocks.1": broken}
    found = wb.bisect(right, wb.Trace(theirs.data, theirs.attrs, taps), pipe)
    assert found.first == "transformer_blocks.1" and "NaN or Inf" in found.line and found.others == []
