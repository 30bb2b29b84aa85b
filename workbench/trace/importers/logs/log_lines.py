"""Read one line of a text log: the statistics it prints, by a table of names such as `logs.toml`.

A line has any prefix, perhaps a source and a step, and then names of tensors with their numbers:

    2026-01-10 13:33:37 INFO [PY ODE] step 3: x min=-4.1, max=4.2, dt=0.071

`log_statistics` lists the other formats of such lines, `log_tables` reads tables, and `log_lists` reads token
ids and the output of ggml. Lines without statistics may describe the lines after them:

    [PY CFG inputs]               a heading: source PY, for the indented lines below it
      x_in: mean=0.5
    solver step 3/10              an announced step, for the next lines that print none

Numbers are read completely or not at all. A line that is not understood has a `problem`.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from workbench.trace.importers.logs.log_lists import GgmlCallbackReader, NodeMean, TokenIdReader
from workbench.trace.importers.logs.log_names import (
    NAMES,
    NUMBERS,
    OTHER,
    STEP,
    UNKNOWN,
    UNNAMED,
    LogNames,
    TensorName,
    step_number,
)
from workbench.trace.importers.logs.log_numbers import number_at, read_numbers, split_numbers
from workbench.trace.importers.logs.log_statistics import (
    SHAPE,
    FoundStatistic,
    StatisticFinder,
    plain_text,
    without_colours,
)
from workbench.trace.importers.logs.log_tables import Row, TableReader

IDS = "ids"  # kind of a value that is a list of token ids
LIST_MARKS = ("-", "•", "|")  # first character of a list item or a table row

# Problems of a line.
NAME = "name"  # a statistic of a tensor that the table does not have
NO_NAME = "no name"  # a statistic without the name of a tensor
NUMBER = "number"  # a number that cannot be read for certain
FORMAT = "format"  # numbers that stand otherwise than behind the names of their statistics

PAIR = re.compile(r"(?:\bin )?\[([^\[\]()]{3,100})\]")  # perhaps a range: "x [-4.1, 4.2] mean 0.5"
# "x -4.1 .. 4.2"
DOTS = re.compile(r"(?<![^\s:=])(-?[0-9][0-9.e+-]{0,30}\s?\.\.\s?-?[0-9][0-9.e+-]{0,30})(?![^\s,;])")
FLOAT = re.compile(r"[-+]?[0-9]*[.,][0-9]+(?:e[-+]?[0-9]+)?|[-+]?[0-9]+\.|[-+]?(?:nan|inf)")
NUMBER_ENDS = (*"0123456789])", "nan", "inf")
MIN_UNNAMED = 2  # numbers behind the name of a tensor that look like statistics without names


class PrintedValue(NamedTuple):
    """What a line prints of one tensor: a statistic, a shape or token ids."""

    tensor: TensorName | None  # None for NUMBERS
    kind: str  # one of STATS, EXTRA_STATS or NUMBERS, or SHAPE or IDS
    value: float | tuple[int, ...]
    half_unit: float  # half a unit of the last printed digit: 0.005 for "2.61"


class LogLine(NamedTuple):
    """A line that prints statistics, or seems to."""

    number: int  # in the file, from 1
    heading: int  # number of the heading above the line; its own number where there is none
    tag: str  # source, such as "PY"; "" where the line does not say
    step: int | None  # as printed or announced
    values: tuple[PrintedValue, ...]
    problem: str = ""  # NAME, NUMBER or FORMAT; "" for a line that was understood completely


class Heading(NamedTuple):
    """A line without numbers that describes the lines below it."""

    number: int
    tag: str
    tensor: TensorName | None


class LineReader:
    """Read one line after another, and remember headings and announced steps.

    Parameters
    ----------
    names : path
        TOML table of what logs call the tensors.

    Attributes
    ----------
    names : LogNames
        The table.
    """

    def __init__(self, names: str | os.PathLike = NAMES) -> None:
        self.names = LogNames.load(names)
        self._finder = StatisticFinder(self.names.statistics)
        self._tables = TableReader(self.names)
        self._token_ids = TokenIdReader(self.names)
        self._callback = GgmlCallbackReader(self.names)
        self._heading: Heading | None = None
        self._announced_steps: dict[str, int] = {}  # by tag

    def read(self, number: int, text: str) -> LogLine | None:
        """Return what a line prints; None for a line that prints no statistics."""
        text = without_colours(text.lower())
        node = self._callback.read(text)
        if node:
            return self._line_of_node(number, node)
        # Most lines of a log print nothing of a tensor. They are recognised by one cheap search.
        has_name = self._finder.has_name(text)
        if has_name or self._tables.is_inside:
            text = plain_text(text)
            row = self._tables.read(text, self._heading.tensor if self._heading else None)
            if row:
                return self._line_of_row(number, row)
        ids = self._token_ids.read(text)
        if ids:
            tag = self.names.source(text[: ids.start])
            if ids.ids is None:
                problem = NAME if ids.tensor == UNKNOWN else FORMAT
                return LogLine(number, number, tag, None, (), problem)
            return LogLine(number, number, tag, None, (PrintedValue(ids.tensor, IDS, ids.ids, 0.0),))
        line = None
        if has_name or ".." in text or " in [" in text:
            line = self._line_of_statistics(number, self._with_ranges(plain_text(text)))
        if line is None:
            self._remember(number, text)
            if self._prints_unnamed_numbers(text):
                return LogLine(number, number, "", None, (), FORMAT)
        return line

    def _line_of_statistics(self, number: int, text: str) -> LogLine | None:
        """Return the statistics of a line; None where it prints none."""
        found, unread = self._finder.find(text)
        # Numbers in an unknown format are a problem in a table, or where they stand behind a known tensor.
        has_unread = bool(unread) and (
            len(unread) >= MIN_UNNAMED
            or text.lstrip().startswith("|")
            or any(self._ends_with_tensor(text[:at]) for at in unread)
        )
        if not found:
            return LogLine(number, number, "", None, (), FORMAT) if has_unread else None

        # Source and tensor of the heading hold for the line, unless the line has its own or ends the section.
        before_numbers = text[: found[0].start]
        tag = self.names.source(before_numbers)
        heading = None if _ends_section(text) else self._heading
        if heading is None or (tag and heading.tag and tag != heading.tag):
            heading = Heading(number, "", None)
        tag = tag or heading.tag

        kept: list[tuple[TensorName | None, FoundStatistic]] = []
        lost: list[tuple[TensorName, FoundStatistic]] = []
        for tensor, statistic in self._with_tensors(text, found, heading.tensor):
            if tensor is None or tensor.field:
                kept.append((tensor, statistic))
            elif tensor in (UNKNOWN, UNNAMED) and statistic.kind != SHAPE:
                lost.append((tensor, statistic))
        # Prose such as "at max 3 times" is no statistic: one number behind a space is not enough.
        if len(lost) == 1 and lost[0][1].after_space and not kept and not has_unread:
            return None
        if _ends_section(text):
            self._heading = None
        # A step usually stands before the first number. It may also stand after it: "x max=2.5 after step 3".
        step = self._step(tag, STEP.search(before_numbers) or STEP.search(text))

        problem = FORMAT if has_unread else ""
        if lost:
            problem = NAME if any(tensor == UNKNOWN for tensor, _ in lost) else NO_NAME
        values = _values(kept)
        if values is None:
            problem = NUMBER
        return LogLine(number, heading.number, tag, step, values or (), problem)

    def _step(self, tag: str, printed: re.Match[str] | None) -> int | None:
        """Return the step of a line: the printed one, else the one that its source announced."""
        if printed is None:
            return self._announced_steps.get(tag, self._announced_steps.get(""))
        # An announced step ends with the first line of its source that prints its own step.
        self._announced_steps.pop(tag, None)
        self._announced_steps.pop("", None)
        return step_number(printed[1])

    def _with_tensors(
        self, text: str, found: list[FoundStatistic], heading_tensor: TensorName | None
    ) -> Iterator[tuple[TensorName | None, FoundStatistic]]:
        """Yield the statistics of a line, each with the tensor it belongs to; None for `NUMBERS`.

        In "v1 mean=-3.1, max=2.0, v2 mean=-3.7" a number belongs to the name before it; where there is none
        ("max"), to the tensor of the number before; at the start of a line, to the heading's tensor.
        """
        tensor = heading_tensor or UNNAMED
        last_end = 0
        for statistic in found:
            name = self.names.last_tensor(text[last_end : statistic.start])
            last_end = statistic.end
            if name is not None:
                tensor = name
            if statistic.kind in NUMBERS:
                # "dt" needs no tensor, but "dt 5" alone may be prose.
                is_certain = not statistic.after_space or bool(tensor.field)
                yield None if is_certain else UNNAMED, statistic
            elif statistic.kind != OTHER:
                yield tensor, statistic

    def _line_of_row(self, number: int, row: Row) -> LogLine | None:
        """Return the row of a table; None for its header."""
        if row.is_broken:
            return LogLine(number, number, "", None, (), FORMAT)
        if not row.cells:
            return None
        tag = self.names.source(row.label) or (self._heading.tag if self._heading else "")
        step = step_number(row.step) if row.step else None
        kept = []
        problem = ""
        for cell in row.cells:
            if cell.tensor in (UNKNOWN, UNNAMED):
                problem = NAME if cell.tensor == UNKNOWN else NO_NAME
            elif cell.tensor is None or cell.tensor.field:
                kept.append((cell.tensor, FoundStatistic(cell.kind, cell.text, 0, 0, False)))
        values = _values(kept)
        if values is None:
            problem = NUMBER
        return LogLine(number, number, tag, step, values or (), problem)

    def _line_of_node(self, number: int, node: NodeMean) -> LogLine:
        """Return the mean of a tensor of ggml's graph."""
        if node.mean is None:
            return LogLine(number, number, "", None, (), FORMAT)
        values = (
            PrintedValue(node.tensor, SHAPE, node.shape, 0.0),
            PrintedValue(node.tensor, "mean", node.mean.value, node.mean.half_unit),
        )
        step = None if node.index is None else node.index + self.names.first_step
        return LogLine(number, number, "", step, values)

    def _remember(self, number: int, text: str) -> None:
        """Remember a heading or an announced step, for the lines after it."""
        if _is_heading(text):
            self._heading = Heading(number, self.names.source(text), self.names.last_tensor(text))
        elif text[:1].strip():  # a line that is not indented ends the section of a heading
            self._heading = None
        # A line that ends with "step 3" or "step 3/10" announces the step of the lines after it.
        step = STEP.search(text) if "step" in text else None
        if step and not text[step.end() :].strip(" \t\r\n:.-=#*`"):
            self._announced_steps[self.names.source(text)] = step_number(step[1])

    def _with_ranges(self, text: str) -> str:
        """Put the word "range" before each pair of numbers that is one: "x [-4.1, 4.2] mean 0.5"."""

        def with_word(match: re.Match[str]) -> str:
            numbers = split_numbers(match[1], 2)
            is_pair = numbers is not None and all(number_at(number, 0) for number in numbers)
            # "x [1, 80]" is a shape, "x values [0.5, 0.6]" are the first values.
            is_shape = is_pair and ".." not in match[1] and all(number.isdigit() for number in numbers)
            before = match.string[: match.start()].rstrip(" \t:=")
            if is_pair and not is_shape and not before.endswith("values") and self._ends_with_tensor(before):
                is_bracketed = match[0].endswith("]")
                return f" range [{match[1]}]" if is_bracketed else f" range {match[1].replace(' ', '')}"
            return match[0]

        return DOTS.sub(with_word, PAIR.sub(with_word, text))

    def _prints_unnamed_numbers(self, text: str) -> bool:
        """Whether a line ends with the name of a tensor and several numbers: "x step 0 -4.35 3.78"."""
        if not text.rstrip().endswith(NUMBER_ENDS):
            return False
        words = plain_text(text).split()
        n_numbers = 0
        while n_numbers < len(words) and FLOAT.fullmatch(words[-1 - n_numbers].strip("[](),;")):
            n_numbers += 1
        return n_numbers >= MIN_UNNAMED and self._ends_with_tensor(" ".join(words[:-n_numbers]))

    def _ends_with_tensor(self, text: str) -> bool:
        """Whether a text ends with the name of a tensor that has a field."""
        tensor = self.names.last_tensor(text)
        return tensor is not None and bool(tensor.field)


def _values(kept: list[tuple[TensorName | None, FoundStatistic]]) -> tuple[PrintedValue, ...] | None:
    """Return the values of a line; None where one of its numbers cannot be read for certain."""
    numbers = read_numbers([statistic.text for _, statistic in kept if statistic.kind != SHAPE])
    if numbers is None:
        return None
    remaining = iter(numbers)
    values = []
    for tensor, statistic in kept:
        if statistic.kind == SHAPE:
            sizes = tuple(int(size) for size in re.findall(r"\d{1,12}", statistic.text))
            values.append(PrintedValue(tensor, SHAPE, sizes, 0.0))
        else:
            number = next(remaining)
            values.append(PrintedValue(tensor, statistic.kind, number.value, number.half_unit))
    return tuple(values)


def _is_heading(text: str) -> bool:
    """Whether a line ends with a colon or is nothing but a tag such as [PY CFG Inputs]."""
    bare = text.strip(" \t\r\n*`#")
    is_tag = bare.startswith("[") and bare.endswith("]") and bare.count("[") == 1
    return bare.endswith(":") or is_tag


def _ends_section(text: str) -> bool:
    """Whether a line is neither indented nor a list item, so that the heading above it ends."""
    is_item = text.lstrip(" \t").startswith(LIST_MARKS)
    is_indented = not text[:1].strip()
    return not is_item and not is_indented
