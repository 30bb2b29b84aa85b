"""Detectors that look at single samples: not finite, pinned, offset, clicks, seams, hops, repeats."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter1d

from workbench.diagnose.glitches.analysis import Array, Sound, decibel, moving_mean, runs

AUDIO_LIMIT = 0.99  # where the vocoder clamps; a test at 1.0 finds nothing
LOUD_ENOUGH = 0.1  # of full scale: a limit below this is not taken for one
JOIN_S = 0.05  # plateaus this near are one clipping
OFFSET_S = 0.25
ALONE_S = 0.015  # a click is compared with the pulses of the voice this far to both sides
WIDTH_S = 0.0003  # and reaches this far itself
FAINT_CLICK = 1e-4
PERIODS = range(2, 65)  # samples; HiFT's own strides are 4, 12, 60 and 480
PATTERN_S = 0.02
HOPS_MS = range(80, 2000, 20)  # whole mel frames
LEAST_HOPS = 5
FAINT_HOP_DB = -15.0
SEAM_S = 0.003


class Spot(NamedTuple):
    """Something a detector saw, whether or not it is enough to speak of."""

    start: float  # s
    end: float
    score: float  # higher is worse; the unit is the detector's
    note: str = ""


def nonfinite(sound: Sound) -> Iterator[Spot]:
    """Runs of NaN and infinity; samples."""
    for a, b in runs(sound.bad):
        yield Spot(a / sound.rate, b / sound.rate, b - a)


def dead(sound: Sound) -> Iterator[Spot]:
    """How far the whole lies below full scale; dB."""
    level = float(decibel(np.square(sound.wav - sound.wav.mean()).mean()))
    yield Spot(0.0, sound.seconds, -level, f"{level:.0f} dBFS")


def beyond(sound: Sound) -> Iterator[Spot]:
    """Samples beyond full scale, which a player clips; the highest."""
    over = np.flatnonzero(np.abs(sound.wav) > 1)
    if len(over):
        peak = float(np.abs(sound.wav).max())
        note = f"{len(over)} samples, up to {peak:.3g}"
        yield Spot(over[0] / sound.rate, (over[-1] + 1) / sound.rate, peak, note)


def clamped(sound: Sound) -> Iterator[Spot]:
    """Runs of samples at the vocoder's limit, or at any other the waveform has; samples in the longest."""
    x = sound.wav
    for side in (x, -x):
        top = float(side.max())
        # PCM rounds the limit by half a step at most; a true limit is as flat as that.
        flat = side >= min(top, max(top * (1 - 1e-5) - 1e-5, 0.0))
        if top >= AUDIO_LIMIT - 1e-4:
            flat |= side >= AUDIO_LIMIT - 1e-4
        if top < LOUD_ENOUGH:
            continue
        joined: list[list[int]] = []
        for a, b in runs(flat):
            if joined and a - joined[-1][1] < JOIN_S * sound.rate:
                joined[-1][1:] = [b, max(joined[-1][2], b - a)]
            else:
                joined.append([a, b, b - a])
        for a, b, longest in joined:
            yield Spot(a / sound.rate, b / sound.rate, longest, f"at {top:.2f} of full scale")


def offset(sound: Sound) -> Iterator[Spot]:
    """Mean over a quarter of a second, away from 0; share of full scale."""
    mean = np.abs(moving_mean(sound.wav, sound.samples(OFFSET_S)))
    step = sound.samples(0.05)
    for i, score in enumerate(mean[::step]):
        yield Spot(i * step / sound.rate, min((i + 1) * step, len(mean)) / sound.rate, float(score))


def clicks(sound: Sound) -> Iterator[Spot]:
    """Jumps in the residual of linear prediction that stand alone among the voice's pulses; dB above them."""
    alone = _alone(sound)
    peaks = alone == maximum_filter1d(alone, 2 * sound.samples(WIDTH_S) + 1)
    for k in np.flatnonzero(peaks & (alone > 0)):
        yield Spot(int(k) / sound.rate, (int(k) + 1) / sound.rate, float(alone[k]))


def seams(sound: Sound) -> Iterator[Spot]:
    """Where two chunks were joined, how far the residual stands out there; dB.

    Joins are `attrs["seams"]` of a trace: the first sample of every chunk but the first.
    """
    joins = sound.trace.attrs.get("seams", [])
    alone = _alone(sound) if joins else np.zeros(0)
    reach = sound.samples(SEAM_S)
    for join in joins:
        near = alone[max(0, int(join) - reach) : int(join) + reach]
        if len(near):
            yield Spot(join / sound.rate, (join + 1) / sound.rate, float(near.max()), "a recorded seam")


def hops(sound: Sound) -> Iterator[Spot]:
    """Jumps of the residual at one regular spacing, as of chunks; standard deviations above the others."""
    alone = _alone(sound)
    n = sound.samples(0.001)
    ms = np.clip(alone[: len(alone) // n * n].reshape(-1, n).max(1), FAINT_HOP_DB, None)
    if len(ms) < 4 * HOPS_MS[0] or not ms.std():
        return
    ms = (ms - ms.mean()) / ms.std()
    best = (0.0, HOPS_MS[0], 0)
    for hop in HOPS_MS:
        count = len(ms) // hop
        if count < LEAST_HOPS:
            break
        fold = ms[: count * hop].reshape(count, hop).sum(0) / np.sqrt(count)
        best = max(best, (float(fold.max()), hop, int(fold.argmax())))
    score, hop, first = best
    yield Spot(first / 1000, sound.seconds, score, f"every {hop} ms")


def repeats(sound: Sound) -> Iterator[Spot]:
    """A pattern of 2 to 64 samples said again and again; dB that its repetition explains."""
    n = max(sound.samples(PATTERN_S), 4 * PERIODS[-1])
    if len(sound.wav) < 4 * n:
        return
    # The second difference, because a slow wave always resembles itself a few samples later.
    x = np.diff(sound.wav, 2)
    power = _sums(np.square(x), n)
    best = np.zeros_like(power)
    for period in PERIODS:
        left = _sums(np.pad(np.square(x[period:] - x[:-period]), (period, 0)), n)
        best = np.maximum(best, decibel(power) - decibel(np.maximum(left / 2, 1e-12 * n)))
    audible = power / n > 1e-9
    for i in np.flatnonzero(audible):
        start = i * (n // 2) / sound.rate
        yield Spot(start, start + n / sound.rate, float(best[i]))


def _alone(sound: Sound) -> Array:
    """By how much each jump of the residual stands above all near it but the sample's own, (N,) dB."""
    jump = np.abs(np.diff(sound.residual, prepend=0.0))
    guard, side = sound.samples(WIDTH_S), sound.samples(ALONE_S)
    if len(jump) < 2 * (guard + side):
        return np.full(len(jump), FAINT_HOP_DB)
    highest = maximum_filter1d(jump, side, mode="constant")
    shift = guard + side // 2 + 1
    before, after = np.zeros_like(jump), np.zeros_like(jump)
    before[shift:], after[:-shift] = highest[:-shift], highest[shift:]
    around = np.maximum(np.maximum(before, after), FAINT_CLICK)
    return 20 * np.log10(np.maximum(jump, 1e-3 * FAINT_CLICK) / around)


def _sums(x: Array, n: int) -> Array:
    """Sums of n values each, every n / 2."""
    total = np.cumsum(np.concatenate(([0.0], x)))
    return (total[n:] - total[:-n])[:: n // 2]
