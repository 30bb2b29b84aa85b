"""The attention kernel against float64, one program after the other on the CPU.

Triton reads TRITON_INTERPRET when it is imported, so `test_kernels.py` runs this file in a process of its own.
"""

import pytest
import torch
from torch.nn import functional as F

from workbench.speech.fast.kernels import attention as float32_attention
from workbench.speech.fast.kernels.attention import Tile, attended, suits
from workbench.speech.fast.tf32x3 import split

pytestmark = pytest.mark.usefixtures("no_grad", "loops")


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def right(qkv):
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def whole(y):
    """What was split: the low part and a high one."""
    low, high, again = y.chunk(3, dim=1)
    assert torch.equal(high, again)
    return low + high


def near(found, expected):
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("length", [1, 32, 75])
def test_every_frame_looks_at_every_frame(length, width, monkeypatch):
    monkeypatch.setattr(float32_attention, "TILE", Tile(32, 16, 4, 2))
    qkv = 2 * drawn(2, length, 3, 3, width)
    y = attended(qkv)
    near(whole(y), right(qkv))
    assert torch.equal(split(whole(y)), y)


def test_scores_of_any_size(monkeypatch):
    """The highest comes last, and no power may overflow."""
    monkeypatch.setattr(float32_attention, "TILE", Tile(16, 16, 4, 2))
    qkv = drawn(1, 40, 3, 1, 16)
    qkv[:, :, 0] = qkv[:, :, 0].abs()
    qkv[:, :, 1] = torch.arange(40.0)[:, None, None]
    near(whole(attended(qkv)), right(qkv))


def test_a_row_is_the_same_in_any_batch():
    qkv = drawn(2, 75, 3, 2, 16)
    assert torch.equal(attended(qkv).chunk(2)[1], attended(qkv[1:]))


def test_what_suits():
    assert suits(16) and suits(64)
    assert not suits(8) and not suits(48)
