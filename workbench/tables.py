"""Tables as a notebook, a report and the book show them: units, rounded numbers, colours for verdicts.

The style stands in each cell, since JupyterLab removes style elements from a notebook that it does not trust.
A verdict has a ground of its own, which is readable on a white page, on a dark one and on paper.
"""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError

DIGITS = 3  # significant ones of a number
LONG_CELL = 40  # characters from which a text is wrapped
MAX_ROWS = 200  # shown; a page with more is slow, and nobody reads them
UNITS = {  # of columns that mean the same in every table; a table's own are an argument
    "mel_l1": "ln",
    "worst_100ms": "ln",
    "sound_db": "dB",
    "snr_db": "dB",
    "f0_change": "Hz",
    "flow_s": "s",
}
# The colours of Okabe and Ito, darkened to a contrast of 4.5 with white letters.
GOOD, CLOSE, BAD, ODD, BROKEN, UNKNOWN = "#00785a", "#0072b2", "#b34a00", "#8a5a00", "#a3326f", "#666666"
VERDICTS = {
    "MATCH": GOOD,
    "ROUNDING": GOOD,
    "ALIKE": CLOSE,
    "MISSING": UNKNOWN,
    "NOT COMPARABLE": UNKNOWN,
    "DIVERGED": BAD,
    "SHAPE": ODD,
    "NONFINITE": BROKEN,
    "confirmed": GOOD,  # of a claim
    "refuted": BAD,
    "open": UNKNOWN,
}
WRAPPED = "white-space:normal;overflow-wrap:anywhere;min-width:14em;max-width:34em;"


class Table:
    """The result of `table`: a DataFrame as a cell shows it.

    Attributes
    ----------
    frame : DataFrame
    units : dict of str to str
        Unit by column.

    Examples
    --------
    >>> html = wb.table(wb.find_glitches(trace).to_frame(), {"start": "s"})._repr_html_()
    >>> "start [s]" in html
    True
    """

    def __init__(self, frame: pd.DataFrame, units: Mapping[str, str]) -> None:
        self.frame = frame
        self.units = dict(units)

    def to_frame(self) -> pd.DataFrame:
        """Return a copy of the table with all its digits."""
        return self.frame.copy()

    def __repr__(self) -> str:
        return self.frame.to_string(na_rep="", float_format=number_text)

    def _repr_html_(self) -> str:
        return table_html(self.frame, self.units)


def table(frame: pd.DataFrame, units: Mapping[str, str] | None = None) -> Table:
    """Show a table with units, rounded numbers, wrapped text and colours for verdicts.

    Parameters
    ----------
    frame : DataFrame
        Of any columns. The metrics of an experiment have their unit in the heading.
    units : dict of str to str, optional
        Units of more columns, such as `{"start": "s"}`.

    Returns
    -------
    Table
        For the end of a cell; `to_frame()` has the numbers with all digits.

    Raises
    ------
    WorkbenchError
        When it is no DataFrame.

    Examples
    --------
    >>> wb.table(wb.compare(trace, trace).to_frame().head(1)[["field", "verdict", "rel_l2"]])
               field verdict rel_l2
    0  in/text_token   MATCH      0
    """
    if not isinstance(frame, pd.DataFrame):
        raise WorkbenchError(
            f"a {type(frame).__name__} is no table; expected a DataFrame, as to_frame() gives"
        )
    return Table(frame, units or {})


def table_html(frame: pd.DataFrame, units: Mapping[str, str] | None = None, max_rows: int = MAX_ROWS) -> str:
    """Return a table as HTML: text escaped and wrapped, numbers rounded and right-aligned, verdicts coloured.

    Parameters
    ----------
    frame : DataFrame
        An index that only counts is not shown.
    units : dict of str to str, optional
        Units of columns, beside `UNITS`.
    max_rows : int
        A remark says how many more there are.
    """
    repeated = set(frame.index.names) & set(frame.columns)  # such an index is a column already
    has_index = not isinstance(frame.index, pd.RangeIndex) and not repeated
    shown = frame.head(max_rows)
    shown = shown.reset_index() if has_index else shown
    names = list(shown.columns)
    for k, name in enumerate(frame.index.names if has_index else ()):
        if name is None:
            names[k] = ""  # pandas says "index" and "level_0"
    numeric = [_is_numeric(shown.iloc[:, k]) for k in range(len(names))]
    all_units = UNITS | dict(units or {})
    headings = [_heading(name, right, all_units) for name, right in zip(names, numeric, strict=True)]
    rows = []
    for values in shown.itertuples(index=False, name=None):
        cells = [_cell(value, right) for value, right in zip(values, numeric, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    html = (
        f'<div class="wb-table" style="overflow-x:auto"><table><thead><tr>{"".join(headings)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    if len(frame) > max_rows:
        html += f"<p>the first {max_rows} of {len(frame)} rows</p>"
    return html


def folded(summary: str, html: str, is_open: bool = False) -> str:
    """Return HTML under a summary that a click opens; it needs no JavaScript."""
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{escape(summary)}</summary>{html}</details>"


def number_text(value: float) -> str:
    """Return a number with three significant digits; whole numbers complete; nothing for NaN."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    if 100 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{DIGITS}g}"


def badge(text: str, color: str) -> str:
    """Return a word on a coloured ground."""
    style = f"background-color:{color};color:#fff;padding:1px 6px;border-radius:3px;white-space:nowrap;"
    style += "print-color-adjust:exact"  # white letters need their ground on paper
    return f'<span style="{style}">{escape(text)}</span>'


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _heading(name: Any, right: bool, units: Mapping[str, str]) -> str:
    text = " ".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)
    unit = units.get(text)
    label = escape(text) + (f" [{unit}]" if unit else "")
    if not text:
        return "<td></td>"  # a heading without a word would be one to a screen reader
    return f'<th scope="col" style="text-align:{"right" if right else "left"}">{label}</th>'


def _cell(value: Any, right: bool) -> str:
    text = _text(value)
    align = "right" if right else "left"
    if text in VERDICTS:
        return f'<td style="text-align:left">{badge(text, VERDICTS[text])}</td>'
    if len(text) > LONG_CELL:
        return f'<td class="long" style="text-align:left;{WRAPPED}">{escape(text)}</td>'
    kind = ' class="number"' if right else ""  # not broken on paper, where other cells are
    return f'<td{kind} style="text-align:{align};white-space:nowrap">{escape(text)}</td>'


def _text(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return number_text(float(value))
    return "" if value is None or value is pd.NA or value is pd.NaT else str(value)
