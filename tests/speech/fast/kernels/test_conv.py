"""The convolution kernel against float64: on a GPU, or interpreted where `test_kernels.py` runs this file."""

import copy
import os

import pytest
import torch
from torch.nn import functional as F

from tests.speech.fast.common import rebuilt_hift
from workbench.speech.fast.hift import _replace_layers

conv_kernel = pytest.importorskip(
    "workbench.speech.fast.kernels.conv", reason="no Triton", exc_type=ImportError
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
runs = pytest.mark.skipif(DEVICE.type == "cpu" and not INTERPRETED, reason="needs Triton's interpreter")
pytestmark = pytest.mark.usefixtures("no_grad", "loops")

LENGTH = 135  # odd, and more than one program computes
MAX_ERROR = {1: 1e-3, 3: 2e-6, "half": 1e-2}  # by the number of products, relative to the largest value


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def assert_near(found, right, products):
    assert (found.double() - right).abs().max() <= MAX_ERROR[products] * right.abs().max()


def layer(weight, bias, dilation=1, groups=1):
    """A convolution with these weights."""
    n_out, n_in, kernel = weight.shape
    conv = torch.nn.Conv1d(groups * n_in, n_out, kernel, dilation=dilation, groups=groups).to(DEVICE)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


@runs
@pytest.mark.parametrize("dilation", [1, 3, 5])
@pytest.mark.parametrize("kernel", [3, 7, 11])
def test_kernel_equals_conv1d_at_all_sizes(kernel, dilation):
    channels, products = {3: (48, 1), 7: (32, 3), 11: (16, 3)}[kernel]
    x, residual = drawn(2, channels, LENGTH), drawn(2, channels, LENGTH + 1)[..., 1:].contiguous()
    weight, bias, alpha = drawn(channels, channels, kernel), drawn(channels), 1 + drawn(channels) ** 2
    conv = conv_kernel.pack_conv(layer(weight, bias, dilation), products)
    snake = conv_kernel.SnakeWeights(alpha, 1 / (alpha + 1e-9))
    padded = F.pad(x.double(), ((kernel - 1) * dilation, 0))
    right = F.conv1d(padded, weight.double(), bias.double(), dilation=dilation)

    total, activated = conv_kernel.convolve(x, conv, residual, snake)
    assert_near(total, right + residual, products)
    assert_near(activated, total + (total * alpha[:, None]).sin() ** 2 * snake.inverse[:, None], 3)
    none, activated = conv_kernel.convolve(x, conv, activation=snake)
    assert none is None
    # A sine of a large argument shows every error of the sum, so the sum has its own test.
    between = total - residual
    assert_near(activated, between + (between * alpha[:, None]).sin() ** 2 * snake.inverse[:, None], products)


@runs
def test_groups_read_their_own_channels():
    x, weight, bias = drawn(2, 64, LENGTH), drawn(64, 16, 5), drawn(64)
    found, _ = conv_kernel.convolve(x, conv_kernel.pack_conv(layer(weight, bias, groups=4), 3))
    assert_near(found, F.conv1d(F.pad(x.double(), (4, 0)), weight.double(), bias.double(), groups=4), 3)


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter has no bfloat16
def test_channels_may_come_last(dtype):
    """As in the flow, where each group of a convolution has channels of its own."""
    x, conv = drawn(2, LENGTH, 64).to(dtype), layer(drawn(64, 16, 5), drawn(64), groups=4).to(dtype)
    packed = conv_kernel.pack_conv(conv, 3)
    found, _ = conv_kernel.convolve(x.transpose(1, 2), packed)
    assert found.dtype == dtype and found.transpose(1, 2).is_contiguous()
    right = conv.double()(F.pad(x.double().transpose(1, 2), (4, 0)))
    assert_near(found, right, 3 if dtype == torch.float32 else "half")
    contiguous, _ = conv_kernel.convolve(x.transpose(1, 2).contiguous(), packed)
    assert torch.equal(contiguous, found)


@runs
def test_a_row_is_computed_alike_in_any_batch():
    x, conv = drawn(2, 32, LENGTH), conv_kernel.pack_conv(layer(drawn(32, 32, 3), drawn(32)), 3)
    batch, none = conv_kernel.convolve(x, conv)
    assert none is None
    for row, alone in zip(batch, x, strict=True):
        assert torch.equal(conv_kernel.convolve(alone[None].contiguous(), conv)[0][0], row)


@runs
def test_fused_block_equals_the_eager_one(hift_model):
    """The parity file's blocks of 32 and 16 channels."""
    own = rebuilt_hift(hift_model).to(DEVICE)
    _replace_layers(own)
    for i in (0, 3):
        x = drawn(2, hift_model.resblocks[i].convs1[0].in_channels, LENGTH)
        right = copy.deepcopy(hift_model.resblocks[i]).double()(x.double().cpu()).to(DEVICE)
        assert_near(conv_kernel.FusedResBlock(own.resblocks[i], 3)(x), right, 3)
