"""Float32 matrix products on tensor cores: each is computed as three TF32 products, as accurate as float32.

Tensor cores read TF32: of the 24 significant bits of a float32 they use the first 11. So each number x is
split into `high`, its first 11 bits, and `low = x - high`, the rest. Then

    x * w = low_x * high_w + high_x * low_w + high_x * high_w + low_x * low_w

where the last term is below float32's rounding and is left out. The other three are computed as one matrix
product with three times the inner size: `[low_x, high_x, high_x] @ [high_w, low_w, high_w].T`. The small
terms come first, because tensor cores cut off the last bits of a sum, and cut off less while it is small.

Measured on an H200 with 1024 inputs, as the error relative to the largest output: float32 0.9e-6; this
module 2e-6, or 1e-5 with the large term first; TF32 alone 2e-4.

Source: Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
theoretical peak performance", 2022. torch's own memory-efficient attention computes float32 in this way.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.models.numerics import fast_float32

DROPPED_BITS = 13  # float32 has 23 bits of mantissa, TF32 has 10; both have one more that is not stored

# Compute capabilities (A100, H100, B200) whose tensor cores are over three times as fast as their float32.
FAST_TF32_CAPABILITIES = ((8, 0), (9, 0), (10, 0))


class Tf32x3Linear:
    """A float32 linear layer for the tensor cores of a GPU. Its input comes from `split_tf32`.

    Parameters
    ----------
    weight : Tensor (outputs, inputs), float32
        Copied as (outputs, 3 inputs), so it takes three times the memory.
    bias : Tensor (outputs,)
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        high, low = _high_and_low(weight)
        self.weight = torch.cat((high, low, high), dim=1)  # pairs with (low, high, high) of the input
        self.bias = bias

    def __call__(self, parts: Tensor) -> Tensor:
        """Apply the layer: (..., 3 inputs) -> (..., outputs)."""
        with fast_float32():
            return F.linear(parts, self.weight, self.bias)


def split_tf32(x: Tensor) -> Tensor:
    """Lay out float32 numbers as (low, high, high), the input of a `Tf32x3Linear`: (..., n) -> (..., 3 n).

    An infinite number becomes NaN in the product, since its low part is inf - inf.
    """
    high, low = _high_and_low(x)
    is_first = torch.arange(3, device=x.device)[:, None] == 0  # (3, 1)
    # `where` and not `cat`: compiled, `cat` would compute x three times.
    parts = torch.where(is_first, low[..., None, :], high[..., None, :])  # (..., 3, n)
    return parts.flatten(-2)


def tf32x3_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the device computes three TF32 products faster than one in float32."""
    if device.type != "cuda" or dtype != torch.float32:
        return False
    return torch.cuda.get_device_capability(device) in FAST_TF32_CAPABILITIES


def _high_and_low(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split numbers into their first 11 significant bits, cut off and not rounded, and the rest."""
    # The mask -2 ** 13 clears the last 13 bits.
    high = (x.view(torch.int32) & -(1 << DROPPED_BITS)).view(torch.float32)
    return high, x - high
