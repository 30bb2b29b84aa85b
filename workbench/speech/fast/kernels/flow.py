"""The flow's operations between two large matrix products, as Triton kernels, for GPUs only.

`add_and_norm`, of the exact flow, is gate and residual, layer norm, modulation, and the TF32 split of the
next product's input. torch's compiler makes two kernels of them: one writes the normalised state, and one
reads it again to split it. These two take 228 us for a batch of 16 on an H100, and a solve with 10 steps runs
them 440 times. `rotate` is the rotary embedding in place, for which torch's compiler makes two kernels too.

Shape letters: `N` rows, `D` width, `W` width of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.tf32x3 import DROPPED_BITS
from workbench.speech.models.dit import NORM_EPS


def add_and_norm(h: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the state; normalise, modulate and split the sum for the next layer.

    Parameters
    ----------
    h, y : Tensor (N, D), float32
        The state (residual stream), and the output of a layer; contiguous.
    gate, shift, scale : Tensor (1, D)
        Modulations; `scale` includes the 1 that `dit.modulate` adds.

    Returns
    -------
    state : Tensor (N, D)
        h + gate * y
    parts : Tensor (N, 3 D)
        The next layer's input in the layout of `tf32x3.split_tf32`.
    """
    rows, width = h.shape
    state, parts = torch.empty_like(h), h.new_empty(rows, 3 * width)
    block = triton.next_power_of_2(width)  # a program computes a whole row, since the norm needs all of it
    _add_and_norm[(rows,)](
        h, gate, y, shift, scale, state, parts, NORM_EPS, DROPPED_BITS, width, block, num_warps=4
    )
    return state, parts


@triton.jit
def _add_and_norm(
    h,  # (N, D) float32
    gate,  # (D,)
    y,  # (N, D)
    shift,  # (D,)
    scale,  # (D,)
    state,  # (N, D)
    parts,  # (N, 3 D)
    eps,
    dropped_bits: tl.constexpr,
    width: tl.constexpr,  # D
    block: tl.constexpr,  # D rounded up to a power of two
):
    """Compute `add_and_norm` for one row in each program."""
    row = tl.program_id(0).to(tl.int64)  # 64 bits, since 3 N D may exceed 2**31
    column = tl.arange(0, block)
    mask = column < width
    offset = row * width + column

    # Gate and residual.
    added = tl.load(gate + column, mask=mask, other=0.0) * tl.load(y + offset, mask=mask, other=0.0)
    new = tl.load(h + offset, mask=mask, other=0.0) + added
    tl.store(state + offset, new, mask=mask)

    # Layer norm and modulation.
    centred = tl.where(mask, new - tl.sum(new, 0) / width, 0.0)
    normalised = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    column_scale = tl.load(scale + column, mask=mask, other=0.0)
    z = normalised * column_scale + tl.load(shift + column, mask=mask, other=0.0)

    store_parts(parts + row * 3 * width + column, z, width, dropped_bits, mask)


@triton.jit
def store_parts(ptrs, x, width, dropped_bits: tl.constexpr, mask):
    """Store x as (low, high, high), the layout of `tf32x3.split_tf32`, in rows of 3 * width.

    `ptrs` points to the first of the three copies.
    """
    high = ((x.to(tl.int32, bitcast=True) >> dropped_bits) << dropped_bits).to(tl.float32, bitcast=True)
    tl.store(ptrs, x - high, mask=mask)
    tl.store(ptrs + width, high, mask=mask)
    tl.store(ptrs + 2 * width, high, mask=mask)


def rotate(qk: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first heads of queries and keys in place, as `dit.rotate_first_head` does.

    Parameters
    ----------
    qk : Tensor (N, 2, W), float32 or half precision
        A view of a larger matrix; the W numbers of a head lie side by side.
    cos, sin : Tensor (N, 1, W / 2)
        Contiguous.
    """
    pairs = cos.shape[-1]
    block = triton.next_power_of_2(pairs)
    _rotate[(len(qk),)](qk, cos, sin, qk.stride(0), qk.stride(1), pairs, block, num_warps=1)


@triton.jit
def _rotate(
    qk,  # (N, 2, W)
    cos,  # (N, W / 2)
    sin,  # (N, W / 2)
    row_stride,
    part_stride,  # from a query to its key
    pairs: tl.constexpr,  # W / 2
    block: tl.constexpr,  # pairs rounded up to a power of two
):
    """Compute `rotate` for one row in each program."""
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, block)[None, :]
    mask = pair < pairs
    c = tl.load(cos + row * pairs + pair, mask=mask, other=0.0)
    s = tl.load(sin + row * pairs + pair, mask=mask, other=0.0)
    even_ptrs = qk + row * row_stride + tl.arange(0, 2)[:, None] * part_stride + 2 * pair  # (2, block)
    even = tl.load(even_ptrs, mask=mask, other=0.0).to(c.dtype)
    odd = tl.load(even_ptrs + 1, mask=mask, other=0.0).to(c.dtype)
    tl.store(even_ptrs, (even * c - odd * s).to(qk.dtype.element_ty), mask=mask)
    tl.store(even_ptrs + 1, (odd * c + even * s).to(qk.dtype.element_ty), mask=mask)
