"""Measure how often `find_suspects` is right: inject every fault and check that it is named.

Texts, prompts and seeds are used nowhere else, so that nothing was tuned on them.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from workbench.diagnose.suspects.faults import CATALOGUE, Fault, inject
from workbench.diagnose.suspects.simulate import FaultSimulator
from workbench.diagnose.suspects.suspects import find_suspects
from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace

TOP = 3  # two faults at once must both be among the first three suspects
COLUMNS = ("view", "injected", "named", "first", "in_top", "outcome")

# (text, prompt, seed of the sampler)
HELD_OUT = (
    ("The harbour lights went out.", "gongitsune_1.flac", 101),
    ("Nobody had seen the letter.", "alpha_1.flac", 202),
)


class Row(NamedTuple):
    """The result for one run with faults."""

    view: str  # what was kept of the run, see VIEWS
    injected: str  # names of the injected faults
    named: str  # names that find_suspects gave
    first: bool  # the first suspect is the injected fault; for two faults, both are among the first three
    in_top: bool  # all injected faults are among the first three suspects
    outcome: str  # "right", "wrong", "none" (named nothing), "no effect" (of the fault), "no run" (it failed)


def held_out(pipe: Pipeline, prompts: str | os.PathLike | None = None) -> list[tuple[Utterance, int]]:
    """Return the utterances of the self-test with their seeds; `prompts` is the folder of the recordings."""
    folder = data_path("prompts") if prompts is None else Path(prompts)
    return [(pipe.prepare(text, folder / prompt), seed) for text, prompt, seed in HELD_OUT]


def full_trace(trace: Trace) -> Trace:
    """Keep everything that a run can record."""
    return trace


def statistics_only(trace: Trace) -> Trace:
    """Keep statistics of every field of flow and vocoder, as a log does."""
    fields = [name for name in trace if name.startswith(("flow/", "hift/", "lm/entropy"))]
    return Trace({name + SUFFIX: trace.statistics(name) for name in fields}, trace.attrs)


def mel_and_waveform(trace: Trace) -> Trace:
    """Keep the mel and the waveform, which every port can save."""
    return Trace({name: trace[name] for name in ("flow/mel", "hift/wav")}, trace.attrs)


VIEWS: Mapping[str, Callable[[Trace], Trace]] = {
    "whole trace": full_trace,
    "statistics": statistics_only,
    "mel and waveform": mel_and_waveform,
}


def self_test(
    pipe: Pipeline,
    utterances: Sequence[tuple[Utterance, int]],
    faults: Sequence[Fault] = CATALOGUE,
    views: Sequence[str] = tuple(VIEWS),
    pairs: int = 0,
    healthy: int = 0,
) -> Iterator[Row]:
    """Inject each fault and check that `find_suspects` names it.

    Parameters
    ----------
    pipe : Pipeline
    utterances : sequence of (Utterance, int)
        What is spoken, with the sampler's seed; used in turn.
    faults : sequence of Fault
        Each is injected once and looked for in every view.
    views : sequence of str
        Of `VIEWS`: what is kept of the run.
    pairs : int
        Number of random pairs of faults, looked for in whole traces.
    healthy : int
        Number of runs without a fault, with other seeds.
    """
    references = (pipe.synthesise(utt, seed, save=EVERYTHING) for utt, seed in utterances)
    simulators = itertools.cycle([FaultSimulator(reference, pipe) for reference in references])
    for fault in faults:
        yield from _test_faults(next(simulators), (fault,), views)
    draw = random.Random(0)
    for _ in range(pairs):
        pair = tuple(draw.sample(list(faults), 2))
        yield from _test_faults(next(simulators), pair, ("whole trace",))
    for n in range(healthy):
        utt, seed = utterances[n % len(utterances)]
        trace = pipe.synthesise(utt, seed + 1 + n, save=EVERYTHING)
        found = find_suspects(None, trace, pipe)
        is_right = found.healthy or not found.explained_by
        outcome = "right" if is_right else "wrong"
        yield Row("healthy run", "", " and ".join(found.explained_by), is_right, True, outcome)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return how often the fault was named, by view; faults without an effect on the run are not counted."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    counted = frame[~frame["outcome"].isin(("no effect", "no run"))]
    summary = counted.groupby("view", sort=False).agg(
        runs=("injected", "size"), top_1=("first", "mean"), top_3=("in_top", "mean")
    )
    summary["no_effect"] = frame[frame["outcome"] == "no effect"].groupby("view").size()
    return summary.fillna({"no_effect": 0}).astype({"no_effect": int})


def confusions(rows: Sequence[Row]) -> pd.DataFrame:
    """Return which faults were named instead of the injected ones, by view."""
    wrong = [row for row in rows if row.outcome in ("wrong", "none")]
    return pd.DataFrame(wrong, columns=COLUMNS)[["view", "injected", "named"]]


def _test_faults(simulator: FaultSimulator, faults: Sequence[Fault], views: Sequence[str]) -> Iterator[Row]:
    """Inject faults into one run and look for them in several views of it."""
    injected = " and ".join(fault.name for fault in faults)
    reference, pipe = simulator.reference, simulator.pipe
    try:
        candidate = inject(pipe, reference, faults)
    except (WorkbenchError, RuntimeError) as error:
        for view in views:
            yield Row(view, injected, str(error), False, False, "no run")
        return
    for view in views:
        found = find_suspects(reference, VIEWS[view](candidate), pipe, simulator=simulator)
        top_names = [suspect.fault.name for suspect in found.suspects[:TOP]]
        in_top = all(fault.name in top_names for fault in faults)
        ties = {tie.name for verdict in found.verdicts for tie in verdict.ties}
        named = {*found.explained_by, *ties}
        first = all(fault.name in named for fault in faults) and len(found.explained_by) == len(faults)
        if found.healthy:
            outcome = "no effect"
        elif first:
            outcome = "right"
        else:
            outcome = "wrong" if found.explained_by else "none"
        label = view if len(faults) == 1 else "two faults at once"
        yield Row(label, injected, " and ".join(found.explained_by), first, in_top, outcome)
