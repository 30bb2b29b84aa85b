"""Alignment finds a known delay, drift, polarity and gain, and refuses other utterances."""

import itertools

import numpy as np
import pytest

from tests.diagnose.sounds.common import VOICES, delayed, drifted, noisy, pcm16, speech
from workbench.diagnose.sounds.alignment import align

pytestmark = pytest.mark.slow
RATES = (16_000, 24_000, 44_100)
# Each voice at one rate, each rate with one voice at least.
VOICES_AND_RATES = list(zip(VOICES, itertools.cycle(RATES), strict=False))


@pytest.mark.parametrize(("voice", "rate"), VOICES_AND_RATES)
def test_delay_is_found_to_a_fraction_of_a_sample(voice, rate):
    wav = speech(f"{voice}_0", rate)
    for samples in (480, 12.37, 0.5):
        found = align(wav, pcm16(delayed(wav, samples)), rate)
        assert found.method == "samples" and found.drift == 0
        assert found.delay * rate == pytest.approx(samples, abs=0.02)


def test_sound_that_begins_earlier_has_a_negative_delay():
    wav = speech("alpha_1")
    found = align(wav, wav[1000:], 24_000)
    assert found.delay * 24_000 == pytest.approx(-1000)
    assert found.start == pytest.approx(1000 / 24_000)
    assert np.array_equal(found.reference, found.candidate)


@pytest.mark.parametrize(("voice", "rate"), VOICES_AND_RATES)
def test_drift_is_found(voice, rate):
    wav = speech(f"{voice}_1", rate)
    for ppm in (50, -120):
        assert align(wav, drifted(wav, ppm), rate).drift == pytest.approx(ppm, abs=3)


def test_delay_drift_gain_and_polarity_are_found_together():
    wav = speech("tebukuro_0")
    found = align(wav, -0.3 * drifted(delayed(wav, 1200.7), 80), 24_000)
    assert found.is_inverted
    assert found.gain == pytest.approx(0.3, rel=0.01)
    assert found.drift == pytest.approx(80, abs=3)
    assert found.delay * 24_000 == pytest.approx(1200.8, abs=0.3)


@pytest.mark.parametrize("snr_db", [20, 10])
def test_noise_is_not_taken_for_delay_or_drift(snr_db):
    for voice in VOICES:
        wav = speech(f"{voice}_0")
        found = align(wav, noisy(wav, snr_db), 24_000)
        assert (found.method, found.delay, found.drift) == ("samples", 0, 0)


def test_sounds_of_other_words_are_not_aligned():
    sounds = [speech("kumo_1"), *(speech(f"{voice}_0") for voice in VOICES)]
    for x, y in itertools.combinations(sounds, 2):
        assert align(x, y, 24_000).method == "none"


def test_sound_with_other_phases_is_aligned_by_its_spectrogram():
    for voice in VOICES:
        wav = speech(f"{voice}_0")
        # A phase that swings with the frequency delays each by up to 7 ms, less than the window of a spectrum.
        radians = 2 * (1 - np.cos(2 * np.pi * np.fft.rfftfreq(len(wav), 1 / 24_000) / 300))
        found = align(wav, np.fft.irfft(np.fft.rfft(wav) * np.exp(-1j * radians), len(wav)), 24_000)
        assert found.method == "spectrum" and abs(found.delay) <= 0.011
