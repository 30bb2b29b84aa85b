"""What the fast paths record as CUDA graphs can be captured, checked with fake GPU tensors and without a GPU.

Inside of a capture no operation may wait for the device, read memory of the host or depend on values.
"""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.speech.config import DiTConfig, FlowConfig, HiFTConfig, LMConfig, Options
from workbench.speech.fast import dit as fast_dit
from workbench.speech.fast import hift as fast_hift
from workbench.speech.fast import lm as fast_lm
from workbench.speech.fast import lm_prompt, lm_torch
from workbench.speech.fast import sampling as fast_sampling
from workbench.speech.fast.cuda_graphs import CudaGraphPool
from workbench.speech.fast.dit import VelocityGraph
from workbench.speech.fast.flow import FastFlow
from workbench.speech.fast.hift import FastHiFT, _VocoderGraphs
from workbench.speech.fast.lm import FastLM, _BatchDecoder
from workbench.speech.models.flow import Flow
from workbench.speech.models.hift import HiFT
from workbench.speech.models.lm import LM
from workbench.speech.models.numerics import exact_float32

pytestmark = pytest.mark.usefixtures("no_grad")

GPU = torch.device("cuda")
WAITING = ("local_scalar", "item", "nonzero", "unique", "lift")


class Watch(TorchDispatchMode):
    """Counts operations, and names those that a capture does not allow."""

    def __init__(self):
        super().__init__()
        self.count, self.forbidden = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.count += 1
        name, devices = str(func), set()
        torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda x: devices.add(x.device.type), (args, kwargs, made)
        )
        if any(word in name for word in WAITING) or "cpu" in devices:
            self.forbidden.add(name)
        return made


class WatchedGraphs(CudaGraphPool):
    """Calls functions under watch in place of capturing them."""

    def __init__(self):
        self.device, self.arithmetic, self.on_compile = GPU, exact_float32, nullcontext
        self.watch = Watch()

    def compute_mode(self, arithmetic=None):
        return nullcontext()

    def capture(self, function, arithmetic=None):
        with self.watch:
            function()
        return function


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)  # fake tensors have none
    for module in (lm_torch, lm_prompt, fast_sampling, fast_dit, fast_hift):
        monkeypatch.setattr(module, "compiled", lambda function, device, dynamic: function)
    for module, name in (
        (fast_lm, "can_compile_tf32"),
        (fast_dit, "can_compile"),
        (fast_dit, "can_compile_tf32"),
    ):
        monkeypatch.setattr(module, name, lambda device: False)  # kernels need a real GPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield WatchedGraphs()


def built(model, config):
    with GPU:
        return model(config).eval().requires_grad_(False)


def assert_capturable(graphs, min_operations):
    assert graphs.watch.count > min_operations and not graphs.watch.forbidden


RULES = ({}, {"repetition_fallback": "top_k", "silent_tokens_repeat": False}, {"win_size": 0})


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_decoding_a_token_can_be_captured(graphs, rule):
    lm = FastLM.consume(built(LM, LMConfig(num_hidden_layers=2, vocab_size=500)), (1, 2), graphs)
    _BatchDecoder(lm, 2, 1024, Options(**rule))
    assert_capturable(graphs, 100)


def test_reading_a_prompt_can_be_captured(graphs, monkeypatch):
    """The steps around the graph keep their tensors on the device."""
    monkeypatch.setattr(fast_sampling, "_fill_exponential", lambda row, generator: None)
    lm = FastLM.consume(built(LM, LMConfig(num_hidden_layers=2, vocab_size=500)), (1, 2), graphs)
    decoder = _BatchDecoder(lm, 2, 1024, Options())
    prompts = [torch.zeros(n, 896, device=GPU) for n in (7, 9)]
    decoder.begin(prompts, [1, 0], [(3, 40), (4, 50)], [Options(), Options(seed=1)])
    decoder._decode_chunk(512)
    assert decoder.state.logp.device.type == "cuda"
    assert_capturable(graphs, 200)


@pytest.mark.slow
@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("mask_rows", [0, 1, 64])
def test_a_velocity_evaluation_can_be_captured(graphs, mask_rows, splits, monkeypatch):
    monkeypatch.setattr(fast_dit, "tf32x3_is_faster", lambda device, dtype: splits)
    flow = built(Flow, FlowConfig(dit=DiTConfig(depth=2)))
    VelocityGraph(FastFlow.consume(flow, graphs).estimator, graphs, 3, 64, mask_rows)
    assert_capturable(graphs, 80)


def test_attention_launches_one_kernel_a_layer(graphs, monkeypatch):
    attention = pytest.importorskip("workbench.speech.fast.kernels.attention", reason="no Triton")
    flow_kernels = pytest.importorskip("workbench.speech.fast.kernels.flow")
    kernel, norm_kernel, rotate_kernel = LaunchCounter(), LaunchCounter(), LaunchCounter()
    monkeypatch.setattr(attention, "_attend", kernel)
    monkeypatch.setattr(flow_kernels, "_add_and_norm", norm_kernel)
    monkeypatch.setattr(flow_kernels, "_rotate", rotate_kernel)
    monkeypatch.setattr(fast_dit, "tf32x3_is_faster", lambda device, dtype: True)
    monkeypatch.setattr(fast_dit, "can_compile", lambda device: True)
    monkeypatch.setattr(fast_dit, "can_compile_tf32", lambda device: True)
    monkeypatch.setattr(fast_dit, "_conv_pos", lambda embed, splits: embed)
    fast = FastFlow.consume(built(Flow, FlowConfig(dit=DiTConfig(depth=2))), graphs)
    for mask_rows, launches in ((0, 2), (1, 4), (64, 6)):
        VelocityGraph(fast.estimator, graphs, 3, 64, mask_rows)
        assert kernel.count == launches
    assert norm_kernel.count == 3 * 2 * 2  # graphs, layers, twice in each
    assert rotate_kernel.count == 3 * 2
    assert_capturable(graphs, 60)


class LaunchCounter:
    """Stands in for a Triton kernel, which takes no fake tensors."""

    def __init__(self):
        self.count = 0

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.count += 1

        return launch


@pytest.mark.slow
def test_the_vocoder_with_conv_kernels_can_be_captured(graphs, monkeypatch):
    causal_conv = pytest.importorskip("workbench.speech.fast.kernels.conv", reason="no Triton")
    kernel = LaunchCounter()
    monkeypatch.setattr(causal_conv, "_convolve", kernel)
    monkeypatch.setattr(causal_conv, "compile_for", lambda *sizes: None)
    monkeypatch.setattr(fast_hift, "_can_use_conv_kernel", lambda hift: True)
    hift = FastHiFT.consume(built(HiFT, HiFTConfig()), lambda n: torch.zeros(1, n, 9), graphs)
    graphs.watch = Watch()
    _VocoderGraphs(hift, 2, 64)
    assert_capturable(graphs, 100)
    assert kernel.count == 12 * 6  # blocks, convolutions in each


@pytest.mark.slow
def test_the_vocoder_can_be_captured(graphs, monkeypatch):
    monkeypatch.setattr(fast_hift, "_can_use_conv_kernel", lambda hift: False)
    hift = FastHiFT.consume(built(HiFT, HiFTConfig()), lambda n: torch.zeros(1, n, 9), graphs)
    graphs.watch = Watch()  # without what folds the weight norm
    _VocoderGraphs(hift, 2, 64)
    assert_capturable(graphs, 300)


def test_the_watch_finds_forbidden_operations(graphs):
    x = torch.ones(3, device=GPU)
    for function, name in (
        (lambda: x + torch.ones(3).to(GPU), "_to_copy"),
        (lambda: torch.tensor([1.0]), "lift"),
    ):
        graphs.watch = Watch()
        graphs.capture(function)
        assert any(name in found for found in graphs.watch.forbidden)
