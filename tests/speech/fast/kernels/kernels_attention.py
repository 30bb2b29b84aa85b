"""The attention kernel against float64, interpreted on the CPU.

Triton reads TRITON_INTERPRET when it is imported, so `test_kernels.py` runs this file in a process of its own.
"""

import pytest
import torch
from torch.nn import functional as F

from workbench.speech.fast.kernels import attention
from workbench.speech.fast.kernels.attention import Tile, attend, supports_head_width
from workbench.speech.fast.tf32x3 import split_tf32

pytestmark = pytest.mark.usefixtures("no_grad", "loops")


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def expected_attention(qkv):
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def unsplit(y):
    """The numbers that were split: low part plus high part."""
    low, high, again = y.chunk(3, dim=1)
    assert torch.equal(high, again)
    return low + high


def assert_near(found, expected):
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("length", [1, 32, 75])
def test_attention_equals_float64(length, width, monkeypatch):
    monkeypatch.setattr(attention, "TILE", Tile(32, 16, 4, 2))
    qkv = 2 * drawn(2, length, 3, 3, width)
    y = attend(qkv)
    assert_near(unsplit(y), expected_attention(qkv))
    assert torch.equal(split_tf32(unsplit(y)), y)


def test_large_scores_do_not_overflow(monkeypatch):
    """The highest score comes last."""
    monkeypatch.setattr(attention, "TILE", Tile(16, 16, 4, 2))
    qkv = drawn(1, 40, 3, 1, 16)
    qkv[:, :, 0] = qkv[:, :, 0].abs()
    qkv[:, :, 1] = torch.arange(40.0)[:, None, None]
    assert_near(unsplit(attend(qkv)), expected_attention(qkv))


def test_a_row_is_computed_alike_in_any_batch():
    qkv = drawn(2, 75, 3, 2, 16)
    assert torch.equal(attend(qkv).chunk(2)[1], attend(qkv[1:]))


def test_supported_head_widths():
    assert supports_head_width(16) and supports_head_width(64)
    assert not supports_head_width(8) and not supports_head_width(48)
