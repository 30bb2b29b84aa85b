"""Products of float32 matrices on tensor cores, which read the first eleven of a number's 24 bits (TF32).

Each number is the sum of a high part of eleven bits and a low one of what is left. A product of such sums is
a sum of products, of which that of both low parts is below float32's rounding. The other three are computed
as one, of three times the inner size, the small ones first: tensor cores cut off what they add, and cut the
less the smaller the sum is.

Measured on an H200 with 1024 inputs, in parts of the largest output: float32 is off by 0.9e-6, this by 2e-6,
or by 1e-5 if the large part comes first; TF32 alone by 2e-4.

Source: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
theoretical peak performance", 2022. torch's own memory-efficient attention computes float32 so.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.models.numerics import fast_float32

UNREAD = 13  # last bits of float32's mantissa

# Compute capabilities (A100, H100, B200) whose tensor cores are over three times as fast as their float32.
FAST_CORES = ((8, 0), (9, 0), (10, 0))


class SplitLinear:
    """A float32 linear layer for a GPU's tensor cores.

    Parameters
    ----------
    weight : Tensor (outputs, inputs)
        Laid out anew, in three times its memory.
    bias : Tensor (outputs,)
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        high, low = _halves(weight)
        self.weight, self.bias = torch.cat((high, low, high), dim=1), bias

    def __call__(self, parts: Tensor) -> Tensor:
        """Apply the layer to what `split` made of its input."""
        with fast_float32():
            return F.linear(parts, self.weight, self.bias)


def split(x: Tensor) -> Tensor:
    """Lay the parts of float32 numbers side by side, for a `SplitLinear`: (..., n) -> (..., 3 n).

    An infinite number becomes NaN in the product: its low part is inf - inf.
    """
    high, low = (part[..., None, :] for part in _halves(x))
    first = torch.arange(3, device=x.device)[:, None] == 0
    return torch.where(first, low, high).flatten(-2)  # not `cat`: compiled, that computes x three times over


def splitting_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device computes such products faster than float32's own."""
    if device.type != "cuda" or dtype != torch.float32:
        return False
    return torch.cuda.get_device_capability(device) in FAST_CORES


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = (x.view(torch.int32) & -(1 << UNREAD)).view(torch.float32)
    return high, x - high
