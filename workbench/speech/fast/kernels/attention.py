"""Attention of the flow on tensor cores, in float32 or half precision: one Triton kernel, for GPUs only.

Flash attention libraries compute in half precision and take no mask, and in torch's other attention the
tensor cores often wait for data. This kernel is flash attention in which each float32 product is computed as
three TF32 products (see `tf32x3`). The matrix of scores stays in registers. The frames that a frame attends
to are the first ones, up to the end of its chunk or of the utterance: blocks of later ones are not computed.

Source: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.

Shape letters: `B` batch, `S` frames, `H` heads, `D` width of a head.
"""

from math import log, log2
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.kernels.conv import round_to_tf32
from workbench.speech.fast.kernels.flow import store_parts
from workbench.speech.fast.tf32x3 import DROPPED_BITS

MIN_HEAD_WIDTH = 16  # the smallest matrix that Triton multiplies


class Tile(NamedTuple):
    """The block sizes of one program of the kernel, and its resources."""

    queries: int  # query frames that the program computes
    keys: int  # key frames that it loads at a time
    warps: int
    stages: int  # stages of Triton's pipeline, in which loads run ahead of the arithmetic


# The fastest tiles of those tried on an H200. With the first, a few registers spill to memory.
TILE = Tile(queries=64, keys=64, warps=4, stages=2)
HALF_TILE = Tile(queries=64, keys=32, warps=4, stages=3)  # in half precision


def supports_head_width(width: int) -> bool:
    """Return whether the kernel computes heads of this width: powers of two from `MIN_HEAD_WIDTH`."""
    return width >= MIN_HEAD_WIDTH and log2(width).is_integer()


def attend(qkv: Tensor, n_visible: Tensor | None = None) -> Tensor:
    """Compute attention.

    Parameters
    ----------
    qkv : Tensor (B, S, 3, H, D), float32 or half precision
        Queries, keys and values, contiguous; `supports_head_width(D)`.
    n_visible : Tensor (B, 1 or S), int32, optional
        Each frame attends to so many frames, from the first one on, and at least to that; to all by default.

    Returns
    -------
    Tensor (B S, H D) or (B S, 3 H D)
        The heads side by side. Float32 comes in the layout of `tf32x3.split_tf32`: the input of a
        `Tf32x3Linear`.
    """
    batch, length, _, heads, width = qkv.shape
    splits = qkv.dtype == torch.float32
    tile = TILE if splits else HALF_TILE
    y = qkv.new_empty(batch * length, (3 if splits else 1) * heads * width)
    mask_rows = 0 if n_visible is None else n_visible.shape[1]
    # The batch is the last dimension of the grid, so that a row is computed in the same way in any batch.
    grid = (triton.cdiv(length, tile.queries), heads, batch)
    _attend[grid](
        qkv,
        n_visible,
        y,
        length,
        mask_rows,
        heads,
        1 / (width**0.5 * log(2)),  # scale; log(2), because the kernel uses powers of 2 and not of e
        DROPPED_BITS,
        width,
        tile.queries,
        tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y


# Compiling takes seconds, so Triton compiles one kernel for all values of these arguments.
@triton.jit(do_not_specialize=["length", "mask_rows", "heads"])
def _attend(
    qkv,  # (B, S, 3, H, D)
    n_visible,  # (B, mask_rows) or None
    y,  # (B S, 3 H D), or (B S, H D) in half precision
    length,  # S
    mask_rows,  # 0, 1 or S
    heads,  # H
    scale,  # factor of the scores
    dropped_bits: tl.constexpr,
    width: tl.constexpr,  # D
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
):
    """Compute `attend` for a block of query frames of one head and row in each program."""
    query = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    query_mask = (query < length)[:, None]
    columns = tl.arange(0, width)[None, :]
    frame_size = heads * width  # elements of the queries, of the keys or of the values of one frame
    first_frame = tl.program_id(2).to(tl.int64) * length
    qkv += first_frame * 3 * frame_size + tl.program_id(1) * width

    # How many keys each query sees, and where the last of them ends.
    last_key = length
    if n_visible is not None:
        visible_ptrs = n_visible + tl.program_id(2) * mask_rows + tl.minimum(query, mask_rows - 1)
        visible = tl.load(visible_ptrs, mask=query < length, other=1)
        last_key = tl.max(visible, 0)

    # Load the queries (block_queries, width).
    q_ptrs = qkv + query[:, None] * 3 * frame_size + columns
    q = tl.load(q_ptrs, mask=query_mask, other=0.0)

    # Running softmax, for each query: `max_score` is the highest score so far, `weight_sum` is the sum of the
    # weights 2 ** (score - max_score), and `acc` is the sum of the values times these weights.
    # Scores are keys by queries, and `acc` is transposed as well: k and v, which are split anew in every pass
    # of the loop, are then the operands that tensor cores read from registers. The other way round takes a
    # third longer.
    max_score = tl.full((block_queries,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((block_queries,), tl.float32)
    acc = tl.zeros((width, block_queries), tl.float32)
    for start in range(0, last_key, block_keys):
        # Load the keys (block_keys, width), and compute the scores (block_keys, block_queries). Every query
        # sees the first key, so that `max_score` is finite from the first pass on.
        key = start + tl.arange(0, block_keys)
        k_ptrs = qkv + frame_size + key[:, None] * 3 * frame_size + columns
        k = tl.load(k_ptrs, mask=(key < length)[:, None], other=0.0)
        scores = _dot(k, q.T) * scale
        if n_visible is not None:
            scores = tl.where(key[:, None] < visible[None, :], scores, float("-inf"))
        else:
            scores = tl.where((key < length)[:, None], scores, float("-inf"))

        # Update the softmax. Where the highest score has risen, the sums so far are scaled down. The GPU has
        # an instruction for `exp2`.
        new_max = tl.maximum(max_score, tl.max(scores, 0))
        p = tl.exp2(scores - new_max[None, :])
        shrink = tl.exp2(max_score - new_max)
        weight_sum = weight_sum * shrink + tl.sum(p, 0)
        max_score = new_max

        # Load the values, transposed to (width, block_keys). The weighted values of this block are summed
        # apart from `acc`. With `acc` as the start of the sum, tensor cores would cut off its last bits in
        # each product.
        v_ptrs = qkv + 2 * frame_size + key[None, :] * 3 * frame_size + tl.arange(0, width)[:, None]
        v = tl.load(v_ptrs, mask=(key < length)[None, :], other=0.0)
        acc = acc * shrink[None, :] + _dot(v, p.to(v.dtype))

    # Divide by the sum of the weights, transpose back to (block_queries, width), and store; float32 is stored
    # in three parts.
    attn_out = (acc / weight_sum[None, :]).T
    row = first_frame + query[:, None]
    column = tl.program_id(1) * width + columns
    if y.dtype.element_ty == tl.float32:
        store_parts(y + row * 3 * frame_size + column, attn_out, frame_size, dropped_bits, query_mask)
    else:
        tl.store(y + row * frame_size + column, attn_out.to(y.dtype.element_ty), mask=query_mask)


@triton.jit
def _dot(a, b):
    """Multiply matrices, float32 ones by three products of TF32 numbers; the small products come first."""
    if a.dtype == tl.float32:
        a_big, b_big = round_to_tf32(a), round_to_tf32(b)
        product = tl.dot(a - a_big, b_big, input_precision="tf32")
        product = tl.dot(a_big, b - b_big, product, input_precision="tf32")
        product = tl.dot(a_big, b_big, product, input_precision="tf32")
    else:
        product = tl.dot(a, b)
    return product
