"""The catalogue of faults: each can be applied, changes only its own fields, and leaves nothing behind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.transitions import transitions
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, applied, faulty_options, faulty_utterance
from workbench.diagnose.suspects.catalogue.patches import narrower_filters
from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio import log_mel
from workbench.speech.frontend.audio_files import read_wav
from workbench.speech.models import dit
from workbench.trace.schema import FIELDS

NAMED = {fault.name: fault for fault in CATALOGUE}


def test_a_fault_is_found_by_its_name():
    assert wb.faults.named("cfg-off") is NAMED["cfg-off"]
    with pytest.raises(WorkbenchError, match="no fault 'cfg'; it has mel-log10"):
        wb.faults.named("cfg")


@pytest.fixture(scope="module")
def trace(pipe, utt):
    options = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=12, seed=7)
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)


def test_every_fault_states_cause_source_and_one_change():
    assert len(CATALOGUE) >= 30 and len(NAMED) == len(CATALOGUE)
    guide = Path("notebooks/diagnosis.md").read_text(encoding="utf-8")
    assert f"`wb.faults.CATALOGUE` has the {len(CATALOGUE)} faults" in guide
    for fault in CATALOGUE:
        assert (
            fault.cause
            and fault.source
            and "\n" not in fault.cause
            and fault.stage in ("in", "lm", "flow", "hift")
        )
        assert set(fault.fields) <= set(FIELDS)
        assert sum(map(bool, (fault.patches, fault.options, fault.change_utterance))) == 1
        for patch in fault.patches:
            assert hasattr(patch.owner, patch.name) and getattr(patch.owner, patch.name) is not patch.value


def test_applied_faults_are_removed_after_an_exception():
    def patched_functions():
        return [getattr(patch.owner, patch.name) for fault in CATALOGUE for patch in fault.patches]

    before = patched_functions()
    with pytest.raises(ZeroDivisionError), applied(CATALOGUE):
        assert all(a is not b for a, b in zip(before, patched_functions(), strict=True))
        1 / 0  # noqa: B018
    assert all(a is b for a, b in zip(before, patched_functions(), strict=True))


def test_the_later_of_two_patches_of_one_function_counts():
    every, none = NAMED["rotary-every-head"], NAMED["rotary-none"]
    with applied((every, none)):
        q = torch.ones(1, 2, 128)
        assert dit.rotate_first_head(q, torch.zeros(2, 32), torch.ones(2, 32)) is q


def test_faults_change_options_and_utterances(pipe):
    options = faulty_options((NAMED["cfg-off"], NAMED["flow-float16"]), wb.Options())
    assert options.cfg_rate == 0 and options.flow_dtype == "float16"
    utt = pipe.prepare("Eight months to Mars.", "data/prompts/kumo_1.flac")
    assert torch.equal(faulty_utterance((NAMED["mel-late"],), utt).prompt_mel, utt.prompt_mel.roll(1, -1))
    assert faulty_utterance((NAMED["cfg-off"],), utt) is utt


# Faults that need what this short run lacks: a long pause, a loud bin, an overflow, a frame below 10 Hz.
RARE = {
    "silence-unguarded",
    "silence-dropped",
    "sampling-redraw",
    "sampling-no-nucleus",
    "length-counts-prompt",
    "magnitude-unclipped",
    "source-all-voiced",
    "f0-signed",
    "f0-float32",
    "chunk-mask-offline",
}
LOCAL = [f for f in CATALOGUE if f.stage != "in" and f.name not in RARE and f.fields != ("lm/drawn_token",)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", LOCAL, ids=lambda fault: fault.name)
def test_a_fault_changes_its_own_results_and_no_others(pipe, trace, fault):
    options = pipe.checkpoint.options.but(**trace.attrs["options"])
    changed, kept = set(), set()
    for step in transitions(trace):
        if step.index not in (None, 0, 1) or (step.outputs == ("flow/velocity_cond",) and step.index == 0):
            continue
        right = step.recompute(pipe, trace, options)
        try:
            with applied((fault,)):
                wrong = step.recompute(pipe, trace, faulty_options((fault,), options))
        except (WorkbenchError, RuntimeError):
            changed.update(step.outputs)
            continue
        for field, x, y in zip(step.outputs, right, wrong, strict=True):
            same = x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-5, atol=1e-6)
            (kept if same else changed).add(field)
    assert changed & set(fault.fields), f"{fault.name} changes none of {fault.fields}"
    assert changed <= set(fault.fields)


def test_narrower_filters_approximate_the_mel_of_a_lower_fmax(pipe):
    wav = read_wav("data/prompts/kumo_1.flac", 24_000)[0]
    full = log_mel(wav, pipe.config.mel)
    wanted = log_mel(wav, replace(pipe.config.mel, fmax=8000.0))
    near, far = (float((x - wanted).square().mean().sqrt()) for x in (narrower_filters(full), full))
    assert near < 0.5 * far
