"""Numbers that say how a run went, alone or compared with a reference run.

A metric is a function of a trace and of the reference's trace, which may be None. It returns NaN where it
cannot say anything: without a reference, without the field that it reads, or for runs of two lengths.
`METRICS` lists those that an `Experiment` uses by default. `wer` and `dnsmos` judge one sound alone; where
nobody can judge it, they raise.
"""

import itertools
import math
from collections.abc import Callable, Collection

import pandas as pd
from torch import Tensor

from workbench.diagnose.experiments.judges import Whisper, dnsmos, wer  # noqa: F401  wb.metrics.wer
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import log_mel
from workbench.trace.schema import FRAME_RATE, TOKEN_RATE
from workbench.trace.trace import Trace

Metric = Callable[[Trace, Trace | None], float]

DB_PER_NEPER = 20 / math.log(10)  # decibels per unit of a natural-log amplitude
MIN_F0 = RELEASED.hift.nsf_voiced_threshold  # Hz; the vocoder takes a frame with less as unvoiced
WORST_S = 0.1  # seconds over which a difference is averaged: shorter than a syllable, longer than a frame


def seconds(trace: Trace, reference: Trace | None = None) -> float:
    """Return the length of the waveform in seconds."""
    return trace.seconds


def rtf(trace: Trace, reference: Trace | None = None) -> float:
    """Return the seconds of computing per second of audio."""
    return trace.rtf


def mel_l1(trace: Trace, reference: Trace | None = None) -> float:
    """Return the mean absolute difference of the flow's log-mels, in natural-log units."""
    difference = _mel_difference(trace, reference)
    return float("nan") if difference is None else float(difference.mean())


def worst_100ms(trace: Trace, reference: Trace | None = None) -> float:
    """Return the mean absolute difference of the log-mels over the 100 ms where it is largest."""
    difference = _mel_difference(trace, reference)
    if difference is None:
        return float("nan")
    per_frame = difference.mean(0)  # (M, T) -> (T,)
    return float(per_frame.unfold(0, _window(WORST_S, per_frame), 1).mean(1).max())


def sound_db(trace: Trace, reference: Trace | None = None) -> float:
    """Return the RMS difference of the waveforms' log-mels in dB.

    The phase of the excitation changes the waveform's samples, but hardly its mel.
    """
    difference = None if reference is None else _sound_difference(trace, reference)
    return float("nan") if difference is None else float(difference.square().mean().sqrt())


def worst_place(trace: Trace, reference: Trace, seconds: float = WORST_S) -> pd.DataFrame:
    """Return the place where the sound of two runs differs most, in the form of a player's findings.

    Parameters
    ----------
    trace, reference : Trace
        With waveforms of one length.
    seconds : float
        Length of the place.

    Returns
    -------
    DataFrame
        One row: `kind` ("farthest"), `start`, `end` (seconds), `score` (RMS difference of the log-mels
        there, dB). No row if the waveforms are equal or have two lengths.
    """
    difference = _sound_difference(trace, reference)
    rows = []
    if difference is not None and difference.any():
        power = difference.square().mean(0)  # (M, T) -> (T,)
        n = _window(seconds, power)
        means = power.unfold(0, n, 1).mean(1)
        start = int(means.argmax()) / FRAME_RATE
        rows.append(("farthest", start, start + n / FRAME_RATE, float(means.max().sqrt())))
    return pd.DataFrame(rows, columns=["kind", "start", "end", "score"])


def clamped(trace: Trace, reference: Trace | None = None) -> float:
    """Return the number of samples at the vocoder's clamp or beyond it."""
    return float((trace.wav.abs() >= RELEASED.hift.audio_limit).sum())


def flow_s(trace: Trace, reference: Trace | None = None) -> float:
    """Return the seconds that the flow took."""
    return trace.attrs.get("timings", {}).get("flow", float("nan"))


def f0_change(trace: Trace, reference: Trace | None = None) -> float:
    """Return the median absolute difference of F0 in Hz, over the frames that are voiced in both runs."""
    if reference is None or "hift/f0" not in trace or "hift/f0" not in reference:
        return float("nan")
    x = trace["hift/f0"].double()
    y = reference["hift/f0"].double()
    if x.shape != y.shape:
        return float("nan")
    voiced = (x > MIN_F0) & (y > MIN_F0)
    return float((x - y).abs()[voiced].median()) if voiced.any() else float("nan")


def _window(seconds: float, frames: Tensor) -> int:
    """Return a number of mel frames: at least one, at most all there are."""
    return min(max(1, round(seconds * FRAME_RATE)), frames.shape[-1])


def _sound_difference(trace: Trace, reference: Trace) -> Tensor | None:
    """Return the difference in dB of the waveforms' log-mels, (M, T); None for waveforms of two lengths."""
    if trace.wav.shape != reference.wav.shape or len(trace.wav) < RELEASED.mel.n_fft:
        return None
    x, y = (log_mel(each.wav.double().nan_to_num(), RELEASED.mel)[0] for each in (trace, reference))
    return DB_PER_NEPER * (x - y)


def _mel_difference(trace: Trace, reference: Trace | None) -> Tensor | None:
    """Return the absolute difference of the flow's log-mels, (M, T); None for mels of two lengths."""
    if reference is None or "flow/mel" not in trace or "flow/mel" not in reference:
        return None
    x = trace["flow/mel"].double()
    y = reference["flow/mel"].double()
    return (x - y).abs() if x.shape == y.shape else None


# The columns of an experiment's table, in this order.
METRICS: dict[str, Metric] = {
    "mel_l1": mel_l1,
    "worst_100ms": worst_100ms,
    "sound_db": sound_db,
    "f0_change": f0_change,
    "clamped": clamped,
    "flow_s": flow_s,
    "seconds": seconds,
    "rtf": rtf,
}


def run_lengths(trace: Trace, silent: Collection[int] | None = None) -> pd.DataFrame:
    """Return where the LM drew the same token, or a silent one, at least twice in a row.

    Parameters
    ----------
    trace : Trace
        With `lm/drawn_token`, or else `lm/speech_token`, in which long silences are already shortened.
    silent : collection of int, optional
        Ids of silent tokens; by default those that the trace notes.

    Returns
    -------
    DataFrame
        One row per place: `kind` ("silent" or "repeat"), `token` (index of the first), `length` (tokens),
        `seconds` (where it begins), `first_id`.
    """
    name = "lm/drawn_token" if "lm/drawn_token" in trace else "lm/speech_token"
    silent = trace.attrs.get("silent_tokens", ()) if silent is None else silent
    rows = []
    index = 0
    # All silent ids count as one, -1, so that a silence of several ids is one row.
    for _, tokens in itertools.groupby(trace[name].tolist(), lambda i: -1 if i in silent else i):
        ids = list(tokens)
        if len(ids) > 1:
            kind = "silent" if ids[0] in silent else "repeat"
            rows.append((kind, index, len(ids), index / TOKEN_RATE, ids[0]))
        index += len(ids)
    return pd.DataFrame(rows, columns=["kind", "token", "length", "seconds", "first_id"])
