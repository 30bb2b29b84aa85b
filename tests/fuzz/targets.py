"""What hostile input is given to. A target makes one input from chance and hands it to the workbench."""

import json
import shutil
import warnings
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import soundfile
import torch

import workbench as wb
from tests.fuzz.binary_targets import gguf_dump, onnx_model, weight_file
from tests.fuzz.mutations import (
    ODD_VALUES,
    Tools,
    damaged,
    dump_bytes,
    odd_run,
    odd_tensors,
    odd_text,
    odd_values,
)
from tests.paths import ROOT
from workbench.cli.common import options_of
from workbench.diagnose.experiments.row_cache import RowCache
from workbench.show.report.notebook import run_notebook
from workbench.speech.checkpoint import hyperyaml
from workbench.speech.checkpoint.config_yaml import config_from_yaml, options_from_yaml
from workbench.speech.frontend.audio_files import read_samples
from workbench.speech.frontend.text.reading import read_text
from workbench.speech.frontend.text.tokenizer import TextTokenizer
from workbench.trace.attributes import ATTRS

VOICE = ROOT / "data" / "voices" / "tiny"
LLM_FOLDER = VOICE / "CosyVoice-BlankEN"
VOICE_YAML = (VOICE / "cosyvoice3.yaml").read_text()
MAPPING = (ROOT / "data" / "foreign" / "steps.toml").read_text()
LOG_NAMES = (ROOT / "workbench" / "trace" / "importers" / "logs" / "logs.toml").read_text()
WEIGHTS = '"lm.*" = "q4_k"\nflow.decoder = "int8:channel,full"\n"*.conv_pre" = "mlx4:group=32"\n'
LOG_WORDS = (
    *(
        "x",
        "mel",
        "f0",
        "velocity",
        "min",
        "max",
        "mean",
        "std",
        "range",
        "step",
        "tokens",
        "PY",
        "mel_len1=nan",
    ),
    *("=", ":", "[", "]", "(", ")", "|", "..", "\t", "\n", "\n", "{", "}", '"', "tensor(", "shape=(1,80)"),
    *("3", "-4.1", "5,817,890", "nan", "1.#INF", "-Infinity", "\u22121", "1e999", "0" * 400, "e", "…"),
)
DUMP_NAMES = [*(f"step{k}_{part}" for k in (1, 2) for part in ("x", "v1")), "noise", "mel", "wav", "flow.mel"]


def yaml(rng: Random, tools: Tools) -> None:
    path = tools.folder / "cosyvoice3.yaml"
    change = rng.choice((odd_values, odd_values, odd_text))
    path.write_text(change(VOICE_YAML, rng), encoding="utf-8", errors="replace")
    tree = hyperyaml.read(path)
    config_from_yaml(tree, json.loads((LLM_FOLDER / "config.json").read_text()))
    options_from_yaml(tree)


def tokenizer(rng: Random, tools: Tools) -> None:
    shutil.copytree(LLM_FOLDER, tools.folder / "llm")
    path = tools.folder / "llm" / rng.choice(("vocab.json", "merges.txt", "tokenizer_config.json"))
    path.write_bytes(damaged(path.read_bytes(), rng))
    TextTokenizer.load(tools.folder / "llm").encode("Hello [breath] world.")


def dump(rng: Random, tools: Tools) -> None:
    kind = rng.choice(("safetensors", "npz", "npy", "pt", "json", "f32"))
    path = tools.folder / f"mel_80x5.{kind}"
    data = dump_bytes(kind, odd_tensors(DUMP_NAMES, rng))
    path.write_bytes(damaged(data, rng) if rng.random() < 0.7 else data)
    if rng.random() < 0.3:
        wb.propose_mapping(path)
    else:
        wb.open(path).to_frame()


def folder_of_dumps(rng: Random, tools: Tools) -> None:
    folder = tools.folder / "dumps"
    folder.mkdir()
    for number in range(rng.randrange(4)):
        kind = rng.choice(("npy", "f32", "safetensors"))
        (folder / f"x{number}.{kind}").write_bytes(dump_bytes(kind, odd_tensors(["x"], rng)))
    if rng.random() < 0.5:
        (folder / "x9.f32").symlink_to(rng.choice(("x9.f32", "nothing", ".")))
    wb.open(folder).to_frame()


def mapping(rng: Random, tools: Tools) -> None:
    rules, path = tools.folder / "rules.toml", tools.folder / "dump.safetensors"
    rules.write_text(
        rng.choice((odd_values, odd_values, odd_text))(MAPPING, rng), encoding="utf-8", errors="replace"
    )
    path.write_bytes(dump_bytes("safetensors", odd_tensors(DUMP_NAMES, rng)))
    wb.open(path, rules).to_frame()


def log(rng: Random, tools: Tools) -> None:
    path, names = tools.folder / "server.log", None
    words = [rng.choice(LOG_WORDS) * rng.choice((1, 1, 1, 1, 1000)) for _ in range(rng.randrange(1, 200))]
    path.write_text(" ".join(words), encoding="utf-8")
    if rng.random() < 0.2:
        names = tools.folder / "names.toml"
        names.write_text(
            rng.choice((odd_values, odd_text))(LOG_NAMES, rng), encoding="utf-8", errors="replace"
        )
    for run in wb.read_log(path, **({} if names is None else {"names": names})).runs:
        run.to_frame()
        wb.compare(tools.recorded, run)


def audio(rng: Random, tools: Tools) -> None:
    path = tools.folder / rng.choice(("sound.wav", "sound.flac", "sound.ogg", "sound.pcm"))
    if path.suffix == ".pcm":
        path.write_bytes(rng.randbytes(rng.randrange(50_000)))
    else:
        wave = tools.recorded["hift/wav"].numpy()
        soundfile.write(path, wave, rng.choice((8_000, 24_000, 44_100)))
        path.write_bytes(damaged(path.read_bytes(), rng))
    read_samples(path, headerless_rate=24_000) if path.suffix == ".pcm" else read_samples(path)
    wb.check_prompt(path, "He decided to go.")


def array(rng: Random, tools: Tools) -> None:
    wave = tools.recorded["hift/wav"].repeat(rng.randrange(1, 4))
    shape = rng.choice(((-1,), (-1,), (-1, 1), (1, -1), (2, -1), (-1, 2), (2, 2, -1)))
    x = wave[: len(wave) // 4 * 4].reshape(shape) * rng.choice((1, 1, 1, 40, 30_000, 0, float("nan")))
    x = x.to(rng.choice((torch.float32, torch.float64, torch.float16, torch.int16, torch.int32, torch.uint8)))
    rate = rng.choice((24_000, 24_000.0, 16_000, rng.choice(ODD_VALUES)))
    wb.check_prompt((x.numpy() if rng.random() < 0.5 else x, rate), "He decided to go.")


def text(rng: Random, tools: Tools) -> None:
    chars = [
        chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x10FFFF)))) for _ in range(rng.randrange(60))
    ]
    typed = rng.choice((odd_text("Call 1.5 at 3:30, No. 7 [breath] ℃ 5㎏.", rng), "".join(chars)))
    frontend = rng.choice(("workbench", "upstream", "off"))
    read_text(typed, tools.pipe.frontend.tokenizer, frontend)


def options(rng: Random, tools: Tools) -> None:
    names = list(wb.Options.__dataclass_fields__)
    name = rng.choice(names)
    value = rng.choice((*ODD_VALUES, "[" * 5000, "1" * 5000))
    given = options_of([f"{name}={value}"]) if rng.random() < 0.5 else {name: value}
    tools.pipe.checkpoint.options.but(**given)


def formats_of_weights(rng: Random, tools: Tools) -> None:
    """A file with formats of weights, or one format, that is damaged."""
    path = tools.folder / "map.toml"
    if rng.random() < 0.3:
        wb.quantise(torch.ones(4, 64), damaged(b"int4:group=64,asymmetric", rng).decode(errors="replace"))
    content = rng.choice((odd_values, odd_text))(WEIGHTS, rng).encode(errors="replace")
    path.write_bytes(damaged(content, rng) if rng.random() < 0.5 else content)
    wb.layers(tools.pipe.checkpoint, path)


def trace_file(rng: Random, tools: Tools) -> None:
    path = tools.folder / "run.trace"
    few = {name: x for name, x in tools.recorded.data.items() if rng.random() < 0.2}
    wb.Trace(few, tools.recorded.attrs).save(path)
    path.write_bytes(damaged(path.read_bytes(), rng))
    wb.Trace.load(path).to_frame()


def odd_trace(rng: Random, tools: Tools) -> None:
    """A run with odd fields and attributes: save it, then compare, find glitches, play or replay it."""
    attrs = dict(tools.recorded.attrs)
    for name in ATTRS:  # all that other code relies on
        if rng.random() < 0.04:
            attrs[name] = rng.choice(ODD_VALUES)
    path = tools.folder / "odd.trace"
    try:
        wb.Trace(odd_run(tools.recorded.data, rng), attrs).save(path)
    except wb.WorkbenchError:
        assert not any(tools.folder.iterdir()), "half a file is left"
        raise
    run = wb.Trace.load(path)
    action = rng.randrange(10)
    if action == 0:
        wb.compare(tools.recorded, run).to_dict()
    elif action == 1:
        wb.find_glitches(run)
    elif action == 2:
        run.to_frame()
    elif action == 3:
        wb.find_suspects(tools.recorded, run, tools.pipe, catalogue=(), kinds=())
    elif action == 4:
        tools.pipe.replay(run, rng.choice(("flow", "hift")))
    else:
        wb.player(run).static()


def cached_row(rng: Random, tools: Tools) -> None:
    """A damaged row of an experiment is missing, or has a number for every metric."""
    metrics = dict.fromkeys(("peak", "rms"))
    path = tools.folder / "key.row.json"
    good = rng.choice(
        (b'{"peak": 0.5, "rms": 0.1}', b"[" * 100_000, b'{"peak": 1' + b"0" * 5000 + b', "rms": 0}')
    )
    path.write_bytes(damaged(good, rng))
    row = RowCache(tools.folder, metrics).get("key")
    assert row is None or all(isinstance(row[name], int | float) for name in metrics)


def notebook(rng: Random, tools: Tools) -> None:
    path = tools.folder / rng.choice(("a{x}.ipynb", "a.ipynb"))
    good = '{"cells": [], "metadata": {"kernelspec": {"name": "ir"}}, "nbformat": 4, "nbformat_minor": 5}'
    path.write_bytes(damaged(good.encode(), rng) if rng.random() < 0.7 else b"[" * rng.choice((1, 100_000)))
    run_notebook(path, {"seed": 1}, tools.folder / "page.html")


class Target(NamedTuple):
    """A function, and its share of the cases."""

    run: Callable[[Random, Tools], None]
    share: float


TARGETS = {
    "yaml": Target(yaml, 0.08),
    "tokenizer": Target(tokenizer, 0.05),
    "dump": Target(dump, 0.14),
    "weight file": Target(weight_file, 0.07),
    "gguf dump": Target(gguf_dump, 0.05),
    "onnx model": Target(onnx_model, 0.06),
    "folder of dumps": Target(folder_of_dumps, 0.05),
    "mapping": Target(mapping, 0.06),
    "log": Target(log, 0.1),
    "audio": Target(audio, 0.05),
    "array": Target(array, 0.05),
    "text": Target(text, 0.05),
    "options": Target(options, 0.05),
    "formats of weights": Target(formats_of_weights, 0.02),
    "trace file": Target(trace_file, 0.06),
    "odd trace": Target(odd_trace, 0.04),
    "cached row": Target(cached_row, 0.02),
    "notebook": Target(notebook, 0.01),
}
warnings.filterwarnings("ignore", category=wb.WorkbenchWarning)
