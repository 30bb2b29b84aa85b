"""Make kinds of faults: all faults of one sort for a model, which differ by a parameter.

Examples of a parameter are the block that is left out, the bias that is missing, or a number of frames.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from workbench.diagnose.compare.transitions import SPECTRUM
from workbench.diagnose.suspects.catalogue.faults import Fault
from workbench.diagnose.suspects.catalogue.model_changes import changed_model, with_tensor
from workbench.diagnose.suspects.catalogue.patches import Patch
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES

BLOCKS = {"flow": "decoder.estimator.transformer_blocks", "lm": "llm.model.model.layers"}
SOURCE = "a kind of fault"
QUANTISED = "quantised"  # the kind of formats of weights, which are no faults
QUANTISED_SOURCE = "weights of few bits, which many ports have on purpose"
# Results that a part of a model makes: (start of the part's dotted name, fields), the first that fits.
FIELDS_OF_PART = {
    "flow": (
        ("decoder.", BRANCH_VELOCITIES),
        ("spk_embed", ("flow/spks",)),
        ("", ("flow/mu",)),
    ),
    "lm": (("", ("lm/logp",)),),
    "hift": (
        ("f0_predictor", ("hift/f0",)),
        ("m_source", ("hift/source",)),
        ("", SPECTRUM),
    ),
}


@dataclass(frozen=True)
class LinearParameter:
    """A parameter on which a field depends linearly, so that its value can be fitted to a record.

    Attributes
    ----------
    field : str
    right : float
        The value of a healthy model.
    listed : sequence of float
        The values that are tried anyway.
    with_value : callable
        Value -> fault.
    """

    field: str
    right: float
    listed: Sequence[float]
    with_value: Callable[[float], Fault]


@dataclass(frozen=True)
class Kind:
    """Faults of one sort that differ by a parameter.

    Attributes
    ----------
    name : str
    faults : callable
        Pipeline -> the faults of this kind for its model.
    linear : LinearParameter, optional
        Where the value can be fitted.
    """

    name: str
    faults: Callable[[Pipeline], Iterable[Fault]]
    linear: LinearParameter | None = None


# ---- parts of the models


def model_of(pipe: Pipeline, stage: str) -> nn.Module:
    """Return the model of a stage as upstream runs it."""
    return pipe.stage(stage, "float32", *(("float64", "float32") if stage == "hift" else ()))


def _fields_of(stage: str, part: str) -> tuple[str, ...]:
    return next(fields for start, fields in FIELDS_OF_PART[stage] if part.startswith(start))


def _block_fault(kind: str, cause: str, stage: str, change: Callable, *numbers: int) -> Fault:
    """Return a fault of whole blocks; `change` takes the model and the blocks' dotted names."""
    paths = [f"{BLOCKS[stage]}.{number}" for number in numbers]
    named = ", ".join(map(str, numbers))
    return Fault(
        f"{kind}({stage} {named})",
        _fields_of(stage, paths[0]),
        cause.format(*numbers, stage=stage),
        SOURCE,
        patches=(changed_model(stage, lambda model: change(model, *paths)),),
    )


def of_blocks(kind: str, cause: str, change: Callable, neighbours: bool) -> Kind:
    """Return the kind with one fault for each block, or for each pair of neighbours."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for stage in BLOCKS:
            count = len(model_of(pipe, stage).get_submodule(BLOCKS[stage]))
            for number in range(1 if neighbours else 0, count):
                numbers = (number, number - 1) if neighbours else (number,)
                yield _block_fault(kind, cause, stage, change, *numbers)

    return Kind(kind, faults)


def of_tensors(
    kind: str, cause: str, ending: str, change: Callable[[Tensor], Tensor], fits: Callable
) -> Kind:
    """Return the kind with one fault for each weight or bias of all models that `fits`."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for stage in FIELDS_OF_PART:
            for path, tensor in model_of(pipe, stage).named_parameters():
                if not path.endswith(ending) or not fits(tensor):
                    continue
                changed = functools.partial(with_tensor, path=path, change=change)
                yield Fault(
                    f"{kind}({path})",
                    _fields_of(stage, path),
                    cause.format(path=path),
                    SOURCE,
                    patches=(changed_model(stage, changed),),
                )

    return Kind(kind, faults)


def is_square(tensor: Tensor) -> bool:
    """Whether a tensor is a square matrix: transposed it has the same shape."""
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]


def quantised_weights(pipe: Pipeline) -> Iterator[Fault]:
    """Yield LM and estimator in two formats; all others, and some of the layers, are found by likeness."""
    for part, fields in (("lm", ("lm/logp",)), ("flow.decoder", BRANCH_VELOCITIES)):
        for text in ("int8:channel", "q4_0"):
            yield Fault(
                f"{QUANTISED}({part} {text})",
                fields,
                f"the weights of {part} are in {text}, a choice and no fault",
                QUANTISED_SOURCE,
                options={"weights": f"{part}={text}"},
                rounds=True,
            )


# ---- numbers inside the models


def _of_values(
    kind: str, field: str, values: Sequence, with_value: Callable[..., Fault], right: float | None = None
) -> Kind:
    """Return the kind with one fault for each value.

    Give the `right` value where `field` depends on the value linearly: other values are then fitted to what
    was recorded.
    """
    linear = None if right is None else LinearParameter(field, right, values, with_value)
    return Kind(kind, lambda pipe: map(with_value, values), linear)


def of_numbers(
    kind: str,
    fields: tuple[str, ...],
    cause: str,
    values: Sequence[float],
    change: Callable[[float], Patch],
    right: float | None = None,
) -> Kind:
    """Return the kind with one fault for each value of a number; `right` is as for `_of_values`."""

    def with_value(value: float) -> Fault:
        text = f"{value:g}"
        return Fault(f"{kind}({text})", fields, cause.format(text), SOURCE, patches=(change(value),))

    return _of_values(kind, fields[0], values, with_value, right)


def of_inputs(kind: str, field: str, cause: str, values: Sequence[float], change: Callable) -> Kind:
    """Return the kind with one fault of the front end for each value."""

    def with_value(value: float) -> Fault:
        text = f"{value:g}"
        changed = change(value)
        return Fault(f"{kind}({text})", (field,), cause.format(text), SOURCE, change_utterance=changed)

    return _of_values(kind, field, values, with_value)


def of_options(
    kind: str,
    fields: tuple[str, ...],
    cause: str,
    name: str,
    values: Sequence,
    right: float | None = None,
) -> Kind:
    """Return the kind with one fault for each value of an option; `right` is as for `_of_values`."""

    def with_value(value: float | str) -> Fault:
        return Fault(f"{kind}({value})", fields, cause.format(value), SOURCE, options={name: value})

    return _of_values(kind, fields[0], values, with_value, right)
