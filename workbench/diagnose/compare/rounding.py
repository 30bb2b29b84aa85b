"""Estimate how far a right run may be from what our model computes, because of rounding and of storage.

Rounding is measured: our own result in float32 against the one in float64. Storage is measured too: where a
run stored its numbers coarsely, our model is run again on inputs that would have been stored the same.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

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
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.print_errors import with_half_units
from workbench.trace.storage import Storage, beyond_storage, coarse_fields, perturbed_trace
from workbench.trace.trace import Trace

MIN_ALLOWED = ALLOWANCE * EPS  # relative L2 by which a right run may always differ
PERTURBED_TRACES = 3  # draws of the inputs' lost digits: the size of their effect varies
# Allowed: so many times the largest effect that was measured. The draws are twice as large as rounding needs.
STORAGE_ALLOWANCE = 2.0
# float64 takes most of the time of a check. A result that is so many times farther off than rounding explains
# at another step of the same loop is not asked what rounding explains at its own.
FAR = 100.0


class StoredRun:
    """A run, how its numbers were stored, and other runs that would have been stored the same.

    Attributes
    ----------
    trace : Trace
    coarse : dict of str to Storage
        Fields that were not stored in full float32.
    rounding : dict of str to float
        The largest rounding error of our results for each field, as far as it was measured.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = with_half_units(trace)
        self.coarse: dict[str, Storage] = coarse_fields(trace)
        self.rounding: dict[str, float] = {}

    @functools.cached_property
    def perturbed(self) -> list[Trace]:
        """The run with other lost digits; empty where every field is full float32."""
        seeds = range(PERTURBED_TRACES) if self.coarse else ()
        return [perturbed_trace(self.trace, self.coarse, seed) for seed in seeds]

    def take_as_computed(self, field: str) -> None:
        """Take a coarse field as it is: it was computed with so few digits, not merely stored with them.

        That is so where the field is farther from the right result than storage explains. What follows from
        it was then computed from these very values.
        """
        del self.coarse[field]
        self.__dict__.pop("perturbed", None)  # those that were made changed this field

    def distance(self, field: str, found: Tensor, expected: Tensor) -> float:
        """Return the relative L2 distance of a recorded result to ours beyond what its storage explains."""
        if found.shape != expected.shape:
            return float("inf")
        return relative(expected, beyond_storage(found, expected, self.coarse.get(field)))

    def describe(self) -> list[str]:
        """Return a sentence for every form of storage, with the fields that have it."""
        fields_by_name: dict[str, list[str]] = {}
        for field, storage in self.coarse.items():
            fields_by_name.setdefault(storage.name, []).append(field)
        texts = []
        for name, fields in fields_by_name.items():
            texts.append(f"stored as {name}: {', '.join(fields)}; smaller errors cannot be seen there")
        return texts


class Recomputed(NamedTuple):
    """One output of a transition, recomputed by our model from the run's own inputs."""

    field: str
    index: int | None  # of the transition: knot or step; None for a whole field
    value: Tensor
    exact: Callable[[], Tensor]  # returns it in float64, which takes most of the time
    variants: list[Tensor]  # from inputs that would have been stored the same
    field_effect: float = 0.0  # of storage on the whole field, where this is one entry of it

    def entry_count(self) -> int | None:
        """Return how many entries of a loop the transition gives at once; None for a single result."""
        is_loop = self.index is None and loop_dimension(self.field)
        return len(self.value) if is_loop else None

    def at(self, k: int | None) -> "Recomputed":
        """Return the result at one entry of a loop; the result itself for None."""
        if k is None:
            return self
        variants = [variant[k] for variant in self.variants]
        # By chance the variants may all be near in one entry, if it is a single number.
        storage_effect = self._storage_effect()
        return Recomputed(self.field, k, self.value[k], lambda: self.exact()[k], variants, storage_effect)

    def _storage_effect(self) -> float:
        effects = [relative(self.value, variant) for variant in self.variants]
        return max([self.field_effect, *effects])

    def rounding(self) -> float:
        """Measure the rounding error of our result in float32, relative L2."""
        return max(relative(self.exact(), self.value), EPS)

    def explained(self, rounding: float) -> float:
        """Return the distance that so much rounding explains, together with the storage of the inputs."""
        return ALLOWANCE * rounding + STORAGE_ALLOWANCE * self._storage_effect()

    def allowed(self, distance: float, run: StoredRun) -> float:
        """Return the relative L2 by which a right run may differ: rounding, and the storage of its inputs.

        Rounding is measured only where it decides. A result that is equal but for its last bits is right,
        whatever float64 would give. A result that is far off is wrong; it is told the rounding of another
        entry of the field.

        Parameters
        ----------
        distance : float
            Of the run's result from ours.
        run : StoredRun
            Keeps what was measured.
        """
        if distance <= MIN_ALLOWED:
            return self.explained(EPS)
        known = run.rounding.get(self.field)
        if known is not None and distance > FAR * self.explained(known):
            return self.explained(known)
        measured = self.rounding()
        run.rounding[self.field] = max(measured, run.rounding.get(self.field, 0.0))
        return self.explained(measured)


def recompute_in_float32(
    step: Transition, run: StoredRun, pipe: Pipeline, options: Options
) -> tuple[Tensor, ...]:
    """Recompute the outputs of a transition once, by upstream's precision.

    Raises
    ------
    WorkbenchError
        When our model fails on the run's inputs, such as on a mel that holds NaN.
    """
    return step.recompute(pipe, run.trace, options.but(**UPSTREAM_PRECISION))


def recompute(
    step: Transition,
    run: StoredRun,
    pipe: Pipeline,
    options: Options,
    ours: tuple[Tensor, ...] | None = None,
) -> list[Recomputed]:
    """Recompute the outputs of a transition in float32 and from equally stored inputs.

    Each result also computes itself in float64 where it is asked to. `ours` is what `recompute_in_float32`
    gave, where it is known.

    Raises
    ------
    WorkbenchError
        When our model fails on the run's inputs, such as on a mel that holds NaN.
    """
    upstream_precision = options.but(**UPSTREAM_PRECISION)
    if ours is None:
        ours = recompute_in_float32(step, run, pipe, options)

    @functools.cache
    def in_float64() -> tuple[Tensor, ...]:
        values = step.recompute(pipe, run.trace, options.but(**FLOAT64_PRECISION))
        return tuple(value.cpu() for value in values)

    variants = []
    if not run.coarse.keys().isdisjoint(step.inputs):
        variants = [step.recompute(pipe, trace, upstream_precision) for trace in run.perturbed]
    results = []
    for position, field in enumerate(step.outputs):
        varied = [variant[position].cpu() for variant in variants]
        exact = functools.partial(_output, in_float64, position)
        results.append(Recomputed(field, step.index, ours[position].cpu(), exact, varied))
    return results


def _output(outputs: Callable[[], tuple[Tensor, ...]], position: int) -> Tensor:
    return outputs()[position]


# ---- whether a run and a checkpoint belong together

# Results that depend on the weights, each of another part of the model.
WEIGHED = ("flow/mu", "flow/spks", "flow/velocity_cond", "hift/f0")
STREAMING = "a pass of a stream has a mask and look-ahead of its own, which are not computed again here"
OTHER_WEIGHTS = 0.1  # relative L2; a result that is farther off on its own inputs is of other weights


def checkpoint_objection(reference: StoredRun, pipe: Pipeline, options: Options) -> str:
    """Say that a reference is not what a checkpoint gives; empty where it is, or where nothing tells."""
    trace = reference.trace
    wrong = []
    for step in transitions(trace):
        recorded = [field for field in step.outputs if field in WEIGHED and field in trace]
        is_first = step.index is None or step.index == 0  # one step of the ODE shows the weights
        if not recorded or not is_first or not step.can_recompute(trace):
            continue
        try:
            ours = recompute_in_float32(step, reference, pipe, options)
            far = {}  # field -> relative L2
            for field, value in zip(step.outputs, ours, strict=True):
                if field in recorded:
                    found = entry(trace, field, step.index)
                    distance = reference.distance(field, found, value.cpu())
                    if not distance <= OTHER_WEIGHTS:  # also where it is NaN
                        far[field] = distance
            for result in recompute(step, reference, pipe, options, ours) if far else ():
                distance = far.get(result.field, 0.0)
                if not distance <= result.allowed(distance, reference):
                    wrong.append(f"{result.field} (relative L2 {distance:.2g})")
        except (WorkbenchError, RuntimeError) as error:
            return f"the reference cannot be computed again with this checkpoint ({error})"
    if not wrong:
        return ""
    return (
        f"the reference is not what this checkpoint gives: {', '.join(wrong)}. Open the checkpoint that made "
        "it, or make the reference again"
    )
