"""One door for recordings: arrays of any type and shape equal the file they come from; other scales are refused."""

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio_input import open_audio, open_recording

RATE = 24_000
PCM = np.random.default_rng(0).integers(-20_000, 20_000, RATE).astype(np.int16)  # one second
WAV = (PCM / 32768).astype(np.float32)

ALIKE = {
    "float32": WAV,
    "float64": WAV.astype(np.float64),
    "float16": np.round(WAV * 1024).astype(np.float16) / 1024,
    "tensor": torch.from_numpy(WAV),
    "tensor with gradient": torch.from_numpy(WAV).requires_grad_(),
    "int16": PCM,
    "int16 tensor": torch.from_numpy(PCM),
    "big-endian int16": PCM.astype(">i2"),
    "int32": PCM.astype(np.int32) << 16,
    "uint16": (PCM.astype(np.int32) + 32768).astype(np.uint16),
    "list": WAV.tolist(),
    "(1, N)": WAV[None],
    "(N, 1)": WAV[:, None],
    "(1, N, 1)": WAV[None, :, None],
    "(2, N)": np.stack([WAV, WAV]),
    "(N, 2)": torch.from_numpy(np.stack([WAV, WAV], 1)),
    "stereo int16": np.stack([PCM, PCM], 1),
    "backwards twice": WAV[::-1].copy()[::-1],
    "every second": np.repeat(WAV, 2)[::2],
}


@pytest.mark.parametrize("name", ALIKE)
def test_arrays_of_any_type_and_shape_are_one_recording(name):
    found = open_recording(ALIKE[name], RATE)
    assert found.rate == RATE and found.wav.dtype == torch.float32
    atol = 1e-3 if name == "float16" else 1e-7
    torch.testing.assert_close(found.wav, torch.from_numpy(WAV), atol=atol, rtol=0)


@pytest.mark.parametrize("integers", [np.int8, np.uint8])
def test_eight_bits_are_scaled_by_their_own_range(integers):
    silence = 128 if integers is np.uint8 else 0
    samples = np.array([silence + 64, silence - 128] * 12_000).astype(integers)
    assert open_recording(samples, RATE).wav[:2].tolist() == [0.5, -1.0]


@pytest.mark.parametrize("rate", [24_000.0, np.int64(24_000), np.float32(24_000), torch.tensor(24_000)])
def test_rates_of_any_number_are_taken(rate):
    for pair in ((WAV, rate), (rate, WAV), [torch.from_numpy(PCM), rate]):
        assert open_recording(pair).rate == RATE
    assert open_recording(WAV, rate).rate == RATE


@pytest.mark.parametrize("rate", ["24000", True, 24_000.5, 0, -1, float("nan"), float("inf"), [24_000], None])
def test_other_rates_are_refused(rate):
    with pytest.raises(WorkbenchError, match="rate"):
        open_recording(WAV, rate)


def test_two_rates_that_differ_are_refused():
    assert open_recording((WAV, RATE), RATE).rate == RATE
    with pytest.raises(WorkbenchError, match="24000 and 16000"):
        open_recording((WAV, RATE), 16_000)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (WAV * 32768, "32768 for 16-bit"),
        (WAV * 60, "reaches a level of"),
        (WAV * 3, "reaches a level of"),
        (PCM.astype(np.int64), "full scale nobody knows"),
        (PCM.astype(np.int32), "as if 16 or 24 bits"),
        (PCM.astype(np.int32) << 8, "as if 16 or 24 bits"),
        (WAV + 1j, "complex64"),
        (WAV > 0, "bool"),
        (np.array(["a"] * RATE), "expected real numbers"),
        ([[0.1, 0.2], [0.3]], "no samples|expected real numbers"),
        (np.zeros((20, 24_000), np.float32), "of one recording"),
        (np.zeros((2, 3, 24_000), np.float32), "of one recording"),
        (np.zeros(0, np.float32), "expected samples"),
        (WAV * np.nan, "NaN"),
        ({"a": 1}, "is no sound"),
        (3, "is no sound"),
        (None, "is no sound"),
        (torch.zeros(RATE, device="meta"), "no samples"),
        (torch.zeros(RATE).to_sparse(), "no samples"),
    ],
)
def test_other_scales_types_and_shapes_are_refused(samples, message):
    with pytest.raises(WorkbenchError, match=message):
        open_recording(samples, RATE)


def test_a_level_slightly_beyond_full_scale_is_kept():
    assert open_recording(WAV / np.abs(WAV).max() * 1.2, RATE).wav.abs().max().item() == pytest.approx(1.2)


def test_double_precision_is_kept_for_those_who_ask():
    assert open_audio(WAV.astype(np.float64), RATE).wav.dtype == torch.float64
