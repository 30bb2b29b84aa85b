"""Formats with one scale for a tensor, a channel or a group: integers, MLX's affine integers, fp8 and nf4.

Each quantiser takes a matrix of groups (groups, weights), float32, and returns what a library computes with
after it has stored and read such a group.
"""

import torch
from torch import Tensor

from workbench.speech.config.formats import Format

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
TINY = torch.finfo(torch.float32).tiny
EPS = torch.finfo(torch.float32).eps
MLX_EPS = 1e-7
MIN_ABSMAX = 1e-38  # nf4

# The 16 values of nf4: quantiles of a normal distribution, scaled to [-1, 1] (QLoRA, Dettmers et al. 2023).
NF4 = torch.tensor(
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    )
)


def groups_of(weight: Tensor, used: Format) -> Tensor:
    """Return a weight as the matrix (groups, weights) of those that share a scale in a format."""
    if used.block:
        return weight.reshape(-1, used.block)
    return weight.flatten(1) if used.details[0] == "channel" else weight.reshape(1, -1)


def quantise_integer(x: Tensor, bits: int, mapping: str, is_narrow: bool) -> Tensor:
    """Quantise to integers of 4 or 8 bits.

    Parameters
    ----------
    x : Tensor (groups, weights)
    bits : {4, 8}
    mapping : {"symmetric", "asymmetric", "offset"}
        "symmetric": `scale * code`. "asymmetric": `scale * (code - zero)` with a whole `zero`, so that 0
        stays 0. "offset": `scale * code + offset` with a float offset, as torchao's kernels for int4 have it.
    is_narrow : bool
        True leaves out the lowest code of a symmetric range, as ONNX Runtime and TensorRT do for 8 bits: 127
        codes on each side. False has half a code more on each side, as torchao.

    Notes
    -----
    torchao multiplies by `1 / scale` where ONNX Runtime divides: a weight half-way between two codes may get
    the other one.
    """
    if mapping != "offset":
        codes, scale, zero = integer_codes(x, bits, mapping, is_narrow)
        return codes * scale if zero is None else (codes - zero) * scale
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    smallest, largest = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = ((largest - smallest) / (high - low)).clamp(min=TINY)
    middle = smallest + scale * -low
    return ((x - smallest) / scale).round().clamp(0, high - low).add(low) * scale + middle


def integer_codes(
    x: Tensor, bits: int, mapping: str, is_narrow: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return codes (groups, weights), scales and zeros (groups, 1); see `quantise_integer`.

    The weights are `(codes - zero) * scale`, all in float32; only "asymmetric" has zeros.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if mapping == "symmetric":
        farthest = x.abs().amax(1, keepdim=True)
        low, half = (-high, float(high)) if is_narrow else (low, (high - low) / 2)
        scale = (farthest / half).clamp(min=TINY if is_narrow else EPS)
        scaled = x / scale if is_narrow else x * (1 / scale)
        return scaled.round().clamp(low, high), scale, None
    smallest, largest = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((largest - smallest) / (high - low)).clamp(min=TINY)
    zero = (low - (smallest / scale).round()).clamp(low, high)
    return ((x * (1 / scale)).round() + zero).clamp(low, high), scale, zero


def quantise_mlx(x: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Quantise as `mlx.core.quantize`: `scale * code + bias`, where one end of the range and 0 are exact.

    Parameters
    ----------
    x : Tensor (groups, weights)
    bits : {4, 8}
    dtype : torch.dtype
        Of the weights that MLX is given, and so of its scales and biases. Values stay float32, as the kernels
        of its products sum them.
    """
    x = x.to(dtype).float()
    steps = (1 << bits) - 1
    smallest, largest = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    is_low = smallest.abs() > largest.abs()
    scale = ((largest - smallest) / steps).clamp(min=MLX_EPS)
    scale = torch.where(is_low, scale, -scale)
    edge = torch.where(is_low, smallest, largest)  # the end that is farther from 0
    edge_code = (edge / scale).round()
    has_zero = edge_code != 0
    scale = torch.where(has_zero, edge / torch.where(has_zero, edge_code, 1), scale)
    bias = torch.where(has_zero, edge, 0)
    codes = ((x - bias) / scale).round().clamp(0, steps)
    return codes * scale.to(dtype).float() + bias.to(dtype).float()


def quantise_fp8(x: Tensor, name: str) -> Tensor:
    """Quantise to 8-bit floats; the value that is farthest from 0 becomes the largest number of the type."""
    codes, scale = fp8_codes(x, name)
    return codes.float() * scale


def fp8_codes(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return codes (groups, weights), 8-bit floats, and scales (groups, 1)."""
    dtype = FP8[name]
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax(1, keepdim=True) / largest).clamp(min=TINY)
    return (x / scale).clamp(-largest, largest).to(dtype), scale


def quantise_nf4(x: Tensor) -> Tensor:
    """Quantise to the nearest of the 16 values of nf4, times the largest magnitude of the group."""
    farthest = x.abs().amax(1, keepdim=True)
    scaled = (x * (1 / farthest.clamp(min=MIN_ABSMAX))).clamp(-1, 1)
    bounds = (NF4[1:] + NF4[:-1]) / 2
    return NF4[torch.bucketize(scaled, bounds)] * farthest
