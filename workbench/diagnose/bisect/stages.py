"""The taps of each stage: which submodules are worth recording, and what each is computed from.

A tap is named like the submodule that returns it, relative to the stage's root, which is upstream's module of
the same name. With ".input" behind the name it is what the submodule is given. The taps stand in the order in
which the model computes them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.speech.config.formats import rules_text
from workbench.speech.models import flow as flow_model
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES, LM_INPUTS
from workbench.trace.trace import Trace

INPUT = ".input"  # behind the name of a submodule: what it is given
SOURCE = "input."  # before the name of an argument of the root: what the stage is given
FRAMES = ("branch", "frame", "width")
CHANNELS = ("branch", "channel", "frame")
VECTOR = ("branch", "width")


class Tap(NamedTuple):
    """One place in a model where a tensor can be recorded."""

    name: str
    inputs: tuple[str, ...]  # taps and sources that it is computed from
    part: str  # what is computed between the inputs and this tap, in words
    block: str  # the tap of the whole block that it belongs to
    axes: tuple[str, ...] = FRAMES


Values = Mapping[str, Tensor]  # tensors by the name of their tap or source


class StageTaps(NamedTuple):
    """What can be recorded of one stage."""

    name: str  # of the stage
    path: str  # of the root in upstream's program
    root: Callable[[nn.Module], nn.Module]  # from our model of the stage to the root
    sources: Mapping[str, tuple[str, ...]]  # arguments of the root, with their axes
    taps: tuple[Tap, ...]
    run: Callable[[nn.Module, Values], Tensor | None]  # call our model of the stage
    from_fields: Callable[[Pipeline, Trace, int], dict[str, Tensor]]  # sources and outputs that a trace has
    # Channels or width of the sources: unknown sources become zeros of this size. None: all are needed.
    width: int | None
    stack: str = ""  # the submodule that holds the equal blocks
    first: str = ""  # the submodule that begins and the one that ends a call; "" is the root
    last: str = ""
    weights: str | None = None  # `Options.weights` of the run that is looked into

    def tap(self, name: str) -> Tap:
        """Return a tap by its name."""
        return next(tap for tap in self.taps if tap.name == name)

    @property
    def blocks(self) -> list[str]:
        """The taps of whole blocks, in order."""
        return [tap.name for tap in self.taps if tap.name == tap.block]


# ---- flow: the estimator


def flow_taps(pipe: Pipeline) -> StageTaps:
    """Return the taps of the flow's estimator, a diffusion transformer."""
    taps = [
        Tap("time_embed.time_mlp.input", ("input.t",), "sines and cosines of the time", "time_embed", VECTOR),
        Tap("time_embed", ("time_embed.time_mlp.input",), "MLP of the time", "time_embed", VECTOR),
        Tap(
            "input_embed.proj.input",
            ("input.x", "input.cond", "input.mu", "input.spks"),
            "order of the inputs: x, cond, mu, spks",
            "input_embed",
        ),
        Tap("input_embed.proj", ("input_embed.proj.input",), "input projection", "input_embed"),
        Tap(
            "input_embed.conv_pos_embed.conv1",
            ("input_embed.proj",),
            "first convolution of the position embedding",
            "input_embed",
            CHANNELS,
        ),
        Tap(
            "input_embed.conv_pos_embed",
            ("input_embed.conv_pos_embed.conv1",),
            "second convolution of the position embedding",
            "input_embed",
        ),
        Tap(
            "input_embed",
            ("input_embed.proj", "input_embed.conv_pos_embed"),
            "sum of projection and position embedding",
            "input_embed",
        ),
    ]
    before = "input_embed"
    for index in range(pipe.config.flow.dit.depth):
        block = f"transformer_blocks.{index}"
        taps += _dit_block(block, before)
        before = block
    taps += [
        Tap("norm_out.linear", ("time_embed",), "modulation of the final norm", "proj_out", VECTOR),
        Tap("proj_out.input", (before, "norm_out.linear"), "final norm", "proj_out"),
        Tap("proj_out", ("proj_out.input",), "final projection", "proj_out"),
        Tap("output", ("proj_out",), "velocity from the final projection", "output", CHANNELS),
    ]
    sources = {"x": CHANNELS, "mask": ("branch", "one", "frame"), "mu": CHANNELS, "t": ("branch",)}
    sources |= {"spks": ("branch", "channel"), "cond": CHANNELS}
    return StageTaps(
        "flow",
        "model.flow.decoder.estimator",
        lambda flow: flow.decoder.estimator,
        sources,
        tuple(taps),
        _run_estimator,
        _flow_fields,
        pipe.config.flow.dit.mel_dim,
        "transformer_blocks",
    )


def _dit_block(block: str, before: str) -> list[Tap]:
    """Return the taps of one transformer block of the estimator; `before` is the tap of its input."""
    modulation = f"{block}.attn_norm.linear"
    qkv = [f"{block}.attn.to_{letter}" for letter in "qkv"]
    return [
        Tap(modulation, ("time_embed",), "modulation: shifts, scales and gates", block, VECTOR),
        Tap(f"{block}.attn.input", (before, modulation), "norm before attention", block),
        *(Tap(name, (f"{block}.attn.input",), f"attention: {name[-1]}", block) for name in qkv),
        Tap(f"{block}.attn.to_out.0.input", (*qkv, "input.mask"), "attention: rotary, scores, mask", block),
        Tap(f"{block}.attn", (f"{block}.attn.to_out.0.input", "input.mask"), "attention: projection", block),
        Tap(
            f"{block}.ff.input",
            (before, f"{block}.attn", modulation),
            "gate and residual of attention, norm before feed-forward",
            block,
        ),
        Tap(f"{block}.ff.ff.0.0", (f"{block}.ff.input",), "feed-forward: first linear layer", block),
        Tap(f"{block}.ff.ff.0", (f"{block}.ff.ff.0.0",), "feed-forward: activation", block),
        Tap(f"{block}.ff", (f"{block}.ff.ff.0",), "feed-forward: second linear layer", block),
        Tap(
            block,
            (before, f"{block}.attn", modulation, f"{block}.ff"),
            "gate and residual of feed-forward",
            block,
        ),
    ]


def _run_estimator(flow: nn.Module, values: Values) -> Tensor:
    names = ("x", "mask", "mu", "t", "spks", "cond")
    return flow.decoder.estimator(*(values.get(SOURCE + name) for name in names))


def _flow_fields(pipe: Pipeline, trace: Trace, step: int) -> dict[str, Tensor]:
    """Return the estimator's inputs and output at a step, with conditions and without: a batch of two.

    With another solver than Euler's, a step has several evaluations, so that fields do not tell the state.
    """
    options = pipe.checkpoint.options.but(**trace.attrs.get("options", {}))
    index = step - trace.attrs.get("first_step", 0)
    if options.solver != "euler" or index < 0:
        return {}
    found = {}
    if "flow/x" in trace and index < len(trace["flow/x"]):
        found["input.x"] = trace["flow/x"][index].expand(2, -1, -1)
    if "flow/t" in trace and index < len(trace["flow/t"]):
        found["input.t"] = trace["flow/t"][index].expand(2)
    for name in ("mu", "cond", "spks"):
        if f"flow/{name}" in trace:
            value = trace[f"flow/{name}"]
            found[SOURCE + name] = torch.stack((value, torch.zeros_like(value)))
    if all(name in trace and index < len(trace[name]) for name in BRANCH_VELOCITIES):
        found["output"] = torch.stack([trace[name][index] for name in BRANCH_VELOCITIES])
    return found


def time_knot(pipe: Pipeline, trace: Trace, step: int) -> Tensor | None:
    """Return the time at which a right run evaluates the estimator at a step, float64 (); None if unknown."""
    options = pipe.checkpoint.options.but(**trace.attrs.get("options", {}))
    if options.solver != "euler" or step >= options.n_timesteps:
        return None
    return flow_model.t_span(options.n_timesteps, options.t_scheduler, torch.float64)[step]


# ---- LM: the decoder over the prompt


def lm_taps(pipe: Pipeline) -> StageTaps:
    """Return the taps of the LM's decoder, at its first call: the prompt as a whole."""
    taps, before = [], "input.inputs_embeds"
    for index in range(pipe.config.lm.num_hidden_layers):
        block = f"layers.{index}"
        taps += _qwen_layer(block, before)
        before = block
    taps.append(Tap("norm", (before,), "final norm", "norm"))
    return StageTaps(
        "lm",
        "model.llm.llm.model.model",
        lambda lm: lm.qwen,
        {"inputs_embeds": FRAMES},
        tuple(taps),
        lambda lm, values: lm.qwen(values["input.inputs_embeds"]),
        _lm_fields,
        pipe.config.lm.hidden_size,
        "layers",
    )


def _qwen_layer(block: str, before: str) -> list[Tap]:
    norm, attn = f"{block}.input_layernorm", f"{block}.self_attn"
    qkv = [f"{attn}.{letter}_proj" for letter in "qkv"]
    second_norm, mlp = f"{block}.post_attention_layernorm", f"{block}.mlp"
    return [
        Tap(norm, (before,), "norm before attention", block),
        *(Tap(name, (norm,), f"attention: {name[-6]}", block) for name in qkv),
        Tap(f"{attn}.o_proj.input", tuple(qkv), "attention: rotary, scores, mask", block),
        Tap(f"{attn}.o_proj", (f"{attn}.o_proj.input",), "attention: projection", block),
        Tap(f"{second_norm}.input", (before, f"{attn}.o_proj"), "residual of attention", block),
        Tap(second_norm, (f"{second_norm}.input",), "norm before feed-forward", block),
        Tap(f"{mlp}.gate_proj", (second_norm,), "feed-forward: gate", block),
        Tap(f"{mlp}.up_proj", (second_norm,), "feed-forward: first linear layer", block),
        Tap(
            f"{mlp}.down_proj.input",
            (f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            "feed-forward: activation",
            block,
        ),
        Tap(mlp, (f"{mlp}.down_proj.input",), "feed-forward: second linear layer", block),
        Tap(block, (before, f"{attn}.o_proj", mlp), "residual of feed-forward", block),
    ]


@torch.no_grad()
def _lm_fields(pipe: Pipeline, trace: Trace, step: int) -> dict[str, Tensor]:
    if step or any(name not in trace for name in LM_INPUTS):
        return {}
    text, prompt_text, prompt = (trace[name].to(pipe.device) for name in LM_INPUTS)
    lm = pipe.stage("lm", "float32", weights=weights_of(trace))
    embedded = lm.embed(torch.cat((prompt_text, text)), prompt)
    return {"input.inputs_embeds": embedded.cpu()}


# ---- vocoder


def hift_taps(pipe: Pipeline) -> StageTaps:
    """Return the taps of the vocoder's trunk; `compare` checks f0 and excitation, which are fields."""
    config = pipe.config.hift
    per_up = len(config.resblock_kernel_sizes)
    taps = [Tap("conv_pre", ("input.mel",), "first convolution", "conv_pre", CHANNELS)]
    before: tuple[str, ...] = ("conv_pre",)
    for index in range(len(config.upsample_rates)):
        up, down, source = f"ups.{index}", f"source_downs.{index}", f"source_resblocks.{index}"
        taps += [
            Tap(up, before, "activation and upsampling", up, CHANNELS),
            Tap(down, ("input.source",), "STFT of the excitation and its downsampling", source, CHANNELS),
            Tap(source, (down,), "residual block of the excitation", source, CHANNELS),
        ]
        before = tuple(f"resblocks.{index * per_up + k}" for k in range(per_up))
        taps += [
            Tap(name, (up, source), "residual block, or the sum before it", name, CHANNELS) for name in before
        ]
    taps += [
        Tap("conv_post.input", before, "mean of the residual blocks, activation", "conv_post", CHANNELS),
        Tap("conv_post", ("conv_post.input",), "last convolution", "conv_post", CHANNELS),
    ]
    return StageTaps(
        "hift",
        "model.hift",
        lambda hift: hift,
        {"mel": CHANNELS, "source": CHANNELS},
        tuple(taps),
        lambda hift, values: hift.trunk(values["input.mel"], hift.stft(values["input.source"])),
        _hift_fields,
        None,
        first="conv_pre",
        last="conv_post",
    )


def _hift_fields(pipe: Pipeline, trace: Trace, step: int) -> dict[str, Tensor]:
    found = {}
    if "flow/mel" in trace:
        found["input.mel"] = trace["flow/mel"][None]
    if "hift/source" in trace:
        found["input.source"] = trace["hift/source"][None, None]
    return found


STAGES: Mapping[str, Callable[[Pipeline], StageTaps]] = {
    "flow": flow_taps,
    "lm": lm_taps,
    "hift": hift_taps,
}


def weights_of(trace: Trace) -> str | None:
    """Return the formats of a run's quantised weights, where it states them."""
    return rules_text(trace.attrs.get("options", {}).get("weights"))


def stage_taps(pipe: Pipeline, stage: str) -> StageTaps:
    """Return the taps of a stage.

    Raises
    ------
    WorkbenchError
        When there is no such stage.
    """
    if stage not in STAGES:
        raise WorkbenchError(f"stage is {stage!r}; expected one of {', '.join(STAGES)}")
    return STAGES[stage](pipe)
