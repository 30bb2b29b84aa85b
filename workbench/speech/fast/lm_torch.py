"""One decoding step of the LM in torch.

It is used on a CPU, and on a GPU where the Triton kernels cannot be compiled or would round differently.

Shape letters: `B` rows of the batch, `S` cached positions that attention reads, `D` width, `F` width of the
MLP, `H` heads of keys and values, `G` query heads that share each of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.fast.cuda_graphs import compiled
from workbench.speech.fast.decode_state import DecodeState, Record, advance
from workbench.speech.fast.fuse import fuse_linear
from workbench.speech.fast.sampling import DeviceSampler
from workbench.speech.models.lm import LM, rotate_half

# Attention reads this many cached positions, or 2, 4, 8, ... times as many, since each number of positions
# needs its own CUDA graph.
MIN_POSITIONS = 512


class FusedLayer(NamedTuple):
    """The weights of one decoder layer; layers that read the same input are fused into one."""

    attention_norm: Tensor  # (D,)
    mlp_norm: Tensor  # (D,)
    qkv_weight: Tensor  # ((G H + 2 H) head_dim, D): queries, then keys, then values
    qkv_bias: Tensor  # ((G H + 2 H) head_dim,)
    out_weight: Tensor  # (D, G H head_dim)
    gate_up_weight: Tensor  # (2 F, D): the gate projection of the MLP, then the up projection
    down_weight: Tensor  # (D, F)


def fuse_layers(lm: LM) -> list[FusedLayer]:
    """Fuse the linear layers of an LM that the caller owns.

    The LM goes on working: its parameters become views of the fused weights, so nothing is stored twice.
    """
    layers = []
    for layer in lm.qwen.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv_weight, qkv_bias = fuse_linear(attention.q_proj, attention.k_proj, attention.v_proj)
        gate_up_weight, _ = fuse_linear(mlp.gate_proj, mlp.up_proj)
        fused = FusedLayer(
            attention_norm=layer.input_layernorm.weight,
            mlp_norm=layer.post_attention_layernorm.weight,
            qkv_weight=qkv_weight,
            qkv_bias=qkv_bias,
            out_weight=attention.o_proj.weight,
            gate_up_weight=gate_up_weight,
            down_weight=mlp.down_proj.weight,
        )
        layers.append(fused)
    return layers


class TorchDecodeStep:
    """Run the decoder stack for one new position of each row, rounding where `LM` rounds.

    Parameters
    ----------
    lm : LM
    layers : list of FusedLayer
        What `fuse_layers` returned for the same LM.
    """

    def __init__(self, lm: LM, layers: list[FusedLayer]) -> None:
        device = lm.llm_decoder.weight.device
        self.lm, self.layers = lm, layers
        self.kv_heads, self.head_dim = lm.config.num_key_value_heads, lm.config.head_dim
        self.eps = lm.config.rms_norm_eps
        self._attention_inputs = compiled(attention_inputs, device, "rows")
        self._output_and_mlp = compiled(output_and_mlp, device, "rows")
        self._advance = compiled(advance, device, "rows")  # one version for any number of rows

    def compile_for(self, rows: int) -> None:
        """Do nothing; `TritonDecodeStep` compiles its kernels here."""

    def next_token(self, state: DecodeState, sampler: DeviceSampler, record: Record) -> Tensor:
        """Pick a token for each row, move on by one position, and embed the token.

        Parameters
        ----------
        state : DecodeState
            Changed in place, except for `logp`.
        sampler : DeviceSampler
            Its state is changed in place.
        record : Record
            Overwritten.

        Returns
        -------
        Tensor (B, D)
        """
        token, draws_used = sampler.pick(state.logp, state.n_tokens < state.min_tokens)
        self._advance(token, draws_used, self.lm.config.speech_token_size, state, sampler.state, record)
        return self.lm.speech_embedding.weight[token]  # faster than calling the embedding layer

    def attention_lengths(self, positions: int) -> list[int]:
        """Return the values of `length` for which a cache of `positions` positions needs a CUDA graph."""
        return doubled_lengths(positions)

    def logits(
        self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, length: int
    ) -> Tensor:
        """Write the new position's keys and values into the cache, and return the logits that follow it.

        Parameters
        ----------
        x : Tensor (B, D)
            Embedded tokens.
        cache : Tensor (layers, 2, B, H, positions, head_dim)
            Keys and values; written at `position`.
        cos, sin : Tensor (positions, head_dim / 2)
            Factors of the rotary embedding.
        position : Tensor (B,)
            Index of each row's new position.
        length : int
            Cached positions that attention reads, more than the largest `position`.

        Returns
        -------
        Tensor (B, n_ids)
        """
        batch = len(x)
        row = torch.arange(batch, device=x.device)
        rope = cos[position], sin[position]  # (B, head_dim / 2) each
        # A row attends to its new position and those before it. Later positions hold none of its tokens.
        attn_mask = torch.arange(length, device=x.device) <= position[:, None]  # (B, S)
        attn_bias = torch.zeros_like(attn_mask, dtype=x.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_bias = attn_bias.repeat_interleave(self.kv_heads, dim=0)[:, None]  # (B H, 1, S)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            q, new_kv = self._attention_inputs(x, rope, layer, self.eps, self.kv_heads, self.head_dim)
            layer_cache[:, row, :, position] = new_kv  # (B, 2, H, head_dim): indexed dimensions come first
            k = layer_cache[0, :, :, :length].flatten(0, 1)  # (B H, S, head_dim)
            v = layer_cache[1, :, :, :length].flatten(0, 1)
            # The G queries that share a head of keys are the rows of one matrix, so each key is read once.
            q = q.flatten(0, 1)  # (B H, G, head_dim)
            scores = torch.baddbmm(attn_bias, q, k.mT, alpha=self.head_dim**-0.5)  # (B H, G, S)
            attn_out = torch.bmm(scores.softmax(-1), v).view(batch, -1)  # (B, H G head_dim)
            x = self._output_and_mlp(x, attn_out, layer, self.eps)
        return self.lm.llm_decoder(self.lm.qwen.norm(x))


def doubled_lengths(positions: int) -> list[int]:
    """Return `MIN_POSITIONS` and its doubles, up to the first that is at least `positions`."""
    lengths = [MIN_POSITIONS]
    while lengths[-1] < positions:
        lengths.append(2 * lengths[-1])
    return lengths


def attention_inputs(
    x: Tensor, rope: tuple[Tensor, Tensor], layer: FusedLayer, eps: float, kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Return queries (B, H, G, head_dim), and keys and values (B, 2, H, head_dim), for an input (B, D)."""
    x = _rms_norm(x, layer.attention_norm, eps)
    qkv = F.linear(x, layer.qkv_weight, layer.qkv_bias).unflatten(-1, (-1, head_dim))  # (B, heads, head_dim)
    q, k, v = qkv.split((qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    cos, sin = rope[0][:, None], rope[1][:, None]  # (B, 1, head_dim / 2): the same for every head
    q = rotate_half(q, cos, sin).unflatten(1, (kv_heads, -1))
    k = rotate_half(k, cos, sin)
    return q, torch.stack((k, v), dim=1)


def output_and_mlp(x: Tensor, attn_out: Tensor, layer: FusedLayer, eps: float) -> Tensor:
    """Finish a layer from its input (B, D) and what attention returned (B, H G head_dim): -> (B, D)."""
    x = x + F.linear(attn_out, layer.out_weight)
    gate, up = F.linear(_rms_norm(x, layer.mlp_norm, eps), layer.gate_up_weight).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, layer.down_weight)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `RMSNorm.forward` with a weight that is given: (B, D) -> (B, D)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normalised.to(x.dtype)
