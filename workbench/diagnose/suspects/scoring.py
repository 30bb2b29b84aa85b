"""Collect observations of a candidate, and score how well sets of faults explain them.

An `Observation` is one result that the candidate recorded, with a function that predicts it for any set of
faults. Some predictions are *local*: one call of our model on the inputs that the candidate recorded. All
others need a simulated run (`simulate.py`). A `Scorer` measures how far predictions are from the candidate.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare.distance import ALLOWANCE, EPS, place_name, relative
from workbench.diagnose.compare.transitions import (
    FLOAT64_PRECISION,
    UPSTREAM_PRECISION,
    Transition,
    entry,
    loop_dimension,
    transitions,
)
from workbench.diagnose.suspects.faults import Fault, Faults, applied, faulty_options
from workbench.diagnose.suspects.simulate import RANK, Predictor
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES, SUFFIX
from workbench.trace.trace import Trace

HEALTHY: Faults = ()  # no faults

# Distances are relative L2.
MAX_DISTANCE = 10.0  # also where no distance can be measured: other shapes, NaN on one side only
RUN_TOLERANCE = 1e-4  # what other kernels may add up to over a whole run, and the few digits of a log

# Scores are in decades (powers of ten) above rounding.
MIN_TOTAL_SCORE = 0.3  # a smaller total needs no explanation; 0.3 decades is a factor of 2
MIN_WRONG_SCORE = MIN_TOTAL_SCORE / 2  # above it a single observation is wrong
# A random fault predicts only the size of an error. If the size matches, the observation gets this score
# instead of 0, so that faults that predict every value rank before random faults.
SIZE_MATCH_SCORE = 0.15
SIZE_TOLERANCE = 0.3  # decades by which the size may be off and still match: it varies from draw to draw
MAX_FIT_SCORE = 0.3  # up to this score a fault fits an observation; above SIZE_MATCH_SCORE

# Steps of the ODE at which the estimator is recomputed: first, middle and last. It costs most of the time,
# and its faults show at every step.
RECOMPUTED_STEPS = 3


class Observation(NamedTuple):
    """One result that the candidate recorded, and what a model with faults would have recorded there."""

    field: str
    index: int | None  # draw, knot or step; None for a whole field
    found: Tensor  # what the candidate recorded
    predict: Callable[[Faults], Tensor | None]  # returns None where the model with these faults fails
    affects: Callable[[Fault], bool]  # whether a fault can change this result
    allowed: float  # relative distance that rounding explains
    is_statistics: bool = False  # `found` holds statistics (..., 6), not values
    is_local: bool = False  # predicted from the candidate's own inputs, without a simulated run


class Scorer:
    """Score sets of faults by how far the candidate is from a model that has them; lower is better.

    The score of one observation is 0 if its distance is within rounding, 1 if it is ten times as large as
    rounding allows, 2 if a hundred times. The total is the sum over fields; of a field with several entries
    the average counts, so that a loop of many steps does not outweigh other fields.

    Predictions and scores are cached, because the search needs the same ones many times.

    Parameters
    ----------
    observations : list of Observation
        Methods refer to them by their number in this list.
    """

    def __init__(self, observations: list[Observation]) -> None:
        self.observations = observations
        self.has_local = any(observation.is_local for observation in observations)
        self.predict = functools.cache(self._predict)
        self.score = functools.cache(self._score)

    # ---- scores

    def total(self, faults: Faults) -> float:
        """Return the score of a model with these faults over all observations; lower is better."""
        scores_by_field: dict[str, list[float]] = {}
        for number, observation in enumerate(self.observations):
            scores_by_field.setdefault(observation.field, []).append(self.score(number, faults))
        return sum(sum(scores) / len(scores) for scores in scores_by_field.values())

    def _score(self, number: int, faults: Faults) -> float:
        """Return the score of one observation under these faults."""
        observation = self.observations[number]
        # Drop faults that cannot change this observation: many sets of faults then share one cached score.
        effective = tuple(fault for fault in faults if observation.affects(fault))
        if effective != faults:
            return self.score(number, effective)

        allowed = observation.allowed
        if any(fault.random for fault in effective):
            # The size of error that these faults cause in our model. Within rounding it cannot be recognised.
            expected_error = self._distance_between(number, HEALTHY, effective)
            if expected_error > allowed:
                return self._score_by_size(number, expected_error)
        return _decades_above(allowed, self.distance(number, effective))

    def _score_by_size(self, number: int, expected_error: float) -> float:
        """Return the score of a random fault: is the candidate's error as large as the fault would cause?"""
        found_error = self.distance(number, HEALTHY)
        healthy_score = _decades_above(self.observations[number].allowed, found_error)
        # max: the logarithm of an error of exactly zero is not finite.
        decades_off = abs(math.log10(max(found_error, 1e-12) / expected_error))
        if decades_off <= SIZE_TOLERANCE:
            return min(healthy_score, SIZE_MATCH_SCORE)
        return healthy_score  # the size does not match: the fault explains nothing here

    def distance(self, number: int, faults: Faults) -> float:
        """Return the distance of the candidate's result to that of a model with these faults."""
        observation = self.observations[number]
        return distance_of(observation.found, self.predict(number, faults), observation.is_statistics)

    def _distance_between(self, number: int, faults: Faults, other_faults: Faults) -> float:
        """Return the distance between two predictions of one observation."""
        a, b = self.predict(number, faults), self.predict(number, other_faults)
        if a is None or b is None:
            return MAX_DISTANCE
        return distance_of(b, a, self.observations[number].is_statistics)

    def _predict(self, number: int, faults: Faults) -> Tensor | None:
        return self.observations[number].predict(faults)

    def _is_wrong(self, number: int) -> bool:
        """Whether the candidate differs from a healthy model at this observation."""
        return self.score(number, HEALTHY) > MIN_WRONG_SCORE

    # ---- which faults are worth scoring

    def faults_to_try(self, catalogue: Iterable[Fault]) -> list[Fault]:
        """Return the faults that can change a wrong observation and are not ruled out by right ones."""
        wrong = [one for number, one in enumerate(self.observations) if self._is_wrong(number)]
        wrong_fields = {observation.field for observation in wrong}
        # Statistics may hide an error, such as a shift by one frame, so they rule nothing out.
        fields_with_values = {one.field for one in self.observations if not one.is_statistics}
        found = []
        for fault in catalogue:
            affects_error = any(observation.affects(fault) for observation in wrong)
            # A fault shows in its own fields. If all of them were recorded and are right, it is not there.
            all_recorded = fields_with_values.issuperset(fault.fields)
            all_right = wrong_fields.isdisjoint(fault.fields)
            if affects_error and not (all_recorded and all_right):
                found.append(fault)
        return found

    def faults_of_first_error(self, faults: Iterable[Fault]) -> list[Fault]:
        """Return the faults that can explain the first wrong observation in causal order.

        There are two kinds. Either the first wrong field is one of the fault's own fields. Or one of the
        fault's own fields was not observed, so that the error may have begun there; but then nothing
        observed before the first error may deny the fault.
        """
        order = sorted(range(len(self.observations)), key=lambda k: _causal_key(self.observations[k]))
        before_error = []
        first_wrong_field = ""
        for number in order:
            if self._is_wrong(number):
                first_wrong_field = self.observations[number].field
                break
            before_error.append(self.observations[number])
        observed = {observation.field for observation in self.observations}
        found = []
        for fault in faults:
            is_own_field = first_wrong_field in fault.fields
            may_begin_unobserved = not observed.issuperset(fault.fields)
            is_denied = any(_denies(observation, fault) for observation in before_error)
            if is_own_field or (may_begin_unobserved and not is_denied):
                found.append(fault)
        return found

    def alignment(self, fault: Fault) -> float:
        """Return how much a fault changes results in the direction of the candidate's error, from 0 to 1.

        It is the largest cosine between (faulty - healthy) and (candidate - healthy) over all wrong
        observations. Unlike the score it is high also where a second fault adds to the error, so it finds the
        faults to try in pairs.
        """
        best = 0.0
        for number, observation in enumerate(self.observations):
            if not observation.affects(fault) or not self._is_wrong(number):
                continue
            healthy, faulty = self.predict(number, HEALTHY), self.predict(number, (fault,))
            if healthy is None or faulty is None:
                continue
            if healthy.shape == faulty.shape == observation.found.shape:
                best = max(best, _cosine(faulty - healthy, observation.found - healthy))
        return best

    # ---- for the reader

    def evidence(self, fault: Fault) -> pd.DataFrame:
        """Return the distances behind a suspicion, one row for each observation that the fault affects.

        Returns
        -------
        DataFrame
            `place`; `healthy` and `faulty`, the distances to a healthy model and to one with this fault;
            `allowed`, the distance that rounding explains; `fits`, whether the fault explains the result.
        """
        rows = []
        for number, observation in enumerate(self.observations):
            if observation.affects(fault):
                rows.append(
                    {
                        "place": place_name(observation.field, observation.index),
                        "healthy": self.distance(number, HEALTHY),
                        "faulty": self.distance(number, (fault,)),
                        "allowed": observation.allowed,
                        "fits": self.score(number, (fault,)) <= MAX_FIT_SCORE,
                    }
                )
        return pd.DataFrame(rows, columns=["place", "healthy", "faulty", "allowed", "fits"])


def _denies(right: Observation, fault: Fault) -> bool:
    """Whether a right observation shows that a fault is not there.

    It does if the fault would have changed it. Statistics of flow and vocoder show nothing: they may stay the
    same, such as when all frames are shifted by one.
    """
    is_certain = not right.is_statistics or right.field.startswith("lm/")
    return is_certain and right.affects(fault)


def _causal_key(observation: Observation) -> tuple[int, int, int]:
    """Return a sorting key for causal order.

    Fields of the ODE loop are sorted by step first, all at the rank of the loop; within a step by their order
    in the schema: the state at a knot, then the velocities computed from it.
    """
    is_ode = loop_dimension(observation.field) and observation.field.startswith("flow/")
    first_ode_field = "flow/t"
    rank = RANK[first_ode_field if is_ode else observation.field]
    return rank, observation.index or 0, RANK[observation.field]


def _decades_above(allowed: float, distance: float) -> float:
    """Return by how many powers of ten a distance exceeds what is allowed; 0 within it."""
    return math.log10(max(distance, allowed) / allowed)


def distance_of(found: Tensor, predicted: Tensor | None, is_statistics: bool = False) -> float:
    """Return the relative distance of two results, at most `MAX_DISTANCE`.

    Parameters
    ----------
    found, predicted : Tensor
        None for a prediction that could not be computed: as far as can be.
    is_statistics : bool
        Both hold statistics (..., 6). The distance is then the root mean square over the statistics that
        `found` has (a log leaves some NaN), each relative to the largest statistic of its row.
    """
    if predicted is None or found.shape != predicted.shape:
        return MAX_DISTANCE
    if is_statistics:
        values = found[..., :-1]  # without the last statistic, a count of NaN and Inf
        # 1e-6: no division by zero where all of a row is zero.
        largest = values.abs().nan_to_num(0.0).amax(-1, keepdim=True).clamp(min=1e-6)  # (..., 1)
        errors = ((found - predicted) / largest)[~found.isnan()]
        if not errors.isfinite().all():
            return MAX_DISTANCE
        return min(MAX_DISTANCE, float(errors.square().mean().sqrt()))
    if not found.is_floating_point():  # token ids: the share that differs
        return relative(found, predicted)
    # NaN and Inf must be in the same places; the distance is measured over the other values.
    finite = found.isfinite()
    if not torch.equal(finite, predicted.isfinite()):
        return MAX_DISTANCE
    return min(MAX_DISTANCE, relative(predicted[finite], found[finite]))


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().nan_to_num().flatten(), b.double().nan_to_num().flatten()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))  # 1e-300: no division by zero


# ---- observations


def observations(candidate: Trace, predictor: Predictor) -> Iterator[Observation]:
    """Yield every result of the candidate that can be predicted.

    A result whose inputs the candidate recorded is predicted from these. Everything else is predicted by
    simulated runs, as far as the predictor can.
    """
    options = predictor.simulator.options
    # Local predictions: one transition of the run at a time.
    local_fields: set[str] = set()
    for step in _transitions_to_recompute(candidate):
        if step.outputs == ("lm/drawn_token",) and predictor.can_predict("lm/drawn_token"):
            continue  # drawing from the candidate's own probabilities does not show how many it should draw
        has_outputs = any(field in candidate for field in step.outputs)
        if has_outputs and step.can_recompute(candidate):
            local_fields.update(step.outputs)
            yield from _local_observations(step, candidate, predictor.pipe, options)
    # Simulated runs for all other fields, as values or else as statistics.
    for name in candidate:
        field = name.removesuffix(SUFFIX)
        has_better_form = name != field and field in candidate
        if field not in local_fields and not has_better_form and predictor.can_predict(field):
            yield from _run_observations(name, predictor, options)


def _transitions_to_recompute(candidate: Trace) -> Iterator[Transition]:
    """Yield the candidate's transitions; those of the estimator only at `RECOMPUTED_STEPS` steps."""
    steps = list(transitions(candidate))
    last_step = sum(step.outputs == BRANCH_VELOCITIES for step in steps) - 1
    # Spread evenly, the first and the last step included.
    chosen = {round(k * last_step / (RECOMPUTED_STEPS - 1)) for k in range(RECOMPUTED_STEPS)}
    for step in steps:
        if step.outputs != BRANCH_VELOCITIES or step.index in chosen:
            yield step


def _local_observations(
    step: Transition, candidate: Trace, pipe: Pipeline, options: Options
) -> Iterator[Observation]:
    """Yield the results of one transition, predicted from the candidate's own inputs."""
    upstream_precision = options.but(**UPSTREAM_PRECISION)
    float64 = options.but(**FLOAT64_PRECISION)

    # One call of our model returns all outputs of the transition, so it is cached for all observations.
    @functools.cache
    def recompute(faults: Faults, options: Options) -> tuple[Tensor, ...] | None:
        try:
            with applied(faults):
                results = step.recompute(pipe, candidate, faulty_options(faults, options))
                return tuple(result.cpu() for result in results)
        except (WorkbenchError, RuntimeError):  # the model failed: a mel of NaN, or lengths that do not fit
            return None

    def local_observation(position: int, field: str) -> Observation:
        """Return the observation of one output of the transition."""

        def predict(faults: Faults) -> Tensor | None:
            results = recompute(faults, upstream_precision)
            return None if results is None else results[position]

        def affects(fault: Fault) -> bool:
            # The inputs are fixed, so only faults that show in this very field can change it.
            return field in fault.fields

        # Rounding: the distance between a healthy model in float32 and in float64.
        rounding = 0.0
        healthy, exact = recompute(HEALTHY, upstream_precision), recompute(HEALTHY, float64)
        if healthy is not None and exact is not None:
            rounding = relative(exact[position], healthy[position])
        allowed = ALLOWANCE * max(rounding, EPS)
        found = entry(candidate, field, step.index)
        return Observation(field, step.index, found, predict, affects, allowed, is_local=True)

    for position, field in enumerate(step.outputs):
        if field in candidate:
            yield local_observation(position, field)


def _run_observations(name: str, predictor: Predictor, options: Options) -> Iterator[Observation]:
    """Yield one field of the candidate, or the statistics of one, predicted by simulated runs."""
    field = name.removesuffix(SUFFIX)
    is_statistics = name != field
    upstream_precision = options.but(**UPSTREAM_PRECISION)
    float64 = options.but(**FLOAT64_PRECISION)
    found = predictor.comparable(name, predictor.candidate)
    healthy = predictor.predict(name, HEALTHY, upstream_precision)
    exact = predictor.predict(name, HEALTHY, float64)

    def run_observation(index: int | None) -> Observation:
        """Return the observation of one entry of the field, or of the whole field for None."""

        def predict(faults: Faults) -> Tensor | None:
            result = predictor.predict(name, faults, upstream_precision)
            if result is None or index is None:
                return result
            # With another number of entries the faulty run has no entry to compare.
            return result[index] if len(result) == len(found) else None

        def affects(fault: Fault) -> bool:
            return predictor.affects(fault, field, index)

        # Rounding: the distance between a healthy run in float32 and in float64. It is limited from above,
        # because over a whole run rounding can flip decisions, and from below by what other kernels do.
        found_here = _at(index, found)
        healthy_here = _at(index, healthy)
        exact_here = _at(index, exact)
        both_ran = healthy_here is not None and exact_here is not None
        rounding = 0.0
        if both_ran and found_here.shape == healthy_here.shape == exact_here.shape:
            rounding = distance_of(healthy_here, exact_here, is_statistics)
        allowed = max(RUN_TOLERANCE, ALLOWANCE * min(rounding, RUN_TOLERANCE))
        return Observation(field, index, found_here, predict, affects, allowed, is_statistics)

    # A field that grows in a loop is observed entry by entry, so that the first wrong step can be found. If a
    # healthy run has another number of entries, they do not correspond, and the field is one observation.
    has_same_entries = healthy is not None and exact is not None and found.shape == healthy.shape
    indices = range(len(found)) if has_same_entries and loop_dimension(field) else (None,)
    for index in indices:
        if is_statistics and _at(index, found).isnan().all():
            continue  # nothing is known of it, such as the state before the first step in a log
        yield run_observation(index)


def _at(index: int | None, result: Tensor | None) -> Tensor | None:
    """Return one entry of a result, or all of it for None."""
    return result if result is None or index is None else result[index]
