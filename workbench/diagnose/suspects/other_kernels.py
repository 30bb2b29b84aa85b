"""Add in another order, as the kernels of other programs do.

Rounding errors of two programs differ from each other where sums are added in different orders. In float32
that is far below every fault. In half precision it is not: after some layers two right programs differ by
nearly as much as each differs from float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.diagnose.suspects.catalogue.faults import Fault
from workbench.diagnose.suspects.catalogue.patches import Patch


def _added_in_order(name: str, order: Callable[[int], Tensor]) -> Fault:
    """Return a stand-in for other kernels: the linear layers and convolutions add their inputs in an order.

    It is no fault, but is applied like one. `order` returns the permutation of so many inputs.
    """

    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias, order(x.shape[-1]).to(x.device))

    def convolve(
        self: nn.Conv1d, x: Tensor, weight: Tensor, bias: Tensor | None, original=nn.Conv1d._conv_forward
    ) -> Tensor:
        if self.groups > 1:
            return original(self, x, weight, bias)
        places = order(x.shape[1]).to(x.device)
        return original(self, x[:, places], weight[:, places], bias)

    patches = (Patch(nn.Linear, "forward", linear), Patch(nn.Conv1d, "_conv_forward", convolve))
    return Fault(name, ("in/prompt_mel",), "sums are added in another order", "every port", patches)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor) -> Tensor:
    # As every kernel, in float32 at least, and rounded once.
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if bias is None else bias.to(wide)
    return F.linear(x[..., places].to(wide), weight[:, places].to(wide), bias).to(x.dtype)


def _even_then_odd(count: int) -> Tensor:
    places = torch.arange(count)
    return torch.cat((places[::2], places[1::2]))


# Two orders tell how far right programs lie from each other.
OTHER_SUMS = (
    _added_in_order("reversed", lambda count: torch.arange(count).flip(0)),
    _added_in_order("even-then-odd", _even_then_odd),
)
# The self-test's foreign programs have an order of their own.
FOREIGN_SUMS = _added_in_order("rolled", lambda count: torch.arange(count).roll(count // 3))
