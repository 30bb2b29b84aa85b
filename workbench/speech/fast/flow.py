"""The flow made fast: the velocities of `Flow`, with everything that does not change computed once.

- Time embeddings, and the shifts, scales and gates made from them, depend on the grid of times alone.
- What mu, cond and spks add to the estimator's input depends on the utterance alone.
- The rest of a velocity evaluation is a CUDA graph, see `dit`. Each number of rows, length and kind of mask
  needs its own graph. A graph does not depend on the grid, the solver or the guidance, so a sweep over these
  needs no new one. As a graph holds a single evaluation, each step of the solver can be recorded in a trace.

Shape letters: `B` utterances, `S` frames, `M` mel bins, `D` width. An evaluation has 2 B rows: first all
utterances with their conditions, then all utterances without conditions.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from math import ceil
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import Options
from workbench.speech.fast.cuda_graphs import CudaGraphPool, to_device_async
from workbench.speech.fast.dit import FastDiT, VelocityGraph, consume_dit
from workbench.speech.models import flow as flow_model
from workbench.speech.models.flow import Condition, Flow, FlowStep, Velocity, guide, integrate
from workbench.speech.models.numerics import exact_float32

MASK_BUCKET = 16  # frames: with a mask, lengths are rounded up to a multiple of this, for torch's kernels
PER_ROW_OPTIONS = ("cfg_rate", "temperature", "noise_seed", "speed")  # may differ between rows of a batch
MAX_GRIDS = 8  # tables of modulations kept, one for each grid of times; the least recently used is dropped
# CUDA graphs kept; the least recently used is dropped. A stream of 10 s with a fixed hop of 25 tokens has 10
# lengths: if fewer were kept, each of its chunks would capture its graph again in every utterance.
MAX_GRAPHS = 12
CONDITION = Flow.condition  # the healthy one; simulated faults may replace it


class FastFlow:
    """Solve the ODE for several utterances at once, with the velocities that `Flow` gives each of them.

    Make one with `FastFlow.consume`.

    Parameters
    ----------
    flow : Flow
        Computes conditions. The layers of its estimator may have lost their weights, see `consume`.
    estimator : FastDiT
        Made from the flow's estimator.
    graphs : CudaGraphPool
    """

    def __init__(self, flow: Flow, estimator: FastDiT, graphs: CudaGraphPool) -> None:
        self.flow, self.estimator, self.graphs = flow, estimator, graphs
        self.dit = estimator.dit
        self.dtype, self.device = self.dit.proj_out.weight.dtype, self.dit.proj_out.weight.device
        self._modulations = lru_cache(MAX_GRIDS)(self._compute_modulations)
        self._visible_frames = lru_cache(MAX_GRAPHS)(partial(_visible_frames, device=self.device))
        # (utterances, length, mask_rows) -> VelocityGraph
        self._velocity_graph = lru_cache(MAX_GRAPHS)(partial(VelocityGraph, estimator, graphs))
        # (tokens, functions that simulated faults replace) -> _ConditionGraph
        self._condition_graph = lru_cache(MAX_GRAPHS)(partial(_ConditionGraph, flow, graphs))
        self._lock = Lock()  # held while a graph is used: all solvers share its tensors

    @classmethod
    def consume(cls, flow: Flow, graphs: CudaGraphPool) -> "FastFlow":
        """Build the fast path from a flow that nobody else uses.

        Linear layers of the estimator become views of fused weights. Where products are split for TF32, these
        layers lose their own weights, since the split weights already take three times their memory.

        Parameters
        ----------
        flow : Flow
        graphs : CudaGraphPool
        """
        return cls(flow, consume_dit(flow.decoder.estimator), graphs)

    def condition(
        self,
        token: Tensor,
        prompt_token: Tensor,
        prompt_mel: Tensor,
        spk_embedding: Tensor,
        finalize: bool = True,
    ) -> Condition:
        """Turn tokens, prompt and speaker into the estimator's inputs; see `Flow.condition`.

        A stream's chunks have the same few lengths in every utterance: those without `finalize` are computed
        by a CUDA graph, which spares the host thirty launches.
        """
        if finalize or Flow.condition is not CONDITION:
            return self.flow.condition(token, prompt_token, prompt_mel, spk_embedding, finalize)
        ids = torch.cat((prompt_token, token))
        self.flow.check_ids(ids, prompt_mel.shape[-1], finalize)
        replaceable = flow_model.PreLookahead.forward, flow_model.F
        with self._lock:
            mu, spks = self._condition_graph(len(ids), *replaceable)(ids, spk_embedding)
            mu, spks = mu.clone(), spks.clone()  # the next replay overwrites the graph's results
        return self.flow.with_prompt(mu, spks, prompt_mel)

    def steps(
        self,
        conditions: Sequence[Condition],
        states: Sequence[Tensor],
        options: Sequence[Options],
        streaming: bool = False,
        start: int = 0,
    ) -> Iterator[list[FlowStep]]:
        """Solve the ODEs of several utterances together, step by step.

        Parameters
        ----------
        conditions : sequence of Condition
            One for each utterance, of any length. A condition given twice is projected once.
        states : sequence of Tensor (1, M, S)
            Noise, or the state at knot `start`.
        options : sequence of Options
            One for each utterance. Options of the flow other than `PER_ROW_OPTIONS` must be the same.
        streaming, start
            As in `Flow.steps`.

        Yields
        ------
        list of FlowStep
            One for each utterance, cut to its length.
        """
        lengths = [c.mu.shape[-1] for c in conditions]
        chunk = self.dit.config.static_chunk_size if streaming else None
        padded_length, n_visible = max(lengths), None
        if chunk is not None or len(set(lengths)) > 1:
            padded_length = ceil(padded_length / MASK_BUCKET) * MASK_BUCKET
            n_visible = self._visible_frames(tuple(lengths), padded_length, chunk)
        mask_rows = 0 if n_visible is None else n_visible.shape[1]
        with self._lock:
            velocity_graph = self._velocity_graph(len(lengths), padded_length, mask_rows)

        # The padded states (B, M, S). They are at least float32, so that they are not rounded at every step.
        state_dtype = torch.promote_types(self.dtype, torch.float32)
        x = torch.zeros(
            len(lengths), self.dit.config.mel_dim, padded_length, device=self.device, dtype=state_dtype
        )
        for row, state, o in zip(x, states, options, strict=True):
            scale = 1.0 if start else o.temperature  # temperature scales the noise, not a later state
            row[:, : state.shape[-1]] = state[0].to(row) * scale

        cfg_rates = to_device_async([[[o.cfg_rate]] for o in options], like=x)  # (B, 1, 1)
        input_bias = self._input_bias(conditions, padded_length)

        # The modulations are computed for the whole grid, even if the solver starts later, since a matrix
        # product with fewer rows might round differently.
        grid = (options[0].n_timesteps, options[0].t_scheduler, options[0].solver)
        times = _evaluation_times(*grid, state_dtype, flow_model.t_span, flow_model.step_size)
        evaluations_per_step = len(times) // options[0].n_timesteps  # more than 1 for higher-order solvers
        modulations = self._modulations(times)[start * evaluations_per_step :]
        next_modulation = iter(modulations)

        def velocity(x: Tensor, t: Tensor) -> Velocity:
            with self._lock:
                v = velocity_graph(x, input_bias, n_visible, next(next_modulation))
                v = v.to(state_dtype, copy=True)  # the next replay overwrites the graph's result
            v_cond, v_uncond = v.chunk(2)
            return Velocity(guide(v_cond, v_uncond, cfg_rates), v_cond, v_uncond)

        for step in integrate(velocity, x, options[0], start):
            yield [_step_of_row(step, i, length) for i, length in enumerate(lengths)]

    def _input_bias(self, conditions: Sequence[Condition], length: int) -> Tensor:
        """Return what the conditions add to the projected input, (2 B, S, D).

        The estimator's first layer is linear in (x, cond, mu, spks), so its products with the last three and
        its bias are computed once. Rows without conditions have the bias alone.
        """
        proj, mel_dim = self.dit.input_embed.proj, self.dit.config.mel_dim
        projected: dict[int, Tensor] = {}
        with self.graphs.compute_mode():
            for c in conditions:
                if id(c) in projected:
                    continue
                spks = c.spks[..., None].expand(-1, -1, c.mu.shape[-1])  # the same for every frame
                conditioning = torch.cat((c.cond, c.mu, spks), dim=1)  # (1, 3 M, S)
                conditioning = conditioning.transpose(1, 2).to(self.dtype)
                bias = F.linear(conditioning, proj.weight[:, mel_dim:], proj.bias)  # (1, S, D)
                projected[id(c)] = F.pad(bias, (0, 0, 0, length - bias.shape[1]))
        with_conditions = [projected[id(c)] for c in conditions]
        without_conditions = proj.bias.expand(len(conditions), length, -1)
        return torch.cat([*with_conditions, without_conditions])

    def _compute_modulations(self, times: tuple[float, ...]) -> Tensor:
        """Return the shifts, scales (plus 1) and gates of all layers, (times, 6 depth + 2, D).

        Each block has six, in the order of `dit.Block.forward`; the shift and scale of the final norm follow.
        """
        dit, dtype = self.dit, torch.promote_types(self.dtype, torch.float32)
        with self.graphs.compute_mode():
            time = dit.time_embed(torch.tensor(times, device=self.device, dtype=dtype))
            blocks = [torch.cat(block.attn_norm(time), dim=1) for block in dit.transformer_blocks]
            scale, shift = dit.norm_out(time)
        # `modulate` multiplies by 1 + scale; the 1 is added here, once.
        for block in blocks:  # (times, 6, D)
            block[:, 1] += 1  # scale_msa
            block[:, 4] += 1  # scale_mlp
        return torch.cat([*blocks, shift, scale + 1], dim=1)


class _ConditionGraph:
    """mu and spks of a chunk that is not the last, as a CUDA graph for one number of tokens.

    Graphs that were captured while simulated faults replaced one of `replaceable` are not those of others.
    """

    def __init__(self, flow: Flow, graphs: CudaGraphPool, tokens: int, *replaceable: object) -> None:
        self.flow = flow
        device, c = flow.input_embedding.weight.device, flow.config
        # Inputs at fixed addresses; a call copies its arguments here.
        self.ids = torch.zeros(tokens, device=device, dtype=torch.long)
        self.spk_embedding = torch.ones(c.spk_embed_dim, device=device)
        self.graph = graphs.capture(self._embed, exact_float32)

    def __call__(self, ids: Tensor, spk_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `Flow.embed` does; the next call overwrites it."""
        self.ids.copy_(ids)
        self.spk_embedding.copy_(spk_embedding)
        return self.graph()

    def _embed(self) -> tuple[Tensor, Tensor]:
        return self.flow.embed(self.ids, self.spk_embedding, finalize=False)


def _visible_frames(lengths: Sequence[int], padded: int, chunk: int | None, device: torch.device) -> Tensor:
    """Return to how many frames each frame attends, from the first one on.

    Parameters
    ----------
    lengths : sequence of int
        Frames of each utterance; the padding after them is hidden.
    padded : int
        S.
    chunk : int or None
        Frames of a chunk when streaming; see `dit.attention_mask`.
    device : torch.device

    Returns
    -------
    Tensor (2 B, 1 or S)
        With and without conditions. 1: the same for all frames.
    """
    n_visible = torch.tensor(lengths)[:, None]
    if chunk is not None:
        end_of_chunk = (torch.arange(padded) // chunk + 1) * chunk
        n_visible = n_visible.minimum(end_of_chunk)
    return to_device_async(n_visible.repeat(2, 1), like=torch.empty(0, device=device, dtype=torch.int32))


@lru_cache(MAX_GRIDS)
def _evaluation_times(
    n_timesteps: int, t_scheduler: str, solver: str, dtype: torch.dtype, *grid_functions: Callable
) -> tuple[float, ...]:
    """Return the times at which the solver evaluates the velocity, by running it on a velocity of zero.

    `grid_functions` are the functions of `models.flow` that set the times. They belong to the cache's key,
    because simulated faults replace them.
    """
    options = Options(n_timesteps=n_timesteps, t_scheduler=t_scheduler, solver=solver)
    times: list[float] = []

    def record_time(x: Tensor, t: Tensor) -> Velocity:
        times.append(float(t))
        return Velocity(x, x, x)

    for _ in integrate(record_time, torch.zeros((), dtype=dtype), options):
        pass
    return tuple(times)


def _step_of_row(step: FlowStep, row: int, length: int) -> FlowStep:
    """Return one utterance's part of a step, cut to its length."""

    def cut(x: Tensor) -> Tensor:
        return x[row : row + 1, :, :length]

    velocity = Velocity(*map(cut, step.velocity))
    return step._replace(x=cut(step.x), velocity=velocity, x_next=cut(step.x_next))
