"""Measure how far the other ways of computing are from eager. `workbench bench deviation` prints it."""

from collections.abc import Sequence

import pandas as pd

from workbench.diagnose.compare.distance import measure
from workbench.diagnose.experiments.metrics import mel_l1, sound_db
from workbench.speech.config import COMPUTE, FLOW, HIFT, LM, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace


def deviation(pipe: Pipeline, utts: Sequence[Utterance], options: Options) -> pd.DataFrame:
    """Compare exact and fast with eager. Each stage gets eager's inputs, so that differences do not add up.

    Returns
    -------
    DataFrame
        One row per way of computing and utterance: `compute`, `utterance` (its index); `same_tokens`, the
        share of tokens before the first that differs; `mel_l1` of the flow from eager's tokens, natural-log
        units; `sound_db` of the waveform that flow and vocoder make of eager's tokens, dB over its log-mel;
        `snr_db` of the waveform that the vocoder makes of eager's mel.
    """
    rows = []
    for number, utt in enumerate(utts):
        right = pipe.synthesise(utt, options=options.but(compute="eager"))
        for way in COMPUTE[1:]:
            other = options.but(compute=way)
            token = pipe.synthesise(utt, options=other, stop_after=LM)["lm/speech_token"]
            from_tokens = pipe.replay(right, FLOW, other)
            from_mel = pipe.replay(right, HIFT, other)
            rows.append(
                {
                    "compute": way,
                    "utterance": number,
                    "same_tokens": _same_share(token.tolist(), right["lm/speech_token"].tolist()),
                    **_difference(from_tokens, right),
                    "snr_db": _snr(from_mel, right),
                }
            )
    return pd.DataFrame(rows)


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """Return the medians of a table of `deviation` over the utterances, one row per way of computing."""
    return table.drop(columns="utterance").groupby("compute").median().reset_index()


def own_deviation(pipe: Pipeline, trace: Trace) -> dict[str, float]:
    """Compare a run with what eager makes of its tokens, and of its mel.

    Returns
    -------
    dict
        `mel_l1`, `sound_db` and `snr_db`, as in `deviation`.

    Raises
    ------
    WorkbenchError
        When the trace lacks a field that a replay needs.
    """
    options = pipe.checkpoint.options.but(**trace.attrs["options"]).but(compute="eager")
    from_tokens = pipe.replay(trace, FLOW, options)
    from_mel = pipe.replay(trace, HIFT, options)
    return _difference(trace, from_tokens) | {"snr_db": _snr(trace, from_mel)}


def _same_share(found: list[int], right: list[int]) -> float:
    """Return the share of tokens before the first that differs, of the longer list."""
    same = 0
    for x, y in zip(found, right, strict=False):
        if x != y:
            break
        same += 1
    return same / max(len(found), len(right))


def _difference(found: Trace, right: Trace) -> dict[str, float]:
    return {"mel_l1": mel_l1(found, right), "sound_db": sound_db(found, right)}


def _snr(found: Trace, right: Trace) -> float:
    """Return the signal-to-noise ratio of a waveform in dB: the noise is what differs from the right one."""
    return measure(right.wav, found.wav)["snr_db"]
