"""One HTML file with nothing outside it: what was seen and heard, for somebody who has no kernel."""

import base64
import functools
import io
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.diagnose.compare.comparison import NO_ERROR, Comparison
from workbench.diagnose.glitches.glitches import Finding, Findings
from workbench.files import atomic_write
from workbench.show.player.page import static_player
from workbench.show.player.payload import player_data
from workbench.trace.trace import Trace

TEMPLATE = Path(__file__).with_name("report.html")
ROWS = 200  # of a table; the evidence keeps all
FIRST = 12  # rows of a comparison that are bad
SIZE = "@SIZE@"  # replaced when the rest of the page is known
HERE = "@ANCHOR@"  # in a thing's HTML: the anchor of the section that it came to stand in
COPY = Markup('<button class="copy" type="button" data-copy="{}" aria-label="Copy {} as text">copy</button>')


@dataclass(frozen=True)
class Shown:
    """A thing as a report has it.

    Attributes
    ----------
    html : Markup
        Safe: whatever came from outside is escaped.
    text : str
        The same for the copy button.
    evidence : Any
        What JSON can hold: the numbers behind it; None where there are none.
    """

    html: Markup
    text: str
    evidence: Any = None


@dataclass(frozen=True)
class Section:
    """A heading, a remark and a thing."""

    anchor: str
    title: str
    note: str
    shown: Shown


class Report:
    """Sections in the order they were added, written as one file that makes no request.

    Parameters
    ----------
    title : str
    lead : str
        What a reader should know first, such as a verdict.

    Examples
    --------
    >>> Report("The glitch").add("One step instead of ten.", "What was done").sections[0].title
    'What was done'
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self.sections: list[Section] = []

    def add(self, thing: Any, title: str | None = None, note: str = "") -> Self:
        """Add anything that can show itself.

        Parameters
        ----------
        thing : Any
            Text, a table, a figure or Axes, a player, a trace, a comparison, anything with `_repr_html_`;
            of everything else its repr. It is drawn now: later changes don't show.
        title : str, optional
            Heading; default: the kind of thing.
        note : str
            A remark under the heading.
        """
        title = title or type(thing).__name__
        taken = [section.anchor for section in self.sections]
        anchor = _anchor(title, taken)
        look = shown(thing)
        look = replace(look, html=Markup(look.html.replace(HERE, anchor)))
        self.sections.append(Section(anchor, title, note, look))
        return self

    def html(self) -> str:
        """Return the page."""
        page = _template().render(
            title=self.title,
            lead=self.lead,
            sections=self.sections,
            size=SIZE,
            evidence=_json(
                {s.anchor: s.shown.evidence for s in self.sections if s.shown.evidence is not None}
            ),
        )
        return page.replace(SIZE, f"{len(page.encode()) / 1e6:.2f} MB")

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page; it appears whole or not at all.

        Raises
        ------
        WorkbenchError
            When it cannot be written.
        """
        path = Path(path)
        with atomic_write(path) as draft:
            draft.write_text(self.html(), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {len(self.sections)} sections)"


@functools.singledispatch
def shown(thing: Any) -> Shown:
    """Return how a thing looks in a report: a static twin, an HTML repr, a figure, a table or text."""
    if hasattr(thing, "static"):
        return Shown(Markup(thing.static()), repr(thing))
    html = thing._repr_html_() if hasattr(thing, "_repr_html_") else None
    html = _fenced(Markup(html)) if html is not None else Markup("<pre>{}</pre>").format(repr(thing))
    table = thing.to_frame() if hasattr(thing, "to_frame") else None
    return Shown(html, _text(thing, table), None if table is None else _records(table))


@shown.register
def _(text: str) -> Shown:
    paragraphs = (Markup("<p>{}</p>").format(part) for part in text.split("\n\n") if part.strip())
    return Shown(Markup("").join(paragraphs), text)


@shown.register
def _(table: pd.DataFrame) -> Shown:
    more = f"the first {ROWS} of {len(table)} rows; the evidence has all" if len(table) > ROWS else ""
    return Shown(_fenced(table_html(table.head(ROWS)), more), table.to_string(na_rep=""), _records(table))


@shown.register
def _(trace: Trace) -> Shown:
    """The player, where there is sound, and the table of fields."""
    table = trace.to_frame()
    heard = "hift/wav" in trace and len(trace.wav) > 0
    player = Markup(static_player(player_data([trace]))) if heard else Markup()
    line = Markup("<p><b>{}</b></p>").format(repr(trace))
    return Shown(player + line + _fenced(table_html(table)), _text(trace, table), _records(table))


@shown.register
def _(comparison: Comparison) -> Shown:
    remarks = Markup("").join(Markup("<li>{}</li>").format(text) for text in comparison.remarks)
    rows = comparison.to_frame()
    bad = rows[~rows["verdict"].isin(NO_ERROR)]
    html = Markup("<p><b>{}</b></p><ul>{}</ul>").format(comparison.line, remarks)
    if len(bad):
        first = bad.dropna(axis=1, how="all").head(FIRST).reset_index(drop=True)
        html += _fenced(
            table_html(first), f"the first {FIRST} of {len(bad)} rows" if len(bad) > FIRST else ""
        )
    more = Markup("<details><summary>All {} rows in causal order</summary>{}</details>")
    html += more.format(len(rows), _fenced(table_html(rows)))
    return Shown(html, "\n".join([comparison.line, *comparison.remarks]), _records(rows))


@shown.register
def _(findings: Findings) -> Shown:
    columns = (
        "kind",
        "start",
        "end",
        "score",
        "threshold",
        "percentile",
        "sample",
        "frame",
        "token",
        "cause",
    )
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in columns)
    rows = Markup("").join(_finding_row(i, finding, columns) for i, finding in enumerate(findings))
    table = Markup("<table><thead><tr>{}<th scope='col'>text</th></tr></thead><tbody>{}</tbody></table>")
    line = Markup("<p>{}</p>").format(repr(findings))
    return Shown(line + (_fenced(table.format(head, rows)) if rows else Markup()), *_told(findings))


def _finding_row(number: int, finding: Finding, columns: tuple[str, ...]) -> Markup:
    """One finding with an address of its own and a button that copies it as a sentence."""
    cells = [_cell(getattr(finding, name)) for name in columns]
    anchor = f"{HERE}-{number + 1}"
    link = Markup('<a href="#{}">{}</a>').format(anchor, finding.kind)
    body = Markup("").join(
        Markup("<td>{}</td>").format(link if i == 0 else cell) for i, cell in enumerate(cells)
    )
    text = (
        f"{finding.kind} at {finding.start:.3f} to {finding.end:.3f} s (frame {finding.frame}, token "
        f"{finding.token}): score {finding.score:.4g}, threshold {finding.threshold:.4g}. {finding.cause}"
    )
    button = COPY.format(text, f"finding {number + 1}")
    return Markup('<tr id="{}">{}<td>{}</td></tr>').format(anchor, body, button)


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return str(value)


def _told(thing: Any) -> tuple[str, list[dict[str, Any]]]:
    table = thing.to_frame()
    return _text(thing, table), _records(table)


@shown.register
def _(figure: Figure) -> Shown:
    names = (ax.get_title("left") or ax.get_title() or ax.get_ylabel() for ax in figure.axes)
    what = "; ".join(filter(None, names)) or "figure"
    image = Markup('<img class="figure" style="max-width:100%;height:auto" alt="{}" src="{}">')
    image = image.format(what, smallest(figure))
    return Shown(Markup('<figure style="margin:0">{}</figure>').format(image), what)


@shown.register
def _(axes: Axes) -> Shown:
    return shown(axes.get_figure(root=True))


@shown.register
def _(many: np.ndarray) -> Shown:
    if many.size and all(isinstance(item, Axes) for item in many.flat):
        return shown(many.flat[0])
    return (
        shown(pd.DataFrame(many))
        if many.ndim <= 2
        else Shown(Markup("<pre>{}</pre>").format(repr(many)), repr(many))
    )


def smallest(figure: Figure) -> str:
    """Return a figure as a data address, SVG or PNG, whichever is smaller."""
    vector, pixels = io.BytesIO(), io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None}, facecolor="white")
    figure.savefig(pixels, format="png", dpi=120, facecolor="white")
    kinds = {"image/svg+xml": vector.getvalue(), "image/png": pixels.getvalue()}
    kind = min(kinds, key=lambda kind: len(kinds[kind]))
    return f"data:{kind};base64,{base64.b64encode(kinds[kind]).decode()}"


def table_html(table: pd.DataFrame) -> Markup:
    """Return a table with its text escaped and numbers of four digits."""
    index = not isinstance(table.index, pd.RangeIndex)
    return Markup(table.to_html(float_format="{:.4g}".format, na_rep="", border=0, index=index, escape=True))


def _fenced(html: Markup, more: str = "") -> Markup:
    """Wide things scroll by themselves, not the page, and a keyboard can do it."""
    tail = Markup("<p>{}</p>").format(more) if more else Markup()
    html = Markup(str(html).replace("<th></th>", "<td></td>"))  # pandas' corner is no header of anything
    html = Markup(re.sub(r"<td>([^<]{40,})</td>", r'<td class="long">\1</td>', str(html)))
    return Markup('<div class="wide" tabindex="0" role="group" aria-label="table">{}</div>{}').format(
        html, tail
    )


def _text(thing: Any, table: pd.DataFrame | None) -> str:
    line = repr(thing)
    return line if table is None or len(table) > ROWS else f"{line}\n\n{table.to_string(na_rep='')}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    flat = table.reset_index() if not isinstance(table.index, pd.RangeIndex) else table
    flat.columns = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in flat.columns]
    return [{name: _plain(value) for name, value in row.items()} for row in flat.to_dict("records")]


def _plain(value: Any) -> Any:
    """What JSON can hold; a NaN or Inf is its name, since JSON has none."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if value is pd.NA or value is pd.NaT else str(value)


def _json(evidence: dict[str, Any]) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(evidence, allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _anchor(title: str, taken: Iterable[str]) -> str:
    stem = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
    used, anchor, number = set(taken), stem, 2
    while anchor in used:
        anchor, number = f"{stem}-{number}", number + 1
    return anchor


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
