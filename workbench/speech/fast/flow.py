"""The flow with less work: the same velocity, from what does not change computed once.

Time embeddings and all that they modulate depend on the grid alone, the projections of mu, cond and spks
on the utterance alone. What is left of a step is one graph for each number of rows, length and mask, whatever
the grid, the solver and the guidance, so that a sweep captures nothing anew and every step can be recorded.

Shape letters: `B` utterances, `S` frames, `D` width, `H` heads.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import Options
from workbench.speech.fast.cuda_graphs import Graphs, compiled, compiles
from workbench.speech.fast.fuse import join_rows
from workbench.speech.fast.tf32x3 import SplitLinear, split, splitting_pays
from workbench.speech.models.dit import NORM_EPS, Block, ConvPosEmbed, RotaryEmbed, attention_mask
from workbench.speech.models.flow import Condition, Flow, FlowStep, Velocity, guide, integrate

Map = Callable[[Tensor], Tensor]

BUCKET = 16  # frames: where attention needs a mask, lengths are rounded up to this, as its kernels want it
FREE = ("cfg_rate", "temperature", "noise_seed", "speed")  # options that may differ from row to row
MOST_GRIDS = 8  # tables of modulations kept
MOST_GRAPHS = 8  # and graphs; those used longest ago go first


class FastFlow:
    """The steps of `Flow`, for several utterances at once.

    Parameters
    ----------
    flow : Flow
        Its weights are used where they are. Where products are split it is taken over: the linear layers of
        the blocks lose their weights, of which the parts take three times the memory already.
    graphs : Graphs
    """

    def __init__(self, flow: Flow, graphs: Graphs) -> None:
        self.graphs, self.dit = graphs, flow.decoder.estimator
        self.dtype, self.device = self.dit.proj_out.weight.dtype, self.dit.proj_out.weight.device
        self.flow, splits = flow, splitting_pays(self.device, self.dtype)
        self.linear, self.operand = (SplitLinear, split) if splits else (_linear, _as_it_is)
        self.layers = [self._layer(block, splits) for block in self.dit.transformer_blocks]
        self.conv_pos = _conv_pos(self.dit.input_embed.conv_pos_embed, splits)
        self.attended = _attention(self.dit.config.dim_head, self.device) if splits else None
        self.proj_out = self.linear(self.dit.proj_out.weight, self.dit.proj_out.bias)
        self._modulations = lru_cache(MOST_GRIDS)(self._modulated)
        self._step = lru_cache(MOST_GRAPHS)(partial(_Step, self))
        self.enter = compiled(_enter, self.device, "rows")
        self.pass_on = self._pass_on(splits)
        self.turned = compiled(_turned, self.device, "rows")
        self.activate = compiled(_activate, self.device, "rows")
        self.read = compiled(self.operand, self.device, "rows")
        self._lock = Lock()  # the graphs' tensors are shared by all who ask

    def steps(
        self,
        conditions: Sequence[Condition],
        states: Sequence[Tensor],
        options: Sequence[Options],
        streaming: bool = False,
        start: int = 0,
    ) -> Iterator[list[FlowStep]]:
        """Solve the ODEs of several utterances in step.

        Parameters
        ----------
        conditions : sequence of Condition
            One an utterance; of any length. One that stands there twice is projected once.
        states : sequence of Tensor (1, 80, T)
            Noise, or the state at knot `start`.
        options : sequence of Options
            With the same n_timesteps, t_scheduler and solver; cfg_rate and temperature may differ.
        streaming, start
            As in `Flow.steps`.

        Yields
        ------
        list of FlowStep
            One an utterance, cut to its length.
        """
        lengths = [c.mu.shape[-1] for c in conditions]
        chunk = self.dit.config.static_chunk_size if streaming else None
        hidden = _hidden(lengths, chunk, self.device, self.dtype)
        longest = max(lengths) if hidden is None else hidden.shape[-1]
        with self._lock:
            step = self._step(len(lengths), longest, 0 if hidden is None else hidden.shape[2])
        wide = torch.promote_types(self.dtype, torch.float32)
        x = torch.zeros(len(lengths), self.dit.config.mel_dim, longest, device=self.device, dtype=wide)
        for row, state, o in zip(x, states, options, strict=True):
            row[:, : state.shape[-1]] = state[0].to(row) * (1.0 if start else o.temperature)
        rates = torch.tensor([o.cfg_rate for o in options], device=self.device, dtype=wide)[:, None, None]
        known = self._known(conditions, longest)
        times = _times_asked(options[0], wide)
        # Of the whole grid wherever it starts: a product of fewer rows may round in another way.
        rows = iter(self._modulations(times)[start * len(times) // options[0].n_timesteps :])

        def ask(x: Tensor, t: Tensor) -> Velocity:
            with self._lock:
                v = step(x, known, hidden, next(rows)).to(wide, copy=True)
            v_cond, v_uncond = v.chunk(2)
            return Velocity(guide(v_cond, v_uncond, rates), v_cond, v_uncond)

        for taken in integrate(ask, x, options[0], start):
            yield [_row_of(taken, i, length) for i, length in enumerate(lengths)]

    def _layer(self, block: Block, taken: bool) -> "_Layer":
        attn, (project, _, back) = block.attn, block.ff.ff
        asking, others = (attn.to_q, attn.to_k, attn.to_v), (attn.to_out[0], project[0], back)
        weights = [join_rows(*asking), *((layer.weight, layer.bias) for layer in others)]
        made = _Layer(*(self.linear(*pair) for pair in weights))
        if taken:
            for layer in (*asking, *others):
                layer.weight.data = layer.weight.new_empty(0)
        return made

    def _pass_on(self, splits: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        if not splits or not compiles(self.device):
            return partial(compiled(_pass_on, self.device, "rows"), operand=self.operand)
        from workbench.speech.fast.kernels.flow import pass_on  # it needs Triton

        return pass_on

    def _known(self, conditions: Sequence[Condition], length: int) -> Tensor:
        """What mu, cond and spks add to the estimator's input: (2 B, S, D), without conditions last."""
        proj, n = self.dit.input_embed.proj, self.dit.config.mel_dim
        made: dict[int, Tensor] = {}
        with self.graphs.computing():
            for c in conditions:
                if id(c) not in made:
                    told = torch.cat((c.cond, c.mu, c.spks[..., None].expand(-1, -1, c.mu.shape[-1])), dim=1)
                    known = F.linear(told.transpose(1, 2).to(self.dtype), proj.weight[:, n:], proj.bias)
                    made[id(c)] = F.pad(known, (0, 0, 0, length - known.shape[1]))
        nothing = proj.bias.expand(len(conditions), length, -1)
        return torch.cat([*(made[id(c)] for c in conditions), nothing])

    def _modulated(self, times: tuple[float, ...]) -> Tensor:
        """Return shifts, scales plus one and gates of every layer, (asked, 6 depth + 2, D)."""
        dit, wide = self.dit, torch.promote_types(self.dtype, torch.float32)
        with self.graphs.computing():
            time = dit.time_embed(torch.tensor(times, device=self.device, dtype=wide))
            layers = [torch.cat(block.attn_norm(time), dim=1) for block in dit.transformer_blocks]
            scale, shift = dit.norm_out(time)
        for layer in layers:
            layer[:, 1] += 1  # scale_msa
            layer[:, 4] += 1  # scale_mlp
        return torch.cat([*layers, shift, scale + 1], dim=1)


class _Layer(NamedTuple):
    """The linear layers of a block of the estimator."""

    qkv: Map
    to_out: Map
    ff_in: Map
    ff_out: Map


class _Step:
    """One call of the estimator for both halves of the guidance, as a graph.

    The mask has no row where all is visible, one where every frame sees the same, or one a frame.
    """

    def __init__(self, fast: FastFlow, n: int, length: int, mask_rows: int) -> None:
        self.fast, dit, device, dtype = fast, fast.dit, fast.device, fast.dtype
        wide = torch.promote_types(dtype, torch.float32)
        width = dit.config.dim
        self.x = torch.zeros(n, dit.config.mel_dim, length, device=device, dtype=wide)
        self.known = torch.zeros(2 * n, length, width, device=device, dtype=dtype)
        # Without a mask there are faster kernels: torch's flash attention, and our own in float32.
        shape = (2 * n, 1, mask_rows, length)
        self.hidden = torch.zeros(shape, device=device, dtype=dtype) if mask_rows else None
        self.modulation = torch.zeros(6 * dit.config.depth + 2, width, device=device, dtype=dtype)
        # A model in half precision has rounded the frequencies too: angles of late frames would be far off.
        rotary = dit.rotary_embed if dtype == wide else RotaryEmbed(dit.config.dim_head).to(device)
        # (2 B S, 1, dim_head / 2): a row for every one of q and k, so that their kernel serves any length.
        self.turn = [part.repeat(2 * n, 1)[:, None] for part in rotary(length)]
        self.graph = fast.graphs.capture(self._velocity)

    def __call__(self, x: Tensor, known: Tensor, hidden: Tensor | None, modulation: Tensor) -> Tensor:
        """(B, 80, S), (2 B, S, D), ... -> (2 B, 80, S), overwritten by the next call."""
        pairs = ((self.x, x), (self.known, known), (self.hidden, hidden), (self.modulation, modulation))
        for fixed, value in pairs:
            if fixed is not None:
                fixed.copy_(value)
        return self.graph()

    def _velocity(self) -> Tensor:
        fast, embed, operand = self.fast, self.fast.dit.input_embed, self.fast.operand
        weight = embed.proj.weight[:, : self.x.shape[1]]
        own = F.linear(self.x.transpose(1, 2).to(self.known.dtype), weight)
        h = (self.known.unflatten(0, (2, -1)) + own).flatten(0, 1)
        h = (h + fast.conv_pos(h)).flatten(0, 1)  # (2 B S, D) from here on
        *layers, out = self.modulation[:, None].split(6)
        y = fast.enter(h, *layers[0][:2], operand)
        for layer, modulation, after in zip(fast.layers, layers, (*layers[1:], out), strict=True):
            _, _, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
            y = layer.to_out(self._attended(layer.qkv(y)))
            h, y = fast.pass_on(h, gate_msa, y, shift_mlp, scale_mlp)
            y = layer.ff_out(fast.activate(layer.ff_in(y), operand))
            h, y = fast.pass_on(h, gate_mlp, y, *after[:2])
        return fast.proj_out(y).unflatten(0, self.known.shape[:2]).transpose(1, 2)

    def _attended(self, qkv: Tensor) -> Tensor:
        """(2 B S, 3 H dim_head) -> the operand of `to_out`. Our own kernel knows no mask: torch's do."""
        y = qkv.unflatten(1, (3, self.fast.dit.config.heads, -1))  # (2 B S, 3, H, dim_head)
        first = y[:, :2, 0]
        first.copy_(self.fast.turned(first, *self.turn))
        y = y.unflatten(0, self.known.shape[:2])
        if self.fast.attended is not None and self.hidden is None:
            return self.fast.attended(y)
        q, k, v = y.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.hidden)
        return self.fast.read(y.transpose(1, 2).flatten(2).flatten(0, 1))


# What is fused to one kernel. `operand` gives a linear layer its input as it reads it.


def _enter(h: Tensor, shift: Tensor, scale: Tensor, operand: Map) -> Tensor:
    """Normalise and modulate; the scale has its one already."""
    return operand(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=NORM_EPS), scale))


def _pass_on(
    h: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor, operand: Map
) -> tuple[Tensor, Tensor]:
    """Add what a layer made, and normalise for the next: the new state, and the next layer's input."""
    h = torch.addcmul(h, gate, y)
    return h, _enter(h, shift, scale, operand)


def _turned(qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first heads of q and k, (2 B S, 2, dim_head), as `rotate_first_head` does."""
    even, odd = qk.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(qk.dtype)


def _activate(y: Tensor, operand: Map) -> Tensor:
    return operand(F.gelu(y, approximate="tanh"))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _linear(weight: Tensor, bias: Tensor) -> Map:
    return partial(F.linear, weight=weight, bias=bias)


def _attention(width: int, device: torch.device) -> Map | None:
    """Attention without a mask that gives a `SplitLinear` its operand, where a kernel can be made."""
    if not compiles(device):
        return None
    from workbench.speech.fast.kernels.attention import attended, suits  # it needs Triton

    return attended if suits(width) else None


def _conv_pos(embed: ConvPosEmbed, splits: bool) -> Map:
    """The position's convolutions: cuDNN would compute their groups one by one, without tensor cores."""
    convs = embed.conv1[0], embed.conv2[0]
    if not splits or not compiles(convs[0].weight.device):
        return embed
    from workbench.speech.fast.kernels.conv import LEAST_CHANNELS, convolved, packed  # it needs Triton

    if convs[0].weight.shape[1] % LEAST_CHANNELS:
        return embed
    layers = [packed(conv, products=3) for conv in convs]

    def look_back(x: Tensor) -> Tensor:
        x = x.transpose(1, 2).contiguous()
        for layer in layers:
            x = F.mish(convolved(x, layer)[0])
        return x.transpose(1, 2)

    return look_back


def _hidden(
    lengths: Sequence[int], chunk: int | None, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Added to attention scores, (2 B, 1, 1 or S, S): -inf where a frame may not look, 0 where it may.

    None where every frame may look at every one.
    """
    if chunk is None and len(set(lengths)) == 1:
        return None
    longest = -(-max(lengths) // BUCKET) * BUCKET
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    allowed = real[:, None]
    if chunk is not None:
        allowed = attention_mask(allowed, longest, chunk, device)
    hidden = torch.zeros(allowed.shape, device=device, dtype=dtype).masked_fill(~allowed, -torch.inf)
    return hidden[:, None].repeat(2, 1, 1, 1)


def _times_asked(options: Options, dtype: torch.dtype) -> tuple[float, ...]:
    """Where the solver asks for the velocity, in order."""
    asked: list[float] = []

    def ask(x: Tensor, t: Tensor) -> Velocity:
        asked.append(float(t))
        return Velocity(x, x, x)

    for _ in integrate(ask, torch.zeros((), dtype=dtype), options):
        pass
    return tuple(asked)


def _row_of(step: FlowStep, i: int, length: int) -> FlowStep:
    def cut(x: Tensor) -> Tensor:
        return x[i : i + 1, :, :length]

    velocity = Velocity(*map(cut, step.velocity))
    return step._replace(x=cut(step.x), velocity=velocity, x_next=cut(step.x_next))
