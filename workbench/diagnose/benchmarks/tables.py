"""Write the tables of benchmarks as CSV files, and show them in Markdown pages.

A page in data/ has a marker where a table belongs: `<!-- table: glitches.csv -->` before it and
`<!-- end of table -->` behind it. `update_page` fills in the table from the CSV file beside the page, so that
a page never shows other figures than the file.
"""

import os
import re
from pathlib import Path

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.files import atomic_write

DIGITS = 4  # significant digits in a CSV file: more than any of these measurements is repeatable to
SHOWN_DIGITS = 3  # significant digits in a page
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def write_csv(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table without its index; NaN becomes an empty cell."""
    with atomic_write(path) as draft:
        table.to_csv(draft, index=False, float_format=f"%.{DIGITS}g")


def read_csv(path: str | os.PathLike, sep: str = ",") -> pd.DataFrame:
    """Read a table that `write_csv` wrote, or one of texts.

    Raises
    ------
    WorkbenchError
        When there is no such file.
    """
    if not Path(path).is_file():
        raise WorkbenchError(f"{path} is missing; write it with the command that stands beside its table")
    return pd.read_csv(path, sep=sep)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers have three significant digits, NaN is an empty cell.

    >>> print(markdown_table(pd.DataFrame({"kind": ["click", "gap"], "found": [62.5, float("nan")]})))
    | kind | found |
    |---|---|
    | click | 62.5 |
    | gap | |
    """
    lines = [[str(name) for name in table.columns], None]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False, name=None)]
    text = []
    for cells in lines:
        if cells is None:
            text.append("|" + "---|" * len(table.columns))
        else:
            text.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return "\n".join(text)


def page_with_tables(page: str | os.PathLike) -> str:
    """Return the text of a Markdown page with every table as its CSV file has it."""
    page = Path(page)

    def fill(match: re.Match) -> str:
        begin, name, end = match.groups()
        return f"{begin}{markdown_table(read_csv(page.parent / name))}\n{end}"

    return TABLE.sub(fill, page.read_text(encoding="utf-8"))


def update_page(page: str | os.PathLike) -> None:
    """Write the tables of a Markdown page anew from their CSV files."""
    text = page_with_tables(page)
    with atomic_write(page) as draft:
        draft.write_text(text, encoding="utf-8")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{SHOWN_DIGITS}g}"
    return str(value).replace("|", "\\|")
