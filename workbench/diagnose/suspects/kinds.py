"""Kinds of faults with a parameter: which block is left out, which bias is missing, by how many frames.

The catalogue lists faults that somebody made. A kind generates all faults of one sort for a model, so that
the parameter can be told as well. `find_suspects` tries kinds where the catalogue explains nothing.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.diagnose.compare.transitions import SPECTRUM
from workbench.diagnose.suspects import parameter_patches, patches
from workbench.diagnose.suspects.faults import Fault
from workbench.diagnose.suspects.model_changes import (
    changed_model,
    with_block_repeated,
    with_blocks_swapped,
    with_quantised_weights,
    with_tensor,
    without_block,
)
from workbench.diagnose.suspects.patches import Patch
from workbench.speech.models import dit, flow, lm
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES

BLOCKS = {"flow": "decoder.estimator.transformer_blocks", "lm": "llm.model.model.layers"}
SOURCE = "a kind of fault"
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
class Kind:
    """Faults of one sort that differ by a parameter.

    Attributes
    ----------
    name : str
    faults : callable
        Pipeline -> the faults of this kind for its model.
    """

    name: str
    faults: Callable[[Pipeline], Iterable[Fault]]


def faults_of_kinds(pipe: Pipeline, kinds: Iterable[Kind] | None = None) -> list[Fault]:
    """Return every fault of the kinds, all kinds by default, for the model of a pipeline."""
    found = []
    for kind in KINDS if kinds is None else kinds:
        found += kind.faults(pipe)
    return found


def kind_of(fault: Fault) -> str:
    """Return the name of a fault's kind: its own name without the parameter."""
    return fault.name.partition("(")[0]


# ---- parts of the models


def _model(pipe: Pipeline, stage: str) -> nn.Module:
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


def _blocks(kind: str, cause: str, change: Callable, neighbours: bool) -> Kind:
    """Return the kind with one fault for each block, or for each pair of neighbours."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for stage in BLOCKS:
            count = len(_model(pipe, stage).get_submodule(BLOCKS[stage]))
            for number in range(1 if neighbours else 0, count):
                numbers = (number, number - 1) if neighbours else (number,)
                yield _block_fault(kind, cause, stage, change, *numbers)

    return Kind(kind, faults)


def _tensors(kind: str, cause: str, ending: str, change: Callable[[Tensor], Tensor], fits: Callable) -> Kind:
    """Return the kind with one fault for each weight or bias of all models that `fits`."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for stage in FIELDS_OF_PART:
            for path, tensor in _model(pipe, stage).named_parameters():
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


def _is_square(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]


def _quantised(pipe: Pipeline) -> Iterator[Fault]:
    groups = {-1: "tensor", 0: "channel", 32: "group of 32", 64: "group of 64", 128: "group of 128"}
    for stage, fields in (("lm", ("lm/logp",)), ("flow", ("flow/spks", *BRANCH_VELOCITIES))):
        for bits in (8, 4):
            for group, per in groups.items():
                change = functools.partial(with_quantised_weights, bits=bits, group=group)
                yield Fault(
                    f"quantised({stage} int{bits} per {per})",
                    fields,
                    f"the weights of the {stage}'s linear layers are int{bits} with one scale per {per}",
                    SOURCE,
                    patches=(changed_model(stage, change),),
                )


# ---- numbers inside the models


def _numbers(
    kind: str, fields: tuple[str, ...], cause: str, values: Iterable[float], change: Callable[[float], Patch]
) -> Kind:
    """Return the kind with one fault for each value of a number."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for value in values:
            text = f"{value:g}"
            yield Fault(f"{kind}({text})", fields, cause.format(text), SOURCE, patches=(change(value),))

    return Kind(kind, faults)


def _inputs(kind: str, field: str, cause: str, values: Iterable[float], change: Callable) -> Kind:
    """Return the kind with one fault of the front end for each value."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for value in values:
            yield Fault(
                f"{kind}({value:g})",
                (field,),
                cause.format(f"{value:g}"),
                SOURCE,
                change_utterance=change(value),
            )

    return Kind(kind, faults)


def _options(kind: str, fields: tuple[str, ...], cause: str, name: str, values: Iterable) -> Kind:
    """Return the kind with one fault for each value of an option."""

    def faults(pipe: Pipeline) -> Iterator[Fault]:
        for value in values:
            options = {name: value}
            yield Fault(f"{kind}({value})", fields, cause.format(value), SOURCE, options=options)

    return Kind(kind, faults)


_LATE = (-8, -4, -3, -2, -1, 1, 2, 3, 4, 8)

KINDS: tuple[Kind, ...] = (
    _blocks("block-left-out", "block {0} of the {stage} is left out", without_block, False),
    _blocks("blocks-swapped", "blocks {1} and {0} of the {stage} are swapped", with_blocks_swapped, True),
    _blocks(
        "block-stale", "block {0} of the {stage} has the weights of block {1}", with_block_repeated, True
    ),
    _tensors("bias-missing", "{path} is missing: zero", ".bias", torch.zeros_like, torch.any),
    _tensors("weight-transposed", "{path} is transposed", ".weight", lambda w: w.T.clone(), _is_square),
    Kind("quantised", _quantised),
    _numbers(
        "rope-base",
        BRANCH_VELOCITIES,
        "the estimator's rotary base is {}; it should be 10,000",
        (100, 1_000, 5_000, 20_000, 50_000, 100_000, 500_000, 1_000_000),
        parameter_patches.estimator_rope,
    ),
    _numbers(
        "lm-rope-base",
        ("lm/logp",),
        "the LM's rotary base is {}; it should be 1,000,000",
        (50_000, 100_000, 500_000, 5_000_000, 10_000_000),
        lambda base: Patch(lm.Qwen2, "rope", patches.rope_with_base(base)),
    ),
    _numbers(
        "attention-scale",
        BRANCH_VELOCITIES,
        "the estimator's attention scale is {} times the right one",
        (0.25, 0.5, 0.7071067811865476, 1.4142135623730951, 2, 4),
        functools.partial(parameter_patches.attention_scale, dit),
    ),
    _numbers(
        "norm-epsilon",
        BRANCH_VELOCITIES,
        "the epsilon of the estimator's layer norms is {}; it should be 1e-6",
        (1e-12, 1e-8, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2),
        lambda eps: Patch(dit, "NORM_EPS", eps),
    ),
    _numbers(
        "padded-without-mask",
        BRANCH_VELOCITIES,
        "frames are padded to a multiple of {} without a mask",
        (8, 16, 32, 64, 100, 128, 256, 512),
        parameter_patches.padded_estimator,
    ),
    Kind(
        "time-wrong",
        lambda pipe: (
            Fault(
                f"time-wrong({name})",
                BRANCH_VELOCITIES,
                f"the estimator is given the time {name}",
                SOURCE,
                patches=(parameter_patches.changed_time(change),),
            )
            for name, change in (
                ("1 - t", lambda t: 1 - t),
                ("0", lambda t: 0 * t),
                ("1", lambda t: 0 * t + 1),
            )
        ),
    ),
    _options(
        "solver-other",
        BRANCH_VELOCITIES,
        "the ODE is solved by {}; upstream's solver is Euler's",
        "solver",
        [name for name in flow.SOLVERS if name != "euler"],
    ),
    _options(
        "steps-other",
        ("flow/t",),
        "the ODE has {} steps",
        "n_timesteps",
        [2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 20, 25, 30, 32, 50],
    ),
    _numbers(
        "guidance-rate",
        ("flow/velocity",),
        "the guidance rate is {}",
        (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.65, 0.75, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0),
        parameter_patches.guidance_rate,
    ),
    *(
        _numbers(
            f"{name}-scaled",
            (f"flow/{name}",),
            f"{name} is {{}} times what it should be",
            (0.1, 0.5, 0.7071067811865476, 1.4142135623730951, 2, 10),
            functools.partial(parameter_patches.scaled_condition, name),
        )
        for name in ("mu", "cond", "spks")
    ),
    _options(
        "temperature",
        ("flow/x",),
        "the noise is multiplied by {}; it should be 1",
        "temperature",
        [0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.1, 1.2, 1.5],
    ),
    _numbers(
        "stft-shifted",
        SPECTRUM,
        "the excitation is {} samples late in its STFT",
        _LATE,
        parameter_patches.source_late,
    ),
    _numbers(
        "wav-shifted",
        ("hift/wav",),
        "the inverse STFT is cut {} samples late",
        _LATE,
        parameter_patches.wav_late,
    ),
    _numbers(
        "harmonics-fewer",
        ("hift/source",),
        "the excitation has {} sines; it should have nine",
        range(1, 9),
        parameter_patches.fewer_harmonics,
    ),
    _numbers(
        "voiced-threshold",
        ("hift/source",),
        "frames count as voiced from {} Hz on; it should be 10 Hz",
        (5, 20, 30, 40, 50, 60, 70, 80, 100, 120, 150, 200),
        lambda hz: patches.source_config(nsf_voiced_threshold=hz),
    ),
    _numbers(
        "source-rate",
        ("hift/source",),
        "the excitation is made for {} Hz, not for the vocoder's rate",
        (16_000, 22_050, 44_100, 48_000),
        lambda rate: patches.source_config(sampling_rate=int(rate)),
    ),
    _inputs(
        "prompt-tokens-late",
        "in/flow_prompt_token",
        "the prompt's tokens are {} late against its mel",
        (-2, -1, 1, 2),
        parameter_patches.prompt_tokens_late,
    ),
    _inputs(
        "prompt-mel-late",
        "in/prompt_mel",
        "the prompt's mel is {} frames late against its tokens",
        (-4, -3, -2, -1, 2, 3, 4),
        lambda late: patches.changed_prompt_mel(lambda mel: mel.roll(int(late), dims=-1)),
    ),
    _numbers(
        "lm-tokens-shifted",
        ("lm/logp",),
        "the LM's prompt tokens are off by {} in the embedding",
        (-2, -1, 1, 2),
        parameter_patches.lm_tokens_shifted,
    ),
)
