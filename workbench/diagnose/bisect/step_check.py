"""Check the taps of one call of a stage, each against what our model computes from the taps before it."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.diagnose.bisect.model_run import fit, recompute_taps
from workbench.diagnose.bisect.stages import SOURCE, StageTaps, Tap, Values
from workbench.diagnose.compare.distance import ALLOWANCE, relative
from workbench.diagnose.compare.rounding import PERTURBED_TRACES, Recomputed
from workbench.speech.models.numerics import exact_float32
from workbench.speech.pipeline import Pipeline
from workbench.trace.storage import Storage, beyond_storage, perturbed_values, storage_of

# Another explanation of an error holds where it leaves less than this share of it.
EXPLAINED = 0.1
# An error is as large as half precision makes it, if it is within this factor of what our model in half
# precision adds at the same tap.
HALF_FACTOR = 3.0
MAX_HALF_ERROR = 0.05  # relative L2: half precision makes no larger error at one tap
HALF = ("bfloat16", "float16")
# Lost digits change a tap if they explain more than this many times what rounding explains.
SENSITIVE = 3.0


class Check(NamedTuple):
    """The check of one tap at one step."""

    step: int
    tap: Tap
    added: float  # relative L2 between the recorded tap and ours beyond its storage; NaN where not checked
    allowed: float  # relative L2 that rounding and the storage of what it is computed from explain
    reason: str  # why it was not checked; empty where it was
    # Taps that were not recorded and may hold the error as well: they come between recorded ones and this.
    between: tuple[Tap, ...] = ()
    note: str = ""  # what the error looks like
    rounding: float = 0.0  # relative L2 that rounding alone explains
    other_block: str = ""  # the block that was left out, or has the weights of another

    @property
    def blocks(self) -> list[str]:
        """Blocks that may hold the error, in order."""
        if self.other_block:
            return [self.other_block]
        return list(dict.fromkeys(tap.block for tap in (*self.between, self.tap)))

    @property
    def part(self) -> str:
        """The part that holds the error; empty where taps between were not recorded."""
        return "" if self.between or self.other_block else self.tap.part

    @property
    def is_wrong(self) -> bool:
        """Whether the tap has more of an error than rounding and storage explain."""
        return not self.reason and not self.added <= self.allowed


def check_step(stage: StageTaps, pipe: Pipeline, step: int, recorded: Values) -> list[Check]:
    """Check every recorded tap of one step, in the order in which the model computes them.

    Parameters
    ----------
    stage : StageTaps
    pipe : Pipeline
    step : int
        Number of the call.
    recorded : mapping of str to Tensor
        Taps and sources that the other program recorded.
    """
    models = {name: pipe.stage(stage.name, name, weights=stage.weights) for name in ("float32", "float64")}
    filled = _with_zeros(stage, recorded)
    if filled is None:
        reason = f"{_missing_sources(stage, recorded)} was not recorded"
        taps = [tap for tap in stage.taps if tap.name in recorded]
        return [Check(step, tap, float("nan"), float("nan"), reason) for tap in taps]
    ours = recompute_taps(stage, models["float32"], filled)
    exact = recompute_taps(stage, models["float64"], filled)

    def checks_with(coarse: Mapping[str, Storage]) -> list[Check]:
        variants = []
        for seed in range(PERTURBED_TRACES if coarse else 0):
            changed = perturbed_values(filled, coarse, seed)
            variants.append(recompute_taps(stage, models["float32"], filled | changed))
        checks = []
        for tap in stage.taps:
            if tap.name in recorded:
                varied = [variant[tap.name] for variant in variants]
                in_float64 = partial(exact.__getitem__, tap.name)
                result = Recomputed(tap.name, None, ours[tap.name], in_float64, varied)
                unknown = _unknown_inputs(stage, tap, recorded)
                checks.append(_check(step, tap, recorded[tap.name], coarse.get(tap.name), result, unknown))
        return checks

    coarse = {}
    for name, value in recorded.items():
        storage = storage_of(value)
        if storage is not None and name != "input.mask":  # ones and zeros are no coarse numbers
            coarse[name] = storage
    checks = checks_with(coarse)
    computed_with = _computed_with(stage, checks, coarse, recorded)
    if computed_with:
        checks = checks_with({name: form for name, form in coarse.items() if name not in computed_with})
    return _explain(stage, pipe, _with_suspects(stage, checks, recorded), filled, exact)


def _check(
    step: int,
    tap: Tap,
    found: Tensor,
    storage: Storage | None,
    result: Recomputed,
    unknown: Sequence[str],
) -> Check:
    """Compare one recorded tap with what our model has there."""
    ours = result.value
    fitted = fit(found, ours.shape)
    reason = ""
    if unknown:
        reason = f"{' and '.join(unknown)} was not recorded"
    elif not result.exact().isfinite().all():
        reason = "it is computed from NaN or Inf"
    elif fitted is None:
        note = f"shape {tuple(found.shape)} found, {tuple(ours.shape)} expected"
        return Check(step, tap, float("inf"), 0.0, "", note=note)
    if reason:
        return Check(step, tap, float("nan"), float("nan"), reason)
    added = relative(ours, beyond_storage(fitted, ours, storage))
    rounding = result.rounding()
    note = "" if fitted.isfinite().all() else "NaN or Inf"
    allowed = result.explained(rounding)
    return Check(step, tap, added, allowed, "", note=note, rounding=ALLOWANCE * rounding)


def _computed_with(
    stage: StageTaps, checks: Sequence[Check], coarse: Mapping[str, Storage], recorded: Values
) -> set[str]:
    """Return the coarse tensors that the program went on with, so that it did not only store them coarsely.

    A tap in full precision tells: it follows from the coarse values as they are, to within rounding, although
    their lost digits would change it.
    """
    found = set()
    for check in checks:
        sensitive = check.allowed > SENSITIVE * check.rounding
        if check.tap.name not in coarse and not check.reason and sensitive and check.added <= check.rounding:
            found |= _recorded_inputs(stage, check.tap, recorded) & coarse.keys()
    return found


def _recorded_inputs(stage: StageTaps, tap: Tap, recorded: Values) -> set[str]:
    """Return the recorded taps and sources that a tap is computed from."""
    found = set()
    for name in tap.inputs:
        if name in recorded:
            found.add(name)
        elif not name.startswith(SOURCE):
            found |= _recorded_inputs(stage, stage.tap(name), recorded)
    return found


def _missing_sources(stage: StageTaps, recorded: Values) -> str:
    names = [SOURCE + name for name in stage.sources if name != "mask"]
    return " and ".join(name for name in names if name not in recorded)


def _with_zeros(stage: StageTaps, recorded: Values) -> dict[str, Tensor] | None:
    """Return the recorded tensors with sources in their shapes and zeros for unknown ones.

    None where our model cannot run: a size is unknown.
    """
    lengths = {"branch": batch_of(stage, recorded), "one": 1, "channel": stage.width, "width": stage.width}
    axes_by_name = {SOURCE + name: axes for name, axes in stage.sources.items()}
    axes_by_name |= {tap.name: tap.axes for tap in stage.taps}
    with_frames = [name for name in axes_by_name if name in recorded and "frame" in axes_by_name[name]]
    if with_frames:
        axes = axes_by_name[with_frames[0]]
        lengths["frame"] = recorded[with_frames[0]].shape[axes.index("frame") - len(axes)]
    filled = dict(recorded)
    for name, axes in stage.sources.items():
        value = recorded.get(SOURCE + name)
        if value is not None:
            value = _with_axes(value, axes)
            if value.shape[0] == 1:
                value = value.expand(lengths["branch"], *value.shape[1:])
            filled[SOURCE + name] = value
        elif name != "mask":
            if stage.width is None or any(lengths.get(axis) is None for axis in axes):
                return None
            filled[SOURCE + name] = torch.zeros([lengths[axis] for axis in axes])
    return filled


def _with_axes(x: Tensor, axes: tuple[str, ...]) -> Tensor:
    """Return a tensor with the axes of length 1 that a dump may have dropped: its branch, and "one"."""
    if x.ndim < len(axes) - axes.count("one"):
        x = x[None]
    for position, axis in enumerate(axes):
        if axis == "one" and x.ndim < len(axes):
            x = x.unsqueeze(position)
    return x


def batch_of(stage: StageTaps, recorded: Values) -> int:
    """Return how many branches the recorded tensors have."""
    axes_by_name = {SOURCE + name: axes for name, axes in stage.sources.items()}
    axes_by_name |= {tap.name: tap.axes for tap in stage.taps}
    sizes = [
        value.shape[0]
        for name, value in recorded.items()
        if name in axes_by_name and value.ndim == len(axes_by_name[name])
    ]
    return max(sizes, default=1)


def _unknown_inputs(stage: StageTaps, tap: Tap, recorded: Values) -> list[str]:
    """Return the sources that a tap depends on and that nothing recorded replaces."""
    unknown = []
    for name in tap.inputs:
        if name in recorded or name == "input.mask":
            continue
        if name.startswith(SOURCE):
            unknown.append(name)
        else:
            unknown += _unknown_inputs(stage, stage.tap(name), recorded)
    return list(dict.fromkeys(unknown))


def _between(stage: StageTaps, tap: Tap, recorded: Values) -> set[str]:
    """Return the taps that were not recorded and that a tap depends on."""
    found = set()
    for name in tap.inputs:
        if name not in recorded and not name.startswith(SOURCE):
            found |= {name} | _between(stage, stage.tap(name), recorded)
    return found


def _with_suspects(stage: StageTaps, checks: list[Check], recorded: Values) -> list[Check]:
    """Add to each wrong tap the unrecorded ones before it, less those that a right tap depends on as well."""
    cleared: set[str] = set()
    for check in checks:
        if not check.reason and not check.is_wrong:
            cleared |= _between(stage, check.tap, recorded)
    result = []
    for check in checks:
        if check.is_wrong:
            names = _between(stage, check.tap, recorded) - cleared
            check = check._replace(between=tuple(tap for tap in stage.taps if tap.name in names))
        result.append(check)
    return result


# ---- what an error looks like


def _explain(
    stage: StageTaps, pipe: Pipeline, checks: list[Check], filled: Values, exact: Values
) -> list[Check]:
    """Add a note to the wrong taps: a block left out or exchanged, or computed in half precision."""
    small = [check for check in checks if check.is_wrong and check.added < MAX_HALF_ERROR]
    halves = {}
    # Only of transformers: convolutions in half precision are slow on a CPU.
    for name in HALF if small and stage.stack else ():
        halves[name] = recompute_taps(stage, pipe.stage(stage.name, name, weights=stage.weights), filled)
    notes: dict[str, str] = {}  # of each repeated block that has a wrong tap, or lies before one
    result = []
    for check in checks:
        if check.is_wrong and not check.note:
            for block in _repeated_blocks(stage, check):
                if block not in notes:
                    notes[block] = _other_block(stage, pipe, block, check, filled)
            explained = [block for block in _repeated_blocks(stage, check) if notes[block]]
            if explained:
                check = check._replace(note=notes[explained[0]], other_block=explained[0])
            else:
                check = check._replace(note=_half_note(check, halves, exact))
        result.append(check)
    return result


def _half_note(check: Check, halves: Mapping[str, Values], exact: Values) -> str:
    name = check.tap.name
    for dtype, values in halves.items():
        usual = relative(exact[name], values[name])
        if usual / HALF_FACTOR < check.added < usual * HALF_FACTOR:
            return f"about as large as {dtype} makes it"
    return ""


def _repeated_blocks(stage: StageTaps, check: Check) -> list[str]:
    """Return the blocks of a stack of equal blocks that may hold an error."""
    blocks = dict.fromkeys(tap.block for tap in (*check.between, check.tap))
    return [block for block in blocks if block.rpartition(".")[0] == stage.stack]


def _other_block(stage: StageTaps, pipe: Pipeline, block: str, check: Check, filled: Values) -> str:
    """Return whether a block was left out, or has the weights of another; else an empty string."""
    model = pipe.stage(stage.name, "float32", weights=stage.weights)
    modules = stage.root(model).get_submodule(stage.stack)
    module = stage.root(model).get_submodule(block)
    name = block if block in filled else check.tap.name
    given = {}
    # Without the block, its input is its output. Its inner taps do not matter then.
    inside = {tap.name for tap in stage.taps if tap.block == block}
    outside = {name: value for name, value in filled.items() if name not in inside}

    def leave_out(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        given["args"] = args
        return args[0]

    handle = module.register_forward_hook(leave_out)
    try:
        without = recompute_taps(stage, model, outside, [name])
    finally:
        handle.remove()
    usual = _output(module, given["args"]) if block in filled else None
    candidates = {f"{block} is left out": without[name]}
    if usual is not None:
        candidates |= {
            f"{block} has the weights of {stage.stack}.{other}": _output(changed, given["args"])
            for other, changed in enumerate(modules)
            if changed is not module
        }
    error = check.added if usual is None else relative(usual, fit(filled[block], usual.shape))
    for text, value in candidates.items():
        fitted = fit(filled[name], value.shape)
        if fitted is not None and relative(value, fitted) < EXPLAINED * error:
            return text
    return ""


@torch.no_grad()
@exact_float32()
def _output(module: nn.Module, args: tuple) -> Tensor:
    return module(*args).cpu()


def match_branches(stage: StageTaps, pipe: Pipeline, taps: Values, fields: Values) -> dict[str, Tensor]:
    """Return taps and fields together, the fields in the order of branches that the taps have.

    Fields have the branch with conditions first. Taps may have the other order, or one branch alone: the
    order is taken that fits the first tap best.
    """
    missing = {name: value for name, value in fields.items() if name not in taps}
    batch = batch_of(stage, taps)
    n_branches = max((len(value) for value in missing.values()), default=1)
    if not missing or batch > n_branches:
        return dict(taps)
    best, smallest = dict(taps), float("inf")
    for order in permutations(range(n_branches), batch):
        combined = dict(taps) | {name: value[list(order)] for name, value in missing.items()}
        error = _first_error(stage, pipe, combined)
        if error < smallest:
            best, smallest = combined, error
    return best


def _first_error(stage: StageTaps, pipe: Pipeline, recorded: Values) -> float:
    """Return the error of the first tap with frames; 0 where nothing can be computed."""
    filled = _with_zeros(stage, recorded)
    names = [tap.name for tap in stage.taps if tap.name in recorded and "frame" in tap.axes]
    if filled is None or not names:
        return 0.0
    ours = recompute_taps(stage, pipe.stage(stage.name, "float32", weights=stage.weights), filled)[names[0]]
    fitted = fit(recorded[names[0]], ours.shape)
    return float("inf") if fitted is None else relative(ours, fitted)
