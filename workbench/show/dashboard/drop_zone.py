"""Receive the files that a page drops, in pieces, into a temporary folder that is removed after use."""

import re
import shutil
import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anywidget

from workbench.errors import WorkbenchError

HERE = Path(__file__).parent
MAX_FILES = 1000  # of one drop
MAX_BYTES = 4_000_000_000  # of one drop: the largest trace of a long utterance has some hundred MB
MAX_DEPTH = 8  # folders above a file
MAX_NAME = 200  # bytes of the name of a file or folder, in UTF-8
SPARE = 500_000_000  # bytes that a drop leaves free on the disk

OnFiles = Callable[[Path], str]  # opens what lies in a folder and says how that went


class DropZone(anywidget.AnyWidget):
    """A place for files; each drop is written to a temporary folder, opened, and removed.

    Parameters
    ----------
    on_files : callable
        Gets the folder with what was dropped, and returns what the zone says then.
    """

    _esm = HERE / "drop_zone.js"
    _css = HERE / "dashboard.css"

    def __init__(self, on_files: OnFiles) -> None:
        super().__init__()
        self._on_files = on_files
        self._transfer: Transfer | None = None
        self.on_msg(self._take)

    def _take(self, _: Any, message: Any, buffers: Sequence[memoryview]) -> None:
        """Answer a message of the page; one that does not fit ends the transfer."""
        transfer = message.get("transfer") if isinstance(message, dict) else None
        try:
            answer = self._answer(message, buffers)
        except WorkbenchError as error:
            answer = {"kind": "refused", "text": str(error)}
        except OSError as error:  # of the temporary folder
            answer = {"kind": "refused", "text": f"the files could not be kept: {error.strerror}"}
        if answer["kind"] != "next":
            self.forget()
        self.send(answer | {"transfer": transfer})

    def _answer(self, message: Any, buffers: Sequence[memoryview]) -> dict[str, str]:
        if not isinstance(message, dict):
            raise WorkbenchError("the page sent no description of its files; load it again")
        kind = message.get("kind")
        if kind == "begin":
            self.forget()
            self._transfer = Transfer(message.get("files"))
            return {"kind": "next"}
        if self._transfer is None:
            raise WorkbenchError("the transfer was interrupted; drop the files again")
        if kind == "piece":
            self._transfer.write(message.get("index"), message.get("start"), buffers)
            return {"kind": "next"}
        self._transfer.check_complete()
        return {"kind": "done", "text": self._on_files(self._transfer.folder)}

    def forget(self) -> None:
        """Remove what was received."""
        if self._transfer is not None:
            self._transfer.close()
        self._transfer = None


class Transfer:
    """The files of one drop, as far as they have arrived.

    Parameters
    ----------
    files : list of (str, int)
        Path and size of each, as the page states them; nothing of it is trusted.

    Raises
    ------
    WorkbenchError
        When there are too many, they are too large, or the list is none.
    """

    def __init__(self, files: Any) -> None:
        self.sizes = _sizes(files)
        self._temporary = TemporaryDirectory(prefix="workbench-")
        self.folder = Path(self._temporary.name)
        try:
            self._check_space(sum(self.sizes))
            self.paths = self._make_files([str(name) for name, _ in files])
        except BaseException:
            self.close()
            raise
        self.arrived = [0] * len(files)

    def _check_space(self, total: int) -> None:
        free = shutil.disk_usage(self.folder).free - SPARE
        if total > min(MAX_BYTES, free):
            raise WorkbenchError(
                f"{total / 1e6:.0f} MB were dropped; expected {max(min(MAX_BYTES, free), 0) / 1e6:.0f} MB at "
                "most: open larger files by their path"
            )

    def _make_files(self, names: Sequence[str]) -> list[Path]:
        """Make an empty file for each name, below the folder."""
        paths = []
        used: set[str] = set()
        for name in names:
            relative = safe_path(name, used)
            used.add(str(relative))
            path = self.folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            paths.append(path)
        return paths

    def write(self, index: Any, start: Any, buffers: Sequence[memoryview]) -> None:
        """Add a piece to a file; it has to follow the one before it, within the size that was stated."""
        fits = (
            isinstance(index, int)
            and 0 <= index < len(self.paths)
            and len(buffers) == 1
            and start == self.arrived[index]
            and self.arrived[index] + buffers[0].nbytes <= self.sizes[index]
        )
        if not fits:
            raise WorkbenchError("a piece of the files does not follow the one before it; drop them again")
        with self.paths[index].open("ab") as file:
            file.write(buffers[0])
        self.arrived[index] += buffers[0].nbytes

    def check_complete(self) -> None:
        """Raise a WorkbenchError unless all bytes have arrived."""
        if self.arrived != self.sizes:
            raise WorkbenchError("not all of the files arrived; did they change meanwhile? Drop them again")

    def close(self) -> None:
        """Remove the folder."""
        self._temporary.cleanup()


def _sizes(files: Any) -> list[int]:
    """Return the sizes that a page states, checked."""
    is_list = isinstance(files, list) and all(isinstance(each, list) and len(each) == 2 for each in files)
    if not is_list or not files:
        raise WorkbenchError("the page sent no list of files; load it again")
    if len(files) > MAX_FILES:
        raise WorkbenchError(f"more than {MAX_FILES} files were dropped; drop one folder of a dump at a time")
    sizes = [size for _, size in files]
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise WorkbenchError("the page sent no sizes of its files; load it again")
    return sizes


def safe_path(path: str, used: Collection[str] = ()) -> Path:
    r"""Return a relative path made of a page's, which stays in its folder and can be written anywhere.

    Parameters
    ----------
    path : str
        Of any form, such as "../../etc/passwd" or a name with control characters.
    used : collection of str
        Paths that are taken; another one is returned then.

    Examples
    --------
    >>> safe_path("../dump/./mel\n?.npy").as_posix()
    'dump/mel__.npy'
    """
    names = []
    for part in re.split(r"[/\\]", unicodedata.normalize("NFC", path)):
        name = "".join(each if each.isprintable() and each not in '<>:"|?*' else "_" for each in part)
        name = name.strip(" .").encode("utf-8", "replace").decode()  # halves of surrogate pairs become "?"
        if name:
            names.append(_shortened(name.replace("?", "_")))
    names = names[-MAX_DEPTH:] or ["file"]
    found = Path(*names)
    number = 2
    while str(found) in used:
        found = Path(*names).with_name(f"{Path(names[-1]).stem}_{number}{Path(names[-1]).suffix}")
        number += 1
    return found


def _shortened(name: str) -> str:
    """Return a name of a bounded length, with its ending where that is short."""
    suffix = Path(name).suffix.encode()[: MAX_NAME // 4]
    stem = Path(name).stem.encode()
    return (stem[: MAX_NAME - len(suffix)] + suffix).decode("utf-8", "ignore")
