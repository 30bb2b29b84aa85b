"""The training corpus: Opus shards -> one long int16 array, and log-mels of every utterance.

`python -m workbench.train.corpus.corpus SHARD_DIR DATA_DIR` decodes `manifest.tsv` and all `opus_*.tar` of
SHARD_DIR; `Corpus(DATA_DIR)` reads the result back.
"""

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.train.corpus.table import read_rows, write_rows
from workbench.train.gpu_features import (
    SAMPLE_RATE,
    Features,
    extract,
    kaldi_fbanks,
    log_mels,
    whisper_log_mels,
)

FIELDS = ("id", "speaker", "text", "start", "length")
N_VALID = 60
_CHUNK = 4_000_000  # samples turned into features at once

# espeak-ng writes one sound in several letters; stress and length are left to the mel.
_PHONES = {
    "r": "ɹ",
    "x": "k",
    "aɪ": "I",
    "aʊ": "W",
    "dʒ": "ʤ",
    "eɪ": "A",
    "tʃ": "ʧ",
    "ɔɪ": "Y",
    "oʊ": "O",
    "ɜː": "ɜ",
    "ɚ": "əɹ",
}
_SILENT = {ord(mark): None for mark in "ˈˌː\u0361\u0329\u0303ʲ- \n"}


class Corpus:
    """A decoded corpus: waveforms memory-mapped, texts, speakers, cached features.

    Parameters
    ----------
    root : Path
        What `build` wrote.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not (self.root / "index.tsv").is_file():
            raise WorkbenchError(
                f"no index.tsv in {self.root}; run `python -m workbench.train.corpus.corpus` first"
            )
        rows = read_rows(self.root / "index.tsv")
        self.ids, self.speakers, self.texts = ([row[key] for row in rows] for key in FIELDS[:3])
        self.starts = np.array([int(row["start"]) for row in rows], dtype=np.int64)
        self.lengths = np.array([int(row["length"]) for row in rows], dtype=np.int64)
        self.samples = np.load(self.root / "wav24.npy", mmap_mode="r")
        self.speaker_names = sorted(set(self.speakers))
        self.speaker_ids = torch.tensor([self.speaker_names.index(name) for name in self.speakers])
        by_hash = sorted(range(len(self)), key=lambda i: hashlib.sha1(self.ids[i].encode()).hexdigest())
        n_valid = min(N_VALID, len(self) // 10)
        self.train = torch.tensor(sorted(by_hash[: len(self) - n_valid]), dtype=torch.int64)
        self.valid = torch.tensor(sorted(by_hash[len(self) - n_valid :]), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def wav(self, index: int) -> np.ndarray:
        """Return one utterance, float32 in [-1, 1) at 24 kHz."""
        start, length = self.starts[index], self.lengths[index]
        return self.samples[start : start + length].astype(np.float32) / 32768

    def phones(self) -> list[str]:
        """Return the phonemes of every utterance, one letter a sound."""
        path = self.root / "phones.tsv"
        if not path.is_file():
            raise WorkbenchError(f"no phones.tsv in {self.root}; install espeak-ng and rebuild the corpus")
        phones = {row["id"]: row["phones"] for row in read_rows(path)}
        return [phones[name] for name in self.ids]

    def mels(self, device: str | torch.device = "cpu") -> Features:
        """Return the 80-bin natural-log mel at 50 Hz that flow and vocoder speak (`mel.pt`)."""
        return self._cached("mel.pt", log_mels, device, 80)

    def whisper_mels(self, device: str | torch.device = "cpu") -> Features:
        """Return the 128-bin log-mel at 100 Hz that the speech tokenizer hears (`whisper.pt`)."""
        return self._cached("whisper.pt", whisper_log_mels, device, 128)

    def fbanks(self, device: str | torch.device = "cpu") -> Features:
        """Return the 80-bin Kaldi filter bank at 100 Hz, mean not removed (`fbank.pt`)."""
        return self._cached("fbank.pt", kaldi_fbanks, device, 80)

    def _cached(self, name: str, transform: Callable, device: str | torch.device, bins: int) -> Features:
        path = self.root / name
        if not path.is_file():
            extract(self._chunks(), transform, device, bins).save(path)
        return Features.load(path, device)

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield whole utterances, about `_CHUNK` samples at a time, with their lengths."""
        first = 0
        while first < len(self):
            last = first + 1
            while last < len(self) and self.lengths[first : last + 1].sum() < _CHUNK:
                last += 1
            end = self.starts[last - 1] + self.lengths[last - 1]
            yield self.samples[self.starts[first] : end], self.lengths[first:last]
            first = last


def phonemise(texts: list[str]) -> list[str]:
    """Turn English sentences into phonemes, one letter a sound, without stress or spaces (espeak-ng)."""
    if shutil.which("espeak-ng") is None:
        raise WorkbenchError("espeak-ng is not installed; install it, or give phones.tsv beside the shards")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_phonemise, texts))


def _phonemise(text: str) -> str:
    command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", "--", text]
    ipa = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return fold_ipa(ipa)


def fold_ipa(ipa: str) -> str:
    """Write espeak-ng's IPA with one letter a sound, without stress, length and spaces."""
    for many, one in _PHONES.items():
        ipa = ipa.replace(many, one)
    return ipa.translate(_SILENT)


def build(shards: str | Path, out: str | Path, workers: int | None = None) -> Corpus:
    """Decode a directory of Opus shards.

    Parameters
    ----------
    shards : Path
        `manifest.tsv` (id, speaker, text, ...) and any number of `opus_*.tar`. Utterances whose
        shard is absent are left out.
    out : Path
        Receives `wav24.npy`, `index.tsv` and, given or made with espeak-ng, `phones.tsv`.
    workers : int, optional
        Processes that decode; 0 decodes in this one.
    """
    shards, out = Path(shards), Path(out)
    rows = {row["id"]: row for row in read_rows(shards / "manifest.tsv")}
    encoded = {}
    for shard in sorted(shards.glob("opus_*.tar")):
        with tarfile.open(shard) as tar:
            encoded |= {Path(m.name).stem: tar.extractfile(m).read() for m in tar if m.isfile()}
    names = sorted(rows.keys() & encoded.keys())
    if not names:
        raise WorkbenchError(f"no utterance of manifest.tsv in the opus_*.tar of {shards}")
    out.mkdir(parents=True, exist_ok=True)
    inputs = [encoded[name] for name in names]
    if workers == 0:
        wavs = [_decode(data) for data in inputs]
    else:
        with ProcessPoolExecutor(workers) as pool:
            wavs = list(pool.map(_decode, inputs, chunksize=64))
    lengths = [len(wav) for wav in wavs]
    np.save(out / "wav24.npy", np.concatenate(wavs))
    spans = zip(names, lengths, np.cumsum(lengths), strict=True)
    index = ((n, rows[n]["speaker"], rows[n]["text"], end - length, length) for n, length, end in spans)
    write_rows(out / "index.tsv", FIELDS, index)
    if (shards / "phones.tsv").is_file():
        shutil.copyfile(shards / "phones.tsv", out / "phones.tsv")
    elif shutil.which("espeak-ng"):
        phones = phonemise([rows[name]["text"] for name in names])
        write_rows(out / "phones.tsv", ("id", "phones"), zip(names, phones, strict=True))
    return Corpus(out)


def _decode(data: bytes) -> np.ndarray:
    import soundfile

    wav, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
    if rate != SAMPLE_RATE:
        raise WorkbenchError(f"an utterance is at {rate} Hz; expected {SAMPLE_RATE} Hz")
    return wav[:, 0]


def main() -> None:
    """Decode the shards, then compute every feature."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    corpus = build(args.shards, args.out, args.workers)
    print(f"{len(corpus)} utterances, {corpus.lengths.sum() / SAMPLE_RATE / 3600:.2f} h", flush=True)
    for make in (corpus.mels, corpus.whisper_mels, corpus.fbanks):
        print(make.__name__, tuple(make(args.device).data.shape), flush=True)


if __name__ == "__main__":
    main()
