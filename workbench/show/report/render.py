"""`render`: how each kind of object looks in a report and in the view of a widget.

It is a function with one implementation per type (`functools.singledispatch`). Text that comes from outside
is always escaped: `Markup.format` escapes its arguments.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.diagnose.compare.comparison import NO_ERROR, SHOWN_COLUMNS, Comparison
from workbench.diagnose.glitches.glitches import UNITS, Finding, Findings
from workbench.show.player.page import static_player
from workbench.show.player.payload import player_data
from workbench.show.report.figures import describe, image_address, page_image
from workbench.tables import MAX_ROWS, VERDICTS, badge, number_text, table_html
from workbench.trace.trace import Trace

MAX_BAD_ROWS = 12  # of a comparison, before the fold that holds all rows
ANCHOR = "@ANCHOR@"  # in HTML: replaced by the anchor of its section
FINDING_COLUMNS = (
    "kind",
    "start",
    "end",
    "cause",
    "score",
    "threshold",
    "percentile",
    "sample",
    "frame",
    "token",
)
FINDING_HEADINGS = [f"{name} [{UNITS[name]}]" if name in UNITS else name for name in FINDING_COLUMNS]
COPY_BUTTON = Markup(
    '<button class="copy" type="button" data-copy="{}" aria-label="Copy {} as text">copy</button>'
)


@dataclass(frozen=True)
class Rendered:
    """An object as a report shows it.

    Attributes
    ----------
    html : Markup
        Safe: text from outside is escaped.
    text : str
        The same as plain text, for the copy button.
    evidence : list of dict, optional
        The numbers behind it, ready for JSON; None where there are none.
    """

    html: Markup
    text: str
    evidence: list[dict[str, Any]] | None = None


@functools.singledispatch
def render(thing: Any) -> Rendered:
    """Return how an object looks: its static twin, its HTML repr, or its repr."""
    if hasattr(thing, "static"):
        return Rendered(Markup(thing.static()), repr(thing))
    if hasattr(thing, "_repr_html_"):
        html = _scrollable(Markup(thing._repr_html_()))
    else:
        html = Markup("<pre>{}</pre>").format(repr(thing))
    if not hasattr(thing, "to_frame"):
        return Rendered(html, repr(thing))
    table = thing.to_frame()
    return Rendered(html, _text_of(thing, table), _records(table))


@render.register
def _(text: str) -> Rendered:
    paragraphs = [Markup("<p>{}</p>").format(part) for part in text.split("\n\n") if part.strip()]
    return Rendered(Markup("").join(paragraphs), text)


@render.register
def _(table: pd.DataFrame) -> Rendered:
    is_cut = len(table) > MAX_ROWS
    remark = f"the first {MAX_ROWS} of {len(table)} rows; the evidence has all" if is_cut else ""
    html = _scrollable(_table(table.head(MAX_ROWS)), remark)
    return Rendered(html, table.to_string(na_rep=""), _records(table))


@render.register
def _(trace: Trace) -> Rendered:
    """Show the player, where there is a waveform, and the table of fields."""
    table = trace.to_frame()
    is_audible = "hift/wav" in trace and len(trace.wav) > 0
    player = Markup(static_player(player_data([trace]))) if is_audible else Markup()
    line = Markup("<p><b>{}</b></p>").format(repr(trace))
    return Rendered(player + line + _scrollable(_table(table)), _text_of(trace, table), _records(table))


@render.register
def _(comparison: Comparison) -> Rendered:
    """Show the verdict, the first bad rows, and all rows in a fold."""
    remarks = Markup("").join(Markup("<li>{}</li>").format(text) for text in comparison.remarks)
    verdict = Markup(badge(comparison.verdict, VERDICTS[comparison.verdict]))
    html = Markup("<p>{} <b>{}</b></p><ul>{}</ul>").format(verdict, comparison.line, remarks)
    rows = comparison.to_frame()
    bad = rows[~rows["verdict"].isin(NO_ERROR)]
    if len(bad):
        first = bad[_filled(bad)].head(MAX_BAD_ROWS).reset_index(drop=True)
        remark = f"the first {MAX_BAD_ROWS} of {len(bad)} rows" if len(bad) > MAX_BAD_ROWS else ""
        html += _scrollable(_table(first), remark)
    fold = Markup("<details><summary>All {} rows in causal order</summary>{}</details>")
    html += fold.format(len(rows), _scrollable(_table(rows)))
    return Rendered(html, "\n".join([comparison.line, *comparison.remarks]), _records(rows))


def _filled(rows: pd.DataFrame) -> list[str]:
    """Return the columns to show in which at least one row has something."""
    return [name for name in SHOWN_COLUMNS if (rows[name].notna() & (rows[name] != "")).any()]


@render.register
def _(findings: Findings) -> Rendered:
    html = Markup("<p>{}</p>").format(repr(findings))
    if len(findings):
        headings = [Markup("<th scope='col'>{}</th>").format(name) for name in (*FINDING_HEADINGS, "text")]
        rows = [_finding_row(number, finding) for number, finding in enumerate(findings, 1)]
        table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>")
        html += _scrollable(table.format(Markup("").join(headings), Markup("").join(rows)))
    if len(findings.properties):
        html += Markup("<p>Properties</p>") + _scrollable(_table(findings.properties))
    table = findings.to_frame()
    return Rendered(html, _text_of(findings, table), _records(table) + _records(findings.properties))


def _finding_row(number: int, finding: Finding) -> Markup:
    """Return a row with an address of its own and a button that copies the finding as a sentence."""
    anchor = f"{ANCHOR}-{number}"
    cells = [Markup('<a href="#{}">{}</a>').format(anchor, finding.kind)]
    cells += [_number_text(getattr(finding, name)) for name in FINDING_COLUMNS[1:]]
    sentence = (
        f"{finding.kind} at {finding.start:.3f} to {finding.end:.3f} s (frame {finding.frame}, token "
        f"{finding.token}): score {finding.score:.4g}, threshold {finding.threshold:.4g}. {finding.cause}"
    )
    cells.append(COPY_BUTTON.format(sentence, f"finding {number}"))
    row = Markup("")
    for cell in cells:
        is_text = cell is cells[FINDING_COLUMNS.index("cause")]
        row += Markup('<td class="{}">{}</td>').format("long" if is_text else "", cell)
    return Markup('<tr id="{}">{}</tr>').format(anchor, row)


def _number_text(value: str | float) -> str:
    if isinstance(value, float):
        return number_text(value)
    return str(value)


@render.register
def _(figure: Figure) -> Rendered:
    html = Markup(
        '<figure style="margin:0">'
        '<img class="figure" style="max-width:100%;height:auto" alt="{}" src="{}"></figure>'
    )
    return Rendered(html.format(describe(figure), image_address(figure)), describe(figure))


def page_figure(figure: Figure) -> Rendered:
    """Return a figure as a report has it: for a white page and a dark one, and enlarged by a click."""
    return Rendered(page_image(figure), describe(figure))


@render.register
def _(axes: Axes) -> Rendered:
    return render(axes.get_figure(root=True))


@render.register
def _(array: np.ndarray) -> Rendered:
    """Show the figure of an array of Axes; numbers as a table where they have at most two dimensions."""
    if array.size and all(isinstance(item, Axes) for item in array.flat):
        return render(array.flat[0])
    if array.ndim <= 2:
        return render(pd.DataFrame(array))
    return Rendered(Markup("<pre>{}</pre>").format(repr(array)), repr(array))


def _table(table: pd.DataFrame, units: Mapping[str, str] | None = None) -> Markup:
    """Return a table whose text is escaped already."""
    return Markup(table_html(table, units, max_rows=len(table)))


def _scrollable(table: Markup, remark: str = "") -> Markup:
    """Put a table into an element that scrolls by itself, also by keyboard, and a remark below it."""
    html = Markup('<div class="wide" tabindex="0" role="group" aria-label="table">{}</div>').format(table)
    return html + Markup("<p>{}</p>").format(remark) if remark else html


def _text_of(thing: Any, table: pd.DataFrame) -> str:
    """Return the repr, and the table below it unless that is long."""
    if len(table) > MAX_ROWS:
        return repr(thing)
    return f"{thing!r}\n\n{table.to_string(na_rep='')}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries that JSON can hold."""
    has_index = not isinstance(table.index, pd.RangeIndex)
    flat = table.reset_index() if has_index else table.copy(deep=False)
    names = []
    for column in flat.columns:
        names.append(" ".join(map(str, column)) if isinstance(column, tuple) else str(column))
    flat.columns = names
    return [{name: _plain(value) for name, value in row.items()} for row in flat.to_dict("records")]


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; NaN and Inf become their names, since JSON has none."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if value is pd.NA or value is pd.NaT else str(value)
