"""Attention in float32 on tensor cores: one Triton kernel. For GPUs alone.

A library would be better, but flash attention is for half precision, and what torch has for float32 keeps the
tensor cores waiting. Products are made of three in TF32, as in `causal_conv`; scores stay in registers.

Source: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.
"""

from math import log, log2
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.kernels.conv import rounded
from workbench.speech.fast.kernels.flow import store_parts
from workbench.speech.fast.tf32x3 import UNREAD

LEAST_WIDTH = 16  # of a head, and powers of two from there


class Tile(NamedTuple):
    """What one program of the kernel computes, and with what."""

    queries: int
    keys: int  # read at a time
    warps: int
    stages: int


TILE = Tile(64, 64, 4, 2)  # of those tried on an H200 the fastest, though a few registers spill


def suits(width: int) -> bool:
    """Whether the kernel computes heads of such a width."""
    return width >= LEAST_WIDTH and log2(width).is_integer()


def attended(qkv: Tensor) -> Tensor:
    """Let every frame look at every frame, and lay out what it saw for a `SplitLinear`.

    Parameters
    ----------
    qkv : Tensor (B, S, 3, H, D), float32
        Queries, keys and values, contiguous; D suits.

    Returns
    -------
    Tensor (B S, 3 H D)
        What `split` makes of the heads side by side.
    """
    n, length, _, heads, width = qkv.shape
    y = qkv.new_empty(n * length, 3 * heads * width)
    # Rows go last, so that one row is computed in the same way in any batch.
    grid = (triton.cdiv(length, TILE.queries), heads, n)
    _attend[grid](
        qkv,
        y,
        length,
        heads,
        1 / (width**0.5 * log(2)),
        UNREAD,
        width,
        TILE.queries,
        TILE.keys,
        num_warps=TILE.warps,
        num_stages=TILE.stages,
    )
    return y


@triton.jit(do_not_specialize=["length", "heads"])  # one kernel for all lengths: it takes seconds
def _attend(
    qkv,
    y,
    length,
    heads,
    scale,
    unread: tl.constexpr,
    width: tl.constexpr,
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
):
    asking = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    inside = (asking < length)[:, None]
    columns = tl.arange(0, width)[None, :]
    size = heads * width
    first = tl.program_id(2).to(tl.int64) * length
    qkv += first * 3 * size + tl.program_id(1) * width
    # Powers of two instead of e, since the GPU has an instruction for them.
    q = tl.load(qkv + asking[:, None] * 3 * size + columns, mask=inside, other=0.0) * scale
    q_big = rounded(q)
    q_small = q - q_big
    highest = tl.full((block_queries,), float("-inf"), tl.float32)
    weight = tl.zeros((block_queries,), tl.float32)
    # Keys by queries, and the result turned: what is split in every turn of the loop, k and v, are then the
    # operands that tensor cores read from registers. The other way round takes a third longer.
    total = tl.zeros((width, block_queries), tl.float32)
    for start in range(0, length, block_keys):
        seen = start + tl.arange(0, block_keys)
        keys = qkv + size + seen[:, None] * 3 * size + columns
        k = tl.load(keys, mask=(seen < length)[:, None], other=0.0)
        k_big = rounded(k)
        k_small = k - k_big
        # Small ones first, as in `split_float32`.
        scores = tl.dot(k_small, q_big.T, input_precision="tf32")
        scores = tl.dot(k_big, q_small.T, scores, input_precision="tf32")
        scores = tl.dot(k_big, q_big.T, scores, input_precision="tf32")
        scores = tl.where((seen < length)[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 0))
        p = tl.exp2(scores - higher[None, :])
        fades = tl.exp2(highest - higher)
        weight = weight * fades + tl.sum(p, 0)
        highest = higher
        p_big = rounded(p)
        p_small = p - p_big
        values = qkv + 2 * size + seen[None, :] * 3 * size + tl.arange(0, width)[:, None]
        v = tl.load(values, mask=(seen < length)[None, :], other=0.0)
        v_big = rounded(v)
        v_small = v - v_big
        # A sum of its own: tensor cores would cut off the last bits of all that came before.
        part = tl.dot(v_small, p_big, input_precision="tf32")
        part = tl.dot(v_big, p_small, part, input_precision="tf32")
        part = tl.dot(v_big, p_big, part, input_precision="tf32")
        total = total * fades[None, :] + part
    total = (total / weight[None, :]).T
    place = y + (first + asking[:, None]) * 3 * size + tl.program_id(1) * width + columns
    store_parts(place, total, size, unread, inside)
