"""The flow's kernel, interpreted on the CPU, against the same in torch; `test_kernels.py` runs this file."""

import pytest
import torch

from workbench.speech.fast.dit import _add_and_norm
from workbench.speech.fast.kernels.flow import add_and_norm
from workbench.speech.fast.tf32x3 import split_tf32

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("width", [64, 96])
def test_add_and_norm_equals_torchs(width):
    torch.manual_seed(width)
    h, y = torch.randn(5, width), torch.randn(5, width)
    gate, shift, scale = (torch.randn(1, width) for _ in range(3))
    state, parts = add_and_norm(h, gate, y, shift, scale)
    right, expected = _add_and_norm(h, gate, y, shift, scale, split_tf32)
    assert torch.allclose(state, right, atol=1e-6)
    low, high, again = parts.chunk(3, dim=1)
    assert torch.equal(high, again) and torch.equal(split_tf32(high + low), parts)
    z = expected.chunk(3, dim=1)
    assert torch.allclose(high + low, z[0] + z[1], atol=1e-5)
