"""Write a checkpoint as upstream's own loader opens it, with what upstream does otherwise with it."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.files import CAMPPLUS, QWEN, STEMS, TOKENIZER, replace_folder
from workbench.speech.checkpoint.weight_names import EMBED, HEAD
from workbench.speech.config import RELEASED, Config, Options
from workbench.speech.frontend.text import END_OF_PROMPT, TextTokenizer

if TYPE_CHECKING:
    from workbench.speech.checkpoint.checkpoint import Checkpoint

END_OF_PROMPT_ID = 151646  # which upstream's llm.py looks for
DIFFERENCES = "DIFFERENCES.md"
BACKBONE = "llm.model."  # before transformers' own names of Qwen2
FROM_YAML = ("cfg_rate", "t_scheduler", "top_p", "top_k", "win_size", "tau_r")  # options that upstream reads


def export_for_upstream(checkpoint: "Checkpoint", folder: str | Path, overwrite: bool = False) -> Path:
    """Write a folder that upstream's `AutoModel(model_dir=...)` opens.

    It holds what `Checkpoint.save` writes, but the weights as `.pt`, with the tied head of the LM, and the
    weights of Qwen2 in `CosyVoice-BlankEN`, which upstream loads and then replaces. Its `DIFFERENCES.md`
    lists what upstream does otherwise with this voice.

    Parameters
    ----------
    checkpoint : Checkpoint
    folder : str or Path
        Made if it does not exist.
    overwrite : bool
        True replaces a checkpoint in `folder`, with all other files there.

    Returns
    -------
    Path

    Raises
    ------
    WorkbenchError
        When the checkpoint lacks a part that upstream needs, or the folder cannot be written.

    Examples
    --------
    >>> folder = wb.export_for_upstream(voice, "output/tiny-for-upstream", overwrite=True)
    >>> sorted(path.name for path in folder.glob("*.pt"))
    ['flow.pt', 'hift.pt', 'llm.pt']
    """
    parts = {
        QWEN: checkpoint.tokenizer,
        CAMPPLUS: checkpoint.campplus,
        TOKENIZER: checkpoint.speech_tokenizer,
    }
    missing = [name for name, path in parts.items() if path is None]
    if missing:
        raise WorkbenchError(
            f"{checkpoint.name} has no {', '.join(missing)}, without which upstream opens no checkpoint; "
            "copy them from the release that it belongs to"
        )
    folder = Path(folder).resolve()
    with replace_folder(folder, overwrite) as draft:
        checkpoint.write_parts(draft)
        for stage, stem in STEMS.items():
            stored = checkpoint.weights[stage]
            weights = {name: value.detach().clone() for name, value in stored.items()}
            if stage == "lm":
                weights[HEAD] = weights[EMBED]  # one tensor in the file, too
                backbone = {
                    name.removeprefix(BACKBONE): value.contiguous()
                    for name, value in weights.items()
                    if name.startswith(BACKBONE) and name != HEAD
                }
                save_file(backbone, draft / QWEN / "model.safetensors", metadata={"format": "pt"})
            torch.save(weights, draft / f"{stem}.pt")
        lines = upstream_differences(checkpoint) or ["Nothing that is known."]
        text = "\n".join(f"- {line}" for line in lines)
        head = f"# What upstream does otherwise with {checkpoint.name}\n\n"
        (draft / DIFFERENCES).write_text(f"{head}{text}\n", encoding="utf-8")
    return folder


def upstream_differences(checkpoint: "Checkpoint") -> list[str]:
    """Say what upstream's code fixes and this voice has otherwise; one sentence for each."""
    config, options = checkpoint.config, checkpoint.options
    found = []
    token = TextTokenizer.load(checkpoint.tokenizer).end_of_prompt
    if token != END_OF_PROMPT_ID:
        found.append(
            f"`cosyvoice/llm/llm.py` looks for the id {END_OF_PROMPT_ID} of {END_OF_PROMPT}; it is {token} "
            f"here. Replace {END_OF_PROMPT_ID} by {token} in that file, else every mode with text stops with "
            "an AssertionError. Voice conversion works as it is."
        )
    if config.silent_tokens != RELEASED.silent_tokens:
        found.append(
            "`cosyvoice/cli/model.py` has the released model's silent tokens; here they are "
            f"{list(config.silent_tokens)}. After loading, set `cosyvoice.model.silent_tokens` to that list, "
            "else other tokens are dropped and the speech has another length."
        )
    for name, value, fixed in (
        ("ids above the speech tokens", config.lm.n_special, RELEASED.lm.n_special),
        ("speech tokens for a text token, at least", *_ratios(config, "min_token_text_ratio")),
        ("speech tokens for a text token, at most", *_ratios(config, "max_token_text_ratio")),
        ("tokens of a streamed chunk", config.chunk_size, RELEASED.chunk_size),
        ("frames of noise", config.flow.noise_frames, RELEASED.flow.noise_frames),
        ("samples of noise", config.hift.noise_samples, RELEASED.hift.noise_samples),
    ):
        if value != fixed:
            found.append(f"{name}: {fixed} in upstream's code, {value} here.")
    if checkpoint.noise.stored is not None:
        found.append("This voice has noise of its own; upstream draws its noise from a seed.")
    default = Options()
    for name in (field.name for field in fields(Options) if field.name not in FROM_YAML):
        if getattr(options, name) != getattr(default, name):
            found.append(
                f"The option {name} is {getattr(options, name)!r} here; upstream does what "
                f"{getattr(default, name)!r} does, and has no setting for it."
            )
    return found


def _ratios(config: Config, name: str) -> tuple[float, float]:
    return getattr(config.lm, name), getattr(RELEASED.lm, name)
