"""`compare_sounds`: align two sounds and say what differs, in which aspect, when and at which frequencies.

The steps: open both; stop where nothing can be compared; find the rate at which the candidate's samples fit;
align (`alignment.py`); judge what is left (`aspects.py`); say where it could come from (`causes.py`).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.fft import dct

from workbench.diagnose.glitches.analysis import BLOCK_SAMPLES
from workbench.diagnose.glitches.glitches import Findings, find_glitches
from workbench.diagnose.sounds.alignment import Alignment, align
from workbench.diagnose.sounds.aspects import (
    OFFSET,
    RESAMPLER_TOP,
    Aspect,
    clipping,
    content,
    lengths,
    placing,
)
from workbench.diagnose.sounds.differences import by_band, by_time, signal_to_error
from workbench.diagnose.sounds.lags import FRAME_S, spectral_lag, spectrogram
from workbench.diagnose.sounds.sound_comparison import SoundComparison
from workbench.diagnose.sounds.sound_input import (
    MAX_COMPARED,
    SoundInput,
    SoundSource,
    check_length,
    open_sound,
)
from workbench.speech.frontend.audio import change_speed, warping_path

Array = np.ndarray
MIN_SECONDS = 0.1  # of both sounds; in less nothing can be aligned
ALIKE_DB = 40.0  # signal over difference from which, with no aspect different, sounds are alike
STEPS = 1.6  # of the spacing of stored numbers: rounding is half of it, dither adds one
FLOAT_ERROR = 2e-6  # of each value; what undoing a gain in floating point leaves
FLOAT64_ERROR = 1e-12  # of full scale; what undoing a gain leaves of equal samples
USUAL_RATES = (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # Hz; a wrong header has one of these
CLEARLY = 0.1  # by so much another rate must correlate better
LABELLED_WELL = 0.85  # correlation of spectrograms at which another rate is believed
SAME_WORDS = 1.7  # cost of warping, see `_warping`: other words cost 2.5 and more
MAX_WARP_S = 30.0  # seconds; the memory of warping grows with the square
TIMING_S = 0.06  # seconds; a larger shift of a tenth of the frames is another timing
CEPSTRA = 13  # coefficients that describe the shape of a spectrum, as in speech recognition


class Pair(NamedTuple):
    """Two sounds at one rate."""

    x: Array
    y: Array
    rate: int  # Hz
    played: int  # Hz that the candidate's samples fit; its own rate unless the header is wrong


def compare_sounds(
    reference: SoundSource, candidate: SoundSource, sample_rate: int | None = None
) -> SoundComparison:
    """Align two sounds, then say what differs, when, at which frequencies, and what could make it differ.

    Delay, drift, polarity, gain and sample rate are found and undone first, so that they hide nothing. No
    fault is named: `SoundComparison.unknown` says what a sound alone cannot tell.

    Parameters
    ----------
    reference, candidate : path, Trace, Tensor (N,) or ndarray (N,)
        A sound file in any format of libsndfile, at any rate; of a trace its waveform alone is used.
    sample_rate : int, optional
        Hz, of bare samples.

    Returns
    -------
    SoundComparison

    Raises
    ------
    WorkbenchError
        When a file cannot be read, or has no samples or more than five minutes, or one of them has more than
        1.44 million samples: 60 s at 24 kHz, 30 s at 48 kHz.

    Examples
    --------
    >>> found = wb.compare_sounds(trace, 0.5 * trace.wav, trace.sample_rate)
    >>> found.verdict
    'MATCH'
    >>> found.line
    'MATCH: the same sound after undoing level (-6.02 dB)'
    """
    x, y = open_sound(reference, sample_rate), open_sound(candidate, sample_rate)
    for sound in (x, y):
        check_length(sound, MAX_COMPARED)
    glitches = find_glitches(x.trace), find_glitches(y.trace)
    reason = _not_comparable(x, y)
    if x.rate == y.rate and np.array_equal(x.samples, y.samples, equal_nan=True):
        return SoundComparison(x, y, "MATCH", "every sample is equal", [_finite(x, y)], glitches)
    if reason:
        return SoundComparison(x, y, "NOT COMPARABLE", reason, [_finite(x, y)], glitches)
    offset = _offset(x, y)
    pair = _at_one_rate(x, y, y.rate, offset.differs)
    found = align(pair.x, pair.y, pair.rate)
    if found.method == "none":
        pair, found = _at_another_rate(x, y, offset.differs) or (pair, found)
    if found.method == "none":
        words, text = _words(pair)
        return SoundComparison(x, y, "NOT ALIGNED", text, [_finite(x, y), offset, *words], glitches)
    return _judge(x, y, pair, found, offset, glitches)


def _not_comparable(x: SoundInput, y: SoundInput) -> str:
    """Return why nothing can be compared; empty where it can."""
    reasons = []
    for who, sound in (("reference", x), ("candidate", y)):
        if sound.seconds < MIN_SECONDS:
            length = f"{len(sound.samples)} samples, {sound.seconds * 1e3:.3g} ms"
            reasons.append(f"the {who} has {length}; {MIN_SECONDS} s are needed")
        elif sound.nonfinite == len(sound.samples):
            reasons.append(f"every sample of the {who} is NaN or infinite")
        elif np.ptp(sound.wav) == 0:
            reasons.append(f"the {who} is silent: every sample is {sound.wav[0]:.3g}")
    return "; ".join(reasons)


def _finite(x: SoundInput, y: SoundInput) -> Aspect:
    text = f"{x.nonfinite} and {y.nonfinite} samples are NaN or infinite"
    return Aspect("not finite", x.nonfinite != y.nonfinite, text)


def _offset(x: SoundInput, y: SoundInput) -> Aspect:
    means = float(x.wav.mean()), float(y.wav.mean())
    differs = abs(means[1] - means[0]) >= OFFSET
    return Aspect("offset", differs, f"means of {means[0]:.2g} and {means[1]:.2g} of full scale", differs)


# ---- rates


def _at_one_rate(x: SoundInput, y: SoundInput, played: int, without_mean: bool) -> Pair:
    """Return both sounds at the lower rate; the candidate's samples are taken to be at `played` Hz."""
    rate = min(x.rate, played)
    wavs = [wav - wav.mean() if without_mean else wav for wav in (x.wav, y.wav)]
    for i, own in enumerate((x.rate, played)):
        if own != rate:
            wavs[i] = change_speed(wavs[i], own / rate)
    return Pair(*wavs, rate, played)


def _at_another_rate(x: SoundInput, y: SoundInput, without_mean: bool) -> tuple[Pair, Alignment] | None:
    """Look for another rate at which the candidate's samples fit the reference; None if there is none."""
    _, own = _likeness(x, y, y.rate, without_mean)
    best_rate, best = y.rate, own
    for rate in sorted({*USUAL_RATES, x.rate} - {y.rate}):
        _, correlation = _likeness(x, y, rate, without_mean)
        if correlation > best:
            best_rate, best = rate, correlation
    if best < max(LABELLED_WELL, own + CLEARLY):
        return None
    pair = _at_one_rate(x, y, best_rate, without_mean)
    found = align(pair.x, pair.y, pair.rate)
    return None if found.method == "none" else (pair, found)


def _likeness(x: SoundInput, y: SoundInput, played: int, without_mean: bool) -> tuple[float, float]:
    """Return lag and correlation of the spectrograms, with the candidate's samples taken at `played` Hz."""
    pair = _at_one_rate(x, y, played, without_mean)
    return spectral_lag(pair.x, pair.y, pair.rate)


# ---- verdict


def _judge(
    x: SoundInput,
    y: SoundInput,
    pair: Pair,
    found: Alignment,
    offset: Aspect,
    glitches: tuple[Findings, Findings],
) -> SoundComparison:
    """Judge what is left after the alignment."""
    rate = pair.rate
    is_exact = x.rate == pair.played and not found.is_resampled
    top = rate / 2 * (1.0 if is_exact else RESAMPLER_TOP)
    aspects = [
        _finite(x, y),
        offset,
        *placing(found, x, y, rate, pair.played),
        lengths(found, x, y, len(pair.y) / rate, rate),
    ]
    error = np.abs(found.candidate - found.reference)
    if found.method == "samples" and is_exact and error.max() <= FLOAT64_ERROR:
        verdict, reason = "MATCH", ""
    elif found.method == "samples" and is_exact and _is_rounding(x, y, found, error):
        verdict = "ROUNDING"
        largest = f"they differ by at most {error.max():.2g} of full scale"
        reason = f"{largest}, as storage explains ({_storage(x, y)})"
    else:
        verdict, reason = "", ""
        measured, top = content(found, rate, top)
        aspects += [clipping(x, y), *measured]
    snr = signal_to_error(found.reference, found.candidate, rate, top)
    if not verdict:
        verdict, reason, more = _judge_content(found, aspects, snr, top, pair)
        aspects += more
    if any(aspect.differs and not aspect.is_undone for aspect in aspects):
        verdict = "DIVERGED"
    bands = by_band(found.reference, found.candidate, rate, top)
    times = by_time(found.reference, found.candidate, rate, top, found.start)
    if (
        found.method == "spectrum"
    ):  # the waveforms do not lie on each other, so that their difference says nothing
        snr, bands, times = math.nan, bands.drop(columns="snr_db"), times.drop(columns="snr_db")
    return SoundComparison(x, y, verdict, reason, aspects, glitches, found, rate, snr, bands, times)


def _is_rounding(x: SoundInput, y: SoundInput, found: Alignment, error: Array) -> bool:
    """Return whether storage explains the whole difference."""
    for start in range(0, len(error), BLOCK_SAMPLES):
        part = slice(start, start + BLOCK_SAMPLES)
        reference, candidate = found.reference[part], found.candidate[part]
        spacing = x.spacing_at(reference) + y.spacing_at(candidate * found.gain) / found.gain
        allowed = STEPS * spacing + FLOAT_ERROR * np.abs(reference)
        # Integers end at full scale: what lies beyond it is clipped when a file is written.
        is_beyond = (np.abs(reference) >= 1 - spacing) & (found.gain == 1)
        if not (error[part] <= allowed)[~is_beyond].all():
            return False
    return True


def _storage(x: SoundInput, y: SoundInput) -> str:
    return x.storage if x.storage == y.storage else f"{x.storage} and {y.storage}"


def _judge_content(
    found: Alignment, aspects: list[Aspect], snr: float, top: float, pair: Pair
) -> tuple[str, str, list[Aspect]]:
    """Return the verdict on sounds that are not equal, its reason, and the aspects that follow from it."""
    differs = [aspect.name for aspect in aspects if aspect.differs and not aspect.is_undone]
    more = []
    if found.method == "spectrum":
        is_moved, text = _timing(found, pair.rate)
        more.append(Aspect("prosody", is_moved, text))
        if not is_moved and not {"spectrum", "f0", "harmonics", "bandwidth"} & set(differs):
            more.append(
                Aspect("phase or noise", True, "spectrum, F0 and level agree, the waveforms do not correlate")
            )
        return "DIVERGED", f"aligned by their spectrograms (correlation {found.correlation:.3f})", more
    reason = f"the difference lies {snr:.0f} dB below the sound, up to {top / 1e3:.3g} kHz"
    if differs:
        return "DIVERGED", reason, more
    if snr >= ALIKE_DB:
        more.append(Aspect("small difference", None, f"{reason}; that is too little to say what made it"))
        return "ALIKE", reason, more
    more.append(Aspect("phase or noise", True, f"spectrum, F0 and level agree, but {reason}"))
    return "DIVERGED", reason, more


# ---- timing and words


def _cepstra(wav: Array, rate: int) -> Array:
    """Return the shape of the spectrum every 20 ms, (12, T), scaled to a variance of 1."""
    coefficients = dct(spectrogram(wav, rate, min(8000, rate / 2)), axis=0, norm="ortho")[1:CEPSTRA, ::2]
    centred = coefficients - coefficients.mean(1, keepdims=True)
    return centred / max(float(centred.std()), 1e-9)


def _timing(found: Alignment, rate: int) -> tuple[bool | None, str]:
    """Return whether the sounds have another timing, and a sentence."""
    if len(found.reference) > MAX_WARP_S * rate:
        return None, f"more than {MAX_WARP_S:.0f} s: the timing was not compared"
    _, path = warping_path(_cepstra(found.reference, rate), _cepstra(found.candidate, rate))
    shifts = 2 * FRAME_S * np.abs(path[:, 1] - path[:, 0])
    late = float(np.percentile(shifts, 90))
    return late > TIMING_S, f"a tenth of the frames lies {late * 1e3:.0f} ms or more away"


def _words(pair: Pair) -> tuple[list[Aspect], str]:
    """Say of sounds that cannot be aligned whether they could have the same words."""
    seconds = max(len(pair.x), len(pair.y)) / pair.rate
    if seconds > MAX_WARP_S:
        text = f"longer than {MAX_WARP_S:.0f} s: words were not compared"
        return [Aspect("prosody", None, text), Aspect("words", None, text)], f"no delay fits; {text}"
    cost, _ = warping_path(_cepstra(pair.x, pair.rate), _cepstra(pair.y, pair.rate))
    if cost < SAME_WORDS:
        text = "the same sounds in the same order, as far as spectra tell, with another timing"
        found = [Aspect("prosody", True, text), Aspect("words", None, "not recognised, only likened")]
        return found, f"no single delay fits; {text}"
    text = "not the same utterance: other words, another voice, or one that is distorted beyond recognition"
    return [
        Aspect("prosody", None, "the words differ or are not recognised"),
        Aspect("words", True, text),
    ], text
