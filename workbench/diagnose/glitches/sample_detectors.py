"""Detectors that read single samples: not finite, dead, beyond, clamped, offset, click, seam, hop, repeat."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from workbench.diagnose.glitches.analysis import (
    FRAME_S,
    Array,
    Sound,
    Spot,
    decibel,
    in_blocks,
    intervals,
    moving_mean,
    sums_before,
)
from workbench.diagnose.glitches.pitch import frames_at_pitch, voiced_frames
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import resample
from workbench.trace.schema import SAMPLE_RATE

AUDIO_LIMIT = RELEASED.hift.audio_limit  # the vocoder's clamp: a test at full scale would find nothing
LIMIT_TOLERANCE = 1e-4  # of full scale; more than the half step by which 16-bit samples round the clamp
FLAT_TOLERANCE = 1e-5  # the same for the limit of any other waveform, both relative and of full scale
MIN_LIMIT = 0.1  # of full scale; a flat peak below this is not taken for a limit
CLIP_MERGE_S = 0.05  # seconds; flat tops this near are one clipping

OFFSET_S = 1.0  # seconds that an offset is averaged over: longer than a breath's wind on the microphone
OFFSET_STEP_S = 0.05  # seconds between two such means

# A click is compared with the pulses of the voice around it, without the click's own width.
CLICK_SIDE_S = 0.015  # seconds to either side: at least one pulse of a voice above 70 Hz
CLICK_WIDTH_S = 0.0003  # seconds that a click itself may reach
EDGE_S = 0.005  # seconds at either end in which no click is looked for
MIN_JUMP = 1e-4  # of full scale; the residual of quiet frames counts as this, or silence would be all clicks
# A click is also compared with the pulses of the whole file. A plosive or a tongue's click stands out where
# it is, but not among the jumps that this voice makes elsewhere.
PULSE_PERCENTILE = 90  # of the highest jump of each speech frame
PULSE_SHARE = 0.5  # of that, which the jumps around a click count as where they are smaller
SEAM_S = 0.003  # seconds to either side of a recorded seam in which its jump may lie

HOPS_MS = range(80, 2000)  # spacings of chunks in ms: 4 to 100 mel frames, or a little less
HOP_WIDTH_MS = 3  # milliseconds that the jumps of a regular spacing may be off
MIN_HOPS = 5  # jumps that a regular spacing must have
MIN_HOP_DB = -15.0  # dB; quieter jumps count as this, so that silence does not widen the distribution
MAX_HOP_DB = 15.0  # dB; higher jumps count as this, so that one click is no regular spacing

# Strides inside the vocoder: the inverse STFT writes every 4 samples, the upsampling stages make 3 and 5 of
# each of these, and a mel frame is 480. They are counted at the vocoder's own rate.
FRAME = RELEASED.hift.hop_length  # 480 samples, 20 ms: all other strides divide it
STRIDES = (4, 12, 60, FRAME)  # samples at 24 kHz
VOICE_STRIDE = 60  # samples: 400 Hz, which is also the pitch of a high voice
MAX_VOICE_SHARE = 0.7  # of the other voiced frames that may have that pitch: a voice on one note
MIN_OTHER_FRAMES = 20  # frames of 10 ms; with fewer, the voice's pitch is not known
PITCH_AROUND_S = 0.04  # seconds to either side of a pattern whose frames may still hold it
PITCH_LAGS = range(48, 401)  # samples at 24 kHz: pitches of 60 to 500 Hz
PATTERN_WINDOWS = 5  # windows, 60 ms, that a pattern must last; a gliding pitch meets a stride for less
MIN_LEAD_DB = 3.0  # dB by which a stride must explain more than smaller strides, or than a pitch
MIN_PATTERN_POWER = 1e-9  # per sample, -90 dB of full scale: quieter patterns are not heard


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
    """A mean away from 0 over a second; score: share of full scale."""
    mean = np.abs(moving_mean(sound.wav, sound.samples(OFFSET_S)))
    step = sound.samples(OFFSET_STEP_S)
    for i, score in enumerate(mean[::step]):
        end = min((i + 1) * step, len(mean))
        yield Spot(i * step / sound.rate, end / sound.rate, float(score))


def clicks(sound: Sound) -> Iterator[Spot]:
    """Jumps of the residual that stand out among the voice's pulses; score: dB above these.

    The first and last 5 ms are left to `start_cut` and `stop_cut`: a cut is a jump as well.
    """
    prominence = _prominence(sound, max(MIN_JUMP, PULSE_SHARE * _pulse(sound)))
    width = sound.samples(CLICK_WIDTH_S)

    def highest_around(part: Array) -> Array:
        return (part == maximum_filter1d(part, 2 * width + 1)) & (part > 0)

    is_peak = in_blocks(highest_around, prominence, width, bool)
    edge = sound.samples(EDGE_S)
    is_peak[:edge] = is_peak[-edge:] = False
    for k in np.flatnonzero(is_peak):
        yield Spot(int(k) / sound.rate, (int(k) + 1) / sound.rate, float(prominence[k]))


def seams(sound: Sound) -> Iterator[Spot]:
    """Jumps of the residual where two chunks were joined; score: dB above the pulses around.

    The seams are `attrs["seams"]` of a trace: the first sample of every chunk but the first.
    """
    places = sound.trace.attrs.get("seams", [])
    if not places:
        return
    prominence = _prominence(sound, MIN_JUMP)
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
    prominence = _prominence(sound, MIN_JUMP)
    n = sound.samples(0.001)
    per_ms = prominence[: len(prominence) // n * n].reshape(-1, n).max(1)  # highest in each millisecond
    per_ms = maximum_filter1d(np.clip(per_ms, MIN_HOP_DB, MAX_HOP_DB), HOP_WIDTH_MS)
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
    """A pattern that repeats with a stride of the vocoder; score: dB of the signal that repetition explains.

    Every stride divides a mel frame, so that a pattern also repeats one frame later. A voice whose period is
    near a stride seldom does: its pitch moves. Where it does, the voice's pitch explains the repetition.
    """
    wav = sound.wav
    if sound.rate != SAMPLE_RATE:
        wav = resample(torch.from_numpy(wav), sound.rate, SAMPLE_RATE).numpy()
    if len(wav) < 6 * FRAME:
        return
    # The second difference, because a slow wave always resembles itself a few samples later.
    x = np.diff(wav, 2)
    starts = np.arange(0, len(x) - FRAME + 1, FRAME // 2)  # first sample of every window of one frame
    middle = ((starts + FRAME // 2) / SAMPLE_RATE / FRAME_S).astype(int)  # 10 ms frame amid each window
    is_speech = sound.active[np.minimum(middle, len(sound.active) - 1)]
    one_frame_later = _explained(x, FRAME)
    explained = np.zeros(len(starts))  # by the smaller strides
    for stride in STRIDES:
        lag = 2 * FRAME if stride == FRAME else stride
        score = np.minimum(one_frame_later, _explained(x, lag))
        score = minimum_filter1d(score, PATTERN_WINDOWS, mode="nearest")
        is_pattern = is_speech & (score > explained + MIN_LEAD_DB)
        if stride == FRAME:
            for i in np.flatnonzero(is_pattern):
                is_pattern[i] = score[i] > _explained_by_pitch(x, starts[i]) + MIN_LEAD_DB
        elif stride == VOICE_STRIDE:
            is_pattern &= not _is_pitch(sound, SAMPLE_RATE / stride, starts[is_pattern] / SAMPLE_RATE)
        for i in np.flatnonzero(is_pattern):
            start = starts[i] / SAMPLE_RATE
            note = f"every {stride} samples at {SAMPLE_RATE:,} Hz"
            yield Spot(start, start + FRAME / SAMPLE_RATE, float(score[i]), note)
        explained = np.maximum(explained, score)


def _explained(x: Array, lag: int) -> Array:
    """Return how much of each window of one frame is the same `lag` samples earlier, (windows,) dB.

    Windows begin every half frame. Those whose earlier samples lie before the start are not explained.
    """
    power = np.square(x)
    level = decibel(_window_sums(power, FRAME))
    change = power  # in its place
    change[:lag] = power.max() * FRAME + 1.0  # nowhere: larger than any window's power
    np.subtract(x[lag:], x[:-lag], out=change[lag:])
    np.square(change[lag:], out=change[lag:])
    # The difference of two unlike signals has twice their power, hence the half.
    unexplained = np.maximum(_window_sums(change, FRAME) / 2, MIN_PATTERN_POWER * FRAME)
    return level - decibel(unexplained)


def _explained_by_pitch(x: Array, first: int) -> float:
    """Return how much of the window at sample `first` the best of the voice's periods explains, dB."""
    window = x[first : first + FRAME]
    before = np.pad(x[: first + FRAME], (PITCH_LAGS[-1], 0))[-FRAME - PITCH_LAGS[-1] :]
    earlier = sliding_window_view(before, FRAME)[::-1][PITCH_LAGS[0] :]  # (lags, samples), shortest lag first
    unexplained = np.square(earlier - window).sum(1).min() / 2
    return float(decibel(np.square(window).sum()) - decibel(max(unexplained, MIN_PATTERN_POWER * FRAME)))


def _is_pitch(sound: Sound, hz: float, places: Array) -> bool:
    """Return whether the voice has a pitch near `hz` elsewhere than at some places, given in seconds.

    Also true where there is too little voice elsewhere to tell.
    """
    elsewhere = voiced_frames(sound)
    for place in places:
        first = max(0, int((place - PITCH_AROUND_S) / FRAME_S))
        elsewhere[first : int((place + PITCH_AROUND_S) / FRAME_S)] = False
    if elsewhere.sum() < MIN_OTHER_FRAMES:
        return True
    return float(frames_at_pitch(sound, hz)[elsewhere].mean()) > MAX_VOICE_SHARE


def _pulse(sound: Sound) -> float:
    """Return how high the jumps of the residual are in this voice's own pulses; 0 without speech."""
    n = sound.samples(FRAME_S)
    jump = _jumps(sound)
    highest = jump[: len(jump) // n * n].reshape(-1, n).max(1)  # of each 10 ms frame
    speech = highest[sound.active[: len(highest)]]
    return float(np.percentile(speech, PULSE_PERCENTILE)) if len(speech) else 0.0


def _jumps(sound: Sound) -> Array:
    """Return how far the residual jumps from each sample to the next, (N,)."""
    jump = sound.residual.copy()
    jump[1:] -= sound.residual[:-1]
    return np.abs(jump, out=jump)


def _prominence(sound: Sound, min_around: float) -> Array:
    """Return how far each jump of the residual stands above the highest around it, (N,) dB.

    "Around" is 15 ms to either side, without the 0.3 ms next to the sample, which belong to the same jump.
    Where the highest jump around is below `min_around`, the latter takes its place.
    """
    jump = _jumps(sound)
    guard = sound.samples(CLICK_WIDTH_S)
    side = sound.samples(CLICK_SIDE_S)
    if len(jump) < 2 * (guard + side):
        return np.full(len(jump), MIN_HOP_DB)
    shift = guard + side // 2 + 1

    def above_surroundings(jump: Array) -> Array:
        # `highest[i]` is the maximum of the window of length `side` around i. Shifted by half a window and
        # the guard, it becomes the maximum of the window that ends before the sample, or begins behind it.
        highest = maximum_filter1d(jump, side, mode="constant")
        before = np.zeros_like(jump)
        before[shift:] = highest[:-shift]
        after = np.zeros_like(jump)
        after[:-shift] = highest[shift:]
        around = np.maximum(np.maximum(before, after), min_around)
        return 20 * np.log10(np.maximum(jump, 1e-3 * MIN_JUMP) / around)

    return in_blocks(above_surroundings, jump, shift + side)


def _window_sums(x: Array, n: int) -> Array:
    """Return the sums of windows of n values that begin every n / 2 values."""
    total = sums_before(x)
    return total[n :: n // 2] - total[: -n : n // 2]
