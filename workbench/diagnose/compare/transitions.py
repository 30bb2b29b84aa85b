"""What follows from what: each recorded field worked out again from the fields before it.

A transition asks our own model for one result, given what the run itself had at that point. If the run
then holds something else, the error was made there; if it holds the same, the error came with its inputs.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.config import Options
from workbench.speech.models import flow
from workbench.speech.models.flow import SOLVERS, Condition, Velocity
from workbench.speech.models.sampling import Sampler, shorten_silences
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import utterance_of
from workbench.trace.schema import BRANCH_VELOCITIES, LM_INPUTS, LOOPS, dims_of
from workbench.trace.trace import Trace

Work = Callable[[Pipeline, Trace, Options], tuple[Tensor, ...]]


class Transition(NamedTuple):
    """Results that one call of our model gives, and what they follow from."""

    fields: tuple[str, ...]
    index: int | None  # knot or step of the fields
    needs: tuple[str, ...]
    work: Work  # as many tensors as there are fields

    def ready(self, trace: Trace) -> bool:
        """Whether the trace holds everything the results follow from."""
        return all(name in trace for name in self.needs)


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
    if "lm/drawn_token" in trace:
        yield Transition(("lm/logp",), None, (*LM_INPUTS, "lm/drawn_token"), _logp)
        if "seed" in trace.attrs.get("options", {}):  # another generator draws other tokens, rightly
            yield Transition(("lm/drawn_token",), None, ("in/text_token", "lm/logp"), _drawn)
        yield Transition(("lm/speech_token",), None, ("lm/drawn_token",), _shortened)
    yield Transition(("flow/mu", "flow/cond", "flow/spks"), None, CONDITIONS, _condition)
    if "flow/noise" in trace:
        yield Transition(("flow/noise",), None, (), _noise)
    if "flow/t" in trace:
        yield Transition(("flow/t",), None, (), _grid)
    if not trace.attrs.get("first_step"):  # a run from inside the ODE does not start from noise
        yield Transition(("flow/x",), 0, (), _begin)
    n_steps = len(trace["flow/t"]) - 1 if "flow/t" in trace else 0
    for k in range(n_steps):
        yield Transition(BRANCH_VELOCITIES, k, ESTIMATOR, functools.partial(_ask, k=k))
        yield Transition(("flow/velocity",), k, BRANCH_VELOCITIES, functools.partial(_guided, k=k))
        yield Transition(("flow/x",), k + 1, ("flow/velocity", "flow/t"), functools.partial(_euler, k=k))
    yield Transition(("flow/mel",), None, ("flow/x",), _cut)
    yield Transition(("hift/f0",), None, ("flow/mel",), _pitch)
    yield Transition(("hift/source",), None, ("hift/f0",), _source)
    heard = ("hift/magnitude", "hift/phase", "hift/wav")
    yield Transition(heard, None, ("flow/mel", "hift/source"), _heard)


@torch.no_grad()
def _logp(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    lm = pipe.stage("lm", options.lm_dtype)
    text, prompt_text, prompt, drawn = (
        trace[name].to(pipe.device) for name in (*LM_INPUTS, "lm/drawn_token")
    )
    start = lm.embed(torch.cat((prompt_text, text)), prompt)
    embedded = torch.cat((start, lm.speech_embedding(drawn[:-1])[None]), dim=1)
    return (lm.logp(lm.qwen(embedded)[0, -len(drawn) :]),)


def _drawn(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    sampler = Sampler(options, pipe.config.lm, pipe.config.silent_tokens)
    shortest, _ = pipe.stage("lm", options.lm_dtype).limits(len(trace["in/text_token"]))
    history: list[int] = []
    for index, logp in enumerate(trace["lm/logp"]):
        history.append(sampler(logp, history, index < shortest))
    return (torch.tensor(history),)


def _shortened(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    drawn = trace["lm/drawn_token"].tolist()
    return (torch.tensor(list(shorten_silences(drawn, pipe.config.silent_tokens, options.max_silent_run))),)


def _condition(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    c = pipe.condition(utterance_of(trace), trace["lm/speech_token"], options)
    return c.mu[0], c.cond[0], c.spks[0]


@torch.no_grad()
def _ask(pipe: Pipeline, trace: Trace, options: Options, k: int) -> tuple[Tensor, ...]:
    model = pipe.stage("flow", options.flow_dtype)
    like = model.input_embedding.weight
    mu, cond, spks, x = (
        y[None].to(like)
        for y in (trace["flow/mu"], trace["flow/cond"], trace["flow/spks"], trace["flow/x"][k])
    )
    c = Condition(mu, spks, cond, trace.prompt_frames)
    time = trace["flow/t"].to(like.device, torch.promote_types(like.dtype, torch.float32))

    def ask(x: Tensor, t: Tensor) -> Velocity:
        return model.velocity(x, t, c, options.cfg_rate, False)

    v = SOLVERS[options.solver](ask, x, time[k], time[k + 1] - time[k])
    return v.cond[0], v.uncond[0]


def _noise(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    return (pipe.noise(trace["flow/noise"].shape[-1], options)[0],)


def _grid(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    knots = flow.t_span(options.n_timesteps, options.t_scheduler, _wide(options))
    first = trace.attrs.get("first_step", 0)
    return (knots[first : first + len(trace["flow/t"])],)  # a run may have been stopped early


def _begin(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    if "flow/noise" in trace:
        noise = trace["flow/noise"]
    else:
        noise = pipe.noise(trace["flow/x"].shape[-1], options)[0].cpu()
    return (noise * options.temperature,)


def _wide(options: Options) -> torch.dtype:
    return torch.promote_types(getattr(torch, options.flow_dtype), torch.float32)


def _guided(pipe: Pipeline, trace: Trace, options: Options, k: int) -> tuple[Tensor, ...]:
    cond, uncond = (trace[name][k].to(_wide(options)) for name in BRANCH_VELOCITIES)
    return (flow.guide(cond, uncond, options.cfg_rate),)


def _euler(pipe: Pipeline, trace: Trace, options: Options, k: int) -> tuple[Tensor, ...]:
    wide = _wide(options)
    x, v, t = (trace[name].to(wide) for name in ("flow/x", "flow/velocity", "flow/t"))
    return (x[k] + flow.step_size(t, k, t[k]) * v[k],)


def _cut(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    return (pipe.target(trace["flow/x"][-1][None], trace.prompt_frames, options.speed)[0],)


@torch.no_grad()
def _sound(pipe: Pipeline, trace: Trace, options: Options, source: Tensor | None):
    hift = pipe.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
    mel = trace["flow/mel"][None].to(pipe.device)
    noise = pipe.checkpoint.noise.excitation(mel.shape[-1] * pipe.config.hift.hop_length).to(pipe.device)
    if source is not None:
        source = source[None, None].to(pipe.device)
    return hift(mel, noise, source=source, head_dtype=getattr(torch, options.head_dtype))


def _pitch(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    return (_sound(pipe, trace, options, None).f0[0],)


def _heard(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    sound = _sound(pipe, trace, options, trace["hift/source"])
    return sound.magnitude[0], sound.phase[0], sound.wav[0]


@torch.no_grad()
def _source(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    hift = pipe.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
    f0 = trace["hift/f0"][None].to(pipe.device, hift.m_source.l_linear.weight.dtype)
    noise = pipe.checkpoint.noise.excitation(f0.shape[-1] * pipe.config.hift.hop_length).to(pipe.device)
    return (hift.m_source(f0, noise)[0, 0],)
