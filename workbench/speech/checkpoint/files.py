"""The files of a checkpoint folder: their names, how to find them, and how to replace a whole folder."""

import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.files import atomic_write, check_name, check_regular, remove_stale
from workbench.speech.checkpoint.config_yaml import YAML
from workbench.speech.checkpoint.weights import read_weights

STEMS = {"lm": "llm", "flow": "flow", "hift": "hift"}  # file names of the weights, without suffix
RL = "llm.rl"  # the LM after reinforcement learning
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf")
PART = re.compile(r"-(\d+)-of-(\d+)$")  # of a file that was saved in several
DEEPSPEED = "mp_rank_00_model_states.pt"
QWEN = "CosyVoice-BlankEN"  # folder of the LM's sizes and of the text tokenizer
CAMPPLUS = "campplus.onnx"  # speaker encoder
TOKENIZER = "speech_tokenizer_v3.onnx"
NOISE = "noise.safetensors"
SPK2INFO = "spk2info.pt"  # ready-made speakers
ESTIMATOR = "flow.decoder.estimator.fp32.onnx"
NO_WEIGHTS = ("noise", "spk2info")  # of a stage
LAYOUT = f"{YAML}, llm.pt, flow.pt, hift.pt (or .safetensors), {QWEN}/config.json"
MAX_JSON = 1_000_000  # bytes of a config.json


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """Return the weight files of a folder by name without suffix; a file in several parts is one entry.

    Of files that differ in their suffix alone the first of `SUFFIXES` is taken. DeepSpeed saves a folder for
    each model; of `llm/` the file with the weights is taken.
    """
    found: dict[str, list[Path]] = {}
    for suffix in SUFFIXES:
        parts: dict[str, list[Path]] = {}
        for path in sorted(folder.glob(f"*{suffix}")):
            stem = PART.sub("", path.stem)
            if path.is_file() and stem not in NO_WEIGHTS:
                parts.setdefault(stem, []).append(path)
        found = parts | found
    for stem in STEMS.values():
        path = folder / stem / DEEPSPEED
        if stem not in found and path.is_file():
            found[stem] = [path]
    return found


def check_parts(paths: list[Path]) -> None:
    """Raise a WorkbenchError when a file that was saved in several parts lacks some of them."""
    found = PART.search(paths[0].stem)
    total = int(found.group(2)[:6]) if found else 1
    if len(paths) != total:
        raise WorkbenchError(
            f"{paths[0].name} is one of {total} parts, and {len(paths)} are there; copy the others beside it"
        )


def qwen_folder(folder: Path) -> Path:
    """Return the folder with the LM's config.json and the text tokenizer, also under another name."""
    if (folder / QWEN / "config.json").is_file():
        return folder / QWEN
    for path in sorted(folder.iterdir()):
        if (path / "config.json").is_file() and has_tokenizer(path):
            return path
    raise WorkbenchError(f"{folder} has no {QWEN}/config.json nor another Qwen2 folder; expected {LAYOUT}")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a text tokenizer, in one of the two forms."""
    return any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))


def read_json(path: Path) -> dict[str, Any]:
    """Read Qwen2's `config.json`."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ValueError("larger than 1 MB")
        found = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"{path} cannot be read as JSON ({first_line(error)}); expected Qwen2's config"
        ) from error
    if not isinstance(found, dict):
        raise WorkbenchError(f"{path} holds a {type(found).__name__}; expected Qwen2's config, an object")
    return found


def read_speakers(path: Path) -> dict[str, Any]:
    """Read ready-made speakers, `spk2info.pt`: by name a dict of tensors, or an embedding alone."""
    found = read_weights(path)
    for name, parts in found.items():
        if not isinstance(name, str) or not isinstance(parts, dict | Tensor):
            raise WorkbenchError(
                f"{path}: speaker {name!r} is a {type(parts).__name__}; expected names with dicts of tensors"
            )
    return found


def write_speakers(speakers: dict[str, Any], path: Path) -> None:
    """Write ready-made speakers as upstream's `save_spkinfo` does, in full or not at all."""
    with atomic_write(path) as draft:
        torch.save(speakers, draft)


@contextmanager
def replace_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a draft folder, which replaces `folder` when the block ends and is removed after an error.

    Raises
    ------
    WorkbenchError
        When `folder` is not empty and may not be overwritten, or cannot be written.
    """
    if os.path.isfile(folder) or (os.path.isdir(folder) and any(folder.iterdir())):
        if not overwrite:
            raise WorkbenchError(
                f"{folder} is not empty; pass overwrite=True, in the shell --force, or choose another folder"
            )
        if not (folder / YAML).is_file():
            raise WorkbenchError(
                f"{folder} has no {YAML}, so it is no checkpoint to overwrite; choose another folder"
            )
    check_name(folder)
    unique = uuid.uuid4().hex
    draft = folder.with_name(f".{folder.name}.draft-{unique}")
    old = folder.with_name(f".{folder.name}.old-{unique}")
    try:
        draft.mkdir(parents=True)
        # Of a run that was killed between the two steps below, `.old-` is the only copy.
        kinds = ("draft", "old") if os.path.isdir(folder) else ("draft",)
        for kind in kinds:
            remove_stale(folder.parent, f".{glob.escape(folder.name)}.{kind}-*")
        yield draft
        # A folder that is not empty cannot be replaced in one step: move the old one away first.
        if folder.is_dir():
            os.replace(folder, old)
        os.replace(draft, folder)
    except OSError as error:
        if os.path.isdir(old) and not os.path.exists(folder):
            os.replace(old, folder)
        raise WorkbenchError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
