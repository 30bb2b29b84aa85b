"""Float32 attention without a mask, on tensor cores: one Triton kernel. It runs on GPUs only.

Flash attention libraries compute in half precision, and in torch's float32 attention the tensor cores often
wait for data. This kernel is flash attention in which each float32 product is computed as three TF32 products
(see `tf32x3`). The matrix of scores stays in registers.

Source: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.

Shape letters: `B` batch, `S` frames, `H` heads, `D` width of a head.
"""

from math import log, log2
from typing import NamedTuple

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


# The fastest tile of those tried on an H200, although a few registers spill to memory.
TILE = Tile(queries=64, keys=64, warps=4, stages=2)


def supports_head_width(width: int) -> bool:
    """Return whether the kernel computes heads of this width: powers of two from `MIN_HEAD_WIDTH`."""
    return width >= MIN_HEAD_WIDTH and log2(width).is_integer()


def attend(qkv: Tensor) -> Tensor:
    """Compute attention of every frame to every frame.

    Parameters
    ----------
    qkv : Tensor (B, S, 3, H, D), float32
        Queries, keys and values, contiguous; `supports_head_width(D)`.

    Returns
    -------
    Tensor (B S, 3 H D)
        The heads side by side, in the layout of `tf32x3.split_tf32`: the input of a `Tf32x3Linear`.
    """
    batch, length, _, heads, width = qkv.shape
    y = qkv.new_empty(batch * length, 3 * heads * width)
    # The batch is the last dimension of the grid, so that a row is computed in the same way in any batch.
    grid = (triton.cdiv(length, TILE.queries), heads, batch)
    _attend[grid](
        qkv,
        y,
        length,
        heads,
        1 / (width**0.5 * log(2)),  # scale; log(2), because the kernel uses powers of 2 and not of e
        DROPPED_BITS,
        width,
        TILE.queries,
        TILE.keys,
        num_warps=TILE.warps,
        num_stages=TILE.stages,
    )
    return y


# Compiling takes seconds, so Triton compiles one kernel for all values of these two arguments.
@triton.jit(do_not_specialize=["length", "heads"])
def _attend(
    qkv,  # (B, S, 3, H, D) float32
    y,  # (B S, 3 H D)
    length,  # S
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

    # Load the queries (block_queries, width), multiply them by the scale of the scores, and split them.
    q_ptrs = qkv + query[:, None] * 3 * frame_size + columns
    q = tl.load(q_ptrs, mask=query_mask, other=0.0) * scale
    q_big = round_to_tf32(q)
    q_small = q - q_big

    # Running softmax, for each query: `max_score` is the highest score so far, `weight_sum` is the sum of the
    # weights 2 ** (score - max_score), and `acc` is the sum of the values times these weights.
    # Scores are keys by queries, and `acc` is transposed as well: k and v, which are split anew in every pass
    # of the loop, are then the operands that tensor cores read from registers. The other way round takes a
    # third longer.
    max_score = tl.full((block_queries,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((block_queries,), tl.float32)
    acc = tl.zeros((width, block_queries), tl.float32)
    for start in range(0, length, block_keys):
        # Load the keys (block_keys, width) and split them.
        key = start + tl.arange(0, block_keys)
        k_ptrs = qkv + frame_size + key[:, None] * 3 * frame_size + columns
        k = tl.load(k_ptrs, mask=(key < length)[:, None], other=0.0)
        k_big = round_to_tf32(k)
        k_small = k - k_big

        # Scores (block_keys, block_queries): three products, the small ones first.
        scores = tl.dot(k_small, q_big.T, input_precision="tf32")
        scores = tl.dot(k_big, q_small.T, scores, input_precision="tf32")
        scores = tl.dot(k_big, q_big.T, scores, input_precision="tf32")
        scores = tl.where((key < length)[:, None], scores, float("-inf"))

        # Update the softmax. Where the highest score has risen, the sums so far are scaled down. The GPU has
        # an instruction for `exp2`.
        new_max = tl.maximum(max_score, tl.max(scores, 0))
        p = tl.exp2(scores - new_max[None, :])
        shrink = tl.exp2(max_score - new_max)
        weight_sum = weight_sum * shrink + tl.sum(p, 0)
        max_score = new_max
        p_big = round_to_tf32(p)
        p_small = p - p_big

        # Load the values, transposed to (width, block_keys), and split them.
        v_ptrs = qkv + 2 * frame_size + key[None, :] * 3 * frame_size + tl.arange(0, width)[:, None]
        v = tl.load(v_ptrs, mask=(key < length)[None, :], other=0.0)
        v_big = round_to_tf32(v)
        v_small = v - v_big

        # The weighted values of this block are summed apart from `acc`. With `acc` as the start of the sum,
        # tensor cores would cut off its last bits in each of the three products.
        block_acc = tl.dot(v_small, p_big, input_precision="tf32")
        block_acc = tl.dot(v_big, p_small, block_acc, input_precision="tf32")
        block_acc = tl.dot(v_big, p_big, block_acc, input_precision="tf32")
        acc = acc * shrink[None, :] + block_acc

    # Divide by the sum of the weights, transpose back to (block_queries, width), and store in three parts.
    attn_out = (acc / weight_sum[None, :]).T
    y_ptrs = y + (first_frame + query[:, None]) * 3 * frame_size + tl.program_id(1) * width + columns
    store_parts(y_ptrs, attn_out, frame_size, dropped_bits, query_mask)
