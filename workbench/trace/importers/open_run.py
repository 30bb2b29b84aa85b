"""Open one run, whatever it was kept in: a trace, a dump of tensors, or a text log."""

import json
import os
from pathlib import Path

from safetensors import safe_open

from workbench.errors import WorkbenchError
from workbench.files import about_address
from workbench.trace.attributes import KEY
from workbench.trace.importers.dumps.shipped import open_dump
from workbench.trace.importers.dumps.stored_tensor import readable
from workbench.trace.importers.dumps.tensor_files import EXPECTED, is_safetensors, is_tensor_file
from workbench.trace.importers.logs.log_names import NAMES
from workbench.trace.importers.logs.logs import Log, read_log
from workbench.trace.schema import SOUND_SUFFIXES
from workbench.trace.trace import Trace

LOG_SUFFIXES = (".log", ".txt", ".out", ".csv", ".tsv", ".md", ".jsonl", ".ndjson", ".json", ".err")
MAX_JSON_LINE = 1 << 16  # characters of a line of a .json file that tell whether it is a log


def open_run(
    source: Trace | Log | str | os.PathLike,
    names: str | os.PathLike | None = None,
    mapping: str | os.PathLike | None = None,
) -> Trace:
    """Open one run: a trace is returned as it is, a trace file is loaded, a dump or a text log is read.

    Parameters
    ----------
    source : Trace, Log or path
        A dump is a file of tensors or a folder of such files. A log is a text file, such as .log, .txt or
        .csv; "server.log#2" is its second run.
    names : path, optional
        Table for logs, as in `read_log`.
    mapping : path, optional
        Mapping for dumps, as in `open_dump`.

    Raises
    ------
    WorkbenchError
        As `Trace.load`, `open_dump`, `read_log` and `Log.pick`.
    """
    found = _open(source, names, mapping)
    return found.pick() if isinstance(found, Log) else found


def open_runs(path: str | os.PathLike, mapping: str | os.PathLike | None = None) -> list[Trace]:
    """Open every run of a file or folder: as `open_run`, but all runs of a text log.

    Raises
    ------
    WorkbenchError
        As `open_run`.
    """
    found = _open(path, mapping=mapping)
    return found.runs if isinstance(found, Log) else [found]


def _open(
    source: Trace | Log | str | os.PathLike,
    names: str | os.PathLike | None = None,
    mapping: str | os.PathLike | None = None,
) -> Trace | Log:
    """Open a run, or a log with all of its runs."""
    if isinstance(source, Trace | Log):
        return source
    if not isinstance(source, str | os.PathLike):
        raise WorkbenchError(f"{type(source).__name__} is no run; expected a Trace, a Log or a path")
    path, number = _split_number(Path(source))
    if path.suffix.lower() in (".trace", *SOUND_SUFFIXES):
        return Trace.load(path)  # which says where sounds go
    if number is not None:
        return read_log(path, names or NAMES).pick(number)
    if os.path.isdir(path):
        return open_dump(path, mapping)
    if not os.path.isfile(path):  # Path.is_file raises an OSError for a name that is too long
        raise WorkbenchError(
            f"{path} does not exist or is no file; expected a trace, a log, a sound or a dump: {EXPECTED}"
            f"{about_address(path)}"
        )
    if is_safetensors(path):
        return Trace.load(path) if _is_trace(path) else open_dump(path, mapping)
    if is_tensor_file(path) and not _is_json_log(path):
        return open_dump(path, mapping)
    if path.suffix.lower() in LOG_SUFFIXES or _is_text(path):
        return read_log(path, names or NAMES)
    raise WorkbenchError(f"{path.name} is neither a trace nor text; expected a text log, or {EXPECTED}")


def is_run_file(path: Path) -> bool:
    """Whether a path is a trace, a dump or a text log, by its suffix and first bytes; sounds are not."""
    if path.suffix.lower() in SOUND_SUFFIXES:
        return False
    if (
        os.path.isdir(path)
        or path.suffix.lower() in (".trace", *LOG_SUFFIXES)
        or _split_number(path)[1] is not None
    ):
        return True
    return os.path.isfile(path) and (is_tensor_file(path) or _is_text(path))


def _is_trace(path: Path) -> bool:
    """Whether a safetensors file is a trace."""
    with readable(path), safe_open(path, framework="pt") as file:
        return KEY in (file.metadata() or {})


def _is_text(path: Path) -> bool:
    """Whether a file begins as text of UTF-8 or UTF-16 does."""
    with readable(path), open(path, "rb") as file:
        start = file.read(4096)
    return start.startswith((b"\xff\xfe", b"\xfe\xff")) or (bool(start) and b"\0" not in start)


def _is_json_log(path: Path) -> bool:
    """Whether a .json file has an object on each line, or one without lists: a log rather than a dump."""
    if path.suffix.lower() != ".json":
        return False
    with readable(path), open(path, encoding="utf-8-sig", errors="replace") as file:
        first, second = file.readline(MAX_JSON_LINE), file.readline(MAX_JSON_LINE)
    try:
        is_object = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False
    return is_object and (bool(second.strip()) or "[" not in first)


def _split_number(path: Path) -> tuple[Path, int | None]:
    """Split `server.log#2` into path and number, unless a file has that very name."""
    name, mark, number = path.name.rpartition("#")
    is_number = bool(mark) and number.isdigit() and len(number) <= 9  # int() refuses very long digits
    if os.path.exists(path) or not is_number:
        return path, None
    return path.with_name(name), int(number)
