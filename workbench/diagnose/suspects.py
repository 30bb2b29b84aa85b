"""Which known mistake another implementation's run looks like.

`diagnose(reference, candidate, pipe)` makes every mistake of the catalogue on purpose. A result whose inputs
the candidate recorded is worked out again from just those inputs, by the right model and by each wrong one;
what lacks its inputs is compared with whole runs from the reference's. The mistake whose values are the
candidate's own is the suspect; its statistics will do where there are no values.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare import ALLOWANCE, DOUBLE, EPS, SINGLE
from workbench.diagnose.difference import place_name, relative
from workbench.diagnose.faults import CATALOGUE, Fault, applied, options_of, spoiled
from workbench.diagnose.transitions import Transition, entry, transitions
from workbench.errors import WorkbenchError
from workbench.speech.audio import log_mel
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.speech.run import run, utterance_of
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import FIELDS, STATS, SUFFIX
from workbench.trace.trace import Trace

FAR = 10.0  # relative distance of what cannot be compared: other shapes, NaN on one side
LEAST = 0.3  # decades above rounding from which on there is something to explain
ENOUGH = 0.5  # share of the error that a suspect explains
CLEAR = 0.95  # share from which on no second mistake is looked for
UNSURE = 0.15  # decades: what is known by its size alone stands behind what fits value by value
STEEP = 4.0  # times the decades by which such a size is off
WHOLE_RUN = 1e-4  # relative: what other kernels may add up to over a whole run, and a log's few digits
PAIRED = 6  # mistakes that are tried in pairs
SAMPLED = 3  # steps whose velocities are worked out again
RANK = {name: place for place, name in enumerate(FIELDS)}
SOUND = ("hift/source", "hift/wav")  # compared as log-mels: their phase follows every f0 before it
LM_INPUTS = ("in/text_token", "in/prompt_text_token", "in/lm_prompt_token")

Faults = tuple[Fault, ...]


class Seen(NamedTuple):
    """One result of the candidate, and how to have it from a model with some mistakes."""

    field: str
    index: int | None
    found: Tensor
    foresee: Callable[[Faults], Tensor | None]  # None where the mistakes leave no result
    concerns: Callable[[Fault], bool]  # whether a mistake can change it
    allowed: float  # relative distance that rounding explains
    scale: Tensor | None = None  # of statistics: what they are divided by


@dataclass(frozen=True)
class Suspect:
    """A mistake of the catalogue and how well it fits.

    Attributes
    ----------
    fault : Fault
    explained : float
        Share of the error, in decades above rounding, that is gone when ours makes this mistake too: 1 is all
        of it, 0 none, below 0 it makes things worse.
    evidence : DataFrame
        A row per result it concerns: `place`, `right` and `wrong` (relative distance of the candidate to the
        right model and to the one with this mistake), `allowed` (what rounding explains), `fits`.
    """

    fault: Fault
    explained: float
    evidence: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.fault.name} ({100 * max(self.explained, 0):.0f} %): {self.fault.cause}"


class Diagnosis:
    """What `diagnose` found.

    Attributes
    ----------
    suspects : list of Suspect
        The best first; those of a combination that explains the run together come before all others.
    together : tuple of str
        Names of the mistakes that explain the run best, one or two; none where nothing does.
    explained : float
        Share of the error that they explain together.
    clean : bool
        Whether every result is within rounding, so that there is nothing to explain.
    next_experiment : str
        What would tell the first two suspects apart.
    """

    def __init__(
        self, suspects: list[Suspect], together: tuple[str, ...], explained: float, clean: bool, next_: str
    ) -> None:
        self.suspects, self.together, self.explained = suspects, together, explained
        self.clean, self.next_experiment = clean, next_

    @property
    def line(self) -> str:
        """The answer in one line."""
        if self.clean:
            return "nothing to explain: every result is what the model gives, within rounding"
        if not self.together:
            best = f"; the nearest, {self.suspects[0]}" if self.suspects else ""
            return f"none of these: no known mistake explains half of the error{best}"
        named = " and ".join(str(s) for s in self.suspects[: len(self.together)])
        return f"{named}. Explained: {100 * self.explained:.0f} % of the error"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a suspect: name, stage, explained, cause, source."""
        rows = [
            (s.fault.name, s.fault.stage, s.explained, s.fault.cause, s.fault.source) for s in self.suspects
        ]
        return pd.DataFrame(rows, columns=["suspect", "stage", "explained", "cause", "source"])

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = self.to_frame().head(10).to_html(float_format="{:.2f}".format, border=0, index=False)
        evidence = (
            self.suspects[0].evidence.to_html(float_format="{:.2g}".format, border=0, index=False)
            if self.together
            else ""
        )
        after = f"<p>{escape(self.next_experiment)}</p>" if self.next_experiment else ""
        return f"<div><b>{escape(self.line)}</b>{after}{table}{evidence}</div>"


def diagnose(
    reference: Trace | None,
    candidate: Trace,
    pipe: Pipeline,
    catalogue: Sequence[Fault] = CATALOGUE,
) -> Diagnosis:
    """Name the known mistakes that the candidate's run looks like.

    Parameters
    ----------
    reference : Trace or None
        A right run of the same utterance, with its `in/*` fields. None where the candidate has recorded
        its own inputs.
    candidate : Trace
        Whole, partial (a mel and a waveform), or statistics alone, as from a text log.
    pipe : Pipeline
        Of the checkpoint that both should have run.
    catalogue : sequence of Fault
        The mistakes to try.

    Returns
    -------
    Diagnosis

    Raises
    ------
    WorkbenchError
        When neither trace says what was spoken.
    """
    if reference is None:
        reference = candidate
    seen = list(_observations(reference, candidate, pipe))
    if not seen:
        raise WorkbenchError("the candidate has no field that follows from another; record a mel at least")
    costs = _Costs(seen)
    at_first = costs.total(())
    if at_first <= LEAST:
        return Diagnosis([], (), 1.0, True, "")
    singles = {fault: costs.total((fault,)) for fault in costs.worth_trying(catalogue)}
    order = sorted(singles, key=singles.__getitem__)
    best = _best(costs, order, at_first)
    explained = 1 - costs.total(best) / at_first
    order = [*best, *(fault for fault in order if fault not in best)]
    suspects = [Suspect(f, 1 - singles[f] / at_first, costs.evidence(f)) for f in order]
    together = tuple(fault.name for fault in best) if explained >= ENOUGH else ()
    rivals = [s for s in suspects if s.explained >= ENOUGH or s.fault in best][:2]
    next_ = _separate(rivals, reference, candidate, pipe) if len(rivals) == 2 and len(best) < 2 else ""
    return Diagnosis(suspects, together, explained, False, next_)


# ---- how much of the error is left


class _Costs:
    """Decades by which the candidate is farther from a model than rounding explains, summed over fields."""

    def __init__(self, seen: list[Seen]) -> None:
        self.seen = seen
        self.foresee = functools.cache(self._foresee)

    def total(self, faults: Faults) -> float:
        """Of a model with these mistakes; entries of one field are averaged."""
        fields: dict[str, list[float]] = {}
        for place in range(len(self.seen)):
            fields.setdefault(self.seen[place].field, []).append(self.at(place, faults))
        return sum(sum(costs) / len(costs) for costs in fields.values())

    def at(self, place: int, faults: Faults) -> float:
        """Of one result."""
        seen = self.seen[place]
        mine = tuple(fault for fault in faults if seen.concerns(fault))
        far, _ = self.distances(place, mine)
        if any(fault.random for fault in mine):
            size = self._between(place, mine)
            if size > seen.allowed:
                right, _ = self.distances(place, ())
                off = abs(math.log10(max(right, 1e-12) / size))
                return min(_decades(right, seen), UNSURE + STEEP * off)
        return _decades(far, seen)

    def distances(self, place: int, faults: Faults) -> tuple[float, float]:
        """Of the candidate to the model with these mistakes, and what rounding explains."""
        seen = self.seen[place]
        return _distance(seen.found, self.foresee(place, faults), seen.scale), seen.allowed

    def worth_trying(self, catalogue: Iterable[Fault]) -> list[Fault]:
        """Mistakes that can change a result that is wrong."""
        wrong = [seen for place, seen in enumerate(self.seen) if self.at(place, ()) > LEAST / 2]
        return [fault for fault in catalogue if any(seen.concerns(fault) for seen in wrong)]

    def alignment(self, fault: Fault) -> float:
        """Cosine between what the mistake changes and what is wrong, at its best place."""
        best = 0.0
        for place, seen in enumerate(self.seen):
            if seen.concerns(fault) and self.at(place, ()) > LEAST / 2:
                right, wrong = self.foresee(place, ()), self.foresee(place, (fault,))
                if right is not None and wrong is not None and right.shape == wrong.shape == seen.found.shape:
                    best = max(best, _cosine(wrong - right, seen.found - right))
        return best

    def evidence(self, fault: Fault) -> pd.DataFrame:
        """How the results that a mistake concerns lie to the right model and to the wrong one."""
        rows = []
        for place, seen in enumerate(self.seen):
            if seen.concerns(fault):
                right, allowed = self.distances(place, ())
                wrong, _ = self.distances(place, (fault,))
                fits = self.at(place, (fault,)) <= max(LEAST, UNSURE)
                rows.append((place_name(seen.field, seen.index), right, wrong, allowed, fits))
        return pd.DataFrame(rows, columns=["place", "right", "wrong", "allowed", "fits"])

    def _foresee(self, place: int, faults: Faults) -> Tensor | None:
        return self.seen[place].foresee(faults)

    def _between(self, place: int, faults: Faults) -> float:
        right = self.foresee(place, ())
        wrong = self.foresee(place, faults)
        return FAR if right is None or wrong is None else _distance(wrong, right, self.seen[place].scale)


def _best(costs: _Costs, order: list[Fault], at_first: float) -> Faults:
    """The mistake, or the two, that leave least to explain."""
    if not order:
        return ()
    best: Faults = (order[0],)
    if costs.total(best) <= (1 - CLEAR) * at_first:
        return best
    aligned = sorted(order, key=costs.alignment, reverse=True)[:PAIRED]
    elsewhere = [(order[0], fault) for fault in order[1:]]
    pairs = {frozenset(pair): pair for pair in (*itertools.combinations(aligned, 2), *elsewhere)}
    pair = min(pairs.values(), key=costs.total, default=best)
    gain = costs.total(best) - costs.total(pair)
    return pair if gain > max(LEAST, 0.1 * at_first) else best


def _decades(distance: float, seen: Seen) -> float:
    return math.log10(max(distance, seen.allowed) / seen.allowed)


def _distance(found: Tensor, other: Tensor | None, scale: Tensor | None) -> float:
    """Relative L2, up to `FAR`; of statistics, the root mean square of those that are known."""
    if other is None or found.shape != other.shape:
        return FAR
    if scale is not None:
        known = ~found.isnan()
        apart = ((found - other) / scale)[known]
        return min(FAR, float(apart.square().mean().sqrt())) if apart.isfinite().all() else FAR
    if not found.is_floating_point():
        return relative(found, other)
    bad = ~found.isfinite()
    if not torch.equal(bad, ~other.isfinite()):
        return FAR
    return min(FAR, relative(other[~bad], found[~bad]))


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().nan_to_num().flatten(), b.double().nan_to_num().flatten()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))


# ---- what was seen


def _observations(reference: Trace, candidate: Trace, pipe: Pipeline) -> Iterator[Seen]:
    """Every result of the candidate that follows from others, or from what the reference was given."""
    options = pipe.checkpoint.options.but(**reference.attrs.get("options", {}))
    single, double = options.but(**SINGLE), options.but(**DOUBLE)
    local = set()
    for step in _sampled(candidate):
        if step.ready(candidate) and any(field in candidate for field in step.fields):
            local.update(step.fields)
            yield from _from_inputs(step, candidate, pipe, single, double)
    runs = _Runs(reference, candidate, pipe)
    for name in candidate:
        field = name.removesuffix(SUFFIX)
        if field not in local and (name == field or field not in candidate) and runs.reaches(field):
            yield from _from_runs(name, runs, single, double)


def _sampled(candidate: Trace) -> Iterator[Transition]:
    """Transitions, the costly ones at a few steps only."""
    steps = list(transitions(candidate))
    asked = [step for step in steps if step.fields[0] == "flow/velocity_cond"]
    some = {round(k * (len(asked) - 1) / (SAMPLED - 1)) for k in range(SAMPLED)}
    left_out = [step for k, step in enumerate(asked) if k not in some]
    return (step for step in steps if step not in left_out)


def _from_inputs(
    step: Transition, candidate: Trace, pipe: Pipeline, single: Options, double: Options
) -> Iterator[Seen]:
    """Results of one transition, from the candidate's own inputs."""

    @functools.cache
    def work(faults: Faults, options: Options = single) -> tuple[Tensor, ...] | None:
        try:
            with applied(faults):
                return tuple(y.cpu() for y in step.work(pipe, candidate, options_of(faults, options)))
        except (WorkbenchError, RuntimeError):  # such as a mel of NaN, or lengths that do not fit
            return None

    right, exact = work(()), work((), double)
    for at, field in enumerate(step.fields):
        if field not in candidate:
            continue
        rounding = relative(exact[at], right[at]) if right and exact else 0.0

        def foresee(faults: Faults, at: int = at) -> Tensor | None:
            results = work(faults)
            return None if results is None else results[at]

        def concerns(fault: Fault, field: str = field) -> bool:
            return field in fault.fields

        found = entry(candidate, field, step.index)
        yield Seen(field, step.index, found, foresee, concerns, ALLOWANCE * max(rounding, EPS))


def _from_runs(name: str, runs: "_Runs", single: Options, double: Options) -> Iterator[Seen]:
    """A field, or statistics of one, by whole runs."""
    field = name.removesuffix(SUFFIX)

    def foresee(faults: Faults) -> Tensor | None:
        return runs.result(name, faults, single)

    def concerns(fault: Fault) -> bool:
        return runs.concerned(fault, field)

    found, right, exact = runs.heard(name, runs.candidate), foresee(()), runs.result(name, (), double)
    scale = None
    if name != field and right is not None:
        scale = right[..., STATS.index("rms")].abs().clamp(min=1e-6)[..., None]
    comparable = right is not None and exact is not None and right.shape == exact.shape
    rounding = _distance(right, exact, scale) if comparable else 0.0
    scale = scale if scale is None or scale.shape[:-1] == found.shape[:-1] else torch.ones(())
    yield Seen(field, None, found, foresee, concerns, max(WHOLE_RUN, ALLOWANCE * rounding), scale)


class _Runs:
    """Runs with mistakes, of what the reference was given; each begins as late as the candidate allows."""

    def __init__(self, reference: Trace, candidate: Trace, pipe: Pipeline) -> None:
        self.reference, self.candidate, self.pipe = reference, candidate, pipe
        self.others = candidate is not reference
        self.leg = functools.cache(self._leg)
        seeds = [trace.attrs.get("options", {}).get("seed") for trace in (reference, candidate)]
        self.drawn_alike = None not in seeds and seeds[0] == seeds[1]
        self.has_inputs = all(name in reference for name in (*LM_INPUTS, "in/prompt_mel", "in/spk_embedding"))
        self.has_tokens = "lm/speech_token" in candidate or "lm/speech_token" in reference
        self.draws = self.has_inputs and self.drawn_alike and "lm/speech_token" not in candidate

    def reaches(self, field: str) -> bool:
        """Whether runs can tell what a field should be."""
        stage = field.partition("/")[0]
        if field in ("hift/phase", "hift/source", "hift/magnitude") and "hift/wav" in self.candidate:
            return False  # the waveform says it, without the phase
        if stage == "in":
            both = field in self.candidate and field in self.reference
            return field == "in/prompt_mel" and self.others and both
        if stage == "lm":
            return self.has_inputs and self.drawn_alike and self.others
        if stage == "hift" and "flow/mel" in self.candidate:
            return True
        return self.has_inputs and self.has_tokens

    def concerned(self, fault: Fault, field: str) -> bool:
        """Whether a mistake can change a field, in the leg that leads to it."""
        if RANK[fault.fields[0]] > RANK[field]:
            return False
        stage = field.partition("/")[0]
        before_flow = ("in", "lm", "flow") if self.draws else ("in", "flow")
        starts = {"in": ("in",), "lm": ("lm",), "flow": before_flow}
        if stage != "hift":
            return fault.stage in starts[stage]
        return fault.stage == "hift" or ("flow/mel" not in self.candidate and fault.stage in starts["flow"])

    def result(self, name: str, faults: Faults, options: Options) -> Tensor | None:
        """A field, or statistics of one, of a run with mistakes."""
        field = name.removesuffix(SUFFIX)
        if field == "in/prompt_mel":
            return spoiled(faults, utterance_of(self.reference)).prompt_mel[0]
        try:
            trace = self.leg(field.partition("/")[0], faults, options)
        except (WorkbenchError, RuntimeError):  # such as a mel of NaN: no sound can follow
            return None
        return self.heard(name, trace) if field in trace else None

    def heard(self, name: str, trace: Trace) -> Tensor:
        """A field as it is compared: itself, its statistics, or sound as log-mel."""
        field = name.removesuffix(SUFFIX)
        if name != field:
            return trace.statistics(field)
        if field in SOUND:
            return log_mel(trace[field].float(), self.pipe.config.mel)[0]
        return trace[field]

    def _leg(self, stage: str, faults: Faults, options: Options) -> Trace:
        utt = spoiled(faults, utterance_of(self.reference)) if self.has_inputs else None
        options = options_of(faults, options)
        given = self.reference
        if "lm/speech_token" in self.candidate:
            token = self.candidate["lm/speech_token"]
            given = Trace({"lm/speech_token": token}, {})
        with applied(faults):
            if stage == "lm":
                return run(self.pipe, utt, options, EVERYTHING, "lm", "lm")
            if stage == "hift" and "flow/mel" in self.candidate:
                return run(self.pipe, None, options, EVERYTHING, "hift", given=self.candidate)
            from_text = self.draws and any(fault.stage == "lm" for fault in faults)
            return run(self.pipe, utt, options, EVERYTHING, "lm" if from_text else "flow", given=given)


# ---- what would tell two suspects apart


def _separate(rivals: list[Suspect], reference: Trace, candidate: Trace, pipe: Pipeline) -> str:
    """Name the field, not recorded yet, in which two mistakes differ most."""
    runs = _Runs(reference, candidate, pipe)
    options = pipe.checkpoint.options.but(**reference.attrs.get("options", {}))
    if not (runs.has_inputs and runs.has_tokens) or any(s.fault.stage == "lm" for s in rivals):
        return ""
    try:
        first, second = (runs.leg("flow", (s.fault,), options) for s in rivals)
    except (WorkbenchError, RuntimeError):
        return ""
    apart = {
        field: _distance(first[field], second[field], None)
        for field in first
        if field not in candidate and field in second and not field.startswith("in/")
    }
    names = " from ".join(s.fault.name for s in rivals)
    if not apart or max(apart.values()) < 10 * WHOLE_RUN:
        return f"Nothing that a run records would tell {names}: on this utterance they come to the same."
    field = max(apart, key=apart.__getitem__)
    return f"To tell {names}, record {field}: there they are {100 * apart[field]:.0f} % apart."
