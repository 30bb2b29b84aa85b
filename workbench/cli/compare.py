"""`compare`, `report`, `diagnose`, `suspects`: two runs side by side, and which known fault it was."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.common import (
    Device,
    Mappings,
    Names,
    OtherVoice,
    Voice,
    did_you_mean,
    json_text,
    open_pipe,
    open_traces,
    print_notes,
    run_options,
    table_text,
)
from workbench.cli.sounds import any_sound, compare_sound_files, diagnose_sound, sound_file_report
from workbench.errors import WorkbenchError
from workbench.files import atomic_write, check_writable

if TYPE_CHECKING:
    from workbench.diagnose.compare.comparison import Comparison
    from workbench.show.report.report import Report

app = typer.Typer()
COLUMNS = ["field", "index", "verdict", "rel_l2", "allowed", "added", "cosine", "norm_ratio", "note"]


@app.command(epilog="Example: workbench compare mine.trace server.log#2 --voice my_checkpoint")
def compare(
    reference: Annotated[
        str, typer.Argument(help="A trace, such as speak --trace writes, a dump, a .log, or a sound.")
    ],
    candidate: Annotated[str, typer.Argument(help="The run in doubt; server.log#2 is a log's second run.")],
    names: Names = None,
    mapping: Mappings = None,
    voice: OtherVoice = None,
    device: Device = "cpu",
    weights: Annotated[
        str | None,
        typer.Option(help="The candidate's formats of weights: q4_0, or a TOML file; needs --voice."),
    ] = None,
    fail_on: Annotated[
        Literal["rounding", "missing", "diverged", "never"],
        typer.Option(help="Exit with 1 from this verdict on."),
    ] = "diverged",
    brief: Annotated[bool, typer.Option("--brief", help="Print the verdict and the remarks alone.")] = False,
    all_rows: Annotated[
        bool, typer.Option("--all", help="Print every row, also those that are right.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON, and no text.")] = False,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Also write all rows as JSON.")] = None,
) -> int:
    """Put two runs side by side and name the first cause; or align two sounds and say what differs."""
    check_writable(out)
    if any_sound([reference, candidate]):
        return compare_sound_files(reference, candidate, names, fail_on, brief, as_json, out, mapping)
    from workbench.diagnose.compare.compare import compare as compare_runs
    from workbench.diagnose.compare.comparison import VERDICTS

    pair = open_traces([reference, candidate], names, mapping)
    pipe = open_pipe(voice, device) if voice else None
    if weights is not None and pipe is None:
        raise WorkbenchError("--weights needs --voice: what a format explains is measured with the model")
    found = compare_runs(*pair, pipe, run_options(None, weights).get("weights"))
    if as_json:
        print(json_text(found))
    else:
        _print_comparison(found, brief, all_rows)
    if out:
        with atomic_write(out) as draft:
            draft.write_text(json_text(found), encoding="utf-8")
    if fail_on == "never":
        return 0
    failed = VERDICTS.index(found.verdict) >= VERDICTS.index(fail_on.upper())
    return int(failed or bool(found.causes))


def _print_comparison(found: "Comparison", brief: bool, all_rows: bool) -> None:
    """Print the verdict, the remarks and, unless `brief`, the rows that are wrong, or all of them."""
    from workbench.diagnose.compare.comparison import MAX_ROWS

    print(found)
    for remark in found.remarks:
        print(f"- {remark}")
    if brief:
        return
    rows = found.rows if all_rows else found.wrong_rows
    shown = rows if all_rows else rows.head(MAX_ROWS)
    if len(shown):
        print(table_text(shown[COLUMNS]))
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown)} more rows are wrong; --all prints every row")


@app.command(epilog="Example: workbench report right.trace wrong.trace -o output/report.html")
def report(
    trace: Annotated[
        str, typer.Argument(help="A trace, such as speak --trace writes, a dump, a .log, or a sound.")
    ],
    other: Annotated[
        str | None, typer.Argument(help="The run in doubt; the first is then the reference.")
    ] = None,
    out: Annotated[str, typer.Option("-o", "--out", help="HTML file.")] = "output/report.html",
    names: Names = None,
    mapping: Mappings = None,
    voice: OtherVoice = None,
    device: Device = "cpu",
) -> int:
    """Write one HTML file about a run or a sound, or about two side by side."""
    check_writable(out)
    paths = [trace] if other is None else [trace, other]
    if any_sound(paths):
        page = sound_file_report(paths, names, mapping)
    else:
        page = _report(paths, names, mapping, voice, device)
    path = page.save(out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _report(
    paths: list[str], names: str | None, mapping: list[str] | None, voice: str | None, device: str
) -> "Report":
    """Return the report of one run or of two."""
    from workbench.show.report.run_reports import comparison_report, run_report

    traces = open_traces(paths, names, mapping)
    print_notes(traces)
    titles = [Path(path).name for path in paths]
    pipe = open_pipe(voice, device) if voice else None
    if len(traces) == 1:
        return run_report(traces[0], titles[0], pipe)
    return comparison_report(*traces, pipe, tuple(titles))


@app.command(epilog="Example: workbench diagnose theirs.trace --reference mine.trace")
def diagnose(
    candidate: Annotated[
        str, typer.Argument(help="A trace, dump, log or sound of the implementation in doubt.")
    ],
    reference: Annotated[
        str | None, typer.Option(help="A right run of the same utterance; a whole trace needs none.")
    ] = None,
    names: Names = None,
    mapping: Mappings = None,
    voice: Voice = None,
    device: Device = "cpu",
    top: Annotated[int, typer.Option(help="Suspects to list.")] = 5,
) -> int:
    """Name the known faults that a run looks like; of a sound alone, say what it shows."""
    if any_sound([candidate, reference]):
        return diagnose_sound(candidate, reference, names, mapping)
    from workbench.diagnose.suspects.suspects import find_suspects

    traces = open_traces([candidate, reference] if reference else [candidate], names, mapping)
    print_notes(traces)
    wrong, right = traces[0], traces[1] if reference else None
    found = find_suspects(right, wrong, open_pipe(voice, device))
    print(found)
    for remark in found.remarks:
        print(f"- {remark}")
    if found.verdicts:
        print(table_text(found.places_frame()))
    if found.suspects:
        listed = found.to_frame().head(top)[["suspect", "stage", "explained", "source"]]
        print(listed.to_string(index=False, float_format="{:.2f}".format))
    if found.explained_by:
        print(table_text(found.suspects[0].evidence, 2))
    return 0


@app.command(epilog="Example: workbench suspects --self-test --pairs 12 --unlisted 40 --healthy 40")
def suspects(
    name: Annotated[list[str] | None, typer.Option(help="Only this fault; may be repeated.")] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Inject every fault and look whether it is named.")
    ] = False,
    pairs: Annotated[int, typer.Option(help="Self-test: pairs of faults as well.")] = 0,
    unlisted: Annotated[int, typer.Option(help="Self-test: faults that are not listed as well.")] = 0,
    healthy: Annotated[int, typer.Option(help="Self-test: runs without a fault as well.")] = 0,
    quantised: Annotated[int, typer.Option(help="Self-test: runs with quantised weights as well.")] = 0,
    catalogue: Annotated[bool, typer.Option(help="Self-test: runs with the listed faults.")] = True,
    draw: Annotated[int, typer.Option(help="Self-test: seed by which faults are drawn.")] = 0,
    view: Annotated[
        list[str] | None,
        typer.Option(
            help="Self-test: what is kept of the runs; may be repeated.",
            show_default="whole trace, statistics, mel and waveform",
        ),
    ] = None,
    voice: Voice = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Self-test: also write every row as CSV.")
    ] = None,
) -> int:
    """List the known faults, or test whether they are found."""
    from workbench.diagnose.suspects.catalogue.faults import CATALOGUE

    wanted = set(name or ())
    known = [fault.name for fault in CATALOGUE]
    for one in sorted(wanted - set(known)):
        raise WorkbenchError(
            f"no known fault is called {one}; {did_you_mean(one, known)}`workbench suspects` lists them"
        )
    faults = [fault for fault in CATALOGUE if not wanted or fault.name in wanted]
    if not self_test:
        for fault in faults:
            print(f"{fault.name} [{fault.stage}] {fault.cause}. {fault.source}")
        return 0

    check_writable(out)
    import pandas as pd
    from tqdm import tqdm

    from workbench.diagnose.suspects import benchmark

    for one in view or ():
        if one not in benchmark.VIEWS:
            raise WorkbenchError(f"no view is called {one}; expected {', '.join(benchmark.VIEWS)}")
    views = view or list(benchmark.VIEWS)
    pipe = open_pipe(voice, "cpu", progress=False)
    utterances = benchmark.held_out(pipe)
    faults = faults if catalogue else []
    total = (len(faults) + unlisted) * len(views) + 2 * pairs + healthy + 2 * quantised
    runs = benchmark.self_test(
        pipe,
        utterances,
        faults,
        views,
        pairs=pairs,
        unlisted=unlisted,
        healthy=healthy,
        draw=draw,
    )
    formats = benchmark.format_trials(pipe, utterances, quantised, draw, views)
    rows = list(tqdm(itertools.chain(runs, formats), "self-test", total, unit=" run"))
    print(benchmark.table(rows).to_string(index=False, float_format="{:.3f}".format))
    print(benchmark.confusions(rows).to_string(index=False))
    if out:
        with atomic_write(out) as draft:
            pd.DataFrame(rows, columns=benchmark.COLUMNS).to_csv(draft, index=False)
    return 0
