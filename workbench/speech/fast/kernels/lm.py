"""One decoding step of the LM on a GPU, in five Triton kernels a layer.

With a single position a GPU waits for launches and for memory, not for arithmetic. cuBLAS and torch's
compiler need a dozen kernels for a layer, and half of its time goes into the matrix products of attention,
which have one row: 76 us a layer in float32 on an H200, of which reading the weights takes 15. The five
kernels here are

    RMS norm + QKV projection  (`project`)
    rotary embedding + attention + cache update  (`attend`)
    output projection + residual  (`project`)
    RMS norm + gate and up projections + SwiGLU  (`project`)
    down projection + residual  (`project`)

The state between the layers is float32.

Shape letters: `B` rows of the batch, `D` width, `H` heads of keys and values.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.cuda_graphs import compile_in_parallel
from workbench.speech.fast.kernels.projection import project
from workbench.speech.fast.lm_torch import FusedLayer
from workbench.speech.models.lm import LM

CACHE_BLOCK = 256  # cached positions that attention loads at a time


class TritonDecodeStep:
    """Run the decoder stack for one new position of each row.

    Parameters
    ----------
    lm : LM
        On a GPU, in float32 or bfloat16.
    layers : list of FusedLayer
        What `fuse_layers` returned for it.
    precision : {"tf32x3", "tf32"}
        Of float32 products of several rows; "tf32x3" is as accurate as float32.
    """

    def __init__(self, lm: LM, layers: list[FusedLayer], precision: str) -> None:
        c = lm.config
        self.lm, self.layers, self.precision = lm, layers, precision
        self.heads = c.num_attention_heads, c.num_key_value_heads, c.head_dim
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
        # 16 positions, like the number of a real cache: Triton compiles multiples of 16 separately.
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
        """Return one length for all: the kernel reads just the positions that a row has filled."""
        return [positions]

    def logits(self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, _: int) -> Tensor:
        """Write the new position into the cache and return the logits; see `TorchDecodeStep.logits`."""
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
    qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, heads: tuple[int, int, int]
) -> Tensor:
    """Apply the rotary embedding, attend to the cache and the new position, and write that into the cache.

    Parameters
    ----------
    qkv : Tensor (B, (query heads + 2 H) * head_dim), float32
        Queries, keys and values of the new position.
    cache : Tensor (2, B, H, positions, head_dim)
        Keys and values. Positions before `position` are read, `position` is written.
    cos, sin : Tensor (positions, head_dim / 2)
    position : Tensor (B,)
    heads : (int, int, int)
        Query heads; heads H of keys and values; head_dim, a power of two.

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
        cache.stride(0),
        cache.shape[3],
        head_dim**-0.5,
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        DIM=head_dim,
        BLOCK=CACHE_BLOCK,
        num_warps=8,
    )
    return y


@triton.jit
def _attend(
    qkv_ptr,  # (B, (HEADS + 2 KV_HEADS) DIM) float32
    cache_ptr,  # (2, B, KV_HEADS, positions, DIM)
    cos_ptr,  # (positions, DIM / 2)
    sin_ptr,  # (positions, DIM / 2)
    position_ptr,  # (B,) int64
    y_ptr,  # (B, HEADS DIM) float32
    values_offset,  # elements from the keys to the values in the cache
    positions,  # of the cache
    scale,  # DIM ** -0.5
    HEADS: tl.constexpr,  # of queries
    KV_HEADS: tl.constexpr,  # of keys and values
    DIM: tl.constexpr,  # of a head
    BLOCK: tl.constexpr,  # cached positions loaded at a time
):
    """`attend` for one row and one query head in each program, with a running softmax over the cache."""
    row, head = tl.program_id(0), tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    position = tl.load(position_ptr + row)

    # Load the new position's query and key, and apply the rotary embedding. It turns the first half of a head
    # against the second, so each half is a vector of its own: q1, q2, k1, k2. The query carries the scale.
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
    # the sum of exp(score - max_score), `attn_out` the values times these weights, before dividing by it.
    max_score = tl.sum(q1 * k1 + q2 * k2, 0)
    weight_sum, attn_out = tl.exp(max_score - max_score), v  # a tensor of 1: its own score is the highest
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

        # Scores (BLOCK,), and the softmax update: sums so far shrink if the highest score has risen.
        scores = tl.sum(past_k1 * q1[None, :] + past_k2 * q2[None, :], 1)
        scores = tl.where(past < position, scores, float("-inf"))
        new_max = tl.maximum(max_score, tl.max(scores, 0))
        weights, shrink = tl.exp(scores - new_max), tl.exp(max_score - new_max)
        attn_out = attn_out * shrink + tl.sum(weights[:, None] * past_v, 0)
        weight_sum = weight_sum * shrink + tl.sum(weights, 0)
        max_score = new_max
        start += BLOCK
    tl.store(y_ptr + (row * HEADS + head) * DIM + dim_index, attn_out / weight_sum)

    # Write the new key and value into the cache; one of the query heads that share them does it.
    if head % (HEADS // KV_HEADS) == 0:
        new_offset = position * DIM
        tl.store(cached_keys + new_offset + half_index, k1.to(cache_ptr.dtype.element_ty))
        tl.store(cached_keys + new_offset + HALF + half_index, k2.to(cache_ptr.dtype.element_ty))
        tl.store(cached_values + new_offset + dim_index, v.to(cache_ptr.dtype.element_ty))
