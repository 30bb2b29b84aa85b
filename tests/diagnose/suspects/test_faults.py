"""Mistakes made on purpose: every one can be put on and taken off, and nothing of it stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.transitions import transitions
from workbench.diagnose.suspects.faults import CATALOGUE, applied, options_of, spoiled
from workbench.diagnose.suspects.patches import narrower
from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio import log_mel, read_wav
from workbench.speech.models import dit
from workbench.trace.schema import FIELDS

NAMED = {fault.name: fault for fault in CATALOGUE}


@pytest.fixture(scope="module")
def trace(pipe, utt):
    options = pipe.checkpoint.options.but(n_timesteps=2, max_tokens=12, seed=7)
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)


def test_the_catalogue_says_what_where_and_why():
    assert len(CATALOGUE) >= 30 and len(NAMED) == len(CATALOGUE)
    assert f"a catalogue of {len(CATALOGUE)} mistakes" in Path("README.md").read_text(encoding="utf-8")
    for fault in CATALOGUE:
        assert (
            fault.cause
            and fault.source
            and "\n" not in fault.cause
            and fault.stage in ("in", "lm", "flow", "hift")
        )
        assert set(fault.fields) <= set(FIELDS)
        assert sum(map(bool, (fault.patches, fault.options, fault.spoil))) == 1
        for patch in fault.patches:
            assert hasattr(patch.owner, patch.name) and getattr(patch.owner, patch.name) is not patch.value


def test_nothing_stays():
    def everything():
        return [getattr(patch.owner, patch.name) for fault in CATALOGUE for patch in fault.patches]

    before = everything()
    with pytest.raises(ZeroDivisionError), applied(CATALOGUE):
        assert all(a is not b for a, b in zip(before, everything(), strict=True))
        1 / 0  # noqa: B018
    assert all(a is b for a, b in zip(before, everything(), strict=True))


def test_of_two_that_swap_the_same_the_later_counts():
    every, none = NAMED["rotary-every-head"], NAMED["rotary-none"]
    with applied((every, none)):
        q = torch.ones(1, 2, 128)
        assert dit.rotate_first_head(q, torch.zeros(2, 32), torch.ones(2, 32)) is q


def test_options_and_inputs_of_faults(pipe):
    options = options_of((NAMED["cfg-off"], NAMED["flow-float16"]), wb.Options())
    assert options.cfg_rate == 0 and options.flow_dtype == "float16"
    utt = pipe.prepare("Eight months to Mars.", "data/prompts/kumo_1.flac")
    assert torch.equal(spoiled((NAMED["mel-late"],), utt).prompt_mel, utt.prompt_mel.roll(1, -1))
    assert spoiled((NAMED["cfg-off"],), utt) is utt


# Those that need something this short run has not: a long pause, a loud bin, an overflow, a frame below 10 Hz.
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
        if step.index not in (None, 0, 1) or (step.fields == ("flow/velocity_cond",) and step.index == 0):
            continue
        right = step.work(pipe, trace, options)
        try:
            with applied((fault,)):
                wrong = step.work(pipe, trace, options_of((fault,), options))
        except (WorkbenchError, RuntimeError):
            changed.update(step.fields)
            continue
        for field, x, y in zip(step.fields, right, wrong, strict=True):
            same = x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-5, atol=1e-6)
            (kept if same else changed).add(field)
    assert changed & set(fault.fields), f"{fault.name} changes none of {fault.fields}"
    assert changed <= set(fault.fields)


def test_a_spectrum_from_other_filters_is_near(pipe):
    wav = read_wav("data/prompts/kumo_1.flac", 24_000)[0]
    full = log_mel(wav, pipe.config.mel)
    wanted = log_mel(wav, replace(pipe.config.mel, fmax=8000.0))
    near, far = (float((x - wanted).square().mean().sqrt()) for x in (narrower(full), full))
    assert near < 0.5 * far
