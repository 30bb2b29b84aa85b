"""Collect the results that a candidate recorded, each with a function that predicts it for any set of faults.

There are two kinds of predictions. A *local* one calls our model once, on the inputs that the candidate
recorded, so that only faults of this one result matter. All others need a simulated run (`simulate.py`).
What cannot be predicted at all is no observation; `Observed.unchecked` says why.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.diagnose.compare.distance import ALLOWANCE, place_name, relative
from workbench.diagnose.compare.rounding import STORAGE_ALLOWANCE, StoredRun, recompute
from workbench.diagnose.compare.transitions import (
    FLOAT64_PRECISION,
    UNPREDICTABLE,
    UPSTREAM_PRECISION,
    Transition,
    entry,
    loop_dimension,
    transitions,
)
from workbench.diagnose.suspects.catalogue.faults import HEALTHY, Fault, Faults, applied, faulty_options
from workbench.diagnose.suspects.simulate import AUDIO_FIELDS, Predictor
from workbench.errors import WorkbenchError, first_line
from workbench.trace.print_errors import half_unit
from workbench.trace.schema import LM_INPUTS, SUFFIX, dims_of
from workbench.trace.storage import Storage, beyond_storage
from workbench.trace.trace import Trace

# Distances are relative L2.
MAX_DISTANCE = 10.0  # also where results have other shapes, or NaN on one side only
RUN_TOLERANCE = 1e-4  # what other kernels may add up to over a whole run, and the few digits of a log
# Nats by which the tokens may be less likely than the LM's own draws are: at so many standard deviations of
# their mean, and somewhat more, because the recorded tokens lack the silences that were dropped.
TOKEN_DEVIATIONS = 5.0
TOKEN_SLACK = 0.1


@dataclass(frozen=True)
class Observation:
    """One result that the candidate recorded, and what a model with faults would have recorded there."""

    field: str
    index: int | None  # draw, knot or step; None for a whole field
    found: Tensor  # what the candidate recorded, in the form in which it is compared
    predict: Callable[[Faults], Tensor | None]  # returns None where the model with these faults fails
    affects: Callable[[Fault], bool]  # whether a fault can change this result
    allowed: float  # distance that rounding and storage explain
    distance: Callable[[Tensor, Tensor | None], float]  # of `found` and a prediction
    is_statistics: bool = False  # `found` holds statistics (..., 6), not values
    is_local: bool = False  # predicted from the candidate's own inputs, without a simulated run
    follows: tuple[str, ...] = ()  # stages that the simulated run goes through

    @property
    def name(self) -> str:
        """The place, such as "flow/x[3]"."""
        return place_name(self.field, self.index)


@dataclass
class Observed:
    """What a candidate recorded, sorted by what can be said of it."""

    observations: list[Observation] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)  # place -> why nothing can be said of it


def observe(run: StoredRun, predictor: Predictor) -> Observed:
    """Collect every result of the candidate that can be predicted, and why the others cannot.

    A result whose inputs the candidate recorded is predicted from these. Everything else is predicted by
    simulated runs, as far as the predictor can.
    """
    candidate = run.trace
    observed = Observed()
    local_places: set[tuple[str, int | None]] = set()
    obstacles: dict[str, str] = {}  # field -> why it has no local prediction

    # Local predictions: one transition of the run at a time.
    for step in transitions(candidate):
        recorded = step.recorded_outputs(candidate)
        if not recorded:
            continue
        is_drawn = step.outputs == ("lm/drawn_token",)
        if is_drawn and "lm/logp" in run.coarse:
            continue  # lost digits of the probabilities decide some draws
        if obstacle := step.obstacle(candidate, predictor.target_only):
            for name in recorded:
                obstacles.setdefault(name, obstacle)
            continue
        # Tokens that are drawn again from the candidate's own probabilities do not show how many should have
        # been drawn. A simulated run does, so that these have both.
        if not (is_drawn and predictor.can_predict("lm/drawn_token")):
            local_places.update((name, step.index) for name in recorded)
        try:
            local = list(_local_observations(step, recorded, run, predictor))
        except (WorkbenchError, RuntimeError) as error:  # a mel of NaN, or lengths that do not fit
            for name in recorded:
                reason = f"our model does not run on its inputs ({first_line(error)})"
                observed.unchecked[place_name(name, step.index)] = reason
            continue
        observed.observations += local
        for one in local:
            if one.field in run.coarse and one.distance(one.found, one.predict(HEALTHY)) > one.allowed:
                run.take_as_computed(one.field)
    observed.observations += _token_observation(candidate, predictor)

    # Simulated runs for all other places, as values or else as statistics.
    for name in candidate:
        field_name = name.removesuffix(SUFFIX)
        has_better_form = name != field_name and field_name in candidate
        is_input = field_name.startswith("in/") and not predictor.can_predict(field_name)
        if has_better_form or is_input or (field_name, None) in local_places:
            continue
        covered = {index for local_name, index in local_places if local_name == field_name}
        entries = len(candidate[name]) if loop_dimension(field_name) else None
        if entries is not None and covered.issuperset(range(entries)):
            continue
        from_runs: list[Observation] = []
        if predictor.can_predict(field_name):
            from_runs = list(_run_observations(name, predictor, run, covered))
            reason = "our model does not run on the inputs of this run"
        elif field_name in obstacles:
            reason = obstacles[field_name]
        else:
            reason = UNPREDICTABLE.get(field_name, "it follows from nothing that was recorded")
        observed.observations += from_runs
        if not from_runs:
            observed.unchecked[field_name] = reason
    return observed


# ---- local predictions


def _local_observations(
    step: Transition, recorded: list[str], run: StoredRun, predictor: Predictor
) -> Iterator[Observation]:
    """Yield the recorded results of one transition, predicted from the candidate's own inputs.

    Raises a WorkbenchError or RuntimeError where our model does not run on them.
    """
    pipe, options = predictor.pipe, predictor.simulator.options.but(**UPSTREAM_PRECISION)
    results = recompute(step, run, pipe, options)

    # One call of our model returns all outputs of the transition, so it is cached for all observations.
    @functools.cache
    def recompute_with(faults: Faults) -> tuple[Tensor, ...] | None:
        if not faults:
            return tuple(result.value for result in results)
        try:
            with applied(faults):
                values = step.recompute(pipe, run.trace, faulty_options(faults, options))
                return tuple(value.cpu() for value in values)
        except (WorkbenchError, RuntimeError):  # the model failed: a mel of NaN, or lengths that do not fit
            return None

    def local_observation(position: int, name: str) -> Observation:
        """Return the observation of one output of the transition."""

        def predict(faults: Faults) -> Tensor | None:
            values = recompute_with(faults)
            return None if values is None else values[position]

        def affects(fault: Fault) -> bool:
            # The inputs are fixed, so only faults that show in this very field can change it.
            return name in fault.fields

        found = entry(run.trace, name, step.index)
        measure = functools.partial(value_distance, storage=run.coarse.get(name))
        allowed = results[position].allowed(measure(found, results[position].value), run)
        return Observation(name, step.index, found, predict, affects, allowed, measure, is_local=True)

    for position, name in enumerate(step.outputs):
        if name in recorded:
            yield local_observation(position, name)


# ---- the recorded tokens, where the LM's probabilities are missing


def _token_observation(candidate: Trace, predictor: Predictor) -> list[Observation]:
    """Ask how likely our LM finds the recorded tokens, where the candidate has no log-probabilities.

    A right LM draws tokens that are about as likely as its own entropy says. The tokens of a damaged LM are
    much less likely under ours.
    """
    reference = predictor.simulator.reference
    tokens = candidate.get("lm/drawn_token", candidate.get("lm/speech_token"))
    inputs = [candidate.get(name, reference.get(name)) for name in LM_INPUTS]
    is_conversion = "in/source_token" in candidate or "in/source_token" in reference
    is_streamed = candidate.attrs.get("text_stream") or reference.attrs.get("text_stream")
    nothing_known = is_streamed or tokens is None or not len(tokens) or any(value is None for value in inputs)
    if "lm/logp" in candidate or is_conversion or nothing_known:
        return []
    pipe, options = predictor.pipe, predictor.simulator.options.but(**UPSTREAM_PRECISION)
    if not predictor.has_reference or all(name in candidate for name in LM_INPUTS):
        given = candidate
    else:
        given = reference
    spoken = Trace({name: given[name] for name in LM_INPUTS} | {"lm/drawn_token": tokens}, {})
    [step] = [one for one in transitions(spoken) if one.outputs == ("lm/logp",)]

    @functools.cache
    def predict(faults: Faults) -> Tensor | None:
        """Return for each token (L, 3): its log-probability, and what draws have: mean and variance."""
        try:
            with applied(faults):
                logp = step.recompute(pipe, spoken, faulty_options(faults, options))[0].cpu().double()
        except (WorkbenchError, RuntimeError):
            return None
        p = logp.exp()
        surprise = logp.clamp(min=-1e4)  # p log p is 0 where p is 0
        mean = (p * surprise).sum(-1)
        variance = (p * surprise.square()).sum(-1) - mean.square()
        return torch.stack((logp.gather(-1, tokens.long()[:, None])[:, 0], mean, variance), dim=-1)

    healthy = predict(HEALTHY)
    if healthy is None:
        return []
    deviation = float(healthy[:, 2].mean().clamp(min=0) / len(healthy)) ** 0.5
    allowed = TOKEN_DEVIATIONS * deviation + TOKEN_SLACK

    def affects(fault: Fault) -> bool:
        return "lm/logp" in fault.fields

    observation = Observation(
        *("lm/speech_token", None, tokens, predict, affects, allowed, _shortfall),
        is_statistics=True,  # one number, which tells less than the probabilities would
        is_local=True,
    )
    return [observation]


def _shortfall(tokens: Tensor, predicted: Tensor | None) -> float:
    """Return by how many nats a token the tokens are less likely than the LM's own draws."""
    if predicted is None:
        return MAX_DISTANCE
    return min(MAX_DISTANCE, max(0.0, float((predicted[:, 1] - predicted[:, 0]).mean())))


# ---- predictions by simulated runs


def _run_observations(
    name: str, predictor: Predictor, run: StoredRun, covered: set[int | None]
) -> Iterator[Observation]:
    """Yield one field of the candidate, or the statistics of one, predicted by simulated runs.

    Parameters
    ----------
    name : str
    predictor : Predictor
    run : StoredRun
        The candidate.
    covered : set of int or None
        Entries that have a local prediction.
    """
    field_name = name.removesuffix(SUFFIX)
    is_statistics = name != field_name
    options = predictor.simulator.options
    upstream_precision = options.but(**UPSTREAM_PRECISION)
    found = predictor.comparable(name, predictor.candidate)
    healthy = predictor.predict(name, HEALTHY, upstream_precision)
    if healthy is None:
        return  # our model fails on the candidate's inputs, so that nothing can be said
    is_audio = field_name in AUDIO_FIELDS
    # Predictions with other lost digits: in the result, where it is compared as a log-mel, and in the inputs.
    results_equally_stored = predictor.stored_audio(name, run, upstream_precision) if is_audio else []
    inputs_equally_stored = predictor.equally_stored(name, run, upstream_precision)

    @functools.cache
    def in_float64() -> Tensor | None:
        return predictor.predict(name, HEALTHY, options.but(**FLOAT64_PRECISION))

    def measure_at(index: int | None) -> Callable[[Tensor, Tensor | None], float]:
        """Return the distance of results at an entry, beyond what storage explains."""
        if is_audio and not is_statistics:
            return value_distance  # of log-mels
        if not is_statistics:
            return functools.partial(value_distance, storage=run.coarse.get(field_name))
        print_error = half_unit(run.trace, field_name, index)
        if "region" in dims_of(name):
            print_error = print_error.unsqueeze(-2)
        return functools.partial(statistics_distance, print_error=print_error)

    def run_observation(index: int | None) -> Observation:
        """Return the observation of one entry of the field, or of the whole field for None."""

        def predict(faults: Faults) -> Tensor | None:
            result = predictor.predict(name, faults, upstream_precision)
            if result is None or index is None:
                return result
            # With another number of entries the faulty run has no entry to compare.
            return result[index] if len(result) == len(found) else None

        def affects(fault: Fault) -> bool:
            return predictor.affects(fault, field_name, index)

        measure = measure_at(index)
        found_here = _at(index, found)
        healthy_here = _at(index, healthy)
        # Storage: what the lost digits of the result, and of the inputs of the simulation, may change.
        of_result = [measure(healthy_here, _at(index, other)) for other in results_equally_stored]
        of_inputs = [measure(healthy_here, _at(index, other)) for other in inputs_equally_stored]
        storage = STORAGE_ALLOWANCE * (max(of_result, default=0.0) + max(of_inputs, default=0.0))
        # Rounding: the distance between a healthy run in float32 and in float64. It is limited from above,
        # because over a whole run rounding can flip decisions, and from below by what other kernels do.
        # float64 takes most of the time: it is not asked where the result is a healthy run's within the lower
        # limit. A fault that moves such a result by more than that is unlikely, whatever rounding does.
        rounding = 0.0
        if not measure(found_here, healthy_here) <= RUN_TOLERANCE + storage:
            exact = in_float64()
            if exact is not None and found.shape == healthy.shape == exact.shape:
                rounding = measure(healthy_here, _at(index, exact))
        allowed = max(RUN_TOLERANCE, ALLOWANCE * min(rounding, RUN_TOLERANCE)) + storage
        follows = predictor.simulated_stages(field_name)
        return Observation(
            field_name, index, found_here, predict, affects, allowed, measure, is_statistics, follows=follows
        )

    # A field that grows in a loop is observed entry by entry, so that the first wrong step can be found. If a
    # healthy run has another number of entries, they do not correspond, and the field is one observation.
    has_same_entries = found.shape == healthy.shape
    indices = range(len(found)) if has_same_entries and loop_dimension(field_name) else (None,)
    for index in indices:
        if index in covered:
            continue
        if is_statistics and _at(index, found).isnan().all():
            continue  # nothing is known of it, such as the state before the first step in a log
        yield run_observation(index)


def _at(index: int | None, result: Tensor | None) -> Tensor | None:
    """Return one entry of a result, or all of it for None."""
    return result if result is None or index is None else result[index]


# ---- distances


def value_distance(found: Tensor, predicted: Tensor | None, storage: Storage | None = None) -> float:
    """Return the relative L2 distance of two results, at most `MAX_DISTANCE`; ids: the share that differs.

    Parameters
    ----------
    found : Tensor
    predicted : Tensor or None
        None where a model with faults left no result: as far as can be.
    storage : Storage, optional
        The form in which `found` was stored; an error below its spacing does not count.
    """
    if predicted is None or found.shape != predicted.shape:
        return MAX_DISTANCE
    if not found.is_floating_point():
        return relative(found, predicted)
    # NaN and Inf must be in the same places; the distance is measured over the other values.
    finite = found.isfinite()
    if not torch.equal(finite, predicted.isfinite()):
        return MAX_DISTANCE
    expected = predicted[finite]
    return min(MAX_DISTANCE, relative(expected, beyond_storage(found[finite], expected, storage)))


def statistics_distance(found: Tensor, predicted: Tensor | None, print_error: Tensor | float = 0.0) -> float:
    """Return the distance of statistics (..., 6): root mean square, each relative to the largest of its row.

    Only the statistics that `found` has count: a log leaves some NaN. Of each difference, `print_error`
    (..., 5) is taken off: half a unit of the last printed digit.
    """
    if predicted is None or found.shape != predicted.shape:
        return MAX_DISTANCE
    values = found[..., :-1]  # without the last statistic, a count of NaN and Inf
    # 1e-6: no division by zero where all of a row is zero.
    largest = values.abs().nan_to_num(0.0).amax(-1, keepdim=True).clamp(min=1e-6)  # (..., 1)
    difference = found - predicted
    beyond_print = (difference[..., :-1].abs() - print_error).clamp(min=0.0)
    difference = torch.cat((beyond_print, difference[..., -1:]), dim=-1)
    errors = (difference / largest)[~found.isnan()]
    if not errors.isfinite().all():
        return MAX_DISTANCE
    return min(MAX_DISTANCE, float(errors.square().mean().sqrt()))
