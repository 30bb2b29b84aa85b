"""Causal convolutions on tensor cores, in float32, TF32 or half precision: one Triton kernel, for GPUs only.

cuDNN computes float32 convolutions without tensor cores, at half the speed that the arithmetic allows, and
transposes the data before and after many of them. This kernel computes each float32 product as one TF32
product, or as three. With three, each float32 number is the sum of a big and a small TF32 number, and of the
four products of such sums all but small * small are computed. The result is accurate to all but the last bits
of float32; see `tf32x3`.

For convolutions in groups cuDNN runs its kernel once for each group, and transposes the data before and
after each. The flow has convolutions in 16 groups of 64 channels. In bfloat16, on an H200, cuDNN takes 116 us
for one of them on 2 rows of 256 frames, and this kernel 11 us.

Shape letters: `B` batch, `G` groups, `C` channels of a group, `L` length.
"""

from functools import partial
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from workbench.speech.fast.cuda_graphs import compile_in_parallel
from workbench.speech.models.hift import ResBlock

MIN_CHANNELS = 16  # C must be a multiple of this, the smallest matrix that Triton multiplies


class Tile(NamedTuple):
    """The block sizes of one program of the kernel, and its resources."""

    length: int  # positions that the program computes
    n_out: int  # output channels that it computes
    n_in: int  # input channels that it loads at a time
    warps: int
    stages: int  # stages of Triton's pipeline, in which loads run ahead of the arithmetic


# Tiles measured on an H200. A small tile makes more programs of a row, and a large one reads less: float32 of
# 1 product takes the large one where a row then still has `MIN_PROGRAMS`. Both sum in the same order.
SMALL_TILE = Tile(length=64, n_out=64, n_in=32, warps=4, stages=3)
LARGE_TILE = Tile(length=128, n_out=128, n_in=32, warps=8, stages=3)
HALF_TILE = Tile(length=64, n_out=64, n_in=64, warps=4, stages=4)  # in half precision
MIN_PROGRAMS = 64


class SnakeWeights(NamedTuple):
    """Weights of the activation x + sin(alpha x)^2 * inverse, each (C,)."""

    alpha: Tensor
    inverse: Tensor  # 1 / alpha


class PackedConv(NamedTuple):
    """A convolution with its weights laid out for the kernel."""

    weight: Tensor  # (1 or 2, G, kernel, C out, C in): float32 is rounded to TF32; with 2, then the remainder
    bias: Tensor  # (G C,)
    dilation: int


class FusedResBlock(nn.Module):
    """`ResBlock` in which each convolution also computes the sum and the activation that follow it.

    Parameters
    ----------
    block : ResBlock
        A block without weight norm, whose activations have `alpha` and `inverse`.
    products : {1, 3}
        3 is exact, 1 rounds to TF32.
    """

    def __init__(self, block: ResBlock, products: int) -> None:
        super().__init__()
        self.first_activation = block.activations1[0]
        # Each pair of convolutions ends with the first activation of the next pair; the last pair has none.
        next_activations: list[SnakeWeights | None] = [_weights_of(a) for a in block.activations1[1:]]
        next_activations.append(None)
        self.pairs = []
        for i, next_activation in enumerate(next_activations):
            conv1 = pack_conv(block.convs1[i], products)
            conv2 = pack_conv(block.convs2[i], products)
            self.pairs.append((conv1, _weights_of(block.activations2[i]), conv2, next_activation))

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        activated = self.first_activation(x)
        for conv1, activation, conv2, next_activation in self.pairs:
            _, activated = convolve(activated, conv1, activation=activation)
            x, activated = convolve(activated, conv2, residual=x, activation=next_activation)
        return x


def compile_for(channels: set[int], products: int, device: torch.device) -> None:
    """Compile all variants of the kernel that `FusedResBlock` uses with these numbers of channels."""
    calls = []
    # Compiled versions differ in the block sizes, which `convolve` finds in this way, and in whether the
    # length is a multiple of 16.
    lengths = [16, 17]
    if products == 1:
        lengths += [LARGE_TILE.length * MIN_PROGRAMS, LARGE_TILE.length * MIN_PROGRAMS + 1]
    for size in {gcd(each, LARGE_TILE.n_out) for each in channels}:
        conv = nn.Conv1d(size, size, 3, device=device)
        packed = pack_conv(conv, products)
        activation = SnakeWeights(conv.bias.detach(), conv.bias.detach())  # any two tensors (C,)
        for length in lengths:
            x = torch.zeros(1, size, length, device=device)
            calls += [
                partial(convolve, x, packed, activation=activation),
                partial(convolve, x, packed, residual=x, activation=activation),
                partial(convolve, x, packed, residual=x),
            ]
    compile_in_parallel(device, *calls)


def _weights_of(activation: nn.Module) -> SnakeWeights:
    return SnakeWeights(activation.alpha.flatten(), activation.inverse.flatten())


def pack_conv(conv: nn.Conv1d, products: int) -> PackedConv:
    """Lay out the weights of a convolution for the kernel.

    Parameters
    ----------
    conv : Conv1d
        In float32 or half precision. Each group has C input and C output channels, a multiple of
        `MIN_CHANNELS`.
    products : {1, 3}
        Of float32 numbers: 3 is exact, 1 rounds to TF32. In half precision 1 is exact.
    """
    # (G C out, C in, kernel) -> (G, kernel, C out, C in)
    weight = conv.weight.detach().unflatten(0, (conv.groups, -1)).permute(0, 3, 1, 2).contiguous()
    parts = [weight]
    if weight.dtype == torch.float32:
        parts = [_round_to_tf32(weight)]
        if products == 3:
            parts.append(_round_to_tf32(weight - parts[0]))
    return PackedConv(torch.stack(parts), conv.bias.detach().contiguous(), conv.dilation[0])


def convolve(
    x: Tensor, conv: PackedConv, residual: Tensor | None = None, activation: SnakeWeights | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Compute a causal convolution, add a residual and apply an activation.

    Parameters
    ----------
    x : Tensor (B, G C, L)
        Of the type of the weights. Contiguous, or the transposed view of a contiguous (B, L, G C).
    conv : PackedConv
    residual : Tensor (B, G C, L), optional
        Added to the result; in the layout of x.
    activation : SnakeWeights, optional

    Returns
    -------
    sum : Tensor (B, G C, L) or None
        Convolution plus residual. None with an activation and without a residual: between the two
        convolutions of a pair only the activated tensor is needed.
    activated : Tensor (B, G C, L) or None
        The sum after the activation; None without one. Both are in the layout of x.
    """
    batch, _, length = x.shape
    parts, groups, taps, channels, _ = conv.weight.shape
    products = 1 if parts == 1 else 3
    tile = _choose_tile(x, channels, products)
    # The tile's sizes are powers of two; smaller ones are used where they do not divide C.
    block_out, block_in = gcd(channels, tile.n_out), gcd(channels, tile.n_in)
    alpha, inverse = activation or (None, None)
    y = None if residual is None and activation is not None else torch.empty_like(x)
    activated = None if activation is None else torch.empty_like(x)
    # The batch is the last dimension of the grid, so that a row is computed in the same way in any batch.
    grid = (channels // block_out, triton.cdiv(length, tile.length), batch * groups)
    _convolve[grid](
        x,
        conv.weight,
        conv.bias,
        residual,
        alpha,
        inverse,
        y,
        activated,
        length,
        x.stride(1),
        x.stride(2),
        channels,
        groups,
        taps,
        conv.dilation,
        products,
        tile.length,
        block_out,
        block_in,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y, activated


def _choose_tile(x: Tensor, channels: int, products: int) -> Tile:
    """Choose a tile by type and sizes. The batch has no say, so that a row is computed alike in any batch."""
    if x.dtype != torch.float32:
        return HALF_TILE
    programs = channels // gcd(channels, LARGE_TILE.n_out) * triton.cdiv(x.shape[2], LARGE_TILE.length)
    return LARGE_TILE if products == 1 and programs >= MIN_PROGRAMS else SMALL_TILE


# Compiling takes seconds, so Triton compiles one kernel for all values of these three arguments.
@triton.jit(do_not_specialize=["groups", "taps", "dilation"])
def _convolve(
    x,  # (B, G C, L)
    weight,  # (1 or 2, G, taps, C out, C in)
    bias,  # (G C,)
    residual,  # (B, G C, L) or None
    alpha,  # (C,) or None
    inverse,  # (C,) or None
    y,  # (B, G C, L) or None
    activated,  # (B, G C, L) or None
    length,  # L
    channel_stride,  # distance from channel to channel in x, residual, y and activated
    position_stride,  # distance from position to position
    channels,  # C
    groups,  # G
    taps,  # kernel size
    dilation,
    products: tl.constexpr,  # 1 or 3
    block_length: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
):
    """Compute `convolve` for a block of positions and channels of one group and row in each program."""
    out = tl.program_id(0) * block_out + tl.arange(0, block_out)
    position = tl.program_id(1) * block_length + tl.arange(0, block_length)
    # The third index of the grid counts the groups of all rows.
    row, group = tl.program_id(2) // groups, tl.program_id(2) % groups
    row_offset = row.to(tl.int64) * groups * channels * length
    group_offset = row_offset + group * channels * channel_stride
    group_weights = taps * channels * channels
    weight += group * group_weights
    bias += group * channels
    acc = tl.zeros((block_length, block_out), tl.float32)
    # A single loop runs over taps and blocks of input channels, so that Triton's pipeline of loads is never
    # interrupted. Taps change fastest, because neighbouring taps read nearly the same part of x.
    for i in range(taps * (channels // block_in)):
        tap, channel = i % taps, i // taps * block_in + tl.arange(0, block_in)

        # Load inputs (block_length, block_in). The last tap reads the position itself, the others the past.
        source = position + (tap - taps + 1) * dilation
        source_mask = (source >= 0) & (source < length)
        x_ptrs = x + group_offset + channel[None, :] * channel_stride + source[:, None] * position_stride
        x_block = tl.load(x_ptrs, mask=source_mask[:, None], other=0.0)
        weight_offset = (tap * channels + out[None, :]) * channels + channel[:, None]

        # Multiply by the weights (block_in, block_out). Small products first: see `tf32x3`.
        x_big = round_to_tf32(x_block) if x_block.dtype == tl.float32 else x_block
        weight_big = tl.load(weight + weight_offset)
        if products == 3:
            weight_small = tl.load(weight + groups * group_weights + weight_offset)
            acc = tl.dot(x_block - x_big, weight_big, acc, input_precision="tf32")
            acc = tl.dot(x_big, weight_small, acc, input_precision="tf32")
        acc = tl.dot(x_big, weight_big, acc, input_precision="tf32")

    # Apply bias, residual and activation. Each result is stored only if the caller wants it.
    acc += tl.load(bias + out).to(tl.float32)[None, :]
    y_offset = group_offset + out[None, :] * channel_stride + position[:, None] * position_stride
    y_mask = (position < length)[:, None]
    if residual is not None:
        acc += tl.load(residual + y_offset, mask=y_mask, other=0.0)
    if y is not None:
        tl.store(y + y_offset, acc, mask=y_mask)
    if activated is not None:
        sine = tl.sin(acc * tl.load(alpha + out)[None, :])
        acc += sine * sine * tl.load(inverse + out)[None, :]
        tl.store(activated + y_offset, acc, mask=y_mask)


# Rounding to TF32 clears the last 13 of float32's 23 bits of mantissa (-0x2000 is the mask that keeps the
# rest), after adding half of the last bit that stays, 0x1000. Tensor cores alone would cut the bits off.


@triton.jit
def round_to_tf32(x):
    """Round float32 numbers to TF32."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


def _round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 numbers to TF32, in torch."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
