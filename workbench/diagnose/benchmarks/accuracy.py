"""How far the other ways of computing are from eager. `workbench bench deviation` prints it."""

from collections.abc import Sequence

import pandas as pd

from workbench.diagnose.compare.distance import measure
from workbench.diagnose.experiments.metrics import mel_l1, sound_db
from workbench.speech.config import COMPUTE, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace


def deviation(pipe: Pipeline, utts: Sequence[Utterance], options: Options) -> pd.DataFrame:
    """Compare the other ways of computing with eager, each stage given what eager gave it.

    Returns
    -------
    DataFrame
        By way and utterance: `same_tokens`, the share of tokens before the LM's runs part; `mel_l1` of the
        flow from eager's tokens, in natural units; `sound_db` of flow and vocoder from there; `snr_db` of
        the waveform that the vocoder makes of eager's mel.
    """
    rows = []
    for number, utt in enumerate(utts):
        right = pipe.synthesise(utt, options=options.but(compute="eager"))
        for way in COMPUTE[1:]:
            other = options.but(compute=way)
            token = pipe.synthesise(utt, options=other, stop_after="lm")["lm/speech_token"]
            flow, vocoder = pipe.replay(right, "flow", other), pipe.replay(right, "hift", other)
            same = _same(token.tolist(), right["lm/speech_token"].tolist())
            row = {"compute": way, "utterance": number, "same_tokens": same}
            rows.append(row | _apart(flow, right) | {"snr_db": _snr(vocoder, right)})
    return pd.DataFrame(rows)


def own_deviation(pipe: Pipeline, trace: Trace) -> dict[str, float]:
    """Compare a run with what eager makes of its tokens, and of its mel.

    Returns
    -------
    dict
        `mel_l1`, `sound_db` and `snr_db`, as in `deviation`.

    Raises
    ------
    WorkbenchError
        When the run recorded too little to be taken up again.
    """
    options = pipe.checkpoint.options.but(**trace.attrs["options"]).but(compute="eager")
    flow, vocoder = pipe.replay(trace, "flow", options), pipe.replay(trace, "hift", options)
    return _apart(trace, flow) | {"snr_db": _snr(trace, vocoder)}


def _same(found: list[int], right: list[int]) -> float:
    """Share of the longer one's tokens before the two part."""
    pairs = zip(found, right, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(right)))
    return same / max(len(found), len(right))


def _apart(found: Trace, right: Trace) -> dict[str, float]:
    return {"mel_l1": mel_l1(found, right), "sound_db": sound_db(found, right)}


def _snr(found: Trace, right: Trace) -> float:
    return measure(right.wav, found.wav)["snr_db"]
