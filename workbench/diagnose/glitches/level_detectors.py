"""Detectors that read levels over time: cuts, bursts, gaps, pauses and steps."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import binary_closing, maximum_filter1d, uniform_filter1d

from workbench.diagnose.glitches.analysis import FRAME_S, Array, Sound, Spot, intervals
from workbench.diagnose.glitches.pitch import voiced_frames
from workbench.speech.config import SILENT_TOKENS
from workbench.trace.schema import TOKEN_RATE

EDGE_S = 0.005  # seconds in a frame at either end of the waveform
MIN_LEVEL_DB = -65.0  # dB of full scale; what is quieter is not heard and counts as this

# A burst at either end: a few loud frames with quiet beside them.
ONSET_S, TAIL_S = 0.040, 0.060  # seconds that a burst may last
QUIET_S = 0.09  # seconds of quiet beside it; the closure of a plosive is shorter
MAX_DELAY_S = 0.02  # seconds from the burst to the quiet; a first vowel lasts longer

# A gap, measured in frames of 1 ms: the level falls, stays down and rises again.
MIN_GAP_S, MAX_GAP_S = 0.01, 3.5  # seconds
EDGE_MS, INSIDE_MS = 4, 8  # milliseconds compared before the edge and behind it
MIN_EDGE_DB = 6.0  # smaller changes are not edges; also how far a gap's level may vary inside
PEAK_MS = 5  # milliseconds to either side in which only the largest edge counts

# A step: loudness of speech before and behind a place.
STEP_SIDE_S = 1.5  # seconds on either side: several words
STEP_STRIDE = 5  # frames between the places that are tried
STEP_REACH = 25  # frames to either side that are reported as the place
MIN_SPEECH_FRAMES = 40  # frames of speech needed on either side, of the 150 there
STEP_PERCENTILE = 75  # of the speech frames' levels: vowels, which vary less than consonants
SPEECH_DB = 40  # dB below the loud speech of the whole file down to which voiced frames are speech
ABOVE_FLOOR_DB = 12  # dB above the background from which frames may be speech
MIN_SPEECH_DB = -60  # dB of full scale; below there is no speech

BLIP_FRAMES = 4  # silence goes on through noises of fewer frames than this


def start_cut(sound: Sound) -> Iterator[Spot]:
    """A waveform that begins amid speech; score: level of the first 5 ms, dB above loud speech."""
    if sound.active.any():
        # Without the waveform's offset, which is as loud at the edges as everywhere.
        first = float(sound.level(EDGE_S, sound.wav - sound.wav.mean())[0])
        yield Spot(0.0, EDGE_S, first - sound.loud)


def stop_cut(sound: Sound) -> Iterator[Spot]:
    """A waveform that ends amid speech; score: level of the last 5 ms, dB above loud speech."""
    if sound.active.any():
        last = float(sound.level(EDGE_S, (sound.wav - sound.wav.mean())[::-1])[0])
        yield Spot(sound.seconds - EDGE_S, sound.seconds, last - sound.loud)


def onset_burst(sound: Sound) -> Iterator[Spot]:
    """Noise in the first 40 ms with 90 ms of quiet behind it; score: dB between the two."""
    if sound.active.any():
        yield Spot(0.0, ONSET_S, _burst(sound, sound.wav, ONSET_S))


def tail_burst(sound: Sound) -> Iterator[Spot]:
    """Noise in the last 60 ms with 90 ms of quiet before it; score: dB between the two."""
    if sound.active.any():
        score = _burst(sound, sound.wav[::-1], TAIL_S)
        yield Spot(max(0.0, sound.seconds - TAIL_S), sound.seconds, score)


def gaps(sound: Sound) -> Iterator[Spot]:
    """Silence of 10 ms to 3.5 s between two sharp edges; score: dB of the smaller edge."""
    level = np.maximum(sound.level(0.001), MIN_LEVEL_DB - 10)  # of each millisecond
    if len(level) < 4 * INSIDE_MS:
        return
    fall = _falls(level)
    rise = _falls(level[::-1])[::-1]
    starts = _peaks(fall)
    ends = np.array(_peaks(rise))
    if not len(ends):
        return
    for start in starts:
        # The gap ends at the first rise before which the level stayed as low as right behind the fall.
        highest_inside = level[start + 1 : start + 1 + INSIDE_MS].max() + MIN_EDGE_DB
        first_end = start + MIN_GAP_S * 1000 - 3  # 3 ms of tolerance, as edges are not sharp
        last_end = start + MAX_GAP_S * 1000
        for end in ends[(ends > first_end) & (ends < last_end)]:
            if level[start + 1 : end].max() > highest_inside:
                break
            yield Spot((start + 1) / 1000, end / 1000, float(min(fall[start], rise[end])))
            break


def pauses(sound: Sound) -> Iterator[Spot]:
    """Silence between speech; score: seconds. The note counts the silent tokens there, if recorded."""
    for first, end in _silences(sound):
        if first > 0 and end < len(sound.active):
            yield _silence_spot(sound, first, end)


def waits(sound: Sound) -> Iterator[Spot]:
    """Silence before the first speech and behind the last; score: seconds."""
    for first, end in _silences(sound):
        if (first == 0) != (end == len(sound.active)):
            yield _silence_spot(sound, first, end)


def steps(sound: Sound) -> Iterator[Spot]:
    """Speech whose loudness changes from one second and a half to the next; score: dB.

    A breath, a noise or the room before the speech is not voiced, and so is no speech however loud it is.
    """
    lowest = max(sound.loud - SPEECH_DB, sound.floor + ABOVE_FLOOR_DB, MIN_SPEECH_DB)
    is_speech = voiced_frames(sound) & (sound.levels > lowest)
    n = round(STEP_SIDE_S / FRAME_S)
    for k in range(n // 2, len(sound.levels) - n // 2 + 1, STEP_STRIDE):
        left, right = slice(max(0, k - n), k), slice(k, k + n)
        before = sound.levels[left][is_speech[left]]
        behind = sound.levels[right][is_speech[right]]
        if min(len(before), len(behind)) < MIN_SPEECH_FRAMES:
            continue
        change = np.percentile(behind, STEP_PERCENTILE) - np.percentile(before, STEP_PERCENTILE)
        start = (k - STEP_REACH) * FRAME_S
        end = (k + STEP_REACH) * FRAME_S
        yield Spot(start, end, float(abs(change)), f"{change:+.0f} dB")


def _burst(sound: Sound, wav: Array, burst_s: float) -> float:
    """Return how far the loudest frame of the first `burst_s` seconds stands above the quiet behind it, dB.

    Only quiet that begins soon after the burst counts: behind a vowel it would begin later.
    """
    level = np.maximum(sound.level(EDGE_S, wav), MIN_LEVEL_DB)
    burst = round(burst_s / EDGE_S)  # frames
    delay = round(MAX_DELAY_S / EDGE_S)
    quiet = round(QUIET_S / EDGE_S)
    if len(level) < burst + delay + quiet:
        return 0.0
    peak = int(np.argmax(level[:burst]))
    means = sliding_window_view(level[: burst + delay + quiet], quiet).mean(1)
    return float(level[peak] - means[peak + 1 :].min())


def _falls(level: Array) -> Array:
    """Return how far the level falls between each frame and the next, and stays down, dB.

    The mean of the 4 ms up to a frame is compared with the highest of the 8 ms behind it. Frames too near to
    the ends have no fall.
    """
    before = uniform_filter1d(level, EDGE_MS, origin=EDGE_MS // 2 - 1)
    after = np.full_like(level, np.inf)
    after[:-1] = maximum_filter1d(level, INSIDE_MS, origin=-(INSIDE_MS // 2))[1:]
    fall = before - after
    fall[: EDGE_MS - 1] = -np.inf
    fall[-INSIDE_MS:] = -np.inf
    return fall


def _peaks(fall: Array) -> list[int]:
    """Return the frames with a fall of more than 6 dB that is the largest within 5 ms."""
    found = []
    for k in np.flatnonzero(fall > MIN_EDGE_DB):
        around = fall[max(0, k - PEAK_MS) : k + PEAK_MS + 1]
        if fall[k] == around.max():
            found.append(k)
    return found


def _silences(sound: Sound) -> list[tuple[int, int]]:
    """Return the intervals of frames without speech; noises of up to 30 ms do not end one."""
    if not sound.active.any():
        return []
    return intervals(binary_closing(~sound.active, np.ones(BLIP_FRAMES)))


def _silence_spot(sound: Sound, first: int, end: int) -> Spot:
    """Return a silence, given in frames, with the number of silent tokens in it."""
    seconds = (end - first) * FRAME_S
    return Spot(first * FRAME_S, end * FRAME_S, seconds, _count_silent_tokens(sound, first, end))


def _count_silent_tokens(sound: Sound, first: int, end: int) -> str:
    """Return a sentence on the tokens of an interval of frames; "" without recorded tokens."""
    token = sound.trace.get("lm/speech_token")
    if token is None:
        return ""
    token_s = 1 / TOKEN_RATE
    inside = token[round(first * FRAME_S / token_s) : round(end * FRAME_S / token_s)].tolist()
    silent_ids = sound.trace.attrs.get("silent_tokens", SILENT_TOKENS)
    n_silent = sum(t in silent_ids for t in inside)
    return f"{n_silent} of its {len(inside)} tokens are silent ones"
