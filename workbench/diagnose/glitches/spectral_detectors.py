"""Detectors that read spectra: noise floor, hiss, lines, lost pitch, smeared harmonics, buzz."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter

from workbench.diagnose.glitches.analysis import SPECTRUM_S, Array, Sound, Spot, decibel
from workbench.diagnose.glitches.pitch import PITCH_BAND, VOICED, harmonicity
from workbench.speech.frontend.audio import frame_blocks

EPS_POWER = 1e-12  # keeps the logarithm of an empty bin finite
QUIET_PERCENTILE = 10  # of the frames' levels: the quietest tenth is background
HISS_BAND = (0.29, 0.48)  # as shares of the sample rate: 7 to 11.5 kHz at 24 kHz, above most of speech

# A line: a frequency that is there in nearly all frames.
LINE_S = 0.08  # seconds in a frame, so that bins are 12.5 Hz wide
LINE_PERCENTILE = 20  # of a bin's power over the frames: four fifths of them have at least this
LINE_AROUND = 25  # bins whose median a line is compared with: 310 Hz, wider than a harmonic
MIN_LINE_HZ = 40  # Hz; below lies rumble
MIN_LINE_FRAMES = 24  # 1 s, so that no single word is taken for a line

BUZZ_BAND = (4000, 10_000)  # Hz; here a voice has mostly noise
RASP_BAND = (5000, 8000)  # Hz; likewise, and every voice has power here
UNVOICED = 0.5  # frames with a lower harmonicity have no pitch
MIN_VOICE_FRAMES = 50  # half a second of speech, to judge a share of it
MIN_FRAMES = 20  # frames of 10 ms, to judge a mean over them
MIN_BAND_RATE = 16_000  # Hz; a lower sample rate has none of the bands above 8 kHz

# Edges of 13 bands from 300 Hz to 9 kHz, each 1.3 times as wide as the one before, which is about as finely
# as the ear resolves.
SMEAR_EDGES = 300 * 1.3 ** np.arange(14)
DEPTH_RANGE = (40.0, 85.0)  # dB; outside, the recording's noise decides and not the flow
# Standard deviations at which each figure is clipped. The lower limit lets noise in the background, which no
# flow makes, speak against smearing.
MIN_SMEAR, MAX_SMEAR = -4.0, 3.0


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
        [band] = _band_levels(sound, [(low * sound.rate, high * sound.rate)])
        yield Spot(0.0, sound.seconds, float(np.percentile(band, QUIET_PERCENTILE)) - sound.loud)


def lines(sound: Sound) -> Iterator[Spot]:
    """A frequency that is always there; score: dB above those beside it."""
    n = sound.samples(LINE_S)
    count = len(sound.wav) // n * 2 - 1  # frames that overlap by half
    if count < MIN_LINE_FRAMES or not sound.active.any():
        return
    power = np.empty((count, n // 2 + 1))
    for block in frame_blocks(count, n):
        frames = np.stack([sound.wav[i * n // 2 : i * n // 2 + n] for i in range(block.start, block.stop)])
        power[block] = np.square(np.abs(np.fft.rfft(frames * np.hanning(n)))) / n + EPS_POWER
    lasting = decibel(np.percentile(power, LINE_PERCENTILE, axis=0, overwrite_input=True))
    above = lasting - median_filter(lasting, LINE_AROUND, mode="nearest")
    first = max(3, round(MIN_LINE_HZ * n / sound.rate))  # bin; the first three also hold a constant offset
    peak = first + int(np.argmax(above[first:-2]))  # the last two bins have no neighbours on one side
    yield Spot(0.0, sound.seconds, float(above[peak]), f"at {peak * sound.rate / n:,.0f} Hz")


def unvoiced(sound: Sound) -> Iterator[Spot]:
    """Speech without pitch; score: share of the speech."""
    if sound.active.sum() >= MIN_VOICE_FRAMES:
        pitch = harmonicity(sound, *PITCH_BAND)
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
        share = harmonicity(sound, *BUZZ_BAND)[sound.active]
        yield Spot(0.0, sound.seconds, float(share.mean()))


def smear_figures(sound: Sound) -> dict[str, float]:
    """Return the figures of `SMEAR`, in standard deviations of clean speech, positive where smeared.

    With too few steps, the ODE ends near the mean of all mels that would fit: formants blur in time and
    frequency, and noise turns into weak harmonics. The result is empty where there is too little voice.
    """
    pitch = harmonicity(sound, *PITCH_BAND)
    voiced = sound.active & (pitch > VOICED)
    if voiced.sum() < MIN_FRAMES or sound.rate < MIN_BAND_RATE:
        return {}
    *bands, rasp = _band_levels(sound, [*itertools.pairwise(SMEAR_EDGES), RASP_BAND])
    levels = np.stack(bands, axis=1)  # (frames, bands)
    change = np.abs(levels[2:] - levels[:-2])[sound.active[1:-1]]  # over two frames, 20 ms
    values = {
        "flux": np.median(change),
        "swing": rasp[sound.active].std(),
        "rasp": harmonicity(sound, *RASP_BAND)[voiced].mean(),
        "pitch": pitch[voiced].mean(),
        "depth": np.clip(sound.loud - sound.floor, *DEPTH_RANGE),
    }
    found = {}
    for name, clean in SMEAR.items():
        found[name] = clean.sign * float(values[name] - clean.mean) / clean.std
    return found


def _band_levels(sound: Sound, bands: list[tuple[float, float]]) -> Array:
    """Return the level of frequency bands in every frame of `Sound.power`, (bands, frames) dB."""
    hertz = sound.frequencies
    levels = []
    for power in sound.power():
        sums = np.stack([power[:, (hertz >= low) & (hertz < high)].sum(1) for low, high in bands])
        # Twice, because a real spectrum holds only the positive frequencies.
        levels.append(decibel(sums * 2 / sound.samples(SPECTRUM_S)))
    return np.concatenate(levels, axis=1)
