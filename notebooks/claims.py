"""Claims about a model, and the verdict of an experiment on each.

The claims are a table. A notebook settles each claim with its measurement and the rule that decides it, and
`Claims.to_frame` refuses to give a result while a claim is left out.
"""

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.tables import VERDICTS, badge

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"
COLUMNS = ("id", "claim", "line", "measured")


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim.

    Attributes
    ----------
    claim : str
        The claim in a sentence.
    experiment : str
        What was done to test it.
    measured : str
        The numbers that came out.
    holds : bool or None
        None if the numbers do not decide it.
    next_run : str
        The experiment that would decide it; empty if it is decided.
    """

    claim: str
    experiment: str
    measured: str
    holds: bool | None
    next_run: str = ""

    @property
    def state(self) -> str:
        """The verdict in one word."""
        if self.holds is None:
            return OPEN
        return CONFIRMED if self.holds else REFUTED

    @property
    def reason(self) -> str:
        """The experiment, the numbers that came out and, of an open claim, what would decide it."""
        return f"{self.experiment}: {self.measured}" + (
            f". To decide it: {self.next_run}" if self.next_run else ""
        )

    def __repr__(self) -> str:
        return f"{self.state}: {self.claim} {self.reason}"

    def _repr_html_(self) -> str:
        lines = (self.claim, self.reason)
        return f"<div>{badge(self.state, VERDICTS[self.state])} {'<br>'.join(map(escape, lines))}</div>"


class Claims:
    """Claims by id, and the verdicts given so far.

    Parameters
    ----------
    table : DataFrame
        Columns `id`, `claim`, `line` (where it was made) and `measured` (the evidence it rested on).

    Raises
    ------
    WorkbenchError
        When a column is missing, or an id occurs twice.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        if missing := [name for name in COLUMNS if name not in table]:
            raise WorkbenchError(f"the claims lack {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        if twice := list(table.loc[table["id"].duplicated(), "id"]):
            raise WorkbenchError(f"claims that stand twice: {', '.join(map(str, twice))}")
        self.table = table.set_index("id")
        self.verdicts: dict[str, Verdict] = {}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Claims":
        """Read claims from a CSV file.

        Raises
        ------
        WorkbenchError
            When the file cannot be read, a column is missing, or an id occurs twice.
        """
        try:
            table = pd.read_csv(path, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise WorkbenchError(
                f"{Path(path).name} is no table of claims that can be read: {error}"
            ) from error
        return cls(table)

    def settle(
        self, name: str, holds: bool | None, experiment: str, measured: str, next_run: str = ""
    ) -> Verdict:
        """Record the verdict on a claim.

        Parameters
        ----------
        name : str
            The claim's id.
        holds : bool or None
            True if the claim holds. None leaves it open; then `next_run` says what would decide it.
        experiment, measured, next_run : str
            As in `Verdict`.

        Raises
        ------
        WorkbenchError
            When there is no such claim, or it is left open and `next_run` is empty.
        """
        if name not in self.table.index:
            raise WorkbenchError(f"{name!r} is no claim; expected one of {', '.join(self.table.index)}")
        if holds is None and not next_run:
            raise WorkbenchError(f"{name} is left open; say what to run next")
        decided = None if holds is None else bool(holds)
        verdict = Verdict(self.table.loc[name, "claim"], experiment, measured, decided, next_run)
        self.verdicts[name] = verdict
        return verdict

    def to_frame(self) -> pd.DataFrame:
        """Return one row per claim, in the order of the table: verdict, claim, reason.

        Raises
        ------
        WorkbenchError
            When a claim has no verdict yet.
        """
        if missing := [name for name in self.table.index if name not in self.verdicts]:
            raise WorkbenchError(f"claims without a verdict: {', '.join(missing)}")
        found = (self.verdicts[name] for name in self.table.index)
        rows = [(v.state, v.claim, v.reason) for v in found]
        columns = ["verdict", "claim", "reason"]
        return pd.DataFrame(rows, columns=columns, index=self.table.index)
