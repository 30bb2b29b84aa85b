"""`app`: the dashboard in a browser, without a notebook."""

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import Device, OtherVoice, check_device
from workbench.errors import WorkbenchError
from workbench.files import about_address

app = typer.Typer()


@app.command("app", epilog="Example: workbench app theirs.trace mine.trace --voice my_checkpoint")
def serve_app(
    thing: Annotated[
        list[str] | None,
        typer.Argument(help="Traces, dumps, logs or sounds: the run in doubt, its reference, and others."),
    ] = None,
    voice: OtherVoice = None,
    device: Device = "cpu",
    folder: Annotated[str | None, typer.Option(help="Offer the files below this folder.")] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address and open no browser.")
    ] = False,
) -> int:
    """Open the dashboard in a browser: listen, find glitches, compare, run again; needs Voila.

    It is served to this machine alone, until Ctrl-C.
    """
    things = [_existing(path) for path in thing or ()]
    for option, path in (("--voice", voice), ("--folder", folder)):
        if path is not None and not os.path.isdir(path):
            raise WorkbenchError(f"{option} {path} is no folder; expected one that exists")
    check_device(device)
    from workbench.show.dashboard.app import serve

    def on_ready(address: str) -> None:
        print(f"The dashboard is at {address}\nCtrl-C ends it.", flush=True)
        if not no_browser:
            webbrowser.open(address)

    serve(things, _absolute(voice), device, _absolute(folder), on_ready)
    print("ended")
    return 0


def _existing(path: str) -> str:
    """Return an absolute path; `server.log#2` is the second run of a log."""
    if not os.path.exists(path) and not os.path.exists(path.rpartition("#")[0]):
        raise WorkbenchError(
            f"{path} does not exist; expected a trace, a dump, a log or a sound{about_address(path)}"
        )
    return _absolute(path)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
