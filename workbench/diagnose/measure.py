"""Trace or waveform -> numbers."""

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

SILENCE_DBFS = -50.0  # a 20 ms frame below this is silence
FRAME_S = 0.02


def wave_stats(wav: Tensor, sample_rate: int, audio_limit: float = 0.99) -> dict[str, float]:
    """Return what a first look at a waveform should tell.

    Parameters
    ----------
    wav : Tensor (N,)
        Full scale is 1.
    sample_rate : int
        Hz.
    audio_limit : float
        Where the vocoder clamps; samples at or beyond it count as clamped.

    Returns
    -------
    dict
        `seconds`, `peak` and `rms` (of full scale), `dc` (mean), `clamped` and `nonfinite` (samples),
        `silence` (share of 20 ms frames below -50 dBFS, 0..1).

    Raises
    ------
    WorkbenchError
        When wav is not one-dimensional or empty.
    """
    if wav.ndim != 1 or not len(wav):
        raise WorkbenchError(
            f"a waveform of shape {tuple(wav.shape)} found; expected (samples,) and not empty"
        )
    finite = wav[wav.isfinite()].double()
    nonfinite = len(wav) - len(finite)
    if not len(finite):
        finite = torch.full((1,), float("nan"), dtype=torch.float64)
    n = max(1, round(FRAME_S * sample_rate))
    frames = finite[: len(finite) // n * n].view(-1, n) if len(finite) >= n else finite[None]
    level = frames.square().mean(1).clamp(min=1e-20).log10() * 10
    return {
        "seconds": len(wav) / sample_rate,
        "peak": float(finite.abs().max()),
        "rms": float(finite.square().mean().sqrt()),
        "dc": float(finite.mean()),
        "clamped": int((finite.abs() >= audio_limit).sum()),
        "nonfinite": nonfinite,
        "silence": float((level < SILENCE_DBFS).double().mean()),
    }
