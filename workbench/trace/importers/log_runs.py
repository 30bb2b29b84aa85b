"""Group the lines of a text log into runs, and turn each run into a trace of statistics.

`group_lines` handles each source ("PY", "RUST") on its own, in three passes over its lines:

1. Lines below one heading are merged into one line.
2. Lines of the ODE that print no step get one, from the next line that has a step or by counting.
3. Lines are added to a run until one cannot belong to it: then the next run begins.

For example, these lines are two runs, because the steps begin again:

    [PY ODE] step 1: x max=4.18
    [PY ODE] step 2: x max=4.05
    [PY ODE] step 1: x max=4.11

An ODE of n steps has n velocities and n + 1 states (knots): step k leads from knot k to knot k + 1, both
counted from 0 in a trace. A log may count from 0 or 1, and may print the state before or after a step.
"""

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.trace.importers.log_lines import SHAPE, LogLine, LogNames, PrintedValue, TensorName
from workbench.trace.schema import FIELDS, LOOPS, REGIONS, SAMPLE_RATE, STATS, SUFFIX, dims_of
from workbench.trace.trace import Trace

MAX_RUNS = 200  # of one source; bounds memory for a log of any length
MAX_STEPS = 200  # of the ODE, three times what a run may have; bounds the size of a trace
# Statistic that logs print of a step, and the name of its slot. The schema has no field for the widths of
# steps, but they add up to the times of the knots, flow/t.
STEP_WIDTH = "dt"
HALF_UNITS = "half_units"  # attribute of a trace: half a unit of the last printed digit, by field
# Statistics of a tensor with one positive value, such as a time: each of them is that value.
STATS_OF_ONE_NUMBER = ("min", "max", "mean", "mean_abs", "rms")

# A field, and the index of its knot, step or draw; None for a field without such a dimension.
Slot = tuple[str, int | None]


class Rounded(NamedTuple):
    """A number as it was printed."""

    value: float
    half_unit: float  # half a unit of its last digit: the largest error that rounding made


Statistics = dict[str, Rounded]  # by name, such as "max"


def group_lines(lines: list[LogLine], names: LogNames) -> tuple[list["LoggedRun"], int]:
    """Group lines into runs.

    Parameters
    ----------
    lines : list of LogLine
        Lines with statistics, in the order of the file.
    names : LogNames
        The table that they were read by.

    Returns
    -------
    runs : list of LoggedRun
        Source by source, each in the order of its first line.
    left_out : int
        Lines beyond the first `MAX_RUNS` runs of their source.
    """
    # If the log has one source, lines that name no source belong to it.
    tags = sorted({line.tag for line in lines} - {""})
    if len(tags) == 1:
        lines = [line._replace(tag=tags[0]) for line in lines]

    runs = []
    left_out = 0
    for tag in sorted({line.tag for line in lines}):
        source_lines = [line for line in lines if line.tag == tag]
        source_names = names
        if _counts_from_zero(source_lines):
            source_names = names._replace(first_step=0)
        merged_lines = _merge_below_headings(source_lines)
        numbered_lines = _number_steps(merged_lines, source_names)

        source_runs = [LoggedRun(tag, source_names)]
        for line in numbered_lines:
            if source_runs[-1].is_followed_by(line):
                source_runs.append(LoggedRun(tag, source_names))
            if len(source_runs) <= MAX_RUNS:
                source_runs[-1].add(line)
            else:
                left_out += 1
        runs += [run for run in source_runs if run.statistics]
    return runs, left_out


def _counts_from_zero(lines: list[LogLine]) -> bool:
    """Whether a source numbers its first velocity or step width with 0, so that the table does not apply.

    A state "step 0: x" proves nothing: it may be the noise before step 1.
    """
    at_zero = [line for line in lines if line.step == 0]
    return any(_is_of_step(value) for line in at_zero for value in line.values)


def _is_looped(field: str) -> bool:
    """Whether a field has an entry for each knot, step or draw."""
    return FIELDS[field].dims[0] in LOOPS


def _needs_step(value: PrintedValue) -> bool:
    """Whether a number belongs to a step or knot, so that its place is unknown without a step."""
    if value.tensor is None:
        return value.kind == STEP_WIDTH
    return _is_looped(value.tensor.field) and value.tensor.knot != "last"


def _is_of_step(value: PrintedValue) -> bool:
    """Whether a number belongs to a step (a velocity, a width), not to a knot (a state)."""
    return _needs_step(value) and (value.tensor is None or not value.tensor.knot)


def _keys(values: tuple[PrintedValue, ...]) -> set[tuple[TensorName | None, str]]:
    """Return which statistics of which tensors are printed."""
    return {(value.tensor, value.kind) for value in values}


def _merge_below_headings(lines: list[LogLine]) -> list[LogLine]:
    """Merge lines below one heading into one line, as long as no statistic repeats.

    The three lines below become one, which prints x, mu and spks:

        [PY CFG inputs]
          x_in: mean=0.5
          mu_in[0]: mean=0.25
          spks_in[0]: mean=0.125
    """
    merged: list[LogLine] = []
    for line in lines:
        last = merged[-1] if merged else None
        same_section = last is not None and last.heading == line.heading and last.step == line.step
        if same_section and not _keys(last.values) & _keys(line.values):
            merged[-1] = last._replace(values=last.values + line.values)
        else:
            merged.append(line)
    return merged


def _number_steps(lines: list[LogLine], names: LogNames) -> list[LogLine]:
    """Give a step to each line of the ODE that prints none.

    Such lines wait for the next line that prints a step, and belong to that step. Here v1 is of step 3:

        [PY CFM] v1 mean=0.5
        [PY ODE] step 3: x max=3.0

    Lines that wait for a line of another kind, or for the end of the log, are counted from the first step on.
    """
    numbered: list[LogLine] = []
    waiting: list[LogLine] = []
    for line in lines:
        if line.step is None and any(_needs_step(value) for value in line.values):
            waiting.append(line)
        else:
            numbered += _count_steps(waiting, line.step, names)
            waiting = []
            numbered.append(line)
    numbered += _count_steps(waiting, None, names)
    return numbered


def _count_steps(waiting: list[LogLine], next_step: int | None, names: LogNames) -> list[LogLine]:
    """Number the waiting lines; lines whose step is out of range are dropped.

    Parameters
    ----------
    waiting : list of LogLine
        Lines of the ODE without a step.
    next_step : int or None
        The step of the line after them. Then the last v1 is of that step, the v1 before it is of the step
        before, and so on. Without it the first v1 is of the first step, the second v1 of the second step.
    names : LogNames
        States the first step.
    """
    backwards = next_step is not None
    repeats: Counter[tuple[TensorName | None, str]] = Counter()  # how often each statistic was printed so far
    numbered = []
    for line in reversed(waiting) if backwards else waiting:
        looped_values = tuple(value for value in line.values if _needs_step(value))
        keys = _keys(looped_values)
        # How many steps this line is away from the step that counting begins with.
        steps_away = max(repeats[key] for key in keys)
        repeats.update(keys)
        step = next_step - steps_away if backwards else names.first_step + steps_away
        if names.first_step <= step <= names.first_step + MAX_STEPS:
            numbered.append(line._replace(step=step))
    if backwards:
        numbered.reverse()
    return numbered


class LoggedRun:
    """What one source printed during one run.

    Parameters
    ----------
    tag : str
        The source.
    names : LogNames
        States how the source counts steps.
    """

    def __init__(self, tag: str, names: LogNames) -> None:
        self.tag = tag
        self.names = names
        self.statistics: dict[Slot, Statistics] = {}
        self.shapes: dict[str, list[int]] = {}  # by field, as printed
        self.prompt_frames: int | None = None
        self.step: int | None = None  # the last one that was printed
        self.line_numbers: list[int] = []  # of the first and the last line

    def is_followed_by(self, line: LogLine) -> bool:
        """Whether a line belongs to the next run."""
        # Steps begin again: "step 10", then "step 1".
        if line.step is not None and self.step is not None and line.step < self.step:
            return True

        # The mel and the vocoder's fields come last in a run. A field of an earlier stage after them, such as
        # flow/mu, is of the next run.
        fields = {value.tensor.field for value in line.values if value.tensor}
        ode_is_over = any(_is_after_ode(field) for field, _ in self.statistics)
        if ode_is_over and not all(_is_after_ode(field) for field in fields):
            return True

        # A tensor is printed again with another value: "mu max=1.0", then "mu max=1.1". A value that was
        # rounded differently is not another value ("mu max=1"), and a count of NaN proves nothing, because
        # many logs say only that there are some.
        for printed in line.values:
            slot = self._slot(printed, line.step)
            if slot is None:
                continue
            kind, new = _kind_and_value(printed)
            old = self.statistics.get(slot, {}).get(kind)
            if old is None or kind == "nonfinite":
                continue
            if abs(new.value - old.value) > new.half_unit + old.half_unit:
                return True
        return False

    def add(self, line: LogLine) -> None:
        """Add what a line prints."""
        for printed in line.values:
            slot = self._slot(printed, line.step)
            if slot is not None:
                kind, new = _kind_and_value(printed)
                self._add_statistic(slot, kind, new)
            elif printed.kind == SHAPE:
                self.shapes.setdefault(printed.tensor.field, list(printed.value))
            elif printed.kind == "prompt_frames" and math.isfinite(printed.value):
                self.prompt_frames = int(printed.value)
        if line.step is not None:
            self.step = line.step
        self.line_numbers = [*self.line_numbers[:1], line.number]

    def _add_statistic(self, slot: Slot, kind: str, new: Rounded) -> None:
        statistics = self.statistics.setdefault(slot, {})
        old = statistics.get(kind)
        # Where a number is printed twice, keep the one with more digits; of two counts of NaN the larger one.
        if old is None:
            is_better = True
        elif kind == "nonfinite":
            is_better = new.value > old.value
        else:
            is_better = new.half_unit < old.half_unit
        if is_better:
            statistics[kind] = new

    def _slot(self, printed: PrintedValue, step: int | None) -> Slot | None:
        """Return where a statistic belongs; None for a shape or length, or a step before the first one."""
        if printed.kind in (SHAPE, "prompt_frames"):
            return None
        if printed.tensor is not None and not _is_looped(printed.tensor.field):
            return printed.tensor.field, None
        if printed.tensor is not None and printed.tensor.knot == "last":
            return printed.tensor.field, self._last_knot()
        # Entries count from 0, and step k leads from knot k to knot k + 1.
        index = step - self.names.first_step
        if printed.tensor is not None and printed.tensor.knot == "after":
            index += 1
        if index < 0:
            return None
        field = STEP_WIDTH if printed.tensor is None else printed.tensor.field
        return field, index

    def _last_knot(self) -> int:
        """Return the index of the final state: after the printed steps, else after the table's count."""
        knots = []
        for field, index in self.statistics:
            if index is not None:
                knots.append(index if field == "flow/x" else index + 1)  # a step ends one knot later
        return max(knots, default=self.names.step_count)

    def trace(self, source: str) -> Trace:
        """Return the run as a trace that has `.stats` alone.

        Parameters
        ----------
        source : str
            Name of the log.
        """
        statistics = self.statistics | self._knot_times()
        data = {}
        half_units = {}
        for field in FIELDS:
            entries = {index: found for (name, index), found in statistics.items() if name == field}
            if entries:
                data[field + SUFFIX], half_units[field] = _as_tensor(field, entries)
        attrs = {
            "sample_rate": SAMPLE_RATE,
            "timings": {},
            "source": source,
            "tag": self.tag,
            "lines": [self.line_numbers[0], self.line_numbers[-1]],
            HALF_UNITS: half_units,
            "shapes": self.shapes,
        }
        if self.prompt_frames is not None:
            attrs["prompt_frames"] = self.prompt_frames
        return Trace(data, attrs)

    def _knot_times(self) -> dict[Slot, Statistics]:
        """Return flow/t at each knot: the sum of the step widths before it, until a width is missing."""
        times: dict[Slot, Statistics] = {}
        time = 0.0
        half_unit = 0.0
        step = 0
        while STEP_WIDTH in self.statistics.get((STEP_WIDTH, step), {}):
            width = self.statistics[STEP_WIDTH, step][STEP_WIDTH]
            time += width.value
            half_unit += width.half_unit
            step += 1
            times["flow/t", step] = dict.fromkeys(STATS_OF_ONE_NUMBER, Rounded(time, half_unit))
        return times


def _kind_and_value(printed: PrintedValue) -> tuple[str, Rounded]:
    """Return the name of a statistic and its number."""
    if math.isfinite(printed.value):
        return printed.kind, Rounded(printed.value, printed.half_unit)
    # "max=nan" says that at least one value is not finite, but not how many.
    return "nonfinite", Rounded(1.0, math.inf)


def _is_after_ode(field: str) -> bool:
    return field == "flow/mel" or field.startswith("hift/")


def _as_tensor(field: str, entries: dict[int | None, Statistics]) -> tuple[Tensor, list]:
    """Return the statistics of a field in the schema's order, and their half units as nested lists.

    A log prints statistics of all frames, so those of the regions prompt and target are NaN.
    """
    is_looped = None not in entries
    n_entries = max(entries) + 1 if is_looped else 1
    values = torch.full((n_entries, len(STATS)), math.nan, dtype=torch.float64)
    half_units = torch.zeros((n_entries, len(STATS)), dtype=torch.float64)
    for index, statistics in entries.items():
        for kind, (value, half_unit) in _with_rms(statistics).items():
            row = 0 if index is None else index
            position = (row, STATS.index(kind))
            values[position] = value
            half_units[position] = half_unit if math.isfinite(half_unit) else 0.0
    if "region" in dims_of(field + SUFFIX):
        unknown = torch.full_like(values, math.nan)
        by_region = [values if region == "whole" else unknown for region in REGIONS]
        values = torch.stack(by_region, dim=-2)  # (entries, 6) -> (entries, 3 regions, 6)
    if is_looped:
        return values, half_units.tolist()
    return values[0], half_units[0].tolist()


def _with_rms(statistics: Statistics) -> Statistics:
    """Return the statistics that a trace has, with the rms where mean and standard deviation were printed.

    rms^2 = mean^2 + std^2 holds for a deviation that is divided by n. torch divides by n - 1, so one percent
    of the deviation is added to the uncertainty.
    """
    kept = {kind: rounded for kind, rounded in statistics.items() if kind in STATS}
    if "std" in statistics and "mean" in statistics and "rms" not in statistics:
        mean = statistics["mean"]
        std = statistics["std"]
        half_unit = mean.half_unit + std.half_unit + std.value / 100
        kept["rms"] = Rounded(math.hypot(mean.value, std.value), half_unit)
    return kept
