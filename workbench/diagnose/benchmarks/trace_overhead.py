"""Measure what recording costs. `workbench bench trace` prints it."""

import time
from statistics import median

import pandas as pd
import torch

from workbench.speech.checkpoint.checkpoint import MODELS, Checkpoint
from workbench.speech.config import RELEASED, Config, Options
from workbench.speech.frontend.frontend import Prompt, Utterance
from workbench.speech.models.noise import Noise
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY, Save

MODES: dict[str, Save] = {"silent": NOTHING, "summary": SUMMARY, "everything": EVERYTHING}
WEIGHT_STD = 0.02  # of random weights; as transformers are initialised, so that activations stay finite
TYPICAL_MEL = -6  # natural log, a quiet frame: the mean of a random prompt's mel
TEXT_TOKENS = 125  # as many as 10 s of speech have at least
PROMPT_TOKENS = 87  # 3.5 s, a usual prompt
SPEECH_TOKENS_PER_TEXT_TOKEN = 2  # the fewest that the LM draws while stops are masked


def trace_cost(pipe: Pipeline, utt: Utterance, options: Options, rounds: int = 7) -> pd.DataFrame:
    """Time the same run silent and recorded; the modes take turns, so that all see the same machine.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    options : Options
    rounds : int
        Every mode runs once per round. One more round goes before, to warm up.

    Returns
    -------
    DataFrame
        Indexed by `mode`: `seconds` (median), `ratio` to the silent run of the same round (median),
        `megabytes` that the trace holds.
    """
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    n_bytes = {}
    for number in range(rounds + 1):
        for mode, save in MODES.items():
            start = now(pipe.device)
            trace = pipe.synthesise(utt, options=options, save=save)
            duration = now(pipe.device) - start
            n_bytes[mode] = sum(value.numel() * value.element_size() for value in trace.values())
            if number > 0:
                seconds[mode].append(duration)
    rows = []
    for mode, durations in seconds.items():
        ratios = [recorded / silent for recorded, silent in zip(durations, seconds["silent"], strict=True)]
        rows.append((mode, median(durations), median(ratios), n_bytes[mode] / 1e6))
    return pd.DataFrame(rows, columns=["mode", "seconds", "ratio", "megabytes"]).set_index("mode")


def utterance_of_length(
    checkpoint: Checkpoint, tokens: int, prompt: int = PROMPT_TOKENS
) -> tuple[Utterance, Options]:
    """Return an utterance and options with which the LM draws so many speech tokens, whatever its weights.

    Stop tokens are masked while there are fewer than two speech tokens per text token, and `max_tokens` ends
    the run there.
    """
    utt = utterance_of_size(checkpoint.config, text=-(-tokens // SPEECH_TOKENS_PER_TEXT_TOKEN), prompt=prompt)
    return utt, checkpoint.options.but(mask_stop_ids=True, max_tokens=tokens)


def random_checkpoint() -> Checkpoint:
    """Return random weights of the released sizes, which run as long as the released ones but speak noise."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for stage, build in MODELS.items():
        with torch.device("meta"):  # shapes alone, without memory
            shapes = {
                name: value.shape for name, value in build(getattr(RELEASED, stage)).state_dict().items()
            }
        weights[stage] = {
            name: torch.randn(shape, generator=generator).mul_(WEIGHT_STD) for name, shape in shapes.items()
        }
    return Checkpoint("random weights", RELEASED, weights, Noise(RELEASED))


def utterance_of_size(config: Config, text: int = TEXT_TOKENS, prompt: int = PROMPT_TOKENS) -> Utterance:
    """Return a random utterance with so many text tokens and so many speech tokens of a prompt."""
    draw = torch.Generator().manual_seed(0)
    text_ids = torch.randint(1, config.lm.vocab_size - 1, (text,), generator=draw)
    token = torch.randint(0, config.flow.vocab_size - 1, (prompt,), generator=draw)
    frames = config.flow.token_mel_ratio * prompt
    mel = torch.randn(1, config.mel.n_mels, frames, generator=draw) + TYPICAL_MEL
    embedding = torch.randn(config.flow.spk_embed_dim, generator=draw)
    about = Prompt(token, mel, embedding, text="", sha256="", seconds=prompt / config.token_rate)
    return Utterance("", text_ids, text_ids[:0], token, token, mel, embedding, "zero-shot", about)


def now(device: torch.device) -> float:
    """Return the time of a clock in seconds, after everything that the device was given is computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
