"""A tensor that was quantised in its file, and how codes with scales become floats."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError


class Dequantised(NamedTuple):
    """A tensor that was quantised in its file."""

    values: Tensor  # float32
    format: str  # in the file, such as "Q4_K" or "int8 of torchao"
    nbytes: int  # in the file, with scales


def dequantise(
    codes: Tensor, scale: Tensor, zero: Tensor | None, block: Sequence[int], is_zero_after: bool = False
) -> Tensor:
    """Return `(codes - zero) * scale` in float32, where a block of codes shares a scale and a zero.

    Parameters
    ----------
    codes : Tensor
        Whole numbers or 8-bit floats.
    scale : Tensor
        One for each block, in row-major order of the blocks.
    zero : Tensor or None
        As many as scales.
    block : sequence of int
        Size of a block along each axis of `codes`; -1 is the whole axis.
    is_zero_after : bool
        True computes `codes * scale + zero`, for zeros that are floats of the weights' size.

    Raises
    ------
    WorkbenchError
        When blocks, scales or zeros do not fit the codes.
    """
    sizes = [n if b == -1 else b for n, b in zip(codes.shape, block, strict=False)]
    if len(block) != codes.ndim or any(b < 1 or n % b for n, b in zip(codes.shape, sizes, strict=False)):
        raise WorkbenchError(f"blocks of {tuple(block)} do not divide codes of {tuple(codes.shape)}")
    counts = [n // b for n, b in zip(codes.shape, sizes, strict=True)]
    for what, each in (("scales", scale), ("zeros", zero)):
        if each is not None and each.numel() != math.prod(counts):
            raise WorkbenchError(
                f"{each.numel()} {what} for {math.prod(counts)} blocks of codes {tuple(codes.shape)}"
            )
    # Each axis becomes two: which block, and where in it.
    split = [n for pair in zip(counts, sizes, strict=True) for n in pair]
    per_block = [n for count in counts for n in (count, 1)]
    values = codes.to(torch.float32).reshape(split)
    steps = scale.to(torch.float32).reshape(per_block)
    if zero is None:
        return (values * steps).reshape(codes.shape)
    offset = zero.to(torch.float32).reshape(per_block)
    made = values * steps + offset if is_zero_after else (values - offset) * steps
    return made.reshape(codes.shape)


def low_nibble_first(packed: Tensor) -> Tensor:
    """Return the two codes from 0 to 15 of each byte of the last axis, the low four bits first."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
