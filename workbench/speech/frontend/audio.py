"""Write and resample waveforms and compute features; `audio_files.py` reads files.

No file but these two imports audio libraries. A waveform is a float tensor in [-1, 1] whose last dimension is
time. Log-mels are differentiable and computed on the waveform's device and in its precision (half precision
is raised to float32).
"""

import io
import math
import os
from collections.abc import Iterator
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

MAX_SAMPLES = 600 * 48_000  # of a file, or of a waveform that is resampled; bounds memory
WHISPER_RATE = 16_000  # Hz, of the speech tokenizer and of the speaker encoder
MAX_RATE_RATIO = 1024  # numerator or denominator of two rates; torchaudio's filters grow with it
PCM16_FULL_SCALE = 32768
# What is computed at once of a long waveform; bounds memory. Each block is read with its neighbours' edges.
BLOCK_SAMPLES = 1 << 18  # of resampling, and of what becomes PCM
RESAMPLER_REACH = 64  # samples of the lower rate that torchaudio's filter reaches at most to either side
BLOCK_VALUES = 1 << 19  # of the windows of spectra, and of frames whose pitch is looked for

# Whisper's features, at 16 kHz.
WHISPER_WINDOW = 400  # samples, 25 ms
WHISPER_HOP = 160  # samples, 10 ms
WHISPER_RANGE = 8.0  # log10 units that are kept below the maximum: 80 dB
FBANK_BINS = 80  # of Kaldi's features
# Slaney's mel scale: linear below 1 kHz, logarithmic above.
HZ_PER_MEL = 200 / 3
LOG_HZ = 1000.0
LOG_MEL = LOG_HZ / HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27  # of one mel


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample along the last dimension.

    Usual pairs of rates use torchaudio's windowed sinc, as upstream does. Pairs with a small common divisor,
    such as 44101 and 16000 Hz, use soxr, because torchaudio's filters would not fit into memory.

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
    if wav.shape[-1] * (to_rate / from_rate) > MAX_SAMPLES:
        raise WorkbenchError(
            f"{wav.shape[-1]} samples at {from_rate} Hz would be more than {MAX_SAMPLES / 1e6:g} million at "
            f"{to_rate} Hz; is the sample rate right?"
        )
    if max(from_rate, to_rate) // math.gcd(from_rate, to_rate) <= MAX_RATE_RATIO:
        return _sinc_resample(wav, from_rate, to_rate)
    import librosa

    out = librosa.resample(
        wav.detach().cpu().numpy(), orig_sr=from_rate, target_sr=to_rate, res_type="soxr_hq"
    )
    return torch.from_numpy(out).to(wav)


def _sinc_resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample with torchaudio's windowed sinc.

    In blocks where it is float64: torch's convolution copies such a sample as often as the filter reads it.
    """
    from torchaudio.functional import resample as sinc_resample  # slow to import

    if wav.dtype != torch.float64:
        return sinc_resample(wav, from_rate, to_rate)
    divisor = math.gcd(from_rate, to_rate)
    old, new = from_rate // divisor, to_rate // divisor  # so many samples become so many
    block = max(1, BLOCK_SAMPLES // old) * old
    margin = RESAMPLER_REACH * -(-max(1, from_rate // to_rate) // old) * old
    n = wav.shape[-1]
    length = int(torch.ceil(torch.as_tensor(new * n / old)))  # torchaudio's count, which float32 rounds
    found = wav.new_empty((*wav.shape[:-1], length))
    for start in range(0, n, block):
        first = max(0, start - margin)
        part = sinc_resample(wav[..., first : start + block + margin], from_rate, to_rate)
        place, skipped = start // old * new, (start - first) // old * new
        size = min(block // old * new, length - place)
        found[..., place : place + size] = part[..., skipped : skipped + size]
    return found


def write_wav(path: str | os.PathLike, wav: Tensor | np.ndarray, sample_rate: int) -> None:
    """Write a 16-bit PCM WAV, atomically and without changing the level.

    Samples beyond [-1, 1] are clipped.

    Parameters
    ----------
    path : path
        Missing folders are made.
    wav : Tensor or array (N,) or (1, N)
    sample_rate : int
        Hz.
    """
    samples = torch.as_tensor(wav).detach().cpu().double().squeeze().numpy()
    path = Path(path)
    if samples.ndim != 1 or not len(samples):
        raise WorkbenchError(f"{path}: a waveform of shape {tuple(wav.shape)}; expected (N,), one channel")
    n_bad = int((~np.isfinite(samples)).sum())
    if n_bad:
        raise WorkbenchError(f"{path} not written: {n_bad} of {len(samples)} samples are NaN or infinite")
    pcm = to_pcm16(samples)
    with atomic_write(path) as draft:
        try:
            soundfile.write(str(draft), pcm, int(sample_rate), format="WAV", subtype="PCM_16")
        except (RuntimeError, ValueError, TypeError) as error:
            raise WorkbenchError(f"{path} could not be written ({error}); is the folder writable?") from None


def flac_file(samples: np.ndarray, sample_rate: int) -> bytes:
    """Return samples (N,) as PCM16 in a FLAC file: lossless, and about two thirds of a WAV of speech."""
    file = io.BytesIO()
    soundfile.write(file, to_pcm16(samples), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Return samples as 16-bit integers; 1.0 is full scale, and samples beyond it are clipped."""
    made = np.empty(samples.shape, np.int16)
    for start in range(0, len(samples), BLOCK_SAMPLES):  # in blocks, which bounds the memory of copies
        part = slice(start, start + BLOCK_SAMPLES)
        scaled = np.rint(samples[part] * PCM16_FULL_SCALE)
        made[part] = np.clip(scaled, -PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1)
    return made


@lru_cache(maxsize=16)
def mel_filters(
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    fmin: float,
    fmax: float | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return Slaney's triangular filters (n_mels, n_fft / 2 + 1)."""
    edges = _mel_frequencies(n_mels + 2, fmin, sample_rate / 2 if fmax is None else fmax)
    width = np.diff(edges)[:, None]
    distance = np.subtract.outer(edges, np.fft.rfftfreq(n_fft, 1 / sample_rate))
    rising, falling = -distance[:-2] / width[:-1], distance[2:] / width[1:]
    kind = np.float64 if dtype == torch.float64 else np.float32
    filters = np.maximum(0, np.minimum(rising, falling)).astype(kind)
    filters *= (2 / (edges[2:] - edges[:-2]))[:, None]  # each has the same area
    return torch.from_numpy(filters).to(device)


def frame_blocks(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cover `count` frames of `size` values, so that what is made of each fits memory."""
    step = max(1, BLOCK_VALUES // size)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def mel_centres(n_mels: int, fmax: float, fmin: float = 0.0) -> Tensor:
    """Return the frequency at which each band of `log_mel` is most sensitive, Hz, (n_mels,) float64."""
    return torch.from_numpy(_mel_frequencies(n_mels + 2, fmin, fmax))[1:-1]


def _mel_frequencies(count: int, fmin: float, fmax: float) -> np.ndarray:
    """Return frequencies in Hz, evenly spaced on Slaney's mel scale; the same bits as librosa's.

    Not by librosa, because it imports a compiler: a third of a second, for filters that every prompt needs.
    """
    low, high = (
        LOG_MEL + np.log(hz / LOG_HZ) / LOG_STEP if hz >= LOG_HZ else hz / HZ_PER_MEL for hz in (fmin, fmax)
    )
    mels = np.linspace(low, high, count)
    return np.where(mels >= LOG_MEL, LOG_HZ * np.exp(LOG_STEP * (mels - LOG_MEL)), HZ_PER_MEL * mels)


def _batched(wav: Tensor, min_samples: int) -> Tensor:
    """Return a waveform as (B, N), float32 or float64."""
    if wav.ndim not in (1, 2):
        raise WorkbenchError(f"a waveform of shape {tuple(wav.shape)}; expected (N,) or (B, N)")
    if wav.shape[-1] < min_samples:
        raise WorkbenchError(f"a waveform of {wav.shape[-1]} samples; expected at least {min_samples}")
    wav = wav if wav.dtype == torch.float64 else wav.float()
    return wav.reshape(-1, wav.shape[-1])


def log_mel(wav: Tensor, config: MelConfig) -> Tensor:
    """Return natural-log mel magnitudes, which the flow generates.

    Parameters
    ----------
    wav : Tensor (N,) or (B, N)
        At `config.sample_rate`.
    config : MelConfig

    Returns
    -------
    Tensor (B, M, T)
        `ln(max(mel, 1e-5))`, `T = N // hop_length`.

    Examples
    --------
    >>> import torch
    >>> tuple(wb.log_mel(torch.zeros(24_000), voice.config.mel).shape)  # one second
    (1, 80, 50)
    """
    margin = (config.n_fft - config.hop_length) // 2  # so that a frame is centred on its hop
    wav = _batched(wav, max(margin + 1, config.hop_length))  # reflection needs more samples than the margin
    window = torch.hann_window(config.win_length, device=wav.device, dtype=wav.dtype)
    padded = F.pad(wav, (margin, margin), mode="reflect")
    filters = mel_filters(
        config.sample_rate, config.n_fft, config.n_mels, config.fmin, config.fmax, wav.device, wav.dtype
    )
    hop = config.hop_length
    # Products of other shapes may round otherwise. Prompts and runs, float32, are computed at once to 43 s:
    # a seed gives the same bytes in every version.
    size = config.n_fft if wav.dtype == torch.float64 else config.n_fft // 8
    mels = []
    for block in frame_blocks((padded.shape[-1] - config.n_fft) // hop + 1, size):
        part = padded[:, block.start * hop : (block.stop - 1) * hop + config.n_fft]
        spectrum = torch.stft(
            part, config.n_fft, hop, config.win_length, window, center=False, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (B, n_fft / 2 + 1, T)
        magnitude = (power + 1e-9).sqrt()  # upstream's offset; it keeps the gradient finite at 0
        mels.append((filters @ magnitude).clamp(min=1e-5).log())
    return torch.cat(mels, -1)


def whisper_log_mel(wav16: Tensor, n_mels: int = 128) -> Tensor:
    """Return Whisper's log-mel, the speech tokenizer's input: 100 frames per second, not padded to 30 s.

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
    wav = _batched(wav16, WHISPER_WINDOW)
    window = torch.hann_window(WHISPER_WINDOW, device=wav.device, dtype=wav.dtype)
    spectrum = torch.stft(
        wav, WHISPER_WINDOW, WHISPER_HOP, WHISPER_WINDOW, window, center=True, pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    power = spectrum[..., :-1].abs().square()  # (B, 201, T): Whisper drops the last frame
    filters = mel_filters(WHISPER_RATE, WHISPER_WINDOW, n_mels, 0.0, None, wav.device, wav.dtype)
    log = (filters @ power).clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - WHISPER_RANGE)
    return (log + 4.0) / 4.0  # Whisper's scaling


def kaldi_fbank(wav16: Tensor) -> Tensor:
    """Return Kaldi's 80 log filterbank energies, 100 frames per second, without dither.

    Parameters
    ----------
    wav16 : Tensor (N,)
        At 16 kHz.

    Returns
    -------
    Tensor (T, 80)
    """
    wav = _batched(wav16, WHISPER_WINDOW)
    if len(wav) != 1:
        raise WorkbenchError(f"{len(wav)} waveforms at once; expected one: call kaldi_fbank for each")
    from torchaudio.compliance.kaldi import fbank  # slow to import

    return fbank(wav, num_mel_bins=FBANK_BINS, dither=0.0, sample_frequency=WHISPER_RATE)


def speaker_features(wav16: Tensor) -> Tensor:
    """Return Kaldi's filterbank minus its mean over time, the speaker encoder's input.

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


def change_speed(wav: np.ndarray, factor: float) -> np.ndarray:
    """Return samples (N,) played `factor` times as fast, at the same rate; band-limited by soxr."""
    import librosa

    return librosa.resample(wav, orig_sr=factor, target_sr=1.0, res_type="soxr_vhq")


def pitch(wav: np.ndarray, sample_rate: int, low: float, high: float, hop_length: int) -> np.ndarray:
    """Return F0 of every hop in Hz, by the YIN method, also of hops that have no voice."""
    import librosa

    periods = 3 * math.ceil(sample_rate / low)  # samples in a frame; YIN needs more than two periods
    padded = np.pad(wav, periods // 2)  # so that a frame is centred on its hop
    settings = {"sr": sample_rate, "frame_length": periods, "hop_length": hop_length, "center": False}
    found = []
    for block in frame_blocks((len(padded) - periods) // hop_length + 1, periods):
        part = padded[block.start * hop_length : (block.stop - 1) * hop_length + periods]
        found.append(librosa.yin(part, fmin=low, fmax=high, **settings))
    return np.concatenate(found)


def warping_path(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean cost and the path (steps, 2) by which features (D, T) of two sounds match best."""
    import librosa

    costs, path = librosa.sequence.dtw(x, y, metric="euclidean")
    return float(costs[-1, -1]) / len(path), path[::-1]
