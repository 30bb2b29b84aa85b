"""Measure a voice on sentences it was not trained on.

`python -m workbench.train.evaluate VOICE_DIR HELDOUT_DIR OUT_DIR --judge "python judge.py"`

HELDOUT_DIR holds `heldout.tsv` (id, speaker, text), `teachers/<id>.flac`, `prompts/<speaker>_0.flac`,
`prompts.tsv` and `teachers.npz` (speaker centroids). Three sets of audio are made, from text, from the
teacher's speech tokens and from the teacher's mel; the judge prints one JSON line for each. Everything
lands in `OUT_DIR/figures.json`.
"""

import argparse
import json
import shlex
import subprocess
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import Options
from workbench.speech.frontend.audio import log_mel, write_wav
from workbench.speech.frontend.audio_files import read_wav
from workbench.speech.pipeline import Pipeline
from workbench.train.corpus.table import read_rows

SETS = ("text", "copy", "vocoder")
COMMAND = 'python -m workbench.train.evaluate VOICE_DIR HELDOUT_DIR OUT_DIR --judge "python judge.py"'


def render(pipe: Pipeline, heldout: Path, out: Path, which: str, options: Options, limit: int | None) -> dict:
    """Write one set of audio and return what was counted on the way."""
    prompts = {}
    texts = {row["id"]: row["text"] for row in read_rows(heldout / "prompts.tsv")}
    count = {
        "compute_s": 0.0,
        "audio_s": 0.0,
        "non_finite": 0,
        "clamped": 0,
        "samples": 0,
        "at_limit": 0,
        "failed": 0,
    }
    for row in tqdm(read_rows(heldout / "heldout.tsv")[:limit], which):
        name = f"{row['speaker']}_0"
        teacher = heldout / "teachers" / f"{row['id']}.flac"
        if name not in prompts:
            prompts[name] = pipe.prompt(heldout / "prompts" / f"{name}.flac", texts[name])
        start = time.perf_counter()
        if which == "vocoder":
            wav, _ = read_wav(teacher, pipe.config.mel.sample_rate)
            wav = pipe.vocode(log_mel(wav, pipe.config.mel), options).wav[0]
        else:
            if which == "text":
                utt = pipe.prepare(row["text"], prompts[name])
            else:
                utt = pipe.convert(teacher, prompts[name])
            try:
                trace = pipe.synthesise(utt, options=options)
            except WorkbenchError as error:  # the judge then has nothing to hear: it counts as failed
                print(row["id"], error, flush=True)
                count["failed"] += 1
                continue
            wav = trace.wav
            limit_tokens = int(pipe.config.lm.max_token_text_ratio * len(utt.text_token))
            count["at_limit"] += which == "text" and len(trace["lm/speech_token"]) >= limit_tokens
        count["compute_s"] += time.perf_counter() - start
        count["audio_s"] += len(wav) / pipe.config.mel.sample_rate
        count["non_finite"] += int((~wav.isfinite()).sum())
        count["clamped"] += int((wav.abs() >= pipe.config.hift.audio_limit).sum())
        count["samples"] += len(wav)
        write_wav(out / which / f"{row['id']}.wav", wav, pipe.config.mel.sample_rate)
    return count | {"rtf": round(count["compute_s"] / count["audio_s"], 3)}


def judge(command: str, out: Path, heldout: Path, which: str) -> dict:
    """Run the judge on one set and return its JSON line."""
    call = [*shlex.split(command), out / which, heldout / "heldout.tsv"]
    call += ["--centroids", heldout / "teachers.npz", "--out", out / f"{which}.tsv"]
    result = subprocess.run(list(map(str, call)), check=True, capture_output=True, text=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def main() -> None:
    """Parse the command line, render, judge and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voice", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge", help="command that scores a folder; none: only render")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="Options field")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    voice = Checkpoint.load(args.voice)
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.option)}
    pipe = Pipeline(voice, args.device, progress=False)
    figures = {"voice": args.voice.name, "content_hash": voice.content_hash, "options": changes}
    figures["command"] = f"{COMMAND} --sets {' '.join(args.sets)} --threads {args.threads}"
    for which in args.sets:
        figures[which] = render(pipe, args.heldout, args.out, which, voice.options.but(**changes), args.limit)
        if args.judge:
            figures[which] |= judge(args.judge, args.out, args.heldout, which)
        print(which, json.dumps(figures[which]), flush=True)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
