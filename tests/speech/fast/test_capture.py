"""What becomes a CUDA graph could be captured: checked on pretended GPU tensors, which no GPU is needed for.

Inside a capture nothing may wait for the device, come from the host's memory or depend on values.
"""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.speech.config import DiTConfig, FlowConfig, HiFTConfig, LMConfig, Options
from workbench.speech.fast import flow as fast_flow
from workbench.speech.fast import hift as fast_hift
from workbench.speech.fast import lm as fast_lm
from workbench.speech.fast import lm_torch as lm_step
from workbench.speech.fast import sampling as fast_sampling
from workbench.speech.fast.cuda_graphs import Graphs
from workbench.speech.fast.flow import FastFlow, _Step
from workbench.speech.fast.hift import FastHiFT, _Sound
from workbench.speech.fast.lm import FastLM, _Decoder
from workbench.speech.models.flow import Flow
from workbench.speech.models.hift import HiFT
from workbench.speech.models.lm import LM
from workbench.speech.models.numerics import exact_float32

pytestmark = pytest.mark.usefixtures("no_grad")

GPU = torch.device("cuda")
WAITS = ("local_scalar", "item", "nonzero", "unique", "lift")


class Watch(TorchDispatchMode):
    """Notes operations, and those that a capture would not bear."""

    def __init__(self):
        super().__init__()
        self.count, self.wrong = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.count += 1
        name, devices = str(func), set()
        torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda x: devices.add(x.device.type), (args, kwargs, made)
        )
        if any(word in name for word in WAITS) or "cpu" in devices:
            self.wrong.add(name)
        return made


class Pretended(Graphs):
    """Graphs that run their work under watch."""

    def __init__(self):
        self.device, self.arithmetic, self.notice = GPU, exact_float32, nullcontext
        self.watch = Watch()

    def computing(self, arithmetic=None):
        return nullcontext()

    def capture(self, work, arithmetic=None):
        with self.watch:
            work()
        return work


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)  # fake tensors have none
    for module in (fast_lm, lm_step, fast_sampling, fast_flow, fast_hift):
        monkeypatch.setattr(module, "compiled", lambda function, device, changing: function)
    for module, asked in ((fast_lm, "has_tf32"), (fast_flow, "compiles")):
        monkeypatch.setattr(module, asked, lambda device: False)  # kernels need a GPU that is there
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield Pretended()


def built(model, config):
    with GPU:
        return model(config).eval().requires_grad_(False)


def clean(graphs, least):
    assert graphs.watch.count > least and not graphs.watch.wrong


RULES = ({}, {"repetition_fallback": "top_k", "silent_tokens_repeat": False}, {"win_size": 0})


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_token(graphs, rule):
    lm = FastLM(built(LM, LMConfig(num_hidden_layers=2, vocab_size=500)), (1, 2), graphs)
    _Decoder(lm, 2, 1024, Options(**rule))
    clean(graphs, 100)


def test_a_prompt_is_read(graphs, monkeypatch):
    """Its graph could be captured; what is not must meet on the device."""
    monkeypatch.setattr(fast_sampling, "_exponential", lambda row, generator: None)
    lm = FastLM(built(LM, LMConfig(num_hidden_layers=2, vocab_size=500)), (1, 2), graphs)
    decoder = _Decoder(lm, 2, 1024, Options())
    prompts = [torch.zeros(n, 896, device=GPU) for n in (7, 9)]
    decoder.begin(prompts, [1, 0], [(3, 40), (4, 50)], [Options(), Options(seed=1)])
    decoder._step(512)
    assert decoder.logp.device.type == "cuda"
    clean(graphs, 200)


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("mask_rows", [0, 1, 64])
def test_a_step_of_the_ode(graphs, mask_rows, splits, monkeypatch):
    monkeypatch.setattr(fast_flow, "splitting_pays", lambda device, dtype: splits)
    flow = built(Flow, FlowConfig(dit=DiTConfig(depth=2)))
    _Step(FastFlow(flow, graphs), 3, 64, mask_rows)
    clean(graphs, 80)


def test_attention_without_a_mask_is_one_kernel(graphs, monkeypatch):
    attention = pytest.importorskip("workbench.speech.fast.kernels.attention", reason="no Triton")
    flow_kernels = pytest.importorskip("workbench.speech.fast.kernels.flow")
    kernel, passing = Launched(), Launched()
    monkeypatch.setattr(attention, "_attend", kernel)
    monkeypatch.setattr(flow_kernels, "_pass_on", passing)
    monkeypatch.setattr(fast_flow, "splitting_pays", lambda device, dtype: True)
    monkeypatch.setattr(fast_flow, "compiles", lambda device: True)
    monkeypatch.setattr(fast_flow, "_conv_pos", lambda embed, splits: embed)
    fast = FastFlow(built(Flow, FlowConfig(dit=DiTConfig(depth=2))), graphs)
    for mask_rows, launches in ((0, 2), (1, 2)):
        _Step(fast, 3, 64, mask_rows)
        assert kernel.count == launches
    assert passing.count == 2 * 2 * 2  # steps, layers, twice in each
    clean(graphs, 60)


class Launched:
    """Stands in for a Triton kernel, which takes no pretended tensors."""

    def __init__(self):
        self.count = 0

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.count += 1

        return launch


def test_the_vocoder_on_tensor_cores(graphs, monkeypatch):
    causal_conv = pytest.importorskip("workbench.speech.fast.kernels.conv", reason="no Triton")
    kernel = Launched()
    monkeypatch.setattr(causal_conv, "_convolve", kernel)
    monkeypatch.setattr(causal_conv, "prepare", lambda *sizes: None)
    monkeypatch.setattr(fast_hift, "_suits_tensor_cores", lambda hift: True)
    hift = FastHiFT(built(HiFT, HiFTConfig()), lambda n: torch.zeros(1, n, 9), graphs)
    graphs.watch = Watch()
    _Sound(hift, 2, 64)
    clean(graphs, 100)
    assert kernel.count == 12 * 6  # blocks, convolutions in each


def test_the_vocoder(graphs, monkeypatch):
    monkeypatch.setattr(fast_hift, "_suits_tensor_cores", lambda hift: False)
    hift = FastHiFT(built(HiFT, HiFTConfig()), lambda n: torch.zeros(1, n, 9), graphs)
    graphs.watch = Watch()  # folding weight norm comes before
    _Sound(hift, 2, 64)
    clean(graphs, 300)


def test_the_watch_sees_what_it_is_for(graphs):
    x = torch.ones(3, device=GPU)
    for work, name in (
        (lambda: x + torch.ones(3).to(GPU), "_to_copy"),
        (lambda: torch.tensor([1.0]), "lift"),
    ):
        graphs.watch = Watch()
        graphs.capture(work)
        assert any(name in wrong for wrong in graphs.watch.wrong)
