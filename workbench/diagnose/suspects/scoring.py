"""What was seen of a run, and how far each of it lies from models that make mistakes."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare.compare import ALLOWANCE, DOUBLE, EPS, SINGLE
from workbench.diagnose.compare.distance import place_name, relative
from workbench.diagnose.compare.transitions import Transition, entry, loop_of, transitions
from workbench.diagnose.suspects.faults import Fault, Faults, applied, options_of
from workbench.diagnose.suspects.simulate import RANK, Runs
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace

FAR = 10.0  # relative distance of what cannot be compared: other shapes, NaN on one side
LEAST = 0.3  # decades above rounding from which on there is something to explain
UNSURE = 0.15  # decades: what is known by its size alone stands behind what fits value by value
SLACK = 0.3  # decades by which such a size may be off: it is one draw of many
WHOLE_RUN = 1e-4  # relative: what other kernels may add up to over a whole run, and a log's few digits
SAMPLED = 3  # steps whose velocities are worked out again


class Seen(NamedTuple):
    """One result of the candidate, and how to have it from a model with some mistakes."""

    field: str
    index: int | None
    found: Tensor
    foresee: Callable[[Faults], Tensor | None]  # None where the mistakes leave no result
    concerns: Callable[[Fault], bool]  # whether a mistake can change it
    allowed: float  # relative distance that rounding explains
    summed: bool = False  # statistics, not values
    from_inputs: bool = False  # of the candidate, so that a second mistake elsewhere costs no whole run


class Costs:
    """Decades by which the candidate is farther from a model than rounding explains, summed over fields."""

    def __init__(self, seen: list[Seen]) -> None:
        self.seen = seen
        self.from_inputs = any(one.from_inputs for one in seen)
        self.foresee = functools.cache(self._foresee)
        self.at = functools.cache(self._at)

    def total(self, faults: Faults) -> float:
        """Of a model with these mistakes; entries of one field are averaged."""
        fields: dict[str, list[float]] = {}
        for place in range(len(self.seen)):
            fields.setdefault(self.seen[place].field, []).append(self.at(place, faults))
        return sum(sum(costs) / len(costs) for costs in fields.values())

    def _at(self, place: int, faults: Faults) -> float:
        """Of one result."""
        seen = self.seen[place]
        mine = tuple(fault for fault in faults if seen.concerns(fault))
        if mine != faults:
            return self.at(place, mine)
        far, _ = self.distances(place, mine)
        if any(fault.random for fault in mine):
            size = self._between(place, mine)
            if size > seen.allowed:
                right, _ = self.distances(place, ())
                off = abs(math.log10(max(right, 1e-12) / size))
                return min(_decades(right, seen), UNSURE) if off <= SLACK else _decades(right, seen)
        return _decades(far, seen)

    def distances(self, place: int, faults: Faults) -> tuple[float, float]:
        """Of the candidate to the model with these mistakes, and what rounding explains."""
        seen = self.seen[place]
        return distance_of(seen.found, self.foresee(place, faults), seen.summed), seen.allowed

    def worth_trying(self, catalogue: Iterable[Fault]) -> list[Fault]:
        """Mistakes that can change a result that is wrong."""
        bad = [self.at(place, ()) > LEAST / 2 for place in range(len(self.seen))]
        wrong = [seen for seen, is_bad in zip(self.seen, bad, strict=True) if is_bad]
        proven = {seen.field for seen in self.seen if not seen.summed}
        off = {seen.field for seen in wrong}
        return [
            fault
            for fault in catalogue
            # A mistake shows where it is made: where all its own results were seen and are right, it was not.
            if any(seen.concerns(fault) for seen in wrong)
            and not (proven.issuperset(fault.fields) and off.isdisjoint(fault.fields))
        ]

    def at_the_root(self, faults: Iterable[Fault]) -> list[Fault]:
        """Mistakes that can have made the first wrong result: it is their own, or what was not seen is.

        A mistake that was not seen would have spoiled everything after it, so nothing before may be right.
        """
        order = sorted(range(len(self.seen)), key=lambda place: _causal(self.seen[place]))
        wrong = [self.at(place, ()) > LEAST / 2 for place in order]
        first = wrong.index(True)
        field, before = self.seen[order[first]].field, [self.seen[place] for place in order[:first]]
        noted = {seen.field for seen in self.seen}
        return [
            fault
            for fault in faults
            if field in fault.fields
            or (not noted.issuperset(fault.fields) and not any(_denies(seen, fault) for seen in before))
        ]

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
        return FAR if right is None or wrong is None else distance_of(wrong, right, self.seen[place].summed)


def _denies(right: Seen, fault: Fault) -> bool:
    """Whether a right result says that a mistake before it was not made; statistics hide a shifted frame."""
    return right.concerns(fault) and (not right.summed or right.field.startswith("lm/"))


def _causal(seen: Seen) -> tuple[int, int, int]:
    """Order of results: those of the solver by step, the state before the velocities it is asked for."""
    solver = loop_of(seen.field) and seen.field.startswith("flow/")
    return RANK["flow/t" if solver else seen.field], seen.index or 0, RANK[seen.field]


def _decades(distance: float, seen: Seen) -> float:
    return math.log10(max(distance, seen.allowed) / seen.allowed)


def distance_of(found: Tensor, other: Tensor | None, summed: bool = False) -> float:
    """Relative L2, up to `FAR`; of statistics, the root mean square of those that are known."""
    if other is None or found.shape != other.shape:
        return FAR
    if summed:
        largest = found[..., :-1].abs().nan_to_num(0.0).amax(-1, keepdim=True).clamp(min=1e-6)
        apart = ((found - other) / largest)[~found.isnan()]
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


def observations(candidate: Trace, runs: Runs) -> Iterator[Seen]:
    """Every result of the candidate that follows from others, or from what the reference was given."""
    options = runs.rehearsals.options
    single, double = options.but(**SINGLE), options.but(**DOUBLE)
    local = set()
    for step in _sampled(candidate):
        if step.fields == ("lm/drawn_token",) and runs.reaches("lm/drawn_token"):
            continue  # how many are drawn is seen in a whole run alone
        if step.ready(candidate) and any(field in candidate for field in step.fields):
            local.update(step.fields)
            yield from _from_inputs(step, candidate, runs.pipe, single, double)
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
        allowed = ALLOWANCE * max(rounding, EPS)
        yield Seen(field, step.index, found, foresee, concerns, allowed, from_inputs=True)


def _from_runs(name: str, runs: Runs, single: Options, double: Options) -> Iterator[Seen]:
    """A field, or statistics of one, by whole runs; what grows in a loop entry by entry."""
    field = name.removesuffix(SUFFIX)
    found = runs.heard(name, runs.candidate)
    right, exact = (runs.result(name, (), options) for options in (single, double))
    whole = right is None or exact is None or found.shape != right.shape or not loop_of(field)

    for index in (None,) if whole else range(len(found)):

        def foresee(faults: Faults, index: int | None = index) -> Tensor | None:
            result = runs.result(name, faults, single)
            if result is None or index is None:
                return result
            return result[index] if len(result) == len(found) else None

        def concerns(fault: Fault, index: int | None = index) -> bool:
            return runs.concerned(fault, field, index)

        mine, ours, best = (y if index is None or y is None else y[index] for y in (found, right, exact))
        alike = ours is not None and best is not None and mine.shape == ours.shape == best.shape
        summed = name != field
        if summed and mine.isnan().all():
            continue  # nothing is known of it, such as the state before the first step in a log
        rounding = distance_of(ours, best, summed) if alike else 0.0
        allowed = max(WHOLE_RUN, ALLOWANCE * min(rounding, WHOLE_RUN))
        yield Seen(field, index, mine, foresee, concerns, allowed, summed)
