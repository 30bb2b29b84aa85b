"""`glitches` and `precision`: what is wrong with a sound, and which parts may run in half precision."""

import sys
from typing import Annotated, Literal

import typer

from workbench.cli.common import (
    Device,
    Mappings,
    Prompt,
    Voice,
    check_device,
    open_pipe,
    open_prompt,
    print_notes,
    table_text,
)
from workbench.errors import WorkbenchError
from workbench.files import check_writable

app = typer.Typer()
COLUMNS = [
    *("severity", "kind", "start", "end", "score", "threshold", "percentile", "frame", "token", "cause")
]
NEAREST = 8  # modules to list, those nearest to an overflow


@app.command(epilog="Example: workbench glitches output/speech_0_0.trace theirs.wav --fail-on-any")
def glitches(
    path: Annotated[list[str], typer.Argument(help="Sound files, traces or dumps.")],
    mapping: Mappings = None,
    synthesised: Annotated[
        bool | None,
        typer.Option(
            "--synthesised/--recording",
            help="Whether a model made the sound, or it is a recording of a person, in which cut edges, "
            "offset, hum, noise and pauses are no defects.",
            show_default="a trace says so itself; of a sound file nobody knows",
        ),
    ] = None,
    fail_on_any: Annotated[
        bool, typer.Option("--fail-on-any", help="Exit with 1 if any defect was found.")
    ] = False,
) -> int:
    """Say what is wrong with a sound, where, and what may cause it.

    A file that cannot be read is reported, and the others go on; the exit code is 2 then.
    """
    from workbench.diagnose.glitches.glitches import find_glitches
    from workbench.diagnose.open import open as open_source

    found_any = False
    n_unreadable = 0
    for one in path:
        try:
            trace = open_source(one, mapping[-1] if mapping else None)
            found = find_glitches(trace, synthesised=synthesised)
            print_notes([trace])
        except WorkbenchError as error:
            n_unreadable += 1
            print(f"{one}: not checked: {error}", file=sys.stderr)
            continue
        found_any = found_any or len(found) > 0
        print(f"{one}: {found}")
        for table in (found.table, found.properties):
            if len(table):
                print(table_text(table[COLUMNS], 4))
    if n_unreadable:
        print(f"{n_unreadable} of {len(path)} files could not be checked", file=sys.stderr)
        return 2
    return int(fail_on_any and found_any)


@app.command(epilog="Example: workbench precision --dtype bfloat16")
def precision(
    text: Annotated[str, typer.Argument(help="What to say.")] = "Eight months to Mars.",
    voice: Voice = None,
    prompt: Prompt = None,
    dtype: Annotated[Literal["float16", "bfloat16"], typer.Option(help="Precision to try.")] = "float16",
    device: Device = "cpu",
    out: Annotated[str | None, typer.Option("-o", "--out", help="Also write the table as CSV.")] = None,
) -> int:
    """Find the parts that may run in half precision."""
    check_writable(out)
    check_device(device)
    recording = open_prompt(prompt)
    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.headroom import headroom
    from workbench.diagnose.precision import bisect_precision, repeatable

    pipe = open_pipe(voice, device)
    utt = pipe.prepare(text, recording)
    run = pipe.synthesise(utt)
    again = repeatable(pipe, utt, first=run)
    print(f"two runs differ by {again['determinism']:.2g}, a recorded one by {again['observer']:.2g}")
    found = bisect_precision(pipe, utt, dtype)
    print(found)
    print(table_text(found.rows))
    print("options:", " ".join(f"--option {name}={value}" for name, value in found.recommended.items()))
    room = headroom(pipe, run, dtype)
    print(table_text(room.nsmallest(NEAREST, "doublings")))
    if out:
        write_csv(found.rows, out)
    return 0
