"""Convolutions as matrix products, where cuDNN has no good way for them."""

from torch import Tensor, nn
from torch.nn import functional as F


class ProductConv1d(nn.Conv1d):
    """A convolution without padding, computed as one product.

    In full float32 and always the same way, cuDNN may take Fourier transforms for it: thousands of kernels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, L) -> (B, C', L - kernel + 1)
        return convolved_by_product(x, self.weight, self.bias)


def convolved_by_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (B, C, L) with (C', C, kernel) to (B, C', L - kernel + 1)."""
    windows = x.unfold(2, weight.shape[2], 1).transpose(1, 2).flatten(2)
    return F.linear(windows, weight.flatten(1), bias).transpose(1, 2)
