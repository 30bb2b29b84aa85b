"""`notebook`: a notebook of the book with other parameters, as one HTML file."""

from typing import Annotated

import typer

from workbench.cli.common import options_of

app = typer.Typer()


@app.command(epilog="Example: workbench notebook start-here -p seed=3 -o output/start.html")
def notebook(
    name: Annotated[str, typer.Argument(help="A notebook of the book, such as start-here, or a path.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="May be repeated.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="HTML file.", show_default="output/NAME.html")
    ] = None,
) -> int:
    """Run a notebook with other parameters and keep it as one HTML file."""
    from workbench.show.report.notebook import notebook_path, run_notebook

    path = notebook_path(name)
    page = run_notebook(path, options_of(parameter or ()), out or f"output/{path.stem}.html")
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    return 0
