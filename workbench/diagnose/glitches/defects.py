"""Make defects on purpose, to measure whether the detectors find them.

`inject(wav, rate, "click", severity=2, seed=0)` returns the waveform with the defect and the place of the
defect. Every kind has four severities, the first hardly audible; `DEFECTS` states what they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

from workbench.diagnose.glitches.analysis import FRAME_S, Array, Sound, as_sound
from workbench.diagnose.glitches.sample_detectors import STRIDES
from workbench.errors import WorkbenchError
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import resample
from workbench.trace.schema import SAMPLE_RATE

AUDIO_LIMIT = RELEASED.hift.audio_limit  # of full scale; where the vocoder clamps
MIN_SECONDS = 1.0  # length of a waveform that can be given a defect
MIN_SPEECH_S = 0.5  # seconds of speech in it
MARGIN_FRAMES = 15  # frames of 10 ms at either end where no defect is put
SEAM_S = 0.48  # seconds in a chunk of a stream: 12 tokens
FADE_S = 0.002  # seconds of fading at the edges of a gap
REPORTED_CUT_S = 0.005  # seconds at the end of a waveform that count as the place of a cut
QUIET_S = 0.12  # seconds of background noise between a burst and the speech
ONSET_S, TAIL_S = 0.03, 0.040  # seconds of noise in a burst
BUZZ_RATE = 100  # pulses per second
BUZZ_LOW_HZ = 2000  # Hz; the pulses have no power below
BUZZ_DEPTH_DB = 30  # dB below loud speech down to which the pulses follow the speech's level
PAUSE_DBFS = -65  # dB of full scale; the noise in a pause is not louder than this
REPEAT_S = 0.2  # seconds that a pattern repeats
PATTERN = (0.5, -0.2, -0.6, 0.3)  # samples of the shortest pattern; they sum to zero
PATTERN_RMS = 0.43  # of the longer ones, which are noise; that of PATTERN
MAX_PATTERN_HZ = 0.4  # of the sample rate: strides that repeat more often do not fit below half of it

Draw = np.random.Generator


class Made(NamedTuple):
    """A waveform with a defect, and its place."""

    wav: Array
    start: float  # seconds
    end: float  # seconds


class Defect(NamedTuple):
    """One kind of defect: how it is made, its four magnitudes, and which detectors should find it."""

    make: Callable[[Sound, float, Draw], Made]  # of a sound, a magnitude and a random generator
    magnitudes: tuple[float, float, float, float]
    unit: str
    finders: tuple[str, ...]  # kinds of findings; any of them counts


class Injected(NamedTuple):
    """The result of `inject`."""

    wav: Tensor  # (N,) float32
    start: float  # seconds
    end: float  # seconds
    seams: list[int]  # first sample of every chunk but the first, for the kind whose seams are recorded


def inject(wav: Tensor, sample_rate: int, kind: str, severity: int, seed: int = 0) -> Injected:
    """Return a clean utterance with a defect.

    Parameters
    ----------
    wav : Tensor (N,)
        Full scale is 1; at least one second, half of it speech.
    sample_rate : int
        Hz.
    kind : str
        A key of `DEFECTS`.
    severity : {1, 2, 3, 4}
    seed : int
        Seed of the place and of the noise.

    Raises
    ------
    WorkbenchError
        For another kind or severity, or a waveform with too little speech.
    """
    sound = as_sound(wav, sample_rate)
    if kind not in DEFECTS or severity not in (1, 2, 3, 4):
        raise WorkbenchError(
            f"{kind!r} of severity {severity!r} is no defect; expected 1 to 4 of {', '.join(DEFECTS)}"
        )
    if sound.active.sum() < MIN_SPEECH_S / FRAME_S or sound.seconds < MIN_SECONDS:
        raise WorkbenchError(f"{sound.seconds:.1f} s with too little speech; expected a second of speech")
    draw = np.random.default_rng((seed, severity, list(DEFECTS).index(kind)))
    defect = DEFECTS[kind]
    magnitude = defect.magnitudes[severity - 1]
    made = defect.make(sound, magnitude, draw)
    seams = []
    if kind == "seam":
        hop = sound.samples(SEAM_S) - int(magnitude)  # a chunk without the samples that it lost
        seams = list(range(hop, len(made.wav), hop))
    return Injected(torch.from_numpy(made.wav).float(), made.start, made.end, seams)


def _speech_sample(sound: Sound, draw: Draw) -> int:
    """Return a random sample in speech, away from both ends."""
    frames = np.flatnonzero(sound.active)
    inner = frames[(frames > MARGIN_FRAMES) & (frames < len(sound.active) - MARGIN_FRAMES)]
    return int(draw.choice(inner)) * sound.samples(FRAME_S)


def _noise(draw: Draw, n: int, dbfs: float) -> Array:
    """Return n samples of white noise of a level in dB of full scale."""
    return draw.standard_normal(n) * _gain(dbfs)


def _gain(db: float | Array) -> float | Array:
    """Return the factor of an amplitude for a level in dB."""
    return 10 ** (db / 20)


def _nonfinite(sound: Sound, count: float, draw: Draw) -> Made:
    start = _speech_sample(sound, draw)
    end = start + int(count)
    wav = sound.wav.copy()
    wav[start:end] = np.nan
    return Made(wav, start / sound.rate, end / sound.rate)


def _dead(sound: Sound, dbfs: float, draw: Draw) -> Made:
    rms = np.sqrt(np.square(sound.wav).mean())
    return Made(sound.wav * _gain(dbfs) / rms, 0.0, sound.seconds)


def _clamped(sound: Sound, percent: float, draw: Draw) -> Made:
    gain = AUDIO_LIMIT / np.percentile(np.abs(sound.wav), 100 - percent)
    peak = int(np.argmax(np.abs(sound.wav))) / sound.rate
    return Made(np.clip(sound.wav * gain, -AUDIO_LIMIT, AUDIO_LIMIT), peak, peak)


def _offset(sound: Sound, height: float, draw: Draw) -> Made:
    return Made(sound.wav + height * draw.choice((-1, 1)), 0.0, sound.seconds)


def _click(sound: Sound, height: float, draw: Draw) -> Made:
    sample = _speech_sample(sound, draw)
    wav = sound.wav.copy()
    wav[sample] += height * draw.choice((-1, 1))
    return Made(wav, sample / sound.rate, sample / sound.rate)


def _gap(sound: Sound, ms: float, draw: Draw) -> Made:
    n = sound.samples(ms / 1000)
    fade = sound.samples(FADE_S)
    frame = sound.samples(FRAME_S)
    # Put the gap where it covers as much speech as possible: `n_frames` is its length, rounded up, with a
    # frame on either side.
    n_frames = -(-n // frame) + 2
    speech = np.convolve(sound.active, np.ones(n_frames), "valid")
    places = np.flatnonzero(speech == speech.max())
    start = (int(draw.choice(places)) + 1) * frame
    gain = np.ones(len(sound.wav))
    gain[start : start + n] = 0
    gain = np.convolve(gain, np.ones(fade) / fade, "same")
    return Made(sound.wav * gain, start / sound.rate, (start + n) / sound.rate)


def _start_cut(sound: Sound, below: float, draw: Draw) -> Made:
    first = int(np.argmax(sound.levels > sound.loud - below))  # frame
    return Made(sound.wav[first * sound.samples(FRAME_S) :], 0.0, REPORTED_CUT_S)


def _stop_cut(sound: Sound, below: float, draw: Draw) -> Made:
    end = int(np.flatnonzero(sound.levels > sound.loud - below)[-1]) + 1  # frame
    wav = sound.wav[: end * sound.samples(FRAME_S)]
    return Made(wav, len(wav) / sound.rate - REPORTED_CUT_S, len(wav) / sound.rate)


def _onset_burst(sound: Sound, dbfs: float, draw: Draw) -> Made:
    quiet = _noise(draw, sound.samples(QUIET_S), sound.floor)
    burst = _noise(draw, sound.samples(ONSET_S), dbfs)
    return Made(np.concatenate((burst, quiet, sound.wav)), 0.0, ONSET_S)


def _tail_burst(sound: Sound, dbfs: float, draw: Draw) -> Made:
    quiet = _noise(draw, sound.samples(QUIET_S), sound.floor)
    burst = _noise(draw, sound.samples(TAIL_S), dbfs)
    wav = np.concatenate((sound.wav, quiet, burst))
    return Made(wav, len(wav) / sound.rate - TAIL_S, len(wav) / sound.rate)


def _hiss(sound: Sound, below: float, draw: Draw) -> Made:
    return Made(sound.wav + _noise(draw, len(sound.wav), sound.loud - below), 0.0, sound.seconds)


def _line(sound: Sound, dbfs: float, draw: Draw) -> Made:
    hz = draw.uniform(0.1, 0.4) * sound.rate
    tone = np.sin(2 * np.pi * hz * np.arange(len(sound.wav)) / sound.rate)
    return Made(sound.wav + tone * _gain(dbfs) * np.sqrt(2), 0.0, sound.seconds)  # sqrt(2): peak over rms


def _buzz(sound: Sound, below: float, draw: Draw) -> Made:
    """Add 100 pulses a second above 2 kHz, which are always `below` dB quieter than the speech."""
    pulses = np.zeros(len(sound.wav))
    pulses[:: sound.rate // BUZZ_RATE] = 1.0
    pulses = sosfiltfilt(butter(4, BUZZ_LOW_HZ, "high", fs=sound.rate, output="sos"), pulses)
    pulses /= np.sqrt(np.square(pulses).mean())

    # The level of the speech at every sample, by lines between the centres of the frames.
    level = np.maximum(sound.levels, sound.loud - BUZZ_DEPTH_DB)
    centres = (np.arange(len(level)) + 0.5) * sound.samples(FRAME_S)
    envelope = np.interp(np.arange(len(pulses)), centres, _gain(level))
    return Made(sound.wav + pulses * envelope * _gain(-below), 0.0, sound.seconds)


def _step(sound: Sound, db: float, draw: Draw) -> Made:
    middle = int(draw.uniform(0.4, 0.6) * len(sound.wav))
    wav = sound.wav.copy()
    quieter = slice(0, middle) if draw.random() < 0.5 else slice(middle, None)
    wav[quieter] *= _gain(-db)
    return Made(wav, middle / sound.rate, middle / sound.rate)


def _pause(sound: Sound, seconds: float, draw: Draw) -> Made:
    start = _speech_sample(sound, draw)
    quiet = _noise(draw, sound.samples(seconds), min(sound.floor, PAUSE_DBFS))
    wav = np.concatenate((sound.wav[:start], quiet, sound.wav[start:]))
    return Made(wav, start / sound.rate, start / sound.rate + seconds)


def _seam(sound: Sound, lost: float, draw: Draw) -> Made:
    """Cut the waveform into chunks and drop the last samples of each."""
    chunk_length = sound.samples(SEAM_S)
    chunks = np.split(sound.wav, range(chunk_length, len(sound.wav), chunk_length))
    wav = np.concatenate([chunk[: max(1, len(chunk) - int(lost))] for chunk in chunks])
    return Made(wav, 0.0, len(wav) / sound.rate)


def _repeat(sound: Sound, below: float, draw: Draw) -> Made:
    start = _speech_sample(sound, draw)
    wav = sound.wav.copy()
    strides = [stride for stride in STRIDES if SAMPLE_RATE / stride < MAX_PATTERN_HZ * sound.rate]
    stride = int(draw.choice(strides))
    once = np.array(PATTERN)
    if stride != len(PATTERN):
        once = draw.standard_normal(stride)
        once *= PATTERN_RMS / once.std()
    # Strides are counted at the vocoder's rate.
    pattern = torch.from_numpy(np.resize(once - once.mean(), round(REPEAT_S * SAMPLE_RATE)))
    pattern = resample(pattern, SAMPLE_RATE, sound.rate).numpy() * _gain(sound.loud)
    n = min(len(pattern), len(wav) - start)
    wav[start : start + n] = pattern[:n] + _noise(draw, n, sound.loud - below)
    return Made(wav, start / sound.rate, (start + n) / sound.rate)


DEFECTS: dict[str, Defect] = {
    "not finite": Defect(_nonfinite, (1, 10, 100, 1000), "samples are NaN", ("not finite",)),
    "dead": Defect(_dead, (-62, -70, -80, -100), "dBFS is the level of all", ("dead",)),
    "clamped": Defect(_clamped, (0.03, 0.1, 1, 5), f"% of samples beyond {AUDIO_LIMIT}", ("clamped",)),
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
        _repeat, (10, 20, 30, 40), "dB of noise below 4, 12, 60 or 480 samples repeated 200 ms", ("repeat",)
    ),
}
