"""Defects made on purpose, to see whether the detectors find them.

`inject(wav, rate, "click", severity=2, seed=0)` returns the spoiled waveform and where it was spoiled. Every
kind has four severities, the first hardly audible; `DEFECTS` states what they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

from workbench.diagnose.glitches.analysis import FRAME_S, Array, Sound, as_sound
from workbench.errors import WorkbenchError

Draw = np.random.Generator
Made = tuple[Array, float, float]  # waveform, where it was spoiled: start and end in seconds
SEAM_S = 0.48
FADE_S = 0.002  # of a gap
PATTERN = (0.5, -0.2, -0.6, 0.3)


class Defect(NamedTuple):
    """One kind: what it takes, at four severities, and what should find it."""

    make: Callable[[Sound, float, Draw], Made]
    magnitudes: tuple[float, float, float, float]
    unit: str
    finders: tuple[str, ...]  # kinds of findings, any of which will do


class Injected(NamedTuple):
    """A spoiled waveform."""

    wav: Tensor  # (N,) float32
    start: float  # s
    end: float
    seams: list[int]  # first sample of every chunk but the first, where the defect is one that is recorded


def inject(wav: Tensor, sample_rate: int, kind: str, severity: int, seed: int = 0) -> Injected:
    """Spoil a clean utterance.

    Parameters
    ----------
    wav : Tensor (N,)
        Full scale is 1; a second of speech at least.
    sample_rate : int
        Hz.
    kind : str
        A key of `DEFECTS`.
    severity : {1, 2, 3, 4}
    seed : int
        Of the place and of the noise.

    Raises
    ------
    WorkbenchError
        For another kind or severity, or a waveform without a second of speech in it.
    """
    sound = as_sound(wav, sample_rate)
    if kind not in DEFECTS or severity not in (1, 2, 3, 4):
        raise WorkbenchError(
            f"{kind!r} of severity {severity!r} is no defect; expected 1 to 4 of {', '.join(DEFECTS)}"
        )
    if sound.active.sum() < 1 / FRAME_S / 2 or sound.seconds < 1:
        raise WorkbenchError(f"{sound.seconds:.1f} s with too little speech; expected a second of speech")
    draw = np.random.default_rng((seed, severity, list(DEFECTS).index(kind)))
    defect = DEFECTS[kind]
    made, start, end = defect.make(sound, defect.magnitudes[severity - 1], draw)
    hop = sound.samples(SEAM_S) - int(defect.magnitudes[severity - 1])
    seams = list(range(hop, len(made), hop)) if kind == "seam" else []
    return Injected(torch.from_numpy(made).float(), start, end, seams)


def _speech_at(sound: Sound, draw: Draw) -> int:
    """A sample amid speech, away from both ends."""
    frames = np.flatnonzero(sound.active)
    inner = frames[(frames > 15) & (frames < len(sound.active) - 15)]
    return int(draw.choice(inner)) * sound.samples(FRAME_S)


def _noise(draw: Draw, n: int, dbfs: float) -> Array:
    return draw.standard_normal(n) * 10 ** (dbfs / 20)


def _nonfinite(sound: Sound, count: float, draw: Draw) -> Made:
    at, y = _speech_at(sound, draw), sound.wav.copy()
    y[at : at + int(count)] = np.nan
    return y, at / sound.rate, (at + int(count)) / sound.rate


def _dead(sound: Sound, dbfs: float, draw: Draw) -> Made:
    rms = np.sqrt(np.square(sound.wav).mean())
    return sound.wav * 10 ** (dbfs / 20) / rms, 0.0, sound.seconds


def _clamped(sound: Sound, percent: float, draw: Draw) -> Made:
    gain = 0.99 / np.percentile(np.abs(sound.wav), 100 - percent)
    at = int(np.argmax(np.abs(sound.wav))) / sound.rate
    return np.clip(sound.wav * gain, -0.99, 0.99), at, at


def _offset(sound: Sound, by: float, draw: Draw) -> Made:
    return sound.wav + by * draw.choice((-1, 1)), 0.0, sound.seconds


def _click(sound: Sound, height: float, draw: Draw) -> Made:
    at, y = _speech_at(sound, draw), sound.wav.copy()
    y[at] += height * draw.choice((-1, 1))
    return y, at / sound.rate, at / sound.rate


def _gap(sound: Sound, ms: float, draw: Draw) -> Made:
    n, fade = sound.samples(ms / 1000), sound.samples(FADE_S)
    frame = sound.samples(FRAME_S)
    need = -(-n // frame) + 2
    speech = np.convolve(sound.active, np.ones(need), "valid")  # as much speech as the gap covers
    places = np.flatnonzero(speech == speech.max())
    at = (int(draw.choice(places)) + 1) * frame
    gain = np.ones(len(sound.wav))
    gain[at : at + n] = 0
    gain = np.convolve(gain, np.ones(fade) / fade, "same")
    return sound.wav * gain, at / sound.rate, (at + n) / sound.rate


def _start_cut(sound: Sound, below: float, draw: Draw) -> Made:
    first = int(np.argmax(sound.levels > sound.loud - below))
    return sound.wav[first * sound.samples(FRAME_S) :], 0.0, 0.005


def _stop_cut(sound: Sound, below: float, draw: Draw) -> Made:
    last = int(np.flatnonzero(sound.levels > sound.loud - below)[-1]) + 1
    y = sound.wav[: last * sound.samples(FRAME_S)]
    return y, len(y) / sound.rate - 0.005, len(y) / sound.rate


def _onset_burst(sound: Sound, dbfs: float, draw: Draw) -> Made:
    quiet = _noise(draw, sound.samples(0.12), sound.floor)
    burst = _noise(draw, sound.samples(0.03), dbfs)
    return np.concatenate((burst, quiet, sound.wav)), 0.0, 0.03


def _tail_burst(sound: Sound, dbfs: float, draw: Draw) -> Made:
    quiet = _noise(draw, sound.samples(0.12), sound.floor)
    burst = _noise(draw, sound.samples(0.04), dbfs)
    y = np.concatenate((sound.wav, quiet, burst))
    return y, len(y) / sound.rate - 0.04, len(y) / sound.rate


def _hiss(sound: Sound, below: float, draw: Draw) -> Made:
    return sound.wav + _noise(draw, len(sound.wav), sound.loud - below), 0.0, sound.seconds


def _line(sound: Sound, dbfs: float, draw: Draw) -> Made:
    hz = draw.uniform(0.1, 0.4) * sound.rate
    tone = np.sin(2 * np.pi * hz * np.arange(len(sound.wav)) / sound.rate)
    return sound.wav + tone * 10 ** (dbfs / 20) * np.sqrt(2), 0.0, sound.seconds


def _buzz(sound: Sound, below: float, draw: Draw) -> Made:
    """Pulses at 100 a second above 2 kHz, as loud as the speech is at the time, less so many dB."""
    pulses = np.zeros(len(sound.wav))
    pulses[:: sound.rate // 100] = 1.0
    pulses = sosfiltfilt(butter(4, 2000, "high", fs=sound.rate, output="sos"), pulses)
    pulses /= np.sqrt(np.square(pulses).mean())
    frame = sound.samples(FRAME_S)
    level = np.maximum(sound.levels, sound.loud - 30)
    envelope = np.interp(np.arange(len(pulses)), (np.arange(len(level)) + 0.5) * frame, 10 ** (level / 20))
    return sound.wav + pulses * envelope * 10 ** (-below / 20), 0.0, sound.seconds


def _step(sound: Sound, db: float, draw: Draw) -> Made:
    at = int(draw.uniform(0.4, 0.6) * len(sound.wav))
    gain = 10 ** (-db / 20)
    y = sound.wav.copy()
    if draw.random() < 0.5:
        y[:at] *= gain
    else:
        y[at:] *= gain
    return y, at / sound.rate, at / sound.rate


def _pause(sound: Sound, seconds: float, draw: Draw) -> Made:
    at = _speech_at(sound, draw)
    quiet = _noise(draw, sound.samples(seconds), min(sound.floor, -65))
    y = np.concatenate((sound.wav[:at], quiet, sound.wav[at:]))
    return y, at / sound.rate, at / sound.rate + seconds


def _seam(sound: Sound, lost: float, draw: Draw) -> Made:
    chunks = np.split(sound.wav, range(sound.samples(SEAM_S), len(sound.wav), sound.samples(SEAM_S)))
    y = np.concatenate([chunk[: max(1, len(chunk) - int(lost))] for chunk in chunks])
    return y, 0.0, len(y) / sound.rate


def _repeat(sound: Sound, below: float, draw: Draw) -> Made:
    at, n, y = _speech_at(sound, draw), sound.samples(0.2), sound.wav.copy()
    n = min(n, len(y) - at)
    pattern = np.resize(PATTERN, n) * 10 ** (sound.loud / 20)
    y[at : at + n] = pattern + _noise(draw, n, sound.loud - below)
    return y, at / sound.rate, (at + n) / sound.rate


DEFECTS: dict[str, Defect] = {
    "not finite": Defect(_nonfinite, (1, 10, 100, 1000), "samples are NaN", ("not finite",)),
    "dead": Defect(_dead, (-62, -70, -80, -100), "dBFS is the level of all", ("dead",)),
    "clamped": Defect(_clamped, (0.03, 0.1, 1, 5), "% of samples beyond 0.99", ("clamped",)),
    "offset": Defect(_offset, (0.003, 0.01, 0.03, 0.1), "of full scale", ("offset",)),
    "click": Defect(_click, (0.05, 0.25, 0.5, 0.8), "of full scale, one sample", ("click",)),
    "gap": Defect(_gap, (12, 25, 60, 200), "ms of silence amid speech", ("gap",)),
    "start cut": Defect(
        _start_cut, (25, 18, 12, 6), "dB below loud speech is its first 10 ms", ("start cut",)
    ),
    "stop cut": Defect(_stop_cut, (25, 18, 12, 6), "dB below loud speech is its last 10 ms", ("stop cut",)),
    "onset burst": Defect(
        _onset_burst, (-50, -40, -30, -20), "dBFS, 30 ms of noise, then quiet", ("onset burst",)
    ),
    "tail burst": Defect(
        _tail_burst, (-50, -40, -30, -20), "dBFS, 40 ms of noise after quiet", ("tail burst",)
    ),
    "hiss": Defect(_hiss, (45, 35, 25, 15), "dB below loud speech, white", ("hiss", "noise floor")),
    "line": Defect(_line, (-75, -65, -55, -45), "dBFS, a sine of 2.4 to 9.6 kHz", ("line",)),
    "buzz": Defect(_buzz, (20, 15, 10, 5), "dB below the speech, 100 pulses a second", ("buzz", "smear")),
    "step": Defect(_step, (6, 12, 18, 24), "dB from about the middle on", ("step",)),
    "pause": Defect(_pause, (0.8, 1.2, 2, 4), "s of silence", ("pause",)),
    "seam": Defect(_seam, (12, 30, 60, 120), "samples lost every 480 ms, seams recorded", ("seam",)),
    "hop": Defect(
        _seam, (12, 30, 60, 120), "samples lost every 480 ms, seams not recorded", ("hop", "click")
    ),
    "repeat": Defect(
        _repeat, (10, 20, 30, 40), "dB of noise below 4 samples repeated for 200 ms", ("repeat",)
    ),
}
