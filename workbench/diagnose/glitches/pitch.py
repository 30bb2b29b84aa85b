"""Pitch of a waveform: how harmonic a band is, which frames are voiced, and which may have a given pitch."""

from collections.abc import Iterator

import numpy as np

from workbench.diagnose.glitches.analysis import EPS_SPECTRUM, SPECTRUM_S, Array, Sound

MIN_PITCH, MAX_PITCH = 70, 400  # Hz, of the periods that are tried
PITCH_BAND = (60, 1500)  # Hz; here nearly all power of a voice is harmonic
VOICED = 0.6  # frames with a higher harmonicity surely have a pitch
NEAR = 1.25  # ratio of two pitches up to which one may be the other, a little earlier or later
NEARLY_BEST = 0.9  # share of the best correlation at which another period fits a frame as well


def harmonicity(sound: Sound, low: float, high: float) -> Array:
    """Return how harmonic a frequency band is in every frame of `Sound.power`, (frames,), at most about 1.

    This is the highest autocorrelation at the periods of 70 to 400 Hz.
    """
    lags = np.arange(sound.rate // MAX_PITCH, _longest_lag(sound))
    highest = [part[:, lags].max(1) for part in _correlations(sound, low, high)]
    return np.concatenate(highest) if highest else np.zeros(0)


def voiced_frames(sound: Sound) -> Array:
    """Return which 10 ms frames have a pitch, (frames,), at whatever level."""
    return harmonicity(sound, *PITCH_BAND) > VOICED


def frames_at_pitch(sound: Sound, hz: float) -> Array:
    """Return which voiced frames may have a pitch within a quarter of `hz`, (frames,)."""
    near = np.arange(int(sound.rate / (hz * NEAR)), int(np.ceil(sound.rate * NEAR / hz)) + 1)
    found = [np.zeros(0, dtype=bool)]
    for correlation in _correlations(sound, *PITCH_BAND):
        best = correlation[:, near[0] : max(_longest_lag(sound), near[-1])].max(1)
        found.append((best > VOICED) & (correlation[:, near].max(1) > NEARLY_BEST * best))
    return np.concatenate(found)


def _longest_lag(sound: Sound) -> int:
    """Return the longest period in samples, plus 1; beyond half a window too few samples overlap."""
    return min(sound.rate // MIN_PITCH, sound.samples(SPECTRUM_S) // 2)


def _correlations(sound: Sound, low: float, high: float) -> Iterator[Array]:
    """Yield the autocorrelation of a band of every frame in blocks (frames, lags), 1 at lag 0.

    The window of a frame makes the autocorrelation smaller at long lags; dividing by the window's own
    autocorrelation undoes that (Boersma 1993).
    """
    window = np.hanning(sound.samples(SPECTRUM_S))
    n = len(window)
    inside = (sound.frequencies >= low) & (sound.frequencies < high)
    own = np.correlate(window, window, "full")[n - 1 : n - 1 + n // 2]  # (lags,)
    for power in sound.power():
        band = np.where(inside, power, EPS_SPECTRUM)
        correlation = np.fft.irfft(band, n)[:, : n // 2]  # (frames, lags)
        yield correlation / correlation[:, :1] / (own / own[0])
