"""A run -> numbers, beside another run where there is one; NaN where the two have no common time."""

import itertools
import math
from collections.abc import Callable, Collection

import pandas as pd
from torch import Tensor

from workbench.speech.config import MelConfig
from workbench.speech.frontend.audio import log_mel
from workbench.trace.schema import RATES
from workbench.trace.trace import Trace

AUDIO_LIMIT = 0.99  # where the vocoder clamps
DB_PER_NEPER = 20 / math.log(10)
MEL = MelConfig()
LOWEST_F0 = 10.0  # Hz; the excitation takes less for unvoiced


def seconds(trace: Trace, reference: Trace | None = None) -> float:
    """Length of the sound."""
    return trace.seconds


def rtf(trace: Trace, reference: Trace | None = None) -> float:
    """Compute seconds per second of sound."""
    return trace.rtf


def mel_l1(trace: Trace, reference: Trace | None = None) -> float:
    """Mean absolute difference of the flow's log-mels, natural units."""
    apart = _mel_apart(trace, reference)
    return float("nan") if apart is None else float(apart.mean())


def worst_100ms(trace: Trace, reference: Trace | None = None) -> float:
    """The same over the 100 ms where it is largest."""
    apart = _mel_apart(trace, reference)
    if apart is None:
        return float("nan")
    n = min(round(0.1 * RATES["target_frame"]), apart.shape[-1])
    return float(apart.mean(0).unfold(0, n, 1).mean(1).max())


def sound_db(trace: Trace, reference: Trace | None = None) -> float:
    """RMS difference of the waveforms' log-mels, dB; what the phase of the excitation cannot change much."""
    apart = None if reference is None else _sound_apart(trace, reference)
    return float("nan") if apart is None else float(apart.square().mean().sqrt())


def worst_place(trace: Trace, reference: Trace, seconds: float = 0.1) -> pd.DataFrame:
    """Return where the sound of two runs differs most, as a player's findings take it.

    Parameters
    ----------
    trace, reference : Trace
        With waveforms of one length.
    seconds : float
        How long a place is.

    Returns
    -------
    DataFrame
        One row: `kind` ("farthest apart"), `start`, `end` (seconds), `score` (RMS difference of the log-mels
        there, dB). None where the waveforms are of two lengths, or are equal.
    """
    apart = _sound_apart(trace, reference)
    rows = []
    if apart is not None and apart.any():
        n = min(max(1, round(seconds * RATES["target_frame"])), apart.shape[-1])
        power = apart.square().mean(0).unfold(0, n, 1).mean(1)
        at = int(power.argmax()) / RATES["target_frame"]
        rows.append(("farthest apart", at, at + n / RATES["target_frame"], float(power.max().sqrt())))
    return pd.DataFrame(rows, columns=["kind", "start", "end", "score"])


def clamped(trace: Trace, reference: Trace | None = None) -> float:
    """Samples at the vocoder's clamp or beyond."""
    return float((trace.wav.abs() >= AUDIO_LIMIT).sum())


def flow_s(trace: Trace, reference: Trace | None = None) -> float:
    """Seconds the flow took."""
    return trace.attrs.get("timings", {}).get("flow", float("nan"))


def f0_change(trace: Trace, reference: Trace | None = None) -> float:
    """Median absolute difference of F0 in Hz, over frames that both voice."""
    if reference is None or not all("hift/f0" in t for t in (trace, reference)):
        return float("nan")
    x, y = trace["hift/f0"].double(), reference["hift/f0"].double()
    if x.shape != y.shape:
        return float("nan")
    both = (x > LOWEST_F0) & (y > LOWEST_F0)
    return float((x - y).abs()[both].median()) if both.any() else float("nan")


def _sound_apart(trace: Trace, reference: Trace) -> Tensor | None:
    """Difference (mel, frame) in dB of two waveforms of one length."""
    if trace.wav.shape != reference.wav.shape or len(trace.wav) < MEL.n_fft:
        return None
    mels = [log_mel(t.wav.double().nan_to_num(), MEL)[0] for t in (trace, reference)]
    return DB_PER_NEPER * (mels[0] - mels[1])


def _mel_apart(trace: Trace, reference: Trace | None) -> Tensor | None:
    """|difference| (mel, frame) of two runs of one length."""
    if reference is None or not all("flow/mel" in t for t in (trace, reference)):
        return None
    x, y = trace["flow/mel"].double(), reference["flow/mel"].double()
    return (x - y).abs() if x.shape == y.shape else None


MEASURES: dict[str, Callable[[Trace, Trace | None], float]] = {
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
    """Return what was drawn in a row: one row a run of at least two equal, or at least two silent tokens.

    Parameters
    ----------
    trace : Trace
        With `lm/drawn_token`, or `lm/speech_token` at least, where long silences are cut already.
    silent : collection of int, optional
        Ids that sound like silence; those that the run noted unless given.

    Returns
    -------
    DataFrame
        `kind` ("silent" or "repeat"), `token` (place of the first), `length`, `seconds`, `first_id`.
    """
    name = "lm/drawn_token" if "lm/drawn_token" in trace else "lm/speech_token"
    silent = trace.attrs.get("silent_tokens", ()) if silent is None else silent
    rows, at = [], 0
    for _, run in itertools.groupby(trace[name].tolist(), lambda i: -1 if i in silent else i):
        ids = list(run)
        if len(ids) > 1:
            kind = "silent" if ids[0] in silent else "repeat"
            rows.append((kind, at, len(ids), at / RATES["token"], ids[0]))
        at += len(ids)
    return pd.DataFrame(rows, columns=["kind", "token", "length", "seconds", "first_id"])
