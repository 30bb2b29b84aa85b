"""Resampling, written sound files and features: equal to upstream's, and errors for unusable waveforms."""

import librosa
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from tests.paths import ASSETS
from workbench.errors import WorkbenchError
from workbench.speech.config import MelConfig
from workbench.speech.frontend import audio
from workbench.speech.frontend.audio_files import read_wav

MEL = MelConfig()


def tone(seconds=0.5, rate=24_000, hz=220.0):
    return 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_mel_equals_upstreams(dtype):
    golden = load_file(ASSETS / "mel.safetensors")
    mel = audio.log_mel(golden["in.wav"].to(dtype), MEL)
    assert mel.dtype == dtype
    torch.testing.assert_close(mel.float(), golden["mel"], atol=1e-4, rtol=0)


def test_tokenizer_and_speaker_features_equal_upstreams():
    golden = load_file(ASSETS / "frontend.safetensors")
    wav = golden["in.wav16k"][0]
    for found, name in (
        (audio.whisper_log_mel(wav), "whisper_logmel128"),
        (audio.kaldi_fbank(wav), "kaldi_fbank80"),
        (audio.speaker_features(wav)[0], "kaldi_fbank80_cmn"),
    ):
        torch.testing.assert_close(found, golden[name], atol=1e-3, rtol=0)


def test_batches_equal_singles():
    wavs = torch.stack([tone(hz=200), 0.01 * tone(hz=900)])
    for features in (lambda w: audio.log_mel(w, MEL), audio.whisper_log_mel):
        both = features(wavs)
        for wav, one in zip(wavs, both, strict=True):
            torch.testing.assert_close(features(wav)[0], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [960, 1919, 1920, 24_000, 24_001])
def test_mel_has_one_frame_per_hop(n):
    assert audio.log_mel(torch.zeros(n), MEL).shape == (1, 80, n // 480)


def test_log_mel_is_differentiable():
    wav = tone().requires_grad_()
    audio.log_mel(wav, MEL).sum().backward()
    assert wav.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_cuda():
    wav = tone()
    for features in (lambda w: audio.log_mel(w, MEL), audio.whisper_log_mel):
        torch.testing.assert_close(features(wav.cuda()).cpu(), features(wav), atol=1e-3, rtol=1e-3)


def test_waveforms_that_are_too_short_are_refused():
    for features in (lambda w: audio.log_mel(w, MEL), audio.whisper_log_mel, audio.kaldi_fbank):
        with pytest.raises(WorkbenchError, match="expected at least"):
            features(torch.zeros(100))


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(44_100, 24_000), (8_000, 24_000), (44_101, 16_000), (48_000, 16_000)])
def test_resample_keeps_a_tone(rates):
    source, target = rates
    wav = audio.resample(tone(1.0, source), source, target)
    assert abs(len(wav) - target) <= 1
    middle = slice(target // 10, -target // 10)
    torch.testing.assert_close(wav[:target][middle], tone(1.0, target)[: len(wav)][middle], atol=3e-3, rtol=0)


def test_resample_refuses_a_rate_of_zero():
    with pytest.raises(WorkbenchError, match="above 0"):
        audio.resample(tone(), 0, 16_000)


def test_pcm16_survives_a_round_trip(tmp_path):
    first = torch.randint(-32768, 32768, (5000,)) / 32768
    audio.write_wav(tmp_path / "new" / "a.wav", first, 24_000)
    assert torch.equal(read_wav(tmp_path / "new" / "a.wav")[0], first)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.wav"]
    assert soundfile.info(tmp_path / "new" / "a.wav").subtype == "PCM_16"
    (tmp_path / "other").touch()
    assert (tmp_path / "new" / "a.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_samples_beyond_full_scale_are_clipped(tmp_path):
    audio.write_wav(tmp_path / "a.wav", torch.tensor([[2.0, -2.0, 0.5]]), 24_000)
    assert read_wav(tmp_path / "a.wav")[0].tolist() == [32767 / 32768, -1.0, 0.5]


@pytest.mark.parametrize("bad", [[0.0, float("nan")], [float("inf")], [], [[0.0, 0.1], [0.2, 0.3]]])
def test_unusable_waveforms_are_refused_and_the_old_file_stays(tmp_path, bad):
    path = tmp_path / "a.wav"
    audio.write_wav(path, tone(), 24_000)
    before = path.read_bytes()
    with pytest.raises(WorkbenchError, match=r"a\.wav"):
        audio.write_wav(path, torch.tensor(bad), 24_000)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_paths_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkbenchError, match="could not be written"):
        audio.write_wav(tmp_path / "file" / "a.wav", tone(), 24_000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(WorkbenchError, match="could not be written"):
        audio.write_wav(tmp_path / "folder.wav", tone(), 24_000)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size", [(24_000, 1920, 80, 0.0, None), (16_000, 400, 128, 0.0, None), (22_050, 512, 20, 1500.0, 9000.0)]
)
def test_mel_filters_are_librosas_to_the_last_bit(size, dtype):
    rate, n_fft, n_mels, fmin, fmax = size
    kind = np.float32 if dtype == torch.float32 else np.float64
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, dtype=kind)
    found = audio.mel_filters(*size, torch.device("cpu"), dtype)
    assert found.dtype == dtype and np.array_equal(found.numpy(), expected)
    centres = librosa.mel_frequencies(n_mels + 2, fmin=fmin, fmax=fmax or rate / 2)[1:-1]
    assert np.array_equal(audio.mel_centres(n_mels, fmax or rate / 2, fmin).numpy(), centres)
