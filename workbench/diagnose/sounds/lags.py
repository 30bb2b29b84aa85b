"""Measure by how much one sound is later than another: as a whole, in windows, and by spectrogram.

A lag is positive when the second sound is later. Correlations are normalised by the energy of the part in
common, so that 1 means equal up to a factor.
"""

import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.optimize import minimize_scalar
from scipy.signal import correlate
from scipy.stats import theilslopes

from workbench.diagnose.glitches.analysis import BLOCK_SAMPLES, sums_before
from workbench.speech.config import MelConfig
from workbench.speech.frontend.audio import log_mel

Array = np.ndarray
MIN_OVERLAP = 0.5  # of the shorter sound; less in common is no alignment
FRACTION_S = 20.0  # seconds from which the fraction of a sample is measured; more adds nothing
WINDOW_S = 0.4  # seconds in which the delay is measured for drift: several periods of any voice
MAX_DRIFT = 2e-3  # of the rate, 2000 ppm; two clocks differ by less than 200 ppm
SLACK_S = 0.02  # seconds around the lag of the whole in which a window is looked for
WINDOW_CORRELATION = 0.7  # windows below it have no clear lag
MIN_WINDOWS, MAX_WINDOWS = 4, 200  # fewer say nothing about drift, more add nothing
QUIET_DB = 30.0  # windows so far below the loudest hold no speech
FRAME_S = 0.01  # seconds between frames of a spectrogram
SPECTRUM_S = 0.04  # seconds in the window of a spectrum: three periods of a low voice
RANGE_DB = 50.0  # of a spectrogram; what lies deeper is background
MEL_BANDS = 40  # of a spectrogram, fewer at very low rates
MIN_BAND_HZ = 50.0  # two bins of the spectrum; a narrower band would be empty
EPS = 1e-20  # energy; keeps quotients of silence finite
CORRELATED_SAMPLES = 1 << 19  # of either sound that are correlated at once; bounds memory


def best_lag(x: Array, y: Array) -> tuple[int, float]:
    """Return the lag at which two sounds or spectrograms correlate best, and the correlation there.

    Parameters
    ----------
    x, y : ndarray (N,) and (M,), or (D, N) and (D, M)

    Returns
    -------
    lag : int
        In entries of the last axis.
    correlation : float
        -1 to 1; negative where one sound is the other inverted. Spectrograms have no polarity.
    """
    has_polarity = x.ndim == 1
    x, y = np.atleast_2d(x), np.atleast_2d(y)  # (D, N), (D, M)
    n, m = x.shape[1], y.shape[1]
    products = _correlation(x, y)  # one per lag
    energy_x, energy_y = _energy_before(x), _energy_before(y)
    # A part in common that is almost silent has no meaningful quotient: its energy counts as a tenth of all.
    min_energy = 0.1 * np.sqrt(energy_x[-1] * energy_y[-1]) + EPS
    best_height, best, correlation = -np.inf, 0, 0.0
    for start in range(0, n + m - 1, BLOCK_SAMPLES):
        part = slice(start, start + BLOCK_SAMPLES)
        lags = np.arange(n + m - 1)[part] - (n - 1)
        # The part in common at each lag: where it begins in x and in y, and its energy on both sides.
        first_x, first_y = np.maximum(0, -lags), np.maximum(0, lags)
        length = np.minimum(n - first_x, m - first_y)
        in_x = energy_x[first_x + length] - energy_x[first_x]
        in_y = energy_y[first_y + length] - energy_y[first_y]
        energy = np.maximum(np.sqrt(in_x * in_y), min_energy)
        scores = np.where(length >= MIN_OVERLAP * min(n, m), products[part] / energy, 0.0)
        heights = np.abs(scores) if has_polarity else scores
        highest = int(heights.argmax())
        if heights[highest] > best_height:
            best_height, best, correlation = heights[highest], int(lags[highest]), float(scores[highest])
    return best, correlation


def _correlation(x: Array, y: Array) -> Array:
    """Return the products of (D, N) and (D, M) at every lag from 1 - N to M - 1, (N + M - 1,).

    Long sounds are cut into blocks: the Fourier transform of the whole would fill the memory.
    """
    n, m = x.shape[1], y.shape[1]
    products = np.zeros(n + m - 1)
    for row_x, row_y in zip(x, y, strict=True):
        for i in range(0, n, CORRELATED_SAMPLES):
            block_x = row_x[i : i + CORRELATED_SAMPLES]
            for k in range(0, m, CORRELATED_SAMPLES):
                found = correlate(row_y[k : k + CORRELATED_SAMPLES], block_x, method="fft")
                first = k - i - len(block_x) + n  # place of the block's lowest lag
                products[first : first + len(found)] += found
    return products


def _energy_before(x: Array) -> Array:
    """Return the energy of the first 0, 1, ... N entries of the last axis, (N + 1,)."""
    return sums_before(np.square(x).sum(0))


def common_part(x: Array, y: Array, lag: int) -> tuple[Array, Array]:
    """Return the parts of two sounds that lie on each other."""
    first_x, first_y = max(0, -lag), max(0, lag)
    length = min(x.shape[-1] - first_x, y.shape[-1] - first_y)
    return x[..., first_x : first_x + length], y[..., first_y : first_y + length]


def fraction_of_sample(x: Array, y: Array, rate: int) -> float:
    """Return the samples, -1 to 1, by which `y` is later than `x`, for sounds aligned to a sample.

    It is the place where the cross-correlation is highest between its samples. Its value at any place is the
    inverse Fourier transform of the cross-spectrum there.
    """
    middle, half = len(x) // 2, round(FRACTION_S * rate / 2)
    part = slice(max(0, middle - half), middle + half)
    # Zeros behind the sounds, so that the end does not meet the start; a large prime would take gigabytes.
    size = next_fast_len(2 * len(x[part]), real=True)
    cross = np.fft.rfft(y[part], size)
    cross *= np.conj(np.fft.rfft(x[part], size))
    radians = 2 * np.pi * np.fft.rfftfreq(size)  # per sample

    def height(place: float) -> float:
        angles = radians * place
        return -abs(float(cross.real @ np.cos(angles) - cross.imag @ np.sin(angles)))

    return float(minimize_scalar(height, bounds=(-1, 1), method="bounded", options={"xatol": 1e-4}).x)


def drift(x: Array, y: Array, lag: int, rate: int) -> float:
    """Return the drift of `y`: samples that it falls behind for each sample of `x`; 0 where none is found.

    The lag is measured in windows around `lag`, and a line is fitted through all (Theil-Sen: the median slope
    of all pairs, so that windows with a wrong lag do not count).
    """
    size = round(WINDOW_S * rate)
    slack = round((SLACK_S + MAX_DRIFT * len(x) / rate) * rate)
    starts = np.arange(0, len(x) - size + 1, max(1, size // 2))
    energies = np.array([np.square(x[start : start + size]).sum() for start in starts])
    active = np.flatnonzero(energies >= energies.max(initial=0.0) * 10 ** (-QUIET_DB / 10))
    active = active[:: -(-len(active) // MAX_WINDOWS) or 1]
    places, lags = [], []
    for start, energy in zip(starts[active], energies[active], strict=True):
        first = max(0, start + lag - slack)
        around = y[first : max(0, start + lag + size + slack)]  # empty where `y` begins later
        if len(around) < size + 2:
            continue
        products = correlate(around, x[start : start + size], mode="valid", method="fft")  # (places,)
        before = _energy_before(around[None])
        scores = np.abs(products) / np.sqrt(np.maximum(before[size:] - before[:-size], EPS) * energy + EPS)
        best = int(scores.argmax())
        if scores[best] >= WINDOW_CORRELATION and 0 < best < len(scores) - 1:
            places.append(start)
            fraction = fraction_of_sample(x[start : start + size], around[best : best + size], rate)
            lags.append(first - start + best + fraction)
    if len(places) < max(MIN_WINDOWS, len(active) / 2):
        return 0.0
    slope, _, low, high = theilslopes(lags, places)
    is_clear = not low <= 0 <= high and abs(slope) <= MAX_DRIFT
    return float(slope) if is_clear else 0.0


def spectrogram(wav: Array, rate: int, top: float | None = None) -> Array:
    """Return the log-mel of a sound in dB, one frame every 10 ms, without what lies 50 dB below its maximum.

    Parameters
    ----------
    wav : ndarray (N,)
    rate : int
        Hz.
    top : float, optional
        Highest frequency, Hz; half the rate unless given.

    Returns
    -------
    ndarray (bands, T)
    """
    n_bands = min(MEL_BANDS, int((top or rate / 2) / MIN_BAND_HZ))
    window = 2 * round(SPECTRUM_S * rate / 2)
    config = MelConfig(rate, window, window, round(FRAME_S * rate), n_bands, 0.0, top)
    padded = np.pad(wav, (0, max(0, window - len(wav))))
    nepers = log_mel(torch.from_numpy(padded).double(), config)[0].numpy()  # (bands, T)
    decibels = nepers * (20 / np.log(10))
    return np.maximum(decibels, decibels.max() - RANGE_DB)


def spectral_lag(x: Array, y: Array, rate: int) -> tuple[float, float]:
    """Return the lag in seconds at which two spectrograms correlate best, and the correlation there."""
    bands_x, bands_y = spectrogram(x, rate), spectrogram(y, rate)
    bands_x = bands_x - bands_x.mean(1, keepdims=True)
    bands_y = bands_y - bands_y.mean(1, keepdims=True)
    lag, correlation = best_lag(bands_x, bands_y)
    return lag * round(FRAME_S * rate) / rate, correlation
