"""Detectors that look at spectra, at f0 and at the mel: hiss, lines, buzz, what no voice does."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import median_filter, minimum_filter1d, rank_filter

from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.glitches.analysis import Array, Sound, decibel
from workbench.diagnose.glitches.sample_detectors import Spot
from workbench.errors import WorkbenchError
from workbench.speech.config import HiFTConfig, MelConfig
from workbench.speech.frontend.audio import log_mel
from workbench.trace.trace import Trace

HISS = (0.29, 0.48)  # band, as a share of the sample rate: 7 to 11.5 kHz
LINE_S = 0.08
LINE_AROUND = 25  # bins that a line is compared with
LOWEST_VOICE, HIGHEST_VOICE = 75.0, 500.0  # Hz; below, a voice creaks and f0 means little
SMEAR = {"flux": 1.4, "swing": 0.5, "rasp": 16.7, "pitch": -14.3}  # weights
FRAME_RATE = 50
TOKEN_S = 0.04
MEL_S = 0.1
SMEAR = {  # mean and standard deviation over clean speech, and the side on which renders of one step lie
    "flux": (3.84, 0.44, 1),  # change of the log-spectrum in 20 ms, dB
    "swing": (9.7, 1.6, 1),  # spread of the level from 5 to 8 kHz, dB
    "rasp": (0.36, 0.044, 1),  # harmonicity there, where voices have noise
    "pitch": (0.94, 0.024, -1),  # harmonicity below 1.5 kHz
    "depth": (71.7, 6.6, 1),  # from loud speech down to silence, dB
}


def noise_floor(sound: Sound) -> Iterator[Spot]:
    """Level of the quietest tenth; dB above the loud speech, so mostly far below 0."""
    if sound.active.any():
        level = np.percentile(sound.levels, 10) - sound.loud
        yield Spot(0.0, sound.seconds, float(level))


def hiss(sound: Sound) -> Iterator[Spot]:
    """Level of 7 to 11.5 kHz where it is lowest; dB above the loud speech."""
    if sound.active.any():
        band = _band(sound, HISS[0] * sound.rate, HISS[1] * sound.rate)
        yield Spot(0.0, sound.seconds, float(np.percentile(band, 10)) - sound.loud)


def lines(sound: Sound) -> Iterator[Spot]:
    """A frequency that never goes away; dB above those beside it."""
    n = sound.samples(LINE_S)
    count = len(sound.wav) // n * 2 - 1
    if count < 8 or not sound.active.any():
        return
    frames = np.stack([sound.wav[i * n // 2 : i * n // 2 + n] for i in range(count)]) * np.hanning(n)
    power = np.square(np.abs(np.fft.rfft(frames))) / n + 1e-12
    lasting = decibel(np.percentile(power, 20, axis=0))
    above = lasting - median_filter(lasting, LINE_AROUND, mode="nearest")
    first = max(3, round(40 * n / sound.rate))
    at = first + int(np.argmax(above[first:-2]))
    yield Spot(0.0, sound.seconds, float(above[at]), f"at {at * sound.rate / n:,.0f} Hz")


def unvoiced(sound: Sound) -> Iterator[Spot]:
    """Share of the speech that has no pitch."""
    if sound.active.sum() >= 50:
        share = float((_harmonicity(sound, 60, 1500)[sound.active] < 0.5).mean())
        yield Spot(0.0, sound.seconds, share)


def smear(sound: Sound) -> Iterator[Spot]:
    """How much the whole resembles a flow of too few steps; mean of `smear_features`."""
    found = smear_features(sound)
    if found:
        score = np.mean([np.clip(value, -2.0, 3.0) for value in found.values()])
        yield Spot(0.0, sound.seconds, float(score))


def buzz(sound: Sound) -> Iterator[Spot]:
    """Harmonicity from 4 to 10 kHz, where voices have noise; 0 to 1."""
    if sound.active.sum() >= 20 and sound.rate >= 16_000:
        yield Spot(0.0, sound.seconds, float(_harmonicity(sound, 4000, 10000)[sound.active].mean()))


def smear_features(sound: Sound) -> dict[str, float]:
    """Figures that a mean of many mels changes, in standard deviations of clean speech; see `SMEAR`.

    None where there is too little voice.
    """
    pitch = _harmonicity(sound, 60, 1500)
    voiced = sound.active & (pitch > 0.6)
    if voiced.sum() < 20 or sound.rate < 16_000:
        return {}
    edges = 300 * 1.3 ** np.arange(14)
    bands = np.stack([_band(sound, a, b) for a, b in itertools.pairwise(edges)], axis=1)
    change = np.abs(bands[2:] - bands[:-2])[sound.active[1:-1]]
    values = {
        "flux": np.median(change),
        "swing": _band(sound, 5000, 8000)[sound.active].std(),
        "rasp": _harmonicity(sound, 5000, 8000)[voiced].mean(),
        "pitch": pitch[voiced].mean(),
        "depth": np.clip(sound.loud - sound.floor, 40.0, 85.0),
    }
    return {name: sign * float(values[name] - mean) / std for name, (mean, std, sign) in SMEAR.items()}


def f0(sound: Sound) -> Iterator[Spot]:
    """Recorded f0 above what voices reach; octaves above 500 Hz."""
    recorded = _f0(sound)
    for i in np.flatnonzero(recorded > HIGHEST_VOICE / 2):
        octaves = float(np.log2(recorded[i] / HIGHEST_VOICE))
        yield Spot(i / FRAME_RATE, (i + 1) / FRAME_RATE, octaves, f"{recorded[i]:,.0f} Hz")


def leaps(sound: Sound) -> Iterator[Spot]:
    """Recorded f0 that leaves the median of the 15 frames around it, amid voice; octaves.

    Thrice in half a second counts: once or twice is what the f0 predictor does where a clean voice creaks.
    """
    recorded = _f0(sound)
    middle = median_filter(recorded, 15, mode="nearest")
    amid = minimum_filter1d(recorded, 9, mode="constant") > LOWEST_VOICE
    away = np.zeros(len(recorded))
    away[amid] = np.abs(np.log2(recorded[amid] / middle[amid]))
    thrice = np.minimum(away, rank_filter(away, -3, 25, mode="constant")) if len(away) else away
    for i in np.flatnonzero(amid):
        yield Spot(i / FRAME_RATE, (i + 1) / FRAME_RATE, float(thrice[i]), f"{recorded[i]:,.0f} Hz")


def mel(sound: Sound) -> Iterator[Spot]:
    """What no speech looks like in what was recorded beside the waveform; 1 each."""
    beside = {name: value for name, value in sound.trace.items() if not name.startswith("hift/wav")}
    for sentence in implausible(Trace(beside, sound.trace.attrs)):
        yield Spot(0.0, sound.seconds, 1.0, sentence)


def off_mel(sound: Sound) -> Iterator[Spot]:
    """Distance of the waveform's log-mel to the recorded one over 100 ms; nats, loud bins alone."""
    wanted = sound.trace.get("flow/mel")
    config = MelConfig()
    if wanted is None or sound.rate != config.sample_rate or wanted.shape[0] != config.n_mels:
        return
    try:
        made = log_mel(torch.from_numpy(sound.wav).float(), config)
    except WorkbenchError:
        return
    made = made.reshape(config.n_mels, -1)
    # The vocoder looks ahead and has nothing to see at the end.
    frames = min(made.shape[-1], wanted.shape[-1]) - HiFTConfig().conv_pre_look_right
    a, b = made[:, :frames].double().numpy(), wanted[:, :frames].double().numpy()
    n = round(MEL_S * FRAME_RATE)
    if frames < n:
        return
    distance = np.abs(np.clip(a, -8, None) - np.clip(np.nan_to_num(b, nan=9.0), -8, None)).mean(0)
    mean = np.convolve(distance, np.ones(n) / n, "valid")
    for i, score in enumerate(mean):
        yield Spot(i / FRAME_RATE, (i + n) / FRAME_RATE, float(score))


def length(sound: Sound) -> Iterator[Spot]:
    """How far the waveform is from 40 ms a token; share of that."""
    token = sound.trace.get("lm/speech_token")
    speed = sound.trace.attrs.get("options", {}).get("speed", 1.0)
    if token is not None and len(token) and isinstance(speed, (int, float)) and speed > 0:
        ratio = sound.seconds * speed / (len(token) * TOKEN_S)
        yield Spot(0.0, sound.seconds, abs(ratio - 1), f"{ratio:.3f} times as long")


def _f0(sound: Sound) -> Array:
    recorded = sound.trace.get("hift/f0")
    return np.zeros(0) if recorded is None else np.nan_to_num(recorded.double().numpy())


def _band(sound: Sound, low: float, high: float) -> Array:
    """Level of a band in frames of `power`, dB."""
    inside = (sound.frequencies >= low) & (sound.frequencies < high)
    return decibel(sound.power[:, inside].sum(1) * 2 / sound.samples(LINE_S / 2))


def _harmonicity(sound: Sound, low: float, high: float) -> Array:
    """Highest autocorrelation of a band at the periods of 70 to 400 Hz, by frame of `power`, to 1."""
    inside = (sound.frequencies >= low) & (sound.frequencies < high)
    window = np.hanning(sound.samples(0.04))
    own = np.correlate(window, window, "full")[len(window) - 1 :]
    n = len(window)
    padded = np.where(inside, sound.power, 1e-14)
    correlation = np.fft.irfft(padded, n)
    lags = np.arange(sound.rate // 400, min(sound.rate // 70, n // 2))
    return (correlation[:, lags] / correlation[:, :1] / (own[lags] / own[0])).max(1)
