"""The flow's kernel, one program after the other on the CPU; `test_kernels.py` runs this file."""

import pytest
import torch

from workbench.speech.fast.flow import _pass_on
from workbench.speech.fast.kernels.flow import pass_on
from workbench.speech.fast.tf32x3 import split

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("width", [64, 96])
def test_what_stands_between_two_products(width):
    torch.manual_seed(width)
    h, y = torch.randn(5, width), torch.randn(5, width)
    gate, shift, scale = (torch.randn(1, width) for _ in range(3))
    state, parts = pass_on(h, gate, y, shift, scale)
    right, expected = _pass_on(h, gate, y, shift, scale, split)
    assert torch.allclose(state, right, atol=1e-6)
    low, high, again = parts.chunk(3, dim=1)
    assert torch.equal(high, again) and torch.equal(split(high + low), parts)
    z = expected.chunk(3, dim=1)
    assert torch.allclose(high + low, z[0] + z[1], atol=1e-5)
