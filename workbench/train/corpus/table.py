"""Tab-separated tables: one header line, no quoting, UTF-8. Texts hold quotes but never tabs."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.errors import WorkbenchError

_TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "lineterminator": "\n", "quotechar": None}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read every row as a dict under the header's names."""
    if not path.is_file():
        raise WorkbenchError(f"no {path.name} in {path.parent}")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **_TSV))


def write_rows(path: Path, fields: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write header and rows under another name first, then take the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **_TSV).writerows([fields, *rows])
    os.replace(partial, path)
