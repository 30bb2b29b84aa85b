"""Group the lines of a text log into runs, and turn each run into a trace of statistics.

`group_lines` handles each source ("PY", "RUST") on its own. `log_steps` merges the lines below one heading
and gives a step to lines that print none. Then lines are added to a run until one cannot belong to it. That
line begins the next run. For example, these lines are two runs, because the steps begin again:

    [PY ODE] step 1: x max=4.18
    [PY ODE] step 2: x max=4.05
    [PY ODE] step 1: x max=4.11

An ODE of n steps has n velocities and n + 1 states, which are called knots. Step k leads from knot k to knot
k + 1, both counted from 0 in a trace. A log may count from 0 or 1, and may print the state before or after a
step.
"""

import math

import torch
from torch import Tensor

from workbench.trace.importers.logs.log_lines import IDS, LogLine, PrintedValue
from workbench.trace.importers.logs.log_names import LogNames
from workbench.trace.importers.logs.log_numbers import Rounded
from workbench.trace.importers.logs.log_statistics import SHAPE
from workbench.trace.importers.logs.log_steps import (
    STEP_WIDTH,
    counts_from_zero,
    is_looped,
    merge_below_headings,
    number_steps,
)
from workbench.trace.print_errors import HALF_UNITS
from workbench.trace.schema import FIELDS, REGIONS, SAMPLE_RATE, STATS, SUFFIX, VALUE_STATS, dims_of
from workbench.trace.trace import Trace

MAX_RUNS = 200  # of one source; bounds memory for a log of any length
MAX_STEPS = 200  # largest step of an ODE that is read; bounds the size of a trace. Runs have about 10 steps
# Relative uncertainty of a printed standard deviation. `Tensor.std` divides by n - 1 where the rms needs n.
# For 50 values or more, the two deviations differ by at most one percent.
STD_ERROR = 0.01

# The place of a printed number is a pair: the name of its field, and the index of its entry. Fields of the
# ODE have an entry for each knot or step; the index of all other fields is None. The name STEP_WIDTH stands
# for the width of a step. A trace has no such field.
Slot = tuple[str, int | None]
Statistics = dict[str, Rounded]  # by name, such as "max"


def group_lines(lines: list[LogLine], names: LogNames) -> tuple[list["LoggedRun"], int]:
    """Group lines into runs.

    Parameters
    ----------
    lines : list of LogLine
        Lines with statistics, in the order of the file.
    names : LogNames
        The table of names that the lines were read with. It gives the number of the first step.

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
        if counts_from_zero(source_lines):
            source_names = names._replace(first_step=0)
        steps = range(source_names.first_step, source_names.first_step + MAX_STEPS + 1)
        numbered_lines = number_steps(merge_below_headings(source_lines), steps)

        source_runs = [LoggedRun(tag, source_names)]
        for k, line in enumerate(numbered_lines):
            if source_runs[-1].is_followed_by(line):
                if len(source_runs) == MAX_RUNS:
                    left_out += len(numbered_lines) - k
                    break
                source_runs.append(LoggedRun(tag, source_names))
            source_runs[-1].add(line)
        runs += [run for run in source_runs if run.statistics or run.token_ids]
    return runs, left_out


class LoggedRun:
    """What one source printed during one run.

    Parameters
    ----------
    tag : str
        The source.
    names : LogNames
        The table of names, with the number that this source gives to its first step.
    """

    def __init__(self, tag: str, names: LogNames) -> None:
        self.tag = tag
        self.names = names
        self.statistics: dict[Slot, Statistics] = {}
        self.shapes: dict[str, list[int]] = {}  # by field, as printed
        self.token_ids: dict[str, tuple[int, ...]] = {}  # by field
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

        # A tensor is printed again with another value: "mu max=1.0", then "mu max=1.1". The same
        # value with fewer digits, such as "mu max=1", begins no run. Another count of NaN values begins no
        # run either, because many logs say only that a tensor has NaN values, not how many.
        for printed in line.values:
            if printed.kind == IDS:
                known_ids = self.token_ids.get(printed.tensor.field, printed.value)
                if known_ids != printed.value:
                    return True
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
            elif printed.kind == IDS:
                self.token_ids[printed.tensor.field] = printed.value
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
        """Return where a statistic belongs.

        Return None if the value is a shape, token ids or the number of prompt frames, or if its step comes
        before the first one.
        """
        if printed.kind in (SHAPE, IDS, "prompt_frames"):
            return None
        if printed.tensor is not None and not is_looped(printed.tensor.field):
            return printed.tensor.field, None
        if printed.tensor is not None and printed.tensor.knot == "last":
            return printed.tensor.field, self._last_knot()
        # All other values belong to a step, and `number_steps` gave each such line one. Entries count from 0,
        # and step k leads from knot k to knot k + 1.
        index = step - self.names.first_step
        if printed.tensor is not None and printed.tensor.knot == "after":
            index += 1
        if index < 0:
            return None
        # A number of the ODE without a tensor is the width of a step.
        field = STEP_WIDTH if printed.tensor is None else printed.tensor.field
        return field, index

    def _last_knot(self) -> int:
        """Return the index of the final state.

        It follows from the largest step that was printed, or else from the table's number of steps.
        """
        knots = []
        for field, index in self.statistics:
            if index is not None:
                knots.append(index if field == "flow/x" else index + 1)  # a step ends one knot later
        return max(knots, default=self.names.step_count)

    def trace(self, source: str) -> Trace:
        """Return the run as a trace of statistics (`flow/x.stats`) and token ids, without any other tensor.

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
        for field, ids in self.token_ids.items():
            data[field] = torch.tensor(ids)  # (tokens,)
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
        """Return flow/t after each step: the sum of the widths up to it, until a width is missing.

        Knot 0 gets no time, because no log prints it: it is 0 by definition.
        """
        times: dict[Slot, Statistics] = {}
        time = 0.0
        half_unit = 0.0
        step = 0
        while (width := self._step_width(step)) is not None:
            time += width.value
            half_unit += width.half_unit
            step += 1  # step k ends at knot k + 1
            # All statistics of a single positive value are that value.
            times["flow/t", step] = dict.fromkeys(VALUE_STATS, Rounded(time, half_unit))
        return times

    def _step_width(self, step: int) -> Rounded | None:
        """Return the width of a step; None where it was not printed."""
        printed = self.statistics.get((STEP_WIDTH, step), {})
        return printed.get(STEP_WIDTH)


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

    Fields with frames have statistics of three regions: the prompt, the target and all frames. A log prints
    the statistics of all frames, so those of the two other regions are NaN.
    """
    is_looped_field = None not in entries
    n_entries = max(entries) + 1 if is_looped_field else 1
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
    if is_looped_field:
        return values, half_units.tolist()
    return values[0], half_units[0].tolist()


def _with_rms(statistics: Statistics) -> Statistics:
    """Return the statistics that a trace has, with the rms where mean and standard deviation were printed.

    rms^2 = mean^2 + std^2 holds for a deviation that is divided by n; `STD_ERROR` allows for n - 1.
    """
    kept = {kind: rounded for kind, rounded in statistics.items() if kind in STATS}
    if "std" in statistics and "mean" in statistics and "rms" not in statistics:
        mean = statistics["mean"]
        std = statistics["std"]
        half_unit = mean.half_unit + std.half_unit + std.value * STD_ERROR
        kept["rms"] = Rounded(math.hypot(mean.value, std.value), half_unit)
    return kept
