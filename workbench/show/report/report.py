"""`Report`: one HTML file that holds figures, sound and numbers and makes no request."""

import functools
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jinja2
from markupsafe import Markup

from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.show.report.figures import figure_of
from workbench.show.report.render import ANCHOR, Rendered, page_figure, render

TEMPLATE = Path(__file__).with_name("report.html")
STATES = {"": "", "good": "\u2713 nothing wrong found", "bad": "\u2717 look here", "open": "? not decided"}
SIZE = "@SIZE@"  # replaced once the rest of the page is known


@dataclass(frozen=True)
class Section:
    """A heading with its anchor, a remark, and what is shown below."""

    anchor: str
    title: str
    note: str
    rendered: Rendered


class Report:
    """Sections in the order in which they were added, written as one file that makes no request.

    Parameters
    ----------
    title : str
    lead : str
        What a reader should know first, such as a verdict; its first line is set in bold.
    state : {"", "good", "bad", "open"}
        Whether nothing wrong was found, something was, or it cannot be decided: a colour and a word beside
        the lead.

    Examples
    --------
    >>> report = wb.Report("The glitch", "One step instead of ten.").add(trace, "The run")
    >>> report.add(wb.plots.mel(trace), "Its mel")
    Report('The glitch', 2 sections)
    """

    def __init__(self, title: str, lead: str = "", state: str = "") -> None:
        if state not in STATES:
            raise WorkbenchError(f"state is {state!r}; expected one of {', '.join(map(repr, STATES))}")
        self.title = title
        self.lead = lead
        self.state = state
        self.sections: list[Section] = []

    def add(self, thing: Any, title: str | None = None, note: str = "") -> Self:
        """Add a section and return the report.

        Parameters
        ----------
        thing : Any
            Text, a table, a figure or Axes, a player, a trace, a comparison, or anything with `_repr_html_`;
            of everything else the repr is shown. It is rendered at once: later changes to it are not shown.
        title : str, optional
            Heading. Default: the name of the thing's type.
        note : str
            A remark under the heading.

        Returns
        -------
        Report
            This report, so that calls can be chained.

        Examples
        --------
        >>> wb.Report("The glitch").add("One step instead of ten.", "What was done").sections[0].title
        'What was done'
        """
        title = title or type(thing).__name__
        anchor = _unused_anchor(title, [section.anchor for section in self.sections])
        figure = figure_of(thing)
        rendered = render(thing) if figure is None else page_figure(figure)
        rendered = replace(rendered, html=Markup(rendered.html.replace(ANCHOR, anchor)))
        self.sections.append(Section(anchor, title, note, rendered))
        return self

    def html(self) -> str:
        """Return the page.

        Examples
        --------
        >>> "<h1>The glitch</h1>" in wb.Report("The glitch").html()
        True
        """
        evidence = {}
        for section in self.sections:
            if section.rendered.evidence is not None:
                evidence[section.anchor] = section.rendered.evidence
        page = _template().render(
            title=self.title,
            lead=self.lead.partition("\n"),
            state=self.state,
            state_words=STATES[self.state],
            sections=self.sections,
            size=SIZE,
            evidence=_json_for_script(evidence),
        )
        return page.replace(SIZE, f"{len(page.encode()) / 1e6:.2f} MB")

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page, in full or not at all.

        Parameters
        ----------
        path : path
            Folders that are missing are made.

        Returns
        -------
        Path
            Where the page is.

        Raises
        ------
        WorkbenchError
            When it cannot be written.

        Examples
        --------
        >>> wb.Report("The glitch").add(trace).save("output/glitch.html").name
        'glitch.html'
        """
        path = Path(path)
        with atomic_write(path) as draft:
            draft.write_text(self.html(), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {len(self.sections)} sections)"


def _json_for_script(evidence: dict[str, Any]) -> Markup:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(evidence, allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _unused_anchor(title: str, used: Collection[str]) -> str:
    """Return an address for a title: its words joined by hyphens, with a number where that is in use."""
    stem = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
    anchor = stem
    number = 2
    while anchor in used:
        anchor = f"{stem}-{number}"
        number += 1
    return anchor


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
