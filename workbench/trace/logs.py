"""Text logs -> `Trace`s that hold statistics alone: what a program printed of its tensors, run by run.

A log is read line by line in bounded memory. `loglines` says what one line prints; here lines become runs: a
run is over when its steps begin again, when a tensor is printed a second time with other numbers, or when
the ODE or its inputs follow the sound.
"""

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.loglines import NAMES, SHAPE, Found, Line, LineReader, LogNames, Row
from workbench.trace.schema import FIELDS, LOOPS, REGIONS, STATS, SUFFIX, dims_of
from workbench.trace.trace import Trace

LONGEST = 8192  # characters of a line; the rest of it is passed over
MOST_LINES = 50_000  # with statistics; those after them are counted only
MOST_RUNS = 200  # of one source
MOST_STEPS = 200
WIDTH = "dt"  # of a step: no field of its own, but where all are known they give the knots
SHOWN = 3  # lines that were not understood
LOGS = (".log", ".txt")
HALF_UNITS = "half_units"  # attribute: half a unit of the last printed digit, by field, entry and statistic

Place = tuple[str, int | None]  # field, and entry of a loop


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
        TOML table of what logs call the tensors; `data/foreign/logs.toml` unless given.

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
        fits = _fits(line, table)
        if line.strange or not fits:
            unparsed += 1
            if len(examples) < SHOWN:
                examples.append(f"{count}: {' '.join(text.split())[:120]}")
        if line.found and fits and len(kept) < MOST_LINES:
            kept.append(line)
        elif line.found and fits:
            left_out += 1
    runs, more = _runs(kept, table)
    if not runs:
        seen = f"; not understood: {'; '.join(examples)}" if unparsed else ""
        raise WorkbenchError(
            f"{path.name}: none of {count} lines prints a statistic of a tensor in {Path(names).name}{seen}. "
            "Expected lines such as '[PY ODE] step 3: x min=-4.1, max=4.2'; add names to a copy of the table"
        )
    traces = sorted((run.trace(path.name) for run in runs), key=lambda trace: trace.attrs["lines"])
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


# ---- lines


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


def _fits(line: Line, table: LogNames) -> bool:
    """Whether a step, where a line has one, is one that a run may have."""
    if line.step is None:
        return True
    entries = [_entry(found, line.step, table) for found in line.found if _needs_step(found)]
    return all(0 <= entry <= MOST_STEPS for entry in entries)


def _needs_step(found: Found) -> bool:
    return found.what == "dt" if found.row is None else _loop(found.row.field) and found.row.knot != "last"


def _loop(field: str) -> bool:
    return FIELDS[field].dims[0] in LOOPS


def _entry(found: Found, step: int, table: LogNames) -> int:
    """Which knot or step of a field is printed at a step."""
    return step - table.first + (found.row is not None and found.row.knot == "after")


# ---- runs


def _runs(lines: list[Line], table: LogNames) -> tuple[list["_Run"], int]:
    """Lines -> runs, and how many lines are in none; those of no source are of the only one there is."""
    tags = sorted({line.tag for line in lines} - {""})
    if len(tags) == 1:
        lines = [line._replace(tag=tags[0]) for line in lines]
    runs, left_out = [], 0
    for tag in sorted({line.tag for line in lines}):
        mine = [_Run(tag, table)]
        for line in _numbered(_joined(line for line in lines if line.tag == tag), table):
            if mine[-1].is_over(line):
                mine.append(_Run(tag, table))
            if len(mine) <= MOST_RUNS:
                mine[-1].take(line)
            else:
                left_out += 1
        runs += [run for run in mine if run.seen]
    return runs, left_out


def _joined(lines: Iterable[Line]) -> Iterator[Line]:
    """Put lines below one heading together, as long as none says anything twice."""
    last = None
    for line in lines:
        if last and last.heading == line.heading and last.step == line.step and not _said(last) & _said(line):
            last = last._replace(found=last.found + line.found)
            continue
        if last:
            yield last
        last = line
    if last:
        yield last


def _said(line: Line) -> set[tuple[Row | None, str]]:
    return {(found.row, found.what) for found in line.found}


def _numbered(lines: Iterable[Line], table: LogNames) -> Iterator[Line]:
    """Number the lines of the ODE that have no step: they belong to the next line that has one.

    Where none has, they are counted.
    """
    waiting: list[Line] = []
    for line in lines:
        if line.step is None and any(_needs_step(found) for found in line.found):
            waiting.append(line)
            continue
        yield from _counted(waiting, line.step, table)
        waiting = []
        yield line
    yield from _counted(waiting, None, table)


def _counted(lines: list[Line], step: int | None, table: LogNames) -> list[Line]:
    """Give lines the steps up to `step`, or those from the first on: one more each time they repeat."""
    times: Counter[tuple[Row | None, str]] = Counter()
    numbered = []
    for line in lines if step is None else reversed(lines):
        keys = {(found.row, found.what) for found in line.found if _needs_step(found)}
        past = max(times[key] for key in keys)
        times.update(keys)
        numbered.append(line._replace(step=table.first + past if step is None else step - past))
    fitting = [line for line in numbered if _fits(line, table)]
    return fitting if step is None else fitting[::-1]


class _Run:
    """What one source printed of one run, by place and statistic."""

    def __init__(self, tag: str, table: LogNames) -> None:
        self.tag, self.table = tag, table
        self.seen: dict[Place, dict[str, tuple[float, float]]] = {}  # value and half unit
        self.shapes: dict[str, list[int]] = {}
        self.prompt_frames: int | None = None
        self.step: int | None = None
        self.lines: list[int] = []  # the first and the last

    def is_over(self, line: Line) -> bool:
        """Whether a line is the first of another run."""
        if line.step is not None and self.step is not None and line.step < self.step:
            return True
        fields = {found.row.field for found in line.found if found.row}
        if any(_after_ode(field) for field, _ in self.seen) and not all(_after_ode(f) for f in fields):
            return True
        return any(
            abs(value - old[0]) > half + old[1]
            for place, what, value, half in self._placed(line)
            if (old := self.seen.get(place, {}).get(what)) and what != "nonfinite"
        )

    def take(self, line: Line) -> None:
        """Note what a line says."""
        for place, what, value, half in self._placed(line):
            old = self.seen.setdefault(place, {}).get(what)
            better = old and (value > old[0] if what == "nonfinite" else half < old[1])
            if old is None or better:
                self.seen[place][what] = value, half
        for found in line.found:
            if found.what == SHAPE:
                self.shapes.setdefault(found.row.field, list(found.value))
            elif found.what == "prompt_frames":
                self.prompt_frames = int(found.value)
        self.step = line.step if line.step is not None else self.step
        self.lines = [*self.lines[:1], line.number]

    def _placed(self, line: Line) -> Iterator[tuple[Place, str, float, float]]:
        for found in line.found:
            if found.what in (SHAPE, "prompt_frames"):
                continue
            place = self._place(found, line.step)
            if math.isfinite(found.value):
                yield place, found.what, found.value, found.half
            else:  # at least one value is; how many is not said
                yield place, "nonfinite", 1.0, math.inf

    def _place(self, found: Found, step: int | None) -> Place:
        if found.row is None:
            return WIDTH, _entry(found, step, self.table)
        if not _loop(found.row.field):
            return found.row.field, None
        last = found.row.knot == "last"
        return found.row.field, self._last_knot() if last else _entry(found, step, self.table)

    def _last_knot(self) -> int:
        """Behind the steps that were printed, or behind as many as the table says where none was."""
        knots = [entry + (field != "flow/x") for field, entry in self.seen if entry is not None]
        return max(knots, default=self.table.count)

    def trace(self, source: str) -> Trace:
        """Return what was printed as a trace."""
        seen = self.seen | self._times()
        data, half_units = {}, {}
        for field in FIELDS:
            entries = {entry: stats for (name, entry), stats in seen.items() if name == field}
            if entries:
                data[field + SUFFIX], half_units[field] = _tensors(field, entries)
        about = {"sample_rate": 24000, "timings": {}, "source": source, "tag": self.tag}
        about |= {"lines": [self.lines[0], self.lines[-1]], HALF_UNITS: half_units, "shapes": self.shapes}
        if self.prompt_frames is not None:
            about["prompt_frames"] = self.prompt_frames
        return Trace(data, about)

    def _times(self) -> dict[Place, dict[str, tuple[float, float]]]:
        """Knots, as far as the widths of all steps before them were printed."""
        knots, time, half = {}, 0.0, 0.0
        for step in itertools.count():
            if (WIDTH, step) not in self.seen:
                return knots
            width, unit = self.seen[WIDTH, step]["dt"]
            time, half = time + width, half + unit
            knots["flow/t", step + 1] = dict.fromkeys(("min", "max", "mean", "mean_abs", "rms"), (time, half))


def _after_ode(field: str) -> bool:
    return field == "flow/mel" or field.startswith("hift/")


def _tensors(field: str, entries: dict[int | None, dict[str, tuple[float, float]]]) -> tuple[Tensor, list]:
    """Statistics as the schema has them, of the whole alone, and half a unit of each one's last digit."""
    looped = None not in entries
    shape = (max(entries) + 1 if looped else 1, len(STATS))
    values, half = torch.full(shape, math.nan, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for entry, stats in entries.items():
        for what, (value, unit) in _with_rms(stats).items():
            at = entry or 0, STATS.index(what)
            values[at], half[at] = value, unit if math.isfinite(unit) else 0.0
    if "region" in dims_of(field + SUFFIX):
        missing = torch.full_like(values, math.nan)
        values = torch.stack([values if region == "whole" else missing for region in REGIONS], dim=-2)
    return (values, half.tolist()) if looped else (values[0], half[0].tolist())


def _with_rms(stats: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Turn mean and standard deviation into the rms: torch's divides by one less, so to one percent."""
    kept = {what: pair for what, pair in stats.items() if what in STATS}
    if "std" in stats and "mean" in stats and "rms" not in stats:
        (mean, a), (std, b) = stats["mean"], stats["std"]
        kept["rms"] = math.hypot(mean, std), a + b + std / 100
    return kept
