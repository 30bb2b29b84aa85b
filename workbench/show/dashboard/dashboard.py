"""`Dashboard`: one widget that opens whatever a run left behind, and shows what is known of it in tabs."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets

from workbench.diagnose.sounds.sound_input import SoundSource, as_trace
from workbench.show.dashboard.drop_zone import DropZone
from workbench.show.dashboard.dropped import open_dropped
from workbench.show.dashboard.run_form import RunForm
from workbench.show.dashboard.tabs import (
    NOTHING_OPEN,
    Chosen,
    ComparisonTab,
    FindingsTab,
    PlayerTab,
    SuspectsTab,
    TrajectoryTab,
)
from workbench.show.widgets.browsers import FilePicker
from workbench.show.widgets.controls import LABEL_STYLE, text_field
from workbench.show.widgets.panel import Panel, describe_error
from workbench.show.widgets.sources import SOUND, TRACE, Source, notes_of, open_sources, preview, unused_name
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

MAX_SOURCES = 100  # that are kept open; a log may hold any number of runs
NO_REFERENCE = "none"


class Dashboard(Panel):
    """Open traces, sounds, dumps and logs, see in tabs what is known of them, and run again.

    The tabs are the player, what sounds wrong, the ODE's trajectory, the comparison with a reference, and the
    known faults that may explain it. Each is computed when it is first opened. Files are opened by dropping
    them, by their path, or from a folder.

    Parameters
    ----------
    *things : Trace, path, Tensor (N,), ndarray (N,), or (samples, rate in Hz)
        The first is the run in doubt and the second its reference, which the dashboard can exchange. A path
        is that of anything that `wb.open` opens; of a log all runs are opened. What cannot be opened is
        told in the dashboard.
    pipe : Pipeline, optional
        The voice that ran: names suspects, isolates causes and runs again. The dashboard can also open it.
    folder : path, optional
        Files below it are offered in a menu.

    Raises
    ------
    WorkbenchError
        When there is no such folder.

    Examples
    --------
    >>> dashboard = wb.Dashboard(trace, wb.data_path("prompts/kumo_0.flac"), pipe=pipe)
    >>> [source.kind for source in dashboard.sources]
    ['trace', 'sound']
    >>> wb.Dashboard("theirs.wav").problems
    ['theirs.wav does not exist or is not a file; expected a sound file']
    """

    def __init__(
        self,
        *things: SoundSource,
        pipe: Pipeline | None = None,
        folder: str | os.PathLike | None = None,
    ) -> None:
        self.sources: list[Source] = []
        self.problems: list[str] = []
        self.pipe = pipe
        self.zone = DropZone(self._open_dropped)
        self.path = text_field("or open", "path of a trace, sound, dump, folder or log")
        open_path = ipywidgets.Button(description="open", layout={"width": "7em"})
        wide = {"width": "30em", "max_width": "100%"}
        self.run = ipywidgets.Dropdown(description="run in doubt", style=LABEL_STYLE, layout=wide)
        self.reference = ipywidgets.Dropdown(description="reference", style=LABEL_STYLE, layout=wide)
        exchange = ipywidgets.Button(description="exchange", layout={"width": "7em"})
        close = ipywidgets.Button(description="close all", layout={"width": "7em"})
        self._choice = ipywidgets.Box(
            [self.run, self.reference, exchange, close], layout={"flex_flow": "row wrap"}
        )
        self.form = RunForm(self._take_run, self._take_voice)
        self.tabs = [PlayerTab(), FindingsTab(), TrajectoryTab(), ComparisonTab(), SuspectsTab(), self.form]
        self._shown = ipywidgets.Tab(self.tabs, titles=[tab.title for tab in self.tabs], selected_index=0)
        places = [ipywidgets.Box([self.path, open_path], layout={"flex_flow": "row wrap"})]
        if folder is not None:
            picker = FilePicker(folder, "**/*")
            pick = ipywidgets.Button(description="open this file")
            pick.on_click(lambda _: picker.path is not None and self.add(picker.path))
            places.append(ipywidgets.VBox([picker, pick]))
        super().__init__([])
        self.children = [self.zone, *places, self._choice, *self.children, self._shown]
        self.add_class("workbench-dashboard")
        for tab in self.tabs:
            tab._owner = self
        self.path.observe(lambda _: self._open_path(), "value")
        open_path.on_click(lambda _: self._open_path())
        self.run.observe(self._on_choice, "value")
        self.reference.observe(self._on_choice, "value")
        exchange.on_click(lambda _: self.choose(*reversed(self._choice_now())))
        close.on_click(lambda _: self.close_all())
        self._shown.observe(lambda _: self._open_tab(), "selected_index")
        self.close_all()
        self.add(*things)

    def add(self, *things: SoundSource) -> None:
        """Open more things; `problems` says of each that cannot be opened why.

        Examples
        --------
        >>> dashboard = wb.Dashboard()
        >>> dashboard.add(trace)
        >>> dashboard.run.label
        'Eight months to Mars.'
        """
        found: list[Source] = []
        problems: list[str] = []
        for thing in things:
            try:
                found += _sources_of(thing)
            except Exception as error:  # any: nobody sees a traceback in a page
                problems.append(" ".join(describe_error(error).split()))
        self._take(found, problems)

    def tell(self, problems: Sequence[str]) -> None:
        """Show problems, beside those of what was opened last."""
        self.problems = [*problems, *self.problems]
        self.choose(*self._choice_now())

    def choose(self, run: Source | None, reference: Source | None) -> None:
        """Show a run beside a reference; both are among `sources`, and there may be none."""
        if run is None:
            run, reference = reference, None
        for menu in (self.run, self.reference):
            menu.unobserve(self._on_choice, "value")
        names = [(source.name, source) for source in self.sources]
        self.run.options = names
        self.run.value = run
        self.reference.options = [(NO_REFERENCE, NO_REFERENCE), *names]
        self.reference.value = NO_REFERENCE if reference is None else reference
        for menu in (self.run, self.reference):
            menu.observe(self._on_choice, "value")
        self._choice.layout.display = "" if self.sources else "none"
        self._show()

    def close_all(self) -> None:
        """Forget everything that was opened."""
        self.sources = []
        self.problems = []
        self.choose(None, None)

    def static(self) -> str:
        """Return what was opened, and what each opened tab shows, as HTML that needs no kernel."""
        parts = [super().static() if self.sources or self.problems else escape(NOTHING_OPEN)]
        for tab in self.tabs:
            if tab.has_answer:
                parts.append(f"<h3>{escape(tab.title)}</h3>{tab.static()}")
        return "<div>" + "\n".join(parts) + "</div>"

    def _take(self, sources: Sequence[Source], problems: list[str]) -> None:
        """Add what was opened; it becomes run and reference where there are none yet."""
        room = MAX_SOURCES - len(self.sources)
        if len(sources) > room:
            problems = [*problems, f"{len(sources) - room} runs are left out: at most {MAX_SOURCES} are open"]
        self.problems = problems
        run, reference = self._choice_now()
        for source in sources[:room]:
            source.name = unused_name(source.name, [each.name for each in self.sources])
            self.sources.append(source)
            if run is None:
                run = source
            elif reference is None:
                reference = source
        self.choose(run, reference)

    def _open_path(self) -> None:
        path = self.path.value.strip()
        if path:
            self.path.value = ""
            self.add(os.path.expanduser(path))

    def _open_dropped(self, folder: Path) -> str:
        """Open what was dropped, and say how that went."""
        sources, problems = open_dropped(folder)
        self._take(sources, problems)
        opened = ", ".join(source.name for source in sources[:4]) or "nothing"
        more = f" and {len(sources) - 4} more" if len(sources) > 4 else ""
        failed = f"; {len(problems)} could not be opened, see below" if problems else ""
        return f"opened {opened}{more}{failed}"

    def _take_run(self, name: str, trace: Trace) -> None:
        """Show a run that the form made, with the one before as its reference."""
        before = self.run.value
        source = Source(unused_name(name, [each.name for each in self.sources]), trace, TRACE)
        self.sources.append(source)
        self.choose(source, before)

    def _take_voice(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.choose(*self._choice_now())

    def _choice_now(self) -> tuple[Source | None, Source | None]:
        """Return what the two menus say."""
        reference = self.reference.value
        return self.run.value, None if reference == NO_REFERENCE else reference

    def _on_choice(self, _: Any) -> None:
        self.choose(*self._choice_now())

    def _show(self) -> None:
        """Show what is open, and let the tabs be about the choice."""
        chosen = Chosen(*self._choice_now(), self.pipe)
        for tab in self.tabs:
            tab.choose(chosen)
        things: list[Any] = [f"\u26a0 {problem}" for problem in self.problems]
        if self.sources:
            things.append(preview(self.sources))
        self.show(*things, *notes_of(chosen.sides))
        self._open_tab()

    def _open_tab(self) -> None:
        if self._shown.selected_index is not None:
            self.tabs[self._shown.selected_index].activate()


def _sources_of(thing: SoundSource) -> list[Source]:
    """Open what Python was given: a path, a trace, or samples."""
    if isinstance(thing, str | os.PathLike):
        return open_sources(thing)
    if isinstance(thing, Trace):
        stated = (thing.attrs.get(name) for name in ("tag", "text", "source"))
        return [Source(str(next(filter(None, stated), "trace")), thing, TRACE)]
    return [Source("samples", as_trace(thing), SOUND)]
