"""Read text logs: what a program printed of its tensors becomes a trace of statistics for each run.

A log is read line by line in bounded memory. `log_lines` finds the statistics of one line, `log_runs` groups
lines into runs and steps.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.trace.importers.log_lines import NAMES, LineReader, LogNames
from workbench.trace.importers.log_runs import MAX_STEPS, group_lines
from workbench.trace.trace import Trace

MAX_LINE_LENGTH = 8192  # characters that are read of a line; the rest is skipped, to bound memory
MAX_LINES = 50_000  # lines with statistics that are kept; further ones are only counted
MAX_EXAMPLES = 3  # lines that were not understood and are quoted
MAX_EXAMPLE_LENGTH = 120  # characters of each
LOG_SUFFIXES = (".log", ".txt")


@dataclass(frozen=True)
class Log:
    r"""The runs of a text log; `read_log` returns one.

    Attributes
    ----------
    name : str
        Name of the file.
    runs : list of Trace
        In the order of their first lines, with `.stats` alone. `attrs["tag"]` is the source that printed the
        run, such as "PY", and `attrs["lines"]` holds the numbers of its first and last line.
    lines : int
        How many lines were read; a carriage return ends a line as well.
    unparsed : int
        Lines that seem to print statistics, but with a name or step that the table does not have.
    examples : list of str
        The first few of them.
    left_out : int
        Lines with statistics that were skipped, because the log has too many.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "server.log"
    >>> _ = path.write_text("mu max=1.5\nmu max=2.5\n")
    >>> log = wb.read_log(path)
    >>> log
    Log('server.log', 2 runs in 2 lines, 0 unparsed)
    >>> log.pick(2)["flow/mu.stats"].shape  # region, statistic
    torch.Size([3, 6])
    """

    name: str
    runs: list[Trace]
    lines: int
    unparsed: int
    examples: list[str]
    left_out: int

    def pick(self, number: int | None = None) -> Trace:
        """Return a run by its number, counted from 1; without a number, the only run.

        Raises
        ------
        WorkbenchError
            When there is no such run, or there are several and no number; the message lists them.
        """
        if number is None and len(self.runs) == 1:
            return self.runs[0]
        if number is None or not 1 <= number <= len(self.runs):
            problem = "no number was given" if number is None else f"{number} is not one of them"
            table = "; ".join(f"{self.name}#{i} is {_describe(run)}" for i, run in enumerate(self.runs, 1))
            raise WorkbenchError(f"{self.name} holds {len(self.runs)} runs and {problem}: {table}")
        return self.runs[number - 1]

    @property
    def notes(self) -> list[str]:
        """Sentences on the lines that were not read; empty if all were."""
        notes = []
        if self.unparsed:
            notes.append(
                f"{self.name}: {self.unparsed} lines print statistics under a name or step that the table "
                f"does not have; the first: {'; '.join(self.examples)}"
            )
        if self.left_out:
            notes.append(
                f"{self.name}: too many lines with statistics; {self.left_out} were skipped: split the file"
            )
        return notes

    def __repr__(self) -> str:
        return f"Log({self.name!r}, {len(self.runs)} runs in {self.lines} lines, {self.unparsed} unparsed)"

    def _repr_html_(self) -> str:
        items = [f"<li>#{i}: {escape(_describe(run))}</li>" for i, run in enumerate(self.runs, 1)]
        items += [f"<li>{escape(note)}</li>" for note in self.notes]
        return f"<div><b>{escape(repr(self))}</b><ul>{''.join(items)}</ul></div>"


def read_log(path: str | os.PathLike, names: str | os.PathLike = NAMES) -> Log:
    r"""Read the statistics that a program printed of its tensors.

    Parameters
    ----------
    path : path
        A text file of any size. Prefixes, colours, progress bars and lines of several programs may be mixed.
    names : path
        TOML table of what logs call the tensors; default `workbench/trace/importers/logs.toml`.

    Returns
    -------
    Log
        A statistic that no line prints is NaN in the trace, never zero.

    Raises
    ------
    WorkbenchError
        When the file or the table cannot be read, or no line has a statistic of a tensor in the table.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "server.log"
    >>> _ = path.write_text("[PY ODE] step 1: x min=-4.1, max=4.2\n[PY ODE] step 2: x min=-4.0, max=4.1\n")
    >>> run = wb.read_log(path).pick()
    >>> run.attrs["tag"], list(run)
    ('PY', ['flow/x.stats'])
    >>> float(run.stats("flow/x").loc[(2, "whole"), "max"])
    4.1
    """
    path = Path(path)
    table = LogNames.load(names)
    reader = LineReader(table)
    kept = []
    examples = []
    number = unparsed = left_out = 0
    for number, text in enumerate(_lines(path), 1):
        line = reader.read(number, text)
        if line is None:
            continue
        step_fits = line.step is None or line.step <= MAX_STEPS
        if line.unknown or not step_fits:
            unparsed += 1
            if len(examples) < MAX_EXAMPLES:
                examples.append(f"{number}: {' '.join(text.split())[:MAX_EXAMPLE_LENGTH]}")
        if line.values and step_fits:
            if len(kept) < MAX_LINES:
                kept.append(line)
            else:
                left_out += 1

    runs, dropped = group_lines(kept, table)
    traces = [run.trace(path.name) for run in runs]
    traces = [trace for trace in traces if len(trace)]  # a run may have printed nothing but step widths
    if not traces:
        not_understood = f"; not understood: {'; '.join(examples)}" if unparsed else ""
        raise WorkbenchError(
            f"{path.name}: none of {number} lines prints a statistic of a tensor in {Path(names).name}"
            f"{not_understood}. Expected lines such as '[PY ODE] step 3: x min=-4.1, max=4.2'; "
            "add names to a copy of the table"
        )
    traces = sorted(traces, key=lambda trace: trace.attrs["lines"])
    log = Log(path.name, traces, number, unparsed, examples, left_out + dropped)
    for trace in traces:
        trace.attrs["notes"] = log.notes
    return log


def open_run(source: Trace | str | os.PathLike, names: str | os.PathLike = NAMES) -> Trace:
    """Open one run: a trace is returned as it is, a trace file is loaded, a text log is read.

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
    path, number = _split_number(Path(source))
    if path.suffix.lower() in LOG_SUFFIXES:
        return read_log(path, names).pick(number)
    return Trace.load(path)


def _split_number(path: Path) -> tuple[Path, int | None]:
    """Split `server.log#2` into path and number, unless a file has that very name."""
    name, mark, number = path.name.rpartition("#")
    is_number = bool(mark) and number.isdigit() and len(number) <= 9  # int() refuses very long digits
    if path.exists() or not is_number:
        return path, None
    return path.with_name(name), int(number)


def _describe(run: Trace) -> str:
    first, last = run.attrs["lines"]
    return f"{run.attrs['tag'] or 'no source'}, lines {first} to {last}, {', '.join(run)}"


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, each cut to `MAX_LINE_LENGTH`, so that no line has to fit the memory."""
    try:
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(path, encoding=encoding, errors="replace") as file:
            at_line_start = True
            while text := file.readline(MAX_LINE_LENGTH):
                if at_line_start:
                    yield text
                at_line_start = text.endswith("\n")
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read ({error.strerror}); expected a text log") from error
