"""Widgets that compute: change an option of a stage, and see and hear what it does."""

import math
from typing import Any, NamedTuple

import ipywidgets
import pandas as pd

from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.metrics import METRICS, run_lengths
from workbench.show import plots
from workbench.show.player.player import player
from workbench.show.widgets.background import Bar
from workbench.show.widgets.controls import (
    LABEL_STYLE,
    checkbox,
    dropdown,
    float_slider,
    int_slider,
    optional_integer,
    parse_optional_integer,
)
from workbench.show.widgets.panel import ComputePanel, Panel
from workbench.speech.config import DTYPES, SOLVERS, T_SCHEDULERS
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.tables import UNITS, table
from workbench.trace.schema import ODE_FIELDS
from workbench.trace.trace import Trace

OTHER_UNITS = {"clamped": "samples", "seconds": "s", "rtf": "s / s"}  # of metrics; elsewhere a column's name
RUN_UNITS = {"length": "tokens", "seconds": "s"}  # of `run_lengths`
CACHED_STAGES = 24  # results that an ODE explorer keeps, so that a slider that comes back computes nothing


class RunPair(NamedTuple):
    """A run with the options of the controls, and the run that it is compared with."""

    trace: Trace
    reference: Trace


def metric_table(pair: RunPair) -> pd.DataFrame:
    """Return the metrics of a run against its reference, one per row, without those that say nothing."""
    rows = []
    for name, metric in METRICS.items():
        value = metric(pair.trace, pair.reference)
        if not math.isnan(value):
            rows.append((name, value, UNITS.get(name, OTHER_UNITS.get(name, ""))))
    return pd.DataFrame(rows, columns=["metric", "value", "unit"])


class OdeExplorer(ComputePanel):
    """Solve the flow's ODE with other options, from fixed speech tokens, and see its state at any knot.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    seed : int
        Seed of the speech tokens, which no control changes.

    Examples
    --------
    >>> wb.widgets.OdeExplorer(pipe, utt, seed=7)  # empty until `render_now()` or a control moves
    OdeExplorer()
    """

    def __init__(self, pipe: Pipeline, utt: Utterance, seed: int = 0) -> None:
        self.utt = utt
        self.own_options = pipe.checkpoint.options.but(seed=seed)
        self.runs = CachedRuns(pipe, save=("flow/*",), max_stages=CACHED_STAGES)
        self.result: RunPair | None = None
        own = self.own_options
        self.knot = ipywidgets.IntSlider(0, 0, own.n_timesteps, description="knot", style=LABEL_STYLE)
        self.field = dropdown("field", ODE_FIELDS, ODE_FIELDS[0])
        self.field_panel = Panel([self.knot, self.field])
        super().__init__(
            {
                "n_timesteps": int_slider("n_timesteps", own.n_timesteps, 1, 64),
                "cfg_rate": float_slider("cfg_rate", own.cfg_rate, 0.0, 1.5),
                "solver": dropdown("solver", SOLVERS, own.solver),
                "t_scheduler": dropdown("t_scheduler", T_SCHEDULERS, own.t_scheduler),
                "noise_seed": optional_integer("noise_seed", "as upstream"),
                "flow_dtype": dropdown("flow_dtype", DTYPES, own.flow_dtype),
            }
        )
        for control in (self.knot, self.field):
            control.observe(lambda _: self.update(), "value")

    def compute(self, values: dict[str, Any], bar: Bar) -> RunPair:
        """Run with the options of the controls, and with the checkpoint's own."""
        noise_seed = parse_optional_integer(values["noise_seed"], "noise_seed")
        options = self.own_options.but(**values | {"noise_seed": noise_seed})
        pipe = self.runs.pipe.watched(bar)
        trace = self.runs.run(self.utt, options, pipe)
        reference = self.runs.run(self.utt, self.own_options, pipe)
        return RunPair(trace, reference)

    def draw(self, result: RunPair) -> None:
        """Show the field at the chosen knot, the trajectory, the metrics, and both runs to hear."""
        self.result = result
        self.knot.max = len(result.trace["flow/x"]) - 1
        self.update()
        self.show(
            self.field_panel,
            plots.trajectory(result.trace, reference=result.reference, names=("own options", "as set")),
            metric_table(result),
            player(result.trace, result.reference, names=["as set", "own options"]),
        )

    def update(self) -> None:
        """Show the chosen field at the chosen knot; a velocity is that of the step which begins there."""
        if self.result is None:
            return
        name = self.field.value
        trace = self.result.trace
        last = len(trace[name]) - 1  # there is one velocity less than there are knots
        self.field_panel.show(plots.field(trace, name, min(self.knot.value, last)))


class VocoderLab(ComputePanel):
    """Run the vocoder on a recorded mel with other number types: what that does to f0 and waveform.

    Parameters
    ----------
    pipe : Pipeline
    trace : Trace
        A run with `flow/mel`.

    Examples
    --------
    >>> wb.widgets.VocoderLab(pipe, trace)  # empty until `render_now()` or a control moves
    VocoderLab()
    """

    OPTIONS = ("hift_dtype", "f0_dtype", "source_dtype", "head_dtype")

    def __init__(self, pipe: Pipeline, trace: Trace) -> None:
        self.pipe = pipe
        self.trace = trace
        self.own_options = pipe.checkpoint.options.but(**trace.attrs.get("options", {}))
        super().__init__(
            {name: dropdown(name, DTYPES, getattr(self.own_options, name)) for name in self.OPTIONS}
        )

    def compute(self, values: dict[str, Any], bar: Bar) -> RunPair:
        """Vocode the mel with these types, and with those of the run."""
        pipe = self.pipe.watched(bar)
        trace = pipe.replay(self.trace, "hift", self.own_options.but(**values))
        reference = pipe.replay(self.trace, "hift", self.own_options)
        return RunPair(trace, reference)

    def draw(self, result: RunPair) -> None:
        """Show both to hear, f0 of both, and the metrics."""
        self.show(
            player(*result, names=["as set", "the run's own"]),
            plots.f0(result.trace, reference=result.reference, names=("the run's own", "as set")),
            metric_table(result),
        )


class SamplingLab(ComputePanel):
    """Draw speech tokens with other sampling options: silences, repeats, where the LM would stop.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance

    Examples
    --------
    >>> wb.widgets.SamplingLab(pipe, utt)  # empty until `render_now()` or a control moves
    SamplingLab()
    """

    def __init__(self, pipe: Pipeline, utt: Utterance) -> None:
        self.pipe = pipe
        self.utt = utt
        self.own_options = own = pipe.checkpoint.options
        super().__init__(
            {
                "seed": int_slider("seed", own.seed, 0, 99),
                "top_p": float_slider("top_p", own.top_p, 0.05, 1.0),
                "top_k": int_slider("top_k", own.top_k, 1, 100),
                "win_size": int_slider("win_size", own.win_size, 1, 50),
                "tau_r": float_slider("tau_r", own.tau_r, 0.0, 1.0),
                "silent_tokens_repeat": checkbox("silent tokens count as repeats", own.silent_tokens_repeat),
                "repetition_fallback": dropdown("fallback", ("full", "top_k"), own.repetition_fallback),
                "max_silent_run": optional_integer("max_silent_run", "keep all", own.max_silent_run),
            }
        )

    def compute(self, values: dict[str, Any], bar: Bar) -> Trace:
        """Draw the tokens with these options, and speak them."""
        max_silent_run = parse_optional_integer(values["max_silent_run"], "max_silent_run")
        options = self.own_options.but(**values | {"max_silent_run": max_silent_run})
        fields = ("lm/logp", "lm/entropy", "lm/drawn_token")
        pipe = self.pipe.watched(bar)
        return pipe.synthesise(self.utt, options=options, save=fields)

    def draw(self, result: Trace) -> None:
        """Show the tokens over time, the silences and repeats among them, and the sound."""
        self.show(player(result), plots.tokens(result), table(run_lengths(result), RUN_UNITS))


def ode_explorer(pipe: Pipeline, utt: Utterance, seed: int = 0) -> OdeExplorer:
    """Return an `OdeExplorer` with its first view drawn.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    seed : int
        Seed of the speech tokens, which no control changes.

    Returns
    -------
    OdeExplorer

    Examples
    --------
    >>> wb.widgets.ode_explorer(pipe, utt, seed=7).controls["n_timesteps"].value
    10
    """
    return OdeExplorer(pipe, utt, seed).render_now()


def vocoder_lab(pipe: Pipeline, trace: Trace) -> VocoderLab:
    """Return a `VocoderLab` with its first view drawn.

    Parameters
    ----------
    pipe : Pipeline
    trace : Trace
        A run with `flow/mel`.

    Returns
    -------
    VocoderLab

    Examples
    --------
    >>> wb.widgets.vocoder_lab(pipe, trace).controls["f0_dtype"].value
    'float64'
    """
    return VocoderLab(pipe, trace).render_now()


def sampling_lab(pipe: Pipeline, utt: Utterance) -> SamplingLab:
    """Return a `SamplingLab` with its first view drawn.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance

    Returns
    -------
    SamplingLab

    Examples
    --------
    >>> wb.widgets.sampling_lab(pipe, utt).controls["top_k"].value
    25
    """
    return SamplingLab(pipe, utt).render_now()
