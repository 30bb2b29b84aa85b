"""A cause blames no stage but the one that is known to be at fault; where nothing says which, it is not known."""

import pytest
import torch

import workbench as wb
from workbench.diagnose.glitches.causes import wrong_mel

pytestmark = pytest.mark.slow
FAULTS = {fault.name: fault for fault in wb.faults.CATALOGUE}
WRONG_MEL = "perhaps the mel that the vocoder was given"


def replay(pipe, recorded, **changes):
    options = pipe.checkpoint.options.but(**recorded.attrs["options"] | changes)
    return pipe.replay(recorded, "flow", options, wb.EVERYTHING)


def causes(trace):
    return {finding.kind: finding.cause for finding in wb.find_glitches(trace)}


@pytest.fixture(scope="module")
def one(pipe, recorded):
    return replay(pipe, recorded, n_timesteps=1)


def without_options(trace, fields=None):
    """Return a trace as a port records it: it does not say how it was made."""
    names = list(trace) if fields is None else fields
    return wb.Trace({name: trace[name] for name in names}, {"prompt_frames": trace.prompt_frames})


def test_one_step_of_the_ode_is_blamed_for_all_that_it_does(one):
    for trace in (one, without_options(one)):
        found = causes(trace)
        assert {"offset", "off mel", "smear"} <= set(found)
        assert all(text.startswith("perhaps") and "steps" in text for text in found.values())
        assert not any("fault of the vocoder" in text or "bias" in text for text in found.values())


def test_a_mel_unlike_speech_clears_the_vocoder_without_a_word_about_the_ode(one):
    found = causes(without_options(one, ["flow/mel", "hift/wav"]))
    assert found["off mel"].startswith(f"{WRONG_MEL}: flow/mel is unlike speech")
    assert found["offset"].startswith(WRONG_MEL)
    assert found["smear"].startswith("not known") and "too few steps" in found["smear"]


def test_half_precision_beside_one_step_names_both(pipe, one):
    text = causes(
        wb.Trace(one.data, {**one.attrs, "options": one.attrs["options"] | {"hift_dtype": "float16"}})
    )
    assert text["offset"].startswith(WRONG_MEL) and "the vocoder in half precision" in text["offset"]


@pytest.mark.parametrize(
    "name", ["grid-one-step", "adaln-order", "input-order", "token-off-by-one", "looks-left"]
)
def test_no_finding_blames_a_stage_that_is_not_at_fault(pipe, recorded, name):
    fault = FAULTS[name]
    found = causes(wb.faults.inject(pipe, recorded, [fault]))
    assert found
    for text in found.values():
        blamed = text if text.startswith("perhaps") else ""
        assert not (fault.stage == "flow" and "vocoder" in blamed.replace(WRONG_MEL, "")), text
        assert not (fault.stage == "hift" and blamed), text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cfg_rate": 0.0},
        {"cfg_rate": -1.0},
        {"tau_r": 0.1, "silent_tokens_repeat": False},
        {"hift_dtype": "float16", "head_dtype": "float16"},
    ],
    ids=str,
)
def test_a_run_with_ten_steps_has_no_cause_that_it_did_not_have(pipe, recorded, changes):
    for text in causes(replay(pipe, recorded, **changes)).values():
        assert text.startswith("not known") or "half precision, which this run had" in text


def test_clipping_behind_the_vocoder_is_no_proof_against_any_stage(recorded):
    clipped = (8 * recorded.wav).clamp(-1, 1)
    found = causes(wb.Trace(dict(recorded.data) | {"hift/wav": clipped}, recorded.attrs))
    assert {"clamped", "off mel"} <= set(found)
    assert all(text.startswith("not known") for text in found.values())
    assert "clipping behind it" in found["off mel"]


def test_the_number_of_steps_is_read_from_options_or_from_the_knots():
    knots = torch.linspace(0, 1, 3)
    assert wrong_mel(wb.Trace({}, {"options": {"n_timesteps": 2}})) == "the ODE had few steps (2)"
    assert wrong_mel(wb.Trace({"flow/t": knots}, {})) == "the ODE had few steps (2)"
    assert wrong_mel(wb.Trace({"flow/t": knots}, {"first_step": 8})) == ""  # steps 8 and 9 of ten
    assert wrong_mel(wb.Trace({}, {})) == ""
    heun = {"n_timesteps": 3, "solver": "heun"}  # six velocity evaluations
    assert wrong_mel(wb.Trace({}, {"options": heun})) == ""
    assert wrong_mel(wb.Trace({}, {"options": heun | {"n_timesteps": 2}})) != ""


def test_what_happens_between_chunks_is_not_confirmed_by_having_chunks(recorded):
    wav = recorded.wav.clone()
    wav[9000:] += 0.3
    found = causes(wb.Trace({"hift/wav": wav}, {"seams": [9000], "sample_rate": recorded.sample_rate}))
    assert all(text.startswith("not known") for text in found.values())
