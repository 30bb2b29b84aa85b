"""Detectors that read spectra, the recorded f0 and the recorded mel.

In spectra: noise floor, hiss, lines, lost pitch, smeared harmonics, buzz. In what was recorded beside the
waveform: f0 that no voice has, leaps of f0, implausible values, a waveform that does not fit its mel, a
wrong length.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import median_filter, minimum_filter1d, rank_filter

from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.glitches.analysis import EPS_SPECTRUM, SPECTRUM_S, Array, Sound, decibel
from workbench.diagnose.glitches.sample_detectors import Spot
from workbench.errors import WorkbenchError
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import log_mel
from workbench.trace.schema import FRAME_RATE, TOKEN_RATE
from workbench.trace.trace import Trace

EPS_POWER = 1e-12  # keeps the logarithm of an empty bin finite
QUIET_PERCENTILE = 10  # of the frames' levels: the quietest tenth is background
HISS_BAND = (0.29, 0.48)  # as shares of the sample rate: 7 to 11.5 kHz at 24 kHz, above most of speech

# A line: a frequency that is there in nearly all frames.
LINE_S = 0.08  # seconds in a frame, so that bins are 12.5 Hz wide
LINE_PERCENTILE = 20  # of a bin's power over the frames: four fifths of them have at least this
LINE_AROUND = 25  # bins whose median a line is compared with: 310 Hz, wider than a harmonic
MIN_LINE_HZ = 40  # Hz; below lies rumble
MIN_LINE_FRAMES = 8  # 0.36 s, so that no single vowel is taken for a line

# Pitch is measured as harmonicity: how well a frame resembles itself one period later, 0 to 1.
MIN_PITCH, MAX_PITCH = 70, 400  # Hz, of the periods that are tried
PITCH_BAND = (60, 1500)  # Hz; here nearly all power of a voice is harmonic
BUZZ_BAND = (4000, 10_000)  # Hz; here a voice has mostly noise
RASP_BAND = (5000, 8000)  # Hz; likewise, and every voice has power here
UNVOICED = 0.5  # frames with a lower harmonicity have no pitch
VOICED = 0.6  # frames with a higher one surely have
MIN_VOICE_FRAMES = 50  # half a second of speech, to judge a share of it
MIN_FRAMES = 20  # frames of 10 ms, to judge a mean over them
MIN_BAND_RATE = 16_000  # Hz; a lower sample rate has none of the bands above 8 kHz

# Edges of 13 bands from 300 Hz to 9 kHz, each 1.3 times as wide as the one before, which is about as finely
# as the ear resolves.
SMEAR_EDGES = 300 * 1.3 ** np.arange(14)
DEPTH_RANGE = (40.0, 85.0)  # dB; outside, the recording's noise decides and not the flow
MIN_SMEAR, MAX_SMEAR = -2.0, 3.0  # standard deviations at which each figure is clipped

# Recorded f0.
MIN_VOICE_HZ, MAX_VOICE_HZ = 75.0, 500.0  # Hz; below, a voice creaks and f0 means little
LEAP_MEDIAN = 15  # frames of 20 ms in the median that f0 is compared with
LEAP_VOICED = 9  # frames in which f0 must be voiced throughout
LEAP_WINDOW = 25  # frames, half a second, in which leaps are counted
LEAP_COUNT = 3  # leaps there that count; once or twice is what f0 does where a clean voice creaks

# Waveform against recorded mel.
MEL_S = 0.1  # seconds that the distance is averaged over
MIN_LOG_MEL = -8.0  # natural log; quieter bins count as this, because nobody hears their differences
NAN_LOG_MEL = 9.0  # natural log, far above speech: takes the place of NaN, so that it counts as a difference


class CleanFigure(NamedTuple):
    """A figure of clean speech, and which way it moves where a flow takes too few steps."""

    mean: float
    std: float
    sign: int  # 1: smeared speech has more of it, -1: less


# Measured over the clean speech of `benchmark.py`; signs from renders of the same tokens with one step.
SMEAR = {
    "flux": CleanFigure(3.84, 0.44, 1),  # dB: change of the log-spectrum in 20 ms
    "swing": CleanFigure(9.7, 1.6, 1),  # dB: spread of the level from 5 to 8 kHz
    "rasp": CleanFigure(0.36, 0.044, 1),  # harmonicity from 5 to 8 kHz
    "pitch": CleanFigure(0.94, 0.024, -1),  # harmonicity below 1.5 kHz
    "depth": CleanFigure(71.7, 6.6, 1),  # dB from loud speech down to silence
}


def noise_floor(sound: Sound) -> Iterator[Spot]:
    """Noise between words; score: level of the quietest tenth, dB above loud speech (mostly far below 0)."""
    if sound.active.any():
        level = np.percentile(sound.levels, QUIET_PERCENTILE) - sound.loud
        yield Spot(0.0, sound.seconds, float(level))


def hiss(sound: Sound) -> Iterator[Spot]:
    """Noise at 7 to 11.5 kHz; score: level of its quietest tenth, dB above loud speech."""
    if sound.active.any():
        low, high = HISS_BAND
        band = _band_level(sound, low * sound.rate, high * sound.rate)
        yield Spot(0.0, sound.seconds, float(np.percentile(band, QUIET_PERCENTILE)) - sound.loud)


def lines(sound: Sound) -> Iterator[Spot]:
    """A frequency that is always there; score: dB above those beside it."""
    n = sound.samples(LINE_S)
    count = len(sound.wav) // n * 2 - 1  # frames that overlap by half
    if count < MIN_LINE_FRAMES or not sound.active.any():
        return
    frames = np.stack([sound.wav[i * n // 2 : i * n // 2 + n] for i in range(count)])  # (count, n)
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(n)))) / n + EPS_POWER  # (count, bins)
    lasting = decibel(np.percentile(power, LINE_PERCENTILE, axis=0))
    above = lasting - median_filter(lasting, LINE_AROUND, mode="nearest")
    first = max(3, round(MIN_LINE_HZ * n / sound.rate))  # bin; the first three also hold a constant offset
    peak = first + int(np.argmax(above[first:-2]))  # the last two bins have no neighbours on one side
    yield Spot(0.0, sound.seconds, float(above[peak]), f"at {peak * sound.rate / n:,.0f} Hz")


def unvoiced(sound: Sound) -> Iterator[Spot]:
    """Speech without pitch; score: share of the speech."""
    if sound.active.sum() >= MIN_VOICE_FRAMES:
        pitch = _harmonicity(sound, *PITCH_BAND)
        share = float((pitch[sound.active] < UNVOICED).mean())
        yield Spot(0.0, sound.seconds, share)


def smear(sound: Sound) -> Iterator[Spot]:
    """Speech as of a flow with too few steps; score: mean of `smear_figures`, standard deviations."""
    figures = smear_figures(sound)
    if figures:
        clipped = [np.clip(value, MIN_SMEAR, MAX_SMEAR) for value in figures.values()]
        yield Spot(0.0, sound.seconds, float(np.mean(clipped)))


def buzz(sound: Sound) -> Iterator[Spot]:
    """Harmonics from 4 to 10 kHz, where voices have noise; score: harmonicity, 0 to 1."""
    if sound.active.sum() >= MIN_FRAMES and sound.rate >= MIN_BAND_RATE:
        harmonicity = _harmonicity(sound, *BUZZ_BAND)
        yield Spot(0.0, sound.seconds, float(harmonicity[sound.active].mean()))


def smear_figures(sound: Sound) -> dict[str, float]:
    """Return the figures of `SMEAR`, in standard deviations of clean speech, positive where smeared.

    With too few steps, the ODE ends near the mean of all mels that would fit: formants blur in time and
    frequency, and noise turns into weak harmonics. The result is empty where there is too little voice.
    """
    pitch = _harmonicity(sound, *PITCH_BAND)
    voiced = sound.active & (pitch > VOICED)
    if voiced.sum() < MIN_FRAMES or sound.rate < MIN_BAND_RATE:
        return {}
    bands = [_band_level(sound, low, high) for low, high in itertools.pairwise(SMEAR_EDGES)]
    levels = np.stack(bands, axis=1)  # (frames, bands)
    change = np.abs(levels[2:] - levels[:-2])[sound.active[1:-1]]  # over two frames, 20 ms
    values = {
        "flux": np.median(change),
        "swing": _band_level(sound, *RASP_BAND)[sound.active].std(),
        "rasp": _harmonicity(sound, *RASP_BAND)[voiced].mean(),
        "pitch": pitch[voiced].mean(),
        "depth": np.clip(sound.loud - sound.floor, *DEPTH_RANGE),
    }
    found = {}
    for name, clean in SMEAR.items():
        found[name] = clean.sign * float(values[name] - clean.mean) / clean.std
    return found


def f0(sound: Sound) -> Iterator[Spot]:
    """Recorded f0 above what voices reach; score: octaves above 500 Hz."""
    recorded = _recorded_f0(sound)
    # Candidates begin an octave below the limit, so that clean speech has scores to compare with.
    for i in np.flatnonzero(recorded > MAX_VOICE_HZ / 2):
        octaves = float(np.log2(recorded[i] / MAX_VOICE_HZ))
        yield Spot(i / FRAME_RATE, (i + 1) / FRAME_RATE, octaves, f"{recorded[i]:,.0f} Hz")


def leaps(sound: Sound) -> Iterator[Spot]:
    """Recorded f0 far from the median of the 15 frames around it, amid voiced frames; score: octaves.

    A leap counts from the third within half a second on.
    """
    recorded = _recorded_f0(sound)
    if not len(recorded):
        return
    median = median_filter(recorded, LEAP_MEDIAN, mode="nearest")
    voiced = minimum_filter1d(recorded, LEAP_VOICED, mode="constant") > MIN_VOICE_HZ
    octaves = np.zeros(len(recorded))
    octaves[voiced] = np.abs(np.log2(recorded[voiced] / median[voiced]))
    # The third largest value of the window around each frame: that much is reached three times there.
    third = rank_filter(octaves, -LEAP_COUNT, LEAP_WINDOW, mode="constant")
    scores = np.minimum(octaves, third)
    for i in np.flatnonzero(voiced):
        yield Spot(i / FRAME_RATE, (i + 1) / FRAME_RATE, float(scores[i]), f"{recorded[i]:,.0f} Hz")


def mel(sound: Sound) -> Iterator[Spot]:
    """Recorded values that no speech has, in fields other than the waveform; score: 1 each."""
    others = {name: value for name, value in sound.trace.items() if not name.startswith("hift/wav")}
    for sentence in implausible(Trace(others, sound.trace.attrs)):
        yield Spot(0.0, sound.seconds, 1.0, sentence)


def off_mel(sound: Sound) -> Iterator[Spot]:
    """A waveform that does not fit the recorded mel; score: distance of the log-mels over 100 ms, nats."""
    config = RELEASED.mel
    recorded = sound.trace.get("flow/mel")
    if recorded is None or sound.rate != config.sample_rate or recorded.shape[0] != config.n_mels:
        return
    try:
        measured = log_mel(torch.from_numpy(sound.wav).float(), config)
    except WorkbenchError:  # shorter than one window
        return
    measured = measured.reshape(config.n_mels, -1)  # (M, T)
    # The vocoder looks ahead a few frames. It cannot at the end, so that the last frames never fit well.
    frames = min(measured.shape[-1], recorded.shape[-1]) - RELEASED.hift.conv_pre_look_right
    n = round(MEL_S * FRAME_RATE)
    if frames < n:
        return
    x = measured[:, :frames].double().numpy()
    y = np.nan_to_num(recorded[:, :frames].double().numpy(), nan=NAN_LOG_MEL)
    distance = np.abs(np.clip(x, MIN_LOG_MEL, None) - np.clip(y, MIN_LOG_MEL, None)).mean(0)  # (frames,)
    means = np.convolve(distance, np.ones(n) / n, "valid")
    for i, score in enumerate(means):
        yield Spot(i / FRAME_RATE, (i + n) / FRAME_RATE, float(score))


def length(sound: Sound) -> Iterator[Spot]:
    """A waveform that is longer or shorter than 40 ms per token; score: share of that length."""
    token = sound.trace.get("lm/speech_token")
    speed = sound.trace.attrs.get("options", {}).get("speed", 1.0)
    if token is not None and len(token) and isinstance(speed, (int, float)) and speed > 0:
        ratio = sound.seconds * speed / (len(token) * (1 / TOKEN_RATE))
        yield Spot(0.0, sound.seconds, abs(ratio - 1), f"{ratio:.3f} times as long")


def _recorded_f0(sound: Sound) -> Array:
    """Return the recorded f0 (frames,), with NaN as 0; empty if there is none."""
    recorded = sound.trace.get("hift/f0")
    return np.zeros(0) if recorded is None else np.nan_to_num(recorded.double().numpy())


def _band_level(sound: Sound, low: float, high: float) -> Array:
    """Return the level of a frequency band in every frame of `Sound.power`, (frames,) dB."""
    inside = (sound.frequencies >= low) & (sound.frequencies < high)
    # Twice, because a real spectrum holds only the positive frequencies.
    return decibel(sound.power[:, inside].sum(1) * 2 / sound.samples(SPECTRUM_S))


def _harmonicity(sound: Sound, low: float, high: float) -> Array:
    """Return how harmonic a frequency band is in every frame of `Sound.power`, (frames,), at most about 1.

    This is the highest autocorrelation at the periods of 70 to 400 Hz. The window of a frame makes the
    autocorrelation smaller at long periods; dividing by the window's own autocorrelation undoes that
    (Boersma 1993).
    """
    window = np.hanning(sound.samples(SPECTRUM_S))
    n = len(window)
    inside = (sound.frequencies >= low) & (sound.frequencies < high)
    band = np.where(inside, sound.power, EPS_SPECTRUM)
    correlation = np.fft.irfft(band, n)  # (frames, lags)
    own = np.correlate(window, window, "full")[n - 1 :]  # (lags,)
    # The lags are the periods; beyond half a window too few samples overlap.
    lags = np.arange(sound.rate // MAX_PITCH, min(sound.rate // MIN_PITCH, n // 2))
    relative = correlation[:, lags] / correlation[:, :1]  # 1 at lag 0
    return (relative / (own[lags] / own[0])).max(1)
