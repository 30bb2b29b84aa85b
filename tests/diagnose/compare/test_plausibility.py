"""Fields whose lengths cannot come from one run are named before any number is compared."""

import pytest
import torch

import workbench as wb
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.plausibility import inconsistent_lengths

SHAPES = {  # of the fields of one run
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
IDS = ("in/text_token", "in/flow_prompt_token", "lm/speech_token")


def trace_of(shapes, **attrs):
    data = {name: torch.zeros(shape, dtype=int if name in IDS else float) for name, shape in shapes.items()}
    return wb.Trace(data, {"prompt_frames": 6, "sample_rate": 24000, "timings": {}} | attrs)


def test_lengths_of_one_run_are_consistent():
    assert inconsistent_lengths(trace_of(SHAPES)) == [] and inconsistent_lengths(trace_of({})) == []
    for name in SHAPES:  # and without any one of its fields
        assert (
            inconsistent_lengths(trace_of({other: shape for other, shape in SHAPES.items() if other != name}))
            == []
        )


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
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
def test_a_field_of_another_run_is_named(name, shape, expected):
    found = inconsistent_lengths(trace_of(SHAPES | {name: shape}))
    assert found and any(expected in text for text in found)
    assert all(text.startswith("fields are not of one run: ") for text in found)


@pytest.mark.parametrize("missing", [1, 2])
def test_an_untrimmed_prompt_of_a_dumped_conversion_is_right(missing):
    frames = 6 - missing  # of a prompt of three tokens; the target has the more
    n = 10 + missing
    wav = {"hift/source": (480 * n,), "hift/wav": (480 * n,), "hift/magnitude": (9, 120 * n + 1)}
    dumped = SHAPES | {"in/prompt_mel": (80, frames), "flow/mel": (80, n), "hift/f0": (n,)} | wav
    assert inconsistent_lengths(trace_of(dumped, prompt_frames=frames)) == []
    assert inconsistent_lengths(trace_of(dumped | {"in/text_token": (4,)}, prompt_frames=frames))
    short = dumped | {"in/prompt_mel": (80, 1)}
    assert inconsistent_lengths(trace_of(short, prompt_frames=1))


def test_a_whole_stage_of_another_run_is_named():
    sound = {"hift/wav": (4320,), "hift/source": (4320,), "hift/magnitude": (9, 1081)}
    found = inconsistent_lengths(trace_of(SHAPES | sound))
    assert any(
        "hift/source, hift/wav has 4320 along sample" in text and "480 samples a frame" in text
        for text in found
    )
    mel = {"flow/mel": (80, 9), "hift/f0": (9,)} | sound
    assert any(
        "the frames behind the prompt" in text for text in inconsistent_lengths(trace_of(SHAPES | mel))
    )
    assert not any(
        "prompt" in text for text in inconsistent_lengths(trace_of(SHAPES | mel, options={"speed": 1.1}))
    )


def test_compare_reports_inconsistent_lengths():
    pipe = wb.Pipeline(wb.Checkpoint.load("data/voices/tiny"), progress=False)
    right, other = trace_of(SHAPES), trace_of(SHAPES | {"flow/velocity": (2, 80, 18), "hift/wav": (4320,)})
    found = compare(right, other, pipe)
    assert found.verdict == "SHAPE" and found.causes is None
    assert any(text.startswith("candidate: fields are not of one run: frame is 16") for text in found.hints)
    assert any("sample is 4800 in hift/source, but 4320 in hift/wav" in text for text in found.hints)
