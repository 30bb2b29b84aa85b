"""Trace or waveform -> numbers."""

import math
import warnings

import numpy as np
import torch
from pyloudnorm import Meter
from scipy.signal import resample_poly
from torch import Tensor

from workbench.diagnose.glitches.analysis import LARGEST, decibel, runs
from workbench.errors import WorkbenchError

SILENCE_DBFS = -50.0  # a 20 ms frame below this is silence
FRAME_S = 0.02
BLOCK_S = 0.4  # of momentary loudness, ITU-R BS.1770-4
LEAST_RATE = 4000  # Hz; its weighting is made for more


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


def wave_report(wav: Tensor, sample_rate: int, audio_limit: float = 0.99) -> dict[str, float]:
    """Return what audio tools tell of a waveform, beside `wave_stats`.

    Parameters
    ----------
    wav : Tensor (N,)
        Full scale is 1.
    sample_rate : int
        Hz.
    audio_limit : float
        As for `wave_stats`.

    Returns
    -------
    dict
        What `wave_stats` returns, and: `true_peak` (dB of full scale, at four times the rate, ITU-R BS.1770),
        `lufs` (integrated loudness), `lufs_momentary` (highest of 400 ms), `crest` (peak over rms),
        `zero_crossings` (a second), `noise_floor` (dB, level that a tenth of the 20 ms frames stays below),
        `flat` (samples, the longest run of one value), `nan`, `inf` and `denormal` (samples). NaN where a
        waveform is too short or silent to say.

    Raises
    ------
    WorkbenchError
        When wav is not one-dimensional or empty.
    """
    found = wave_stats(wav, sample_rate, audio_limit)
    x = wav.detach().cpu().double()
    x = x[x.isfinite()].clamp(-LARGEST, LARGEST).numpy()
    flat = max((b - a for a, b in runs(np.diff(x) == 0)), default=0) + min(len(x), 1)
    smallest = torch.finfo(wav.dtype if wav.is_floating_point() else torch.float32).tiny
    level = decibel(np.square(_frames(x, round(FRAME_S * sample_rate))).mean(1)) if len(x) else [math.nan]
    return found | {
        "true_peak": _true_peak(x),
        "lufs": loudness(x, sample_rate),
        "lufs_momentary": max(
            (
                loudness(x[i : i + round(BLOCK_S * sample_rate) + 1], sample_rate)
                for i in _blocks(x, sample_rate)
            ),
            default=math.nan,
        ),
        "crest": found["peak"] / found["rms"] if found["rms"] else math.nan,
        "zero_crossings": float((x[1:] * x[:-1] < 0).sum()) / max(len(x), 1) * sample_rate,
        "noise_floor": float(np.percentile(level, 10)),
        "flat": int(flat),
        "nan": int(wav.isnan().sum()),
        "inf": int(wav.isinf().sum()),
        "denormal": int(((np.abs(x) > 0) & (np.abs(x) < smallest)).sum()),
    }


def _true_peak(x: np.ndarray) -> float:
    return float(decibel(np.square(np.abs(resample_poly(x, 4, 1)).max()))) if len(x) else math.nan


def _blocks(x: np.ndarray, sample_rate: int) -> range:
    """Where blocks of 400 ms begin, a quarter apart."""
    return range(0, len(x) - round(BLOCK_S * sample_rate), max(1, round(BLOCK_S * sample_rate / 4)))


def loudness(x: np.ndarray, sample_rate: int) -> float:
    """Gated loudness, LUFS; NaN for what is too short, silent or sampled too slowly."""
    if len(x) <= BLOCK_S * sample_rate or sample_rate < LEAST_RATE:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # silence has no loudness, which pyloudnorm warns of
        found = float(Meter(sample_rate).integrated_loudness(x))
    return found if math.isfinite(found) else math.nan


def _frames(x: np.ndarray, n: int) -> np.ndarray:
    n = min(max(n, 1), len(x))
    return x[: len(x) // n * n].reshape(-1, n)
