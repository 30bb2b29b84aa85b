"""Open dumps of other programs: no code in them is run, and no size they claim is trusted.

What a file is follows from its first bytes, else from its suffix. `binary_files`, `nested_files` and
`gguf_files` read the formats.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.binary_files import (
    RAW_SUFFIXES,
    npy_file,
    npz_file,
    raw_file,
    safetensors_file,
)
from workbench.trace.importers.dumps.gguf_files import gguf_file
from workbench.trace.importers.dumps.nested_files import is_number_text, json_file, number_file, pt_file
from workbench.trace.importers.dumps.stored_tensor import StoredTensor, max_bytes, readable
from workbench.trace.schema import SOUND_SUFFIXES

PT_SUFFIXES = (".pt", ".pth", ".ckpt")
NUMBER_SUFFIXES = (".csv", ".tsv", ".txt")
ONE_TENSOR = (
    ".npy",
    *RAW_SUFFIXES,
    *PT_SUFFIXES,
    *NUMBER_SUFFIXES,
)  # endings of files whose name is the tensor's
MAX_FILES = 10_000  # of a folder
MAX_SHOWN = 8  # names in an error
LEGACY_PT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # of torch before 1.6
# Places in nested files that say nothing of a tensor: an index, or a word for all that was saved.
CONTAINERS = re.compile(r"^(?:(?:[0-9]{1,9}|outputs?|tensors?|data|traces?|dumps?|results?|fields?)[./])+")
EXPECTED = (
    ".safetensors, .npz, .npy, .pt, .pth, .gguf, .json, .csv, raw .f32 or .bin, or a folder of such files"
)

Reader = Callable[[Path], dict[str, StoredTensor]]


@dataclass(frozen=True)
class TensorDump:
    """The tensors of a file or folder, not yet read.

    Attributes
    ----------
    path : Path
    tensors : mapping of str to StoredTensor
        By the name in the file. In a folder the name of the file stands before it, or is the name.
    aliases : mapping of str to str
        Other name -> name: that of a file without its suffix and shape, or that of a nested tensor without
        "outputs." and the like. Ambiguous ones are left out.
    max_bytes : int
        That the tensors together may take in memory.
    problems : sequence of str
        Sentences on files of a folder that could not be read.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    aliases: Mapping[str, str]
    max_bytes: int
    problems: Sequence[str] = ()

    def described(self) -> str:
        """Name the first tensors with their shapes, for an error."""
        shown = [
            f"{name} {'x'.join(map(str, tensor.shape))}" if tensor.shape else name
            for name, tensor in list(self.tensors.items())[:MAX_SHOWN]
        ]
        more = len(self.tensors) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def open_tensors(path: Path) -> TensorDump:
    """Open a dump; its tensors are read when their readers are called.

    Parameters
    ----------
    path : Path
        A .safetensors, .npz, .npy, .pt, .gguf, .json or .csv file, raw numbers, or a folder of such files.

    Raises
    ------
    WorkbenchError
        When the file is of another kind, cannot be read, or holds more than tensors. A reader raises it too.
    """
    path = Path(os.path.abspath(path)) if os.path.isdir(path) else path  # "." and ".." have no name
    tensors: dict[str, StoredTensor] = {}
    spellings: list[tuple[str, str]] = []
    problems: list[str] = []
    size = 0
    for file in _files(path):
        reader = reader_of(file)
        if reader is None:
            if path.is_dir():
                continue
            raise WorkbenchError(f"{path.name} ends in {path.suffix!r}; expected {EXPECTED}")
        try:
            with readable(file):
                found = reader(file)
                size += file.stat().st_size
        except WorkbenchError as error:
            if not path.is_dir():
                raise
            problems.append(str(error))
            continue
        for name, tensor in found.items():
            if not name:
                full = file.name
                spellings += [(alias, full) for alias in {file.stem, *tensor.aliases}]
            else:
                full = f"{file.stem}.{name}" if path.is_dir() else name
                if not path.is_dir():
                    spellings.append((CONTAINERS.sub("", name), full))
            tensors[full] = tensor
    if not tensors:
        found_instead = f" ({problems[0]})" if problems else ""
        sounds = [file.name for file in _files(path) if file.suffix.lower() in SOUND_SUFFIXES]
        if sounds:
            raise WorkbenchError(f"{path.name} is a folder of {len(sounds)} sounds; name one: {sounds[0]}")
        raise WorkbenchError(f"{path.name or path} holds no tensors{found_instead}; expected {EXPECTED}")
    return TensorDump(path, tensors, _unambiguous(spellings, tensors), max_bytes(size), problems)


def is_tensor_file(path: Path) -> bool:
    """Whether a file seems to hold tensors, by its first bytes and its suffix."""
    return reader_of(path) is not None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, with the length of a header, or has their suffix."""
    with readable(path), open(path, "rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return path.suffix.lower() == ".safetensors" or (start[8:] == b"{" and length < path.stat().st_size)


def reader_of(path: Path) -> Reader | None:
    """Return the function that reads a file; None for a file of another kind."""
    suffix = path.suffix.lower()
    if suffix in RAW_SUFFIXES and suffix not in (".bin", ".dat"):
        return raw_file  # any bytes may stand at its beginning
    with readable(path), open(path, "rb") as file:
        start = file.read(16)
    for magic, reader in ((b"\x93NUMPY", npy_file), (b"GGUF", gguf_file), (LEGACY_PT, pt_file)):
        if start.startswith(magic):
            return reader
    if start.startswith(b"PK") and suffix in (".bin", ".dat"):
        return pt_file
    if suffix in NUMBER_SUFFIXES:
        return number_file if is_number_text(path) else None
    if is_safetensors(path):
        return safetensors_file
    by_suffix = {".npz": npz_file, ".npy": npy_file, ".gguf": gguf_file, ".json": json_file}
    by_suffix |= dict.fromkeys(PT_SUFFIXES, pt_file) | dict.fromkeys(RAW_SUFFIXES, raw_file)
    return by_suffix.get(suffix)


def _files(path: Path) -> list[Path]:
    """Return the files of a dump: the file itself, or those of a folder in the order of their names."""
    if os.path.isfile(path):  # Path.is_file raises an OSError for a name that is too long
        return [path]
    if not os.path.isdir(path):
        raise WorkbenchError(f"{path} does not exist; expected {EXPECTED}")
    with readable(path):
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if len(files) > MAX_FILES:
            raise WorkbenchError(f"{path} holds {len(files):,} files; expected {MAX_FILES:,} at most")
        for file in files:
            if file.suffix.lower() in RAW_SUFFIXES and not file.is_file():
                raise WorkbenchError(f"{file} is no file, or a link to none; expected raw numbers")
        return [file for file in files if file.is_file()]


def _unambiguous(spellings: list[tuple[str, str]], tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Return other name -> name, without names that two tensors have."""
    names: dict[str, set[str]] = {}
    for alias, name in spellings:
        names.setdefault(alias, set()).add(name)
    return {alias: min(found) for alias, found in names.items() if len(found) == 1 and alias not in tensors}
