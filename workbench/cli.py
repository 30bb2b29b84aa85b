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
    verb.add_argument("--names", help="table of what logs call tensors (default: data/foreign/logs.toml)")
    verb.add_argument("--voice", help="checkpoint folder both ran: decides rounding and finds the cause")
    verb.add_argument("--device", default="cpu")
    verb.add_argument(
        "--fail-on",
        choices=("rounding", "missing", "diverged", "never"),
        default="diverged",
        help="exit with 1 from this verdict on (default: diverged)",
    )
    verb.set_defaults(run=compare)

    verb = verbs.add_parser("export-onnx", help="write the flow's estimator as ONNX, with upstream's names")
    verb.add_argument("out", help="file; as flow.decoder.estimator.fp32.onnx in --voice it is found there")
    verb.add_argument("--voice", default="data/voices/tiny", help="checkpoint folder")
    verb.set_defaults(run=export)

    return top


def speak(args: argparse.Namespace) -> int:
    """Speak every text, write one file a segment, print one row a file."""
    import pandas as pd

    from workbench.diagnose.measure import wave_stats
    from workbench.speech.audio import write_wav
    from workbench.speech.checkpoint import Checkpoint
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
    from workbench.diagnose.compare import VERDICTS
    from workbench.diagnose.compare import compare as put_side_by_side
    from workbench.speech.checkpoint import Checkpoint
    from workbench.speech.pipeline import Pipeline
    from workbench.trace.loglines import NAMES
    from workbench.trace.logs import open_run

    names = args.names or NAMES
    reference, candidate = open_run(args.reference, names), open_run(args.candidate, names)
    pipe = Pipeline(Checkpoint.load(args.voice), args.device) if args.voice else None
    found = put_side_by_side(reference, candidate, pipe)
    print(found)
    for note in (*found.guards, *found.hints, *(f"adds an error: {cause}" for cause in found.causes or ())):
        print(f"- {note}")
    rows = found.rows[found.rows["verdict"] != "MATCH"]
    columns = ["field", "index", "verdict", "rel_l2", "allowed", "added", "cosine", "norm_ratio", "note"]
    if len(rows):
        print(rows[columns].to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    if args.fail_on == "never":
        return 0
    return int(VERDICTS.index(found.verdict) >= VERDICTS.index(args.fail_on.upper()) or bool(found.causes))


def options_of(pairs: Sequence[str]) -> dict[str, object]:
    """Read NAME=VALUE pairs; values are JSON where they parse as such, text otherwise."""
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise WorkbenchError(f"--option is {pair!r}; expected NAME=VALUE, such as n_timesteps=1")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def inspect(args: argparse.Namespace) -> int:
    """Print a folder's tensors and each file's totals."""
    from workbench.speech.inspection import inspect_folder

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
    from workbench.speech.checkpoint import Checkpoint
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


if __name__ == "__main__":
    sys.exit(main())
