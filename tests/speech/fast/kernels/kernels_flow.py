"""The flow's kernel, interpreted on the CPU, against the same in torch; `test_kernels.py` runs this file."""

import pytest
import torch

from workbench.speech.fast.dit import _add_and_norm, _rotate
from workbench.speech.fast.kernels.flow import add_and_norm, rotate
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


@pytest.mark.parametrize(("width", "dtype"), [(64, torch.float32), (24, torch.float16)])
def test_rotate_equals_torchs(width, dtype):
    torch.manual_seed(width)
    heads = torch.randn(5, 3, 2, width).to(dtype)  # (N, qkv, heads, W)
    found, right = heads.clone(), heads.clone()
    cos, sin = torch.randn(2, 5, 1, width // 2)
    rotate(found[:, :2, 0], cos, sin)
    _rotate(right[:, :2, 0], cos, sin)
    assert torch.allclose(found, right, atol=1e-6 if dtype == torch.float32 else 4e-3)
    assert torch.equal(found[:, :, 1], heads[:, :, 1]) and torch.equal(found[:, 2], heads[:, 2])
