"""Read text logs: what a program printed of its tensors becomes a trace of statistics for each run.

A log is read line by line in bounded memory. `log_lines` reads one line, `log_runs` groups lines into runs.
Lines that seem to print statistics and could not be read are counted and quoted, by their problem.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files import check_regular
from workbench.trace.importers.logs.log_lines import FORMAT, IDS, NAME, NO_NAME, NUMBER, LineReader
from workbench.trace.importers.logs.log_lists import with_whole_lists
from workbench.trace.importers.logs.log_names import NAMES
from workbench.trace.importers.logs.log_runs import MAX_STEPS, group_lines
from workbench.trace.trace import Trace

MAX_LINE_LENGTH = 16_384  # characters that are read of a line: 2 minutes of token ids; bounds the memory
CUT = " \u2026"  # stands for the rest of a longer line, so that no list of ids is taken as complete
MAX_LINES = 50_000  # lines with statistics that are kept; further ones are only counted
MAX_VALUES = 1_000_000  # numbers and ids on these lines, about 200 MB
MAX_EXAMPLES = 3  # lines with one problem that are quoted
MAX_EXAMPLE_LENGTH = 120  # characters of each

STEP = "step"  # problem of a line whose step is too large, in addition to those of `log_lines`
# What lines with each problem have, and what to change.
ADVICE = {
    NAME: "a name that the table of names does not have: add the name to a copy of logs.toml and pass the "
    "copy as `names` (--names in the shell)",
    NO_NAME: "statistics of no tensor: print its name directly before them, as in 'mu min=-4.1'",
    NUMBER: "a number that cannot be read for certain: print it with a decimal point, without grouping and "
    "without a unit, such as 5817890.5 or -1.5e-3",
    FORMAT: "numbers in an unknown format, which no table of names changes: print each number behind "
    "the name of its statistic, such as 'step 3: x min=-4.1 max=4.2', each row of a table with all cells of "
    "its header, token ids complete and on one line, with ggml the sum of all values",
    STEP: f"a step that is no integer from 0 to {MAX_STEPS}: count the steps of each run from 0 or 1",
}


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
        Lines that seem to print statistics and could not be read, or not completely.
    examples : list of str
        The first few of them.
    problems : dict
        The same lines by problem, a key of `ADVICE`: how many there are, and the first few.
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
    problems: dict[str, tuple[int, list[str]]]

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
        notes = [f"{self.name}: {note}" for note in _problem_notes(self.problems)]
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
        TOML table of what logs call the tensors; default `workbench/trace/importers/logs/logs.toml`.

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
    reader = LineReader(names)
    kept = []
    problems: dict[str, tuple[int, list[str]]] = {}
    examples: list[str] = []
    number = left_out = n_values = 0
    for number, text in with_whole_lists(enumerate(_lines(path), 1)):
        line = reader.read(number, text)
        if line is None:
            continue
        step_fits = line.step is None or line.step <= MAX_STEPS
        problem = line.problem if step_fits else STEP
        if problem:
            example = f"{number}: {' '.join(text.split())[:MAX_EXAMPLE_LENGTH]}"
            count, quoted = problems.get(problem, (0, []))
            problems[problem] = (count + 1, [*quoted, example][:MAX_EXAMPLES])
            examples = [*examples, example][:MAX_EXAMPLES]
        if line.values and step_fits:
            n_values += sum(len(value.value) if value.kind == IDS else 1 for value in line.values)
            if len(kept) < MAX_LINES and n_values <= MAX_VALUES:
                kept.append(line)
            else:
                left_out += 1

    runs, dropped = group_lines(kept, reader.names)
    traces = [run.trace(path.name) for run in runs]
    traces = [trace for trace in traces if len(trace)]  # a run may have printed nothing but step widths
    if not traces:
        notes = _problem_notes(problems) or [
            "expected lines such as '[PY ODE] step 3: x min=-4.1, max=4.2', with names of tensors that the "
            "table has"
        ]
        raise WorkbenchError(
            f"{path.name}: none of {number} lines prints a statistic of a tensor in {Path(names).name} that "
            f"could be read; {'; '.join(notes)}"
        )
    traces = sorted(traces, key=lambda trace: trace.attrs["lines"])
    unparsed = sum(count for count, _ in problems.values())
    log = Log(path.name, traces, number, unparsed, examples, left_out + dropped, problems)
    for trace in traces:
        trace.attrs["notes"] = log.notes
    return log


def _problem_notes(problems: dict[str, tuple[int, list[str]]]) -> list[str]:
    """Return a sentence for each problem: how many lines have it, what to change, and the first of them."""
    notes = []
    for problem, (count, quoted) in problems.items():
        lines = "1 line" if count == 1 else f"{count:,} lines"
        notes.append(f"{lines} with {ADVICE[problem]}; the first: {'; '.join(quoted)}")
    return notes


def _describe(run: Trace) -> str:
    first, last = run.attrs["lines"]
    return f"{run.attrs['tag'] or 'no source'}, lines {first} to {last}, {', '.join(run)}"


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, each cut to `MAX_LINE_LENGTH`, so that no line has to fit the memory."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(path, encoding=encoding, errors="replace") as file:
            at_line_start = True
            while text := file.readline(MAX_LINE_LENGTH):
                is_whole = text.endswith("\n") or len(text) < MAX_LINE_LENGTH
                if at_line_start:
                    yield text if is_whole else text.rpartition(" ")[0] + CUT
                at_line_start = text.endswith("\n")
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read ({error.strerror}); expected a text log") from error
