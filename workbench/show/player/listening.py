"""Results of the player's blind test: read from its file, counted again, and shown in reports."""

import json
import math
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.files import check_regular
from workbench.tables import folded, table_html

KIND, VERSION = "workbench listening test", 1  # as blind.js writes them
MAX_BYTES = 1_000_000  # of a file; a test of 1,000 trials has some 40 kB
MAX_TRIALS = 1000
SIGNIFICANT = 0.05  # the usual level
LOUDNESS_STEP = 0.5  # LU between candidates that may be heard as loudness alone, as in blind.js


@dataclass(frozen=True)
class ListeningTest:
    """A blind test: in every trial the listener said which candidate X is.

    Attributes
    ----------
    candidates : dict of str to str
        Letter and name of the sounds among which X was drawn.
    identities : dict of str to str
        Letter and identity of the waveform, `trace_id`, so that a reader can tell which sounds were heard.
    planned : int
        Trials that were fixed beforehand.
    trials : list of (str, str)
        Which X was, and the answer.
    ended : str
        When, in ISO 8601.
    loudness_step : float or None
        LU between the loudest and the least loud candidate as they were heard; None where it is not known.

    Examples
    --------
    >>> letters = {"A": "10 steps", "B": "1 step"}
    >>> test = wb.ListeningTest(letters, {}, planned=5, trials=[("A", "A"), ("B", "B")])
    >>> test.right, round(test.p, 3)
    (2, 0.25)
    """

    candidates: dict[str, str]
    identities: dict[str, str]
    planned: int
    trials: list[tuple[str, str]]
    ended: str = ""
    loudness_step: float | None = None

    @property
    def right(self) -> int:
        """Number of right answers."""
        return sum(x == answer for x, answer in self.trials)

    @property
    def chance(self) -> float:
        """Probability of a right guess."""
        return 1 / len(self.candidates)

    @property
    def p(self) -> float:
        """Probability of at least so many right answers by guessing; 1 without a trial."""
        from scipy.stats import binomtest  # slow to import

        if not self.trials:
            return 1.0
        return float(binomtest(self.right, len(self.trials), self.chance, alternative="greater").pvalue)

    @property
    def line(self) -> str:
        """The result in a sentence or two."""
        count = len(self.trials)
        text = f"{self.right} of {count} right; guessing reaches that with p = {self.p:.3g}."
        if count < self.planned:
            return f"{text} Ended after {count} of {self.planned} planned trials, so p is too small."
        if self.p < SIGNIFICANT:
            return f"{text} A difference was heard."
        return f"{text} No difference was shown, which is no proof that there is none."

    @property
    def remarks(self) -> list[str]:
        """What the result does not tell."""
        remarks = ["One listener at one sitting; the file states the answers and cannot prove who gave them."]
        if self.loudness_step is None:
            remarks.append("Not known whether the candidates were equally loud.")
        elif self.loudness_step >= LOUDNESS_STEP:
            remarks.append(f"Loudness differed by {self.loudness_step:.1f} LU and may have given X away.")
        return remarks

    def to_frame(self) -> pd.DataFrame:
        """Return a row a trial: X, the answer, and whether it is right."""
        rows = [(x, answer, x == answer) for x, answer in self.trials]
        return pd.DataFrame(
            rows, columns=["X", "answer", "right"], index=range(1, len(rows) + 1)
        ).rename_axis("trial")

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        return {
            "candidates": self.candidates,
            "identities": self.identities,
            "planned": self.planned,
            "trials": [list(trial) for trial in self.trials],
            "right": self.right,
            "chance": self.chance,
            "p": self.p,
            "ended": self.ended,
            "loudness_step": self.loudness_step,
        }

    def _repr_html_(self) -> str:
        names = "; ".join(f"{letter} \u00b7 {name}" for letter, name in self.candidates.items())
        items = "".join(f"<li>{escape(remark)}</li>" for remark in self.remarks)
        title = f"Blind test, X among {len(self.candidates)}"
        return (
            f"<p><b>{title}:</b> {escape(self.line)}</p><p>{escape(names)}. {escape(self.ended)}</p>"
            f"<ul>{items}</ul>{folded(f'{len(self.trials)} trials', table_html(self.to_frame()))}"
        )

    def __repr__(self) -> str:
        return f"ListeningTest({self.right} of {len(self.trials)} right, p={self.p:.3g})"


def listening_test(source: str | os.PathLike | dict) -> ListeningTest:
    """Return the result of a blind test that the player saved; right answers and p are counted again.

    Parameters
    ----------
    source : path or dict
        The file that the button "result" saves, or an entry of `Player.listening`.

    Returns
    -------
    ListeningTest
        Add it to a report: `wb.Report("Heard?").add(wb.listening_test("listening-test.json"))`.

    Raises
    ------
    WorkbenchError
        When the file cannot be read or is no result of a blind test.

    Examples
    --------
    >>> wb.player(trace, 0.5 * trace.wav, sample_rate=24_000).listening  # filled by the page
    []
    >>> sides = [{"letter": "A", "name": "mine"}, {"letter": "B", "name": "theirs"}]
    >>> trials = [{"x": "A", "answer": "A"}, {"x": "B", "answer": "A"}]
    >>> head = {"kind": "workbench listening test", "version": 1, "planned": 2}
    >>> wb.listening_test(head | {"candidates": sides, "trials": trials})
    ListeningTest(1 of 2 right, p=0.75)
    """
    data, name = (source, "the result") if isinstance(source, dict) else (_read(Path(source)), str(source))
    try:
        return _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WorkbenchError(
            f"{name} is no result of a blind test ({type(error).__name__}: {str(error)[:200]}); "
            "expected the file that the player's button 'result' saves"
        ) from None


def _read(path: Path) -> Any:
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise WorkbenchError(
                f"{path} has more than {MAX_BYTES:,} bytes; a result of a blind test is far smaller"
            )
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"{path} cannot be read as a result of a blind test ({type(error).__name__}); "
            "expected the JSON file that the player saves"
        ) from None


def _parse(data: Any) -> ListeningTest:
    """Return a result; raise one of Python's errors for anything else."""
    if (data["kind"], data["version"]) != (KIND, VERSION):
        raise ValueError(f"kind {data['kind']!r}, version {data['version']!r}")
    candidates = {str(each["letter"]): str(each["name"])[:500] for each in data["candidates"]}
    identities = {str(each["letter"]): str(each["id"])[:64] for each in data["candidates"] if "id" in each}
    trials = [(str(trial["x"]), str(trial["answer"])) for trial in data["trials"]]
    if not 2 <= len(candidates) == len(data["candidates"]) <= 26:
        raise ValueError(f"{len(data['candidates'])} candidates; expected 2 to 26 with letters of their own")
    planned = int(data["planned"])
    if len(trials) > MAX_TRIALS or not 1 <= planned <= MAX_TRIALS:
        raise ValueError(f"{len(trials)} trials, {planned} planned; expected {MAX_TRIALS} at most")
    strangers = {letter for trial in trials for letter in trial} - set(candidates)
    if strangers:
        raise ValueError(f"trials name {', '.join(sorted(strangers))[:100]}, which are no candidates")
    return ListeningTest(
        candidates,
        identities,
        planned,
        trials,
        str(data.get("ended", ""))[:40],
        _loudness_step(data["candidates"]),
    )


def _loudness_step(candidates: list[dict]) -> float | None:
    if any(each.get("lufs") is None for each in candidates):
        return None
    levels = [float(each["lufs"]) + float(each.get("gain_db", 0)) for each in candidates]
    if not all(math.isfinite(level) for level in levels):
        raise ValueError("a loudness that is not finite")
    return max(levels) - min(levels)
