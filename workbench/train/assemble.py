"""Put the trained stages together: `python -m workbench.train.assemble DATA_DIR RUNS_DIR VOICE_DIR`.

RUNS_DIR holds the stages' folders: `tok`, `spk`, `bpe`, `flow`, `hift`, `lm`. VOICE_DIR gets the
layout of the released checkpoint, weights in float16, which the one loader opens.
"""

import argparse
import json
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.config_yaml_write import config_to_yaml, qwen_config
from workbench.speech.config import Config, Options
from workbench.train.corpus.corpus import Corpus
from workbench.train.models import flow, hift, lm

# An LM of this size may draw a stop before it has begun; upstream's mask misses that id. One token in
# eight of this voice repeats the one before: upstream's tau_r of 0.1 would draw each of those again, from
# the whole distribution (phoneme error rate 22 % in place of 6 %).
OPTIONS = Options(mask_stop_ids=True, tau_r=0.9)
SILENCE = -9.0  # mean natural-log mel below which a token is silence


def weights(folder: Path) -> dict[str, Tensor]:
    """Return a stage's averaged weights in float16: exported, where they did best, or the last."""
    exported, best = folder / "averaged.safetensors", folder / "best.pt"
    if exported.exists():
        found = load_file(exported)
    elif best.exists():
        found = torch.load(best, map_location="cpu", weights_only=True)
    else:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["averaged"]
        found = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    keep = ("rotary_embed.inv_freq",)  # rounding it would turn the angles
    return {k: v if k.endswith(keep) else v.half() for k, v in found.items() if torch.is_tensor(v)}


def silent_tokens(corpus: Corpus, tokens: Path) -> tuple[int, ...]:
    """Return the ids whose frames are silence on average."""
    mels, ids = corpus.mels("cpu"), torch.load(tokens, weights_only=True)
    n_ids = math.prod(ids["levels"])
    level, count = torch.zeros(2, n_ids, dtype=torch.float64)
    for i in range(len(corpus)):
        n = int(mels.lengths[i]) // 2
        token = ids["data"][int(ids["offsets"][i]) :][:n].long()
        frame = mels[i][: 2 * n].float().mean(1).view(n, 2).mean(1).double()
        level.index_add_(0, token, frame)
        count.index_add_(0, token, torch.ones(n, dtype=torch.float64))
    mean = level / count.clamp(min=1)
    return tuple(((mean < SILENCE) & (count >= 20)).nonzero()[:, 0].tolist())


def assemble(data: Path, runs: Path, voice: Path) -> Checkpoint:
    """Write the voice and open it again, as a user would."""
    n_text = len(json.loads((runs / "bpe" / "vocab.json").read_text())) + 3 + 278
    ids = torch.load(runs / "tok" / "tokens.pt", weights_only=True)
    n_speech = math.prod(ids["levels"])
    config = Config(
        lm=lm.config(n_text, n_speech),
        flow=flow.config(n_speech),
        hift=hift.CONFIG,
        silent_tokens=silent_tokens(Corpus(data), runs / "tok" / "tokens.pt"),
        scripts=("LATIN",),
    )
    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft)
        (folder / "cosyvoice3.yaml").write_text(config_to_yaml(config, OPTIONS), encoding="utf-8")
        tokenizer = folder / "CosyVoice-BlankEN"
        shutil.copytree(runs / "bpe", tokenizer)
        (tokenizer / "config.json").write_text(json.dumps(qwen_config(config), indent=2) + "\n")
        for stage, stem in (("lm", "llm"), ("flow", "flow"), ("hift", "hift")):
            save_file(weights(runs / stage), folder / f"{stem}.safetensors")
        shutil.copy(runs / "tok" / "speech_tokenizer_v3.onnx", folder)
        shutil.copy(runs / "spk" / "campplus.onnx", folder)
        opened = Checkpoint.load(folder)
        card = voice / "README.md"
        kept = card.read_text(encoding="utf-8") if card.exists() else None
        replace(opened, name=voice.name).save(voice, overwrite=voice.exists(), noise_seconds=0.0)
        if kept is not None:
            card.write_text(kept, encoding="utf-8")
    return Checkpoint.load(voice)


def main() -> None:
    """Parse the command line and assemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("voice", type=Path)
    args = parser.parse_args()
    print(assemble(args.data, args.runs, args.voice))


if __name__ == "__main__":
    main()
