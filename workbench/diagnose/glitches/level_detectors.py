"""Detectors that look at levels over time: cuts, bursts, gaps, pauses, steps."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import binary_closing, maximum_filter1d, uniform_filter1d

from workbench.diagnose.glitches.analysis import FRAME_S, Array, Sound, runs
from workbench.diagnose.glitches.sample_detectors import Spot
from workbench.speech.config import SILENT_TOKENS

EDGE_S = 0.005
ONSET_S, TAIL_S = 0.04, 0.06  # how long a burst may be
QUIET_S = 0.09  # beside it; the closure of a plosive is shorter
LATE_S = 0.02  # how long after such a burst the quiet may begin; a first vowel lasts longer
INAUDIBLE_DB = -65.0
GAP_S = (0.01, 3.5)
EDGE_MS, INSIDE_MS = 4, 8  # of a gap, that levels are compared over
SIDE_S = 1.5  # of a step
LEAST_SPEECH = 40  # frames of 10 ms, on either side of it
TOKEN_S = 0.04


def start_cut(sound: Sound) -> Iterator[Spot]:
    """Level of the first 5 ms; dB above the loud speech."""
    if sound.active.any():
        yield Spot(0.0, EDGE_S, float(sound.level(EDGE_S)[0]) - sound.loud)


def stop_cut(sound: Sound) -> Iterator[Spot]:
    """Level of the last 5 ms; dB above the loud speech."""
    if sound.active.any():
        last = float(sound.level(EDGE_S, sound.wav[::-1])[0])
        yield Spot(sound.seconds - EDGE_S, sound.seconds, last - sound.loud)


def onset_burst(sound: Sound) -> Iterator[Spot]:
    """Sound in the first 40 ms with 90 ms of quiet behind it; dB between the two."""
    if sound.active.any():
        yield Spot(0.0, ONSET_S, _burst(sound, sound.wav, ONSET_S))


def tail_burst(sound: Sound) -> Iterator[Spot]:
    """Sound in the last 60 ms with 90 ms of quiet before it; dB between the two."""
    if sound.active.any():
        score = _burst(sound, sound.wav[::-1], TAIL_S)
        yield Spot(max(0.0, sound.seconds - TAIL_S), sound.seconds, score)


def gaps(sound: Sound) -> Iterator[Spot]:
    """Silence of 10 ms to 3.5 s between two sharp edges; dB of the smaller edge."""
    level = np.maximum(sound.level(0.001), INAUDIBLE_DB - 10)
    if len(level) < 4 * INSIDE_MS:
        return
    fall, rise = _edges(level), _edges(level[::-1])[::-1]
    starts = [k for k in np.flatnonzero(fall > 6) if fall[k] == fall[max(0, k - 5) : k + 6].max()]
    ends = np.array([k for k in np.flatnonzero(rise > 6) if rise[k] == rise[max(0, k - 5) : k + 6].max()])
    for a in starts:
        within = level[a + 1 : a + 1 + INSIDE_MS].max() + 6
        for b in ends[(ends > a + GAP_S[0] * 1000 - 3) & (ends < a + GAP_S[1] * 1000)] if len(ends) else ():
            if level[a + 1 : b].max() > within:
                break
            yield Spot((a + 1) / 1000, b / 1000, float(min(fall[a], rise[b])))
            break


def pauses(sound: Sound) -> Iterator[Spot]:
    """Silence between speech; seconds. Says how many silent tokens asked for it, where they were recorded."""
    for a, b in _silences(sound):
        if a > 0 and b < len(sound.active):
            yield Spot(a * FRAME_S, b * FRAME_S, (b - a) * FRAME_S, _silent_tokens(sound, a, b))


def waits(sound: Sound) -> Iterator[Spot]:
    """Silence before the first and behind the last speech; seconds."""
    for a, b in _silences(sound):
        if (a == 0) != (b == len(sound.active)):
            yield Spot(a * FRAME_S, b * FRAME_S, (b - a) * FRAME_S, _silent_tokens(sound, a, b))


def steps(sound: Sound) -> Iterator[Spot]:
    """Loudness of speech that changes from one second and a half to the next; dB."""
    n = round(SIDE_S / FRAME_S)
    for k in range(n // 2, len(sound.levels) - n // 2 + 1, 5):
        sides = [_speech(sound, sound.levels[part]) for part in (slice(max(0, k - n), k), slice(k, k + n))]
        if all(len(side) >= LEAST_SPEECH for side in sides):
            a, b = (np.percentile(side, 75) for side in sides)
            yield Spot((k - 25) * FRAME_S, (k + 25) * FRAME_S, float(abs(b - a)), f"{b - a:+.0f} dB")


def _speech(sound: Sound, levels: Array) -> Array:
    """Levels of speech, of a part that may be quieter than the rest."""
    return levels[levels > max(np.percentile(levels, 95) - 20, sound.floor + 12, -60)]


def _burst(sound: Sound, wav: Array, burst_s: float) -> float:
    """Highest level of a burst above the quiet that begins before it could be a vowel, dB."""
    level = np.maximum(sound.level(EDGE_S, wav), INAUDIBLE_DB)
    n, late, quiet = (round(s / EDGE_S) for s in (burst_s, LATE_S, QUIET_S))
    if len(level) < n + late + quiet:
        return 0.0
    peak = int(np.argmax(level[:n]))
    behind = sliding_window_view(level[: n + late + quiet], quiet).mean(1)
    return float(level[peak] - behind[peak + 1 :].min())


def _edges(level: Array) -> Array:
    """How far the level falls between each frame and the next, and stays down, dB."""
    before = uniform_filter1d(level, EDGE_MS, origin=EDGE_MS // 2 - 1)
    after = np.full_like(level, np.inf)
    after[:-1] = maximum_filter1d(level, INSIDE_MS, origin=-(INSIDE_MS // 2))[1:]
    fall = before - after
    fall[: EDGE_MS - 1] = fall[-INSIDE_MS:] = -np.inf
    return fall


def _silences(sound: Sound) -> list[tuple[int, int]]:
    """Runs of frames without speech; blips of up to 30 ms do not end one."""
    return runs(binary_closing(~sound.active, np.ones(4))) if sound.active.any() else []


def _silent_tokens(sound: Sound, a: int, b: int) -> str:
    token = sound.trace.get("lm/speech_token")
    if token is None:
        return ""
    part = token[round(a * FRAME_S / TOKEN_S) : round(b * FRAME_S / TOKEN_S)].tolist()
    silent = sound.trace.attrs.get("silent_tokens", SILENT_TOKENS)
    return f"{sum(t in silent for t in part)} of its {len(part)} tokens are silent ones"
