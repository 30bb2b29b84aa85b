"""`workbench mapping`: propose which tensor of a dump is which field."""

import os
from typing import Annotated

import typer

from workbench.cli.common import Names
from workbench.errors import WorkbenchError
from workbench.files import atomic_write, check_writable

app = typer.Typer()


@app.command(epilog="Example: workbench mapping dump.npz -o mine.toml")
def mapping(
    dump: Annotated[str, typer.Argument(help="A file of tensors, or a folder of such files.")],
    names: Names = None,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="TOML file; it is not overwritten.", show_default="print it"),
    ] = None,
) -> int:
    """Propose a mapping for a dump from names and shapes; check it, then pass it as --mapping."""
    from workbench.trace.importers.dumps.proposal import propose_mapping
    from workbench.trace.importers.logs.log_names import NAMES

    if out and os.path.exists(out):  # Path.exists raises an OSError for a name that is too long
        raise WorkbenchError(f"{out} exists; expected a new file: choose another name for -o")
    check_writable(out)
    text = propose_mapping(dump, names or NAMES)
    if out is None:
        print(text)
        return 0
    with atomic_write(out) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"{out}: check it, then pass it as --mapping {out}")
    return 0
