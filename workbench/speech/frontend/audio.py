"""Waveforms in and out, resampling and log-mel: the one file that knows about audio libraries.

A waveform is a float tensor in [-1, 1] with time last. Log-mels are differentiable, run where the
waveform lies and in its precision (half precision is raised to float32).
"""

import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.speech.config import MelConfig

MAX_SECONDS = 3600
MAX_LEVEL = 100.0  # a float file beyond this holds integers or garbage
WHISPER_RATE = 16_000  # Hz, of the speech tokenizer and of the speaker encoder
_BLOCK = 1 << 16  # frames read at once, so that a header that lies cannot claim the memory
_LARGEST_RATIO = 1024  # torchaudio's polyphase kernel has to stay small


def read_wav(path: str | os.PathLike, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Read a sound file as one channel.

    Parameters
    ----------
    path : path
        Anything libsndfile reads: WAV, FLAC, OGG, MP3, AIFF ...
    sample_rate : int, optional
        Rate to resample to, Hz. None keeps the file's own.

    Returns
    -------
    wav : Tensor (N,)
        float32, mean over channels.
    sample_rate : int
        Its rate, Hz.

    Raises
    ------
    WorkbenchError
        If there is no such file, or it is empty, damaged, not audio or holds NaN or infinity.
    """
    path = _existing_file(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            blocks, frames = [], 0
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
                frames += len(block)
                if frames > MAX_SECONDS * max(rate, 1000):
                    raise WorkbenchError(f"{path} is longer than {MAX_SECONDS} s; cut it first")
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        reason = getattr(error, "error_string", None) or error
        raise WorkbenchError(
            f"{path} could not be read as audio ({reason}); expected WAV, FLAC, OGG or MP3. "
            "It may be damaged, cut off or another kind of file: try converting it to WAV"
        ) from None
    if not blocks:
        raise WorkbenchError(f"{path} holds no samples; expected a recording")
    wav = torch.from_numpy(np.concatenate(blocks))
    if not torch.isfinite(wav).all():
        raise WorkbenchError(f"{path} holds NaN or infinite samples; expected numbers from -1 to 1")
    if (level := wav.abs().max().item()) > MAX_LEVEL:
        raise WorkbenchError(
            f"{path} reaches a level of {level:.3g}; expected samples from -1 to 1: divide by full scale"
        )
    if sample_rate is None or sample_rate == rate:
        return wav, rate
    return resample(wav, rate, sample_rate), sample_rate


def _existing_file(path: str | os.PathLike) -> Path:
    path = Path(path)
    try:
        if path.is_dir():
            raise WorkbenchError(f"{path} is a folder; expected a sound file inside it")
        if not path.is_file():
            raise WorkbenchError(f"{path} does not exist or is not a file; expected a sound file")
        if path.stat().st_size == 0:
            raise WorkbenchError(f"{path} is empty (0 bytes); expected a sound file")
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{str(path)!r} cannot be opened ({error}); expected a sound file") from None
    return path


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample along the last dimension.

    Usual pairs of rates go through torchaudio's windowed sinc, as upstream does; pairs with hardly
    a common divisor (44 101 Hz) go through soxr, because the sinc table would not fit the memory.

    Parameters
    ----------
    wav : Tensor (..., N)
    from_rate, to_rate : int
        Hz.

    Returns
    -------
    Tensor (..., ceil(N * to_rate / from_rate))
    """
    if from_rate < 1 or to_rate < 1:
        raise WorkbenchError(f"cannot resample from {from_rate} Hz to {to_rate} Hz; expected rates above 0")
    if from_rate == to_rate:
        return wav
    if max(from_rate, to_rate) // math.gcd(from_rate, to_rate) <= _LARGEST_RATIO:
        from torchaudio.functional import resample as sinc_resample  # slow to import

        return sinc_resample(wav, from_rate, to_rate)
    if wav.shape[-1] * (to_rate / from_rate) > MAX_SECONDS * 48_000:
        raise WorkbenchError(
            f"{wav.shape[-1]} samples at {from_rate} Hz are longer than {MAX_SECONDS} s; "
            "is the sample rate right?"
        )
    import librosa

    out = librosa.resample(
        wav.detach().cpu().numpy(), orig_sr=from_rate, target_sr=to_rate, res_type="soxr_hq"
    )
    return torch.from_numpy(out).to(wav)


def write_wav(path: str | os.PathLike, wav: Tensor | np.ndarray, sample_rate: int) -> None:
    """Write a 16-bit PCM WAV at the waveform's own level.

    The file appears whole or not at all: it is written under another name and then renamed.
    Samples beyond [-1, 1] saturate.

    Parameters
    ----------
    path : path
        Folders on the way are made.
    wav : Tensor or array (N,) or (1, N)
    sample_rate : int
        Hz.
    """
    samples = torch.as_tensor(wav).detach().cpu().double().squeeze().numpy()
    path = Path(path)
    if samples.ndim != 1 or not len(samples):
        raise WorkbenchError(f"{path}: a waveform of shape {tuple(wav.shape)}; expected (N,), one channel")
    if bad := int((~np.isfinite(samples)).sum()):
        raise WorkbenchError(f"{path} not written: {bad} of {len(samples)} samples are NaN or infinite")
    pcm = to_pcm16(samples)
    with atomic_write(path) as draft:
        try:
            soundfile.write(str(draft), pcm, int(sample_rate), format="WAV", subtype="PCM_16")
        except (RuntimeError, ValueError, TypeError) as error:
            raise WorkbenchError(f"{path} could not be written ({error}); is the folder writable?") from None


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Return finite samples as 16-bit integers; full scale is 1, and what is beyond saturates."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


@lru_cache(maxsize=16)
def _mel_filters(
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    fmin: float,
    fmax: float | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    import librosa

    kind = np.float64 if dtype == torch.float64 else np.float32
    filters = librosa.filters.mel(
        sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=False, norm="slaney", dtype=kind
    )
    return torch.from_numpy(filters).to(device)


def mel_centres(n_mels: int, fmax: float, fmin: float = 0.0) -> Tensor:
    """Hz where each band of `log_mel` is most sensitive, (n_mels,) float64; Slaney's scale."""
    import librosa

    return torch.from_numpy(librosa.mel_frequencies(n_mels + 2, fmin=fmin, fmax=fmax))[1:-1]


def _batched(wav: Tensor, least: int) -> Tensor:
    if wav.ndim not in (1, 2):
        raise WorkbenchError(f"a waveform of shape {tuple(wav.shape)}; expected (N,) or (B, N)")
    if wav.shape[-1] < least:
        raise WorkbenchError(f"a waveform of {wav.shape[-1]} samples; expected at least {least}")
    wav = wav if wav.dtype == torch.float64 else wav.float()
    return wav.reshape(-1, wav.shape[-1])


def log_mel(wav: Tensor, config: MelConfig) -> Tensor:
    """Natural-log mel magnitudes, the flow's target.

    Parameters
    ----------
    wav : Tensor (N,) or (B, N)
        At `config.sample_rate`.
    config : MelConfig

    Returns
    -------
    Tensor (B, M, T)
        `ln(max(mel, 1e-5))`, `T = N // hop_length`.
    """
    margin = (config.n_fft - config.hop_length) // 2
    wav = _batched(wav, max(margin + 1, config.hop_length))
    window = torch.hann_window(config.win_length, device=wav.device, dtype=wav.dtype)
    padded = F.pad(wav, (margin, margin), mode="reflect")
    spectrum = torch.stft(
        padded, config.n_fft, config.hop_length, config.win_length, window, center=False, return_complex=True
    )
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    filters = _mel_filters(
        config.sample_rate, config.n_fft, config.n_mels, config.fmin, config.fmax, wav.device, wav.dtype
    )
    return (filters @ magnitude).clamp(min=1e-5).log()


def whisper_log_mel(wav16: Tensor, n_mels: int = 128) -> Tensor:
    """Whisper's log-mel, the speech tokenizer's input (100 frames per second, no padding to 30 s).

    Parameters
    ----------
    wav16 : Tensor (N,) or (B, N)
        At 16 kHz.
    n_mels : int
        Mel bins.

    Returns
    -------
    Tensor (B, n_mels, T)
        log10 power, floored 8 below its own maximum and scaled to about [-1, 1]; `T = N // 160`.
    """
    wav = _batched(wav16, 400)
    window = torch.hann_window(400, device=wav.device, dtype=wav.dtype)
    spectrum = torch.stft(wav, 400, 160, 400, window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[..., :-1].abs().square()
    filters = _mel_filters(WHISPER_RATE, 400, n_mels, 0.0, None, wav.device, wav.dtype)
    log = (filters @ power).clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
    return (log + 4.0) / 4.0


def kaldi_fbank(wav16: Tensor) -> Tensor:
    """Kaldi's 80 log filterbank energies, 100 frames per second, without dither.

    Parameters
    ----------
    wav16 : Tensor (N,)
        At 16 kHz.

    Returns
    -------
    Tensor (T, 80)
    """
    wav = _batched(wav16, 400)
    if len(wav) != 1:
        raise WorkbenchError(f"{len(wav)} waveforms at once; expected one: call kaldi_fbank for each")
    from torchaudio.compliance.kaldi import fbank  # slow to import

    return fbank(wav, num_mel_bins=80, dither=0.0, sample_frequency=WHISPER_RATE)


def speaker_features(wav16: Tensor) -> Tensor:
    """Kaldi filterbank minus its mean over time, the speaker encoder's input.

    Parameters
    ----------
    wav16 : Tensor (N,)
        At 16 kHz.

    Returns
    -------
    Tensor (1, T, 80)
    """
    features = kaldi_fbank(wav16)
    return (features - features.mean(dim=0, keepdim=True)).unsqueeze(0)
