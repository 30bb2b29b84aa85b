"""Fields that cannot be of one run are named before any number is compared."""

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.misfits import misfits

FIT = {
    "in/flow_prompt_token": (3,),
    "in/prompt_mel": (80, 6),
    "lm/speech_token": (5,),
    "flow/mu": (80, 16),
    "flow/t": (3,),
    "flow/x": (3, 80, 16),
    "flow/velocity": (2, 80, 16),
    "flow/mel": (80, 10),
    "hift/f0": (10,),
    "hift/source": (4800,),
    "hift/magnitude": (9, 1201),
    "hift/wav": (4800,),
}
IDS = ("in/flow_prompt_token", "lm/speech_token")


def trace_of(shapes, **attrs):
    data = {name: torch.zeros(shape, dtype=int if name in IDS else float) for name, shape in shapes.items()}
    return wb.Trace(data, {"prompt_frames": 6, "sample_rate": 24000, "timings": {}} | attrs)


def test_a_run_fits_itself():
    assert misfits(trace_of(FIT)) == [] and misfits(trace_of({})) == []
    for name in FIT:  # and does without any of its fields
        assert misfits(trace_of({other: shape for other, shape in FIT.items() if other != name})) == []


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("hift/wav", (4320,), "sample is 4800 in hift/source, but 4320 in hift/wav"),
        ("flow/mel", (80, 9), "target_frame is 9 in flow/mel, but 10 in hift/f0"),
        ("flow/mu", (80, 18), "frame is 18 in flow/mu, but 16 in flow/x, flow/velocity"),
        ("flow/mel", (100, 10), "100 in flow/mel"),
        (
            "flow/velocity",
            (3, 80, 16),
            "flow/t, flow/x has 3 along knot, and flow/velocity makes 4 (one knot more",
        ),
        (
            "in/prompt_mel",
            (80, 7),
            "in/prompt_mel has 7 along prompt_frame, and the attribute prompt_frames makes 6",
        ),
        ("lm/speech_token", (6,), "and in/flow_prompt_token and lm/speech_token make 18 (2 frames a token)"),
        ("hift/magnitude", (9, 1200), "hift/magnitude has 1200 along stft_frame"),
    ],
)
def test_one_field_of_another_run(name, shape, said):
    found = misfits(trace_of(FIT | {name: shape}))
    assert found and any(said in text for text in found)
    assert all(text.startswith("fields are not of one run: ") for text in found)


def test_all_of_one_stage_of_another_run():
    sound = {"hift/wav": (4320,), "hift/source": (4320,), "hift/magnitude": (9, 1081)}
    found = misfits(trace_of(FIT | sound))
    assert any(
        "hift/source, hift/wav has 4320 along sample" in text and "480 samples a frame" in text
        for text in found
    )
    mel = {"flow/mel": (80, 9), "hift/f0": (9,)} | sound
    assert any("the frames behind the prompt" in text for text in misfits(trace_of(FIT | mel)))
    assert not any("prompt" in text for text in misfits(trace_of(FIT | mel, options={"speed": 1.1})))


def test_they_are_a_finding_and_not_a_crash():
    pipe = wb.Pipeline(wb.Checkpoint.load("data/voices/tiny"), progress=False)
    fit, other = trace_of(FIT), trace_of(FIT | {"flow/velocity": (2, 80, 18), "hift/wav": (4320,)})
    found = compare(fit, other, pipe)
    assert found.verdict == "SHAPE" and found.causes is None
    assert any(text.startswith("candidate: fields are not of one run: frame is 16") for text in found.hints)
    assert any("sample is 4800 in hift/source, but 4320 in hift/wav" in text for text in found.hints)
