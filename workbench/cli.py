"""The workbench for a shell: one function a verb.

A verb is a function that takes the parsed arguments and returns an exit code, and a few lines in
`parser` that name it.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import WorkbenchError


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments."""
    top = argparse.ArgumentParser(prog="workbench", description="Find out where CosyVoice3 went wrong.")
    verbs = top.add_subparsers(dest="verb", required=True)

    verb = verbs.add_parser("speak", help="say texts in a prompt's voice and write wav files")
    verb.add_argument("text", nargs="+", help="each is one numbered output; long ones are split")
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder")
    verb.add_argument("--prompt", default="data/prompts/kumo_0.flac", help="recording to clone")
    verb.add_argument("--prompt-text", help="its transcript; default: the .txt beside it")
    verb.add_argument("--mode", default="zero-shot", choices=("zero-shot", "cross-lingual", "instruct"))
    verb.add_argument("--instruct", help="how to speak, for --mode instruct")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--device", default="cpu")
    verb.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="any field of Options"
    )
    verb.add_argument(
        "--trace", choices=("summary", "everything"), help="also write a trace beside each wav, NAME_..trace"
    )
    verb.add_argument("-o", "--out", default="output", help="folder")
    verb.add_argument("--name", default="speech", help="files are NAME_text_segment.wav")
    verb.set_defaults(run=speak)

    verb = verbs.add_parser("inspect", help="list the tensors of a checkpoint folder, also of a broken one")
    verb.add_argument("folder")
    verb.add_argument("--prefix", default="", help="stage and start of the key, such as flow.decoder")
    verb.set_defaults(run=inspect)

    verb = verbs.add_parser("compare", help="put two runs side by side and name the first cause")
    verb.add_argument("reference", help="a trace, such as `speak --trace everything` writes, or a .log")
    verb.add_argument("candidate", help="server.log#2 is the second run of a log")
    verb.add_argument("--names", help="table of what logs call tensors (default: logs.toml)")
    verb.add_argument("--voice", help="checkpoint folder both ran: decides rounding and finds the cause")
    verb.add_argument("--device", default="cpu")
    verb.add_argument(
        "--fail-on",
        choices=("rounding", "missing", "diverged", "never"),
        default="diverged",
        help="exit with 1 from this verdict on (default: diverged)",
    )
    verb.set_defaults(run=compare)

    verb = verbs.add_parser("report", help="write one HTML file about a run, or about two side by side")
    verb.add_argument("trace", help="such as `speak --trace everything` writes, or a .log")
    verb.add_argument("other", nargs="?", help="the run that is in doubt, when the first is the reference")
    verb.add_argument("-o", "--out", default="output/report.html")
    verb.add_argument("--names", help="table of what logs call tensors (default: logs.toml)")
    verb.add_argument(
        "--voice",
        help="checkpoint folder that ran: finds the cause, names suspects; of a single run that was not "
        "computed in the eager way, how far that took it",
    )
    verb.add_argument("--device", default="cpu")
    verb.set_defaults(run=report)

    verb = verbs.add_parser("diagnose", help="name the known faults that a run looks like")
    verb.add_argument("candidate", help="a trace or a log of the implementation that is in doubt")
    verb.add_argument("--reference", help="a right run of the same utterance; not needed for a whole trace")
    verb.add_argument("--names", help="table of what logs call tensors (default: logs.toml)")
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder both ran")
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--top", type=int, default=5, help="suspects to list")
    verb.set_defaults(run=diagnose)

    verb = verbs.add_parser("suspects", help="list the known faults, or test whether they are found")
    verb.add_argument("--self-test", action="store_true", help="inject every fault and look for it")
    verb.add_argument("--name", action="append", default=[], help="only this fault; may be repeated")
    verb.add_argument("--pairs", type=int, default=0, help="so many pairs of faults as well")
    verb.add_argument("--clean", type=int, default=0, help="so many runs without a fault as well")
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder")
    verb.add_argument("-o", "--out", help="also write every row of the self-test as CSV")
    verb.set_defaults(run=suspects)

    verb = verbs.add_parser("precision", help="find the parts that may run in half precision")
    verb.add_argument("text", nargs="?", default="Eight months to Mars.")
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder")
    verb.add_argument("--prompt", default="data/prompts/kumo_0.flac", help="recording to clone")
    verb.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    verb.add_argument("--device", default="cpu")
    verb.set_defaults(run=precision)

    verb = verbs.add_parser("bench", help="measure what something costs, in turns")
    verb.add_argument(
        "what",
        nargs="?",
        default="speed",
        choices=tuple(BENCHES),
        help="the ways of computing, in turns; how far they are from eager; recording against a silent run; "
        "or the glitch detectors",
    )
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder")
    verb.add_argument("--prompt", default="data/prompts/kumo_0.flac", help="deviation: recording to clone")
    verb.add_argument("--released", action="store_true", help="released sizes, random weights")
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--seconds", type=float, nargs="+", default=[10.0], help="speed: of speech")
    verb.add_argument("--batch", type=int, nargs="+", default=[1], help="speed: utterances at a time")
    verb.add_argument("--tokens", type=int, default=250, help="trace: speech tokens, 25 a second")
    verb.add_argument("--rounds", type=int, default=5, help="of turns; deviation: sentences")
    verb.add_argument("--clean", nargs="*", default=[], help="glitches: more clean recordings, or folders")
    verb.add_argument("-o", "--out", help="speed: also as JSON; glitches: the scores of clean speech")
    verb.set_defaults(run=bench)

    verb = verbs.add_parser("glitches", help="say what is wrong with a sound, where, and what causes it")
    verb.add_argument("path", nargs="+", help="a sound file, or a .trace")
    verb.add_argument("--fail-on-any", action="store_true", help="exit with 1 if anything was found")
    verb.set_defaults(run=glitches)

    verb = verbs.add_parser("export-onnx", help="write the flow's estimator as ONNX, with upstream's names")
    verb.add_argument("out", help="file; as flow.decoder.estimator.fp32.onnx in --voice it is found there")
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder")
    verb.set_defaults(run=export)

    verb = verbs.add_parser(
        "notebook", help="run a notebook with other parameters and keep it as one HTML file"
    )
    verb.add_argument(
        "name", help="of a notebook in notebooks/, such as start-here, or the path of any other"
    )
    verb.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of its parameters' cell"
    )
    verb.add_argument("-o", "--out", help="file (default: output/NAME.html)")
    verb.set_defaults(run=notebook)

    return top


def speak(args: argparse.Namespace) -> int:
    """Speak every text, write one file a segment, print one row a file."""
    import pandas as pd

    from workbench.diagnose.glitches.wave_stats import wave_stats
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.frontend.audio import write_wav
    from workbench.speech.pipeline import Pipeline
    from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY

    voice = Checkpoint.load(args.voice)
    options = voice.options.but(**options_of(args.option), seed=args.seed)
    pipe = Pipeline(voice, args.device)
    prompt = pipe.prompt(args.prompt, args.prompt_text)
    save = {None: NOTHING, "summary": SUMMARY, "everything": EVERYTHING}[args.trace]
    texts = [pipe.prepare_all(text, prompt, args.mode, args.instruct) for text in args.text]
    rows = []
    for i, segments in enumerate(texts):
        for j, utt in enumerate(segments):
            trace = pipe.synthesise(utt, options=options, save=save)
            path = Path(args.out) / f"{args.name}_{i}_{j}.wav"
            write_wav(path, trace.wav, trace.sample_rate)
            if args.trace:
                trace.save(path.with_suffix(".trace"))
            stats = wave_stats(trace.wav, trace.sample_rate, pipe.config.hift.audio_limit)
            rows.append({"file": str(path), **stats, "rtf": trace.rtf, "text": utt.text})
    table = pd.DataFrame(rows)
    table["text"] = table["text"].str.slice(0, 48)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print("peak and rms are of full scale, silence is a share of the time, rtf is compute / audio seconds")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Print the verdict, what differs before any number, and every row that is not a match."""
    from workbench.diagnose.compare.compare import compare as put_side_by_side
    from workbench.diagnose.compare.comparison import VERDICTS
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline
    from workbench.trace.importers.log_lines import NAMES
    from workbench.trace.importers.logs import open_run

    names = args.names or NAMES
    reference, candidate = open_run(args.reference, names), open_run(args.candidate, names)
    pipe = Pipeline(Checkpoint.load(args.voice), args.device) if args.voice else None
    found = put_side_by_side(reference, candidate, pipe)
    print(found)
    for note in found.remarks:
        print(f"- {note}")
    rows = found.rows[found.rows["verdict"] != "MATCH"]
    columns = ["field", "index", "verdict", "rel_l2", "allowed", "added", "cosine", "norm_ratio", "note"]
    if len(rows):
        print(rows[columns].to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    if args.fail_on == "never":
        return 0
    return int(VERDICTS.index(found.verdict) >= VERDICTS.index(args.fail_on.upper()) or bool(found.causes))


def report(args: argparse.Namespace) -> int:
    """Write the standard report of a run or of a comparison."""
    from workbench.show.report.run_reports import comparison_report, run_report
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline
    from workbench.trace.importers.log_lines import NAMES
    from workbench.trace.importers.logs import open_run

    names = [path for path in (args.trace, args.other) if path]
    traces = [open_run(path, args.names or NAMES) for path in names]
    titles = [Path(name).name for name in names]
    pipe = Pipeline(Checkpoint.load(args.voice), args.device) if args.voice else None
    if len(traces) == 1:
        page = run_report(*traces, *titles, pipe)
    else:
        page = comparison_report(*traces, pipe, tuple(titles))
    path = page.save(args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


def diagnose(args: argparse.Namespace) -> int:
    """Print the answer, what to do next, the first suspects and the evidence for the first."""
    from workbench.diagnose.suspects.suspects import find_suspects
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline
    from workbench.trace.importers.log_lines import NAMES
    from workbench.trace.importers.logs import open_run

    names = args.names or NAMES
    candidate = open_run(args.candidate, names)
    reference = open_run(args.reference, names) if args.reference else None
    pipe = Pipeline(Checkpoint.load(args.voice), args.device)
    found = find_suspects(reference, candidate, pipe)
    print(found)
    if found.next_experiment:
        print(found.next_experiment)
    if found.suspects:
        table = found.to_frame().head(args.top)[["suspect", "stage", "explained", "source"]]
        print(table.to_string(index=False, float_format="{:.2f}".format))
    if found.explained_by:
        print(found.suspects[0].evidence.to_string(index=False, float_format="{:.2g}".format))
    return 0


def suspects(args: argparse.Namespace) -> int:
    """Print the catalogue, or how often the self-test was right and what it took for what."""
    import pandas as pd
    from tqdm import tqdm

    from workbench.diagnose.suspects.benchmark import COLUMNS, VIEWS, confusions, held_out, self_test, table
    from workbench.diagnose.suspects.faults import CATALOGUE
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline

    faults = [fault for fault in CATALOGUE if fault.name in args.name or not args.name]
    if not faults:
        raise WorkbenchError(
            f"no known fault is called {', '.join(args.name)}; `workbench suspects` lists them"
        )
    if not args.self_test:
        for fault in faults:
            print(f"{fault.name} [{fault.stage}] {fault.cause}. {fault.source}")
        return 0
    pipe = Pipeline(Checkpoint.load(args.voice), progress=False)
    total = len(faults) * len(VIEWS) + args.pairs + args.clean
    rows = self_test(pipe, held_out(pipe), faults, pairs=args.pairs, healthy=args.clean)
    rows = list(tqdm(rows, "self-test", total, unit=" run"))
    print(table(rows).to_string(float_format="{:.3f}".format))
    print(confusions(rows).to_string(index=False))
    if args.out:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(args.out, index=False)
    return 0


def precision(args: argparse.Namespace) -> int:
    """Print what may run in half precision, the evidence, and the modules nearest to an overflow."""
    from workbench.diagnose.precision import bisect_precision, headroom, repeatable
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline

    pipe = Pipeline(Checkpoint.load(args.voice), args.device)
    utt = pipe.prepare(args.text, args.prompt)
    again = repeatable(pipe, utt)
    print(f"two runs differ by {again['determinism']:.2g}, a recorded one by {again['observer']:.2g}")
    found = bisect_precision(pipe, utt, args.dtype)
    print(found)
    print(found.rows.to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    print("options:", " ".join(f"--option {name}={dtype}" for name, dtype in found.recommended.items()))
    room = headroom(pipe, pipe.synthesise(utt), args.dtype)
    print(room.nsmallest(8, "doublings").to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    return 0


def glitches(args: argparse.Namespace) -> int:
    """Print one line a file and one row a finding."""
    from workbench.diagnose.glitches.glitches import find_glitches
    from workbench.speech.frontend.audio import read_wav
    from workbench.trace.trace import Trace

    found_any = False
    for path in args.path:
        is_trace = Path(path).suffix in (".trace", ".safetensors")
        found = find_glitches(Trace.load(path)) if is_trace else find_glitches(*read_wav(path))
        found_any |= len(found) > 0
        print(f"{path}: {found}")
        if len(found):
            columns = ["kind", "start", "end", "score", "threshold", "percentile", "frame", "token", "cause"]
            print(found.table[columns].to_string(index=False, float_format="{:.4g}".format))
    return int(args.fail_on_any and found_any)


def bench(args: argparse.Namespace) -> int:
    """Measure something."""
    return BENCHES[args.what](args)


def bench_speed(args: argparse.Namespace) -> int:
    """Print how fast the stages run in every way of computing."""
    from tqdm import tqdm

    from workbench.diagnose.benchmarks.speed import measure_speed
    from workbench.diagnose.benchmarks.trace_overhead import random_checkpoint
    from workbench.files import atomic_write
    from workbench.speech.checkpoint.checkpoint import Checkpoint

    checkpoint = random_checkpoint() if args.released else Checkpoint.load(args.voice)
    found = measure_speed(
        checkpoint,
        args.device,
        args.seconds,
        args.batch,
        args.rounds,
        lambda cases, n: tqdm(cases, "speed", n, unit=" case"),
    )
    print(found)
    if args.out:
        with atomic_write(Path(args.out)) as draft:
            draft.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    return 0


def bench_deviation(args: argparse.Namespace) -> int:
    """Print how far the other ways of computing are from eager."""
    from workbench.diagnose.benchmarks.accuracy import deviation
    from workbench.diagnose.glitches.benchmark import REPORTED_ON
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline

    pipe = Pipeline(Checkpoint.load(args.voice), args.device)
    utts = [pipe.prepare(text, args.prompt) for text in REPORTED_ON[: args.rounds]]
    table = deviation(pipe, utts, pipe.checkpoint.options)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print(table.groupby("compute").median().drop(columns="utterance").to_string(float_format="{:.3g}".format))
    return 0


def bench_glitches(args: argparse.Namespace) -> int:
    """Print the share of defects found, false alarms a minute and where they are."""
    from tqdm import tqdm

    from workbench.diagnose.glitches import benchmark as calibrate
    from workbench.files import atomic_write, data_path
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline

    pipe = Pipeline(Checkpoint.load(args.voice), args.device, progress=False)
    said = tqdm(calibrate.REPORTED_ON, "clean speech", unit=" sentence")
    unseen = [*calibrate.spoken(pipe, said), *calibrate.recordings(args.clean)]
    alarms, renders = calibrate.false_alarms(unseen), calibrate.one_step(pipe, unseen)
    table = calibrate.summary(calibrate.detection(unseen), alarms, renders)
    print(table.to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    print(alarms.to_string(index=False, float_format="{:.3g}".format) if len(alarms) else "no false alarm")
    if args.out:
        said = tqdm(calibrate.TUNED_ON, "its scores", unit=" sentence")
        seen = [*calibrate.recordings([data_path("prompts")]), *calibrate.spoken(pipe, said)]
        with atomic_write(Path(args.out)) as draft:
            scores = calibrate.measure_clean_scores([*seen, *unseen])
            draft.write_text(json.dumps(scores), encoding="utf-8")
    return 0


def bench_trace(args: argparse.Namespace) -> int:
    """Print what recording costs."""
    from workbench.diagnose.benchmarks.trace_overhead import random_checkpoint, trace_cost, utterance_of_size
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline

    if args.released:
        pipe = Pipeline(random_checkpoint(), args.device, progress=False)
    else:
        pipe = Pipeline(Checkpoint.load(args.voice), args.device, progress=False)
    # Stops are masked until twice as many tokens as the text has, so that the length is the one asked for.
    utt = utterance_of_size(pipe.config, text=(args.tokens + 1) // 2)
    options = pipe.checkpoint.options.but(mask_stop_ids=True, max_tokens=args.tokens)
    print(trace_cost(pipe, utt, options, args.rounds).to_string(float_format="{:.4g}".format))
    return 0


BENCHES = {
    "speed": bench_speed,
    "deviation": bench_deviation,
    "trace": bench_trace,
    "glitches": bench_glitches,
}


def notebook(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from workbench.show.report.notebook import notebook_path, run_notebook

    path = notebook_path(args.name)
    out = run_notebook(path, options_of(args.parameter), args.out or f"output/{path.stem}.html")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


def options_of(pairs: Sequence[str]) -> dict[str, object]:
    """Read NAME=VALUE pairs; values are JSON where they parse as such, text otherwise."""
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise WorkbenchError(f"{pair!r} is no NAME=VALUE, such as n_timesteps=1")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def inspect(args: argparse.Namespace) -> int:
    """Print a folder's tensors and each file's totals."""
    from workbench.speech.checkpoint.inspect import inspect_folder

    frame = inspect_folder(args.folder, args.prefix)
    tensors = frame[frame["key"] != ""]
    print(tensors.drop(columns="note").to_string(index=False) if len(tensors) else "no tensors")
    print()
    for name, sha256 in frame.attrs["sha256"].items():
        rows = tensors[tensors["file"] == name]
        counts = f"{rows['nan'].sum()} NaN, {rows['inf'].sum()} Inf"
        print(f"{name}: {len(rows)} tensors, {rows['MB'].sum():.1f} MB, {counts}, sha256 {sha256[:16]}")
    for note in frame[frame["key"] == ""]["note"]:
        print(f"unreadable: {note}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write one file and tell its inputs and output."""
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.onnx_estimator import export_onnx, shapes

    voice = Checkpoint.load(args.voice)
    path = export_onnx(voice, args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, float32")
    for name, shape in shapes(voice.config.flow.dit).items():
        print(f"{name}: ({', '.join(map(str, shape))})")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it went well, 2 after an error that the person can act on."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
