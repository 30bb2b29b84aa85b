"""`Comparison`: the result of `compare`, and how it shows itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import torch

from workbench.diagnose.compare.distance import join_places, place_of
from workbench.diagnose.compare.transitions import transitions
from workbench.errors import WorkbenchError
from workbench.tables import VERDICTS as VERDICT_COLORS
from workbench.tables import badge, folded, table_html
from workbench.trace.trace import Trace

# From good to bad. A comparison is as bad as its worst row.
# MATCH           equal to the last bit
# ROUNDING        no farther apart than rounding explains
# ALIKE           the statistics agree, and there are no tensors to compare
# MISSING         not on both sides
# NOT COMPARABLE  far apart, as expected: the runs were given other speech tokens or begin elsewhere
# DIVERGED        farther apart than rounding explains
# SHAPE           of different shapes
# NONFINITE       NaN or Inf in the candidate
VERDICTS = ("MATCH", "ROUNDING", "ALIKE", "MISSING", "NOT COMPARABLE", "DIVERGED", "SHAPE", "NONFINITE")
EQUAL = ("MATCH", "ROUNDING")  # verdicts that prove the candidate right
MAX_ROWS = 12  # of the table in a cell or a shell; the whole table is folded, or printed on request
SHOWN_COLUMNS = (  # of the rows that a cell shows unfolded
    *("field", "index", "verdict", "rel_l2", "allowed", "added", "of_format", "snr_db"),
    *("worst", "seconds", "note"),
)
NO_ERROR = ("MATCH", "ROUNDING", "ALIKE", "MISSING")  # verdicts that show no error


@dataclass(frozen=True)
class Cause:
    """A place where the candidate made an error of its own."""

    name: str  # such as "flow/velocity[3]"
    added: float  # relative L2 to what our model returns for the same inputs
    allowed: float  # relative L2 that rounding, or a format of weights, explains
    of_format: float = 0.0  # relative L2 that the formats of the candidate's weights change

    def __str__(self) -> str:
        what = "its format of weights" if self.of_format else "rounding"
        return f"{self.name} (adds {self.added:.2g} on its own inputs, {what} explains {self.allowed:.2g})"


class Comparison:
    """The result of `compare`: a verdict, its reasons, and one row for each field and step.

    Attributes
    ----------
    verdict : str
        The worst verdict of all rows, one of `VERDICTS`.
    rows : DataFrame
        In causal order; see `to_frame`.
    input_differences : list of str
        Differences in what the two runs were given: text, tokens, options, weights.
    hints : list of str
        Values that no speech has, on either side; what the difference looks like (transposed, shifted,
        scaled); different estimators.
    causes : list of Cause or None
        Places where the candidate adds an error of its own, in causal order. None where nobody looked: that
        needs a pipeline of the checkpoint that made the reference.
    unchecked : dict of str to str
        Results that could not be recomputed, and why, such as an input that was not recorded.
    objection : str
        Why no cause was looked for, such as a reference that the checkpoint does not give; usually empty.

    Examples
    --------
    >>> louder = wb.Trace(dict(trace) | {"flow/mel": trace["flow/mel"] + 0.1}, trace.attrs)
    >>> found = wb.compare(trace, louder, pipe)
    >>> found.verdict, found.ok
    ('DIVERGED', False)
    >>> [cause.name for cause in found.causes][0]
    'flow/mel'
    >>> found.to_frame().query("verdict == 'DIVERGED'")["field"].tolist()
    ['flow/mel']
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        input_differences: list[str],
        hints: list[str],
        causes: list[Cause] | None,
        unchecked: Mapping[str, str],
        objection: str = "",
    ) -> None:
        self.rows = rows
        self.input_differences = input_differences
        self.hints = hints
        self.causes = causes
        self.unchecked = unchecked
        self.objection = objection
        verdict = max(rows["verdict"], key=VERDICTS.index, default="MISSING")
        # An error that the candidate adds may be too small to show beside the reference.
        self.verdict = "DIVERGED" if causes and verdict in NO_ERROR else verdict

    @property
    def ok(self) -> bool:
        """Whether every field is there, within rounding, and no error was added."""
        return self.verdict in EQUAL and not self.causes

    def assert_ok(self) -> None:
        """Raise a WorkbenchError with the verdict line unless `ok`."""
        if not self.ok:
            raise WorkbenchError(self.line)

    @property
    def line(self) -> str:
        """The verdict, the first difference and its cause in one line."""
        bad = self.rows[~self.rows["verdict"].isin(NO_ERROR)]
        parts = [self.verdict]
        if self.objection:
            parts.append(self.objection)
        if len(bad):
            parts.append(f"the runs part at {_describe(bad.iloc[0])}")
        if self.causes:
            parts.append(f"first cause: {self.causes[0]}")
        elif len(bad) and self.causes is None and not self.objection:
            parts.append(self._guess_cause(bad.iloc[0]))
        elif len(bad) and self.causes is not None:
            parts.append(self._inherited(bad.iloc[0]))
        if self.unchecked:
            parts.append(f"not checked on their own inputs: {join_places(self.unchecked)}")
        counts = self.rows["verdict"].value_counts()
        if "ALIKE" in counts:
            parts.append(f"{counts['ALIKE']} rows have statistics that are alike, which proves no equality")
        if self.verdict == "MISSING":
            both = self.rows.loc[self.rows["verdict"].isin(EQUAL), "field"].unique()
            if len(both):
                parts.append(f"what both sides have agrees: {', '.join(both)}")
            elif "ALIKE" not in counts:
                parts.append("the two have no field in common, so nothing was compared")
        if "MISSING" in counts:
            parts.append(f"{counts['MISSING']} rows missing on one side")
        return "; ".join(parts)

    def _inherited(self, row: pd.Series) -> str:
        """Say what is known where the runs part and no result that was recomputed is wrong."""
        place = place_of(row)
        # Entries of a loop are checked one by one, but a whole field may be unchecked as well.
        reason = self.unchecked.get(place, self.unchecked.get(row["field"], self.unchecked.get("everything")))
        if reason is not None:
            return f"whether {place} is wrong on its own inputs could not be checked: {reason}"
        why = "inputs or options differ" if self.input_differences else "they differ before what was recorded"
        checked = "no result of the candidate" if not self.unchecked else "no result that could be checked"
        return f"{checked} is wrong for what it was given: {why}"

    def _guess_cause(self, row: pd.Series) -> str:
        """Describe what the inputs of the first bad row show about its cause, without a checkpoint."""
        inputs = _inputs_of(row)
        if not inputs:
            return f"cause unknown (it follows from nothing that was recorded); {_advice(row)} to find it"
        # Collect the verdicts of each input up to this row.
        before = self.rows.loc[: row.name]
        verdicts = {name: set(before.loc[before["field"] == name, "verdict"]) for name in inputs}
        names = ", ".join(inputs)
        if all(found and found <= set(EQUAL) for found in verdicts.values()):
            return f"it is made there or in what the runs did not record: its input {names} agrees"
        if all(found and found <= {*EQUAL, "ALIKE"} for found in verdicts.values()):
            return f"the statistics of its input {names} are alike; record tensors to find the cause"
        lacking = [name for name, found in verdicts.items() if not found or "MISSING" in found]
        why = f"{', '.join(lacking)} is not on both sides" if lacking else "its inputs differ as well"
        return f"cause unknown ({why}); {_advice(row)} to find it"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each field, knot, step or draw.

        Returns
        -------
        DataFrame
            `field`, `index`, `verdict`, `rel_l2`, `allowed` (relative L2 that rounding explains: measured
            where that decides, else the least that is always allowed or the most that was measured before),
            `added` and `added_allowed` (error added by the candidate on its own inputs, and what is called no
            error of it), `of_format` (what the formats of its weights change there), `max_abs`, `rms`,
            `snr_db`, `cosine`, `norm_ratio`, `nonfinite`, `prompt` and `target` (rms error by region),
            `worst` (place of the largest error), `seconds` (its time in the target's audio), `note`.
        """
        return self.rows.copy()

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict, its reasons and all rows, as JSON can hold them."""
        return {
            "verdict": self.verdict,
            "line": self.line,
            "remarks": self.remarks,
            "causes": None if self.causes is None else [str(cause) for cause in self.causes],
            "unchecked": dict(self.unchecked),
            "rows": json.loads(self.rows.to_json(orient="records", double_precision=15)),  # its maximum
        }

    @property
    def remarks(self) -> list[str]:
        """What to know beside the line: input differences, hints, and where errors are added."""
        added = [f"adds an error: {text}" for text in self._causes_by_field()]
        reasons: dict[str, list[str]] = {}
        for place, reason in self.unchecked.items():
            reasons.setdefault(reason, []).append(place)
        unchecked = [f"not checked: {join_places(places)}: {reason}" for reason, places in reasons.items()]
        return [*self.input_differences, *self.hints, *added, *unchecked]

    @property
    def wrong_rows(self) -> pd.DataFrame:
        """The rows that show an error, or where the candidate adds one."""
        shows_error = ~self.rows["verdict"].isin(NO_ERROR)
        adds_error = self.rows["added"] > self.rows["added_allowed"]
        return self.rows[shows_error | adds_error]

    def _causes_by_field(self) -> list[str]:
        """Name the first cause in every field, and how many more the field has."""
        grouped: dict[str, list[Cause]] = {}
        for cause in self.causes or ():
            field = cause.name.partition("[")[0]
            grouped.setdefault(field, []).append(cause)
        texts = []
        for first, *rest in grouped.values():
            texts.append(f"{first}, and at {len(rest)} more places" if rest else str(first))
        return texts

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(text)}</li>" for text in self.remarks)

        wrong = self.wrong_rows
        columns = [name for name in SHOWN_COLUMNS if wrong[name].notna().any()]
        shown = table_html(wrong[columns].reset_index(drop=True), max_rows=MAX_ROWS) if len(wrong) else ""
        every = folded(f"all {len(self.rows)} rows", table_html(self.rows, max_rows=len(self.rows)))
        verdict = badge(self.verdict, VERDICT_COLORS[self.verdict])
        rest = self.line.removeprefix(self.verdict).removeprefix("; ")
        return f"<div>{verdict} <b>{escape(rest)}</b><ul>{items}</ul>{shown}{every}</div>"


def _describe(row: pd.Series) -> str:
    """Return the place of a row with its verdict and error, such as "flow/x[1] (SHAPE, (3,) and (4,))"."""
    error = row["note"] if pd.isna(row["rel_l2"]) else f"relative L2 {row['rel_l2']:.2g}"
    details = [row["verdict"], error] if error else [row["verdict"]]
    return f"{place_of(row)} ({', '.join(details)})"


def _inputs_of(row: pd.Series) -> tuple[str, ...]:
    """Return the fields from which the result of a row follows; empty where it follows from none."""
    one_step = transitions(Trace({"flow/t": torch.zeros(2)}, {}))  # a run of one step has every kind
    leading_here = [step for step in one_step if row["field"] in step.outputs]
    if not leading_here:
        return ()
    # The first transition that leads to flow/x gives knot 0; later knots follow from velocities.
    is_start = pd.notna(row["index"]) and row["index"] == 0
    inputs = leading_here[0 if is_start else -1].inputs
    return tuple(name for name in inputs if name != row["field"])  # not the knot before


def _advice(row: pd.Series) -> str:
    """Return what to do to find the cause: with statistics alone a pipeline would not help."""
    return "record tensors" if pd.isna(row["rel_l2"]) else "pass a Pipeline of the checkpoint"
