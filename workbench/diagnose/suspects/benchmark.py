"""How often `find_suspects` is right: every mistake is made on purpose, on texts and seeds of their own."""

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from workbench.diagnose.suspects.faults import CATALOGUE, Fault, applied, options_of, spoiled
from workbench.diagnose.suspects.simulate import Rehearsals
from workbench.diagnose.suspects.suspects import find_suspects
from workbench.errors import WorkbenchError
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import utterance_of
from workbench.speech.run import run_part
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace

TOP = 3  # two mistakes at once shall both be among the first so many
COLUMNS = ("view", "made", "named", "first", "among", "outcome")


# Nothing was tuned on these: other sentences, prompts and seeds than those of examples and tests.
HELD_OUT = (
    ("The harbour lights went out.", "gongitsune_1.flac", 101),
    ("Nobody had seen the letter.", "alpha_1.flac", 202),
)
PROMPTS = Path("data/prompts")


class Row(NamedTuple):
    """One run with mistakes, and what was said of it."""

    view: str
    made: str
    named: str
    first: bool  # the first suspect is the mistake (of two: both are among the first three)
    among: bool  # all mistakes are among the first three
    outcome: str  # "right", "wrong", "none", "no effect", "no run"


def held_out(pipe: Pipeline, prompts: str | os.PathLike = PROMPTS) -> list[tuple[Utterance, int]]:
    """Return what the self-test speaks, with the sampler's seeds."""
    return [(pipe.prepare(text, Path(prompts) / prompt), seed) for text, prompt, seed in HELD_OUT]


def inject(pipe: Pipeline, reference: Trace, faults: Sequence[Fault]) -> Trace:
    """Make a run with mistakes that says nothing of them: no options but the seed.

    Raises
    ------
    WorkbenchError
        When the mistakes leave nothing to run.
    """
    options = pipe.checkpoint.options.but(**reference.attrs["options"])
    utt = spoiled(faults, utterance_of(reference))
    start = "lm" if any(fault.stage == "lm" for fault in faults) else "flow"
    with applied(faults):
        made = run_part(pipe, utt, options_of(faults, options), EVERYTHING, start, given=reference)
    recorded = (
        {name: reference[name] for name in reference if name.startswith("lm/")} if start == "flow" else {}
    )
    about = {"sample_rate": made.sample_rate, "prompt_frames": made.prompt_frames}
    return Trace(made.data | recorded, about | {"options": {"seed": options.seed}})


def whole(trace: Trace) -> Trace:
    """Everything that a run can record."""
    return trace


def heard(trace: Trace) -> Trace:
    """What the outside sees: the mel and the waveform."""
    return Trace({name: trace[name] for name in ("flow/mel", "hift/wav")}, trace.attrs)


def summed_up(trace: Trace) -> Trace:
    """Statistics alone, of every field of flow and vocoder, as from a log."""
    fields = [name for name in trace if name.startswith(("flow/", "hift/", "lm/entropy"))]
    return Trace({name + SUFFIX: trace.statistics(name) for name in fields}, trace.attrs)


VIEWS: Mapping[str, Callable[[Trace], Trace]] = {
    "whole trace": whole,
    "statistics": summed_up,
    "mel and waveform": heard,
}


def self_test(
    pipe: Pipeline,
    utterances: Sequence[tuple[Utterance, int]],
    faults: Sequence[Fault] = CATALOGUE,
    views: Sequence[str] = tuple(VIEWS),
    pairs: int = 0,
    clean: int = 0,
) -> Iterator[Row]:
    """Make mistakes and ask for them.

    Parameters
    ----------
    pipe : Pipeline
    utterances : sequence of (Utterance, int)
        What is spoken, with the sampler's seed; taken in turns.
    faults : sequence of Fault
        Each is made once for every view.
    views : sequence of str
        Of `VIEWS`: what is left of the run.
    pairs : int
        So many pairs of mistakes, drawn without looking, in whole traces.
    clean : int
        So many runs without a mistake, of other seeds.
    """
    spoken = (pipe.synthesise(utt, seed, save=EVERYTHING) for utt, seed in utterances)
    rehearsals = itertools.cycle([Rehearsals(reference, pipe) for reference in spoken])
    for fault in faults:
        yield from _cases(next(rehearsals), (fault,), views)
    draw = random.Random(0)
    for _ in range(pairs):
        yield from _cases(next(rehearsals), tuple(draw.sample(list(faults), 2)), ("whole trace",))
    for n in range(clean):
        utt, seed = utterances[n % len(utterances)]
        said = find_suspects(None, pipe.synthesise(utt, seed + 1 + n, save=EVERYTHING), pipe)
        outcome = "right" if said.clean or not said.together else "wrong"
        yield Row("clean run", "", " and ".join(said.together), outcome == "right", True, outcome)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """How often the mistake was named, by view; mistakes without an effect on the run are not counted."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    counted = frame[~frame["outcome"].isin(("no effect", "no run"))]
    summary = counted.groupby("view", sort=False).agg(
        runs=("made", "size"), top_1=("first", "mean"), top_3=("among", "mean")
    )
    summary["no_effect"] = frame[frame["outcome"] == "no effect"].groupby("view").size()
    return summary.fillna({"no_effect": 0}).astype({"no_effect": int})


def confusions(rows: Sequence[Row]) -> pd.DataFrame:
    """What was named in place of what, by view."""
    wrong = [row for row in rows if row.outcome in ("wrong", "none")]
    return pd.DataFrame(wrong, columns=COLUMNS)[["view", "made", "named"]]


def _cases(rehearsals: Rehearsals, faults: Sequence[Fault], views: Sequence[str]) -> Iterator[Row]:
    made = " and ".join(fault.name for fault in faults)
    reference, pipe = rehearsals.reference, rehearsals.pipe
    try:
        candidate = inject(pipe, reference, faults)
    except (WorkbenchError, RuntimeError) as error:
        yield from (Row(view, made, str(error), False, False, "no run") for view in views)
        return
    for view in views:
        said = find_suspects(reference, VIEWS[view](candidate), pipe, rehearsals=rehearsals)
        names = [suspect.fault.name for suspect in said.suspects[:TOP]]
        found = all(fault.name in names for fault in faults)
        first = found if len(faults) > 1 else said.together == (made,)
        outcome = "no effect" if said.clean else "right" if first else "wrong" if said.together else "none"
        label = view if len(faults) == 1 else "two mistakes at once"
        yield Row(label, made, " and ".join(said.together), first, found, outcome)
