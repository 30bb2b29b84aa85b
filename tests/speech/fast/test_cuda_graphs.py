"""The building blocks of the fast paths on a CPU: graphs that are calls, fused layers, split products."""

import pytest
import torch

from tests.speech.fast.common import CPU_GRAPHS, assert_near
from workbench.speech.fast.fuse import fuse_linear
from workbench.speech.fast.tf32x3 import Tf32x3Linear, split_tf32, tf32x3_is_faster
from workbench.speech.models.numerics import MatmulConv1d, exact_float32, fast_float32

pytestmark = pytest.mark.usefixtures("no_grad")


def test_a_graph_without_a_gpu_is_a_call():
    x = torch.zeros(3)
    graph = CPU_GRAPHS.capture(lambda: x.add_(1))
    assert x.sum() == 0 and graph().sum() == 3 and graph().sum() == 6


def test_float32_settings_are_restored():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with fast_float32():
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        with exact_float32():
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_fused_layers_go_on_working_without_a_second_copy():
    layers = [torch.nn.Linear(5, n) for n in (3, 2, 4)]
    x = torch.randn(6, 5)
    before = [layer(x) for layer in layers]
    weight, bias = fuse_linear(*layers)
    assert torch.equal(torch.cat([layer(x) for layer in layers], dim=1), torch.cat(before, dim=1))
    assert_near(torch.nn.functional.linear(x, weight, bias), torch.cat(before, dim=1), 1e-6)
    assert layers[1].weight.data_ptr() == weight[3].data_ptr()


def test_convolution_by_matrix_product_equals_conv1d():
    conv, x = MatmulConv1d(5, 7, 4).double(), torch.randn(2, 5, 9, dtype=torch.float64)
    assert_near(conv(x), torch.nn.functional.conv1d(x, conv.weight, conv.bias), 1e-12)


# Float32 products as three in TF32


def significant_bits(x):
    """Significant bits of each number's mantissa."""
    mantissa = (x.double().frexp().mantissa * 2**24).long()
    return 24 - torch.stack([mantissa % 2**n == 0 for n in range(25)]).sum(0) + 1


def test_split_products_are_as_accurate_as_float32():
    x, weight, bias = torch.randn(9, 64), torch.randn(33, 64), torch.randn(33)
    x[0], x[1] = 1e30, 1e-30
    parts, linear = split_tf32(x), Tf32x3Linear(weight, bias)
    low, high, again = parts.chunk(3, dim=1)
    assert torch.equal(low + high, x) and torch.equal(high, again)
    for part in (parts, linear.weight):  # eleven bits, and the rest of 24
        assert all((bits <= 13).all() for bits in map(significant_bits, part.chunk(3, dim=1)))
    assert significant_bits(high).max() == 11
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    size = x.abs().double() @ weight.abs().double().T + bias.abs()
    assert ((linear(parts).double() - expected).abs() / size).max() < 1e-6


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_split_products_pass_on_overflows(value):
    x = torch.randn(2, 8)
    x[1, 3] = value
    found = Tf32x3Linear(torch.randn(5, 8), torch.zeros(5))(split_tf32(x))
    assert found[0].isfinite().all() and not found[1].isfinite().any()


def test_split_products_are_faster_on_some_gpus_alone(monkeypatch):
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert tf32x3_is_faster(gpu, torch.float32)
    assert not any(tf32x3_is_faster(gpu, dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16))
    assert not tf32x3_is_faster(torch.device("cpu"), torch.float32)
    capability = (8, 9)  # a consumer's GPU: its TF32 is no faster than its float32
    assert not tf32x3_is_faster(gpu, torch.float32)
