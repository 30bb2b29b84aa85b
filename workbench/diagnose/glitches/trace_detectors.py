"""Detectors that read what was recorded beside the waveform.

f0 that no voice has, leaps of f0, implausible values, a waveform that does not fit its mel or its tokens, and
speech that is far longer or shorter than its text.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import median_filter, minimum_filter1d, rank_filter

from workbench.diagnose.compare.plausibility import FRAMES_PER_TOKEN, implausible
from workbench.diagnose.glitches.analysis import Array, Sound, Spot
from workbench.errors import WorkbenchError
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import log_mel
from workbench.speech.frontend.transcript_checks import MAX_PACE, MIN_PACE, USUAL_PACE, spoken_letters
from workbench.trace.schema import FRAME_RATE, TOKEN_RATE
from workbench.trace.trace import Trace

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

# Speech against its text.
USUAL_TOKENS = 5.0  # speech tokens per text token, for a trace without its text
SLACK_S = 0.6  # seconds of silence around a text that are no sign of anything


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
        yield Spot(0.0, sound.seconds, 1.0, sentence, subject=sentence)


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
    """A waveform that is longer or shorter than 40 ms per token; score: share of that length.

    Upstream does not trim the prompt of a conversion: the frames that its last tokens lack, the target
    has more.
    """
    token = sound.trace.get("lm/speech_token")
    speed = sound.trace.attrs.get("options", {}).get("speed", 1.0)
    if token is not None and len(token) and isinstance(speed, (int, float)) and speed > 0:
        expected_s = len(token) / TOKEN_RATE
        prompt, mel = sound.trace.get("in/flow_prompt_token"), sound.trace.get("in/prompt_mel")
        if prompt is not None and mel is not None:
            missing = FRAMES_PER_TOKEN * len(prompt) - mel.shape[-1]
            if 0 < missing < 2 * FRAMES_PER_TOKEN:
                expected_s += missing / (FRAMES_PER_TOKEN * TOKEN_RATE)
        ratio = sound.seconds * speed / expected_s
        yield Spot(0.0, sound.seconds, abs(ratio - 1), f"{ratio:.3f} times as long")


def pace(sound: Sound) -> Iterator[Spot]:
    """Speech that is longer or shorter than its text allows; score: octaves beyond the expected length.

    The expected length is that of the text at the prompt's own letters a second. Where the trace does not
    hold both texts, or the prompt's transcript cannot be its own, it is the length at a usual pace.
    """
    token = sound.trace.get("lm/speech_token")
    if token is None or not len(token) or "in/source_token" in sound.trace:
        return
    spoken_s = len(token) / TOKEN_RATE
    text = sound.trace.attrs.get("text")
    n_letters = spoken_letters(text) if isinstance(text, str) else 0.0
    text_token = sound.trace.get("in/text_token")
    if n_letters:
        per_second, whose = _prompt_pace(sound.trace)
        expected_s = n_letters / per_second
        note = f"{spoken_s:.1f} s for {n_letters:.0f} letters; {expected_s:.1f} s at {whose}"
    elif text_token is not None and len(text_token):
        expected_s = len(text_token) * USUAL_TOKENS / TOKEN_RATE
        note = f"{len(token)} tokens for {len(text_token)} of text"
        prompt_text = sound.trace.get("in/prompt_text_token")
        if prompt_text is not None and not len(prompt_text):
            return  # a cross-lingual text begins with an instruction, which is not spoken
    else:
        return
    # Silence may lengthen a short text by much, but nothing makes it shorter.
    longer = math.log2(spoken_s / (expected_s + SLACK_S))
    shorter = math.log2(expected_s / spoken_s)
    yield Spot(0.0, sound.seconds, max(longer, shorter), note)


def _prompt_pace(trace: Trace) -> tuple[float, str]:
    """Return the prompt's letters a second if they are plausible, else usual ones; and whose pace it is."""
    prompt = trace.attrs.get("prompt")
    prompt = prompt if isinstance(prompt, dict) else {}
    text, seconds = prompt.get("text"), prompt.get("seconds")
    is_known = isinstance(text, str) and isinstance(seconds, (int, float)) and seconds > 0
    if not is_known or not spoken_letters(text):
        return USUAL_PACE, "a usual pace"
    per_second = spoken_letters(text) / seconds
    if MIN_PACE <= per_second <= MAX_PACE:
        return per_second, "the prompt's pace"
    return USUAL_PACE, f"a usual pace; the prompt has {per_second:.0f} letters a second: another transcript?"


def _recorded_f0(sound: Sound) -> Array:
    """Return the recorded f0 (frames,), with NaN as 0; empty if there is none."""
    recorded = sound.trace.get("hift/f0")
    return np.zeros(0) if recorded is None else np.nan_to_num(recorded.double().numpy())
