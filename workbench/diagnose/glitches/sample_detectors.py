"""Detectors that read single samples: not finite, dead, beyond, clamped, offset, click, seam, hop, repeat."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter1d

from workbench.diagnose.glitches.analysis import Array, Sound, decibel, intervals, moving_mean
from workbench.speech.config import RELEASED

AUDIO_LIMIT = RELEASED.hift.audio_limit  # the vocoder's clamp: a test at full scale would find nothing
LIMIT_TOLERANCE = 1e-4  # of full scale; more than the half step by which 16-bit samples round the clamp
FLAT_TOLERANCE = 1e-5  # the same for the limit of any other waveform, both relative and of full scale
MIN_LIMIT = 0.1  # of full scale; a flat peak below this is not taken for a limit
CLIP_MERGE_S = 0.05  # seconds; flat tops this near are one clipping

OFFSET_S = 0.25  # seconds that an offset is averaged over: several periods of the lowest voice
OFFSET_STEP_S = 0.05  # seconds between two such means

# A click is compared with the pulses of the voice around it, without the click's own width.
CLICK_SIDE_S = 0.015  # seconds to either side: at least one pulse of a voice above 70 Hz
CLICK_WIDTH_S = 0.0003  # seconds that a click itself may reach
MIN_JUMP = 1e-4  # of full scale; the residual of quiet frames counts as this, or silence would be all clicks
SEAM_S = 0.003  # seconds to either side of a recorded seam in which its jump may lie

HOPS_MS = range(80, 2000, 20)  # spacings of chunks in ms: whole mel frames of 20 ms, four to a hundred
MIN_HOPS = 5  # jumps that a regular spacing must have
MIN_HOP_DB = -15.0  # dB; quieter jumps count as this, so that silence does not widen the distribution

PERIODS = range(2, 65)  # samples; the strides inside HiFT are 4, 12, 60 and 480 samples
PATTERN_S = 0.02  # seconds in which a pattern must repeat
MIN_PATTERN_POWER = 1e-9  # per sample, -90 dB of full scale: quieter patterns are not heard


class Spot(NamedTuple):
    """A place with a score. It becomes a finding if the score reaches the detector's threshold."""

    start: float  # seconds
    end: float  # seconds
    score: float  # higher is worse; the unit is the detector's
    note: str = ""  # added to the cause of the finding


def nonfinite(sound: Sound) -> Iterator[Spot]:
    """NaN and infinity; score: consecutive samples."""
    for first, end in intervals(sound.bad):
        yield Spot(first / sound.rate, end / sound.rate, end - first)


def dead(sound: Sound) -> Iterator[Spot]:
    """A waveform that is too quiet as a whole; score: dB below full scale."""
    level = float(decibel(np.square(sound.wav - sound.wav.mean()).mean()))
    yield Spot(0.0, sound.seconds, -level, f"{level:.0f} dBFS")


def beyond(sound: Sound) -> Iterator[Spot]:
    """Samples beyond full scale, which a player clips; score: the highest."""
    over = np.flatnonzero(np.abs(sound.wav) > 1)
    if len(over):
        peak = float(np.abs(sound.wav).max())
        note = f"{len(over)} samples, up to {peak:.3g}"
        yield Spot(over[0] / sound.rate, (over[-1] + 1) / sound.rate, peak, note)


def clamped(sound: Sound) -> Iterator[Spot]:
    """Flat tops at the vocoder's clamp or at another limit; score: samples in the longest."""
    for side in (sound.wav, -sound.wav):
        top = float(side.max())
        if top < MIN_LIMIT:
            continue
        # The limit of this waveform is its highest sample. PCM rounds it by half a step at most, so that a
        # true limit is flat to within the tolerance.
        flat = side >= min(top, max(top * (1 - FLAT_TOLERANCE) - FLAT_TOLERANCE, 0.0))
        # Some samples may lie above the clamp, for example after a resampler.
        if top >= AUDIO_LIMIT - LIMIT_TOLERANCE:
            flat |= side >= AUDIO_LIMIT - LIMIT_TOLERANCE

        # Merge flat tops that are near each other: (first, end, samples in the longest).
        merged: list[tuple[int, int, int]] = []
        for first, end in intervals(flat):
            if merged and first - merged[-1][1] < CLIP_MERGE_S * sound.rate:
                start, _, longest = merged[-1]
                merged[-1] = (start, end, max(longest, end - first))
            else:
                merged.append((first, end, end - first))
        for first, end, longest in merged:
            yield Spot(first / sound.rate, end / sound.rate, longest, f"at {top:.2f} of full scale")


def offset(sound: Sound) -> Iterator[Spot]:
    """A mean away from 0 over a quarter of a second; score: share of full scale."""
    mean = np.abs(moving_mean(sound.wav, sound.samples(OFFSET_S)))
    step = sound.samples(OFFSET_STEP_S)
    for i, score in enumerate(mean[::step]):
        end = min((i + 1) * step, len(mean))
        yield Spot(i * step / sound.rate, end / sound.rate, float(score))


def clicks(sound: Sound) -> Iterator[Spot]:
    """Jumps of the residual that stand out among the voice's pulses; score: dB above these."""
    prominence = _prominence(sound)
    highest = maximum_filter1d(prominence, 2 * sound.samples(CLICK_WIDTH_S) + 1)
    for k in np.flatnonzero((prominence == highest) & (prominence > 0)):
        yield Spot(int(k) / sound.rate, (int(k) + 1) / sound.rate, float(prominence[k]))


def seams(sound: Sound) -> Iterator[Spot]:
    """Jumps of the residual where two chunks were joined; score: dB above the pulses around.

    The seams are `attrs["seams"]` of a trace: the first sample of every chunk but the first.
    """
    places = sound.trace.attrs.get("seams", [])
    if not places:
        return
    prominence = _prominence(sound)
    reach = sound.samples(SEAM_S)
    for place in places:
        near = prominence[max(0, int(place) - reach) : int(place) + reach]
        if len(near):
            yield Spot(place / sound.rate, (place + 1) / sound.rate, float(near.max()), "a recorded seam")


def hops(sound: Sound) -> Iterator[Spot]:
    """Jumps of the residual at a regular spacing, as of chunks; score: standard deviations above the rest.

    For every spacing the waveform is cut into pieces of that length, and the pieces are added up. Jumps at
    the same place of every piece add up; others average out.
    """
    prominence = _prominence(sound)
    n = sound.samples(0.001)
    per_ms = prominence[: len(prominence) // n * n].reshape(-1, n).max(1)  # highest in each millisecond
    per_ms = np.clip(per_ms, MIN_HOP_DB, None)
    if len(per_ms) < 4 * HOPS_MS[0] or not per_ms.std():
        return
    per_ms = (per_ms - per_ms.mean()) / per_ms.std()
    best = (0.0, HOPS_MS[0], 0)  # score, spacing in ms, place of the first jump in ms
    for hop in HOPS_MS:
        count = len(per_ms) // hop
        if count < MIN_HOPS:
            break
        pieces = per_ms[: count * hop].reshape(count, hop)
        folded = pieces.sum(0) / np.sqrt(count)  # unit variance again where there is no regular jump
        best = max(best, (float(folded.max()), hop, int(folded.argmax())))
    score, hop, first = best
    yield Spot(first / 1000, sound.seconds, score, f"every {hop} ms")


def repeats(sound: Sound) -> Iterator[Spot]:
    """A pattern of 2 to 64 samples again and again; score: dB of the signal that the repetition explains."""
    n = max(sound.samples(PATTERN_S), 4 * PERIODS[-1])
    if len(sound.wav) < 4 * n:
        return
    # The second difference, because a slow wave always resembles itself a few samples later.
    x = np.diff(sound.wav, 2)
    power = _window_sums(np.square(x), n)
    best = np.zeros_like(power)
    for period in PERIODS:
        change = np.pad(np.square(x[period:] - x[:-period]), (period, 0))
        # The difference of two unlike signals has twice their power, hence the half.
        unexplained = np.maximum(_window_sums(change, n) / 2, 1e-12 * n)
        best = np.maximum(best, decibel(power) - decibel(unexplained))
    audible = power / n > MIN_PATTERN_POWER
    for i in np.flatnonzero(audible):
        start = i * (n // 2) / sound.rate
        yield Spot(start, start + n / sound.rate, float(best[i]))


def _prominence(sound: Sound) -> Array:
    """Return how far each jump of the residual stands above the highest around it, (N,) dB.

    "Around" is 15 ms to either side, without the 0.3 ms next to the sample, which belong to the same jump.
    """
    jump = np.abs(np.diff(sound.residual, prepend=0.0))
    guard = sound.samples(CLICK_WIDTH_S)
    side = sound.samples(CLICK_SIDE_S)
    if len(jump) < 2 * (guard + side):
        return np.full(len(jump), MIN_HOP_DB)
    # `highest[i]` is the maximum of the window of length `side` around i. Shifted by half a window and the
    # guard, it becomes the maximum of the window that ends before the sample, or begins behind it.
    highest = maximum_filter1d(jump, side, mode="constant")
    shift = guard + side // 2 + 1
    before = np.zeros_like(jump)
    before[shift:] = highest[:-shift]
    after = np.zeros_like(jump)
    after[:-shift] = highest[shift:]
    around = np.maximum(np.maximum(before, after), MIN_JUMP)
    return 20 * np.log10(np.maximum(jump, 1e-3 * MIN_JUMP) / around)


def _window_sums(x: Array, n: int) -> Array:
    """Return the sums of windows of n values that begin every n / 2 values."""
    total = np.cumsum(np.concatenate(([0.0], x)))
    return (total[n:] - total[:-n])[:: n // 2]
