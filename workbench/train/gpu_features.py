"""Log-mels of many utterances at once, on whatever device the waveforms are on.

The numbers are those of `speech.audio`, which hears one utterance at a time; here every window of
every utterance is cut by one gather, because a loop of small transforms leaves a GPU idle.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torchaudio

SAMPLE_RATE = 24_000  # Hz
_GAP = 48  # zeros between utterances while resampling, longer than the filter's reach


class Features:
    """Frames of every utterance in one tensor.

    Parameters
    ----------
    data : Tensor (frames, bins)
        All utterances one after another.
    offsets : Tensor (utterances + 1,)
        Utterance `i` is `data[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, data: torch.Tensor, offsets: torch.Tensor):
        self.data, self.offsets = data, offsets
        self.lengths = offsets[1:] - offsets[:-1]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def batch(
        self, indices: torch.Tensor, n_frames: int | None = None, starts: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather utterances, zero padded behind their end.

        Parameters
        ----------
        indices : Tensor (B,)
            Which utterances, on the device of `data`.
        n_frames : int, optional
            Width of the batch; the longest of its utterances by default.
        starts : Tensor (B,), optional
            First frame of each, 0 by default.

        Returns
        -------
        (Tensor (B, T, bins) float32, Tensor (B,))
            The frames and how many of each row are real.
        """
        starts = torch.zeros_like(indices) if starts is None else starts
        left = (self.lengths[indices] - starts).clamp(min=0)
        width = int(left.max()) if n_frames is None else n_frames
        left = left.clamp(max=width)
        step = torch.arange(width, device=self.data.device)
        at = (self.offsets[indices] + starts)[:, None] + step
        frames = self.data[at.clamp(max=len(self.data) - 1)].float()
        return frames * (step < left[:, None])[..., None], left

    def save(self, path: Path) -> None:
        """Write `data` and `offsets` as a dict of CPU tensors."""
        torch.save({"data": self.data.cpu(), "offsets": self.offsets.cpu()}, path)

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> "Features":
        """Read what `save` wrote."""
        read = torch.load(path, weights_only=True, map_location=device)
        return cls(read["data"], read["offsets"])


def extract(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    transform: Callable,
    device: str | torch.device,
    bins: int,
) -> Features:
    """Run one of the transforms below over chunks of (samples, lengths), float16."""
    data, counts = [torch.zeros(0, bins, dtype=torch.float16, device=device)], [torch.zeros(1).long()]
    for samples, lengths in chunks:
        wav = torch.from_numpy(np.array(samples)).to(device).float() / 32768
        frames, n_frames = transform(wav, torch.from_numpy(lengths.copy()).to(device))
        data.append(frames.half())
        counts.append(n_frames.cpu())
    return Features(torch.cat(data), torch.cat(counts).cumsum(0).to(device))


def log_mels(wav: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Natural-log mel at 50 Hz, the flow's target.

    Parameters
    ----------
    wav : Tensor (samples,)
        Utterances at 24 kHz, one after another.
    lengths : Tensor (utterances,)
        Samples of each.

    Returns
    -------
    (Tensor (frames, 80), Tensor (utterances,))
        Frames of all, and how many each has.
    """
    n_frames = lengths // 480
    frames = _frames(wav, _starts(lengths), lengths, n_frames, size=1920, hop=480, pad=720)
    window = torch.hann_window(1920, device=wav.device)
    magnitude = (torch.fft.rfft(frames * window).abs().square() + 1e-9).sqrt()
    return (magnitude @ _slaney(961, 24_000, 80).to(wav)).clamp(min=1e-5).log(), n_frames


def whisper_log_mels(wav: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whisper's log-mel at 100 Hz.

    Parameters
    ----------
    wav : Tensor (samples,)
        Utterances at 24 kHz, one after another.
    lengths : Tensor (utterances,)
        Samples of each.

    Returns
    -------
    (Tensor (frames, 128), Tensor (utterances,))
        Frames of all, and how many each has.
    """
    wav, starts, lengths = _to_16k(wav, lengths)
    n_frames = lengths // 160
    frames = _frames(wav, starts, lengths, n_frames, size=400, hop=160, pad=200)
    power = torch.fft.rfft(frames * torch.hann_window(400, device=wav.device)).abs().square()
    logs = (power @ _slaney(201, 16_000, 128).to(wav)).clamp(min=1e-10).log10()
    owner = torch.arange(len(lengths), device=wav.device).repeat_interleave(n_frames)
    peak = torch.full((len(lengths),), -10.0, device=wav.device)
    peak = peak.scatter_reduce(0, owner, logs.amax(dim=1), "amax")
    return (torch.maximum(logs, peak[owner, None] - 8) + 4) / 4, n_frames


def kaldi_fbanks(wav: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Kaldi's filter bank at 100 Hz, mean not removed.

    Parameters
    ----------
    wav : Tensor (samples,)
        Utterances at 24 kHz, one after another.
    lengths : Tensor (utterances,)
        Samples of each.

    Returns
    -------
    (Tensor (frames, 80), Tensor (utterances,))
        Frames of all, and how many each has.
    """
    wav, starts, lengths = _to_16k(wav, lengths)
    n_frames = (1 + (lengths - 400) // 160).clamp(min=0)
    frames = _frames(wav, starts, lengths, n_frames, size=400, hop=160, pad=0)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    povey = torch.hann_window(400, periodic=False, device=wav.device) ** 0.85
    power = torch.fft.rfft((frames - 0.97 * before) * povey, n=512).abs().square()
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(80, 512, 16_000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    return (power[:, :256] @ banks.T.to(wav)).clamp(min=torch.finfo(torch.float32).eps).log(), n_frames


def _frames(wav, starts, lengths, n_frames, size, hop, pad) -> torch.Tensor:
    """Cut windows of every utterance, each mirrored at its own two ends."""
    owner = torch.arange(len(lengths), device=wav.device).repeat_interleave(n_frames)
    number = torch.arange(len(owner), device=wav.device) - _starts(n_frames)[owner]
    at = (number * hop - pad)[:, None] + torch.arange(size, device=wav.device)
    last = (lengths - 1)[owner, None]
    at = (last - (at.abs() - last).abs()).clamp(min=0)
    return wav[starts[owner, None] + at]


def _to_16k(wav, lengths) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Resample each utterance as if it were alone; return samples, starts and lengths at 16 kHz."""
    room = (lengths + 2) // 3 * 3 + _GAP
    begin = _starts(room)
    owner = torch.arange(len(lengths), device=wav.device).repeat_interleave(lengths)
    spread = torch.zeros(int(room.sum()), device=wav.device)
    spread[begin[owner] + torch.arange(len(wav), device=wav.device) - _starts(lengths)[owner]] = wav
    return _resampler(wav.device)(spread), begin * 2 // 3, (2 * lengths + 2) // 3


def _starts(lengths: torch.Tensor) -> torch.Tensor:
    return lengths.cumsum(0) - lengths


@functools.cache
def _resampler(device: torch.device) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(SAMPLE_RATE, 16_000).to(device)


@functools.cache
def _slaney(n_freqs: int, rate: int, n_mels: int) -> torch.Tensor:
    return torchaudio.functional.melscale_fbanks(n_freqs, 0.0, rate / 2, n_mels, rate, "slaney", "slaney")
