"""Open one sound: the path of a file, a trace with a waveform, or samples with their rate."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.speech.frontend.audio_input import AudioSource, open_audio
from workbench.trace.importers.open_run import is_run_file, open_run
from workbench.trace.schema import SOUND_SUFFIXES
from workbench.trace.storage import FLOAT32_ERROR, Storage, storage_of
from workbench.trace.trace import Trace

Array = np.ndarray
SoundSource = Trace | AudioSource
MAX_SECONDS = 300  # of a sound; one utterance is far shorter, and memory grows with it
MAX_SAMPLES = 7_200_000  # 300 s at 24 kHz
MAX_COMPARED = 1_440_000  # samples of each of two sounds, 60 s at 24 kHz: aligning takes 130 bytes for each
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
        float32 or float64 as given, with NaN and infinities; full scale is 1.
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
        """Samples (N,) in float64 with NaN and infinities set to 0."""
        wav = self.samples.astype(np.float64, copy=False)
        return np.nan_to_num(wav, nan=0.0, posinf=0.0, neginf=0.0) if self.nonfinite else wav

    @cached_property
    def nonfinite(self) -> int:
        """Number of samples that are NaN or infinite."""
        return int((~np.isfinite(self.samples)).sum())

    @cached_property
    def _form(self) -> Storage | None:
        return storage_of(torch.from_numpy(self.wav))

    def spacing_at(self, values: Array) -> Array:
        """Return the distance of neighbouring numbers in the form that the sound was stored in, (N,)."""
        if self._form is None:
            return FLOAT32_ERROR * np.abs(values)
        return self._form.spacing_at(torch.from_numpy(values)).numpy()

    @property
    def storage(self) -> str:
        """How the values are stored, in words."""
        if any(name in self.subtype for name in LOSSY):
            return f"lossy ({self.subtype})"
        return self._form.name if self._form else "floating point"

    @property
    def trace(self) -> Trace:
        """The sound as a trace, for players, figures and glitch detectors."""
        wav = torch.from_numpy(self.samples).float()
        return Trace({"hift/wav": wav}, {"sample_rate": self.rate, "source": self.name})


def is_sound_file(path: object) -> bool:
    """Return whether something is a path that ends like the name of a sound file; nothing is opened."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() in SOUND_SUFFIXES


def open_sound(source: SoundSource, sample_rate: int | None = None, name: str | None = None) -> SoundInput:
    """Return a sound from a file, a trace or samples.

    Parameters
    ----------
    source : path, Trace, array, or (array, rate)
        Of several channels the mean is taken, and integers are scaled. Of a trace or dump, or the path of
        one, only `hift/wav` is used.
    sample_rate : int, optional
        Hz; needed for bare samples and for files without a header, ignored for others, which know theirs.
    name : str, optional
        What to call it. Default: the path, or the trace's text.

    Raises
    ------
    WorkbenchError
        When a file cannot be read, or there are no samples, several channels or no rate.
    """
    if isinstance(source, (str, os.PathLike)) and is_run_file(Path(source)):
        return open_sound(open_run(source), name=name or str(source))
    if isinstance(source, Trace):
        if "hift/wav" not in source:
            raise WorkbenchError(
                f"{source!r} has no waveform; expected hift/wav: run it to the vocoder, or record it"
            )
        text = source.attrs.get("tag") or source.attrs.get("text") or source.attrs.get("source")
        wav = source.wav if source.wav.dtype == torch.float64 else source.wav.float()
        found = SoundInput(name or str(text or "trace"), wav.numpy(), source.sample_rate)
    else:
        label = name or (str(source) if isinstance(source, (str, os.PathLike)) else "samples")
        wav, rate, channels, subtype = open_audio(source, sample_rate, label)
        found = SoundInput(label, wav.numpy(), rate, channels, subtype)
    if found.samples.ndim != 1 or not len(found.samples):
        raise WorkbenchError(
            f"{found.name}: samples of shape {found.samples.shape}; expected (N,), one channel, not empty"
        )
    if not MIN_RATE <= found.rate <= MAX_RATE:
        raise WorkbenchError(f"{found.name}: a sample rate of {found.rate!r}; expected Hz, such as 24000")
    return found


def check_length(sound: SoundInput, max_samples: int = MAX_SAMPLES) -> None:
    """Raise a WorkbenchError if a sound is longer than what is analysed at once."""
    if sound.seconds > MAX_SECONDS or len(sound.samples) > max_samples:
        seconds = min(MAX_SECONDS, max_samples / sound.rate)
        raise WorkbenchError(
            f"{sound.name} has {sound.seconds:.0f} s at {sound.rate} Hz; expected {seconds:.0f} s at most at "
            "this rate, which bounds memory: cut it into utterances"
        )


def as_trace(source: SoundSource, sample_rate: int | None = None) -> Trace:
    """Return a trace, or the path of one, with all its fields, and other sounds as traces of a waveform."""
    if isinstance(source, (str, os.PathLike)) and is_run_file(Path(source)):
        return open_run(source)
    return source if isinstance(source, Trace) else open_sound(source, sample_rate).trace
