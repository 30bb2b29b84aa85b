"""Read tensors from files that state their shape in a header, and from raw numbers that state none."""

import functools
import math
import re
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from safetensors import safe_open
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.stored_tensor import (
    StoredTensor,
    check_size,
    from_numpy,
    max_bytes,
    readable,
)

# Raw files: suffix or word in the name -> numbers, little endian.
RAW_SUFFIXES = {".f32": "<f4", ".f16": "<f2", ".f64": "<f8", ".i32": "<i4", ".i64": "<i8"}
RAW_SUFFIXES |= dict.fromkeys((".raw", ".bin", ".dat"), "<f4")
# "mel_1x80x38.f32", "mel_[1,80,38].f32"; and "mel_1_80_38.f32", where the numbers may also count steps.
SHAPE_IN_NAME = re.compile(r"[._-]?[\[(]?(\d{1,9}(?:\s*[x\u00d7,]\s*\d{1,9})+)[\])]?")
NUMBERS_AT_END = re.compile(r"((?:[._-]\d{1,9})+)$")


def safetensors_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a .safetensors file."""

    def read(name: str) -> Tensor:
        with readable(path), safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shapes = [tuple(file.get_slice(name).get_shape()) for name in names]
    readers = [functools.partial(read, name) for name in names]
    return {name: StoredTensor(*found) for name, *found in zip(names, shapes, readers, strict=True)}


def npz_file(path: Path) -> dict[str, StoredTensor]:
    """Return the arrays of a .npz file."""
    limit = max_bytes(path.stat().st_size)

    def read(member: str) -> Tensor:
        with readable(path), zipfile.ZipFile(path) as file:
            _member_shape(file, member, limit)
            with file.open(member) as stream:
                return from_numpy(npy.read_array(stream, allow_pickle=False))

    found = {}
    with zipfile.ZipFile(path) as file:
        for member in file.namelist():
            if member.endswith(".npy"):
                try:
                    with readable(path):
                        shape = _member_shape(file, member, limit)
                except WorkbenchError:
                    shape = None  # reading it says why
                found[member.removesuffix(".npy")] = StoredTensor(shape, functools.partial(read, member))
    return found


def npy_file(path: Path) -> dict[str, StoredTensor]:
    """Return the one array of a .npy file, under the name ""."""

    def read() -> Tensor:
        with readable(path), open(path, "rb") as file:
            return from_numpy(npy.read_array(file, allow_pickle=False))

    size = path.stat().st_size
    check_size(path.name, size)
    with open(path, "rb") as file:
        return {"": StoredTensor(_shape(file, path.name, size), read)}


def raw_file(path: Path) -> dict[str, StoredTensor]:
    """Return the numbers of a file without a header, under the name "".

    The shape is taken from the file's name where it gives one that fits the file's size.
    """
    words = re.split(r"[^a-z0-9]+", path.stem.lower().replace("float", "f").replace("int", "i"))
    named = [f".{word}" for word in words if f".{word}" in RAW_SUFFIXES]
    dtype = np.dtype(RAW_SUFFIXES[named[-1] if named else path.suffix.lower()])
    size = path.stat().st_size
    count = size // dtype.itemsize
    shape, aliases = _shape_in_name(path.stem, count)

    def read() -> Tensor:
        if size % dtype.itemsize:
            raise WorkbenchError(
                f"{path.name} has {size} bytes; expected {dtype.name} values of {dtype.itemsize} bytes each"
            )
        check_size(path.name, size)
        with readable(path):
            return from_numpy(np.fromfile(path, dtype)).reshape(shape)

    return {"": StoredTensor(shape, read, aliases)}


def _member_shape(file: zipfile.ZipFile, member: str, limit: int) -> tuple[int, ...]:
    """Return the shape of an array in a .npz file; refuse one that is too large."""
    size = file.getinfo(member).file_size  # unpacked
    check_size(member, size, limit)
    with file.open(member) as stream:
        return _shape(stream, member, size)


def _shape(stream: IO[bytes], name: str, size: int) -> tuple[int, ...]:
    """Return the shape in the header of an array; refuse one that claims more values than there are bytes."""
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = read_header[npy.read_magic(stream)](stream)
    if math.prod(shape) * dtype.itemsize > size:
        raise WorkbenchError(
            f"{name} has {size} bytes and claims to be of shape {shape}; it is truncated: dump it again"
        )
    return shape


def _shape_in_name(stem: str, count: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the shape that a file's name states, and the name without it; (count,) where none fits."""
    for match in reversed(list(SHAPE_IN_NAME.finditer(stem))):
        shape = tuple(int(size) for size in re.findall(r"\d+", match[1]))
        if math.prod(shape) == count:
            return shape, (stem[: match.start()] + stem[match.end() :],)
    match = NUMBERS_AT_END.search(stem)
    parts = re.findall(r"[._-]\d+", match[1]) if match else []
    for k in range(len(parts)):
        shape = tuple(int(part[1:]) for part in parts[k:])
        if math.prod(shape) == count:
            name = stem[: match.start()] + "".join(parts[:k])
            if shape[0] == 1 and len(shape) > 1:
                # In "x_1_80_320" the 1 is a step or a batch of one: both names are kept.
                return shape[1:], (name, name + parts[k])
            return shape, (name,)
    return (count,), ()
