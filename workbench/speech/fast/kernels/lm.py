"""One decoding step of the LM on a GPU, in five Triton kernels a layer.

With a single position a GPU waits for launches and for memory, not for arithmetic. In float32 on an H200,
cuBLAS and torch's compiler take 76 us for one layer, in a dozen kernels. Reading the layer's weights takes
only 15 of the 76 us. Half of the 76 us goes into attention: its matrix products have a single row, and
general kernels are made for many rows. The five kernels here are

    RMS norm + QKV projection  (`project`)
    rotary embedding + attention + cache update  (`attend`)
    output projection + residual  (`project`)
    RMS norm + gate and up projections + SwiGLU  (`project`)
    down projection + residual  (`project`)

The hidden state between the layers (the residual stream) is float32.

Shape letters: `B` rows of the batch, `D` width, `H` heads of keys and values.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.cuda_graphs import compile_in_parallel
from workbench.speech.fast.kernels.projection import project
from workbench.speech.fast.lm_torch import FusedLayer
from workbench.speech.models.lm import LM

CACHE_BLOCK = 256  # cached positions that attention loads at a time, one for each of 256 threads


class HeadSizes(NamedTuple):
    """The sizes of the attention heads."""

    n_heads: int  # heads of queries
    n_kv_heads: int  # heads of keys and values, H
    head_dim: int  # width of a head, a power of two


class TritonDecodeStep:
    """Run the decoder stack for one new position of each row.

    Parameters
    ----------
    lm : LM
        On a GPU, in float32 or bfloat16.
    layers : list of FusedLayer
        What `fuse_layers` returned for the same LM.
    precision : {"tf32x3", "tf32"}
        Precision of float32 matrix products for batches of more than one row, see `project`; "tf32x3" is
        as accurate as float32.
    """

    def __init__(self, lm: LM, layers: list[FusedLayer], precision: str) -> None:
        c = lm.config
        self.lm, self.layers, self.precision = lm, layers, precision
        self.heads = HeadSizes(c.num_attention_heads, c.num_key_value_heads, c.head_dim)
        self.eps = c.rms_norm_eps

    def compile_for(self, rows: int) -> None:
        """Compile all kernels for a number of rows, by calling each once on zeros."""
        layer, head_weight = self.layers[0], self.lm.llm_decoder.weight
        device, dtype = head_weight.device, head_weight.dtype
        n_heads, n_kv_heads, head_dim = self.heads

        def zeros(width: int) -> Tensor:
            return torch.zeros(rows, width, device=device)

        state = zeros(self.lm.config.hidden_size)
        gated = zeros(layer.down_weight.shape[1])
        qkv = zeros((n_heads + 2 * n_kv_heads) * head_dim)
        attn_out = zeros(n_heads * head_dim)
        position = torch.zeros(rows, device=device, dtype=torch.long)
        # The length of the cache is a multiple of 16, as real lengths are: Triton compiles a separate version
        # of a kernel for sizes that are multiples of 16.
        cache = torch.zeros(2, rows, n_kv_heads, 16, head_dim, device=device, dtype=dtype)
        rope = torch.zeros(1, head_dim // 2, device=device, dtype=dtype)
        compile_in_parallel(
            device,
            lambda: self._project(state, layer.qkv_weight, norm=layer.attention_norm, bias=layer.qkv_bias),
            lambda: attend(qkv, cache, rope, rope, position, self.heads),
            lambda: self._project(attn_out, layer.out_weight, add=state),
            lambda: self._project(state, layer.gate_up_weight, norm=layer.mlp_norm, gated=True),
            lambda: self._project(gated, layer.down_weight, add=state),
            lambda: self._project(state, head_weight, norm=self.lm.qwen.norm.weight),
        )

    def attention_lengths(self, positions: int) -> list[int]:
        """Return the lengths of the cache for which `FastLM` captures a graph.

        One graph is enough: the attention kernel reads only the positions that a row has filled.
        """
        return [positions]

    def logits(
        self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, length: int
    ) -> Tensor:
        """Write the new position's keys and values into the cache, and return the next token's logits.

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
            Unused; `TorchDecodeStep.logits` needs it.

        Returns
        -------
        Tensor (B, n_ids), float32
        """
        x = x.float()
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            qkv = self._project(x, layer.qkv_weight, norm=layer.attention_norm, bias=layer.qkv_bias)
            attn_out = attend(qkv, layer_cache, cos, sin, position, self.heads)
            x = self._project(attn_out, layer.out_weight, add=x)
            gated = self._project(x, layer.gate_up_weight, norm=layer.mlp_norm, gated=True)
            x = self._project(gated, layer.down_weight, add=x)
        return self._project(x, self.lm.llm_decoder.weight, norm=self.lm.qwen.norm.weight)

    def _project(self, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return project(x, weight, eps=self.eps, precision=self.precision, **options)


def attend(
    qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, heads: HeadSizes
) -> Tensor:
    """Apply the rotary embedding, attend to past and new position, and write the new one into the cache.

    Parameters
    ----------
    qkv : Tensor (B, (query heads + 2 H) * head_dim), float32
        Queries, keys and values of the new position.
    cache : Tensor (2, B, H, positions, head_dim)
        Keys and values. Positions before `position` are read, `position` is written.
    cos, sin : Tensor (positions, head_dim / 2)
        Factors of the rotary embedding.
    position : Tensor (B,)
        Index of each row's new position.
    heads : HeadSizes

    Returns
    -------
    Tensor (B, query heads * head_dim), float32
    """
    n_heads, n_kv_heads, head_dim = heads
    batch = len(qkv)
    y = qkv.new_empty(batch, n_heads * head_dim)
    _attend[(batch, n_heads)](
        qkv,
        cache,
        cos,
        sin,
        position,
        y,
        cache.stride(0),  # values_offset
        cache.shape[3],  # positions
        head_dim**-0.5,  # scale
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        DIM=head_dim,
        BLOCK=CACHE_BLOCK,
        num_warps=8,  # 256 threads, one for each position of a block
    )
    return y


@triton.jit
def _attend(
    qkv_ptr,  # (B, (HEADS + 2 KV_HEADS) DIM) float32
    cache_ptr,  # (2, B, KV_HEADS, positions, DIM)
    cos_ptr,  # (positions, DIM / 2)
    sin_ptr,  # (positions, DIM / 2)
    position_ptr,  # (B,) int64, each row's new position
    y_ptr,  # (B, HEADS DIM) float32
    values_offset,  # distance from the keys to the values in the cache, in elements
    positions,  # length of the cache
    scale,  # DIM ** -0.5
    HEADS: tl.constexpr,  # heads of queries
    KV_HEADS: tl.constexpr,  # heads of keys and values
    DIM: tl.constexpr,  # width of a head
    BLOCK: tl.constexpr,  # cached positions loaded at a time
):
    """Compute `attend` for one row and one query head in each program, with a running softmax."""
    row, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)  # the head of keys and values that this query head uses
    position = tl.load(position_ptr + row)

    # Load the new position's query and key, and apply the rotary embedding. It rotates each element of a
    # head's first half together with one of the second half, so the halves are separate vectors: q1, q2, k1,
    # k2. The query is multiplied by the scale of the scores.
    HALF: tl.constexpr = DIM // 2
    half_index, dim_index = tl.arange(0, HALF), tl.arange(0, DIM)
    cos = tl.load(cos_ptr + position * HALF + half_index).to(tl.float32)
    sin = tl.load(sin_ptr + position * HALF + half_index).to(tl.float32)
    qkv_ptr += row * (HEADS + 2 * KV_HEADS) * DIM
    q_ptrs = qkv_ptr + head * DIM + half_index
    k_ptrs = qkv_ptr + (HEADS + kv_head) * DIM + half_index
    q1, q2 = tl.load(q_ptrs), tl.load(q_ptrs + HALF)
    k1, k2 = tl.load(k_ptrs), tl.load(k_ptrs + HALF)
    q1, q2 = (q1 * cos - q2 * sin) * scale, (q2 * cos + q1 * sin) * scale
    k1, k2 = k1 * cos - k2 * sin, k2 * cos + k1 * sin
    v = tl.load(qkv_ptr + (HEADS + KV_HEADS + kv_head) * DIM + dim_index)
    cached_keys = cache_ptr + (row * KV_HEADS + kv_head) * positions * DIM
    cached_values = cached_keys + values_offset

    # Start the softmax with the new position itself. `max_score` is the highest score so far, `weight_sum`
    # is the sum of the weights exp(score - max_score), and `attn_out` is the sum of the values times these
    # weights; it is divided by `weight_sum` at the end.
    max_score = tl.sum(q1 * k1 + q2 * k2, 0)
    weight_sum = tl.exp(
        max_score - max_score
    )  # 1; NaN where the score is not finite, so that the error shows in the logits
    attn_out = v
    start = 0
    while start < position:
        # Load a block of cached keys (in halves) and values, (BLOCK, HALF) and (BLOCK, DIM).
        past = start + tl.arange(0, BLOCK)
        past_mask = (past < position)[:, None]
        past_k_ptrs = cached_keys + past[:, None] * DIM
        past_k1 = tl.load(past_k_ptrs + half_index[None, :], mask=past_mask, other=0.0).to(tl.float32)
        past_k2 = tl.load(past_k_ptrs + HALF + half_index[None, :], mask=past_mask, other=0.0).to(tl.float32)
        past_v_ptrs = cached_values + past[:, None] * DIM + dim_index[None, :]
        past_v = tl.load(past_v_ptrs, mask=past_mask, other=0.0).to(tl.float32)

        # Compute the scores (BLOCK,) and update the softmax. If the highest score has risen, the sums so far
        # are scaled down.
        scores = tl.sum(past_k1 * q1[None, :] + past_k2 * q2[None, :], 1)
        scores = tl.where(past < position, scores, float("-inf"))
        new_max = tl.maximum(max_score, tl.max(scores, 0))
        weights, shrink = tl.exp(scores - new_max), tl.exp(max_score - new_max)
        attn_out = attn_out * shrink + tl.sum(weights[:, None] * past_v, 0)
        weight_sum = weight_sum * shrink + tl.sum(weights, 0)
        max_score = new_max
        start += BLOCK
    tl.store(y_ptr + (row * HEADS + head) * DIM + dim_index, attn_out / weight_sum)

    # Write the new key and value into the cache. Of the query heads that share them, the first one does it.
    if head % (HEADS // KV_HEADS) == 0:
        new_offset = position * DIM
        tl.store(cached_keys + new_offset + half_index, k1.to(cache_ptr.dtype.element_ty))
        tl.store(cached_keys + new_offset + HALF + half_index, k2.to(cache_ptr.dtype.element_ty))
        tl.store(cached_values + new_offset + dim_index, v.to(cache_ptr.dtype.element_ty))
