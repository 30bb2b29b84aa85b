"""Figures of waveforms for which they are known beforehand."""

import math

import pytest
import torch

from workbench import WorkbenchError
from workbench.diagnose.glitches.wave_stats import AUDIO_LIMIT, wave_stats
from workbench.trace.schema import SAMPLE_RATE

RATE = SAMPLE_RATE


def test_sine_with_offset_and_silence():
    t = torch.arange(RATE) / RATE
    wav = torch.cat((0.5 * torch.sin(2 * math.pi * 100 * t), torch.zeros(RATE)))
    stats = wave_stats(wav + 0.0, RATE)
    assert stats["seconds"] == 2 and stats["silence"] == 0.5
    assert stats["peak"] == pytest.approx(0.5, abs=1e-4)
    assert stats["rms"] == pytest.approx(0.25, abs=1e-4)
    assert stats["dc"] == pytest.approx(0, abs=1e-6)
    assert wave_stats(wav + 0.1, RATE)["dc"] == pytest.approx(0.1, abs=1e-6)


def test_clamped_and_nonfinite_are_counted():
    wav = torch.zeros(1000)
    wav[:7], wav[10:12], wav[20] = AUDIO_LIMIT, -0.995, float("nan")
    stats = wave_stats(wav, RATE)
    assert stats["clamped"] == 9 and stats["nonfinite"] == 1 and math.isfinite(stats["rms"])
    dead = wave_stats(torch.full((10,), float("inf")), RATE)
    assert dead["nonfinite"] == 10 and math.isnan(dead["peak"])


def test_bad_waveforms_are_refused():
    for wav in (torch.zeros(0), torch.zeros(2, 5)):
        with pytest.raises(WorkbenchError, match="expected"):
            wave_stats(wav, RATE)
