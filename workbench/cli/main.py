"""The entry point of a process, `shell`; `main` runs one verb, prints its errors, returns the exit code."""

import gc
import os
import signal
import sys
from _thread import interrupt_main
from collections.abc import Sequence
from threading import Timer
from types import FrameType
from typing import Annotated

import typer

import workbench
from workbench.cli import app as app_verb
from workbench.cli import bench, bisect, checkpoint, compare, mapping, notebook, quality, quantise, speak
from workbench.cli.common import print_help_without_verb
from workbench.errors import WorkbenchError

HELP = """Find out where a CosyVoice3 run went wrong.

Exit codes: 0 fine; 1 something was found or a check failed; 2 an error, told in one line.
"""
MAX_WIDTH = 120  # columns of help, on a terminal that has as many
NEW_OBJECTS = (
    50_000  # between two passes of the garbage collector in a process of one verb; Python's own: 700
)
INTERRUPTED = 130  # the exit code that typer gives Ctrl-C
ASK_AGAIN_S = 0.05  # seconds, so that what ignored Ctrl-C is over
app = typer.Typer(
    name="workbench",
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (speak, compare, bisect, quality, quantise, mapping, checkpoint, notebook, app_verb):
    app.registered_commands += module.app.registered_commands
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"workbench {workbench.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Print help when no verb is given; `HELP` is its first lines."""
    print_help_without_verb(context)


def shell() -> int:
    """Run the verb of this process, as `workbench` and `python -m workbench` do; see `main`."""
    # Imports leave half a million objects for good; by Python's own settings, passes over them are a tenth of
    # the time of `speak`. What is in no cycle is freed at once all the same.
    gc.set_threshold(NEW_OBJECTS)
    interrupts = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    def ask_again(ignored: "sys.UnraisableHookArgs") -> None:
        # Python ignores what a callback or a destructor raises, and Ctrl-C would be lost there.
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            Timer(ASK_AGAIN_S, interrupt_main).start()
        else:
            sys.__unraisablehook__(ignored)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = ask_again
    try:
        code = main()
    except Exception:  # what an import makes of Ctrl-C: "initialization failed", say
        if not interrupts:
            raise
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    if code == INTERRUPTED:
        # Python would end by the signal itself, without this code, where Ctrl-C met an import that executes
        # text, such as that of a named tuple.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # the process ends: nobody needs another pass
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Parameters
    ----------
    argv : sequence of str, optional
        Its arguments; those of the process unless given.

    Returns
    -------
    int
        0 when it went well, 1 when a check failed or something was found, 2 after an error that the person
        can act on, 130 when it was interrupted.
    """
    command = typer.main.get_command(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = command.main(arguments, prog_name="workbench", standalone_mode=False) or 0
        if code == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        return code
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:  # unknown verbs and flags, missing arguments, wrong values
        message = " ".join(error.format_message().split())
        print(f"error: {message} (`workbench --help` and `workbench VERB --help` tell more)", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
