"""Lines of a text log -> runs: which step each number is of, and where one run ends and the next begins.

A run is over when its steps begin again, when a tensor is printed a second time with other numbers, or when
the ODE or its inputs follow the sound.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from workbench.trace.importers.log_lines import SHAPE, Found, Line, LogNames, Row
from workbench.trace.schema import FIELDS, LOOPS, REGIONS, SAMPLE_RATE, STATS, SUFFIX, dims_of
from workbench.trace.trace import Trace

MOST_RUNS = 200  # of one source
MOST_STEPS = 200
WIDTH = "dt"  # of a step: no field of its own, but where all are known they give the knots
HALF_UNITS = "half_units"  # attribute: half a unit of the last printed digit, by field, entry and statistic

Place = tuple[str, int | None]  # field, and entry of a loop


def _needs_step(found: Found) -> bool:
    """Whether a number means nothing without a step."""
    return found.what == "dt" if found.row is None else _loop(found.row.field) and found.row.knot != "last"


def _is_of_step(found: Found) -> bool:
    """Whether a number is of a step, not of a knot beside it."""
    return _needs_step(found) and (found.row is None or not found.row.knot)


def _loop(field: str) -> bool:
    return FIELDS[field].dims[0] in LOOPS


def _entry(found: Found, step: int, table: LogNames) -> int:
    """Which knot or step of a field is printed at a step."""
    return step - table.first + (found.row is not None and found.row.knot == "after")


def runs_of(lines: list[Line], table: LogNames) -> tuple[list["Run"], int]:
    """Lines -> runs, and how many lines are in none; those of no source are of the only one there is.

    A source that calls a velocity's step 0 counts from 0, whatever the table says.
    """
    tags = sorted({line.tag for line in lines} - {""})
    if len(tags) == 1:
        lines = [line._replace(tag=tags[0]) for line in lines]
    runs, left_out = [], 0
    for tag in sorted({line.tag for line in lines}):
        said = [line for line in lines if line.tag == tag]
        zero = any(line.step == 0 and any(_is_of_step(found) for found in line.found) for line in said)
        rules = table._replace(first=0) if zero else table
        mine = [Run(tag, rules)]
        for line in _numbered(_joined(said), rules):
            if mine[-1].is_over(line):
                mine.append(Run(tag, rules))
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
    fitting = [line for line in numbered if table.first <= line.step <= table.first + MOST_STEPS]
    return fitting if step is None else fitting[::-1]


class Run:
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
            if place[1] is not None and place[1] < 0:
                continue
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
        about = {"sample_rate": SAMPLE_RATE, "timings": {}, "source": source, "tag": self.tag}
        about |= {"lines": [self.lines[0], self.lines[-1]], HALF_UNITS: half_units, "shapes": self.shapes}
        if self.prompt_frames is not None:
            about["prompt_frames"] = self.prompt_frames
        return Trace(data, about)

    def _times(self) -> dict[Place, dict[str, tuple[float, float]]]:
        """Knots, as far as the widths of all steps before them were printed."""
        knots, time, half = {}, 0.0, 0.0
        for step in itertools.count():
            if not (width := self.seen.get((WIDTH, step), {}).get("dt")):
                return knots
            time, half = time + width[0], half + width[1]
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
