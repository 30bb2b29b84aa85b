"""Measure how often `find_suspects` is right, on faults that it knows and on faults that it does not know.

Five questions are asked. Is a fault of the catalogue named? Is nothing named for a fault that is not listed?
Is the listed one of two faults named where the other is not listed? Is nobody accused for a right run, in
whatever form other programs store it? Is the format of quantised
weights named, and no fault? Faults that are not listed come from a kind with a parameter, and that
kind is then left out of the search.

The runs that are asked about add up in another order than ours do, as those of any other program. Texts,
prompts and seeds are used nowhere else, so that nothing was tuned on them.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.quantisation.units import weights_of
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, Fault, applied, inject
from workbench.diagnose.suspects.catalogue.kinds import KINDS, Kind
from workbench.diagnose.suspects.diagnosis import Diagnosis
from workbench.diagnose.suspects.other_kernels import FOREIGN_SUMS
from workbench.diagnose.suspects.quantised import COMMON
from workbench.diagnose.suspects.simulate import FaultSimulator
from workbench.diagnose.suspects.suspects import find_suspects
from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.speech.checkpoint.quantised.layers import layers
from workbench.speech.config.formats import FALLBACKS, HALF, with_inputs
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import LM_INPUTS, SUFFIX
from workbench.trace.trace import Trace

COLUMNS = ("case", "view", "made", "named", "outcome")
# (text, prompt, seed of the sampler)
HELD_OUT = (
    ("The harbour lights went out.", "gongitsune_1.flac", 101),
    ("Nobody had seen the letter.", "alpha_1.flac", 202),
    ("She closed the window before dinner.", "nezumi_1.flac", 303),
    ("Bring two more chairs, please.", "tebukuro_0.flac", 404),
    ("He left his umbrella at the station.", "kumo_1.flac", 505),
    ("The bread is still warm.", "kumo_alpha_1.flac", 606),
)
FULL_SCALE = 32_768  # of a 16-bit sample
RECOMMENDED = (  # what notebooks/record-your-own.md asks for
    *("lm/speech_token", "flow/mu", "flow/x", "flow/mel", "hift/f0", "hift/source", "hift/wav"),
)


class Row(NamedTuple):
    """The answer for one run."""

    case: str  # "catalogue", "not listed", "listed and not listed", "two listed", "right run"
    view: str  # what was kept of the run, and how it was stored
    made: str  # names of the faults in it
    named: str  # names that find_suspects gave
    # "right"; "wrong": a fault was named that is not there; "none": a listed one was not named;
    # "no effect": the faults changed nothing; "no run": the faulty run failed
    outcome: str


def held_out(pipe: Pipeline, prompts: str | os.PathLike | None = None) -> list[tuple[Utterance, int]]:
    """Return the utterances of the self-test with their seeds; `prompts` is the folder of the recordings."""
    folder = data_path("prompts") if prompts is None else Path(prompts)
    return [(pipe.prepare(text, folder / prompt), seed) for text, prompt, seed in HELD_OUT]


# ---- what is kept of a run, and how it is stored


def full_trace(trace: Trace) -> Trace:
    """Keep everything that a run can record."""
    return trace


def statistics_only(trace: Trace) -> Trace:
    """Keep statistics of every field of flow and vocoder, as a log does."""
    fields = [name for name in trace if name.startswith(("flow/", "hift/", "lm/entropy"))]
    return Trace({name + SUFFIX: trace.statistics(name) for name in fields}, trace.attrs)


def mel_and_waveform(trace: Trace) -> Trace:
    """Keep the mel and the waveform, which every port can save."""
    return kept(trace, "flow/mel", "hift/wav")


def kept(trace: Trace, *fields: str) -> Trace:
    """Keep some fields."""
    return Trace({name: trace[name] for name in fields}, trace.attrs)


def stored(trace: Trace, form: Callable[[Tensor], Tensor]) -> Trace:
    """Store every floating-point field in a form."""
    data = {name: form(x).float() if x.is_floating_point() else x for name, x in trace.items()}
    return Trace(data, trace.attrs)


def with_16_bit_waveform(trace: Trace) -> Trace:
    """Store the waveform as a 16-bit file does."""
    wav = (trace["hift/wav"] * FULL_SCALE).round() / FULL_SCALE
    return Trace(dict(trace.data) | {"hift/wav": wav}, trace.attrs)


def without_lm_inputs(trace: Trace) -> Trace:
    """Drop what the LM was given and what it computed, but for the speech tokens."""
    lm_only = (*LM_INPUTS, "lm/logp", "lm/entropy", "lm/drawn_token")
    return kept(trace, *(name for name in trace if name.removesuffix(SUFFIX) not in lm_only))


def printed(trace: Trace, digits: int) -> Trace:
    """Print every number with some significant digits, and read it again."""
    data = {}
    for name, x in trace.items():
        numbers = [float(f"{number:.{digits}g}") for number in x.double().flatten().tolist()]
        data[name] = torch.tensor(numbers, dtype=torch.float64).view(x.shape)
    return Trace(data, trace.attrs)


def rounded(x: Tensor) -> Tensor:
    """Print three decimals."""
    return (x.double() * 1000).round() / 1000


VIEWS: Mapping[str, Callable[[Trace], Trace]] = {
    "whole trace": full_trace,
    "statistics": statistics_only,
    "mel and waveform": mel_and_waveform,
}
RIGHT_VIEWS: Mapping[str, Callable[[Trace], Trace]] = {
    **VIEWS,
    "mel, 16-bit waveform": lambda trace: with_16_bit_waveform(mel_and_waveform(trace)),
    "16-bit waveform": lambda trace: with_16_bit_waveform(kept(trace, "hift/wav")),
    "waveform": lambda trace: kept(trace, "hift/wav"),
    "mel of 3 decimals, waveform": lambda trace: Trace(
        {"flow/mel": rounded(trace["flow/mel"]).float(), "hift/wav": trace["hift/wav"]}, trace.attrs
    ),
    "whole trace, 3 decimals": lambda trace: stored(trace, rounded),
    "statistics of 4 digits": lambda trace: printed(statistics_only(trace), 4),
    "statistics of 3 decimals": lambda trace: stored(statistics_only(trace), rounded),
    "without the LM's inputs": without_lm_inputs,
    "recommended recording": lambda trace: kept(trace, *RECOMMENDED),
    **{
        f"{part}, {name}": lambda trace, keep=keep, dtype=dtype: stored(keep(trace), lambda x: x.to(dtype))
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
        for part, keep in (("whole trace", full_trace), ("mel and waveform", mel_and_waveform))
    },
}


# ---- the self-test


def self_test(
    pipe: Pipeline,
    utterances: Sequence[tuple[Utterance, int]],
    faults: Sequence[Fault] = CATALOGUE,
    views: Sequence[str] = tuple(VIEWS),
    pairs: int = 0,
    unlisted: int = 0,
    healthy: int = 0,
    draw: int = 0,
) -> Iterator[Row]:
    """Make runs with and without faults, and ask `find_suspects` about each.

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
        Number of random pairs of faults, in whole traces: as many of two listed faults as of a listed one and
        one that is not listed.
    unlisted : int
        Number of faults that are not listed; each is looked for in every view.
    healthy : int
        Number of right runs, with other seeds, in all of `RIGHT_VIEWS` in turn.
    draw : int
        Seed by which pairs and faults that are not listed are drawn.
    """
    references = (pipe.synthesise(utt, seed, save=EVERYTHING) for utt, seed in utterances)
    simulators = itertools.cycle([FaultSimulator(reference, pipe) for reference in references])
    chance = random.Random(draw)
    for fault in faults:
        yield from _ask("catalogue", next(simulators), [fault], [fault], KINDS, views)
    for fault, others in _drawn(pipe, chance, unlisted):
        yield from _ask("not listed", next(simulators), [fault], [], others, views)
    for _ in range(pairs):
        two = chance.sample(list(faults), 2)
        yield from _ask("two listed", next(simulators), two, two, KINDS, ["whole trace"])
    for fault, others in _drawn(pipe, chance, pairs):
        known = chance.choice([one for one in faults if not _same_function(one, fault)])
        both = [known, fault]
        yield from _ask("listed and not listed", next(simulators), both, [known], others, ["whole trace"])
    names = itertools.cycle(RIGHT_VIEWS)
    for n in range(healthy):
        utt, seed = utterances[n % len(utterances)]
        with applied([FOREIGN_SUMS]):
            trace = pipe.synthesise(utt, seed + 1 + n, save=EVERYTHING)
        name = next(names)
        found = find_suspects(trace, RIGHT_VIEWS[name](trace), pipe)
        outcome = "wrong" if found.verdicts or found.objection else "right"
        yield Row("right run", name, "", _named(found), outcome)


def format_trials(
    pipe: Pipeline,
    utterances: Sequence[tuple[Utterance, int]],
    count: int,
    draw: int = 0,
    views: Sequence[str] = tuple(VIEWS),
) -> Iterator[Row]:
    """Make runs with quantised weights, and ask `find_suspects` for the format.

    The format, the layers that have it, and whether the program also quantises the inputs of linear layers
    are drawn. Whole traces are asked about, and mel and waveform where the LM is left alone.

    Parameters
    ----------
    pipe, utterances, draw, views
        As in `self_test`.
    count : int
        Number of runs with quantised weights.
    """
    references = (pipe.synthesise(utt, seed, save=EVERYTHING) for utt, seed in utterances)
    simulators = itertools.cycle([FaultSimulator(reference, pipe) for reference in references])
    chance = random.Random(draw)
    scopes = _scopes(pipe)
    for simulator in itertools.islice(simulators, count):
        scope, text = chance.choice(list(scopes)), chance.choice([one for one in COMMON if one not in HALF])
        asked = with_inputs(text) if chance.random() < 0.5 else text
        has_lm = any(name.startswith("lm.") for name in scopes[scope])
        made = quantised_run(weights_of((name, asked) for name in scopes[scope]), has_lm)
        candidate = inject(pipe, simulator.reference, [made, FOREIGN_SUMS])
        asked_of = ("whole trace",) if has_lm else ("whole trace", "mel and waveform")
        for view in asked_of:
            if view not in views:
                continue
            found = find_suspects(simulator.reference, VIEWS[view](candidate), pipe, simulator=simulator)
            yield Row("quantised", view, f"{asked} in {scope}", found.line, _format_outcome(found, text))


def quantised_run(weights: str, has_lm: bool) -> Fault:
    """Return a "fault" that gives a run quantised weights; `has_lm` says whether the LM has some."""
    first = "lm/logp" if has_lm else "flow/spks"
    return Fault("quantised", (first,), "the weights are quantised", "a choice", options={"weights": weights})


def _scopes(pipe: Pipeline) -> dict[str, list[str]]:
    """Return layers that ports quantise, by words for them."""
    table = layers(pipe.checkpoint)
    linear = list(table.loc[table["kind"] == "Linear", "layer"])
    blocks = "flow.decoder.estimator.transformer_blocks."
    return {
        "everything": list(table["layer"]),
        "linear layers": linear,
        "the LM's linear layers": [name for name in linear if name.startswith("lm.")],
        "the flow's linear layers": [name for name in linear if name.startswith("flow.")],
        "the estimator's blocks": [name for name in linear if name.startswith(blocks)],
    }


def _format_outcome(found: Diagnosis, text: str) -> str:
    """Return whether the format is named, for some part at least, and nothing else."""
    if found.healthy:
        return "no effect"
    right = {text, FALLBACKS.get(text), "float16"}  # narrow layers have another format, and ggml says which
    is_surplus = len(found.formats) < len(found.explained_by)
    if is_surplus or any(right.isdisjoint(_bare(each)) for each in found.formats.values()):
        return "wrong"
    return "right" if any(text in _bare(each) for each in found.formats.values()) else "none"


def _bare(texts: str) -> set[str]:
    """Return formats that are tied, without what they say of inputs."""
    return {text.removesuffix("dynamic").rstrip(":,") for text in texts.split(" or ")}


def _drawn(pipe: Pipeline, draw: random.Random, count: int) -> Iterator[tuple[Fault, list[Kind]]]:
    """Draw faults from the kinds in turn, each with all kinds but its own."""
    kinds = itertools.cycle(draw.sample(KINDS, len(KINDS)))
    for _ in range(count):
        kind = next(kinds)
        yield draw.choice(list(kind.faults(pipe))), [other for other in KINDS if other is not kind]


def _same_function(a: Fault, b: Fault) -> bool:
    """Whether two faults replace the same function, so that only one of them would be in a run."""
    functions = {(patch.owner, patch.name) for patch in a.patches}
    return any((patch.owner, patch.name) in functions for patch in b.patches)


def _ask(
    case: str,
    simulator: FaultSimulator,
    made: Sequence[Fault],
    listed: Sequence[Fault],
    kinds: Sequence[Kind],
    views: Sequence[str],
) -> Iterator[Row]:
    """Inject faults into one run and look for the listed ones in several views of it."""
    names = " and ".join(fault.name for fault in made)
    reference, pipe = simulator.reference, simulator.pipe
    try:
        candidate = inject(pipe, reference, [*made, FOREIGN_SUMS])
        has_effect = len(made) == 1 or all(_shows(fault, made, candidate, simulator) for fault in listed)
    except (WorkbenchError, RuntimeError) as error:
        for view in views:
            yield Row(case, view, names, str(error), "no run")
        return
    for view in views:
        if not has_effect:
            yield Row(case, view, names, "", "no effect")
            continue
        found = find_suspects(reference, VIEWS[view](candidate), pipe, simulator=simulator, kinds=kinds)
        yield Row(case, view, names, _named(found), outcome_of(found, [fault.name for fault in listed]))


def _shows(fault: Fault, made: Sequence[Fault], candidate: Trace, simulator: FaultSimulator) -> bool:
    """Whether one fault of several changes a run, and is found wrong where it is alone.

    A fault may change nothing, such as "silent tokens are dropped" where none is drawn, or change no more
    than rounding does.
    """
    reference, pipe = simulator.reference, simulator.pipe
    others = [other for other in made if other is not fault]
    without = inject(pipe, reference, [*others, FOREIGN_SUMS])
    changes = any(not torch.equal(candidate[name], without[name]) for name in candidate if name in without)
    alone = inject(pipe, reference, [fault, FOREIGN_SUMS])
    return changes and not find_suspects(reference, alone, pipe, simulator=simulator, kinds=()).healthy


def outcome_of(found: Diagnosis, listed: Sequence[str]) -> str:
    """Return whether an answer is right: it names every listed fault that is there, and no other."""
    if found.healthy:
        return "no effect"
    ties = {tie.name for verdict in found.verdicts for tie in verdict.ties}
    expected, named = set(listed), set(found.explained_by)
    # A tie is an honest answer: the faults come to the same in what was recorded.
    surplus = named - expected
    if len(surplus) > len(expected & ties):
        return "wrong"
    if expected <= named | ties:
        return "right"
    return "none"


def _named(found: Diagnosis) -> str:
    return " and ".join(found.explained_by)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return by case and view the number of runs, and the shares of right, wrong and missed answers."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.loc[frame["case"] == "right run", "view"] = "all forms"
    frame["effect"] = ~frame["outcome"].isin(("no effect", "no run"))
    counted = frame[frame["effect"]]
    for outcome in ("right", "wrong", "none"):
        counted = counted.assign(**{outcome: counted["outcome"] == outcome})
    groups = counted.groupby(["case", "view"], sort=False)
    summary = groups[["right", "wrong", "none"]].mean()
    summary.insert(0, "runs", groups.size())
    no_effect = frame[frame["outcome"] == "no effect"].groupby(["case", "view"]).size()
    summary["no_effect"] = no_effect.reindex(summary.index).fillna(0).astype(int)
    return summary.reset_index()


def confusions(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the runs whose answer was not right."""
    wrong = [row for row in rows if row.outcome in ("wrong", "none")]
    return pd.DataFrame(wrong, columns=COLUMNS)
