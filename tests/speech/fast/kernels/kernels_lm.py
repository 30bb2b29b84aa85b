"""The LM's kernels, interpreted on the CPU, against the same layers in torch.

Triton reads TRITON_INTERPRET when it is imported, so `test_kernels.py` runs this file in a process of its own.
"""

import pytest
import torch
from torch.nn import functional as F

from workbench.speech.config import LMConfig
from workbench.speech.fast.kernels import lm as lm_kernels
from workbench.speech.fast.kernels.projection import project
from workbench.speech.fast.lm_torch import TorchDecodeStep, fuse_layers
from workbench.speech.models.lm import LM, KVCache, RMSNorm

pytestmark = pytest.mark.usefixtures("no_grad")
CONFIG = LMConfig(
    speech_token_size=90,
    n_special=20,
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=150,
    vocab_size=50,
)


@pytest.fixture
def lm():
    torch.manual_seed(0)
    return LM(CONFIG).eval().requires_grad_(False)


def assert_near(found, right):
    assert (found - right).abs().max() < 2e-6 * right.abs().max()


@pytest.mark.parametrize("rows", [1, 17])
def test_projection_with_norm_bias_residual_and_gate(rows):
    torch.manual_seed(rows)
    x, add = torch.randn(rows, 96), torch.randn(rows, 70)
    weight, bias = torch.randn(70, 96), torch.randn(70)
    norm = RMSNorm(96, 1e-6)
    norm.weight.uniform_()
    assert_near(
        project(x, weight, norm=norm.weight, eps=norm.eps, bias=bias),
        F.linear(norm(x), weight, bias),
    )
    assert_near(project(x, weight, add=add), F.linear(x, weight) + add)
    gate, up = F.linear(norm(x), weight).chunk(2, dim=1)
    assert_near(project(x, weight, norm=norm.weight, eps=norm.eps, gated=True), F.silu(gate) * up)


@pytest.mark.parametrize("rows", [1, 17])
def test_projection_of_many_inputs(rows):
    """Of several rows eight warps sum the products; the inputs do not fill the last block."""
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 2100), torch.randn(20, 2100)
    assert_near(project(x, weight), F.linear(x.double(), weight.double()).float())


@pytest.mark.parametrize("rows", [1, 3])
def test_decode_steps_equal_torchs(lm, rows, monkeypatch):
    """Two tokens after prompts of several lengths."""
    monkeypatch.setitem(lm_kernels.CACHE_BLOCK, torch.float32, 16)
    monkeypatch.setattr(lm_kernels, "SHARE_BLOCK", 4)
    layers = fuse_layers(lm)
    kernels, steps = lm_kernels.TritonDecodeStep(lm, layers, "tf32x3"), TorchDecodeStep(lm, layers)
    c, positions = CONFIG, 64
    ours = torch.zeros(c.num_hidden_layers, 2, rows, c.num_key_value_heads, positions, c.head_dim)
    before = KVCache(c.num_hidden_layers)
    lm.qwen(torch.randn(rows, 40, c.hidden_size), before)
    for layer, pair in enumerate(zip(before.keys, before.values, strict=True)):
        ours[layer, :, :, :, :40] = torch.stack(pair)
    theirs, (cos, sin) = ours.clone(), lm.qwen.rope(0, positions, ours)
    position = torch.tensor([40, 33, 1][:rows])
    for _ in range(2):
        x = torch.randn(rows, c.hidden_size)
        assert_near(
            kernels.logits(x, ours, cos, sin, position, positions),
            steps.logits(x, theirs, cos, sin, position, positions),
        )
        assert_near(ours, theirs)
        position += 1
