"""What recording costs, measured in turns. `workbench bench trace` prints it."""

import time
from statistics import median

import pandas as pd
import torch

from workbench.speech.checkpoint.checkpoint import MODELS, Checkpoint
from workbench.speech.config import Config, Options
from workbench.speech.frontend.frontend import Prompt, Utterance
from workbench.speech.models.noise import Noise
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY, Save

MODES: dict[str, Save] = {"silent": NOTHING, "summary": SUMMARY, "everything": EVERYTHING}


def trace_cost(pipe: Pipeline, utt: Utterance, options: Options, rounds: int = 7) -> pd.DataFrame:
    """Time the same run silent and recorded, in turns.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    options : Options
    rounds : int
        Each times every mode once; one more goes before, to warm up.

    Returns
    -------
    DataFrame
        By mode: `seconds` (median), `ratio` to the silent run (median over rounds), `megabytes` kept.
    """
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    size = {}
    for _ in range(rounds + 1):
        for mode, save in MODES.items():
            start = now(pipe.device)
            trace = pipe.synthesise(utt, options=options, save=save)
            seconds[mode].append(now(pipe.device) - start)
            size[mode] = sum(value.numel() * value.element_size() for value in trace.values())
    timed = {mode: values[1:] for mode, values in seconds.items()}
    rows = []
    for mode, values in timed.items():
        ratio = median(a / b for a, b in zip(values, timed["silent"], strict=True))
        rows.append((mode, median(values), ratio, size[mode] / 1e6))
    return pd.DataFrame(rows, columns=["mode", "seconds", "ratio", "megabytes"]).set_index("mode")


def random_checkpoint() -> Checkpoint:
    """Return random weights of the released sizes; for timing, not for listening."""
    config = Config()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for stage, build in MODELS.items():
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in build(getattr(config, stage)).state_dict().items()}
        weights[stage] = {
            name: torch.randn(shape, generator=generator).mul_(0.02) for name, shape in shapes.items()
        }
    return Checkpoint("random weights", config, weights, Noise(config))


def utterance_of_size(config: Config, text: int = 125, prompt: int = 87) -> Utterance:
    """An utterance of so many text tokens and prompt tokens, its ids and mel at random."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, config.lm.vocab_size - 1, (text,), generator=draw)
    token = torch.randint(0, config.flow.vocab_size - 1, (prompt,), generator=draw)
    mel = torch.randn(1, config.mel.n_mels, config.flow.token_mel_ratio * prompt, generator=draw) - 6
    embedding = torch.randn(config.flow.spk_embed_dim, generator=draw)
    about = Prompt(token, mel, embedding, "", "", prompt / 25)
    return Utterance("", ids, ids[:0], token, token, mel, embedding, "zero-shot", about)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
