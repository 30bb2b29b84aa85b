"""Widgets that show what is recorded already: fields of a trace, rows of a comparison, files in a folder."""

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd

from workbench.diagnose.compare.comparison import Comparison
from workbench.diagnose.compare.distance import place_name
from workbench.errors import WorkbenchError
from workbench.show import plots
from workbench.show.player.player import player
from workbench.show.widgets.controls import LABEL_STYLE, dropdown, int_slider
from workbench.show.widgets.panel import Panel
from workbench.show.widgets.sources import notes_of, open_sources, preview
from workbench.trace.schema import LOOPS
from workbench.trace.trace import Trace

ALL_ROWS = "all rows"
WRONG_MARK = "\u25cf"  # a filled circle before rows that are wrong
MAX_LISTED = 10_000  # files that a picker looks through
LOOP_MARGIN = 0.3  # seconds that are played on either side of a place
UNREMARKABLE = ("MATCH", "ROUNDING", "MISSING")  # verdicts at which a comparison browser does not open


class TraceBrowser(Panel):
    """Look at any field of a trace, entry by entry.

    Parameters
    ----------
    trace : Trace

    Raises
    ------
    WorkbenchError
        When the trace has no field with values.

    Examples
    --------
    >>> browser = wb.widgets.TraceBrowser(trace)
    >>> browser.field.value = "hift/f0"
    >>> "fundamental frequency" in browser.static()
    True
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        fields = [name for name in trace if trace[name].numel()]
        if not fields:
            raise WorkbenchError("the trace has no field with values; record one with save=wb.EVERYTHING")
        self.field = dropdown("field", fields, fields[-1])
        self.index = int_slider("entry", 0, 0, 1)
        super().__init__([self.field, self.index])
        self.field.observe(lambda _: self.update(), "value")
        self.index.observe(lambda _: self.update(), "value")
        self.update()

    def update(self) -> None:
        """Show the chosen entry of the chosen field, and the statistics of the field."""
        name = self.field.value
        has_entries = self.trace.dims(name)[0] in LOOPS
        last = len(self.trace[name]) - 1 if has_entries else 0
        self.index.disabled = not has_entries
        self.index.max = last
        index = min(self.index.value, last) if has_entries else None
        self.show(plots.field(self.trace, name, index), self.trace.to_frame().loc[[name]])


class ComparisonBrowser(Panel):
    """Choose a row of a comparison and see and hear that place on both sides.

    Parameters
    ----------
    comparison : Comparison
    reference, candidate : Trace
        The traces that were compared.
    names : (str, str)
        What the two are called above their pictures and in the player.

    Raises
    ------
    WorkbenchError
        When the comparison has no rows, or the names are not two different ones.

    Examples
    --------
    >>> wb.widgets.ComparisonBrowser(wb.compare(trace, trace), trace, trace)
    ComparisonBrowser()
    """

    def __init__(
        self,
        comparison: Comparison,
        reference: Trace,
        candidate: Trace,
        names: tuple[str, str] = ("reference", "candidate"),
    ) -> None:
        self.names = names
        self.comparison = comparison
        self.reference = reference
        self.candidate = candidate
        if len(set(names)) != 2:
            raise WorkbenchError(f"names is {names!r}; expected two different names, one for each trace")
        rows = comparison.to_frame()
        if rows.empty:
            raise WorkbenchError("the comparison has no rows: the two runs have no field in common")
        self.shown = dropdown("show", (ALL_ROWS, *dict.fromkeys(rows["verdict"])), ALL_ROWS)
        self.row = ipywidgets.Select(rows=8, layout={"width": "28em"}, description="row")
        self._list_rows()
        super().__init__([self.shown, self.row])
        self.shown.observe(lambda _: self._list_rows(), "value")
        self.row.observe(lambda _: self.update(), "value")
        self.update()

    def _list_rows(self) -> None:
        """List the rows that have the chosen verdict, and choose the first that is wrong."""
        options = []
        first_bad = None
        for number, row in enumerate(self.comparison.to_frame().itertuples()):
            if self.shown.value not in (ALL_ROWS, row.verdict):
                continue
            mark = " " if row.verdict in UNREMARKABLE else WRONG_MARK
            options.append((f"{mark} {place_name(row.field, _index_of(row.index))}  {row.verdict}", number))
            if first_bad is None and row.verdict not in UNREMARKABLE:
                first_bad = number
        self.row.options = options
        self.row.value = options[0][1] if first_bad is None else first_bad

    def update(self) -> None:
        """Show the chosen row, its field on both sides in one scale, and a player that loops around it."""
        if self.row.value is None:
            return  # the list is being changed
        row = self.comparison.to_frame().iloc[self.row.value]
        traces = (self.reference, self.candidate)
        things: list[Any] = [self.comparison.line, row.dropna().to_frame("value").T]
        region = "whole" if "(prompt)" in str(row["worst"]) else "target"
        things += self._pictures(row["field"], _index_of(row["index"]), region)
        audible = {
            name: trace
            for name, trace in zip(self.names, traces, strict=True)
            if "hift/wav" in trace and len(trace.wav)
        }
        if audible:
            sound = player(*audible.values(), names=list(audible))
            if not pd.isna(row["seconds"]):
                sound.loop = [max(row["seconds"] - LOOP_MARGIN, 0.0), row["seconds"] + LOOP_MARGIN]
            things.append(sound)
        self.show(*things)

    def _pictures(self, field: str, index: int | None, region: str) -> list[Any]:
        """Return the field on both sides and the difference; on one side alone where the other lacks it."""
        sides = dict(zip(self.names, (self.reference, self.candidate), strict=True))
        if all(field in trace for trace in sides.values()):
            try:
                return [plots.field_pair(*sides.values(), field, index, region=region, names=self.names)]
            except WorkbenchError as error:  # shapes that cannot be compared, or an entry that one side lacks
                note = [str(error)]
        else:
            note = []
        pictures: list[Any] = []
        for name, trace in sides.items():
            has_entry = field in trace and (index is None or index < len(trace[field]))
            if has_entry:
                pictures += [name, plots.field(trace, field, index, region=region)]
        return [*note, *pictures]


def _index_of(value: Any) -> int | None:
    """Return the index in a row of a comparison; None for a field without entries."""
    return None if pd.isna(value) else int(value)


class FilePicker(Panel):
    """Choose a file or folder below a folder, and see what it holds; `path` is the chosen one.

    Parameters
    ----------
    folder : path
    pattern : str
        Such as "**/*.trace", or "**/cosyvoice3.yaml" for the folders of checkpoints.
    open_file : callable, optional
        Gets the path and returns what to show, such as `Trace.load`. Default: kind, length, rate and parts.

    Raises
    ------
    WorkbenchError
        When there is no such folder.

    Examples
    --------
    >>> wb.widgets.FilePicker(wb.data_path("prompts"), "kumo_0.flac").path.name
    'kumo_0.flac'
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        pattern: str = "**/*.trace",
        open_file: Callable[[Path], Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.pattern = pattern
        self.open_file = open_file
        if not os.path.isdir(self.folder):
            raise WorkbenchError(f"{self.folder} is no folder; expected one to pick files from")
        self.choice = ipywidgets.Dropdown(description="file", style=LABEL_STYLE, layout={"width": "40em"})
        refresh = ipywidgets.Button(description="refresh")
        refresh.on_click(lambda _: self.refresh())
        super().__init__([self.choice, refresh])
        self.choice.observe(lambda _: self.update(), "value")
        self.refresh()

    @property
    def path(self) -> Path | None:
        """The chosen file; None while there is none."""
        return self.choice.value

    def refresh(self) -> None:
        """List the files that are there now, the newest first."""
        listed = islice(self.folder.glob(self.pattern), MAX_LISTED)
        found = [path for path in listed if path.exists() and not _is_hidden(path.relative_to(self.folder))]
        found.sort(key=lambda path: -path.stat().st_mtime)
        self.choice.options = [(str(path.relative_to(self.folder)), path) for path in found]
        self.choice.value = found[0] if found else None
        self.update()

    def update(self) -> None:
        """Show what the file holds, or why it cannot be opened."""
        if self.path is None:
            self.show(f"no file in {self.folder} matches {self.pattern}")
            return
        name = str(self.path.relative_to(self.folder))  # the static twin has no list of files
        try:
            if self.open_file is not None:
                self.show(name, self.open_file(self.path))
                return
            sources = open_sources(self.path)
            self.show(name, preview(sources), *notes_of(sources))
        except WorkbenchError as error:
            self.show(name, str(error))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
