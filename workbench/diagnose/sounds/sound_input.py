"""Open one sound: the path of a file, a trace with a waveform, or samples with their rate."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio import read_samples
from workbench.trace.trace import Trace

Array = np.ndarray
SoundSource = str | os.PathLike | Trace | Tensor | Array
# What `is_sound_file` goes by; the file itself is opened by libsndfile.
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
MAX_SECONDS = 300  # of a sound; one utterance is far shorter, and memory grows with it
MIN_RATE, MAX_RATE = 1000, 400_000  # Hz; others are mistaken units
LOSSY = ("VORBIS", "OPUS", "MPEG", "GSM", "ADPCM", "ULAW", "ALAW")  # of libsndfile's names


@dataclass(frozen=True, eq=False)
class SoundInput:
    """The samples of one sound and how they were stored.

    Parameters
    ----------
    name : str
        The file's path, or what the caller called it.
    samples : ndarray (N,)
        float64 as given, with NaN and infinities; full scale is 1.
    rate : int
        Hz.
    channels : int
        Of the file; `samples` is their mean.
    subtype : str
        How a file stores samples, such as "PCM_16"; empty for a trace or an array.
    """

    name: str
    samples: Array
    rate: int
    channels: int = 1
    subtype: str = ""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @cached_property
    def wav(self) -> Array:
        """Samples (N,) with NaN and infinities set to 0."""
        return np.nan_to_num(self.samples, nan=0.0, posinf=0.0, neginf=0.0)

    @cached_property
    def nonfinite(self) -> int:
        """Number of samples that are NaN or infinite."""
        return int((~np.isfinite(self.samples)).sum())

    @cached_property
    def rounding(self) -> tuple[float, float]:
        """Distance of neighbouring values: as a share of full scale, and as a share of each value.

        Integers have the first and floating point the second. Both are found from the values: those of a
        16-bit file stay multiples of 2 ** -15 when they are copied into a float file.
        """
        bits = next((bits for bits in (7, 15, 23) if _is_integer(self.wav * 2.0**bits)), None)
        step = 0.0 if bits is None else 2.0**-bits
        # Quiet 16-bit values are exact in float16 as well, so that both can be true.
        with np.errstate(over="ignore"):
            if np.array_equal(self.wav, self.wav.astype(np.float16)):
                return step, 2.0**-11
        if np.array_equal(self.wav, torch.from_numpy(self.wav).bfloat16().double().numpy()):
            return step, 2.0**-8
        return step, 0.0 if step else 2.0**-24

    @property
    def storage(self) -> str:
        """How the values are stored, in words."""
        if any(name in self.subtype for name in LOSSY):
            return f"lossy ({self.subtype})"
        step, relative = self.rounding
        if step and relative * np.abs(self.wav).max() <= step:
            return f"{round(-np.log2(step)) + 1} bit"
        return {2.0**-11: "float16", 2.0**-8: "bfloat16"}.get(relative, "floating point")

    @property
    def trace(self) -> Trace:
        """The sound as a trace, for players, figures and glitch detectors."""
        wav = torch.from_numpy(self.samples).float()
        return Trace({"hift/wav": wav}, {"sample_rate": self.rate, "source": self.name})


def _is_integer(values: Array) -> bool:
    return bool(np.array_equal(values, np.rint(values)))


def is_sound_file(path: object) -> bool:
    """Return whether something is a path that ends like the name of a sound file."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() in SOUND_SUFFIXES


def open_sound(source: SoundSource, sample_rate: int | None = None, name: str | None = None) -> SoundInput:
    """Return a sound from a file, a trace or samples.

    Parameters
    ----------
    source : path, Trace, or Tensor or ndarray (N,)
        Of a file with several channels their mean is taken. Of a trace only `hift/wav` is used.
    sample_rate : int, optional
        Hz; needed for bare samples, ignored for files and traces, which know theirs.
    name : str, optional
        What to call it. Default: the path, or the trace's text.

    Raises
    ------
    WorkbenchError
        When there are no samples, several channels, no rate, or more than five minutes.
    """
    if isinstance(source, (str, os.PathLike)):
        wav, rate, channels, subtype = read_samples(source)
        found = SoundInput(name or str(source), wav.double().numpy(), rate, channels, subtype)
    elif isinstance(source, Trace):
        if "hift/wav" not in source:
            raise WorkbenchError(
                f"{source!r} has no waveform; expected hift/wav: run it to the vocoder, or record it"
            )
        text = source.attrs.get("tag") or source.attrs.get("text") or source.attrs.get("source")
        found = SoundInput(name or str(text or "trace"), source.wav.double().numpy(), source.sample_rate)
    elif isinstance(source, (Tensor, Array)):
        samples = source.detach().cpu().double().numpy() if isinstance(source, Tensor) else source
        if sample_rate is None:
            raise WorkbenchError("samples without a rate; expected sample_rate=... in Hz, such as 24000")
        found = SoundInput(name or "samples", np.asarray(samples, dtype=np.float64), sample_rate)
    else:
        raise WorkbenchError(
            f"{type(source).__name__} is no sound; expected the path of a sound file, a Trace, or samples "
            "with sample_rate=..."
        )
    if found.samples.ndim != 1 or not len(found.samples):
        raise WorkbenchError(
            f"{found.name}: samples of shape {found.samples.shape}; expected (N,), one channel, not empty"
        )
    if not MIN_RATE <= found.rate <= MAX_RATE:
        raise WorkbenchError(f"{found.name}: a sample rate of {found.rate!r}; expected Hz, such as 24000")
    if found.seconds > MAX_SECONDS:
        raise WorkbenchError(
            f"{found.name} has {found.seconds:.0f} s; expected {MAX_SECONDS} s at most: cut it into utterances"
        )
    return found
