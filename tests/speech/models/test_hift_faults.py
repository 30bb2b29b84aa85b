"""Deliberate faults in the vocoder that must show; and flow and vocoder together, against upstream."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from workbench.speech.config import Options
from workbench.speech.models import hift

pytestmark = pytest.mark.usefixtures("no_grad")

SOURCE_ATOL = 2e-3  # sin of large float32 phases
WAV_ATOL = 5e-3  # from the mel


def rms(x):
    return float(x.double().square().mean().sqrt())


# Deliberate faults, as far off as upstream was when it had them: see test_dit.py


def voiced_threshold(m, model):
    model.config = model.m_source.config = replace(model.config, nsf_voiced_threshold=0.0)


def final_slope(m, model):
    m.setattr(hift.F, "leaky_relu", lambda x, slope=0.1: torch.where(x > 0, x, slope * x))


def zero_pad_instead_of_reflection(m, model):
    right = F.pad

    def pad(x, by, mode="constant"):
        return right(x, by) if by == (1, 0) else right(x, by, mode=mode)

    m.setattr(hift.F, "pad", pad)


def symmetric_window(m, model):
    right = torch.hann_window

    def window(n, **kwargs):
        return right(n, periodic=False, **kwargs)

    m.setattr(torch, "hann_window", window)


def snake_alpha(m, model):
    for module in model.modules():
        if isinstance(module, hift.Snake):
            module.alpha.fill_(1.0)


def head_without_sines(m, model):
    def head(self, x, finalize=True):
        log_magnitude, phase = x.chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=100.0)
        return magnitude, phase, self.istft(magnitude * phase.cos(), magnitude * phase).clamp(-0.99, 0.99)

    m.setattr(hift.HiFT, "head", head)


def phase_without_sine(m, model):
    def head(self, x, finalize=True):
        log_magnitude, phase = x.chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=100.0)
        return (
            magnitude,
            phase,
            self.istft(magnitude * phase.cos(), magnitude * phase.sin()).clamp(-0.99, 0.99),
        )

    m.setattr(hift.HiFT, "head", head)


def linear_phase(m, model):
    def forward(self, f0, noise):
        turns = (f0[:, :, None] * torch.arange(1, 10) / 24_000) % 1
        phase = turns.cumsum(1) * 2 * math.pi * 480
        phase = F.interpolate(phase.transpose(1, 2), scale_factor=480.0, mode="linear").transpose(1, 2)
        voiced = (f0 > 10).float()[..., None].repeat_interleave(480, dim=1)
        level = voiced * 0.003 + (1 - voiced) * 0.1 / 3
        sines = 0.1 * phase.sin() * voiced + level * noise[:, : phase.shape[1]]
        return torch.tanh(self.l_linear(sines)).transpose(1, 2)

    m.setattr(hift.Source, "forward", forward)


FAULTS = {
    "hift linear (not nearest) phase upsampling": linear_phase,
    "hift voiced threshold 0": voiced_threshold,
    "hift final leaky slope 0.1": final_slope,
    "hift reflection pad -> zero pad": zero_pad_instead_of_reflection,
    "hift symmetric hann window": symmetric_window,
    "hift snake alpha 1": snake_alpha,
    # What was measured there left the sine of the imaginary part out as well.
    "hift phase without the extra sin()": head_without_sines,
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_show(hift_model, hift_golden, mel, noise, sensitivity, name):
    model = copy.deepcopy(hift_model)
    hift._windowed_dft.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as m:
            FAULTS[name](m, model)
            made = model(mel, noise)
    finally:
        hift._windowed_dft.cache_clear()
    by = [
        float((found - hift_golden.data[f"final.{field}"]).abs().max())
        for field, found in (("source", made.source), ("wav", made.wav))
    ]
    assert by[1] > 2 * WAV_ATOL
    assert by == pytest.approx(sensitivity[name], rel=0.05, abs=SOURCE_ATOL)


def test_phase_without_its_sine_shows(hift_model, hift_golden, mel, noise, monkeypatch):
    phase_without_sine(monkeypatch, hift_model)
    wav = hift_model(mel, noise).wav
    assert float((wav - hift_golden.data["final.wav"]).abs().max()) > 0.1


def test_gaussian_noise_shows(hift_model, hift_golden, mel, noise):
    gaussian = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    made = hift_model(mel, gaussian)
    assert float((made.source - hift_golden.data["final.source"]).abs().max()) > 0.1
    assert float((made.wav - hift_golden.data["final.wav"]).abs().max()) > 0.05


# Flow and vocoder together, in upstream's voice conversion


@pytest.fixture(scope="module")
def render(flow_model, flow_golden, hift_model, noise, e2e_golden):
    data = e2e_golden.data

    def mel(n_tokens=None, streaming=False, finalize=True):
        c = flow_model.condition(
            data["in.token"][0, :n_tokens],
            data["in.prompt_token"][0],
            data["in.prompt_feat"].transpose(1, 2),
            data["in.embedding"][0],
            finalize,
        )
        start = flow_golden.data["rand_noise_first400"][:, :, : c.mu.shape[-1]]
        return list(flow_model.steps(c, start, Options(), streaming))[-1].x_next[:, :, c.prompt_frames :]

    return mel


def assert_near_wav(wav, golden):
    assert wav.shape == golden.shape
    assert rms(wav - golden) < 5e-3  # 2e-5 of the mel became 3.5e-3 rms of the waveform upstream
    assert rms(wav - golden) < 0.05 * rms(golden)


def test_tokens_to_waveform_equals_upstream(render, hift_model, noise, e2e_golden):
    mel = render()
    assert_near_wav(hift_model(mel, noise).wav, e2e_golden.data["offline.wav.0"])
    faster = F.interpolate(mel, size=int(mel.shape[-1] / 1.25), mode="linear")
    assert_near_wav(hift_model(faster, noise).wav, e2e_golden.data["offline_speed1.25.wav.0"])


def test_tokens_to_waveform_in_chunks_equals_upstream(render, hift_model, noise, e2e_golden):
    mel, offset = torch.zeros(1, 80, 0), 0
    for j, call in enumerate(e2e_golden.info["calls"]["stream"]["calls"]):
        part = render(call["n_token"], call["streaming"], call["finalize"])
        mel = torch.cat((mel, part[:, :, 2 * call["token_offset"] :]), dim=2)
        wav = hift_model(mel, noise, finalize=call["finalize"]).wav[:, offset:]
        assert wav.shape[-1] == call["samples"]
        assert_near_wav(wav, e2e_golden.data[f"stream.wav.{j}"])
        offset += wav.shape[-1]
