"""The tabs of a dashboard: each computes when it is first opened, and keeps what it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import ipywidgets

from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.glitches.glitches import SHOWN_COLUMNS, UNITS, Findings
from workbench.diagnose.sounds.compare_sounds import compare_sounds
from workbench.diagnose.suspects.suspects import find_suspects
from workbench.errors import WorkbenchError
from workbench.show import plots
from workbench.show.player.player import player
from workbench.show.widgets.background import Bar
from workbench.show.widgets.browsers import ComparisonBrowser
from workbench.show.widgets.controls import dropdown
from workbench.show.widgets.panel import ComputePanel
from workbench.show.widgets.sources import SOUND, Source
from workbench.speech.pipeline import Pipeline
from workbench.tables import table
from workbench.trace.schema import VALUE_STATS
from workbench.trace.trace import Trace

MADE_BY = {"not known": None, "a model": True, "a person (recording)": False}
ORIGIN, STATISTIC = "made by", "statistic"
ANY = "as recorded"
PREFERRED = ("rms", "mean_abs", "mean", "max", "min")  # the first that was recorded is drawn
NOTHING_OPEN = "Nothing is open yet: drop a trace, sound, dump or log above, or give its path."
NO_REFERENCE = "No reference yet: drop a second file, and choose it as the reference above."
NO_VOICE = "No voice is open: open the one that ran in the tab \u201crun again\u201d."


@dataclass(frozen=True)
class Chosen:
    """What the tabs are about: the run in doubt, what it is compared with, and the voice."""

    run: Source | None = None
    reference: Source | None = None
    pipe: Pipeline | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Names of reference and run."""
        return self.reference.name, self.run.name

    @property
    def sides(self) -> list[Source]:
        """The run, and the reference where there is one."""
        return [side for side in (self.run, self.reference) if side is not None]


class Tab(ComputePanel):
    """A view of what was chosen. A subclass has `missing`, `answer` and `draw`.

    Attributes
    ----------
    title : str
        On the tab.
    chosen : Chosen
        What it is about; `choose` changes it.
    has_answer : bool
        Whether an answer is shown, or why there is none.
    """

    WAITING = "working"
    CANCELLED = "cancelled; \u201ccompute\u201d begins again"
    title = ""

    def __init__(self, controls: dict[str, ipywidgets.Widget] | None = None) -> None:
        super().__init__(controls or {})
        self.chosen = Chosen()
        self._is_current = False  # whether the view is that of `chosen`, or is being computed
        self.has_answer = False
        self._drawing = RLock()  # so that no result is drawn under the names of another choice
        self._again = ipywidgets.Button(description="compute", layout={"width": "7em"})
        self._again.on_click(lambda _: self.restart(0.0))
        _, work, _ = self.children
        work.children = [*work.children, self._again]
        work.layout.flex_flow = "row wrap"
        self.choose(self.chosen)

    def missing(self) -> str:
        """Return what is missing to compute, and what to do; empty where nothing is."""
        return "" if self.chosen.run else NOTHING_OPEN

    def choose(self, chosen: Chosen) -> None:
        """Set what the tab is about; it is computed when the tab is opened."""
        with self._drawing:
            self.background.cancel()
            self.chosen = chosen
            self._is_current = self.has_answer = False
            self._set_running(False)
            missing = self.missing()
            self.children[0].layout.display = "none" if missing or not self.controls else ""
            self.show(*([missing] if missing else []))

    def activate(self) -> None:
        """Compute what the tab shows, unless it is shown already."""
        if not self._is_current and not self.missing():
            self._is_current = True
            self.restart(0.0)

    def values(self) -> dict[str, Any]:
        """Return the values of the controls, and what the tab is about."""
        return super().values() | {"chosen": self.chosen}

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> Any:
        """Return what `draw` shows; `values` are those of the controls."""
        raise NotImplementedError

    def compute(self, values: dict[str, Any], bar: Bar) -> Any:
        """Return the answer, or why there is none."""
        try:
            return self.answer(values["chosen"], values, bar)
        except WorkbenchError as error:
            return error

    def _finish(self, found: tuple[dict[str, Any], Any]) -> None:
        values, result = found
        with self._drawing:
            if values["chosen"] is not self.chosen:
                return
            self.has_answer = True
            if not isinstance(result, WorkbenchError):
                super()._finish(found)
                return
            super()._fail(result)
            self._set_status("")
            self.show(str(result))  # in the view, so that the static twin has it

    def _cancel(self) -> None:
        super()._cancel()
        self._show_work(True, "")

    def _set_running(self, is_running: bool) -> None:
        super()._set_running(is_running)
        self._show_work(is_running, "none")

    def _show_work(self, is_shown: bool, again: str) -> None:
        """Show or hide the row with the progress; the button to begin again is there after a cancel alone."""
        self.children[1].layout.display = "" if is_shown else "none"
        self._again.layout.display = again


class PlayerTab(Tab):
    """Hear the run, and the reference beside it, with findings in lanes."""

    title = "player"

    def missing(self) -> str:
        if self.chosen.run is None:
            return NOTHING_OPEN
        if any(side.has_sound for side in self.chosen.sides):
            return ""
        return (
            f"{self.chosen.run.name} holds no sound; drop the sound that belongs to it, or record hift/wav. "
            "The other tabs show what it holds."
        )

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> list[tuple[Source, Findings | str]]:
        audible = [side for side in chosen.sides if side.has_sound]
        found: list[tuple[Source, Findings | str]] = []
        for side in bar(iter(audible), "findings", " sound", len(audible)):
            try:
                found.append((side, side.findings()))
            except WorkbenchError as error:  # longer than what is judged at once
                found.append((side, f"{side.name}: not judged: {error}"))
        return found

    def draw(self, result: list[tuple[Source, Findings | str]]) -> None:
        lines = []
        for side, findings in result:
            is_text = isinstance(findings, str)
            lines.append(findings if is_text else f"{side.name}: {findings.line}")
        lanes = [None if isinstance(findings, str) else findings for _, findings in result]
        names = [side.name for side, _ in result]
        sounds = player(*(side.trace for side, _ in result), names=names, findings=lanes)
        self.show("\n\n".join(lines), sounds)


class FindingsTab(Tab):
    """What sounds wrong, where, and what may cause it; and values that no healthy run has."""

    title = "findings"

    def __init__(self) -> None:
        super().__init__({ORIGIN: dropdown(ORIGIN, tuple(MADE_BY), "not known")})

    def choose(self, chosen: Chosen) -> None:
        super().choose(chosen)
        if chosen.run is not None and chosen.run.kind != SOUND:  # which says itself that a model made it
            self.children[0].layout.display = "none"

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> tuple[Findings | None, list[str]]:
        run = chosen.run
        findings = run.findings(MADE_BY[values[ORIGIN]]) if run.has_sound else None
        return findings, implausible(run.trace)

    def draw(self, result: tuple[Findings | None, list[str]]) -> None:
        findings, odd = result
        run = self.chosen.run
        if findings is None:
            line = f"{run.name} holds no sound, so only its values were judged."
            self.show(line, *(odd or ["No value is out of the range of healthy runs."]))
            return
        things: list[Any] = [f"{run.name}: {findings.line}", *odd]
        if len(findings):
            things += [_table_of(findings.table), plots.waveform(run.trace, findings=findings)]
        if len(findings.properties):
            things += ["Properties of a recording, which are defects if a model made the sound:"]
            things += [_table_of(findings.properties)]
        self.show(*things)


class TrajectoryTab(Tab):
    """Statistics of the ODE, step by step, beside those of the reference."""

    title = "trajectory"

    def __init__(self) -> None:
        super().__init__({STATISTIC: dropdown(STATISTIC, (ANY, *VALUE_STATS), ANY)})

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> list[Any]:
        run, reference = chosen.run, chosen.reference
        if list(run.trace) == ["hift/wav"]:
            raise WorkbenchError("a sound has no steps; record a trace, a dump or a log of the run")
        has_steps = reference is not None and any(name.startswith("flow/") for name in reference.trace)
        beside = {"reference": reference.trace, "names": chosen.names} if has_steps else {}
        wanted = values[STATISTIC]
        figures: list[Any] = [_trajectory(run.trace, PREFERRED if wanted == ANY else (wanted,), beside)]
        try:
            figures.append(plots.guidance_gap(run.trace, **beside))
        except WorkbenchError as error:
            figures.append(f"guidance: {error}")
        return figures

    def draw(self, result: list[Any]) -> None:
        self.show(self.chosen.run.name, *result)


def _trajectory(trace: Trace, statistics: Sequence[str], beside: dict[str, Any]) -> Any:
    """Draw the first of these statistics that was recorded, as a text log prints few of them."""
    for stat in statistics[:-1]:
        try:
            return plots.trajectory(trace, stat=stat, **beside)
        except WorkbenchError:
            continue
    return plots.trajectory(trace, stat=statistics[-1], **beside)


class ComparisonTab(Tab):
    """Where the run parts from the reference; of sounds, what differs."""

    title = "comparison"

    def missing(self) -> str:
        if self.chosen.run is None:
            return NOTHING_OPEN
        return "" if self.chosen.reference else NO_REFERENCE

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> Any:
        run, reference, pipe = chosen.run, chosen.reference, chosen.pipe
        if SOUND in (run.kind, reference.kind):
            return compare_sounds(reference.trace, run.trace)
        return compare(reference.trace, run.trace, None if pipe is None else pipe.watched(bar))

    def draw(self, result: Any) -> None:
        run, reference = self.chosen.run, self.chosen.reference
        line = f"{run.name} beside {reference.name}: {result.verdict}"
        if SOUND in (run.kind, reference.kind):
            columns = ["aspect", "differs", "found"]
            self.show(line, result.line, *result.remarks, table(result.to_frame()[columns]))
            return
        browser = ComparisonBrowser(result, reference.trace, run.trace, self.chosen.names)
        self.show(line, *result.remarks, browser)


class SuspectsTab(Tab):
    """Which known fault explains the run."""

    title = "suspects"

    def missing(self) -> str:
        if self.chosen.run is None:
            return NOTHING_OPEN
        if self.chosen.run.kind == SOUND:
            return (
                "No fault can be named from a sound alone: it has no stages. Record a trace, a dump or a log "
                "of the run."
            )
        return "" if self.chosen.pipe else NO_VOICE

    def answer(self, chosen: Chosen, values: dict[str, Any], bar: Bar) -> Any:
        reference = chosen.reference
        right = None if reference is None or reference.kind == SOUND else reference.trace
        return find_suspects(right, chosen.run.trace, chosen.pipe.watched(bar))

    def draw(self, result: Any) -> None:
        figures = [plots.suspects(result)] if result.suspects else []
        self.show(self.chosen.run.name, result, *figures)


def _table_of(findings: Any) -> Any:
    return table(findings[SHOWN_COLUMNS], UNITS)
