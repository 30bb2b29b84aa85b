"""General figures of a waveform: peak, loudness, offset, silence, clipping."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from workbench.diagnose.glitches.analysis import BLOCK_SAMPLES, MAX_AMPLITUDE, decibel, intervals
from workbench.errors import WorkbenchError
from workbench.speech.config import RELEASED

AUDIO_LIMIT = RELEASED.hift.audio_limit  # of full scale; where the vocoder clamps
SILENCE_DBFS = -50.0  # dB of full scale; frames below are silence
FRAME_S = 0.02  # seconds in a frame
EPS_POWER = 1e-20  # keeps the logarithm of digital silence finite
BLOCK_S = 0.4  # seconds; momentary loudness is measured over so much (ITU-R BS.1770-4)
BLOCK_OVERLAP = 4  # blocks begin a quarter of a block apart, as the standard says
MIN_LOUDNESS_RATE = 4000  # Hz; the standard's frequency weighting needs a higher sample rate
OVERSAMPLING = 4  # for the true peak, as the standard says
FILTER_REACH = 16  # samples; scipy's filter for that reads 10 to either side
FLOOR_PERCENTILE = 10  # of the frames' levels; the quietest tenth is background


def wave_stats(wav: Tensor, sample_rate: int, audio_limit: float = AUDIO_LIMIT) -> dict[str, float]:
    """Return the basic figures of a waveform.

    Parameters
    ----------
    wav : Tensor (N,)
        Full scale is 1.
    sample_rate : int
        Hz.
    audio_limit : float
        The vocoder's clamp; samples at or beyond it count as clamped.

    Returns
    -------
    dict
        `seconds`, `peak` and `rms` (of full scale), `dc` (mean), `clamped` and `nonfinite` (samples),
        `silence` (share of 20 ms frames below -50 dBFS, 0..1).

    Raises
    ------
    WorkbenchError
        When wav is not one-dimensional or empty.

    Examples
    --------
    >>> stats = wb.wave_stats(trace.wav, trace.sample_rate)
    >>> stats["seconds"], stats["clamped"], stats["nonfinite"]
    (1.2, 0, 0)
    """
    if wav.ndim != 1 or not len(wav):
        raise WorkbenchError(
            f"a waveform of shape {tuple(wav.shape)} found; expected (samples,) and not empty"
        )
    is_finite = wav.isfinite()
    finite = (wav if is_finite.all() else wav[is_finite]).double()
    nonfinite = len(wav) - len(finite)
    if not len(finite):
        finite = torch.full((1,), float("nan"), dtype=torch.float64)
    n = max(1, round(FRAME_S * sample_rate))
    frames = finite[: len(finite) // n * n].view(-1, n) if len(finite) >= n else finite[None]  # (frames, n)
    level = frames.square().mean(1).clamp(min=EPS_POWER).log10() * 10
    return {
        "seconds": len(wav) / sample_rate,
        "peak": float(finite.abs().max()),
        "rms": float(finite.square().mean().sqrt()),
        "dc": float(finite.mean()),
        "clamped": int((finite.abs() >= audio_limit).sum()),
        "nonfinite": nonfinite,
        "silence": float((level < SILENCE_DBFS).double().mean()),
    }


def wave_report(wav: Tensor, sample_rate: int, audio_limit: float = AUDIO_LIMIT) -> dict[str, float]:
    """Return the figures of `wave_stats` and those that audio tools show.

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
        The figures of `wave_stats`, and: `true_peak` (dB of full scale, at four times the rate, ITU-R
        BS.1770), `lufs` (integrated loudness), `lufs_momentary` (highest loudness of 400 ms), `crest` (peak
        over rms), `zero_crossings` (per second), `noise_floor` (dB; a tenth of the 20 ms frames is quieter),
        `flat` (samples; the longest run of one value), `nan`, `inf` and `denormal` (samples). A figure is NaN
        where the waveform is too short or silent for it.

    Raises
    ------
    WorkbenchError
        When wav is not one-dimensional or empty.
    """
    stats = wave_stats(wav, sample_rate, audio_limit)
    x = wav.detach().cpu().double()
    if not x.isfinite().all():
        x = x[x.isfinite()]
    x = x.numpy()
    if np.abs(x).max(initial=0.0) > MAX_AMPLITUDE:
        x = x.clip(-MAX_AMPLITUDE, MAX_AMPLITUDE)

    # Between n equal samples in a row lie n - 1 differences of zero.
    flat = max((end - first for first, end in intervals(np.diff(x) == 0)), default=0) + min(len(x), 1)
    # The smallest normal number of the dtype that the samples came in.
    tiny = torch.finfo(wav.dtype if wav.is_floating_point() else torch.float32).tiny
    noise_floor = math.nan
    if len(x):
        level = decibel(np.square(_frames(x, round(FRAME_S * sample_rate))).mean(1))
        noise_floor = float(np.percentile(level, FLOOR_PERCENTILE))
    return stats | {
        "true_peak": _true_peak(x),
        "lufs": loudness(x, sample_rate),
        "lufs_momentary": _momentary_loudness(x, sample_rate),
        "crest": stats["peak"] / stats["rms"] if stats["rms"] else math.nan,
        "zero_crossings": float((x[1:] * x[:-1] < 0).sum()) / max(len(x), 1) * sample_rate,
        "noise_floor": noise_floor,
        "flat": int(flat),
        "nan": int(wav.isnan().sum()),
        "inf": int(wav.isinf().sum()),
        "denormal": int(((x != 0) & (x > -tiny) & (x < tiny)).sum()),
    }


def loudness(x: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness of samples (N,), LUFS (ITU-R BS.1770).

    NaN for a waveform that is silent, not longer than one block of 400 ms, or sampled at less than 4 kHz.
    """
    if len(x) <= BLOCK_S * sample_rate or sample_rate < MIN_LOUDNESS_RATE:
        return math.nan
    from pyloudnorm import Meter  # imports scipy.signal, half a second that `wave_stats` alone does not need

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # silence has no loudness, which pyloudnorm warns of
        found = float(Meter(sample_rate, block_size=BLOCK_S).integrated_loudness(x))
    return found if math.isfinite(found) else math.nan


def _momentary_loudness(x: np.ndarray, sample_rate: int) -> float:
    """Return the highest loudness of any block of 400 ms, LUFS; NaN if there is no block."""
    block = round(BLOCK_S * sample_rate)
    step = max(1, round(BLOCK_S * sample_rate / BLOCK_OVERLAP))
    # One sample more than a block, because pyloudnorm refuses what is not longer than one.
    found = [loudness(x[i : i + block + 1], sample_rate) for i in range(0, len(x) - block, step)]
    return max(found, default=math.nan)


def _true_peak(x: np.ndarray) -> float:
    """Return the highest level between samples as well as at them, dB of full scale."""
    from scipy.signal import resample_poly  # slow to import; `wave_stats` does not need it

    highest = math.nan
    for start in range(0, len(x), BLOCK_SAMPLES):
        # Each block with the samples around it that the filter reads.
        part = x[max(0, start - FILTER_REACH) : start + BLOCK_SAMPLES + FILTER_REACH]
        first = OVERSAMPLING * min(start, FILTER_REACH)
        between = resample_poly(part, OVERSAMPLING, 1)[first : first + OVERSAMPLING * BLOCK_SAMPLES]
        highest = max(float(np.abs(between).max()), highest)
    return float(decibel(np.square(highest))) if len(x) else math.nan


def _frames(x: np.ndarray, n: int) -> np.ndarray:
    """Return frames (frames, n) of a waveform; it is one shorter frame if it has fewer samples than n."""
    n = min(max(n, 1), len(x))
    return x[: len(x) // n * n].reshape(-1, n)
