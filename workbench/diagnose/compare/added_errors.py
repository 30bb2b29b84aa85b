"""Find what a candidate adds: the error that each of its results has on its own inputs.

Every result is computed again by our model from the inputs that the candidate recorded. Where that gives what
the candidate has, any error in it came with its inputs. Our model has the candidate's formats of quantised
weights, as far as they are known. What a format alone changes is measured beside it.
"""

from collections.abc import Set
from typing import NamedTuple

from torch import Tensor

from workbench.diagnose.compare.comparison import Cause
from workbench.diagnose.compare.distance import place_name, relative
from workbench.diagnose.compare.rounding import Recomputed, StoredRun, recompute
from workbench.diagnose.compare.transitions import (
    UNPREDICTABLE,
    Transition,
    entry,
    transitions,
)
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.config.formats import rules_of, with_inputs
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import SUFFIX

Place = tuple[str, int | None]  # a field, and its knot, step or draw; None for a whole field

OF_ARITHMETIC = 2.0  # times what a format changes: as far may its kernels be from our simulation


class Added(NamedTuple):
    """The error of one result on its own inputs, all relative L2."""

    error: float  # to our model with the candidate's formats of weights
    rounding: float  # what rounding and storage explain
    of_format: float = 0.0  # what the formats of weights change in our model, inputs quantised or not

    @property
    def allowed(self) -> float:
        """What is called no error.

        A program that sums in integers and quantises its inputs is about as far from our model as that is
        from the one with float32 weights; single entries are farther.
        """
        return max(self.rounding, OF_ARITHMETIC * self.of_format)


Errors = dict[Place, Added]


def added_errors(
    run: StoredRun, pipe: Pipeline, options: Options, target_only: Set[str]
) -> tuple[Errors, dict[str, str]]:
    """Recompute every result of the candidate from its own inputs.

    Parameters
    ----------
    run : StoredRun
        The candidate.
    pipe : Pipeline
    options : Options
        Of the run.
    target_only : set of str
        Fields without the prompt's frames: nothing can be computed from them, nor they from others.

    Returns
    -------
    dict
        Place -> the error that the candidate adds there.
    dict
        Place that could not be recomputed -> why.
    """
    candidate = run.trace
    errors: Errors = {}
    unchecked: dict[str, str] = {}
    for step in transitions(candidate):
        recorded = step.recorded_outputs(candidate)
        reason = step.obstacle(candidate, target_only)
        if reason:
            unchecked |= dict.fromkeys((place_name(field, step.index) for field in recorded), reason)
        elif recorded:
            errors.update(_errors_of_step(step, recorded, run, pipe, options))
    known = {field for field, _ in errors} | {place.partition("[")[0] for place in unchecked}
    for name in candidate:
        field = name.removesuffix(SUFFIX)
        if field not in known and not field.startswith("in/"):
            reason = UNPREDICTABLE.get(field, "it follows from nothing that was recorded")
            unchecked[field] = reason if field in candidate else "statistics alone"
    return errors, unchecked


def _errors_of_step(
    step: Transition, recorded: list[str], run: StoredRun, pipe: Pipeline, options: Options
) -> Errors:
    """Return the errors of one transition's recorded outputs; those of a whole loop entry by entry."""
    # NaN in the candidate's mel, or ids outside of the vocabulary: nothing right can follow.
    nothing = {(field, step.index): Added(float("nan"), 0.0) for field in recorded}
    try:
        results = recompute(step, run, pipe, options)
    except (WorkbenchError, RuntimeError, IndexError):
        return nothing
    plain, with_formats = (), []
    if options.weights:
        plain = step.recompute(pipe, run.trace, options.but(weights=None))
        inputs_too = ";".join(
            f"{rule.glob}={with_inputs(str(rule.format))}" for rule in rules_of(options.weights)
        )
        for weights in dict.fromkeys((options.weights, inputs_too)):
            with_formats.append(step.recompute(pipe, run.trace, options.but(weights=weights)))
    try:
        return _errors_of_results(step, recorded, run, results, plain, with_formats)
    except (WorkbenchError, RuntimeError, IndexError):
        return nothing


def _errors_of_results(
    step: Transition,
    recorded: list[str],
    run: StoredRun,
    results: list[Recomputed],
    plain: tuple[Tensor, ...],
    with_formats: list[tuple[Tensor, ...]],
) -> Errors:
    """Return the errors of recorded outputs, given ours: with all formats, without any, and with each."""
    errors: Errors = {}
    for position, result in enumerate(results):
        if result.field not in recorded:
            continue
        found = entry(run.trace, result.field, step.index)
        if result.value.shape != found.shape:
            errors[result.field, step.index] = Added(float("inf"), 0.0)
            continue
        count = result.entry_count()
        for k in (None,) if count is None else range(count):
            right, theirs = result.at(k), found if k is None else found[k]
            error = run.distance(result.field, theirs, right.value)
            of_format = 0.0
            for outputs in with_formats:
                change = relative(_at(plain[position], k), _at(outputs[position], k))
                of_format = max(of_format, change)
            allowed = right.allowed(error, run)
            errors[result.field, step.index if k is None else k] = Added(error, allowed, of_format)
            if error > allowed and result.field in run.coarse:
                run.take_as_computed(result.field)
    return errors


def _at(value: Tensor, k: int | None) -> Tensor:
    return (value if k is None else value[k]).cpu()


def causes_of(added: Errors) -> list[Cause]:
    """Return the places where the candidate adds more than rounding, storage and formats explain."""
    causes = []
    for (field, index), found in added.items():
        if not found.error <= found.allowed:  # also where the error is NaN
            causes.append(Cause(place_name(field, index), found.error, found.allowed, found.of_format))
    return causes


def format_hints(added: Errors, weights: str | None) -> list[str]:
    """Say how much of the candidate's errors its formats of weights explain."""
    beyond = {place: found for place, found in added.items() if found.of_format > found.rounding}
    if not weights or not beyond:
        return []
    largest = max(beyond, key=lambda place: beyond[place].of_format)
    left = [found for found in beyond.values() if found.error > found.rounding]
    change = f"{beyond[largest].of_format:.2g} ({place_name(*largest)})"
    text = f"weights as {weights:.80}: they change up to {change}"
    if not left:
        return [f"{text}, and the candidate is within rounding of that"]
    most = max(found.error / found.of_format for found in left)
    return [
        f"{text}, and the candidate is up to {most:.0%} of that from them: integer sums and rounded inputs "
        "may do so, and a fault that is as small may hide in it"
    ]
