"""The one door for a recording: a file, or samples of any kind of number and shape with their rate."""

import math
import numbers
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.speech.frontend.audio_files import HEADERLESS, MAX_FILE_SECONDS, Samples, read_samples

Array = np.ndarray
# What a recording may be: a path, samples, or a pair of samples and their rate in either order.
AudioSource = str | os.PathLike | Tensor | Array | tuple[Any, Any]

MIN_RECORDING_SECONDS = 0.5  # about two syllables; less has no voice to imitate
MAX_RECORDING_SECONDS = 30.0  # the speech tokenizer was trained on 30 s at most
MIN_RATE = 8_000  # Hz, telephone quality
MIN_PEAK = 1e-3  # -60 dBFS; a quieter recording is silence
MAX_PEAK = 1.5  # a lossy format may exceed full scale by less; more is another scale
MAX_CHANNELS = 8  # more values beside the samples are no channels but a batch or features
# Bits that a 32-bit integer recording uses at least; one that uses fewer holds 16 or 24 bits unscaled.
MIN_BITS_USED = 24


def open_audio(
    source: AudioSource,
    sample_rate: float | None = None,
    name: str = "the recording",
    max_seconds: float = MAX_FILE_SECONDS,
) -> Samples:
    """Return a recording from a file or from samples; their level is not checked.

    Parameters
    ----------
    source : path, array, or (array, rate)
        An array (or a tensor, or a list) is (N,), (channels, N) or (N, channels), also with axes of length 1.
        Integers are scaled to [-1, 1] by the range of their type.
    sample_rate : float, optional
        Hz, of samples, or of a file without a header. Other files and pairs state their own.
    name : str
        What error messages call it.
    max_seconds : float
        Length that is read of a file.

    Raises
    ------
    WorkbenchError
        When a file cannot be read, or samples have no rate or are no samples of one recording.
    """
    if isinstance(source, str | os.PathLike):
        is_headerless = Path(source).suffix.lower() in HEADERLESS
        rate = None if sample_rate is None or not is_headerless else whole_rate(sample_rate, name)
        return read_samples(source, rate, max_seconds)
    values, stated = _pair(source)
    if not isinstance(values, list | tuple) and not hasattr(values, "__array__"):
        raise WorkbenchError(
            f"{name} is of type {type(source).__name__}, which is no sound; expected the path of a sound "
            "file, samples with sample_rate, or a pair of samples and rate"
        )
    if stated is not None and sample_rate is not None and stated != sample_rate:
        raise WorkbenchError(f"{name} has the rates {stated} and {sample_rate}; expected one of them")
    rate = sample_rate if stated is None else stated
    if rate is None:
        raise WorkbenchError(
            f"{name} is a {type(source).__name__} without a rate; pass sample_rate in Hz, a pair of samples "
            "and rate, or a path"
        )
    array = _one_recording(_numbers(values, name), name)
    with np.errstate(invalid="ignore"):  # infinities of both signs make NaN, which callers look for
        mean = array.mean(axis=0)
    return Samples(torch.from_numpy(mean), whole_rate(rate, name), len(array))


def open_recording(source: AudioSource, sample_rate: float | None = None, name: str = "prompt") -> Samples:
    """Return a recording that can be a prompt or a source of conversion, float32; raise for any other."""
    label = f"{name} {source}" if isinstance(source, str | os.PathLike) else name
    found = open_audio(source, sample_rate, label, MAX_RECORDING_SECONDS)
    wav = found.wav.float()
    check_recording(wav, found.rate, label)
    return found._replace(wav=wav)


def check_recording(wav: Tensor, sample_rate: int, name: str = "prompt") -> None:
    """Raise a WorkbenchError for a recording that cannot be a prompt or a source of conversion.

    Parameters
    ----------
    wav : Tensor (N,)
    sample_rate : int
        Hz.
    name : str
        What error messages call it.
    """
    if wav.ndim != 1 or not len(wav):
        raise WorkbenchError(f"{name} has shape {tuple(wav.shape)}; expected samples (N,) of one recording")
    if sample_rate < MIN_RATE:
        raise WorkbenchError(f"{name} has {sample_rate} samples a second; expected {MIN_RATE} Hz or more")
    if not torch.isfinite(wav).all():
        raise WorkbenchError(f"{name} holds NaN or infinite samples; expected numbers from -1 to 1")
    seconds = len(wav) / sample_rate
    if not MIN_RECORDING_SECONDS <= seconds <= MAX_RECORDING_SECONDS:
        raise WorkbenchError(
            f"{name} lasts {seconds:.2f} s; expected {MIN_RECORDING_SECONDS} to "
            f"{MAX_RECORDING_SECONDS:.0f} s: 3 to 10 s of clear speech work best"
        )
    peak = wav.abs().max().item()
    if peak < MIN_PEAK:
        raise WorkbenchError(
            f"{name} is silent (peak {peak:.1e}); expected speech: was the right file recorded?"
        )
    if peak > MAX_PEAK:
        raise WorkbenchError(
            f"{name} reaches a level of {peak:.4g}; expected samples from -1 to 1: divide by full scale, "
            "which is 32768 for 16-bit integers"
        )


def whole_rate(rate: Any, name: str = "the recording") -> int:
    """Return a sample rate, given as any kind of number, as a whole number of Hz."""
    value = math.nan
    if not isinstance(rate, str | bytes | bool):
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):
            value = float(rate)
    if not value.is_integer() or value < 1:
        raise WorkbenchError(f"{name}: sample_rate is {rate!r}; expected a whole number of Hz, such as 24000")
    return int(value)


def _pair(source: Any) -> tuple[Any, Any]:
    """Return samples and their rate from a pair in either order; the rate of anything else is None."""
    if isinstance(source, tuple | list) and len(source) == 2:
        first, second = source
        if _is_one_number(second) and not _is_one_number(first):
            return first, second
        if _is_one_number(first) and not _is_one_number(second):
            return second, first
    return source, None


def _is_one_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def _numbers(values: Any, name: str) -> Array:
    """Return samples of any type as float32 or float64; integers are scaled by the range of their type."""
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() and values.itemsize < 4 else values
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorkbenchError(f"{name} holds no samples ({first_line(error)}); expected numbers") from None
    if array.dtype.kind == "f":
        return array.astype(np.float64 if array.dtype.itemsize >= 8 else np.float32)
    if array.dtype.kind not in "iu":
        raise WorkbenchError(
            f"{name} holds {array.dtype}; expected real numbers from -1 to 1, or integers of 8, 16 or 32 bits"
        )
    bits = 8 * array.dtype.itemsize
    if bits > 32:
        raise WorkbenchError(
            f"{name} holds {array.dtype}, whose full scale nobody knows; divide by it (32768 for 16-bit "
            "samples), or convert to the type of the recording, such as int16"
        )
    full_scale = 2.0 ** (bits - 1)
    centred = array.astype(np.float64) - (full_scale if array.dtype.kind == "u" else 0.0)
    peak = np.abs(centred).max(initial=0.0)
    if bits == 32 and peak <= 2.0 ** (MIN_BITS_USED - 1):
        raise WorkbenchError(
            f"{name} holds {array.dtype} up to {peak:.0f}, as if 16 or 24 bits had been stored in it; divide "
            "by their full scale, such as 32768, or convert to int16"
        )
    return (centred / full_scale).astype(np.float32)


def _one_recording(array: Array, name: str) -> Array:
    """Return samples of any shape as (channels, N)."""
    shape = array.shape
    array = array.squeeze() if array.size > 1 else array.reshape(-1)
    if array.ndim == 1:
        return array[None]
    if array.ndim == 2 and array.shape[0] > array.shape[1]:
        array = array.T
    if array.ndim != 2 or not 0 < len(array) <= MAX_CHANNELS:
        raise WorkbenchError(
            f"{name} has shape {shape}; expected samples (N,), (channels, N) or (N, channels) of one "
            "recording"
        )
    return array
