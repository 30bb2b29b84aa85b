"""The vocoder against upstream's parity file: source, spectra, streaming, precisions, invalid mels, weights."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.speech.config import HiFTConfig
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
def vocoded(hift_model, mel, noise):
    with torch.no_grad():
        return hift_model(mel, noise)


# Against upstream


def test_f0_float64(vocoded, hift_golden):
    close(vocoded.f0, hift_golden.data["final.f0_float64"], F0_ATOL)


def test_voicing_is_upstreams(vocoded, hift_golden):
    voiced = vocoded.f0 > HiFTConfig().nsf_voiced_threshold
    assert torch.equal(voiced.float()[..., None], hift_golden.data["final.uv_per_frame"])
    assert float(voiced.float().mean()) == pytest.approx(hift_golden.info["voiced_fraction"])


def test_source_equals_upstream(vocoded, hift_golden):
    close(vocoded.source, hift_golden.data["final.source"], SOURCE_ATOL)


def test_sines_equal_upstream(hift_model, hift_golden, noise):
    taken = []
    handle = hift_model.m_source.l_linear.register_forward_hook(lambda m, args, out: taken.append(args[0]))
    try:
        hift_model.m_source(hift_golden.data["final.f0_float64"].float(), noise)
    finally:
        handle.remove()
    close(taken[0][:, 2400:4800], hift_golden.data["final.sine_waves_2400to4800"], SOURCE_ATOL)


def test_trunk_equals_upstream(hift_model, hift_golden, mel, noise):
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


def test_wav_from_mel(vocoded, hift_golden):
    close(vocoded.wav, hift_golden.data["final.wav"], WAV_ATOL)


def test_wav_from_the_stored_source(hift_model, hift_golden, mel, noise):
    made = hift_model(mel, noise, source=hift_golden.data["final.source"])
    close(made.wav, hift_golden.data["final.wav"], HEAD_ATOL)
    assert made.source is hift_golden.data["final.source"]


def test_shapes_and_bounds(vocoded, mel):
    frames = mel.shape[-1]
    assert vocoded.wav.shape == (1, 480 * frames)
    assert vocoded.source.shape == (1, 1, 480 * frames)
    assert vocoded.magnitude.shape == vocoded.phase.shape == (1, 9, 120 * frames + 1)
    assert float(vocoded.magnitude.min()) > 0 and float(vocoded.magnitude.max()) <= 100
    assert float(vocoded.phase.abs().max()) <= 1
    assert float(vocoded.wav.abs().max()) <= HiFTConfig().audio_limit + 1e-6


def test_partial_mel_equals_upstream(hift_model, hift_golden, mel, noise):
    made = hift_model(mel, noise, finalize=False)
    close(made.f0, hift_golden.data["partial.f0_float64"], F0_ATOL)
    close(made.source, hift_golden.data["partial.source"], SOURCE_ATOL)
    close(made.wav, hift_golden.data["partial.wav"], WAV_ATOL)
    assert made.wav.shape[-1] == (mel.shape[-1] - 8) * 480


def test_chunked_calls_equal_upstream(hift_model, hift_golden, mel, noise, vocoded):
    offset = 0
    for j, chunk in enumerate(hift_golden.info["chunks"]):
        assert chunk["speech_offset"] == offset
        made = hift_model(mel[:, :, : chunk["mel_end"]], noise, finalize=chunk["finalize"])
        assert made.wav.shape[-1] == chunk["full_len"]
        new = made.wav[:, offset:]
        close(new, hift_golden.data[f"chunk.{j}.new"], WAV_ATOL)
        close(new, vocoded.wav[:, offset : chunk["full_len"]], 1e-5)
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


def test_float64_stays_near_float32(hift_model, hift_golden, mel, noise):
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


def test_no_noise_tail_is_needed(hift_model, mel, noise, vocoded):
    assert torch.equal(hift_model(mel, noise[:, : 480 * mel.shape[-1]]).wav, vocoded.wav)


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


def test_head_limits_magnitude_phase_and_waveform(hift_model):
    x = torch.full((1, 18, 121), 50.0)
    magnitude, phase, wav = hift_model.head(x)
    assert float(magnitude.max()) == 100
    close(phase, torch.full_like(phase, math.sin(50.0)), 1e-6)
    assert float(wav.abs().max()) == pytest.approx(0.99)


# Half precision


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("head_dtype", [None, torch.float32])
def test_half_precision_is_finite_and_near(hift_model, mel, noise, vocoded, dtype, error, head_dtype):
    model = copy.deepcopy(hift_model).to(dtype)
    model.f0_predictor.double()
    made = model(mel, noise, source=vocoded.source, head_dtype=head_dtype)
    assert made.wav.dtype == (head_dtype or dtype)
    assert made.f0.dtype == torch.float64
    assert made.wav.isfinite().all()
    assert rms(made.wav - vocoded.wav) < error * rms(vocoded.wav)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_makes_its_own_source(hift_model, mel, noise, dtype):
    made = copy.deepcopy(hift_model).to(dtype)(mel, noise)
    for tensor in made:
        assert tensor.dtype == dtype and tensor.isfinite().all()


# Invalid mels


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_in_a_mel_raise(hift_model, mel, noise, bad):
    mel = mel.clone()
    mel[0, 7, 11] = mel[0, 8, 30] = bad
    with pytest.raises(
        WorkbenchError, match="2 of 3200 mel values are NaN or Inf, the first at bin 7, frame 11"
    ):
        hift_model(mel, noise)


def test_empty_mel_raises(hift_model, mel, noise):
    with pytest.raises(WorkbenchError, match="0 mel frames found; expected at least 1"):
        hift_model(mel[:, :, :0], noise)


@pytest.mark.parametrize("frames", [0, 3, 8])
def test_mel_too_short_to_stream_raises(hift_model, mel, noise, frames):
    with pytest.raises(WorkbenchError, match=f"{frames} mel frames found; expected at least 9"):
        hift_model(mel[:, :, :frames], noise, finalize=False)


@pytest.mark.parametrize(("frames", "finalize"), [(1, True), (2, True), (9, False)])
def test_shortest_mels_are_vocoded(hift_model, mel, noise, vocoded, frames, finalize):
    made = hift_model(mel[:, :, :frames], noise, finalize=finalize)
    assert made.wav.shape == (1, 480 * (frames if finalize else frames - 8))
    if not finalize:
        close(made.wav, vocoded.wav[:, :480], 1e-5)


@pytest.mark.parametrize("shape", [(80, 40), (1, 40, 80), (1, 1, 80, 40)])
def test_mel_of_another_shape_raises(hift_model, noise, shape):
    with pytest.raises(WorkbenchError, match="expected \\(1, 80, frames\\)"):
        hift_model(torch.zeros(shape), noise)


# Weights


def test_old_weight_norm_names_load(hift_golden, hift_model, mel, noise, vocoded):
    old = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in hift_golden.weights.items()
    }
    model = HiFT(hift_model.config)
    model.load_state_dict(old, strict=True)
    model.f0_predictor.double()
    assert torch.equal(model(mel, noise).wav, vocoded.wav)


def test_default_sizes_are_the_released_ones():
    config = HiFTConfig()
    assert config.hop_length == 480
    with torch.device("meta"):
        model = HiFT(config)
    assert sum(p.numel() for p in model.parameters()) == 20_779_887
    assert len(model.state_dict()) == 328
