"""Find what a candidate adds: the error that each of its results has on its own inputs.

Every result is computed again by our model from the inputs that the candidate recorded. Where that gives what
the candidate has, any error in it came with its inputs.
"""

from collections.abc import Set

from workbench.diagnose.compare.distance import place_name
from workbench.diagnose.compare.rounding import StoredRun, recompute
from workbench.diagnose.compare.transitions import UNPREDICTABLE, Transition, entry, transitions
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import SUFFIX

Place = tuple[str, int | None]  # a field, and its knot, step or draw; None for a whole field
# Place -> (relative L2 that the candidate adds on its own inputs, relative L2 that rounding explains of it).
Errors = dict[Place, tuple[float, float]]


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
        Place -> (error that the candidate adds, error that rounding and storage explain), both relative L2.
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
    try:
        results = recompute(step, run, pipe, options)
    # NaN in the candidate's mel, or ids outside of the vocabulary: nothing right can follow.
    except (WorkbenchError, RuntimeError, IndexError):
        return {(field, step.index): (float("nan"), 0.0) for field in recorded}
    errors: Errors = {}
    for result in results:
        if result.field not in recorded:
            continue
        found = entry(run.trace, result.field, step.index)
        if result.value.shape != found.shape:
            errors[result.field, step.index] = float("inf"), 0.0
            continue
        count = result.entry_count()
        for k in (None,) if count is None else range(count):
            ours, theirs = result.at(k), found if k is None else found[k]
            error = run.distance(result.field, theirs, ours.value)
            errors[result.field, step.index if k is None else k] = error, ours.allowed
            if error > ours.allowed and result.field in run.coarse:
                run.take_as_computed(result.field)
    return errors
