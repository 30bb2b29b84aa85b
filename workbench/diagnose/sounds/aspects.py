"""The aspects in which two sounds are compared, each with its limit and a sentence on what was found."""

import math
from dataclasses import dataclass

import numpy as np

from workbench.diagnose.sounds.alignment import MIN_FRACTION, Alignment
from workbench.diagnose.sounds.differences import (
    LOST_DB,
    below,
    by_band,
    change_above,
    noise_floor,
    voice_difference,
)
from workbench.diagnose.sounds.measures import clipped
from workbench.diagnose.sounds.sound_input import SoundInput

Array = np.ndarray
# Limits: what a listener just notices, or what is far above the errors of measuring, whichever is larger.
LEVEL_DB = 0.1
DRIFT_PPM = 1.0
OFFSET = 3e-4  # of full scale, -70 dB
NOISE_FLOOR_DB = 3.0
SILENT_FLOOR_DB = -80.0  # of full scale; a background below it is not heard
BAND_DB = 1.0  # of the level of a band; the smallest change of timbre that is heard
F0_CENTS, F0_OFF = 5.0, 0.05  # median; share of frames that are half a semitone off
HARMONICS_DB, VOICING = 0.5, 0.1  # harmonics over noise; share of frames voiced in one sound alone
MIN_VOICED = 20  # frames of 10 ms; fewer say nothing about pitch
MIN_PART_S = 0.05  # seconds; a shorter part that one sound lacks is padding
SPEECH_DB = 30.0  # a part this far below the whole is silence
RESAMPLER_TOP = 0.8  # of half the rate; above it the filters of two resamplers differ


@dataclass(frozen=True)
class Aspect:
    """One property of both sounds, side by side.

    Attributes
    ----------
    name : str
        A key of `POSSIBLE` in causes.py.
    differs : bool or None
        None where it could not be measured.
    text : str
        What was found, in words.
    is_undone : bool
        Whether the alignment undid the difference, so that the rest was compared without it.
    """

    name: str
    differs: bool | None
    text: str
    is_undone: bool = False


def placing(found: Alignment, x: SoundInput, y: SoundInput, rate: int, played: int) -> list[Aspect]:
    """Describe what the alignment undid: delay, drift, level, polarity, rate.

    Parameters
    ----------
    found : Alignment
    x, y : SoundInput
        Reference and candidate.
    rate : int
        Hz, at which they were aligned.
    played : int
        Hz that the candidate's samples fit; another than `y.rate` means a wrong header.
    """
    if played == y.rate:
        rates = f"{x.rate} and {y.rate} Hz"
    else:
        times = f"{y.rate / played:.4g} times as fast"
        rates = f"the candidate's samples fit {played} Hz, but are labelled {y.rate} Hz: {times}"
    aspects = [Aspect("sample rate", x.rate != y.rate or played != y.rate, rates, is_undone=True)]

    samples = found.delay * rate
    # Beside a drift, a small delay may come from fitting the drift.
    is_delayed = abs(samples) >= (1.0 if found.drift else MIN_FRACTION)
    precision = "to 10 ms" if found.method == "spectrum" else f"{abs(samples):.2f} samples at {rate} Hz"
    where = "later" if found.delay > 0 else "earlier"
    delay = f"{abs(found.delay) * 1e3:.4g} ms {where} ({precision})" if is_delayed else "none"
    aspects.append(Aspect("delay", is_delayed, delay, is_undone=True))

    if found.method == "samples":
        is_drifting = abs(found.drift) >= DRIFT_PPM
        aspects.append(Aspect("drift", is_drifting, f"{found.drift:+.3g} ppm", is_undone=True))
        polarity = "inverted" if found.is_inverted else "the same"
        aspects.append(Aspect("polarity", found.is_inverted, polarity, is_undone=True))
    else:
        aspects.append(Aspect("drift", None, "the waveforms do not correlate"))
        aspects.append(Aspect("polarity", None, "the waveforms do not correlate"))

    gain_db = 20 * math.log10(found.gain)
    aspects.append(Aspect("level", abs(gain_db) >= LEVEL_DB, f"{gain_db:+.2f} dB", is_undone=True))
    return aspects


def lengths(found: Alignment, x: SoundInput, y: SoundInput, y_seconds: float, rate: int) -> Aspect:
    """Describe what only one of the sounds has, before and after the part in common.

    Parameters
    ----------
    found : Alignment
    x, y : SoundInput
        Reference and candidate.
    y_seconds : float
        Length of the candidate at the rate that its samples fit.
    rate : int
        Hz, at which they were aligned.
    """
    common = len(found.reference) / rate
    sides = (
        ("the reference", x, x.seconds, found.start),
        ("the candidate", y, y_seconds, found.start + found.delay),
    )
    texts, has_speech = [], False
    for who, sound, seconds, start in sides:
        for where, first, last in (("before", 0.0, start), ("after", start + common, seconds)):
            if last - first < MIN_PART_S:
                continue
            n = len(sound.wav)
            part = sound.wav[round(first / seconds * n) : round(last / seconds * n)]
            is_speech = _is_speech(part, sound)
            has_speech = has_speech or is_speech
            what = "sound" if is_speech else "silence"
            texts.append(f"{who} has {last - first:.3f} s of {what} {where} the part in common")
    return Aspect("length", has_speech, "; ".join(texts) or f"{x.seconds:.3f} and {y_seconds:.3f} s")


def _is_speech(part: Array, sound: SoundInput) -> bool:
    """Return whether any 20 ms of a part are nearly as loud as the whole sound."""
    size = max(1, min(len(part), round(0.02 * sound.rate)))
    frames = part[: len(part) // size * size].reshape(-1, size)
    loudest = np.square(frames).mean(1).max(initial=0.0)
    return bool(loudest > np.square(sound.wav).mean() * 10 ** (-SPEECH_DB / 10))


def clipping(x: SoundInput, y: SoundInput) -> Aspect:
    """Compare how many samples are at full scale or in flat tops, before anything is undone."""
    counts = clipped(x.wav), clipped(y.wav)
    text = f"{counts[0]} and {counts[1]} samples at full scale or in flat tops"
    return Aspect("clipping", (counts[0] > 0) != (counts[1] > 0), text)


def content(found: Alignment, rate: int, top: float) -> tuple[list[Aspect], float]:
    """Compare the aligned sounds: bandwidth, noise floor, spectrum, F0 and harmonics.

    Returns
    -------
    aspects : list of Aspect
    top : float
        Hz; the highest frequency that both sounds have.
    """
    x, y = found.reference, found.candidate
    bandwidth = Aspect("bandwidth", False, f"the same up to {top / 1e3:.3g} kHz")
    change = change_above(x, y, rate)
    if change is not None and change[0] < top:
        frequency, difference = change
        amount = f"{abs(difference):.0f} dB {'less' if difference < 0 else 'more'}"
        text = f"above {frequency / 1e3:.3g} kHz the candidate has {amount}"
        is_edge = difference < 0 and frequency >= RESAMPLER_TOP * rate / 2
        if is_edge or abs(difference) >= LOST_DB:
            bandwidth = Aspect("bandwidth", not is_edge, text + (", as after resampling" if is_edge else ""))
            top = frequency
    bands = by_band(x, y, rate, top)
    x, y = below(x, rate, top), below(y, rate, top)
    floors = noise_floor(x, rate), noise_floor(y, rate)
    heard = max(floors) > SILENT_FLOOR_DB
    floor = Aspect(
        "noise floor",
        heard and abs(floors[1] - floors[0]) >= NOISE_FLOOR_DB,
        f"{floors[0]:.0f} and {floors[1]:.0f} dB of full scale",
    )
    worst = bands.loc[bands["difference_db"].abs().idxmax()]
    spectrum = Aspect(
        "spectrum",
        bool(abs(worst["difference_db"]) >= BAND_DB),
        f"at most {worst['difference_db']:+.1f} dB, from {worst['low_hz']:.0f} to {worst['high_hz']:.0f} Hz",
    )
    return [bandwidth, floor, spectrum, *_voice(x, y, rate)], top


def _voice(x: Array, y: Array, rate: int) -> list[Aspect]:
    """Compare pitch and harmonics."""
    voice = voice_difference(x, y, rate)
    if voice["voicing"] >= VOICING or voice["frames"] >= MIN_VOICED:
        change = voice["harmonics_db"]
        text = f"voiced in one alone: {voice['voicing']:.0%} of the voiced frames"
        if not math.isnan(change):
            text = f"{change:+.2f} dB over noise; {text}"
        is_changed = abs(change) >= HARMONICS_DB or voice["voicing"] >= VOICING
        harmonics = Aspect("harmonics", is_changed, text)
    else:
        harmonics = Aspect("harmonics", None, "too few voiced frames")
    if voice["frames"] < MIN_VOICED:
        return [Aspect("f0", None, "too few frames are voiced in both"), harmonics]
    is_off = voice["f0_cents"] >= F0_CENTS or voice["f0_off"] >= F0_OFF
    far = f"{voice['f0_off']:.0%} of the frames half a semitone off"
    text = f"{voice['f0_cents']:.1f} cents apart (median); {far}"
    return [Aspect("f0", is_off, text), harmonics]
