"""What the analysis of sounds takes of memory: blocks of time, whose results are those of the whole."""

import tracemalloc

import numpy as np
import pytest
import torch
from torchaudio.functional import resample as resample_whole

import workbench as wb
from tests.diagnose.sounds.common import speech
from workbench.diagnose.glitches import analysis, wave_stats
from workbench.diagnose.glitches.sample_detectors import clicks
from workbench.diagnose.sounds import compare_sounds, lags
from workbench.diagnose.sounds.measures import average_spectrum
from workbench.speech.config import RELEASED
from workbench.speech.frontend import audio
from workbench.trace import storage

RATE = 48_000
SMALL = 1 << 15  # samples or values of a block, so that short sounds have many
LIMITS = {"glitches": 50, "compare": 110}  # bytes of arrays of numpy for each sample


def long_sound(seconds, seed=0):
    """Speech, repeated, with a little noise, (N,) at 48 kHz."""
    noise = np.random.default_rng(seed).normal(0, 1e-3, round(seconds * RATE))
    return np.resize(speech(rate=RATE), len(noise)) + noise


def peak(function):
    tracemalloc.start()
    function()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", LIMITS)
def test_memory_grows_by_a_few_copies_of_the_sound(what, monkeypatch):
    for module in (analysis, compare_sounds, wave_stats, lags, audio):
        monkeypatch.setattr(module, "BLOCK_SAMPLES", SMALL)
    for module in (audio, storage):
        monkeypatch.setattr(module, "BLOCK_VALUES", SMALL)
    monkeypatch.setattr(lags, "CORRELATED_SAMPLES", 4 * SMALL)
    peaks = []
    for seconds in (2, 4):
        x, y = long_sound(seconds), 0.8 * long_sound(seconds, seed=1)
        if what == "glitches":
            peaks.append(peak(lambda x=x: wb.find_glitches(x, RATE)))
        else:
            peaks.append(peak(lambda x=x, y=y: wb.compare_sounds(x, y, RATE)))
    assert (peaks[1] - peaks[0]) / (2 * RATE) < LIMITS[what]


def test_blocks_of_samples_give_what_the_whole_gives(monkeypatch):
    sound = analysis.as_sound(long_sound(2.0), RATE)
    sound.wav[40_000] += 0.7
    whole = (sound.residual, analysis.moving_mean(sound.wav, 1001), list(clicks(sound)))
    monkeypatch.setattr(analysis, "BLOCK_SAMPLES", 5000)
    monkeypatch.setattr(audio, "BLOCK_VALUES", 20_000)
    again = analysis.as_sound(sound.wav, RATE)
    assert np.array_equal(again.residual, whole[0])
    assert np.array_equal(analysis.moving_mean(again.wav, 1001), whole[1])
    assert list(clicks(again)) == whole[2] != []


@pytest.mark.parametrize("to_rate", [16_000, 24_000, 44_100])
def test_resampling_in_blocks_is_resampling_at_once(monkeypatch, to_rate):
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 5000)
    wav = torch.from_numpy(long_sound(1.0))
    for x in (wav, wav.reshape(2, -1)):
        torch.testing.assert_close(audio.resample(x, RATE, to_rate), resample_whole(x, RATE, to_rate))


def test_spectra_and_pitch_in_blocks_are_those_at_once(monkeypatch):
    wav = long_sound(2.0)
    tensor = torch.from_numpy(wav)
    at_once = audio.log_mel(tensor, RELEASED.mel), audio.pitch(wav, RATE, 60, 500, 480)
    average = average_spectrum(wav, RATE)[1]
    monkeypatch.setattr(audio, "BLOCK_VALUES", 20_000)
    torch.testing.assert_close(audio.log_mel(tensor, RELEASED.mel), at_once[0])
    assert np.array_equal(audio.pitch(wav, RATE, 60, 500, 480), at_once[1])
    np.testing.assert_allclose(average_spectrum(wav, RATE)[1], average, rtol=1e-12)


@pytest.mark.parametrize("lengths", [(20_000, 20_000), (20_000, 7000), (3000, 20_000)])
def test_correlation_in_blocks_finds_the_same_lag(monkeypatch, lengths):
    x = long_sound(1.0)[: lengths[0]]
    y = np.concatenate([np.zeros(700), -0.5 * x])[: lengths[1]]
    at_once = lags.best_lag(x, y)
    monkeypatch.setattr(lags, "CORRELATED_SAMPLES", 3000)
    monkeypatch.setattr(lags, "BLOCK_SAMPLES", 1000)
    lag, correlation = lags.best_lag(x, y)
    assert lag == at_once[0] and correlation == pytest.approx(at_once[1], rel=1e-9)


def test_a_candidate_that_begins_much_later_takes_no_more_time_or_memory():
    """Windows that lie before the candidate's first sample once became windows of the whole."""
    x = speech("kumo_0")
    size = round(lags.WINDOW_S * RATE)
    seen = []
    correlate = lags.correlate
    try:
        lags.correlate = lambda a, b, **k: seen.append(len(a)) or correlate(a, b, **k)
        lags.drift(np.resize(x, 8 * RATE), np.resize(x, 8 * RATE), -4 * RATE, RATE)
    finally:
        lags.correlate = correlate
    assert seen and max(seen) < 3 * size
