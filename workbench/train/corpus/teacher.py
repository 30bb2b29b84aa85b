"""Speech for the training corpus, read by Kokoro-82M (`kokoro.py`) from public packages alone.

`python -m workbench.train.corpus.teacher SENTENCES.txt OUT_DIR --workers N` writes
`OUT_DIR/phonemes.tsv` (needs espeak-ng), then `OUT_DIR/wav/<speaker>/<id>.opus`, one file an utterance; run
again, it goes on where it stopped. `--phonemes` stops after the table, and the table may take the place of
SENTENCES.txt: speaking needs nothing but it, onnxruntime, soundfile and `--model DIR`. `--pack DIR` writes
what is there as the shards that `workbench.train.corpus.corpus` reads.
"""

import argparse
import io
import os
import random
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.train.corpus.kokoro import SAMPLE_RATE, SPEAKERS, Kokoro, assemble, encode, phonemes
from workbench.train.corpus.table import read_rows, write_rows

SHARD_BYTES = 14_800_000
SLOWEST, FASTEST = 0.92, 1.08
MAIN_SPEAKERS = ("kumo", "gongitsune", "alpha", "kumo_alpha")
FIELDS = ("id", "speaker", "text", "speed", "phonemes", "phones")
MANIFEST = ("id", "speaker", "text", "seconds", "wer", "shard")
_teacher: Kokoro | None = None


def write_table(
    path: Path, texts: list[str], speakers: tuple[str, ...], seed: int = 0, chunk: int = 500
) -> None:
    """Deal sentences to speakers in a shuffled order, with their phonemes.

    Any beginning of the table holds every speaker equally often.

    Parameters
    ----------
    path : Path
        Receives the columns of `FIELDS`; `phones` is what `workbench.train.corpus.corpus` keeps of a
        pronunciation.
    texts : list of str
    speakers : tuple of str
    seed : int, optional
        Order and speeds follow from it.
    chunk : int, optional
        Sentences that share one espeak-ng call.
    """
    from workbench.train.corpus.corpus import fold_ipa  # needs torch; speaking does not

    texts = random.Random(seed).sample(texts, len(texts))
    rows = []
    for first in range(0, len(texts), chunk):
        part = texts[first : first + chunk]
        for text, (spelt, ipa) in zip(part, phonemes(part), strict=True):
            speaker = speakers[len(rows) % len(speakers)]
            name = f"{speaker}_x{len(rows):06d}"
            speed = random.Random(f"{seed} {name}").uniform(SLOWEST, FASTEST)
            rows.append((name, speaker, text, f"{speed:.3f}", spelt, fold_ipa(ipa)))
    write_rows(path, FIELDS, rows)


def speak(
    rows: list[dict[str, str]],
    out: Path,
    model: Path,
    workers: int = 1,
    hours: float = float("inf"),
    minutes: float = float("inf"),
) -> float:
    """Read aloud what has no file yet.

    Parameters
    ----------
    rows : list of dict
        Rows of the table.
    out : Path
        Receives `wav/<speaker>/<id>.opus`, each whole or absent.
    model : Path
        See `workbench.train.corpus.kokoro.Kokoro`.
    workers : int, optional
        Processes of one thread each.
    hours : float, optional
        Stop after so much new speech.
    minutes : float, optional
        Stop after so long.

    Returns
    -------
    float
        Seconds of speech made.
    """
    todo = [(row, path) for row in rows if not (path := _path(out, row)).is_file()]
    begin, seconds = time.monotonic(), 0.0
    with ProcessPoolExecutor(workers, initializer=_load, initargs=(model,)) as pool:
        for count, made in enumerate(pool.map(_speak, todo), 1):
            seconds += made
            passed = time.monotonic() - begin
            stop = seconds >= hours * 3600 or passed >= minutes * 60
            if count % 100 == 0 or stop or count == len(todo):
                print(f"{count}/{len(todo)} {seconds / 3600:.3f} h in {passed / 3600:.3f} h", flush=True)
            if stop:
                pool.shutdown(cancel_futures=True)
                break
    return seconds


def _load(model: Path) -> None:
    global _teacher
    _teacher = Kokoro(model)


def _speak(job: tuple[dict[str, str], Path]) -> float:
    row, path = job
    wav = _teacher(row["speaker"], row["phonemes"], float(row["speed"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_bytes(encode(wav))
    os.replace(partial, path)
    return len(wav) / SAMPLE_RATE


def _path(out: Path, row: dict[str, str]) -> Path:
    return out / "wav" / row["speaker"] / f"{row['id']}.opus"


def pack(rows: list[dict[str, str]], out: Path, shards: Path, first: int = 0) -> float:
    """Write the utterances that are there as tar shards with `manifest.tsv` and `phones.tsv`.

    Parameters
    ----------
    rows : list of dict
        Rows of the table.
    out : Path
        Holds `wav/<speaker>/<id>.opus`.
    shards : Path
        Receives `opus_NN.tar`, each under 15 MB, and the two tables; `wer` stays empty.
    first : int, optional
        Number of the first shard, to lie beside other shards.

    Returns
    -------
    float
        Hours of speech packed.
    """
    import soundfile

    rows = [row for row in rows if _path(out, row).is_file()]
    if not rows:
        raise WorkbenchError(f"no utterance of the table under {out / 'wav'}; let it speak first")
    shards.mkdir(parents=True, exist_ok=True)
    groups, room = [], 0
    for row in rows:
        size = 512 + -(-_path(out, row).stat().st_size // 512) * 512
        if size > room:
            groups.append([])
            room = SHARD_BYTES - tarfile.RECORDSIZE
        groups[-1].append(row)
        room -= size
    manifest, total = [], 0.0
    for number, group in enumerate(groups, first):
        with tarfile.open(shards / f"opus_{number:02d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in group:
                data = _path(out, row).read_bytes()
                info = tarfile.TarInfo(f"{row['speaker']}/{row['id']}.opus")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                seconds = soundfile.info(io.BytesIO(data)).frames / SAMPLE_RATE
                total += seconds
                manifest.append(
                    (row["id"], row["speaker"], row["text"], f"{seconds:.3f}", "", f"{number:02d}")
                )
    write_rows(shards / "manifest.tsv", MANIFEST, manifest)
    write_rows(shards / "phones.tsv", ("id", "phones"), [(row["id"], row["phones"]) for row in rows])
    return total / 3600


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table written by `write_table`."""
    if not path.is_file():
        raise WorkbenchError(f"no {path.name} in {path.parent}; write it with --phonemes where espeak-ng is")
    rows = read_rows(path)
    if rows and set(FIELDS) - rows[0].keys():
        raise WorkbenchError(f"{path} has the columns {', '.join(rows[0])}; expected {', '.join(FIELDS)}")
    return rows


def main() -> None:
    """Write the table, read it aloud, or pack what was read."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path, help="sentences, one a line, or a phonemes.tsv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--phonemes", action="store_true", help="stop after OUT/phonemes.tsv")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="only pack OUT/wav into DIR")
    parser.add_argument("--first-shard", type=int, default=0)
    parser.add_argument("--speakers", nargs="+", choices=SPEAKERS, default=MAIN_SPEAKERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", default=":", help="FIRST:LAST, a part of the table")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hours", type=float, default=float("inf"), help="of new speech")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of work")
    parser.add_argument("--model", type=Path, help="model.onnx, voices.npz, vocab.json; else the packages'")
    args = parser.parse_args()
    table = args.source if args.source.suffix == ".tsv" else args.out / "phonemes.tsv"
    if not table.is_file() or args.phonemes:
        if not args.source.is_file():
            raise WorkbenchError(
                f"no {args.source}; write sentences with `python -m workbench.train.corpus.sentences`"
            )
        texts = [
            line.strip() for line in args.source.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        write_table(table, texts, tuple(args.speakers), args.seed)
    begin, end = (int(part) if part else None for part in args.rows.split(":"))
    rows = read_table(table)[begin:end]
    if args.pack:
        print(f"{pack(rows, args.out, args.pack, args.first_shard):.2f} h in {args.pack}")
    elif not args.phonemes:
        model = args.model or args.out / "model"
        if not args.model and not (model / "model.onnx").is_file():
            assemble(model)
        speak(rows, args.out, model, args.workers, args.hours, args.minutes)


if __name__ == "__main__":
    main()
