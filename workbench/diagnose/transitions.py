"""What follows from what: each recorded field worked out again from the fields before it.

A transition asks our own model for one result, given what the run itself had at that point. If the run
then holds something else, the error was made there; if it holds the same, the error came with its inputs.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.config import Options
from workbench.speech.flow import SOLVERS, Condition, Velocity
from workbench.speech.frontend import utterance_of
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import LOOPS, dims_of
from workbench.trace.trace import Trace

Work = Callable[[Pipeline, Trace, Options], Tensor]


class Transition(NamedTuple):
    """One result and what it follows from."""

    field: str
    index: int | None  # knot or step of the field
    needs: tuple[str, ...]
    work: Work

    @property
    def name(self) -> str:
        """Such as flow/velocity_cond[3]."""
        return self.field if self.index is None else f"{self.field}[{self.index}]"

    def ready(self, trace: Trace) -> bool:
        """Whether the trace holds the result and everything it follows from."""
        return all(name in trace for name in (self.field, *self.needs))

    def found(self, trace: Trace) -> Tensor:
        """What the run has there."""
        return entry(trace, self.field, self.index)


def entry(trace: Trace, field: str, index: int | None) -> Tensor:
    """Return a field, or one knot, step or draw of it."""
    return trace[field] if index is None else trace[field][index]


def loop_of(field: str) -> str | None:
    """Return the dimension along which a field grows: draw, knot, step or None."""
    first = (dims_of(field) or ("",))[0]
    return first if first in LOOPS else None


CONDITIONS = ("in/flow_prompt_token", "lm/speech_token", "in/prompt_mel", "in/spk_embedding")
ESTIMATOR = ("flow/x", "flow/t", "flow/mu", "flow/cond", "flow/spks")


def transitions(trace: Trace) -> Iterator[Transition]:
    """Every transition of a run, in causal order; those it has no fields for are left to `ready`."""
    for name in ("mu", "cond", "spks"):
        yield Transition(f"flow/{name}", None, CONDITIONS, _condition(name))
    if not trace.attrs.get("first_step"):  # a run from inside the ODE does not start from noise
        yield Transition("flow/x", 0, (), _begin)
    n_steps = len(trace["flow/t"]) - 1 if "flow/t" in trace else 0
    for k in range(n_steps):
        for which in ("cond", "uncond"):
            yield Transition(f"flow/velocity_{which}", k, ESTIMATOR, _velocity(which, k))
        yield Transition("flow/velocity", k, ("flow/velocity_cond", "flow/velocity_uncond"), _guided(k))
        yield Transition("flow/x", k + 1, ("flow/velocity", "flow/t"), _euler(k))
    yield Transition("flow/mel", None, ("flow/x",), _cut)
    yield Transition("hift/f0", None, ("flow/mel",), _vocoded("f0"))
    yield Transition("hift/source", None, ("hift/f0",), _source)
    for name in ("magnitude", "phase", "wav"):
        yield Transition(f"hift/{name}", None, ("flow/mel", "hift/source"), _vocoded(name))


def _condition(name: str) -> Work:
    def work(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
        utt = utterance_of(trace)
        return getattr(pipe.condition(utt, trace["lm/speech_token"], options), name)[0]

    return work


@torch.no_grad()
def _ask(pipe: Pipeline, trace: Trace, options: Options, k: int) -> Velocity:
    flow = pipe.stage("flow", options.flow_dtype)
    like = flow.input_embedding.weight
    mu, cond, spks, x = (
        y[None].to(like)
        for y in (trace["flow/mu"], trace["flow/cond"], trace["flow/spks"], trace["flow/x"][k])
    )
    c = Condition(mu, spks, cond, trace.prompt_frames)
    time = trace["flow/t"].to(like.device, torch.promote_types(like.dtype, torch.float32))

    def ask(x: Tensor, t: Tensor) -> Velocity:
        return flow.velocity(x, t, c, options.cfg_rate, False)

    return SOLVERS[options.solver](ask, x, time[k], time[k + 1] - time[k])


def _velocity(which: str, k: int) -> Work:
    return lambda pipe, trace, options: getattr(_ask(pipe, trace, options, k), which)[0]


def _begin(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
    return pipe.noise(trace["flow/x"].shape[-1], options)[0].cpu() * options.temperature


def _wide(options: Options) -> torch.dtype:
    return torch.promote_types(getattr(torch, options.flow_dtype), torch.float32)


def _guided(k: int) -> Work:
    def work(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
        cond, uncond = (trace[f"flow/velocity_{w}"][k].to(_wide(options)) for w in ("cond", "uncond"))
        return (1.0 + options.cfg_rate) * cond - options.cfg_rate * uncond

    return work


def _euler(k: int) -> Work:
    def work(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
        wide = _wide(options)
        x, v, t = (trace[name].to(wide) for name in ("flow/x", "flow/velocity", "flow/t"))
        return x[k] + (t[k + 1] - t[k]) * v[k]

    return work


def _cut(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
    return trace.select("flow/x", knot=-1, region="target").to(_wide(options))


@torch.no_grad()
def _sound(pipe: Pipeline, trace: Trace, options: Options, source: Tensor | None):
    hift = pipe.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
    mel = trace["flow/mel"][None].to(pipe.device)
    noise = pipe.checkpoint.noise.excitation(mel.shape[-1] * pipe.config.hift.hop_length).to(pipe.device)
    if source is not None:
        source = source[None, None].to(pipe.device)
    return hift(mel, noise, source=source, head_dtype=getattr(torch, options.head_dtype))


def _vocoded(name: str) -> Work:
    def work(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
        source = None if name == "f0" else trace["hift/source"]
        return getattr(_sound(pipe, trace, options, source), name)[0]

    return work


@torch.no_grad()
def _source(pipe: Pipeline, trace: Trace, options: Options) -> Tensor:
    hift = pipe.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
    f0 = trace["hift/f0"][None].to(pipe.device, hift.m_source.l_linear.weight.dtype)
    noise = pipe.checkpoint.noise.excitation(f0.shape[-1] * pipe.config.hift.hop_length).to(pipe.device)
    return hift.m_source(f0, noise)[0, 0]
