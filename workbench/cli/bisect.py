"""`workbench bisect`: find the submodule in which another implementation makes its error."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.common import Device, Names, Voice, json_text, open_pipe, open_traces, table_text
from workbench.files import atomic_write, check_writable

if TYPE_CHECKING:
    from workbench.diagnose.bisect.bisection import Bisection

app = typer.Typer()
COLUMNS = ["step", "tap", "part", "verdict", "added", "allowed", "note"]


@app.command(epilog="Example: workbench bisect mine.trace theirs.trace --taps taps.safetensors -o next")
def bisect(
    reference: Annotated[str, typer.Argument(help="A right run of the same utterance, or -.")],
    candidate: Annotated[str, typer.Argument(help="The run in doubt, with or without taps.")],
    taps: Annotated[
        str | None, typer.Option(help="Dump of the candidate's taps: .safetensors, .npz, .pt or a folder.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            help="Mapping of the taps, or without --taps of a candidate that is a dump.",
            show_default="taps.toml beside the taps",
        ),
    ] = None,
    stage: Annotated[Literal["flow", "lm", "hift"], typer.Option(help="Where to look.")] = "flow",
    names: Names = None,
    voice: Voice = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no text.")] = False,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Folder for the code that records the next taps.")
    ] = None,
) -> int:
    """Find the block and the part of a model in which a run goes wrong."""
    if out:
        check_writable(Path(out) / "taps.toml")
    from workbench.diagnose.bisect.bisect import bisect as bisect_runs
    from workbench.trace.importers.dumps.mapping import read_foreign
    from workbench.trace.trace import Trace

    of_run = [mapping] if mapping and not taps else None
    [theirs] = open_traces([candidate], names, of_run)
    mine = None if reference == "-" else open_traces([reference], names)[0]
    if taps:
        dump = read_foreign(taps, mapping or Path(taps).with_name("taps.toml"))
        theirs = Trace(theirs.data, theirs.attrs, theirs.taps | dump.taps)
    found = bisect_runs(mine, theirs, open_pipe(voice, device), stage)
    if as_json:
        print(json_text(found))
    else:
        _print_bisection(found)
    if out and found.next_taps:
        for name, text in found.files().items():
            with atomic_write(Path(out) / name) as draft:
                draft.write_text(text, encoding="utf-8")
    return int(bool(found.first))


def _print_bisection(found: "Bisection") -> None:
    """Print the line, every tap that adds an error, what was not checked and what to record."""
    print(found)
    table = found.to_frame()
    wrong = table[table["verdict"] == "adds an error"]
    if len(wrong):
        print(table_text(wrong[COLUMNS]))
    for text in found.unchecked:
        print(f"- not checked: {text}")
    if found.next_taps:
        print(f"record next: {', '.join(found.next_taps)}")
        print("--out FOLDER writes the code for it, and its mapping")
