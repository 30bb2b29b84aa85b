"""Read sound files of any kind, a block at a time, so that no header can claim memory.

libsndfile reads most formats. Phones and browsers record MPEG-4 and WebM, which PyAV or torchcodec decode
where one of them is installed. Samples without a header need their rate. A WAV whose writer never came back
to fill in the length, such as one from a pipe, is read to its end.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.files import about_address
from workbench.speech.frontend.audio import MAX_SAMPLES, resample

MAX_FILE_SECONDS = 600  # of an audio file
MIN_HEADER_RATE = 1000  # Hz; a file that claims a lower rate may have as many samples as one of this rate
MAX_LEVEL = 100.0  # a float file with larger samples holds integers or is damaged
BLOCK_SAMPLES = 1 << 18  # of all channels, read at once: a wrong length in the header cannot claim memory

# Files that are samples alone, by suffix: how libsndfile calls their storage, and their byte order.
HEADERLESS = {
    **dict.fromkeys((".pcm", ".raw", ".s16", ".s16le"), ("PCM_16", "LITTLE")),
    ".s16be": ("PCM_16", "BIG"),
    ".s8": ("PCM_S8", "LITTLE"),
    ".u8": ("PCM_U8", "LITTLE"),
    **dict.fromkeys((".s24", ".s24le"), ("PCM_24", "LITTLE")),
    **dict.fromkeys((".s32", ".s32le"), ("PCM_32", "LITTLE")),
    **dict.fromkeys((".f32", ".f32le"), ("FLOAT", "LITTLE")),
    **dict.fromkeys((".f64", ".f64le"), ("DOUBLE", "LITTLE")),
    **dict.fromkeys((".ulaw", ".mulaw"), ("ULAW", "LITTLE")),
    ".alaw": ("ALAW", "LITTLE"),
}
# How a WAV header states the storage: (format tag, bits).
WAV_STORAGE = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
WAV_EXTENSIBLE = 0xFFFE  # format tag of a header whose true tag stands 24 bytes into the chunk
CONTAINERS = {"mp4": "MPEG-4 (m4a, mp4)", "matroska": "WebM or Matroska", "aac": "AAC"}  # by FFmpeg's name
WAV_HEADER_BYTES = 1 << 16  # in which the chunk `data` must begin


class Samples(NamedTuple):
    """What an audio file or an array holds."""

    wav: Tensor  # (N,) the mean of the channels; float32, or float64 where an array had it
    rate: int  # Hz
    channels: int = 1
    subtype: str = ""  # how a file stores samples, as libsndfile calls it: "PCM_16", "FLOAT", "VORBIS"


def read_samples(
    path: str | os.PathLike, headerless_rate: int | None = None, max_seconds: float = MAX_FILE_SECONDS
) -> Samples:
    """Read an audio file as it is; NaN, infinite and very large samples are allowed.

    Parameters
    ----------
    path : path
    headerless_rate : int, optional
        Hz, of a file that is samples alone (`HEADERLESS`); other files state their own.
    max_seconds : float
        A longer file is refused when so much of it has been read.
    """
    path = _existing_file(path)
    try:
        if path.suffix.lower() in HEADERLESS:
            return _read_headerless(path, headerless_rate, max_seconds)
        container = _container_of(path)
        if container is not None:
            return _read_container(path, container, max_seconds)
        with soundfile.SoundFile(str(path)) as file:
            found = _read_open_file(file, path, max_seconds)
        if len(found.wav):
            return found
        found = _read_unfinished_wav(path, max_seconds)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        reason = getattr(error, "error_string", None) or error
        raise WorkbenchError(
            f"{path} could not be read as audio ({reason}); expected WAV, FLAC, OGG or MP3. "
            "It may be damaged, cut off or another kind of file: try converting it to WAV"
        ) from None
    if found is None or not len(found.wav):
        raise WorkbenchError(
            f"{path} holds no samples in {path.stat().st_size} bytes; expected a recording. Was it cut off "
            "behind its header? Record or convert it again"
        )
    return found


def read_wav(path: str | os.PathLike, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Read an audio file as one channel.

    Parameters
    ----------
    path : path
        Any format of libsndfile (WAV, FLAC, OGG, MP3, AIFF ...); MPEG-4 and WebM where PyAV or torchcodec is
        installed.
    sample_rate : int, optional
        Rate to resample to, Hz. None keeps the file's own.

    Returns
    -------
    wav : Tensor (N,)
        float32, the mean of the channels.
    sample_rate : int
        Its rate, Hz.

    Raises
    ------
    WorkbenchError
        If there is no such file, or it is empty, damaged, not audio, too long, or holds NaN or infinity.
    """
    wav, rate, _, _ = read_samples(path)
    if not torch.isfinite(wav).all():
        raise WorkbenchError(f"{path} holds NaN or infinite samples; expected numbers from -1 to 1")
    level = wav.abs().max().item()
    if level > MAX_LEVEL:
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
            raise WorkbenchError(
                f"{path} does not exist or is not a file; expected a sound file{about_address(path)}"
            )
        if path.stat().st_size == 0:
            raise WorkbenchError(f"{path} is empty (0 bytes); expected a sound file")
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{str(path)!r} cannot be opened ({error}); expected a sound file") from None
    return path


def _read_open_file(file: soundfile.SoundFile, path: Path, max_seconds: float) -> Samples:
    """Read all samples of an open file; it may hold none."""
    wav = _joined(_blocks(file), file.samplerate, path, max_seconds)
    return Samples(wav, file.samplerate, file.channels, file.subtype)


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yield blocks (frames, channels)."""
    n_frames = max(1, BLOCK_SAMPLES // file.channels)
    while len(block := file.read(n_frames, dtype="float32", always_2d=True)):
        yield block


def _joined(blocks: Iterable[np.ndarray], rate: int, path: Path, max_seconds: float) -> Tensor:
    """Return the mean of the channels of blocks (frames, channels)."""
    means = []
    n_samples = 0
    for block in blocks:
        with np.errstate(invalid="ignore"):  # infinities of both signs make NaN, which callers look for
            means.append(block.mean(axis=1))
        n_samples += len(block)
        if n_samples > max_seconds * max(rate, MIN_HEADER_RATE):
            raise WorkbenchError(f"{path} is longer than {max_seconds:g} s; cut it first")
        if n_samples > MAX_SAMPLES:
            raise WorkbenchError(
                f"{path} has more than {MAX_SAMPLES / 1e6:g} million samples at {rate} Hz; cut it, or "
                "resample it to a lower rate first"
            )
    return torch.from_numpy(np.concatenate(means)) if means else torch.zeros(0)


# ---- samples without a header, or with an unfinished one


def _read_headerless(path: Path, rate: int | None, max_seconds: float) -> Samples:
    subtype, endian = HEADERLESS[path.suffix.lower()]
    if rate is None:
        raise WorkbenchError(
            f"{path} has no header that states its rate; give it in Hz, such as 24000, or convert the file "
            "to WAV"
        )
    if subtype == "PCM_16" and _is_float32(path):
        raise WorkbenchError(
            f"{path} holds float32 samples, but {path.suffix} is read as 16-bit integers; name it .f32"
        )
    with path.open("rb") as file:
        wav = _joined(_raw_blocks(file, 0, subtype, endian, rate, 1), rate, path, max_seconds)
    if not len(wav):
        raise WorkbenchError(f"{path} holds no sample in {path.stat().st_size} bytes; expected {subtype}")
    return Samples(wav, rate, 1, subtype)


def _is_float32(path: Path) -> bool:
    """Whether bytes are surely float32 samples: as such they lie within full scale, and are not all tiny."""
    with path.open("rb") as file:
        head = np.frombuffer(file.read(BLOCK_SAMPLES)[: path.stat().st_size // 4 * 4], "<f4")
    peak = np.abs(head).max(initial=0.0)
    return bool(1e-3 < peak <= 1.5)  # integers read as floats are NaN, huge, or below 1e-30


def _raw_blocks(
    file: BinaryIO, start: int, subtype: str, endian: str, rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Yield blocks (frames, channels) of the samples that stand in a file from the byte `start` on."""
    storage = {"samplerate": rate, "channels": channels, "format": "RAW", "subtype": subtype}
    with soundfile.SoundFile(_Tail(file, start), endian=endian, **storage) as sound:
        yield from _blocks(sound)


class _Tail:
    """A file from some byte on, in the form in which libsndfile takes an open file."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start = file, start
        file.seek(start)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.file.seek(offset + (self.start if whence == os.SEEK_SET else 0), whence)
        return self.tell()

    def tell(self) -> int:
        return self.file.tell() - self.start

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


def _read_unfinished_wav(path: Path, max_seconds: float) -> Samples | None:
    """Read a WAV whose header says 0 bytes of samples though they follow; None for any other file."""
    with path.open("rb") as file:
        head = file.read(WAV_HEADER_BYTES)
        size = path.stat().st_size
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        if int.from_bytes(head[4:8], "little") + 8 == size:
            return None  # the writer did come back: there are no samples
        at, layout = 12, b""
        while head[at : at + 4] != b"data":
            if at + 8 > len(head):
                return None
            n_bytes = int.from_bytes(head[at + 4 : at + 8], "little")
            if head[at : at + 4] == b"fmt ":
                layout = head[at + 8 : at + 8 + n_bytes]
            at += 8 + n_bytes + n_bytes % 2
        if len(layout) < 16:
            return None
        tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", layout[:16])
        if tag == WAV_EXTENSIBLE and len(layout) >= 26:
            tag = int.from_bytes(layout[24:26], "little")
        subtype = WAV_STORAGE.get((tag, bits))
        if subtype is None:
            return None
        wav = _joined(_raw_blocks(file, at + 8, subtype, "LITTLE", rate, channels), rate, path, max_seconds)
    return Samples(wav, rate, channels, subtype)


# ---- what phones and browsers record


def _container_of(path: Path) -> str | None:
    """Return FFmpeg's name of a container that libsndfile does not know, by the file's first bytes."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    # ADTS: 12 bits set, then layer 0, which no MPEG audio layer has.
    return "aac" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else None


def _read_container(path: Path, container: str, max_seconds: float) -> Samples:
    for read, name in ((_read_with_pyav, "av"), (_read_with_torchcodec, "torchcodec.decoders")):
        try:
            library = import_module(name)
        except (ImportError, RuntimeError):
            continue
        try:
            return read(library, path, container, max_seconds)
        except WorkbenchError:
            raise
        except Exception as error:  # of FFmpeg, by way of either library
            if "load libtorchcodec" in str(error):  # FFmpeg itself is not installed
                continue
            raise WorkbenchError(
                f"{path} could not be read as {CONTAINERS[container]} ({first_line(error)}); is it complete? "
                "Try converting it to WAV"
            ) from None
    raise WorkbenchError(
        f"{path} is {CONTAINERS[container]}, which needs PyAV or torchcodec: install one of them "
        "(pip install av), or convert the file to WAV"
    )


def _read_with_pyav(av: Any, path: Path, container: str, max_seconds: float) -> Samples:
    # A format by name, and an open file: FFmpeg must not follow what a playlist in disguise points at.
    with path.open("rb") as file, av.open(file, format=container, metadata_errors="ignore") as opened:
        frames = opened.decode(audio=0) if opened.streams.audio else iter(())
        first = next(frames, None)
        if first is None:
            raise WorkbenchError(f"{path} holds no sound; expected a recording")
        # Rate and channels are those of the first frame; a header may state half the rate.
        keep = av.AudioResampler(format="fltp", layout=first.layout, rate=first.sample_rate)
        parts = (part for frame in chain([first], frames) for part in keep.resample(frame))
        wav = _joined((part.to_ndarray().T for part in parts), first.sample_rate, path, max_seconds)
        return Samples(wav, first.sample_rate, first.layout.nb_channels, opened.streams.audio[0].name)


def _read_with_torchcodec(decoders: Any, path: Path, container: str, max_seconds: float) -> Samples:
    decoder = decoders.AudioDecoder(path)
    found = decoder.get_samples_played_in_range(0, min(max_seconds, MAX_FILE_SECONDS) + 1)
    wav = _joined([found.data.T.numpy()], found.sample_rate, path, max_seconds)
    return Samples(wav, found.sample_rate, len(found.data), decoder.metadata.codec)
