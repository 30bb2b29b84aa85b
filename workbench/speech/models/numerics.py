"""Context managers for full float32 and for TF32; convolutions as matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute in full float32, the same way every time; usable as a decorator.

    By default torch lets cuDNN compute float32 convolutions in TF32, with 10 bits of mantissa in place of 23:
    mu is then off by 4e-4, the waveform by 2e-3.
    """
    with _tf32(False):
        yield


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let a GPU compute float32 products and convolutions in TF32; on a CPU nothing changes."""
    with _tf32(True):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class MatmulConv1d(nn.Conv1d):
    """A convolution without padding, computed as one matrix product.

    For full float32 with a fixed algorithm (`exact_float32`), cuDNN may choose Fourier transforms, which take
    thousands of kernels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, L) -> (B, C', L - kernel + 1)
        return conv1d_by_matmul(x, self.weight, self.bias)


def conv1d_by_matmul(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (B, C, L) with (C', C, kernel) to (B, C', L - kernel + 1)."""
    windows = x.unfold(2, weight.shape[2], 1).transpose(1, 2).flatten(2)  # (B, L - kernel + 1, C kernel)
    return F.linear(windows, weight.flatten(1), bias).transpose(1, 2)
