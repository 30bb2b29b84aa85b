"""Files: written as a whole or not at all, and found in a checkout as well as in an installed wheel."""

import errno
import glob
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import WorkbenchError

PACKAGE = Path(__file__).parent
MAX_TEXT_BYTES = 1_000_000  # of a file that is read as one text
# The longer marks first: that of UTF-32 begins like that of UTF-16.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path("https://a") is "https:/a"; "C:/a" is a path
STALE = 24 * 3600  # seconds after which a draft belongs to a run that was killed


def about_address(path: str | os.PathLike) -> str:
    """Return the end of an error on a path that leads to no file: what to do where it is an address.

    Examples
    --------
    >>> about_address("https://example.com/a.wav"), about_address("a.wav")
    ('. An address is not opened: download the file and give its path', '')
    """
    is_address = ADDRESS.match(os.fspath(path)) is not None
    return ". An address is not opened: download the file and give its path" if is_address else ""


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    r"""Give a draft beside `path`, which takes its place when the block ends without an error.

    The draft is made at once: before slow work begins it is known that its result can be written. Drafts
    that a killed run left for the same path are removed after a day.

    Parameters
    ----------
    path : str or path
        The file to write. Missing folders are made.

    Yields
    ------
    Path
        The draft, an empty file with the same ending.

    Raises
    ------
    WorkbenchError
        When the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "figures.csv"
    >>> with atomic_write(out) as draft:
    ...     _ = draft.write_text("mel,wav\\n")
    >>> out.read_text()
    'mel,wav\\n'
    """
    path = Path(path)
    draft = _draft_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent, f".*.partial.{glob.escape(path.name)}")
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)  # safetensors replaces the draft by a file that only its owner may read
        os.replace(draft, path)
    except OSError as error:
        raise WorkbenchError(f"{path} could not be written ({error}); is the folder writable?") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike | None) -> None:
    """Find out whether a file can be written, before the slow work whose result it will hold.

    Nothing stays behind but the folder, where it was missing.

    Parameters
    ----------
    path : str or path, optional
        The file; nothing is checked without one.

    Raises
    ------
    WorkbenchError
        When it could not be written.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "figures.csv"
    >>> check_writable(out)
    >>> out.exists()
    False
    """
    if path is None:
        return
    path = Path(path)
    draft = _draft_path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be written ({error}); is the folder writable?") from None


def _draft_path(path: Path) -> Path:
    """Return a new hidden name beside a file, with the same ending."""
    check_name(path)
    return path.with_name(f".{uuid.uuid4().hex}.partial.{path.name}")


def check_name(path: Path) -> None:
    """Raise a WorkbenchError for a name that no file can have, such as one with a zero byte."""
    try:
        os.lstat(path)
    except OSError:
        pass  # it is not there, or too long, which whoever opens it is told
    except ValueError as error:
        raise WorkbenchError(f"{str(path)!r} is no name of a file ({error}); choose another") from None


def data_path(name: str | os.PathLike = "") -> Path:
    """Return the path of a file or folder of the project's `data/`.

    It is found in a checkout and in an installed wheel alike, from any working directory.

    Parameters
    ----------
    name : str
        Relative to `data/`, such as "voices/tiny" or "prompts/kumo_0.flac".

    Returns
    -------
    Path

    Raises
    ------
    WorkbenchError
        When there is no such file.

    Examples
    --------
    >>> wb.data_path("voices/tiny").name
    'tiny'
    """
    folder = shipped_folder("data")
    path = folder / name
    if not path.exists():
        beside = path.parent if path.parent.is_dir() else folder
        names = ", ".join(sorted(entry.name for entry in beside.iterdir()))
        raise WorkbenchError(f"data/{name} is not there; {beside.name}/ holds {names}")
    return path


def read_text_file(path: str | os.PathLike) -> str:
    """Return the text of a small file in UTF-8 or UTF-16, without its byte-order mark.

    Raises
    ------
    WorkbenchError
        When it cannot be read, is larger than 1 MB, or is in another encoding.
    """
    path = Path(path)
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read ({error.strerror}); expected a text file") from None
    if len(content) > MAX_TEXT_BYTES:
        raise WorkbenchError(f"{path} is larger than {MAX_TEXT_BYTES} bytes; expected a short text")
    encoding = "utf-8-sig"
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            encoding = name
            break
    else:
        # In UTF-16 without a mark one byte of each character of a Latin script is 0, the first or the second.
        zeros = [content[i::2].count(0) for i in (0, 1)]
        if max(zeros) > len(content) // 4 and min(zeros) == 0:
            encoding = "utf-16-be" if zeros[0] else "utf-16-le"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise WorkbenchError(
            f"{path} is no {encoding.removesuffix('-sig').upper()} text (byte {error.start} is "
            f"0x{content[error.start]:02x}); expected UTF-8 or UTF-16: save it as UTF-8"
        ) from None
    if "\0" in text:
        raise WorkbenchError(f"{path} holds zero bytes; expected a text file, in UTF-8 or UTF-16")
    return text


def check_regular(path: str | os.PathLike) -> None:
    """Raise an OSError for what is no file of bytes: to open a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise OSError(errno.EINVAL, f"no name of a file: {error}") from None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder, pipe or device, no file")


def shipped_folder(name: str) -> Path:
    """Return a folder that lies inside the package in a wheel, and beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def remove_stale(folder: Path, pattern: str) -> None:
    """Remove files and folders of a pattern that nobody has touched for a day: drafts of killed runs."""
    for draft in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
