"""`workbench bench ...`: what something costs, and how good it is, measured in turns."""

import json
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import (
    Device,
    Prompt,
    Voice,
    Weights,
    check_device,
    open_pipe,
    open_prompt,
    print_help_without_verb,
    run_options,
    table_text,
)
from workbench.errors import WorkbenchError
from workbench.files import atomic_write, check_writable, data_path
from workbench.speech.config import Options

app = typer.Typer(help="Measure what something costs, or how good it is.")

Released = Annotated[bool, typer.Option("--released", help="Released sizes with random weights.")]
Csv = Annotated[str | None, typer.Option("-o", "--out", help="Also write the table as CSV.")]


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure what something costs, or how good it is."""
    print_help_without_verb(context)


@app.command(epilog="Example: workbench bench speed --released --device cuda --seconds 2 --seconds 10")
def speed(
    voice: Voice = None,
    released: Released = False,
    device: Device = "cpu",
    seconds: Annotated[
        list[float] | None, typer.Option(help="Of speech; may be repeated.", show_default="10")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Utterances at a time; may be repeated.", show_default="1")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of turns.")] = 5,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Also write all figures (.json) or a summary (.csv).")
    ] = None,
) -> int:
    """Measure how fast the stages run in every way of computing."""
    check_writable(out)
    check_device(device)
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.speed import measure_speed
    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.benchmarks.trace_overhead import random_checkpoint
    from workbench.speech.checkpoint.checkpoint import Checkpoint

    checkpoint = random_checkpoint() if released else Checkpoint.load(voice)
    found = measure_speed(
        checkpoint,
        device,
        seconds or [10.0],
        batch or [1],
        rounds,
        lambda cases, n: tqdm(cases, "speed", n, unit=" case"),
    )
    print(found)
    if out and Path(out).suffix == ".csv":
        write_csv(found.summary(), out)
    elif out:
        with atomic_write(out) as draft:
            draft.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    return 0


@app.command(
    epilog="Example: workbench bench stream --released --device cuda --streams 1 --streams 4 --streams 16"
)
def stream(
    voice: Voice = None,
    released: Released = False,
    device: Device = "cpu",
    compute: Annotated[
        list[str] | None,
        typer.Option(
            help="Way of computing: eager, exact or fast; may be repeated.",
            show_default="all on a GPU, eager on a CPU, where the others gain nothing",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of speech.")] = 10.0,
    streams: Annotated[
        list[int] | None, typer.Option(help="Streams at a time; may be repeated.", show_default="1")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of turns.")] = 3,
    out: Csv = None,
) -> int:
    """Measure the time to first sound, the time of each chunk and the real-time margin of streams."""
    check_writable(out)
    check_device(device)
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.stream_speed import measure_stream, medians, summary
    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.benchmarks.trace_overhead import random_checkpoint
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.config import COMPUTE

    turns = []
    for turn in measure_stream(
        random_checkpoint() if released else Checkpoint.load(voice),
        device,
        compute or (COMPUTE[:1] if device == "cpu" else COMPUTE),
        seconds,
        streams or [1],
        rounds,
        lambda turns, n: tqdm(turns, "stream", n, unit=" turn"),
    ):
        turns.append(turn)
        if out:  # after every turn, so that a run that is cut off keeps what it measured
            write_csv(medians(turns), out)
    table = medians(turns)
    print(table_text(table))
    print(table_text(summary(table)))
    return 0


@app.command(epilog="Example: workbench bench formats --released --device cuda -o formats.csv")
def formats(
    voice: Voice = None,
    released: Released = False,
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(help="Rounds of turns.")] = 5,
    out: Csv = None,
) -> int:
    """Measure what formats of weights gain a token of the LM, in the kernels that torch has for them."""
    check_writable(out)
    check_device(device)
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.format_speed import measure_format_speed
    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.config import RELEASED

    table = measure_format_speed(
        RELEASED.lm if released else Checkpoint.load(voice).config.lm,
        device,
        rounds,
        lambda turns, n: tqdm(turns, "formats", n, unit=" turn"),
    )
    print(table_text(table))
    if out:
        write_csv(table, out)
    return 0


@app.command(epilog="Example: workbench bench deviation --device cuda --sentences 24 -o deviation.csv")
def deviation(
    voice: Voice = None,
    prompt: Prompt = None,
    device: Device = "cpu",
    sentences: Annotated[int, typer.Option(help="Sentences to speak.")] = 5,
    out: Csv = None,
) -> int:
    """Measure how far the other ways of computing are from eager."""
    check_writable(out)
    recording = open_prompt(prompt)
    from workbench.diagnose.benchmarks.accuracy import deviation as measure_deviation
    from workbench.diagnose.benchmarks.accuracy import medians
    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.glitches.benchmark import REPORTED_ON

    pipe = open_pipe(voice, device)
    utts = [pipe.prepare(text, recording) for text in REPORTED_ON[:sentences]]
    table = measure_deviation(pipe, utts, pipe.checkpoint.options)
    print(table_text(table))
    print(table_text(medians(table)))
    if out:
        write_csv(table, out)
    return 0


@app.command(epilog="Example: workbench bench trace --released --device cuda --rounds 4")
def trace(
    voice: Voice = None,
    released: Released = False,
    device: Device = "cpu",
    tokens: Annotated[int, typer.Option(help="Speech tokens of a run, 25 a second.")] = 250,
    rounds: Annotated[int, typer.Option(help="Rounds of turns.")] = 5,
    out: Csv = None,
) -> int:
    """Measure what recording costs, against a silent run."""
    check_writable(out)
    check_device(device)
    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.benchmarks.trace_overhead import (
        random_checkpoint,
        trace_cost,
        utterance_of_length,
    )
    from workbench.speech.pipeline import Pipeline

    if released:
        pipe = Pipeline(random_checkpoint(), device, progress=False)
    else:
        pipe = open_pipe(voice, device, progress=False)
    utt, options = utterance_of_length(pipe.checkpoint, tokens)
    table = trace_cost(pipe, utt, options, rounds).reset_index()
    print(table_text(table, 4))
    if out:
        write_csv(table, out)
    return 0


@app.command(epilog="Example: workbench bench answers --rounds 5 -o data/speed/answers.csv")
def answers(
    released: Annotated[
        bool, typer.Option("--released", help="Compare and diagnose at released sizes, with random weights.")
    ] = False,
    notebook: Annotated[
        list[str] | None, typer.Option(help="Run this notebook as well; may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this answer alone, such as speak; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of turns.")] = 3,
    out: Csv = None,
) -> int:
    """Measure how long an answer takes: whole processes on a CPU, with their peak memory."""
    check_writable(out)
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.answers import measure_answers
    from workbench.diagnose.benchmarks.tables import write_csv

    table = measure_answers(
        released,
        notebook or (),
        rounds,
        only or (),
        lambda turns, total: tqdm(turns, "answers", total, unit=" process"),
    )
    print(table_text(table))
    if out:
        write_csv(table, out)
    return 0


@app.command(epilog="Example: workbench bench bisect --each 3 --healthy 25 -o data/accuracy/bisect.csv")
def bisect(
    voice: Voice = None,
    each: Annotated[int, typer.Option(help="Faults of each kind.")] = 3,
    healthy: Annotated[int, typer.Option(help="Right runs in every view.")] = 25,
    out: Csv = None,
    rows: Annotated[str | None, typer.Option(help="Also write every run as CSV.")] = None,
) -> int:
    """Measure how often the block and part of a fault inside the estimator are named."""
    check_writable(out)
    check_writable(rows)
    import pandas as pd
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.bisect import benchmark

    pipe = open_pipe(voice, "cpu", progress=False)
    total = 2 * each * len(benchmark.KINDS) + healthy * len(benchmark.VIEWS)
    runs = list(
        tqdm(benchmark.measure(pipe, each=each, healthy=range(healthy)), "bisect", total, unit=" run")
    )
    table = benchmark.table(runs)
    print(table_text(table))
    if out:
        write_csv(table, out)
    if rows:
        write_csv(pd.DataFrame(runs, columns=benchmark.COLUMNS), rows)
    return 0


@app.command(epilog="Example: workbench bench glitches --clean recordings/ --rate 16000 -o glitches.csv")
def glitches(
    voice: Voice = None,
    device: Device = "cpu",
    clean: Annotated[
        list[str] | None,
        typer.Option(help="Folder of clean recordings, which is a corpus, or a recording; may be repeated."),
    ] = None,
    rate: Annotated[
        list[int] | None,
        typer.Option(
            help="Sample rate in Hz at which false alarms are counted as well; may be repeated.",
            show_default="their own",
        ),
    ] = None,
    out: Csv = None,
    alarms: Annotated[str | None, typer.Option(help="Also write the false alarms as CSV.")] = None,
    scores: Annotated[
        str | None, typer.Option(help="Also write the scores of clean speech (clean_scores.json).")
    ] = None,
) -> int:
    """Measure the share of defects that the detectors find, and their false alarms by corpus."""
    check_writable(out)
    check_writable(alarms)
    check_writable(scores)
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.tables import write_csv
    from workbench.diagnose.glitches import benchmark

    check_device(device)
    recorded = list(benchmark.recordings(clean or ()))  # an unreadable file ends the work before it begins
    pipe = open_pipe(voice, device, progress=False)
    sentences = tqdm(benchmark.REPORTED_ON, "clean speech", unit=" sentence")
    reported_on = [*benchmark.spoken(pipe, sentences), *recorded]
    found = benchmark.measure_detectors(pipe, reported_on, rate or ())
    print(table_text(found.table))
    print(table_text(found.rates))
    defects = found.alarms[found.alarms["severity"] == "defect"]
    print(table_text(defects) if len(defects) else "no false alarm")
    if out:
        write_csv(found.table, out)
    if alarms:
        write_csv(found.rates, alarms)
    if scores:
        sentences = tqdm(benchmark.TUNED_ON, "its scores", unit=" sentence")
        tuned_on = [*benchmark.recordings([data_path("prompts")]), *benchmark.spoken(pipe, sentences)]
        measured = benchmark.measure_clean_scores([*tuned_on, *reported_on])
        with atomic_write(Path(scores)) as draft:
            draft.write_text(json.dumps(measured), encoding="utf-8")
    return 0


@app.command(epilog="Example: workbench bench heard heldout.tsv --weights map.toml --judge whisper-small")
def heard(
    texts: Annotated[
        str, typer.Argument(help="TSV with the columns text and speaker, whose bundled prompt is cloned.")
    ],
    weights: Weights,
    judge: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Whisper model that hears the runs.")],
    seed: Annotated[list[int] | None, typer.Option(help="Each text is said with each seed.")] = None,
    voice: Voice = None,
    device: Device = "cpu",
    out: Csv = None,
    rows: Annotated[str | None, typer.Option(help="Also write every run as CSV.")] = None,
    change: Annotated[
        str | None, typer.Option(help="Also write what changes in tokens, sound and pitch.")
    ] = None,
) -> int:
    """Measure which words are misheard, and the predicted quality, before and after weights are quantised."""
    for path in (out, rows, change):
        check_writable(path)
    check_device(device)
    rules = str(Options(**run_options(None, weights)).weights)
    import pandas as pd

    from workbench.diagnose.benchmarks.tables import read_csv, write_csv
    from workbench.diagnose.experiments.judges import judge_of
    from workbench.diagnose.quantisation.heard import heard_change
    from workbench.diagnose.quantisation.measure import References

    table = read_csv(texts, sep="\t")
    missing = {"text", "speaker"} - set(table.columns)
    if missing:
        raise WorkbenchError(
            f"{texts} has no column {' or '.join(sorted(missing))}; expected text and speaker"
        )
    pipe = open_pipe(voice, device)
    prompts = {name: pipe.prompt(data_path(f"prompts/{name}_0.flac")) for name in table["speaker"].unique()}
    utts = [pipe.prepare(row.text, prompts[row.speaker]) for row in table.itertuples()]
    references = References(pipe, utts, pipe.checkpoint.options, seed or [0])
    found = heard_change(references, rules, judge_of(judge))
    changed = pd.DataFrame([references.change(rules)])
    print(found.line)
    print(table_text(found.table()))
    print(table_text(changed))
    for result, path in ((found.table(), out), (found.rows, rows), (changed, change)):
        if path:
            write_csv(result, path)
    return 0
