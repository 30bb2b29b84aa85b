"""Measure how two aligned sounds differ: by time, by frequency, in pitch and in harmonicity."""

import itertools
import math

import numpy as np
import pandas as pd
from scipy.signal import butter, sosfiltfilt

from workbench.diagnose.sounds.lags import FRAME_S, RANGE_DB, spectrogram
from workbench.diagnose.sounds.measures import average_spectrum, decibels, voice_track

Array = np.ndarray
BAND_EDGES = (
    0,
    125,
    250,
    500,
    1000,
    2000,
    3000,
    4000,
    6000,
    8000,
    10_000,
    12_000,
    16_000,
    20_000,
    24_000,
)  # Hz
SEGMENT_S = 0.1  # seconds of a row by time: shorter than a syllable
FLOOR_DB = 75.0  # below the whole level; what a band has below it is not heard and not compared
BIN_FLOOR_DB = 90.0  # below the strongest bin of a spectrum; the noise of 16-bit storage lies about there
SLOPE_DB = 1.0  # a loss at the upper end begins where the levels are so far apart
LOST_DB = 12.0  # median loss above that place from which the frequencies count as lost
MIN_BAND_HZ = 200.0  # of a loss
MIN_TOP_HZ = 500.0  # a change that begins lower is one of the whole spectrum
MIN_FILTERED = 100  # samples; in fewer the filter does not settle
FILTER_ORDER = 8  # of `below`; run forwards and backwards, 96 dB an octave
ROUNDED = 2  # decimals of a decibel or a second in a table
CENTS = 1200.0  # of an octave
CLEAR_CHANGE = 0.15  # of the harmonicity, from which a frame is voiced in one sound alone


def by_band(reference: Array, candidate: Array, rate: int, top: float) -> pd.DataFrame:
    """Return the levels of both sounds in bands up to `top` Hz.

    Returns
    -------
    DataFrame
        `low_hz`, `high_hz`, `reference_db`, `candidate_db` (of full scale), `difference_db` (0 where both are
        below the floor), `snr_db` (level of the reference over that of the difference).
    """
    frequencies, power_x = average_spectrum(reference, rate)
    _, power_y = average_spectrum(candidate, rate)
    _, power_error = average_spectrum(candidate - reference, rate)
    floor = power_x.sum() * 10 ** (-FLOOR_DB / 10)
    rows = []
    for low, edge in itertools.pairwise(BAND_EDGES):
        high = min(edge, round(top))
        inside = (frequencies >= low) & (frequencies < high)
        if not inside.any():
            break
        x, y, error = (float(power[inside].sum()) for power in (power_x, power_y, power_error))
        difference = float(decibels(max(y, floor)) - decibels(max(x, floor)))
        rows.append((low, high, decibels(x), decibels(y), difference, decibels(x) - decibels(error)))
    columns = ["low_hz", "high_hz", "reference_db", "candidate_db", "difference_db", "snr_db"]
    return pd.DataFrame(rows, columns=columns).round(ROUNDED)


def by_time(reference: Array, candidate: Array, rate: int, top: float, start: float) -> pd.DataFrame:
    """Return how far the sounds are apart in segments of 100 ms.

    Returns
    -------
    DataFrame
        `start`, `end` (seconds in the reference), `level_db` (candidate minus reference), `spectrum_db` (rms
        difference of the spectrograms), `snr_db`.
    """
    gap = np.square(spectral_difference(reference, candidate, rate, top)).mean(0)  # (T,)
    size, frames = round(SEGMENT_S * rate), round(SEGMENT_S / FRAME_S)
    floor = np.square(reference).mean() * 10 ** (-FLOOR_DB / 10)
    rows = []
    for number in range(math.ceil(len(reference) / size)):
        x = reference[number * size : (number + 1) * size]
        y = candidate[number * size : (number + 1) * size]
        power_x, power_y = np.square(x).mean(), np.square(y).mean()
        level = decibels(max(power_y, floor)) - decibels(max(power_x, floor))
        snr = decibels(power_x) - decibels(np.square(y - x).mean())
        part = gap[number * frames : (number + 1) * frames]
        first = start + number * SEGMENT_S
        rows.append((first, first + len(x) / rate, level, math.sqrt(part.mean()) if len(part) else 0.0, snr))
    return (
        pd.DataFrame(rows, columns=["start", "end", "level_db", "spectrum_db", "snr_db"])
        .astype(float)
        .round(ROUNDED)
    )


def signal_to_error(reference: Array, candidate: Array, rate: int, top: float) -> float:
    """Return the level of the reference over that of the difference up to `top` Hz, dB; inf where equal."""
    frequencies, power = average_spectrum(reference, rate)
    _, error = average_spectrum(candidate - reference, rate)
    inside = frequencies <= top
    if not error[inside].any():
        return math.inf
    return float(decibels(power[inside].sum()) - decibels(error[inside].sum()))


def noise_floor(wav: Array, rate: int) -> float:
    """Return the level that a tenth of the 20 ms frames stay below, dB of full scale."""
    size = min(len(wav), round(2 * FRAME_S * rate))
    frames = wav[: len(wav) // size * size].reshape(-1, size)
    return float(np.percentile(decibels(np.square(frames).mean(1)), 10))


def below(wav: Array, rate: int, top: float) -> Array:
    """Return a sound without what lies above `top` Hz."""
    if top >= rate / 2 or len(wav) < MIN_FILTERED:
        return wav
    return sosfiltfilt(butter(FILTER_ORDER, top, fs=rate, output="sos"), wav)


def spectral_difference(reference: Array, candidate: Array, rate: int, top: float) -> Array:
    """Return the candidate's spectrogram minus the reference's in dB, (bands, T)."""
    x, y = spectrogram(reference, rate, top), spectrogram(candidate, rate, top)
    floor = max(x.max(), y.max()) - RANGE_DB
    return np.maximum(y, floor) - np.maximum(x, floor)


def change_above(reference: Array, candidate: Array, rate: int) -> tuple[float, float] | None:
    """Return above which frequency, up to the highest, all levels are lower or all are higher.

    Returns
    -------
    (frequency, difference) or None
        Hz, and dB of the candidate over the reference above it (median). None where there is no such place.
    """
    frequencies, power_x = average_spectrum(reference, rate)
    _, power_y = average_spectrum(candidate, rate)
    floor = max(power_x.max(), power_y.max()) * 10 ** (-BIN_FLOOR_DB / 10)
    difference = decibels(np.maximum(power_y, floor)) - decibels(np.maximum(power_x, floor))
    is_empty = np.maximum(power_x, power_y) <= 10 * floor  # too near to the floor to show a loss
    for sign in (-1, 1):
        is_changed = sign * difference >= SLOPE_DB
        kept = np.flatnonzero(~is_changed & ~is_empty)
        above = slice(int(kept.max(initial=-1)) + 1, None)  # everything above the last that is kept
        changed = difference[above][is_changed[above]]
        if len(changed) * frequencies[1] >= MIN_BAND_HZ and frequencies[above][0] >= MIN_TOP_HZ:
            return float(frequencies[above][0]), float(np.median(changed))
    return None


def voice_difference(reference: Array, candidate: Array, rate: int) -> dict[str, float]:
    """Compare pitch and harmonicity of two aligned sounds, frame by frame.

    Returns
    -------
    dict
        `frames` (voiced in both), `f0_cents` (median absolute difference), `f0_off` (share of these frames
        that are more than half a semitone apart), `voicing` (share of frames voiced in one alone),
        `harmonics_db` (median change of the harmonics over noise). NaN without voiced frames.
    """
    x, y = voice_track(reference, rate), voice_track(candidate, rate)
    both, any_voiced = x.is_voiced & y.is_voiced, x.is_voiced | y.is_voiced
    found = {"frames": int(both.sum()), "f0_cents": math.nan, "f0_off": math.nan, "harmonics_db": math.nan}
    # A frame near the limit of voicing may fall on either side of it without a change that matters.
    in_one = (x.is_voiced ^ y.is_voiced) & (np.abs(x.harmonicity - y.harmonicity) >= CLEAR_CHANGE)
    found["voicing"] = float(in_one.sum() / any_voiced.sum()) if any_voiced.any() else math.nan
    if both.any():
        cents = np.abs(CENTS * np.log2(y.f0[both] / x.f0[both]))
        found["f0_cents"] = float(np.median(cents))
        found["f0_off"] = float((cents > 50).mean())
        change = _harmonics_db(y.harmonicity[both]) - _harmonics_db(x.harmonicity[both])
        found["harmonics_db"] = float(np.median(change))
    return found


def _harmonics_db(harmonicity: Array) -> Array:
    """Return harmonics over noise in dB: a frame correlates with the next period as far as it repeats."""
    share = np.clip(harmonicity, 0.01, 0.9999)  # -20 to 40 dB
    return decibels(share / (1 - share))
