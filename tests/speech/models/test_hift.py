import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.speech.config import HiFTConfig, Options
from workbench.speech.models import hift
from workbench.speech.models.hift import HiFT

pytestmark = pytest.mark.usefixtures("no_grad")

F0_ATOL = 1e-9  # float64
SOURCE_ATOL = 2e-3  # sin of large float32 phases
WAV_ATOL = 5e-3  # from the mel
HEAD_ATOL = 5e-5  # from the stored source


def close(found, golden, atol):
    torch.testing.assert_close(found, golden, atol=atol, rtol=0)


def rms(x):
    return float(x.double().square().mean().sqrt())


@pytest.fixture(scope="module")
def mel(hift_golden):
    return hift_golden.data["in.mel"]


@pytest.fixture(scope="module")
def noise(hift_golden):
    return hift_golden.data["buf.sine_noise_f16"].float()


@pytest.fixture(scope="module")
def whole(hift_model, mel, noise):
    with torch.no_grad():
        return hift_model(mel, noise)


# Against upstream


def test_f0_float64(whole, hift_golden):
    close(whole.f0, hift_golden.data["final.f0_float64"], F0_ATOL)


def test_voicing(whole, hift_golden):
    voiced = whole.f0 > HiFTConfig().nsf_voiced_threshold
    assert torch.equal(voiced.float()[..., None], hift_golden.data["final.uv_per_frame"])
    assert float(voiced.float().mean()) == pytest.approx(hift_golden.info["voiced_fraction"])


def test_source(whole, hift_golden):
    close(whole.source, hift_golden.data["final.source"], SOURCE_ATOL)


def test_sines(hift_model, hift_golden, noise):
    taken = []
    handle = hift_model.m_source.l_linear.register_forward_hook(lambda m, args, out: taken.append(args[0]))
    try:
        hift_model.m_source(hift_golden.data["final.f0_float64"].float(), noise)
    finally:
        handle.remove()
    close(taken[0][:, 2400:4800], hift_golden.data["final.sine_waves_2400to4800"], SOURCE_ATOL)


def test_trunk(hift_model, hift_golden, mel, noise):
    kept, handles = {}, []
    for name, module in hift_model.named_modules():
        handles.append(module.register_forward_hook(lambda m, i, out, name=name: kept.update({name: out})))
    try:
        hift_model(mel, noise, source=hift_golden.data["final.source"])
    finally:
        for handle in handles:
            handle.remove()
    for name in ("conv_pre", "ups.0", "ups.1", "source_resblocks.0", "source_resblocks.1"):
        close(kept[name], hift_golden.data[f"final.{name}"], HEAD_ATOL)
    close(kept["conv_post"][:, :, :2400], hift_golden.data["final.conv_post_first2400"], HEAD_ATOL)


def test_wav_from_mel(whole, hift_golden):
    close(whole.wav, hift_golden.data["final.wav"], WAV_ATOL)


def test_wav_from_the_stored_source(hift_model, hift_golden, mel, noise):
    made = hift_model(mel, noise, source=hift_golden.data["final.source"])
    close(made.wav, hift_golden.data["final.wav"], HEAD_ATOL)
    assert made.source is hift_golden.data["final.source"]


def test_shapes_and_bounds(whole, mel):
    frames = mel.shape[-1]
    assert whole.wav.shape == (1, 480 * frames)
    assert whole.source.shape == (1, 1, 480 * frames)
    assert whole.magnitude.shape == whole.phase.shape == (1, 9, 120 * frames + 1)
    assert float(whole.magnitude.min()) > 0 and float(whole.magnitude.max()) <= 100
    assert float(whole.phase.abs().max()) <= 1
    assert float(whole.wav.abs().max()) <= HiFTConfig().audio_limit + 1e-6


def test_partial(hift_model, hift_golden, mel, noise):
    made = hift_model(mel, noise, finalize=False)
    close(made.f0, hift_golden.data["partial.f0_float64"], F0_ATOL)
    close(made.source, hift_golden.data["partial.source"], SOURCE_ATOL)
    close(made.wav, hift_golden.data["partial.wav"], WAV_ATOL)
    assert made.wav.shape[-1] == (mel.shape[-1] - 8) * 480


def test_chunked_calls(hift_model, hift_golden, mel, noise, whole):
    offset = 0
    for j, chunk in enumerate(hift_golden.info["chunks"]):
        assert chunk["speech_offset"] == offset
        made = hift_model(mel[:, :, : chunk["mel_end"]], noise, finalize=chunk["finalize"])
        assert made.wav.shape[-1] == chunk["full_len"]
        new = made.wav[:, offset:]
        close(new, hift_golden.data[f"chunk.{j}.new"], WAV_ATOL)
        close(new, whole.wav[:, offset : chunk["full_len"]], 1e-5)
        offset = chunk["full_len"]
    assert offset == 480 * mel.shape[-1]


def test_f0_in_float32_deviates_as_stated(hift_model, hift_golden, mel, noise):
    model = copy.deepcopy(hift_model)
    model.f0_predictor.float()
    made, stated = model(mel, noise), hift_golden.info["observed_max_abs_diff"]["f0_in_float32"]
    for found, golden, name in (
        (made.f0.double(), "final.f0_float64", "f0"),
        (made.source, "final.source", "source"),
        (made.wav, "final.wav", "wav"),
    ):
        by = float((found - hift_golden.data[golden]).abs().max())
        assert 0.1 * stated[name] < by < 5 * stated[name]
    close(made.f0.double(), hift_golden.data["final.f0_float64"], 1e-3)


def test_float64(hift_model, hift_golden, mel, noise):
    model = copy.deepcopy(hift_model).double()
    made = model(mel, noise, source=hift_golden.data["final.source"])
    assert made.wav.dtype == torch.float64
    close(made.wav.float(), hift_golden.data["final.wav"], HEAD_ATOL)
    close(model(mel, noise).wav.float(), hift_golden.data["final.wav"], WAV_ATOL)


# The source in upstream's own steps


def upstreams_source(model, f0, noise, initial_phase):
    """Sine generator as upstream writes it: up to samples, down to frames, sum, up again."""
    c = model.config
    up = f0[:, :, None].repeat_interleave(480, dim=1)
    turns = (up * torch.arange(1, 10) / c.sampling_rate) % 1
    turns[:, 0] += initial_phase[0]
    turns = F.interpolate(turns.transpose(1, 2), scale_factor=1 / 480, mode="linear").transpose(1, 2)
    phase = torch.cumsum(turns, dim=1) * 2 * math.pi
    phase = F.interpolate(phase.transpose(1, 2) * 480, scale_factor=480.0, mode="nearest").transpose(1, 2)
    voiced = (up > c.nsf_voiced_threshold).float()
    level = voiced * c.nsf_sigma + (1 - voiced) * c.nsf_alpha / 3
    sines = torch.sin(phase) * c.nsf_alpha * voiced + level * noise[:, : up.shape[1]]
    return torch.tanh(model.m_source.l_linear(sines)).transpose(1, 2)


def test_initial_phase_never_reaches_the_source(hift_model, hift_golden, noise):
    f0, drawn = hift_golden.data["final.f0_float64"].float(), hift_golden.data["buf.rand_ini"]
    assert drawn[0, 0] == 0 and drawn[0, 1:].all()
    with_phase = upstreams_source(hift_model, f0, noise, drawn)
    assert torch.equal(with_phase, upstreams_source(hift_model, f0, noise, torch.zeros(1, 9)))
    close(hift_model.m_source(f0, noise), with_phase, SOURCE_ATOL)
    close(hift_golden.data["final.source"], with_phase, SOURCE_ATOL)


def test_source_is_a_staircase(hift_model):
    f0 = torch.tensor([[200.0, 210.0, 5.0]])
    source = hift_model.m_source(f0, torch.zeros(1, 3 * 480, 9)).unflatten(-1, (3, 480))
    assert torch.equal(source, source[..., :1].expand_as(source))
    silent = torch.tanh(hift_model.m_source.l_linear.bias)
    close(source[0, 0, 2, :1], silent, 1e-6)


def test_voicing_threshold_is_strict(hift_model):
    noise = torch.ones(1, 960, 9)
    taken = []
    handle = hift_model.m_source.l_linear.register_forward_hook(lambda m, args, out: taken.append(args[0]))
    try:
        hift_model.m_source(torch.tensor([[10.0, math.nextafter(10.0, 11) + 1e-5]]), noise)
    finally:
        handle.remove()
    at, above = taken[0][0, 0], taken[0][0, 480]
    close(at, torch.full((9,), 0.1 / 3), 1e-7)
    assert not torch.allclose(at, above, atol=1e-3)


def test_no_noise_tail_is_needed(hift_model, mel, noise, whole):
    assert torch.equal(hift_model(mel, noise[:, : 480 * mel.shape[-1]]).wav, whole.wav)


# Spectra


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("samples", [480, 4 * 37])
def test_stft_is_torchs(hift_model, dtype, atol, samples):
    x = torch.randn(2, samples, dtype=dtype, generator=torch.Generator().manual_seed(1))
    golden = torch.stft(x, 16, 4, window=torch.hann_window(16, dtype=dtype), return_complex=True)
    found = hift_model.stft(x[:, None])
    assert found.dtype == dtype
    close(found, torch.cat((golden.real, golden.imag), dim=1), atol)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("frames", [2, 9, 121])
def test_istft_is_torchs(hift_model, dtype, atol, frames):
    generator = torch.Generator().manual_seed(2)
    real, imag = torch.randn(2, 2, 9, frames, dtype=dtype, generator=generator)
    golden = torch.istft(torch.complex(real, imag), 16, 4, window=torch.hann_window(16, dtype=dtype))
    found = hift_model.istft(real, imag)
    assert found.dtype == dtype and found.shape == (2, 4 * (frames - 1))
    close(found, golden, atol)


def test_istft_undoes_stft(hift_model):
    x = torch.randn(1, 1, 480, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    close(hift_model.istft(*hift_model.stft(x).chunk(2, dim=1)), x[0], 1e-12)


def test_head_limits(hift_model):
    x = torch.full((1, 18, 121), 50.0)
    magnitude, phase, wav = hift_model.head(x)
    assert float(magnitude.max()) == 100
    close(phase, torch.full_like(phase, math.sin(50.0)), 1e-6)
    assert float(wav.abs().max()) == pytest.approx(0.99)


# Half precision


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("head_dtype", [None, torch.float32])
def test_half_precision(hift_model, mel, noise, whole, dtype, error, head_dtype):
    model = copy.deepcopy(hift_model).to(dtype)
    model.f0_predictor.double()
    made = model(mel, noise, source=whole.source, head_dtype=head_dtype)
    assert made.wav.dtype == (head_dtype or dtype)
    assert made.f0.dtype == torch.float64
    assert made.wav.isfinite().all()
    assert rms(made.wav - whole.wav) < error * rms(whole.wav)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_makes_its_own_source(hift_model, mel, noise, dtype):
    made = copy.deepcopy(hift_model).to(dtype)(mel, noise)
    for tensor in made:
        assert tensor.dtype == dtype and tensor.isfinite().all()


# Mels that cannot be sounded


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_mel_values(hift_model, mel, noise, bad):
    mel = mel.clone()
    mel[0, 7, 11] = mel[0, 8, 30] = bad
    with pytest.raises(
        WorkbenchError, match="2 of 3200 mel values are NaN or Inf, the first at bin 7, frame 11"
    ):
        hift_model(mel, noise)


def test_empty_mel(hift_model, mel, noise):
    with pytest.raises(WorkbenchError, match="0 mel frames found; expected at least 1"):
        hift_model(mel[:, :, :0], noise)


@pytest.mark.parametrize("frames", [0, 3, 8])
def test_mel_too_short_to_stream(hift_model, mel, noise, frames):
    with pytest.raises(WorkbenchError, match=f"{frames} mel frames found; expected at least 9"):
        hift_model(mel[:, :, :frames], noise, finalize=False)


@pytest.mark.parametrize(("frames", "finalize"), [(1, True), (2, True), (9, False)])
def test_shortest_mels(hift_model, mel, noise, whole, frames, finalize):
    made = hift_model(mel[:, :, :frames], noise, finalize=finalize)
    assert made.wav.shape == (1, 480 * (frames if finalize else frames - 8))
    if not finalize:
        close(made.wav, whole.wav[:, :480], 1e-5)


@pytest.mark.parametrize("shape", [(80, 40), (1, 40, 80), (1, 1, 80, 40)])
def test_mel_of_another_shape(hift_model, noise, shape):
    with pytest.raises(WorkbenchError, match="expected \\(1, 80, frames\\)"):
        hift_model(torch.zeros(shape), noise)


# Weights


def test_old_weight_norm_names_load(hift_golden, hift_model, mel, noise, whole):
    old = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in hift_golden.weights.items()
    }
    model = HiFT(hift_model.config)
    model.load_state_dict(old, strict=True)
    model.f0_predictor.double()
    assert torch.equal(model(mel, noise).wav, whole.wav)


def test_default_sizes_are_the_released_ones():
    config = HiFTConfig()
    assert config.hop_length == 480
    with torch.device("meta"):
        model = HiFT(config)
    assert sum(p.numel() for p in model.parameters()) == 20_779_887
    assert len(model.state_dict()) == 328


# Deliberate mistakes, as far off as upstream was when it made them: see test_dit.py


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


MISTAKES = {
    "hift linear (not nearest) phase upsampling": linear_phase,
    "hift voiced threshold 0": voiced_threshold,
    "hift final leaky slope 0.1": final_slope,
    "hift reflection pad -> zero pad": zero_pad_instead_of_reflection,
    "hift symmetric hann window": symmetric_window,
    "hift snake alpha 1": snake_alpha,
    # What was measured there left the sine of the imaginary part out as well.
    "hift phase without the extra sin()": head_without_sines,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_show(hift_model, hift_golden, mel, noise, sensitivity, name):
    model = copy.deepcopy(hift_model)
    hift._windowed_dft.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as m:
            MISTAKES[name](m, model)
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


def alike(wav, golden):
    assert wav.shape == golden.shape
    assert rms(wav - golden) < 5e-3  # 2e-5 of the mel became 3.5e-3 rms of the waveform upstream
    assert rms(wav - golden) < 0.05 * rms(golden)


def test_tokens_to_waveform(render, hift_model, noise, e2e_golden):
    mel = render()
    alike(hift_model(mel, noise).wav, e2e_golden.data["offline.wav.0"])
    faster = F.interpolate(mel, size=int(mel.shape[-1] / 1.25), mode="linear")
    alike(hift_model(faster, noise).wav, e2e_golden.data["offline_speed1.25.wav.0"])


def test_tokens_to_waveform_in_chunks(render, hift_model, noise, e2e_golden):
    mel, offset = torch.zeros(1, 80, 0), 0
    for j, call in enumerate(e2e_golden.info["calls"]["stream"]["calls"]):
        part = render(call["n_token"], call["streaming"], call["finalize"])
        mel = torch.cat((mel, part[:, :, 2 * call["token_offset"] :]), dim=2)
        wav = hift_model(mel, noise, finalize=call["finalize"]).wav[:, offset:]
        assert wav.shape[-1] == call["samples"]
        alike(wav, e2e_golden.data[f"stream.wav.{j}"])
        offset += wav.shape[-1]
