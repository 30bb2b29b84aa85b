"""Align two sounds: find delay, drift, polarity and gain of the candidate, and undo them.

`align` aligns in one of three ways, from the most exact to the least:

1. by samples: the waveforms correlate. Delay to a fraction of a sample, drift, polarity and gain are found.
2. by spectrum: the waveforms do not correlate, as after a change of phase, but their spectrograms do.
3. not at all: the sounds are not the same utterance, or have another timing.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import fourier_shift

from workbench.diagnose.sounds.lags import best_lag, common_part, drift, fraction_of_sample, spectral_lag
from workbench.speech.frontend.audio import change_speed

Array = np.ndarray
SAMPLES_ALIGN = 0.9  # correlation of waveforms; below it the best lag may be a period of the voice off
SPECTRA_ALIGN = 0.82  # correlation of spectrograms; other words stay below 0.8, faults of one run above 0.87
CLEAR_GAIN = 0.5  # a transform is undone if that leaves at most this share of the error's energy (3 dB)
MIN_FRACTION = 0.01  # samples; a smaller fractional delay is rounding
EDGE = 64  # samples at either end that a fractional shift may disturb


@dataclass(frozen=True, eq=False)
class Alignment:
    """Two sounds at one rate and of one length, with the candidate's differences in time and level undone.

    Attributes
    ----------
    method : {"samples", "spectrum", "none"}
        What was aligned.
    correlation : float
        Of the waveforms for "samples" and "none", of the spectrograms for "spectrum"; 0 to 1.
    delay : float
        Seconds by which the candidate is later than the reference, at the beginning of the reference.
    drift : float
        Parts per million by which the candidate falls behind; 0 unless found.
    is_inverted : bool
        Whether the candidate's polarity is opposite.
    gain : float
        Level of the candidate divided by that of the reference.
    reference, candidate : ndarray (N,)
        The part in common, with everything undone. Empty for "none".
    start : float
        Seconds in the reference where that part begins.
    is_resampled : bool
        Whether a fraction of a sample or drift was undone, which leaves small errors at high frequencies.
    """

    method: str
    correlation: float
    delay: float = 0.0
    drift: float = 0.0
    is_inverted: bool = False
    gain: float = 1.0
    reference: Array = field(default_factory=lambda: np.zeros(0))
    candidate: Array = field(default_factory=lambda: np.zeros(0))
    start: float = 0.0
    is_resampled: bool = False


def align(reference: Array, candidate: Array, rate: int) -> Alignment:
    """Align two sounds.

    Parameters
    ----------
    reference, candidate : ndarray (N,) and (M,)
        Finite and not silent.
    rate : int
        Hz, of both.

    Returns
    -------
    Alignment
    """
    spectral_delay, likeness = spectral_lag(reference, candidate, rate)
    best = _align_samples(reference, candidate, rate, 0.0)
    # Drift blurs the correlation of the whole, so that its lag may be wrong; spectrograms stand it better.
    lag = round((best.delay if best.correlation >= SAMPLES_ALIGN else spectral_delay) * rate)
    slope = drift(reference, candidate, lag, rate)
    if slope:
        # Measured once more on what is left, windows have no drift of their own and are exact.
        undone = _align_samples(reference, candidate, rate, slope)
        slope += drift(undone.reference, undone.candidate, 0, rate)
        undone = _align_samples(reference, candidate, rate, slope)
        if _error(undone) <= CLEAR_GAIN * _error(best):
            best = undone
    if best.correlation >= SAMPLES_ALIGN:
        return best
    if likeness >= SPECTRA_ALIGN:
        return _align_spectra(reference, candidate, rate, spectral_delay, likeness)
    return Alignment("none", best.correlation)


def _align_samples(x: Array, y: Array, rate: int, slope: float) -> Alignment:
    """Undo a known drift, then delay, polarity and gain, each only where that leaves clearly less error."""
    if slope:
        y = change_speed(y, 1 + slope)
    lag, correlation = best_lag(x, y)
    is_inverted = correlation < 0
    y = -y if is_inverted else y
    first, second = common_part(x, y, lag)
    fraction = fraction_of_sample(first, second, rate)
    if abs(fraction) >= MIN_FRACTION:
        _, shifted = common_part(x, _shift(y, -fraction), lag)
        if _unexplained(first, shifted) <= CLEAR_GAIN * _unexplained(first, second):
            second = shifted
        else:
            fraction = 0.0
    else:
        fraction = 0.0
    edge = min(EDGE, len(first) // 8) if slope or fraction else 0
    first, second = first[edge : len(first) - edge], second[edge : len(second) - edge]
    energy = float(np.square(first).sum() * np.square(second).sum())
    product = float(first @ second)
    gain = float(np.square(second).sum()) / product if product > 0 else 1.0
    if _unexplained(first, second) > CLEAR_GAIN * float(np.square(first - second).sum()):
        gain = 1.0  # undoing it would change next to nothing
    return Alignment(
        method="samples",
        correlation=product / energy**0.5 if energy else 0.0,
        delay=(lag + fraction) * (1 + slope) / rate,
        drift=slope * 1e6,
        is_inverted=is_inverted,
        gain=gain,
        reference=first,
        candidate=second / gain,
        start=(max(0, -lag) + edge) / rate,
        is_resampled=bool(slope or fraction),
    )


def _align_spectra(x: Array, y: Array, rate: int, delay: float, likeness: float) -> Alignment:
    """Undo a delay that spectrograms show, and the difference in level."""
    lag = round(delay * rate)
    first, second = common_part(x, y, lag)
    if not first.any() or not second.any():  # frames overlap at their edges alone, or in silence
        return Alignment("none", 0.0)
    gain = float(np.sqrt(np.square(second).mean() / np.square(first).mean()))
    return Alignment(
        method="spectrum",
        correlation=likeness,
        delay=delay,
        gain=gain,
        reference=first,
        candidate=second / gain,
        start=max(0, -lag) / rate,
    )


def _shift(y: Array, samples: float) -> Array:
    """Return a sound shifted to later samples by a fraction, by way of its Fourier transform."""
    size = next_fast_len(len(y) + 2 * EDGE, real=True)  # a large prime would take minutes and gigabytes
    spectrum = rfft(np.pad(y, (EDGE, size - len(y) - EDGE)), overwrite_x=True)
    fourier_shift(spectrum, samples, size, output=spectrum)
    return irfft(spectrum, size, overwrite_x=True)[EDGE : EDGE + len(y)]


def _unexplained(x: Array, y: Array) -> float:
    """Return the energy that is left of `x` when the best multiple of `y` is subtracted."""
    energy = float(np.square(y).sum())
    multiple = float(x @ y) / energy if energy else 0.0
    return float(np.square(x - multiple * y).sum())


def _error(found: Alignment) -> float:
    """Return the share of the reference's energy that the aligned candidate does not explain."""
    return float(
        np.square(found.reference - found.candidate).sum() / max(np.square(found.reference).sum(), 1e-20)
    )
