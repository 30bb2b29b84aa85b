"""What a recogniser and DNSMOS hear of quantised weights: complete runs, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.diagnose.experiments.judges import Judge, dnsmos, hear, why_not_heard, words_to_say
from workbench.diagnose.quantisation.measure import References
from workbench.errors import WorkbenchError
from workbench.speech.config import FLOW
from workbench.trace.trace import Trace

NOT_JUDGED = "Words and naturalness were not judged"
MIN_TEXTS = 10  # resampling fewer says nothing about other texts
DRAWS = 2000  # of texts, for an interval
INTERVAL = (2.5, 97.5)  # percent


class _Judged(NamedTuple):
    wrong: int  # words
    words: int
    quality: float  # of DNSMOS; NaN where it is not installed, or where there is nothing to hear


@dataclass(frozen=True)
class HeardChange:
    """What a recogniser and DNSMOS hear before and after weights were quantised.

    Attributes
    ----------
    rows : DataFrame
        Two rows a run: `text`, `seed`; `tokens`, "own" where the quantised LM drew them, as in use, and
        "same" where they are the reference's, so that the sound alone changes; `words`; `wrong_before` and
        `wrong`, words replaced, left out or added; `dnsmos_before` and `dnsmos`, NaN where speechmos is
        missing. Of a run without a sound that can be judged, all words are wrong.
    """

    rows: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return one row for each kind of tokens.

        Returns
        -------
        DataFrame
            `tokens`, `texts`, `runs`, `words`; `wer_before`, `wer` (percent of all words), `change` (points)
            and its interval `low` to `high`; `dnsmos_before`, `dnsmos`, `dnsmos_low` and `dnsmos_high` of its
            change. An interval holds 95 % of the changes when texts are drawn anew with replacement; NaN for
            fewer than 10 texts. It says what other texts would give, not what another recogniser would.
        """
        return pd.DataFrame([self._summary(tokens) for tokens in ("own", "same")])

    @property
    def line(self) -> str:
        """The answer in one line."""
        own, same = self.table().to_dict("records")
        parts = [
            f"Words misheard of {own['words']}: {_words(own)} with own tokens, {_words(same)} with the same"
        ]
        if np.isnan(own["dnsmos"]):
            parts.append("naturalness was not judged: it needs speechmos")
        else:
            parts.append(f"DNSMOS {own['dnsmos_before']:.2f} -> {own['dnsmos']:.2f}")
        if own["texts"] < MIN_TEXTS:
            parts.append(f"{own['texts']} texts are too few to tell a change from chance")
        return "; ".join(parts)

    def _summary(self, tokens: str) -> dict[str, object]:
        rows = self.rows[self.rows["tokens"] == tokens]
        sums = rows.groupby("text", sort=False)[["words", "wrong_before", "wrong"]].sum()
        # Runs of one text are alike: a text is drawn with all of its runs.
        better = (rows["dnsmos"] - rows["dnsmos_before"]).groupby(rows["text"], sort=False)
        better = better.agg(["sum", "count"])
        found = {
            "tokens": tokens,
            "texts": len(sums),
            "runs": len(rows),
            "words": int(sums["words"].sum()),
            "wer_before": 100 * sums["wrong_before"].sum() / sums["words"].sum(),
            "wer": 100 * sums["wrong"].sum() / sums["words"].sum(),
        }
        more = sums["wrong"] - sums["wrong_before"]
        low, high = _interval(more, sums["words"])
        found |= {"change": found["wer"] - found["wer_before"], "low": 100 * low, "high": 100 * high}
        low, high = _interval(better["sum"], better["count"])
        means = rows[["dnsmos_before", "dnsmos"]].dropna().mean().to_dict()
        return found | means | {"dnsmos_low": low, "dnsmos_high": high}


def judged_before(references: References, judge: Judge) -> list[_Judged]:
    """Judge the runs with the weights as they are; raise where one cannot be judged."""
    return [_judged(run, run, judge) for run in references.runs]


def heard_change(
    references: References, weights: str, judge: Judge, before: Sequence[_Judged] | None = None
) -> HeardChange:
    """Judge the runs again with quantised weights.

    Parameters
    ----------
    references : References
    weights : str
        As `Options.weights`.
    judge : callable
        Of samples and rate, that of `judge_of`.
    before : sequence, optional
        That of `judged_before`.
    """
    pipe, options = references.pipe, references.options
    before = judged_before(references, judge) if before is None else before
    rows = []
    with references.quantised(weights):
        for run, (utt, seed), right in zip(references.runs, references.inputs, before, strict=True):
            ways = {
                "own": lambda utt=utt, seed=seed: pipe.synthesise(utt, seed=seed, options=options),
                "same": lambda run=run: pipe.replay(run, FLOW, options),
            }
            for tokens, make in ways.items():
                try:
                    sound = make()
                except WorkbenchError:  # no token, or a mel of NaN
                    sound = None
                found = _judged(sound, run, judge)
                rows.append(
                    {
                        "text": utt.normalised,
                        "seed": seed,
                        "tokens": tokens,
                        "words": right.words,
                        "wrong_before": right.wrong,
                        "wrong": found.wrong,
                        "dnsmos_before": right.quality,
                        "dnsmos": found.quality,
                    }
                )
    return HeardChange(pd.DataFrame(rows))


def _judged(sound: Trace | None, run: Trace, judge: Judge) -> _Judged:
    """Judge a sound by the text of a run; of a sound that nobody can judge, all words are wrong."""
    if sound is None or why_not_heard(sound.wav, sound.sample_rate):
        words = len(words_to_say(run.attrs["text"])[0])
        return _Judged(words, words, float("nan"))
    found = hear(sound, run, judge=judge)
    quality = dnsmos(sound) if find_spec("speechmos") else float("nan")
    return _Judged(found.wrong, found.words, quality)


def _interval(values: pd.Series, weights: pd.Series) -> tuple[float, float]:
    """Return between what the weighted mean lies in 95 % of resamplings; NaN where that would say nothing."""
    if len(values) < MIN_TEXTS or not weights.all():
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    means = values.to_numpy()[drawn].sum(1) / weights.to_numpy()[drawn].sum(1)
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)


def _words(found: dict) -> str:
    text = f"{found['wer_before']:.1f} % -> {found['wer']:.1f} %"
    if found["texts"] < MIN_TEXTS:
        return text
    return f"{text} ({found['low']:+.1f} to {found['high']:+.1f} points)"
