"""Read tensors from files that nest them: .pt files of dicts and lists, JSON, and numbers as text."""

import functools
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.stored_tensor import (
    StoredTensor,
    check_size,
    from_numpy,
    max_bytes,
)

MAX_TENSORS = 100_000  # of one file
MAX_DEPTH = 30  # of nesting
MAX_TEXT_BYTES = 24 << 20  # of a text file; a million numbers
MAX_BRACKETS = 200_000  # of a JSON file; a state of the ODE has as many lists as mel bins or frames
DELIMITERS = (",", ";", "\t")  # between the numbers of a text file; else spaces


def pt_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file that torch.save wrote; no code in it is run.

    Tensors in dicts and lists get the names of all of these, joined by dots: "flow.mel", "velocities.3".
    """
    limit = max_bytes(path.stat().st_size)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            check_size(path.name, sum(info.file_size for info in file.infolist()), limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own old formats
        value = torch.load(path, map_location="cpu", weights_only=True)
    return _stored(value, path)


def json_file(path: Path) -> dict[str, StoredTensor]:
    """Return the nested lists of numbers of a JSON file, named as in `pt_file`.

    An object with the flat list `data` (or `values`) and a `shape` is one tensor.
    """
    _check_text(path)
    text = path.read_bytes()
    if text.count(b"[") + text.count(b"{") > MAX_BRACKETS:
        raise WorkbenchError(f"{path.name} has too many lists; expected {MAX_BRACKETS:,} at most: save .npz")
    return _stored(json.loads(text), path)


def number_file(path: Path) -> dict[str, StoredTensor]:
    """Return the numbers of a text file, such as np.savetxt writes, under the name ""."""
    _check_text(path)
    with open(path, encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip() and not line.lstrip().startswith("#")), "")
    delimiter = next((mark for mark in DELIMITERS if mark in first), None)
    array = np.loadtxt(path, delimiter=delimiter, ndmin=1, encoding="utf-8-sig")
    is_integer = not any(mark in first.lower() for mark in (".", "e", "n"))  # also "nan" and "inf"
    value = from_numpy(array)
    value = value.long() if is_integer and bool((value == value.round()).all()) else value.float()
    return {"": StoredTensor(tuple(value.shape), functools.partial(_identity, value))}


def is_number_text(path: Path) -> bool:
    """Whether the first line of a text file holds nothing but numbers."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(1 << 16)
        while line and (not line.strip() or line.startswith("#")):
            line = file.readline(1 << 16)
    words = line.replace(",", " ").replace(";", " ").split()
    try:
        return bool([float(word) for word in words])
    except ValueError:
        return False


def _check_text(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise WorkbenchError(
            f"{path.name} has {size >> 20} MiB of text; expected {MAX_TEXT_BYTES >> 20} at most: save .npz"
        )


def _stored(value: Any, path: Path) -> dict[str, StoredTensor]:
    found = {}
    for name, tensor in _flat(value, "", 0):
        found[name] = StoredTensor(tuple(tensor.shape), functools.partial(_identity, tensor))
        if len(found) > MAX_TENSORS:
            raise WorkbenchError(f"{path.name} holds more than {MAX_TENSORS:,} tensors; is it a dump?")
    return found


def _flat(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside a value with their names; what is no tensor is left out."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if depth > MAX_DEPTH or isinstance(value, str | bytes):
        return
    if isinstance(value, Mapping):
        shaped = _with_shape(value)
        if shaped is not None:
            yield name, shaped
            return
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, Sequence):
        numbers = _numbers(value)
        if numbers is not None:
            yield name, numbers
            return
        children = [(str(k), child) for k, child in enumerate(value)]
    else:
        return
    for key, child in children:
        yield from _flat(child, f"{name}.{key}" if name else key, depth + 1)


def _with_shape(value: Mapping) -> Tensor | None:
    """Return an object such as {"shape": [80, 38], "data": [...]} as a tensor; None for any other."""
    data = value.get("data", value.get("values"))
    shape = value.get("shape", value.get("dims"))
    if not isinstance(data, list | Tensor) or not isinstance(shape, list | tuple):
        return None
    tensor = data if isinstance(data, Tensor) else _numbers(data)
    return None if tensor is None else tensor.reshape(tuple(shape))


def _numbers(value: Sequence) -> Tensor | None:
    """Return a list of numbers, or nested lists of equal lengths, as a tensor; None for any other list."""
    inner = value
    while isinstance(inner, list | tuple) and len(inner):
        inner = inner[0]
    if not isinstance(inner, int | float):
        return None
    try:
        array = np.array(value)
    except ValueError:
        return None  # lists of unequal lengths
    if array.dtype.kind not in "if":
        return None
    return from_numpy(array if array.dtype.kind == "i" else array.astype(np.float32))


def _identity(value: Tensor) -> Tensor:
    return value
