"""Read tensors from files of other programs: no code in them is run, and no size they claim is trusted."""

import functools
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import WorkbenchError, first_line

MAX_BYTES = 4 << 30  # of one tensor, 4 GiB: every step of the ODE for an hour of speech fits
UNREADABLE = (
    SafetensorError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    zipfile.BadZipFile,
)

TensorReaders = Mapping[str, Callable[[], Tensor]]  # by name; a tensor is read when its reader is called


def open_tensors(path: Path) -> TensorReaders:
    """Return a reader for each tensor of a dump, by name.

    Parameters
    ----------
    path : Path
        A .safetensors, .npz or .pt file, or a folder of raw .f32 files.

    Raises
    ------
    WorkbenchError
        When the file is of another kind, cannot be read, or holds more than tensors. A reader raises it too.
    """
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix == ".f32"]
        return {file.name: functools.partial(_raw, file) for file in files}
    if not path.is_file():
        raise WorkbenchError(f"{path} does not exist; expected .safetensors, .npz, .pt or a folder of .f32")
    if path.suffix not in READERS:
        raise WorkbenchError(f"{path.name} ends in {path.suffix!r}; expected .safetensors, .npz or .pt")
    with _readable(path):
        return READERS[path.suffix](path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn any error of reading a file into a WorkbenchError of one line."""
    try:
        yield
    except UnpicklingError as error:
        raise WorkbenchError(
            f"{path.name} holds more than tensors and was not opened; save plain tensors, no objects"
        ) from error
    except UNREADABLE as error:
        raise WorkbenchError(f"{path.name} cannot be read: {first_line(error)}") from error


def _raw(path: Path) -> Tensor:
    size = path.stat().st_size
    if size % 4:
        raise WorkbenchError(f"{path.name} has {size} bytes; expected float32 values of 4 bytes each")
    check_size(path.name, size)
    return torch.from_numpy(np.fromfile(path, "<f4"))


def _safetensors(path: Path) -> TensorReaders:
    def read(name: str) -> Tensor:
        with _readable(path), safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="pt") as file:
        return {name: functools.partial(read, name) for name in file.keys()}  # noqa: SIM118


def _npz(path: Path) -> TensorReaders:
    def read(name: str) -> Tensor:
        with _readable(path), np.load(path, allow_pickle=False) as file:
            _check_member(file.zip, f"{name}.npy")
            return torch.from_numpy(np.ascontiguousarray(file[name]))

    with zipfile.ZipFile(path) as file:
        names = [info.filename.removesuffix(".npy") for info in file.infolist()]
    return {name: functools.partial(read, name) for name in names}


def _check_member(file: zipfile.ZipFile, name: str) -> None:
    """Refuse an array that is too large, or whose header claims more values than there are bytes."""
    size = file.getinfo(name).file_size  # unpacked
    check_size(name, size)
    with file.open(name) as member:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, dtype = read[npy.read_magic(member)](member)
    if math.prod(shape) * dtype.itemsize > size:
        raise WorkbenchError(
            f"{name} has {size} bytes and claims to be of shape {shape}; it is truncated: dump it again"
        )


def _pt(path: Path) -> TensorReaders:
    if not zipfile.is_zipfile(path):
        raise WorkbenchError(f"{path.name} is not a zip file; save it with torch.save of torch 1.6 or later")
    with zipfile.ZipFile(path) as file:
        check_size(path.name, sum(info.file_size for info in file.infolist()))
    read = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(read, Mapping):
        raise WorkbenchError(f"{path.name} holds a {type(read).__name__}; expected a dict of tensors")
    return {str(name): functools.partial(_identity, v) for name, v in read.items() if isinstance(v, Tensor)}


def _identity(value: Tensor) -> Tensor:
    return value


def check_size(name: str, size: int) -> None:
    """Raise a WorkbenchError for a tensor of more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise WorkbenchError(f"{name} takes {size / 2**30:.1f} GiB; expected {MAX_BYTES >> 30} GiB at most")


READERS = {".safetensors": _safetensors, ".npz": _npz, ".pt": _pt}
