"""Collect the results that a candidate recorded, each with a function that predicts it for any set of faults.

There are two kinds of predictions. A *local* one calls our model once, on the inputs that the candidate
recorded, so that only faults of this one result matter. All others need a simulated run (`simulate.py`).
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.diagnose.compare.distance import ALLOWANCE, EPS, relative
from workbench.diagnose.compare.transitions import (
    FLOAT64_PRECISION,
    UPSTREAM_PRECISION,
    Transition,
    entry,
    loop_dimension,
    transitions,
)
from workbench.diagnose.suspects.faults import HEALTHY, Fault, Faults, applied, faulty_options
from workbench.diagnose.suspects.simulate import Predictor
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES, SUFFIX
from workbench.trace.trace import Trace

# Distances are relative L2.
MAX_DISTANCE = 10.0  # also where no distance can be measured: other shapes, NaN on one side only
RUN_TOLERANCE = 1e-4  # what other kernels may add up to over a whole run, and the few digits of a log

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
    def recompute(faults: Faults, healthy_options: Options) -> tuple[Tensor, ...] | None:
        try:
            with applied(faults):
                results = step.recompute(pipe, candidate, faulty_options(faults, healthy_options))
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


# ---- distance


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
