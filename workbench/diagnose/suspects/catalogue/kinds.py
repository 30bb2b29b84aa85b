"""Kinds of faults with a parameter: which block is left out, which bias is missing, by how many frames.

The catalogue lists faults that somebody made. A kind generates all faults of one sort for a model, so that
the parameter can be told as well. `find_suspects` tries kinds where the catalogue explains nothing.
"""

import functools
from collections.abc import Iterable

import torch

from workbench.diagnose.compare.transitions import SPECTRUM
from workbench.diagnose.suspects.catalogue import parameter_patches, patches
from workbench.diagnose.suspects.catalogue.faults import Fault
from workbench.diagnose.suspects.catalogue.kind_makers import (
    QUANTISED,
    SOURCE,
    Kind,
    is_square,
    of_blocks,
    of_inputs,
    of_numbers,
    of_options,
    of_tensors,
    quantised_weights,
)
from workbench.diagnose.suspects.catalogue.model_changes import (
    with_block_repeated,
    with_blocks_swapped,
    without_block,
)
from workbench.diagnose.suspects.catalogue.patches import Patch
from workbench.speech.models import dit, flow, lm
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES


def faults_of_kinds(pipe: Pipeline, kinds: Iterable[Kind] | None = None) -> list[Fault]:
    """Return every fault of the kinds, all kinds by default, for the model of a pipeline."""
    found = []
    for kind in KINDS if kinds is None else kinds:
        found += kind.faults(pipe)
    return found


def kind_of(fault: Fault) -> str:
    """Return the name of a fault's kind: its own name without the parameter."""
    return fault.name.partition("(")[0]


_LATE = (-8, -4, -3, -2, -1, 1, 2, 3, 4, 8)

KINDS: tuple[Kind, ...] = (
    of_blocks("block-left-out", "block {0} of the {stage} is left out", without_block, False),
    of_blocks("blocks-swapped", "blocks {1} and {0} of the {stage} are swapped", with_blocks_swapped, True),
    of_blocks(
        "block-stale", "block {0} of the {stage} has the weights of block {1}", with_block_repeated, True
    ),
    of_tensors("bias-missing", "{path} is missing: zero", ".bias", torch.zeros_like, torch.any),
    of_tensors("weight-missing", "{path} is missing: zero", ".weight", torch.zeros_like, torch.any),
    of_tensors("weight-transposed", "{path} is transposed", ".weight", lambda w: w.T.clone(), is_square),
    Kind(QUANTISED, quantised_weights),
    of_numbers(
        "rope-base",
        BRANCH_VELOCITIES,
        "the estimator's rotary base is {}; it should be 10,000",
        (100, 1_000, 5_000, 20_000, 50_000, 100_000, 500_000, 1_000_000),
        parameter_patches.estimator_rope,
    ),
    of_numbers(
        "lm-rope-base",
        ("lm/logp",),
        "the LM's rotary base is {}; it should be 1,000,000",
        (50_000, 100_000, 500_000, 5_000_000, 10_000_000),
        lambda base: Patch(lm.Qwen2, "rope", patches.rope_with_base(base)),
    ),
    of_numbers(
        "attention-scale",
        BRANCH_VELOCITIES,
        "the estimator's attention scale is {} times the right one",
        (0.25, 0.5, 0.7071067811865476, 1.4142135623730951, 2, 4),
        functools.partial(parameter_patches.attention_scale, dit),
    ),
    of_numbers(
        "norm-epsilon",
        BRANCH_VELOCITIES,
        "the epsilon of the estimator's layer norms is {}; it should be 1e-6",
        (1e-12, 1e-8, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2),
        lambda eps: Patch(dit, "NORM_EPS", eps),
    ),
    of_numbers(
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
    of_options(
        "solver-other",
        BRANCH_VELOCITIES,
        "the ODE is solved by {}; upstream's solver is Euler's",
        "solver",
        [name for name in flow.SOLVERS if name != "euler"],
    ),
    of_options(
        "steps-other",
        ("flow/t",),
        "the ODE has {} steps",
        "n_timesteps",
        [2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 20, 25, 30, 32, 50],
    ),
    of_numbers(
        "guidance-rate",
        ("flow/velocity",),
        "the guidance rate is {}",
        (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.65, 0.75, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0),
        parameter_patches.guidance_rate,
        right=0.7,
    ),
    *(
        of_numbers(
            f"{name}-scaled",
            (f"flow/{name}",),
            f"{name} is {{}} times what it should be",
            (0.1, 0.5, 0.7071067811865476, 1.4142135623730951, 2, 10),
            functools.partial(parameter_patches.scaled_condition, name),
            right=1.0,
        )
        for name in ("mu", "cond", "spks")
    ),
    of_options(
        "temperature",
        ("flow/x",),
        "the noise is multiplied by {}; it should be 1",
        "temperature",
        (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.1, 1.2, 1.5),
        right=1.0,
    ),
    of_numbers(
        "grid-sway",
        ("flow/t",),
        "the ODE's knots are those of sway sampling with {}; it should be -1, the cosine grid",
        (-0.8, -0.5, -0.2, 0.5, 1.0),
        parameter_patches.sway_grid,
        right=-1.0,
    ),
    of_numbers(
        "grid-moved",
        ("flow/t",),
        "the ODE's knots lie {} steps further than they should",
        (-1, -0.5, 0.5, 1),
        parameter_patches.moved_grid,
    ),
    of_numbers(
        "time-of-other-step",
        BRANCH_VELOCITIES,
        "the estimator is given the time {} steps further",
        (-1, -0.5, 0.5, 1),
        parameter_patches.time_of_other_step,
    ),
    of_numbers(
        "snake-epsilon",
        SPECTRUM,
        "Snake divides by alpha + {}; it should be alpha + 1e-9",
        (0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
        parameter_patches.snake_with,
    ),
    Kind(
        "snake-reciprocal",
        lambda pipe: (
            Fault(
                f"snake-reciprocal({dtype})",
                SPECTRUM,
                f"the reciprocal of Snake's alpha is taken in {dtype}, and is infinite where alpha is near 0",
                "upstream pull request 1874",
                patches=(parameter_patches.snake_with(1e-9, getattr(torch, dtype)),),
            )
            for dtype in ("float16", "bfloat16")
        ),
    ),
    of_numbers(
        "stft-shifted",
        SPECTRUM,
        "the excitation is {} samples late in its STFT",
        _LATE,
        parameter_patches.source_late,
    ),
    of_numbers(
        "wav-shifted",
        ("hift/wav",),
        "the inverse STFT is cut {} samples late",
        _LATE,
        parameter_patches.wav_late,
    ),
    of_numbers(
        "harmonics-fewer",
        ("hift/source",),
        "the excitation has {} sines; it should have nine",
        tuple(range(1, 9)),
        parameter_patches.fewer_harmonics,
    ),
    of_numbers(
        "voiced-threshold",
        ("hift/source",),
        "frames count as voiced from {} Hz on; it should be 10 Hz",
        (5, 20, 30, 40, 50, 60, 70, 80, 100, 120, 150, 200),
        lambda hz: patches.source_config(nsf_voiced_threshold=hz),
    ),
    of_numbers(
        "source-rate",
        ("hift/source",),
        "the excitation is made for {} Hz, not for the vocoder's rate",
        (16_000, 22_050, 44_100, 48_000),
        lambda rate: patches.source_config(sampling_rate=int(rate)),
    ),
    of_inputs(
        "prompt-tokens-late",
        "in/flow_prompt_token",
        "the prompt's tokens are {} late against its mel",
        (-2, -1, 1, 2),
        parameter_patches.prompt_tokens_late,
    ),
    of_inputs(
        "prompt-mel-late",
        "in/prompt_mel",
        "the prompt's mel is {} frames late against its tokens",
        (-4, -3, -2, -1, 2, 3, 4),
        lambda late: patches.changed_prompt_mel(lambda mel: mel.roll(int(late), dims=-1)),
    ),
    of_numbers(
        "lm-tokens-shifted",
        ("lm/logp",),
        "the LM's prompt tokens are off by {} in the embedding",
        (-2, -1, 1, 2),
        parameter_patches.lm_tokens_shifted,
    ),
)
