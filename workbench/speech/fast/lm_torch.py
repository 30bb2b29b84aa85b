"""One position of the LM in torch: on a CPU, and on a GPU where `lm_kernels` would round in another way.

Shape letters: `B` rows, `S` positions looked at, `D` width, `H` heads of keys, `G` queries each.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.fast.cuda_graphs import compiled
from workbench.speech.fast.fuse import join_rows
from workbench.speech.models.lm import LM, RMSNorm, rotate_half

LEAST_POSITIONS = 512  # a graph looks at this many or twice, four times, ... as many


class JoinedLayer(NamedTuple):
    """What one layer of the decoder stack multiplies with."""

    before: RMSNorm  # attention
    after: RMSNorm
    qkv: tuple[Tensor, Tensor]  # weight and bias
    out: Tensor
    gate_up: Tensor
    down: Tensor


def joined_layers(lm: LM) -> list[JoinedLayer]:
    """Lay weights of the same input together; the LM goes on working with them."""
    layers = []
    for layer in lm.qwen.layers:
        attn, mlp = layer.self_attn, layer.mlp
        qkv = join_rows(attn.q_proj, attn.k_proj, attn.v_proj)
        gate_up, _ = join_rows(mlp.gate_proj, mlp.up_proj)
        norms = layer.input_layernorm, layer.post_attention_layernorm
        layers.append(JoinedLayer(*norms, qkv, attn.o_proj.weight, gate_up, mlp.down_proj.weight))
    return layers


class LayerSteps:
    """The decoder stack for one new position of each row; rounds where `LM` rounds.

    Parameters
    ----------
    lm : LM
        Its weights are used where they are.
    """

    def __init__(self, lm: LM) -> None:
        c = lm.config
        device = lm.llm_decoder.weight.device
        self.lm = lm
        self.sizes = c.num_key_value_heads, c.head_dim
        self._ask, self._answer = (compiled(function, device, "rows") for function in (_ask, _answer))
        self.layers = joined_layers(lm)

    def prepare(self, rows: int) -> None:
        """Nothing: torch has its kernels."""

    def lengths(self, positions: int) -> list[int]:
        """How many positions each graph looks at, until one sees so many."""
        return doubling(positions)

    def logits(
        self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, length: int
    ) -> Tensor:
        """Put a position into the cache and say what may follow.

        Parameters
        ----------
        x : Tensor (B, D)
            Embedded tokens.
        cache : Tensor (layers, 2, B, H, positions, head_dim)
            Keys and values; written at `position`.
        cos, sin : Tensor (positions, head_dim / 2)
        position : Tensor (B,)
        length : int
            Positions looked at, more than the last of `position`.

        Returns
        -------
        Tensor (B, n_ids)
        """
        row, turn = torch.arange(len(x), device=x.device), (cos[position], sin[position])
        visible = torch.arange(length, device=x.device) <= position[:, None]
        hidden = torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf)
        hidden = hidden.repeat_interleave(self.sizes[0], dim=0)[:, None]  # (B H, 1, S)
        for (before, after, qkv, *weights), kv in zip(self.layers, cache, strict=True):
            q, new = self._ask(x, *turn, before.weight, before.eps, *qkv, *self.sizes)
            kv[:, row, :, position] = new
            k, v = (y[:, :, :length].flatten(0, 1) for y in kv)
            scores = torch.baddbmm(hidden, q.flatten(0, 1), k.mT, alpha=self.sizes[1] ** -0.5)
            seen = torch.bmm(scores.softmax(-1), v).view(len(x), -1)
            x = self._answer(x, seen, after.weight, after.eps, *weights)
        return self.lm.llm_decoder(self.lm.qwen.norm(x))


def doubling(positions: int) -> list[int]:
    """`LEAST_POSITIONS`, twice as many and so on, until so many are reached."""
    lengths = [LEAST_POSITIONS]
    while lengths[-1] < positions:
        lengths.append(2 * lengths[-1])
    return lengths


def _ask(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    n: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """(B, D) -> queries (B, H, G, head_dim); keys and values (B, 2, H, head_dim)."""
    y = F.linear(_rms_norm(x, norm, eps), weight, bias).unflatten(-1, (-1, dim))  # (B, heads + 2 H, dim)
    q, k, v = y.split((y.shape[1] - 2 * n, n, n), dim=1)
    turn = cos[:, None], sin[:, None]
    return rotate_half(q, *turn).unflatten(1, (n, -1)), torch.stack((rotate_half(k, *turn), v), dim=1)


def _answer(
    x: Tensor, seen: Tensor, norm: Tensor, eps: float, out: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """(B, D) and what was seen, (B, heads * head_dim) -> (B, D)."""
    x = x + F.linear(seen, out)
    gate, up = F.linear(_rms_norm(x, norm, eps), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
