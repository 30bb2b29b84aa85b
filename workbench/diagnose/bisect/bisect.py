"""Find the submodule of a stage in which another implementation makes its error.

`bisect(mine, theirs, pipe)` is the entry point. The other program records tensors inside its model, called
taps. Our model runs on them: at each tap it computes the value anew from the recorded taps before it. Where
the recorded value is farther away than rounding and storage explain, the error is made between those taps.
The first taps are the outputs of whole blocks; the next ones lie inside the first wrong block.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.diagnose.bisect.bisection import Bisection, InputDifference
from workbench.diagnose.bisect.stages import SOURCE, StageTaps, Values, stage_taps, time_knot, weights_of
from workbench.diagnose.bisect.step_check import HALF, Check, check_step, match_branches
from workbench.diagnose.compare.compare import INPUT_TOLERANCE
from workbench.diagnose.compare.distance import relative
from workbench.diagnose.compare.rounding import StoredRun, recompute
from workbench.diagnose.compare.transitions import ESTIMATOR_INPUTS, transitions
from workbench.errors import WorkbenchError
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import check_sizes
from workbench.trace.importers.open_run import open_run
from workbench.trace.schema import BRANCH_VELOCITIES
from workbench.trace.storage import beyond_storage, storage_of
from workbench.trace.trace import Trace

STEP_TOLERANCE = 1e-6  # of an ODE time: a float32 knot is this close to the exact one


def bisect(
    mine: Trace | str | os.PathLike | None,
    theirs: Trace | str | os.PathLike,
    pipe: Pipeline,
    stage: str = "flow",
) -> Bisection:
    """Find the first submodule of a stage that adds an error, and say what to record to narrow it down.

    Parameters
    ----------
    mine : Trace, path or None
        A right run of the same utterance. Its inputs of the stage are compared; without it, those are
        checked that follow from other fields of `theirs`.
    theirs : Trace or path
        The run in doubt, with or without taps (`Trace.taps`). Without, the result says which to record.
    pipe : Pipeline
        Of the checkpoint that both should have run.
    stage : {"flow", "lm", "hift"}
        The flow's estimator, the LM's decoder on the prompt, or the vocoder's trunk.

    Returns
    -------
    Bisection

    Raises
    ------
    WorkbenchError
        When a path cannot be read as a run, or there is no such stage.

    Examples
    --------
    >>> theirs = wb.Trace({"flow/mel": trace["flow/mel"] + 1}, trace.attrs)
    >>> found = wb.bisect(trace, theirs, pipe)
    >>> found.next_taps[:3]
    ['time_embed', 'input_embed', 'transformer_blocks.0']
    >>> print(found.mapping.splitlines()[4])
    [taps."flow/{step}/input.x"]
    >>> "def record_taps" in found.snippet
    True
    """
    mine, theirs = None if mine is None else open_run(mine), open_run(theirs)
    check_sizes(theirs, pipe.config)
    taps = stage_taps(pipe, stage)._replace(weights=weights_of(theirs))
    by_step, unknown = _taps_by_step(taps, theirs)
    if not by_step:
        return _without_taps(taps, pipe, theirs, unknown)

    checks: list[Check] = []
    differences: list[InputDifference] = []
    unchecked = unknown
    for step, recorded in sorted(by_step.items()):
        fields = taps.from_fields(pipe, theirs, step)
        combined = _exact_time(taps, pipe, theirs, step, match_branches(taps, pipe, recorded, fields))
        checks += _check_blocks_and_parts(taps, pipe, step, combined)
        found, missing = _input_differences(taps, pipe, mine, theirs, step, combined)
        differences += found
        unchecked += missing
    names = {name for recorded in by_step.values() for name in recorded}
    wrong = [check for check in checks if check.is_wrong]
    # A wrong tap is narrowed down at its own step.
    steps = [wrong[0].step] if wrong else sorted(by_step)
    next_taps = _next_taps(taps, wrong, names)
    unchecked += [
        f"{taps.name}/{block}: its output was not recorded" for block in _missing_blocks(taps, names)
    ]
    remark = "" if wrong or next_taps else _where_else(taps, differences)
    return Bisection(taps, checks, differences, next_taps, steps, sorted(names), unchecked, remark)


def _taps_by_step(stage: StageTaps, theirs: Trace) -> tuple[dict[int, dict[str, Tensor]], list[str]]:
    """Return the taps of a stage by step and name, and a sentence for each that is none of its taps."""
    known = {tap.name for tap in stage.taps} | {SOURCE + name for name in stage.sources}
    by_step: dict[int, dict[str, Tensor]] = {}
    unknown = []
    for key, value in theirs.taps.items():
        name_of_stage, _, rest = key.partition("/")
        step, _, name = rest.partition("/")
        if name_of_stage != stage.name:
            continue
        if name not in known or not step.isdecimal():
            unknown.append(f"{key}: not one of the taps of the {stage.name} that are compared")
        elif value.numel():
            by_step.setdefault(int(step), {})[name] = value
    return by_step, unknown


def _check_blocks_and_parts(stage: StageTaps, pipe: Pipeline, step: int, recorded: Values) -> list[Check]:
    """Check every tap; and every block as a whole, whose parts may each be right within coarse storage."""
    checks = check_step(stage, pipe, step, recorded)
    names = {"output", *stage.blocks}
    outer = {name: x for name, x in recorded.items() if name in names or name.startswith(SOURCE)}
    if len(outer) == len(recorded):
        return checks
    whole = {check.tap.name: check for check in check_step(stage, pipe, step, outer) if check.is_wrong}
    wrong_blocks = {check.tap.block for check in checks if check.is_wrong}
    result = []
    for check in checks:
        other = whole.get(check.tap.name)
        result.append(other if other and check.tap.block not in wrong_blocks else check)
    return result


def _exact_time(
    stage: StageTaps, pipe: Pipeline, theirs: Trace, step: int, recorded: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors with the exact time of the step, where the recorded one may be it.

    Coarse storage of the time would turn its sines: they reach 1000 rad.
    """
    recorded = dict(recorded)
    time = recorded.get("input.t")
    knot = time_knot(pipe, theirs, step) if stage.name == "flow" else None
    if time is None or knot is None:
        return recorded
    forms = {storage.name for x in recorded.values() if (storage := storage_of(x))}
    near = [float((knot - time.double()).abs().max()) <= STEP_TOLERANCE]
    near += [
        torch.equal(knot.to(getattr(torch, name)).double().expand(time.shape), time.double())
        for name in HALF
        if name in forms
    ]
    if any(near):
        recorded["input.t"] = knot.expand(time.shape)
    return recorded


# ---- what the stage was given


def _input_differences(
    stage: StageTaps, pipe: Pipeline, mine: Trace | None, theirs: Trace, step: int, recorded: Values
) -> tuple[list[InputDifference], list[str]]:
    """Return the inputs of a step that differ from a right run's, and those that were not compared."""
    expected = {} if mine is None else stage.from_fields(pipe, mine, step)
    if mine is None and stage.name == "flow":
        expected = _conditions_that_follow(pipe, theirs)
    if stage.name == "flow" and (knot := time_knot(pipe, mine or theirs, step)) is not None:
        expected["input.t"] = knot.expand(2)
    if step:
        expected.pop("input.x", None)  # it follows from the steps before: only the noise can be compared
    expected.pop("output", None)
    given = {SOURCE + name: recorded.get(SOURCE + name) for name in stage.sources if name != "mask"}
    differences, unchecked = [], []
    for name, value in given.items():
        if value is None:
            unchecked.append(f"{stage.name}/{step}/{name}: not recorded")
        elif name not in expected:
            why = (
                "it follows from the steps before"
                if name == "input.x" and step
                else "no right run to compare"
            )
            unchecked.append(f"{stage.name}/{step}/{name}: {why}")
    compared = [name for name, value in given.items() if value is not None and name in expected]
    errors = _smallest_errors({name: (given[name], expected[name]) for name in compared})
    for name, error in errors.items():
        if not error <= INPUT_TOLERANCE:
            differences.append(InputDifference(name, step, error))
    return differences, unchecked


def _smallest_errors(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the relative L2 of each input, in the order of branches in which their sum is smallest."""
    candidates = []
    for order in ([0, 1], [1, 0], [0], [1]):
        errors = {}
        for name, (value, expected) in pairs.items():
            rows = expected[order] if len(expected) == 2 else expected
            value = value.reshape((1,) * (expected.ndim - value.ndim) + tuple(value.shape))
            errors[name] = float("inf")
            if value.shape == rows.shape:
                errors[name] = _relative_or_zero(rows, beyond_storage(value, rows, storage_of(value)))
        candidates.append(errors)
    return min(candidates, key=lambda errors: sum(errors.values()))


def _relative_or_zero(x: Tensor, y: Tensor) -> float:
    """Return the relative L2 distance, as that of two equal tensors also where both are zero."""
    return 0.0 if torch.equal(x.double(), y.double()) else relative(x, y)


def _conditions_that_follow(pipe: Pipeline, theirs: Trace) -> dict[str, Tensor]:
    """Return mu, cond and spks as they follow from the run's own inputs, where it has them."""
    for transition in transitions(theirs):
        if "flow/mu" in transition.outputs and transition.can_recompute(theirs):
            try:
                values = transition.recompute(pipe, theirs, pipe.checkpoint.options)
            except WorkbenchError:
                return {}
            names = [SOURCE + name.removeprefix("flow/") for name in transition.outputs]
            return {
                name: torch.stack((value.cpu(), torch.zeros_like(value).cpu()))
                for name, value in zip(names, values, strict=True)
            }
    return {}


# ---- what to record next


def _missing_blocks(stage: StageTaps, recorded: Sequence[str]) -> list[str]:
    return [block for block in stage.blocks if block not in recorded and block != "output"]


def _next_taps(stage: StageTaps, wrong: Sequence[Check], recorded: set[str]) -> list[str]:
    """Return the taps that would narrow down the first error; outputs of blocks come first."""
    if not wrong:
        return _missing_blocks(stage, recorded)
    if wrong[0].other_block:  # nothing is left to find
        return []
    suspects = [*wrong[0].between, wrong[0].tap]
    blocks = [tap.name for tap in suspects if tap.name == tap.block and tap.name not in recorded]
    if len(wrong[0].blocks) > 1 and blocks:
        return blocks
    return [tap.name for tap in suspects if tap.name not in recorded]


def _without_taps(stage: StageTaps, pipe: Pipeline, theirs: Trace, unknown: list[str]) -> Bisection:
    """Return what to record of a run without taps: the outputs of all blocks, at the first wrong step."""
    options = pipe.checkpoint.options.but(**theirs.attrs.get("options", {}))
    steps, remark = [0], "no taps are recorded"
    unchecked = [*unknown, f"{stage.name}: no taps are recorded"]
    next_taps = _missing_blocks(stage, set())
    if stage.name == "flow":
        steps = sorted({0, options.n_timesteps - 1})
        first, checked, stored = _first_wrong_step(pipe, theirs)
        if first is not None:
            steps = [first + theirs.attrs.get("first_step", 0)]
            remark = f"the velocity of step {steps[0]} does not follow from its inputs"
        elif checked:
            next_taps = []
            unchecked = unknown
            remark = f"no error inside; all {checked} steps give the velocity that follows from their inputs"
            remark += "".join(f"; {text}" for text in stored)
    return Bisection(stage, [], [], next_taps, steps, [], unchecked, remark)


def _first_wrong_step(pipe: Pipeline, theirs: Trace) -> tuple[int | None, int, list[str]]:
    """Return the first step whose velocities do not follow from its inputs, and how many were right.

    The last value says what coarse storage hides.
    """
    options = pipe.checkpoint.options.but(**theirs.attrs.get("options", {}))
    checked = 0
    needed = (*ESTIMATOR_INPUTS, *BRANCH_VELOCITIES)
    if any(name not in theirs for name in needed):
        return None, 0, []
    run = StoredRun(Trace({name: theirs[name] for name in needed}, theirs.attrs))
    for step in transitions(run.trace):
        recorded = all(len(theirs[name]) > (step.index or 0) for name in BRANCH_VELOCITIES)
        if step.outputs != BRANCH_VELOCITIES or not recorded or not step.can_recompute(run.trace):
            continue
        for result in recompute(step, run, pipe, options):
            found = theirs[result.field][step.index]
            distance = run.distance(result.field, found, result.value)  # inf where shapes differ
            if not distance <= result.allowed(distance, run):
                return step.index, checked, []
        checked += 1
    return None, checked, run.describe()


def _where_else(stage: StageTaps, differences: Sequence[InputDifference]) -> str:
    """Return where to look when every block is right."""
    if differences:
        return "the stage computes what follows from what it was given"
    if stage.name == "flow":
        return (
            "the estimator is right at the recorded steps: look at guidance, the solver's steps, the inputs "
            "that were not checked, or record another step"
        )
    return "the stage is right at the recorded call: look at what is made of its output"
