"""Speech tokens to mel: conditioning, time grid, guidance, solver.

Map:

- `Flow.condition`: tokens, prompt mel and speaker -> `Condition`, the estimator's inputs beside x and t
- `t_span`: the knots of the ODE; `step_size`: the length of a step
- `Flow.velocity`: the estimator (`dit.DiT`) with and without conditions -> `guide` -> `Velocity`
- `SOLVERS`: one or two velocity evaluations a step
- `Flow.steps`: the ODE, a generator that yields every `FlowStep`; `integrate` is its loop

Shape letters: `B` batch, `L` tokens, `T` mel frames; a mel has 80 bins. Facts: upstream
`cosyvoice/flow/{flow,flow_matching}.py`; parameter names are upstream's. `diagnose.suspects` replaces
functions and methods here to simulate faults, so they are called through the module or the class.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.speech.config import FlowConfig, Options
from workbench.speech.models.dit import DiT
from workbench.speech.models.numerics import MatmulConv1d, exact_float32

# A velocity estimator, with the arguments of `DiT.forward`: x, mask, mu, t, spks, cond, streaming.
Estimator = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, bool], Tensor]


class Condition(NamedTuple):
    """The conditioning: the estimator's inputs beside the state and the time."""

    mu: Tensor  # (1, 80, T) from the tokens, prompt included
    spks: Tensor  # (1, 80) projected speaker embedding
    cond: Tensor  # (1, 80, T) the prompt's mel, zeros after it
    prompt_frames: int


class Velocity(NamedTuple):
    """`guided = cond + cfg_rate * (cond - uncond)`, each (1, 80, T)."""

    guided: Tensor
    cond: Tensor
    uncond: Tensor


class FlowStep(NamedTuple):
    """One step of the solver: `x_next = x + dt * velocity.guided`, from knot t to knot t + dt."""

    index: int
    t: Tensor  # ()
    dt: Tensor  # ()
    x: Tensor  # (1, 80, T) before the step
    velocity: Velocity
    x_next: Tensor
    t_next: Tensor  # ()


VelocityAt = Callable[[Tensor, Tensor], Velocity]  # the velocity as a function of state and time


class PreLookahead(nn.Module):
    """Let every token see the `lookahead` tokens after it."""

    def __init__(self, channels: int, hidden: int, lookahead: int) -> None:
        super().__init__()
        self.lookahead = lookahead
        # Not nn.Conv1d: in exact float32 cuDNN may choose a slow algorithm, see `MatmulConv1d`.
        self.conv1 = MatmulConv1d(channels, hidden, lookahead + 1)
        self.conv2 = MatmulConv1d(hidden, channels, 3)

    def forward(self, x: Tensor, finalize: bool) -> Tensor:  # (B, L, 80) -> (B, L or L - 3, 80)
        h = x.transpose(1, 2)
        if finalize:
            h = F.pad(h, (0, self.lookahead))
        else:  # the last tokens are context alone
            x = x[:, : x.shape[1] - self.lookahead]
        h = F.leaky_relu(self.conv1(h))  # slope 0.01, not the vocoder's 0.1
        return self.conv2(F.pad(h, (2, 0))).transpose(1, 2) + x


class Decoder(nn.Module):
    """Holds the estimator under upstream's name."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = DiT(config.dit)


def t_span(n_timesteps: int, scheduler: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the knots of the ODE from 0 (noise) to 1 (mel).

    Parameters
    ----------
    n_timesteps : int
        Steps between the knots.
    scheduler : {"cosine", "linear"}
        The cosine grid starts with steps 13 times shorter than it ends with (10 steps).

    Returns
    -------
    Tensor (n_timesteps + 1,)
    """
    u = torch.linspace(0, 1, n_timesteps + 1, dtype=dtype)
    return 1 - torch.cos(u * 0.5 * math.pi) if scheduler == "cosine" else u


def step_size(knots: Tensor, index: int, t: Tensor) -> Tensor:
    """Return the length of step `index`: from t, the time accumulated so far, to the next knot, as upstream.

    A function of its own, so that `diagnose.suspects` can replace it.
    """
    return knots[index + 1] - t


def unconditional(c: Condition) -> Condition:
    """Return the inputs of the unconditional branch: mu, spks and cond all zero.

    A function of its own, so that `diagnose.suspects` can replace it.
    """
    return c._replace(mu=torch.zeros_like(c.mu), spks=torch.zeros_like(c.spks), cond=torch.zeros_like(c.cond))


def guide(v_cond: Tensor, v_uncond: Tensor, cfg_rate: float | Tensor) -> Tensor:
    """Return the classifier-free guidance: away from the velocity without conditions."""
    return (1.0 + cfg_rate) * v_cond - cfg_rate * v_uncond


class Flow(nn.Module):
    """Flow matching from noise to mel, conditioned on tokens, a prompt and a speaker.

    Parameters
    ----------
    config : FlowConfig
        Sizes.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.output_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.pre_lookahead_layer = PreLookahead(
            config.output_size, config.pre_lookahead_channels, config.pre_lookahead_len
        )
        self.decoder = Decoder(config)

    @exact_float32()
    def condition(
        self,
        token: Tensor,
        prompt_token: Tensor,
        prompt_mel: Tensor,
        spk_embedding: Tensor,
        finalize: bool = True,
    ) -> Condition:
        """Turn tokens, prompt and speaker into the estimator's inputs.

        Parameters
        ----------
        token, prompt_token : Tensor (L,), (P,)
            Speech tokens of the target and of the prompt.
        prompt_mel : Tensor (1, 80, T_prompt)
            Log-mel of the prompt, two frames a token.
        spk_embedding : Tensor (192,)
            Not normalised; this does it.
        finalize : bool
            False: more tokens are to come; the last `pre_lookahead_len` are context alone and give no frames.

        Raises
        ------
        WorkbenchError
            When a token is outside the vocabulary or nothing is left to render.
        """
        ids = torch.cat((prompt_token, token))
        self.check_ids(ids, prompt_mel.shape[-1], finalize)
        mu, spks = self.embed(ids, spk_embedding, finalize)
        return self.with_prompt(mu, spks, prompt_mel)

    def check_ids(self, ids: Tensor, prompt_frames: int, finalize: bool) -> None:
        """Raise the errors of `condition`; `ids` (L,) are the prompt's tokens and the target's."""
        if len(ids) and int(ids.max()) >= self.config.vocab_size:
            raise WorkbenchError(
                f"speech token {int(ids.max())} found; this flow knows ids below {self.config.vocab_size}. "
                "Was it made by the tokenizer of another checkpoint?"
            )
        rendered = len(ids) - (0 if finalize else self.config.pre_lookahead_len)
        if rendered <= 0:
            raise WorkbenchError(
                f"{len(ids)} speech tokens reached the flow; it needs at least one to render"
            )
        frames = rendered * self.config.token_mel_ratio
        if prompt_frames >= frames:
            raise WorkbenchError(
                f"the prompt has {prompt_frames} mel frames and the tokens make {frames} in all, "
                "so no frame is left for the target; align the prompt (2 frames a token) or add tokens"
            )

    def embed(self, ids: Tensor, spk_embedding: Tensor, finalize: bool) -> tuple[Tensor, Tensor]:
        """Return mu (1, 80, T) and spks (1, 80); `ids` (L,) are the prompt's tokens and the target's."""
        dtype = self.input_embedding.weight.dtype
        embedded = self.input_embedding(ids.clamp(min=0))[None]  # (1, L, 80)
        h = self.pre_lookahead_layer(embedded, finalize)
        mu = h.repeat_interleave(self.config.token_mel_ratio, dim=1).transpose(1, 2)  # (1, 80, T)
        spks = self.spk_embed_affine_layer(F.normalize(spk_embedding[None], dim=1).to(dtype))
        return mu, spks

    def with_prompt(self, mu: Tensor, spks: Tensor, prompt_mel: Tensor) -> Condition:
        """Complete what `embed` returned with cond, the prompt's mel with zeros after it."""
        prompt_frames = prompt_mel.shape[-1]
        cond = F.pad(prompt_mel.to(mu.dtype), (0, mu.shape[-1] - prompt_frames))
        return Condition(mu, spks, cond, prompt_frames)

    @exact_float32()
    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        c: Condition,
        cfg_rate: float,
        streaming: bool,
        estimator: Estimator | None = None,
    ) -> Velocity:
        """Evaluate the estimator with and without conditions, as one batch of two, and guide; as upstream."""
        estimator = estimator or self.decoder.estimator
        none = unconditional(c)
        pairs = ((c.mu, none.mu), (c.spks, none.spks), (c.cond, none.cond))
        mu, spks, cond = (torch.cat(pair) for pair in pairs)
        v = estimator(torch.cat((x, x)), None, mu, t.expand(2), spks, cond, streaming)
        v_cond, v_uncond = v[:1], v[1:]
        return Velocity(guide(v_cond, v_uncond, cfg_rate), v_cond, v_uncond)

    def steps(
        self,
        c: Condition,
        noise: Tensor,
        options: Options = Options(),
        streaming: bool = False,
        start: int = 0,
        estimator: Estimator | None = None,
    ) -> Iterator[FlowStep]:
        """Solve the ODE, step by step.

        Parameters
        ----------
        c : Condition
            From `condition`.
        noise : Tensor (1, 80, T)
            The state at t = 0; with `start`, the state at that knot.
        options : Options
            n_timesteps, t_scheduler, solver, cfg_rate, temperature.
        streaming : bool
            Chunked attention in the estimator.
        start : int
            First step to take; those before it are left out.
        estimator : callable, optional
            Called as `DiT` is; the flow's own by default.

        Returns
        -------
        iterator of FlowStep
            The last one's `x_next` is the mel, prompt included.
        """
        x = noise.to(c.mu) * (1.0 if start else options.temperature)

        def velocity_at(x: Tensor, t: Tensor) -> Velocity:
            return self.velocity(x, t, c, options.cfg_rate, streaming, estimator)

        return integrate(velocity_at, x, options, start)


def integrate(velocity_at: VelocityAt, x: Tensor, options: Options, start: int = 0) -> Iterator[FlowStep]:
    """Take the steps of the solver.

    Parameters
    ----------
    velocity_at : callable (x, t) -> Velocity
        Usually `Flow.velocity` with its other arguments fixed.
    x : Tensor
        The state at knot `start`.
    options : Options
        n_timesteps, t_scheduler and solver.
    start : int
        First step to take.
    """
    # Time is at least float32 (float64 for the referee): half precision may not tell two knots apart.
    knots = t_span(options.n_timesteps, options.t_scheduler, torch.promote_types(x.dtype, torch.float32))
    knots = knots.to(x.device)
    t = knots[0]
    for index in range(options.n_timesteps):
        # The next time is not `t + dt`: a fault in `step_size` must not move the times of later steps.
        t_next = t + (knots[index + 1] - t)
        if index >= start:
            dt = step_size(knots, index, t)
            velocity = SOLVERS[options.solver](velocity_at, x, t, dt)
            x_next = x + dt.to(x.dtype) * velocity.guided
            yield FlowStep(index, t, dt, x, velocity, x_next, t_next)
            x = x_next
        t = t_next


def _euler(velocity_at: VelocityAt, x: Tensor, t: Tensor, dt: Tensor) -> Velocity:
    return velocity_at(x, t)


def _midpoint(velocity_at: VelocityAt, x: Tensor, t: Tensor, dt: Tensor) -> Velocity:
    half = dt / 2
    x_mid = x + half.to(x.dtype) * velocity_at(x, t).guided
    return velocity_at(x_mid, t + half)


def _heun(velocity_at: VelocityAt, x: Tensor, t: Tensor, dt: Tensor) -> Velocity:
    first = velocity_at(x, t)
    second = velocity_at(x + dt.to(x.dtype) * first.guided, t + dt)
    return Velocity(*((a + b) / 2 for a, b in zip(first, second, strict=True)))


SOLVERS = {"euler": _euler, "midpoint": _midpoint, "heun": _heun}
