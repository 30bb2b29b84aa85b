"""The block formats of ggml, as its reference quantisers compute them: `q8_0`, `q5_k`, `q4_0` and so on.

All arithmetic is float32 and in ggml's order, so that scales and codes are those of ggml to the last bit,
where its C code was compiled without fused multiply-add (as on x86-64 by default). With it, scales that fit
about equally well may change places: 0.4 % of the bundled voice's values in q4_k, at the same error. There is
no importance matrix.

A row is cut into blocks of 32 weights; the formats with `_k` join eight or sixteen of them into a
super-block of 256, whose blocks have scales of 6 or 8 bits.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CHUNK = 1 << 16  # weights at a time: what the search of a scale needs then stays in the processor's cache
MIN_SCALE = np.float32(1e-15)  # q6_k: smaller blocks are zeros


class Blocks(NamedTuple):
    """Quantised blocks: what their bytes hold, and the weights that are computed from it."""

    values: Floats  # (blocks, 32 or 256)
    codes: NDArray[np.int16]  # (blocks, 32 or 256) whole numbers, from 0 but for q8_0 and q8_k
    scale: NDArray[np.float16]  # (blocks,) d
    offset: NDArray[np.float16] | None = None  # (blocks,) the smallest value, or dmin of a super-block
    scale_codes: NDArray[np.int16] | None = None  # (blocks, 8 or 16) of a super-block's blocks
    offset_codes: NDArray[np.int16] | None = None  # (blocks, 8)


def quantise_ggml(weight: Floats, name: str) -> Floats:
    """Quantise rows and return the values that ggml computes with.

    Parameters
    ----------
    weight : ndarray (rows, columns)
        Columns are a multiple of the format's block.
    name : str
        A format of ggml.

    Returns
    -------
    ndarray (rows, columns)
    """
    size, _ = QUANTISERS[name]
    blocks = np.ascontiguousarray(weight, np.float32).reshape(-1, size)
    made = np.empty_like(blocks)
    step = CHUNK // size

    def quantise_chunk(start: int) -> None:
        made[start : start + step] = quantise_blocks(blocks[start : start + step], name).values

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy lets other threads run
        for _ in pool.map(quantise_chunk, range(0, len(blocks), step)):
            pass
    return made.reshape(weight.shape)


def quantise_blocks(x: Floats, name: str) -> Blocks:
    """Quantise blocks (blocks, 32) or super-blocks (blocks, 256) of float32."""
    with np.errstate(all="ignore"):  # a scale that float16 cannot hold is Inf, as in ggml
        return QUANTISERS[name][1](x)


def quantise_inputs(x: Floats, size: int) -> Floats:
    """Quantise the inputs of a layer as ggml's kernels do beside weights in blocks of this size."""
    with np.errstate(all="ignore"):
        blocks = (_q8_k if size == 256 else _q8_0)(np.ascontiguousarray(x).reshape(-1, size))
    return blocks.values.reshape(x.shape)


# ---- one scale a block


def _q8_0(x: Floats) -> Blocks:
    scale = np.abs(x).max(1) / np.float32(127)
    scaled = x * _inverse(scale)[:, None]
    size = np.floor(np.abs(scaled))
    codes = np.copysign(size + (np.abs(scaled) - size >= 0.5), scaled)  # a half is rounded away from 0
    d = scale.astype(np.float16)
    codes = codes.astype(np.int16)  # without a sign of 0
    return Blocks(codes * d.astype(np.float32)[:, None], codes, d)


def _q8_k(x: Floats) -> Blocks:
    """The inputs of layers in super-blocks: q8_0 over 256 numbers with a scale in float32."""
    scale = _farthest(x) / np.float32(-127)
    codes = np.minimum(np.rint(x * _inverse(scale)[:, None]), 127)
    return Blocks(codes * scale[:, None], codes.astype(np.int16), scale.astype(np.float16))


def _symmetric(x: Floats, half: int) -> Blocks:
    """q4_0 and q5_0: the weight that is farthest from 0 becomes the code 0, exactly."""
    scale = _farthest(x) / np.float32(-half)
    shifted = x * _inverse(scale)[:, None] + np.float32(half + 0.5)
    codes = np.minimum(np.trunc(shifted), 2 * half - 1)
    d = scale.astype(np.float16)
    return Blocks((codes - half) * d.astype(np.float32)[:, None], codes.astype(np.int16), d)


def _with_minimum(x: Floats, steps: int) -> Blocks:
    """q4_1 and q5_1: codes count from the smallest weight."""
    # Of equal ones the first, as ggml: it decides between 0 and -0.
    smallest, largest = _at(x, x.argmin(1)), _at(x, x.argmax(1))
    scale = (largest - smallest) / np.float32(steps)
    shifted = (x - smallest[:, None]) * _inverse(scale)[:, None] + np.float32(0.5)
    codes = np.minimum(np.trunc(shifted), steps)
    d, m = scale.astype(np.float16), smallest.astype(np.float16)
    values = codes * d.astype(np.float32)[:, None] + m.astype(np.float32)[:, None]
    return Blocks(values, codes.astype(np.int16), d, m)


# ---- super-blocks


def _k_with_minimum(x: Floats, steps: int, first: float, trials: int) -> Blocks:
    """q4_k and q5_k: eight blocks of 32, each with a scale and a minimum of 6 bits.

    `first` and `trials` say which scales are tried: `(steps + first + 0.1 * trial) / range`.
    """
    # The position inside a block is the first axis: sums over it then run in ggml's order.
    inner = np.ascontiguousarray(x.reshape(-1, 32).T)  # (32, blocks)
    mean = np.sqrt(_sum(inner * inner) / np.float32(32))
    scale, minimum, codes = _fit_line(inner, mean + np.abs(inner), steps, first, trials)

    scale, minimum = scale.reshape(-1, 8), minimum.reshape(-1, 8)
    widest = np.maximum(scale.max(1), np.float32(0))
    lowest = np.maximum(minimum.max(1), np.float32(0))
    scale_codes = _small_codes(scale, _inverse(widest, 63))
    offset_codes = _small_codes(minimum, _inverse(lowest, 63))
    d, dmin = ((each / np.float32(63)).astype(np.float16) for each in (widest, lowest))
    block_scale = (d.astype(np.float32)[:, None] * scale_codes).reshape(-1)
    block_min = (dmin.astype(np.float32)[:, None] * offset_codes).reshape(-1)

    # With the rounded scales, codes are taken anew; a block whose scale is 0 keeps its first ones.
    again = _round((inner + block_min) / np.where(block_scale == 0, np.float32(1), block_scale), 0, steps)
    codes = np.where(block_scale == 0, codes, again).astype(np.int16)
    values = (block_scale * codes - block_min).T.reshape(x.shape)
    return Blocks(values, codes.T.reshape(x.shape), d, dmin, scale_codes, offset_codes)


def _fit_line(
    x: Floats, weights: Floats, steps: int, first: float, trials: int
) -> tuple[Floats, Floats, Floats]:
    """Fit `x = scale * code - minimum` to each column by weighted least squares, for several roundings.

    Returns
    -------
    tuple of ndarray
        scale (blocks,), minimum (blocks,), codes (32, blocks).
    """
    low, high = np.minimum(x.min(0), np.float32(0)), x.max(0)
    is_flat = high == low
    sum_w, sum_x = _sum(weights), _sum(weights * x)
    # Trial -1 is the plain range; the others fit the line, each from the minimum of the best one before it.
    scale, minimum = np.zeros_like(low), low
    error, codes = np.full_like(low, np.inf), np.zeros_like(x)
    for trial in range(-1, trials + 1):
        widened = np.float32(first) + np.float32(0.1) * np.float32(trial) if trial >= 0 else np.float32(0)
        width = high - minimum
        inverse = (widened + np.float32(steps)) / np.where(width == 0, np.float32(1), width)
        tried = _round(inverse * (x - minimum), 0, steps)
        if trial < 0:
            can_fit, new_scale, new_minimum = ~is_flat, np.float32(1) / inverse, minimum
        else:
            weighted = weights * tried
            sum_l, sum_l2, sum_xl = _sum(weighted), _sum(weighted * tried), _sum(weighted * x)
            determinant = sum_w * sum_l2 - sum_l * sum_l
            can_fit = ~is_flat & (determinant > 0)
            divisor = np.where(can_fit, determinant, np.float32(1))
            new_scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
            new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / divisor
            through_zero = new_minimum > 0
            to_zero = sum_xl / np.where(sum_l2 == 0, np.float32(1), sum_l2)
            new_scale = np.where(through_zero, to_zero, new_scale)
            new_minimum = np.where(through_zero, np.float32(0), new_minimum)
        values = new_scale * tried
        values += new_minimum
        new_error = _error(weights, values, x)
        is_better = can_fit & (new_error < error)
        scale, minimum = np.where(is_better, new_scale, scale), np.where(is_better, new_minimum, minimum)
        error = np.where(is_better, new_error, error)
        np.copyto(codes, tried, where=is_better)
    return scale, -minimum, codes


def _q6_k(x: Floats) -> Blocks:
    """Sixteen blocks of 16, each with a signed scale of 8 bits."""
    inner = np.ascontiguousarray(x.reshape(-1, 16).T)  # (16, blocks)
    scale, codes = _fit_scale(inner, 32)
    scale = scale.reshape(-1, 16)
    widest = _farthest(scale)
    is_zero = np.abs(widest) < MIN_SCALE
    inverse = np.float32(-128) / np.where(is_zero, np.float32(1), widest)
    d = np.where(is_zero, np.float32(0), np.float32(1) / inverse).astype(np.float16)
    scale_codes = np.minimum(np.rint(inverse[:, None] * scale), 127)
    scale_codes = np.where(is_zero[:, None], 0, scale_codes).astype(np.int16)
    block_scale = (d.astype(np.float32)[:, None] * scale_codes).reshape(-1)
    again = _round(inner / np.where(block_scale == 0, np.float32(1), block_scale), -32, 31)
    codes = np.where(block_scale == 0, codes, again)
    codes = np.where(np.repeat(is_zero, 16), np.float32(-32), codes).astype(np.int16)
    values = (block_scale * codes).T.reshape(x.shape)
    return Blocks(values, codes.T.reshape(x.shape) + np.int16(32), d, None, scale_codes)


def _fit_scale(x: Floats, half: int) -> tuple[Floats, Floats]:
    """Fit `x = scale * code` to each column by least squares weighted with x², for several roundings.

    Returns
    -------
    tuple of ndarray
        scale (blocks,), codes (16, blocks) from -half to half - 1.
    """
    farthest = _farthest(x.T)
    is_zero = np.abs(farthest) < MIN_SCALE
    farthest = np.where(is_zero, np.float32(1), farthest)
    weights = x * x
    weighted = weights * x
    scale = best = codes = np.float32(0)
    for trial in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(half) + np.float32(0.1) * np.float32(trial)) / farthest
        tried = _round(inverse * x, -half, half - 1)
        sum_xl, sum_l2 = _sum(weighted * tried), _sum(weights * tried * tried)
        new_scale = sum_xl / np.where(sum_l2 > 0, sum_l2, np.float32(1))
        if trial == 0:
            is_better = np.ones_like(is_zero)
            new_scale = np.where(sum_l2 == 0, np.float32(0), new_scale)
        else:
            is_better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        scale, best = np.where(is_better, new_scale, scale), np.where(is_better, new_scale * sum_xl, best)
        codes = np.where(is_better, tried, codes)
    return np.where(is_zero, np.float32(0), scale), np.where(is_zero, np.float32(-half), codes)


# ---- arithmetic


def _inverse(scale: Floats, of: float = 1.0) -> Floats:
    """Return `of / scale`, and 0 where the scale is 0 (or its inverse is no float32)."""
    inverse = np.float32(of) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _farthest(x: Floats) -> Floats:
    """Return the value of each row that is farthest from 0, the first of several."""
    return _at(x, np.abs(x).argmax(1))


def _at(x: Floats, index: NDArray[np.intp]) -> Floats:
    return np.take_along_axis(x, index[:, None], 1)[:, 0]


def _sum(x: Floats) -> Floats:
    """Sum over the first axis, one row after the other, as a loop in C does."""
    return np.add.reduce(x, axis=0)


def _round(x: Floats, low: int, high: int) -> Floats:
    """Round to the nearest code, half to even; `x` is overwritten."""
    np.rint(x, out=x)
    np.maximum(x, np.float32(low), out=x)
    return np.minimum(x, np.float32(high), out=x)


def _error(weights: Floats, values: Floats, x: Floats) -> Floats:
    """Return the weighted sum of squared differences over the first axis; `values` are overwritten."""
    values -= x
    values *= values
    values *= weights
    return _sum(values)


def _small_codes(x: Floats, inverse: Floats) -> NDArray[np.int16]:
    return np.minimum(np.rint(inverse[:, None] * x), 63).astype(np.int16)


# Format -> weights a block or super-block, and the function that quantises (blocks, weights) float32.
QUANTISERS: dict[str, tuple[int, Callable[[Floats], Blocks]]] = {
    "q8_0": (32, _q8_0),
    "q4_0": (32, lambda x: _symmetric(x, 8)),
    "q5_0": (32, lambda x: _symmetric(x, 16)),
    "q4_1": (32, lambda x: _with_minimum(x, 15)),
    "q5_1": (32, lambda x: _with_minimum(x, 31)),
    "q4_k": (256, lambda x: _k_with_minimum(x, 15, -1.0, 20)),
    "q5_k": (256, lambda x: _k_with_minimum(x, 31, -0.5, 15)),
    "q6_k": (256, _q6_k),
}
