"""Recompute each recorded field from the recorded fields before it.

A `Transition` is one call of our own model: it takes fields that a run recorded and returns the fields
that follow from them. If the run recorded something else there, the run made an error at that place. If
the run recorded the same values, any error in them came with the inputs.
"""

import functools
from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.config import Options
from workbench.speech.models import flow
from workbench.speech.models.flow import SOLVERS, Condition, Velocity
from workbench.speech.models.hift import HiFT, check_mel
from workbench.speech.models.numerics import exact_float32
from workbench.speech.models.sampling import Sampler, shorten_silences
from workbench.speech.pipeline import Pipeline
from workbench.trace.schema import BRANCH_VELOCITIES, FLOW_INPUTS, LM_INPUTS, LOOPS, VELOCITIES, dims_of
from workbench.trace.trace import Trace

Recompute = Callable[[Pipeline, Trace, Options], tuple[Tensor, ...]]

CONDITION_INPUTS = ("lm/speech_token", *FLOW_INPUTS)
ESTIMATOR_INPUTS = ("flow/x", "flow/t", "flow/mu", "flow/cond", "flow/spks")
STREAMED_TURNS = "turns of the streamed text"  # no field: what is missing where text arrived as a stream
SPECTRUM = ("hift/magnitude", "hift/phase", "hift/wav")  # outputs of the vocoder's last part

# Results that follow from nothing that was recorded, and why; any other lacks its inputs.
UNPREDICTABLE = {
    "lm/drawn_token": "a run without our seed has other random numbers, and rightly draws other tokens"
}

DTYPES = ("lm_dtype", "flow_dtype", "hift_dtype", "f0_dtype", "source_dtype", "head_dtype")
# Options that recompute a result in the precision of upstream: float32, and float64 in the f0 predictor.
# Estimator and vocoder are always our torch models: other programs are what is being compared.
PROGRAMS = {name: getattr(Options(), name) for name in ("estimator", "vocoder")}
UPSTREAM_PRECISION = PROGRAMS | {name: getattr(Options(), name) for name in DTYPES}
# Options that recompute a result in float64. Its distance to the result above is what rounding explains.
FLOAT64_PRECISION = PROGRAMS | dict.fromkeys(DTYPES, "float64")


class Transition(NamedTuple):
    """One call of our model: which fields it returns, and from which fields it computes them."""

    outputs: tuple[str, ...]
    index: int | None  # knot or step of the outputs; None for whole fields
    inputs: tuple[str, ...]
    recompute: Recompute  # returns one tensor for each of `outputs`
    step: int | None = None  # step of the ODE that it belongs to

    def missing_inputs(self, trace: Trace) -> list[str]:
        """Return the inputs that the trace does not hold, whole fields or the entries that are needed."""
        missing = []
        for name in self.inputs:
            if name not in trace:
                missing.append(name)
            elif loop_dimension(name):
                needed = self._entries_needed(name)
                if len(trace[name]) < needed:
                    missing.append(f"{name}[{needed - 1}]")
        return missing

    def _entries_needed(self, name: str) -> int:
        """Return how many entries of a loop field must be there for this transition."""
        if self.step is None:
            return 1
        return self.step + 2 if name == "flow/t" else self.step + 1  # a step lies between two knots

    def can_recompute(self, trace: Trace) -> bool:
        """Whether the trace holds all inputs."""
        return not self.missing_inputs(trace)

    def recorded_outputs(self, trace: Trace) -> list[str]:
        """Return the outputs that the trace holds."""
        return [name for name in self.outputs if is_recorded(trace, name, self.index)]

    def obstacle(self, trace: Trace, target_only: Set[str]) -> str:
        """Say why the outputs that a trace holds cannot be recomputed; empty where they can.

        Parameters
        ----------
        trace : Trace
        target_only : set of str
            Fields without the prompt's frames: nothing can be computed from them, nor they from others.
        """
        cut = sorted(target_only.intersection((*self.inputs, *self.recorded_outputs(trace))))
        if cut:
            return f"{', '.join(cut)} recorded without the prompt's frames"
        missing = self.missing_inputs(trace)
        return f"{', '.join(missing)} not recorded" if missing else ""


def is_recorded(trace: Trace, field: str, index: int | None) -> bool:
    """Whether a trace holds the values of a field, or of one knot, step or draw of it."""
    return field in trace and (index is None or index < len(trace[field]))


def entry(trace: Trace, field: str, index: int | None) -> Tensor:
    """Return a field, or one knot, step or draw of it."""
    return trace[field] if index is None else trace[field][index]


def entry_or_none(trace: Trace, field: str, index: int | None) -> Tensor | None:
    """Return what `entry` returns; None where the trace does not hold it."""
    return entry(trace, field, index) if is_recorded(trace, field, index) else None


def loop_dimension(field: str) -> str | None:
    """Return the dimension along which a field grows during a run: "draw", "knot", "step" or None."""
    first = (dims_of(field) or ("",))[0]
    return first if first in LOOPS else None


def transitions(trace: Trace) -> Iterator[Transition]:
    """Yield every transition of a run in causal order.

    Some may lack their inputs: ask `Transition.can_recompute`.
    """
    if "lm/drawn_token" in trace:
        # Between the draws of a streamed text stand pieces of the text; a trace does not say where.
        turns = (STREAMED_TURNS,) if trace.attrs.get("text_stream") else ()
        yield Transition(("lm/logp",), None, (*LM_INPUTS, "lm/drawn_token", *turns), _logp)
        yield Transition(("lm/entropy",), None, ("lm/logp",), _entropy)
        # Without our seed the run had another random generator, which rightly draws other tokens.
        if "seed" in trace.attrs.get("options", {}):
            yield Transition(("lm/drawn_token",), None, ("in/text_token", "lm/logp", *turns), _drawn_token)
        yield Transition(("lm/speech_token",), None, ("lm/drawn_token",), _speech_token)
    yield Transition(("flow/mu", "flow/cond", "flow/spks"), None, CONDITION_INPUTS, _condition)
    if "flow/noise" in trace:
        yield Transition(("flow/noise",), None, (), _noise)
    if "flow/t" in trace:
        yield Transition(("flow/t",), None, (), _time_grid)
    if not trace.attrs.get("first_step"):  # a run that begins inside the ODE does not start from noise
        noise = ("flow/noise",) if "flow/noise" in trace else ()  # without it our own noise is the input
        yield Transition(("flow/x",), 0, noise, _initial_state)
    for k in range(_step_count(trace)):
        branches = functools.partial(_branch_velocities, k=k)
        guided = functools.partial(_guided_velocity, k=k)
        next_state = functools.partial(_next_state, k=k)
        yield Transition(BRANCH_VELOCITIES, k, ESTIMATOR_INPUTS, branches, k)
        yield Transition(("flow/velocity",), k, BRANCH_VELOCITIES, guided, k)
        yield Transition(("flow/x",), k + 1, ("flow/x", "flow/velocity", "flow/t"), next_state, k)
    yield Transition(("flow/mel",), None, ("flow/x",), _mel)
    yield Transition(("hift/f0",), None, ("flow/mel",), _f0)
    yield Transition(("hift/source",), None, ("hift/f0",), _source)
    yield Transition(SPECTRUM, None, ("flow/mel", "hift/source"), _spectrum_and_wav)


def target_fields(reference: Trace, candidate: Trace) -> set[str]:
    """Return the fields of which the candidate has the target's frames alone, without the prompt's."""
    found = set()
    for field in candidate:
        if "frame" in (dims_of(field) or ()) and field in reference and reference.prompt_frames:
            frames, all_frames = candidate[field].shape[-1], reference[field].shape[-1]
            if frames == all_frames - reference.prompt_frames:
                found.add(field)
    return found


def _step_count(trace: Trace) -> int:
    """Return how many steps of the ODE the run recorded, in any of its fields."""
    knots = [len(trace[name]) for name in ("flow/t", "flow/x") if name in trace]
    steps = [len(trace[name]) for name in VELOCITIES if name in trace]
    return max([*(count - 1 for count in knots), *steps], default=0)


# ---- LM


@torch.no_grad()
def _logp(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    """Return log-probabilities (draw, vocab), with the run's own tokens as the LM's history."""
    lm = pipe.stage("lm", options.lm_dtype, weights=options.weights)
    text, prompt_text, prompt, drawn = (
        trace[name].to(pipe.device) for name in (*LM_INPUTS, "lm/drawn_token")
    )
    start = lm.embed(torch.cat((prompt_text, text)), prompt)  # (1, T, D)
    embedded = torch.cat((start, lm.speech_embedding(drawn[:-1])[None]), dim=1)
    return (lm.logp(lm.qwen(embedded)[0, -len(drawn) :]),)


def _entropy(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    logp = trace["lm/logp"].to(torch.promote_types(getattr(torch, options.lm_dtype), torch.float32))
    return (-(logp.exp() * logp).sum(-1),)


def _drawn_token(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    """Draw again from the run's own log-probabilities."""
    sampler = Sampler(options, pipe.config.lm, pipe.config.silent_tokens)
    lm = pipe.stage("lm", options.lm_dtype, weights=options.weights)
    min_tokens, _ = lm.limits(len(trace["in/text_token"]))
    history: list[int] = []
    for index, logp in enumerate(trace["lm/logp"]):
        history.append(sampler(logp, history, index < min_tokens))
    return (torch.tensor(history),)


def _speech_token(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    drawn = trace["lm/drawn_token"].tolist()
    return (torch.tensor(list(shorten_silences(drawn, pipe.config.silent_tokens, options.max_silent_run))),)


# ---- flow


@torch.no_grad()
def _condition(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    token, prompt_token, prompt_mel, embedding = (trace[name].to(pipe.device) for name in CONDITION_INPUTS)
    model = pipe.stage("flow", options.flow_dtype, weights=options.weights)
    c = model.condition(token, prompt_token, prompt_mel[None], embedding)
    return c.mu[0], c.cond[0], c.spks[0]


@torch.no_grad()
def _branch_velocities(pipe: Pipeline, trace: Trace, options: Options, k: int) -> tuple[Tensor, ...]:
    """Return both velocities (mel, frame) of step k, from the run's own state at knot k."""
    model = pipe.stage("flow", options.flow_dtype, weights=options.weights)
    like = model.input_embedding.weight  # its dtype and device are those of the model
    mu = trace["flow/mu"][None].to(like)  # (1, mel, frame)
    cond = trace["flow/cond"][None].to(like)  # (1, mel, frame)
    spks = trace["flow/spks"][None].to(like)  # (1, mel)
    x = trace["flow/x"][k][None].to(like)  # (1, mel, frame)
    condition = Condition(mu, spks, cond, trace.prompt_frames)
    time = trace["flow/t"].to(like.device, torch.promote_types(like.dtype, torch.float32))

    def velocity_at(x: Tensor, t: Tensor) -> Velocity:
        return model.velocity(x, t, condition, options.cfg_rate, False)

    v = SOLVERS[options.solver](velocity_at, x, time[k], time[k + 1] - time[k])
    return v.cond[0], v.uncond[0]


def _noise(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    return (pipe.noise(trace["flow/noise"].shape[-1], options)[0],)


def _time_grid(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    knots = flow.t_span(options.n_timesteps, options.t_scheduler, _ode_dtype(options))
    first = trace.attrs.get("first_step", 0)
    return (knots[first : first + len(trace["flow/t"])],)  # a run may have been stopped early


def _initial_state(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    if "flow/noise" in trace:
        noise = trace["flow/noise"]
    else:
        noise = pipe.noise(trace["flow/x"].shape[-1], options)[0].cpu()
    return (noise * options.temperature,)


def _ode_dtype(options: Options) -> torch.dtype:
    """Return the dtype of the ODE's arithmetic: float32 at least, also where the estimator runs in half."""
    return torch.promote_types(getattr(torch, options.flow_dtype), torch.float32)


def _guided_velocity(pipe: Pipeline, trace: Trace, options: Options, k: int) -> tuple[Tensor, ...]:
    cond, uncond = (trace[name][k].to(_ode_dtype(options)) for name in BRANCH_VELOCITIES)
    return (flow.guide(cond, uncond, options.cfg_rate),)


def _next_state(pipe: Pipeline, trace: Trace, options: Options, k: int) -> tuple[Tensor, ...]:
    dtype = _ode_dtype(options)
    x, v, t = (trace[name].to(dtype) for name in ("flow/x", "flow/velocity", "flow/t"))
    return (x[k] + flow.step_size(t, k, t[k]) * v[k],)


def _mel(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    """Cut the prompt's frames off the last state."""
    return (pipe.target(trace["flow/x"][-1][None], trace.prompt_frames, options.speed)[0],)


# ---- vocoder


def _vocoder(pipe: Pipeline, options: Options) -> HiFT:
    dtypes = options.hift_dtype, options.f0_dtype, options.source_dtype
    return pipe.stage("hift", *dtypes, weights=options.weights)


def _vocoder_and_mel(pipe: Pipeline, trace: Trace, options: Options) -> tuple[HiFT, Tensor]:
    """Return the vocoder in the options' precision, and the run's own mel (1, mel, target_frame)."""
    hift = _vocoder(pipe, options)
    mel = trace["flow/mel"][None].to(pipe.device)
    check_mel(mel, hift.config, True)
    return hift, mel


@torch.no_grad()
@exact_float32()
def _f0(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    hift, mel = _vocoder_and_mel(pipe, trace, options)
    return (hift.f0_predictor(mel.to(hift.f0_predictor.classifier.weight.dtype))[0],)


@torch.no_grad()
@exact_float32()
def _spectrum_and_wav(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    """Return magnitude, phase and waveform, from the run's own mel and excitation."""
    hift, mel = _vocoder_and_mel(pipe, trace, options)
    dtype = hift.conv_post.bias.dtype
    source = trace["hift/source"][None, None].to(pipe.device, dtype)  # (1, 1, sample)
    x = hift.trunk(mel.to(dtype), hift.stft(source))
    magnitude, phase, wav = hift.head(x.to(getattr(torch, options.head_dtype)))
    return magnitude[0], phase[0], wav[0]


@torch.no_grad()
def _source(pipe: Pipeline, trace: Trace, options: Options) -> tuple[Tensor, ...]:
    hift = _vocoder(pipe, options)
    f0 = trace["hift/f0"][None].to(pipe.device, hift.m_source.l_linear.weight.dtype)  # (1, target_frame)
    noise = pipe.checkpoint.noise.excitation(f0.shape[-1] * pipe.config.hift.hop_length).to(pipe.device)
    return (hift.m_source(f0, noise)[0, 0],)
