"""Causal convolutions on tensor cores, in float32 or close to it: one Triton kernel. For GPUs alone.

A library would be better, but cuDNN computes float32 convolutions without tensor cores, at half of what
the arithmetic could do, and transposes many of them before and after. Here a float32 is the sum of two
TF32 numbers, and three of their four products make a product that is float32's but for its last bits.
"""

from functools import partial
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from workbench.speech.fast.cuda_graphs import side_by_side
from workbench.speech.models.hift import ResBlock

LEAST_CHANNELS = 16  # and multiples of it


class Tile(NamedTuple):
    """What one program of the kernel computes, and with what."""

    length: int
    n_out: int
    n_in: int  # channels read at a time
    warps: int
    stages: int


# By the number of products: 1 rounds to TF32, 3 does not. Of five measured on an H200, the best for a single
# row if exact, for 16 rows if not.
TILES = {1: Tile(128, 128, 32, 8, 3), 3: Tile(64, 64, 32, 4, 3)}


class Activation(NamedTuple):
    """x + sin(alpha x)^2 * inverse; both (C,)."""

    alpha: Tensor
    inverse: Tensor


class Packed(NamedTuple):
    """A convolution's weights as the kernel reads them."""

    weight: Tensor  # (1 or 2, groups, kernel, C, C): rounded to TF32, and what that left over
    bias: Tensor  # (groups C,)
    dilation: int


class JoinedBlock(nn.Module):
    """`ResBlock` whose activations and sums are done by the convolutions before them.

    Parameters
    ----------
    block : ResBlock
        Without weight norm, its activations fused.
    products : {1, 3}
        3 is exact, 1 rounds to TF32.
    """

    def __init__(self, block: ResBlock, products: int) -> None:
        super().__init__()
        self.first = block.activations1[0]
        after = [*(_of(snake) for snake in block.activations1[1:]), None]
        self.layers = [
            (packed(conv1, products), _of(snake), packed(conv2, products), following)
            for conv1, snake, conv2, following in zip(
                block.convs1, block.activations2, block.convs2, after, strict=True
            )
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        activated = self.first(x)
        for conv1, snake, conv2, following in self.layers:
            _, activated = convolved(activated, conv1, activation=snake)
            x, activated = convolved(activated, conv2, residual=x, activation=following)
        return x


def prepare(channels: set[int], products: int, device: torch.device) -> None:
    """Compile what `JoinedBlock` calls, for lengths that are multiples of 16 and others."""
    calls = []
    for size in {gcd(each, TILES[products].n_out) for each in channels}:
        conv = nn.Conv1d(size, size, 3, device=device)
        layer, snake = packed(conv, products), Activation(conv.bias.detach(), conv.bias.detach())
        for length in (16, 17):
            x = torch.zeros(1, size, length, device=device)
            calls += [
                partial(convolved, x, layer, activation=snake),
                partial(convolved, x, layer, residual=x, activation=snake),
                partial(convolved, x, layer, residual=x),
            ]
    side_by_side(device, *calls)


def _of(snake: nn.Module) -> Activation:
    return Activation(snake.alpha.flatten(), snake.inverse.flatten())


def packed(conv: nn.Conv1d, products: int) -> Packed:
    """Lay out the weights of a convolution.

    Parameters
    ----------
    conv : Conv1d
        float32, with as many channels C out of a group as into it, a multiple of `LEAST_CHANNELS`.
    products : {1, 3}
        3 is exact, 1 rounds to TF32.
    """
    taps = conv.weight.detach().unflatten(0, (conv.groups, -1)).permute(0, 3, 1, 2).contiguous()
    big = _tf32(taps)
    parts = [big] if products == 1 else [big, _tf32(taps - big)]
    return Packed(torch.stack(parts), conv.bias.detach().contiguous(), conv.dilation[0])


def convolved(
    x: Tensor, conv: Packed, residual: Tensor | None = None, activation: Activation | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Convolve, add, and activate.

    Parameters
    ----------
    x : Tensor (B, groups C, L), float32
        Contiguous.
    conv : Packed
    residual : Tensor (B, groups C, L), optional
        Added to the result.
    activation : Activation, optional

    Returns
    -------
    sum : Tensor (B, groups C, L) or None
        The convolution and the residual. None where there is an activation and no residual, since what
        is between two convolutions is of no use to anybody.
    activated : Tensor (B, groups C, L) or None
        The same behind the activation.
    """
    n, _, length = x.shape
    parts, groups, taps, channels, _ = conv.weight.shape
    products = 2 * parts - 1
    tile = TILES[products]
    n_out, n_in = gcd(channels, tile.n_out), gcd(channels, tile.n_in)
    y = None if residual is None and activation is not None else torch.empty_like(x)
    activated = None if activation is None else torch.empty_like(x)
    # Rows go last, so that one row is computed in the same way in any batch.
    grid = (channels // n_out, triton.cdiv(length, tile.length), n * groups)
    _convolve[grid](
        x,
        conv.weight,
        conv.bias,
        residual,
        *(activation or (None, None)),
        y,
        activated,
        length,
        channels,
        groups,
        taps,
        conv.dilation,
        products,
        tile.length,
        n_out,
        n_in,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y, activated


@triton.jit(do_not_specialize=["groups", "taps", "dilation"])  # one kernel for all shapes: it takes seconds
def _convolve(
    x,
    weight,
    bias,
    residual,
    alpha,
    inverse,
    y,
    activated,
    length,
    channels,
    groups,
    taps,
    dilation,
    products: tl.constexpr,
    block_length: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
):
    out = tl.program_id(0) * block_out + tl.arange(0, block_out)
    at = tl.program_id(1) * block_length + tl.arange(0, block_length)
    row = tl.program_id(2).to(tl.int64) * channels * length
    group = tl.program_id(2) % groups
    size = taps * channels * channels
    weight += group * size
    bias += group * channels
    total = tl.zeros((block_length, block_out), tl.float32)
    # One loop, so that loads run ahead through all of it; taps go inside, for they read nearly the same x.
    for i in range(taps * (channels // block_in)):
        tap, come = i % taps, i // taps * block_in + tl.arange(0, block_in)
        seen = at + (tap - taps + 1) * dilation
        inside = (seen >= 0) & (seen < length)
        part = tl.load(x + row + come[None, :] * length + seen[:, None], mask=inside[:, None], other=0.0)
        place = (tap * channels + out[None, :]) * channels + come[:, None]
        big = rounded(part)
        weight_big = tl.load(weight + place)
        if products == 3:
            weight_small = tl.load(weight + groups * size + place)
            total = tl.dot(part - big, weight_big, total, input_precision="tf32")
            total = tl.dot(big, weight_small, total, input_precision="tf32")
        total = tl.dot(big, weight_big, total, input_precision="tf32")
    total += tl.load(bias + out)[None, :]
    place = row + out[None, :] * length + at[:, None]
    inside = (at < length)[:, None]
    if residual is not None:
        total += tl.load(residual + place, mask=inside, other=0.0)
    if y is not None:
        tl.store(y + place, total, mask=inside)
    if activated is not None:
        wave = tl.sin(total * tl.load(alpha + out)[None, :])
        total += wave * wave * tl.load(inverse + out)[None, :]
        tl.store(activated + place, total, mask=inside)


@triton.jit
def rounded(x):
    """Round to the 11 bits of TF32, which tensor cores would cut off instead."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


def _tf32(x: Tensor) -> Tensor:
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
