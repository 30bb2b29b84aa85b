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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter has no bfloat16
@pytest.mark.parametrize("chunk", [None, 20])
def test_hidden_frames_have_no_influence(chunk, dtype, monkeypatch):
    """Two utterances of 75 and 33 frames; `chunk` as in streaming."""
    monkeypatch.setattr(attention, "TILE", Tile(32, 16, 4, 2))
    monkeypatch.setattr(attention, "HALF_TILE", Tile(16, 16, 4, 2))
    qkv = drawn(2, 75, 3, 2, 16).to(dtype)
    n_visible = torch.tensor([[75], [33]], dtype=torch.int32)
    if chunk:
        n_visible = n_visible.minimum((torch.arange(75) // chunk + 1) * chunk).int()
    is_visible = (torch.arange(75) < n_visible[..., None]).expand(-1, 75, -1)
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    right = F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible[:, None])
    qkv[1, 33:, 1:] = 99.0
    y = attend(qkv, n_visible)
    if dtype == torch.float32:
        y = unsplit(y)
    found = y.double().unflatten(0, (2, 75))
    right = right.transpose(1, 2).flatten(2)
    for row, length in enumerate((75, 33)):
        error = (found - right)[row, :length].abs().max()
        assert error <= (2e-6 if dtype == torch.float32 else 0.01) * right.abs().max()


def test_half_precision_is_near_float64():
    qkv = drawn(2, 75, 3, 3, 16).half()
    assert (attend(qkv) - expected_attention(qkv)).abs().max() <= 0.01 * expected_attention(qkv).abs().max()


def test_a_row_is_computed_alike_in_any_batch():
    qkv = drawn(2, 75, 3, 2, 16)
    assert torch.equal(attend(qkv).chunk(2)[1], attend(qkv[1:]))


def test_supported_head_widths():
    assert supports_head_width(16) and supports_head_width(64)
    assert not supports_head_width(8) and not supports_head_width(48)
