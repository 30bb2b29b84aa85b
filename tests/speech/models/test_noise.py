"""The fixed noise against upstream's, and noise that a checkpoint stores."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.paths import ASSETS
from workbench.errors import WorkbenchError
from workbench.speech.config import Config, FlowConfig, HiFTConfig
from workbench.speech.models.noise import Noise, excitation_noise, initial_phase, ode_noise

SMALL = replace(
    Config(), flow=FlowConfig(vocab_size=50, noise_frames=40), hift=HiFTConfig(f0_cond_channels=8)
)


@pytest.fixture(scope="module")
def upstream():
    return load_file(ASSETS / "full_noise.safetensors")


def test_leading_values_are_upstreams(upstream):
    config = Config()
    assert torch.equal(ode_noise(config)[:, :, :400], upstream["flow_rand_noise_first400"])
    assert torch.equal(initial_phase(config), upstream["rand_ini"])
    assert torch.equal(excitation_noise(config, 2048), upstream["sine_waves_first2048"])
    assert ode_noise(config).shape == (1, 80, 15_000)


def test_whole_excitation_is_upstreams():
    expected = json.loads((ASSETS / "full_noise.json").read_text())["sine_waves_sha256_float32"]
    assert hashlib.sha256(excitation_noise(Config(), 7_200_000).numpy()).hexdigest() == expected


def test_other_sizes_follow_the_modules_own_draws():
    c = SMALL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ode = torch.randn([1, 80, c.flow.noise_frames])
        torch.nn.Embedding(c.flow.vocab_size, 80)
        torch.nn.Linear(192, 80)
        torch.nn.Conv1d(80, 8, 4)
        for _ in range(4):
            torch.nn.Conv1d(8, 8, 3)
        torch.nn.Linear(8, 1)
        phase = torch.rand(1, 9)
        excitation = torch.rand(1, 1000, 9)
    noise = Noise(c)
    assert torch.equal(noise.ode(), ode)
    assert torch.equal(noise.initial_phase()[:, 1:], phase[:, 1:])
    assert noise.initial_phase()[0, 0] == 0
    assert torch.equal(noise.excitation(1000), excitation)


def test_global_generator_is_untouched():
    before = torch.random.get_rng_state()
    noise = Noise(SMALL)
    noise.ode(), noise.initial_phase(), noise.excitation(100)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_returned_tensors_are_the_callers_own():
    noise = Noise(SMALL)
    stored = Noise(
        SMALL, {"ode": noise.ode(), "initial_phase": noise.initial_phase(), "excitation": noise.excitation(9)}
    )
    for source in (noise, stored):
        for draw in (source.ode, source.initial_phase, lambda s=source: s.excitation(9)):
            first = draw().clone()
            draw().zero_()
            assert torch.equal(draw(), first)


def test_stored_noise_is_continued_only_if_it_is_upstreams():
    fresh = Noise(SMALL)
    parts = {"ode": fresh.ode(), "initial_phase": fresh.initial_phase(), "excitation": fresh.excitation(50)}
    assert torch.equal(Noise(SMALL, parts).excitation(80), fresh.excitation(80))
    foreign = Noise(SMALL, parts | {"excitation": torch.zeros(1, 50, 9)})
    assert not foreign.excitation(50).any()
    with pytest.raises(WorkbenchError, match="50 samples and 51 are needed"):
        foreign.excitation(51)


def test_noise_too_long_or_of_wrong_shape_raises():
    with pytest.raises(WorkbenchError, match="300 s"):
        Noise(SMALL).excitation(7_200_001)
    with pytest.raises(WorkbenchError, match="initial_phase is nothing"):
        Noise(SMALL, {"ode": Noise(SMALL).ode()})
    with pytest.raises(WorkbenchError, match="ode is"):
        Noise(SMALL, {"ode": torch.zeros(1, 2, 3)})


def test_noise_that_is_drawn_on_equals_noise_drawn_at_once():
    bit_by_bit, at_once = Noise(SMALL), Noise(SMALL)
    for samples in (7, 3, 500, 501, 4_000):
        assert torch.equal(bit_by_bit.excitation(samples), at_once.excitation(4_000)[:, :samples])
    bit_by_bit.excitation(100).zero_()  # what was handed out is the caller's own
    assert bit_by_bit.excitation(100).any()
