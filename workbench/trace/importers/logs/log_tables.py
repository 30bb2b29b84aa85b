"""Read tables in a text log: Markdown and other bars, CSV, tab-separated values, columns aligned with spaces.

A table begins with a header, such as "| step | tensor | min | max |" or "step,x_min,x_max". Its rows need not
follow each other: a program may print other lines between them. A statistic of a row belongs to the tensor in
the header of its column, else to the tensor that the row names, else to the heading above the table.
"""

import re
from typing import NamedTuple

from workbench.trace.importers.logs.log_names import (
    NUMBERS,
    OTHER,
    UNKNOWN,
    UNNAMED,
    WORD,
    LogNames,
    TensorName,
    with_spaces,
)
from workbench.trace.importers.logs.log_numbers import START

ALIGNED = (" ", "  ")  # one space between cells, or at least two, so that a cell may hold one
DELIMITERS = ("|", "\t", ";", ",", *ALIGNED)
BARS = str.maketrans("│┃║", "|||")
RULE = frozenset("|-:+= \t\r\n─━═┼╪├┤┌┐└┘╞╡╟╢")  # a line of these characters alone separates header and rows
STEP_HEADERS = {"step", "steps", "timestep", "iter", "iteration"}
TENSOR_HEADERS = {"tensor", "name", "field", "layer", "node", "variable", "quantity", "key"}
IGNORED_HEADERS = {"shape", "dtype", "device", "count", "numel", "size", "time"}  # between aligned columns
NO_VALUE = {"", "-", "--", "—", "n/a", "none", "null"}  # cells without a value
MIN_ALIGNED_COLUMNS = 3  # fewer words in a row are prose
MAX_COLUMNS = 200
MAX_LINES_BETWEEN = 200  # other lines between two rows; after more of them the table has ended
MAX_HEADER_LENGTH = 4000  # characters
MAX_COLUMN_WORDS = 8  # of the header of one column; bounds the time
CELL_NUMBER = re.compile(START)
NOT_IN_HEADER = re.compile(r"=|(?<![a-z0-9_\[])[-+]?\.?\d")  # a number of its own; "v1" and "mu[0]" are names
PARENTHESES = re.compile(r"\([^()]{0,80}\)")


class Column(NamedTuple):
    """The meaning of a column."""

    kind: str  # a statistic of the table of names; or "step", "tensor" or "" for a column that is ignored
    tensor: TensorName | None  # that the header names


class Cell(NamedTuple):
    """One statistic of a row."""

    tensor: TensorName | None  # None for a number that belongs to no tensor, such as "dt"
    kind: str
    text: str


class Row(NamedTuple):
    """A line of a table."""

    step: str  # as printed; "" for none
    label: str  # cell with the tensor's name, which may also name a source
    cells: list[Cell]
    is_broken: bool  # whether the line prints numbers that do not fit the columns


NO_CELLS = Row("", "", [], False)  # a header, a rule below it, or a row without values
BROKEN_ROW = Row("", "", [], True)


class TableReader:
    """Recognise headers and rows of tables, one line after another.

    Parameters
    ----------
    names : LogNames
    """

    def __init__(self, names: LogNames) -> None:
        self._names = names
        self._delimiter = ""  # of the current table; "" outside a table
        self._columns: list[Column] = []
        self._heading_tensor: TensorName | None = None
        self._lines_between = 0  # since the last line of the table

    @property
    def is_inside(self) -> bool:
        """Whether the next line may be a row."""
        return bool(self._delimiter) and self._lines_between <= MAX_LINES_BETWEEN

    def read(self, text: str, heading_tensor: TensorName | None) -> Row | None:
        """Return what a line of a table holds; None for a line that belongs to no table.

        Parameters
        ----------
        text : str
            As `plain_text` returns it.
        heading_tensor : TensorName, optional
            Tensor that the heading above the line names. That of the header holds for the table.
        """
        text = text.translate(BARS)
        if self.is_inside:
            row = NO_CELLS if RULE.issuperset(text) and text.strip() else self._row(text)
            self._lines_between = 0 if row else self._lines_between + 1
            if row:
                return row
        if "=" in text or len(text) > MAX_HEADER_LENGTH:
            return None  # no header
        for delimiter in DELIMITERS:
            columns = self._header(_split(text, delimiter), delimiter)
            if columns:
                self._delimiter = delimiter
                self._columns = columns
                self._heading_tensor = heading_tensor
                self._lines_between = 0
                return NO_CELLS
        return None

    def _header(self, cells: list[str], delimiter: str) -> list[Column]:
        """Return the columns that a header describes; an empty list for any other line."""
        if not 2 <= len(cells) <= MAX_COLUMNS:
            return []
        if delimiter in ALIGNED and cells[-1] not in IGNORED_HEADERS and not self._column(cells[-1]).kind:
            return []  # most lines of prose
        columns = [self._column(cell) for cell in cells]
        described = [k for k, column in enumerate(columns) if column.kind or cells[k] in IGNORED_HEADERS]
        statistics = [column for column in columns if column.kind not in ("", "step", "tensor")]
        if not statistics or len(described) < 2:
            return []
        if any(CELL_NUMBER.match(cell) for cell in cells[1:]):
            return []  # "mel;min;-4.1;max;4.2" is a line of its own
        for k in described:
            # A prefix of the log may stand in the first cell: "INFO main.cpp:12] step".
            header = cells[k].split()[-1] if k == 0 else cells[k]
            if NOT_IN_HEADER.search(header):
                return []
        if delimiter in ALIGNED:
            # A prefix of the log may stand before the columns, but no other word between or behind them.
            is_table = len(described) == len(cells) - described[0] >= MIN_ALIGNED_COLUMNS
            has_names = any(column.kind in ("step", "tensor") or column.tensor for column in columns)
            if not is_table or not has_names:
                return []
        return columns

    def _column(self, header: str) -> Column:
        words = WORD.findall(with_spaces(header))[-MAX_COLUMN_WORDS:]
        if not words:
            return Column("", None)
        if words[-1] in STEP_HEADERS:
            return Column("step", None)
        if words[-1] in TENSOR_HEADERS:
            return Column("tensor", None)
        statistics = self._names.statistics
        # "x min", "x mean abs", "min x", "mean abs of x": the longest name of a statistic at either end.
        for length in range(len(words), 0, -1):
            at_end, rest_before = " ".join(words[-length:]), words[:-length]
            if at_end in statistics:
                return Column(statistics[at_end], self._names.last_tensor(" ".join(rest_before)))
        for length in range(len(words) - 1, 0, -1):
            at_start, rest_behind = " ".join(words[:length]), words[length:]
            if at_start in statistics:
                return Column(statistics[at_start], self._names.last_tensor(" ".join(rest_behind)))
        return Column("", None)

    def _row(self, text: str) -> Row | None:
        """Return the row on a line; None for any other line."""
        is_aligned = self._delimiter in ALIGNED
        splits = [_split(text, delimiter) for delimiter in (ALIGNED if is_aligned else (self._delimiter,))]
        cells = next((cells for cells in splits if len(cells) == len(self._columns)), None)
        if cells is None:
            return BROKEN_ROW if self._lines_between == 0 and self._is_broken(splits[0]) else None
        step = ""
        label = ""
        row_tensor = None
        found = []
        for k, (cell, column) in enumerate(zip(cells, self._columns, strict=True)):
            words = cell.split()
            if k == 0 and column.kind != "tensor" and len(words) > 1 and not words[-2][-1].isdigit():
                cell = words[-1]  # a prefix of the log stands before it
            if column.kind == "step":
                if not CELL_NUMBER.match(cell) and cell not in NO_VALUE:
                    return None
                step = cell
            elif column.kind == "tensor":
                label = cell
                row_tensor = self._names.last_tensor(cell) or UNNAMED
            elif column.kind not in ("", OTHER) and cell not in NO_VALUE:
                if not CELL_NUMBER.match(cell):
                    return None  # words: the line is no row
                found.append((column, cell))
        if row_tensor and any(column.tensor == UNKNOWN for column, _ in found):
            return BROKEN_ROW  # a column for each program: "| tensor | Python min | Rust min |"
        values = []
        for column, cell in found:
            tensor = column.tensor or row_tensor or self._heading_tensor or UNNAMED
            values.append(Cell(None if column.kind in NUMBERS else tensor, column.kind, cell))
        return Row("" if step in NO_VALUE else step, label, values, False)

    def _is_broken(self, cells: list[str]) -> bool:
        """Whether a line with too many or too few cells ends with at least as many numbers as a row has."""
        n_numbers = 0
        while n_numbers < len(cells) and CELL_NUMBER.match(cells[-1 - n_numbers]):
            n_numbers += 1
        n_statistics = sum(column.kind not in ("", "step", "tensor") for column in self._columns)
        return n_numbers >= max(n_statistics, 2)


def _split(text: str, delimiter: str) -> list[str]:
    """Return the cells of a line; an empty list where it has none."""
    text = text.strip()
    if delimiter in ALIGNED:
        text = PARENTHESES.sub(lambda match: "".join(match[0].split()), text)  # "(1, 80)" is one cell
        return text.split() if delimiter == " " else re.split(r"\s{2,}", text)
    if delimiter not in text:
        return []
    if delimiter == "|":
        text = text.removeprefix("|").removesuffix("|")
    return [cell.strip("\"' \t\r\n") for cell in text.split(delimiter)]
