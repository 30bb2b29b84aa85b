"""`quantise`: which weights may be quantised, and a map of formats under a size or a limit."""

from typing import Annotated

import typer

from workbench.cli.common import Device, Prompt, Voice, check_device, open_pipe, open_prompt, table_text
from workbench.errors import WorkbenchError
from workbench.files import check_writable
from workbench.speech.config.formats import parse_format

app = typer.Typer()
TEXTS = (
    "Eight months to Mars.",
    "The boy had never seen such a large ship, and nobody told him where it went.",
)


@app.command(
    epilog="Example: workbench quantise --budget 50% -o map.toml; workbench speak --weights map.toml"
)
def quantise(
    text: Annotated[
        list[str] | None, typer.Argument(help="What to say.", show_default="two sentences")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Which parts may have this format, such as q4_k?")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Formats for each block within a size: '200 MB', or '50%' of float16.")
    ] = None,
    max_db: Annotated[
        float | None, typer.Option("--max-db", help="The smallest formats whose sound changes by no more dB.")
    ] = None,
    known: Annotated[
        str | None, typer.Option(help="Table that --table wrote, in place of trying each block again.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Whisper model that hears the whole, before and after; DNSMOS then judges it as well.",
            show_default="nobody",
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Each text is said with each seed.")] = None,
    voice: Voice = None,
    prompt: Prompt = None,
    device: Device = "cpu",
    out: Annotated[str | None, typer.Option("-o", "--out", help="Write the formats as TOML.")] = None,
    table: Annotated[str | None, typer.Option(help="Write what was measured as CSV.")] = None,
) -> int:
    """Find the weights that may be quantised, judged by the sound of the same tokens.

    Sizes are those of all matrices; norms and biases are not counted. The LM is judged by the divergence of
    the next token's distribution.
    """
    if sum(each is not None for each in (format, budget, max_db)) != 1:
        raise WorkbenchError("expected one of --format, --budget and --max-db; try --budget 50%")
    if format in ("float16", "bfloat16"):
        raise WorkbenchError(
            f"{format} is half precision, not quantised: workbench precision --dtype {format}"
        )
    if format is not None:
        parse_format(format)  # says which formats there are
    if known is not None and format is not None:
        raise WorkbenchError("--known goes with --budget or --max-db; --format tries other parts")
    check_writable(out)
    check_writable(table)
    check_device(device)
    recording = open_prompt(prompt)
    from workbench.diagnose.benchmarks.tables import read_csv, write_csv
    from workbench.diagnose.precision import bisect_precision
    from workbench.diagnose.quantisation.recommend import recommend, write_weights

    sensitivity = None if known is None else read_csv(known)
    pipe = open_pipe(voice, device)
    utts = [pipe.prepare(each, recording) for each in text or TEXTS]
    if format is not None:
        found = bisect_precision(pipe, utts, format, seeds=seed, judge=judge)
        measured = found.rows
    else:
        found = recommend(pipe, utts, budget, max_db, seeds=seed or [0], sensitivity=sensitivity, judge=judge)
        measured = found.sensitivity
    print(found)
    print(table_text(measured if format is not None else found.curve))
    if found.heard is not None:
        print(table_text(found.heard.table()))
    if out:
        write_weights(found.recommended if format is not None else found.weights, found.line, out)
    if table:
        write_csv(measured, table)
    return 0
