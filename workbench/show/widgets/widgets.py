"""Widgets: controls around plain functions. Each has `static()`, and shows that where no kernel runs."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import pandas as pd

from workbench.diagnose.compare.comparison import Comparison
from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.metrics import METRICS, run_lengths
from workbench.errors import WorkbenchError
from workbench.show import plots
from workbench.show.player.player import player
from workbench.show.widgets.background import Bar
from workbench.show.widgets.panel import Lab, Panel
from workbench.speech.config import DTYPES, SOLVERS, T_SCHEDULERS
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import LOOPS, ODE_FIELDS
from workbench.trace.trace import Trace

WIDE = {"description_width": "8.5em"}
BESIDE_S = 0.3  # seconds around a place that are played


class Pair(NamedTuple):
    """A run as the controls say, beside the one it is compared with."""

    trace: Trace
    reference: Trace


def measured(pair: Pair) -> pd.DataFrame:
    """Return one row a measure, of the run beside its reference."""
    values = {name: metric(pair.trace, pair.reference) for name, metric in METRICS.items()}
    return pd.DataFrame({"measure": values.keys(), "value": values.values()})


# ---- labs: something is computed


class OdeExplorer(Lab):
    """The flow's ODE from fixed speech tokens: what its options do, seen at any step.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    seed : int
        Of the speech tokens, which no control changes.
    """

    def __init__(self, pipe: Pipeline, utt: Utterance, seed: int = 0) -> None:
        own = pipe.checkpoint.options.but(seed=seed)
        self.utt, self.own = utt, own
        self.runs = CachedRuns(pipe, save=("flow/*",), max_stages=24)
        self.result: Pair | None = None
        self.step = ipywidgets.IntSlider(0, 0, own.n_timesteps, description="knot", style=WIDE)
        self.field = _choice("field", ODE_FIELDS, ODE_FIELDS[0])
        self.picture = Panel([self.step, self.field])
        super().__init__(
            {
                "n_timesteps": _slider("n_timesteps", own.n_timesteps, 1, 64),
                "cfg_rate": _float("cfg_rate", own.cfg_rate, 0.0, 1.5),
                "solver": _choice("solver", SOLVERS, own.solver),
                "t_scheduler": _choice("t_scheduler", T_SCHEDULERS, own.t_scheduler),
                "noise_seed": _maybe("noise_seed", "as upstream"),
                "flow_dtype": _choice("flow_dtype", DTYPES, own.flow_dtype),
            }
        )
        for control in (self.step, self.field):
            control.observe(lambda _: self.look(), "value")

    def compute(self, values: dict[str, Any], bar: Bar) -> Pair:
        """Solve with these options, and with the checkpoint's own."""
        options = self.own.but(**values | {"noise_seed": _whole(values["noise_seed"], "noise_seed")})
        pipe = self.runs.pipe.watched(bar)
        return Pair(self.runs.run(self.utt, options, pipe), self.runs.run(self.utt, self.own, pipe))

    def draw(self, result: Pair) -> None:
        """Show the trajectory, the numbers, the sound of both, and the knot that is chosen."""
        self.result = result
        self.step.max = len(result.trace["flow/x"]) - 1
        self.look()
        self.show(
            self.picture,
            plots.trajectory(result.trace, reference=result.reference),
            measured(result),
            player(result.trace, result.reference, names=["as set", "the checkpoint's own options"]),
        )

    def look(self) -> None:
        """Show the chosen field at the chosen knot; a velocity at that of the step from there."""
        if self.result is None:
            return
        name, trace = self.field.value, self.result.trace
        self.picture.show(plots.field(trace, name, min(self.step.value, len(trace[name]) - 1)))


class VocoderLab(Lab):
    """The vocoder on a recorded mel: what precision does to f0, source and waveform.

    Parameters
    ----------
    pipe : Pipeline
    trace : Trace
        With `flow/mel`.
    """

    PARTS = ("hift_dtype", "f0_dtype", "source_dtype", "head_dtype")

    def __init__(self, pipe: Pipeline, trace: Trace) -> None:
        self.pipe, self.trace = pipe, trace
        self.own = pipe.checkpoint.options.but(**trace.attrs.get("options", {}))
        super().__init__({name: _choice(name, DTYPES, getattr(self.own, name)) for name in self.PARTS})

    def compute(self, values: dict[str, Any], bar: Bar) -> Pair:
        """Vocode the mel with these types, and as the run did."""
        pipe = self.pipe.watched(bar)
        changed, own = (pipe.replay(self.trace, "hift", self.own.but(**v)) for v in (values, {}))
        return Pair(changed, own)

    def draw(self, result: Pair) -> None:
        """Show f0 of both, where the sound differs, and both to hear."""
        self.show(
            player(*result, names=["as set", "the run's own"]),
            plots.f0(result.trace, reference=result.reference),
            measured(result),
        )


class SamplingLab(Lab):
    """Speech tokens as the sampler draws them: silences, repeats, where the LM would stop.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    """

    def __init__(self, pipe: Pipeline, utt: Utterance) -> None:
        self.pipe, self.utt, self.own = pipe, utt, pipe.checkpoint.options
        own = self.own
        super().__init__(
            {
                "seed": _slider("seed", own.seed, 0, 99),
                "top_p": _float("top_p", own.top_p, 0.05, 1.0),
                "top_k": _slider("top_k", own.top_k, 1, 100),
                "win_size": _slider("win_size", own.win_size, 1, 50),
                "tau_r": _float("tau_r", own.tau_r, 0.0, 1.0),
                "silent_tokens_repeat": _tick("silent tokens count as repeats", own.silent_tokens_repeat),
                "repetition_fallback": _choice("fallback", ("full", "top_k"), own.repetition_fallback),
                "max_silent_run": _maybe("max_silent_run", "keep all", own.max_silent_run),
            }
        )

    def compute(self, values: dict[str, Any], bar: Bar) -> Trace:
        """Draw the tokens with these options."""
        run = _whole(values["max_silent_run"], "max_silent_run")
        options = self.own.but(**values | {"max_silent_run": run})
        saved = ("lm/logp", "lm/entropy", "lm/drawn_token")
        return self.pipe.watched(bar).synthesise(self.utt, options=options, save=saved, stop_after="lm")

    def draw(self, result: Trace) -> None:
        """Show the timeline of the tokens, and the counts that matter."""
        self.show(plots.tokens(result), run_lengths(result))


# ---- browsers: something is looked up


class TraceBrowser(Panel):
    """Any field of a trace, entry by entry.

    Parameters
    ----------
    trace : Trace
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        fields = [name for name in trace if trace[name].numel()]
        if not fields:
            raise WorkbenchError("the trace has no field with values; record one with save=wb.EVERYTHING")
        self.field = _choice("field", fields, fields[-1])
        self.index = _slider("entry", 0, 0, 1)
        super().__init__([self.field, self.index])
        self.field.observe(lambda _: self.look(), "value")
        self.index.observe(lambda _: self.look(), "value")
        self.look()

    def look(self) -> None:
        """Show the chosen entry and its statistics."""
        name = self.field.value
        loops = self.trace.dims(name)[0] in LOOPS
        last = len(self.trace[name]) - 1 if loops else 0
        self.index.disabled = not loops
        self.index.max = last
        index = min(self.index.value, last) if loops else None
        stats = self.trace.to_frame().loc[[name]]
        self.show(plots.field(self.trace, name, index), stats)


class ComparisonBrowser(Panel):
    """From a row of a comparison to its picture and to the sound at that place.

    Parameters
    ----------
    comparison : Comparison
    reference, candidate : Trace
        What was compared.
    """

    def __init__(self, comparison: Comparison, reference: Trace, candidate: Trace) -> None:
        self.comparison, self.reference, self.candidate = comparison, reference, candidate
        rows = comparison.to_frame()
        if rows.empty:
            raise WorkbenchError("the comparison has no rows: the two runs have no field in common")
        labels = [f"{place_of(row)}  {row.verdict}" for row in rows.itertuples()]
        bad = [
            i for i, verdict in enumerate(rows["verdict"]) if verdict not in ("MATCH", "ROUNDING", "MISSING")
        ]
        options = list(zip(labels, range(len(labels)), strict=True))
        self.row = ipywidgets.Select(
            options=options, value=bad[0] if bad else 0, rows=8, layout={"width": "28em"}, description="row"
        )
        super().__init__([self.row])
        self.row.observe(lambda _: self.look(), "value")
        self.look()

    def look(self) -> None:
        """Show the chosen row on both sides, and its sound."""
        row = self.comparison.to_frame().iloc[self.row.value]
        index = None if pd.isna(row["index"]) else int(row["index"])
        things: list[Any] = [self.comparison.line, row.dropna().to_frame("value").T]
        for trace in (self.reference, self.candidate):
            if row["field"] in trace:
                things.append(plots.field(trace, row["field"], index))
        heard = [t for t in (self.reference, self.candidate) if t.get("hift/wav") is not None and len(t.wav)]
        if heard:
            sound = player(*heard)
            if row["seconds"] == row["seconds"]:
                sound.loop = [max(row["seconds"] - BESIDE_S, 0.0), row["seconds"] + BESIDE_S]
            things.append(sound)
        self.show(*things)


def place_of(row: Any) -> str:
    """Return "flow/x[3]" of a comparison's row."""
    return row.field if pd.isna(row.index) else f"{row.field}[{int(row.index)}]"


# ---- files


class FilePicker(Panel):
    """Files or folders below a folder, by a pattern; `path` is the chosen one.

    Parameters
    ----------
    folder : path
    pattern : str
        Such as "**/*.trace", or "**/cosyvoice3.yaml" for the folders of checkpoints.
    opened : callable, optional
        Is given the path and returns what to show, such as `Trace.load`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        pattern: str = "**/*.trace",
        opened: Callable[[Path], Any] | None = None,
    ) -> None:
        self.folder, self.pattern, self.opened = Path(folder), pattern, opened
        if not self.folder.is_dir():
            raise WorkbenchError(f"{self.folder} is no folder; expected one to pick files from")
        self.choice = ipywidgets.Dropdown(description="file", style=WIDE, layout={"width": "40em"})
        self.again = ipywidgets.Button(description="look again")
        super().__init__([self.choice, self.again])
        self.again.on_click(lambda _: self.refresh())
        self.choice.observe(lambda _: self.look(), "value")
        self.refresh()

    @property
    def path(self) -> Path | None:
        """The chosen file; None while there is none."""
        return self.choice.value

    def refresh(self) -> None:
        """List what is there now, the newest first."""
        found = sorted(self.folder.glob(self.pattern), key=lambda path: -path.stat().st_mtime)
        self.choice.options = [(str(path.relative_to(self.folder)), path) for path in found]
        self.choice.value = found[0] if found else None
        self.look()

    def look(self) -> None:
        """Show what the file holds, or why it cannot be opened."""
        if self.path is None:
            self.show(f"nothing in {self.folder} is called {self.pattern}")
        elif self.opened is None:
            self.show(str(self.path))
        else:
            try:
                self.show(self.opened(self.path))
            except WorkbenchError as error:
                self.show(str(error))


# ---- controls


def _slider(name: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value, low, high, description=name, style=WIDE, continuous_update=False)


def _float(name: str, value: float, low: float, high: float) -> ipywidgets.FloatSlider:
    return ipywidgets.FloatSlider(
        value, min=low, max=high, step=0.05, description=name, style=WIDE, continuous_update=False
    )


def _choice(name: str, options: Sequence[str], value: str) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(options=list(options), value=value, description=name, style=WIDE)


def _tick(name: str, value: bool) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(value, description=name, style={"description_width": "initial"})


def _maybe(name: str, nothing: str, value: int | None = None) -> ipywidgets.Text:
    """A whole number or nothing at all, which a slider cannot say."""
    text = "" if value is None else str(value)
    return ipywidgets.Text(text, placeholder=nothing, description=name, style=WIDE, continuous_update=False)


def _whole(text: str, name: str) -> int | None:
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise WorkbenchError(f"{name} is {text!r}; expected a whole number, or nothing") from None


def ode_explorer(pipe: Pipeline, utt: Utterance, seed: int = 0) -> OdeExplorer:
    """Return an `OdeExplorer` that has drawn its first view."""
    return OdeExplorer(pipe, utt, seed).now()


def vocoder_lab(pipe: Pipeline, trace: Trace) -> VocoderLab:
    """Return a `VocoderLab` that has drawn its first view."""
    return VocoderLab(pipe, trace).now()


def sampling_lab(pipe: Pipeline, utt: Utterance) -> SamplingLab:
    """Return a `SamplingLab` that has drawn its first view."""
    return SamplingLab(pipe, utt).now()
