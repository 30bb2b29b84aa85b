"""Text logs -> `Trace`s that hold statistics alone: what a program printed of its tensors, run by run.

A log is read line by line in bounded memory. `loglines` says what one line prints, `logruns` which run and
step that is of.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.trace.importers.log_lines import NAMES, LineReader, LogNames
from workbench.trace.importers.log_runs import MOST_STEPS, runs_of
from workbench.trace.trace import Trace

LONGEST = 8192  # characters of a line; the rest of it is passed over
MOST_LINES = 50_000  # with statistics; those after them are counted only
SHOWN = 3  # lines that were not understood
LOGS = (".log", ".txt")


@dataclass(frozen=True)
class Log:
    """The runs of a text log.

    Attributes
    ----------
    name : str
        The file's.
    runs : list of Trace
        In the order of their first lines, with `.stats` alone. `attrs["tag"]` is the source that printed the
        run, such as "PY", and `attrs["lines"]` its first and last line.
    lines : int
        How many were read; a carriage return ends one as well.
    unparsed : int
        Lines that seem to print statistics and of which some were not understood.
    examples : list of str
        The first few of them.
    left_out : int
        Lines with statistics that were not read, because there are too many of them.
    """

    name: str
    runs: list[Trace]
    lines: int
    unparsed: int
    examples: list[str]
    left_out: int

    def pick(self, number: int | None = None) -> Trace:
        """Return a run by its number, counted from 1; without one, the only run.

        Raises
        ------
        WorkbenchError
            When there is no such run, or several and none was named; it lists them.
        """
        if number is None and len(self.runs) == 1:
            return self.runs[0]
        if number is None or not 1 <= number <= len(self.runs):
            wanted = "none is named" if number is None else f"{number} is none of them"
            table = "; ".join(f"{self.name}#{i} is {_about(run)}" for i, run in enumerate(self.runs, 1))
            raise WorkbenchError(f"{self.name} holds {len(self.runs)} runs and {wanted}: {table}")
        return self.runs[number - 1]

    @property
    def notes(self) -> list[str]:
        """What was not read, in sentences; none if all was."""
        found = []
        if self.unparsed:
            shown = "; ".join(self.examples)
            found.append(
                f"{self.name}: lines with statistics that no name or step of the table fits: "
                f"{self.unparsed}, the first: {shown}"
            )
        if self.left_out:
            found.append(f"{self.name}: lines with statistics that are too many: {self.left_out}; split it")
        return found

    def __repr__(self) -> str:
        return f"Log({self.name!r}, {len(self.runs)} runs in {self.lines} lines, {self.unparsed} unparsed)"

    def _repr_html_(self) -> str:
        items = "".join(f"<li>#{i}: {escape(_about(run))}</li>" for i, run in enumerate(self.runs, 1))
        more = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<div><b>{escape(repr(self))}</b><ul>{items}{more}</ul></div>"


def read_log(path: str | os.PathLike, names: str | os.PathLike = NAMES) -> Log:
    """Read what a program printed of its tensors.

    Parameters
    ----------
    path : path
        A text file of any size: prefixes, colours, progress bars and the lines of several programs may be
        mixed in it.
    names : path
        TOML table of what logs call the tensors; `workbench/trace/importers/logs.toml` unless given.

    Returns
    -------
    Log
        What a line does not print is NaN in the trace, never zero.

    Raises
    ------
    WorkbenchError
        When the file or the table cannot be read, or no line has a statistic of a tensor in the table.
    """
    path, table = Path(path), LogNames.load(names)
    reader, kept, examples = LineReader(table), [], []
    count = unparsed = left_out = 0
    for count, text in enumerate(_lines(path), 1):
        line = reader.read(count, text)
        if line is None:
            continue
        placed = line.step is None or line.step <= MOST_STEPS
        if line.strange or not placed:
            unparsed += 1
            if len(examples) < SHOWN:
                examples.append(f"{count}: {' '.join(text.split())[:120]}")
        if line.found and placed and len(kept) < MOST_LINES:
            kept.append(line)
        elif line.found and placed:
            left_out += 1
    runs, more = runs_of(kept, table)
    traces = [trace for run in runs if len(trace := run.trace(path.name))]
    if not traces:
        seen = f"; not understood: {'; '.join(examples)}" if unparsed else ""
        raise WorkbenchError(
            f"{path.name}: none of {count} lines prints a statistic of a tensor in {Path(names).name}{seen}. "
            "Expected lines such as '[PY ODE] step 3: x min=-4.1, max=4.2'; add names to a copy of the table"
        )
    traces = sorted(traces, key=lambda trace: trace.attrs["lines"])
    log = Log(path.name, traces, count, unparsed, examples, left_out + more)
    for trace in traces:
        trace.attrs["notes"] = log.notes
    return log


def open_run(source: Trace | str | os.PathLike, names: str | os.PathLike = NAMES) -> Trace:
    """Open a run: a trace as it is, a file that `Trace.save` wrote, or a run of a text log.

    Parameters
    ----------
    source : Trace or path
        A log ends in .log or .txt; "server.log#2" is its second run.
    names : path
        Table for logs, as in `read_log`.

    Raises
    ------
    WorkbenchError
        As `Trace.load`, `read_log` and `Log.pick`.
    """
    if isinstance(source, Trace):
        return source
    path, number = _numbered_path(Path(source))
    return read_log(path, names).pick(number) if path.suffix.lower() in LOGS else Trace.load(path)


def _numbered_path(path: Path) -> tuple[Path, int | None]:
    """Split `server.log#2`, unless a file is called so."""
    name, mark, number = path.name.rpartition("#")
    if path.exists() or not mark or not number.isdigit() or len(number) > 9:
        return path, None
    return path.with_name(name), int(number)


def _about(run: Trace) -> str:
    first, last = run.attrs["lines"]
    return f"{run.attrs['tag'] or 'no source'}, lines {first} to {last}, {', '.join(run)}"


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file, each cut to a length; none of them needs the whole file in memory."""
    try:
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(path, encoding=encoding, errors="replace") as file:
            whole = True
            while text := file.readline(LONGEST):
                if whole:
                    yield text
                whole = text.endswith("\n")
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read ({error.strerror}); expected a text log") from error
