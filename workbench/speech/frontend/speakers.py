"""Ready-made speakers: what upstream keeps of a prompt in `spk2info.pt`, read and written in its layout."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.frontend.frontend import Frontend, after_system_prompt
from workbench.speech.frontend.text import TextTokenizer
from workbench.speech.frontend.utterance import Prompt

TOKENS, MEL = "flow_prompt_speech_token", "prompt_speech_feat"
EMBEDDINGS = ("flow_embedding", "llm_embedding", "embedding")  # where one may stand, the first is taken
TRANSCRIPT = "prompt_text"


def speaker_prompt(name: str, parts: Any, frontend: Frontend, text: str | None = None) -> Prompt:
    """Return a ready-made speaker as a prompt.

    Parameters
    ----------
    name : str
        The speaker's name, for error messages.
    parts : dict of str to Tensor, or Tensor (192,)
        What `spk2info.pt` holds under the name. An embedding alone is a voice with no recording to continue.
    frontend : Frontend
        Of the checkpoint that made it.
    text : str, optional
        Another transcript than the one that is stored.

    Raises
    ------
    WorkbenchError
        When a part is missing, or does not fit the checkpoint.
    """
    config = frontend.config
    parts = {"embedding": parts} if isinstance(parts, Tensor) else parts
    embedding = next((parts[key] for key in EMBEDDINGS if key in parts), None)
    if not isinstance(embedding, Tensor):
        raise _misfit(name, f"has no embedding but {', '.join(map(str, parts)) or 'nothing'}")
    embedding = embedding.detach().cpu().float().flatten()
    if len(embedding) != config.flow.spk_embed_dim or not embedding.isfinite().all():
        raise _misfit(name, f"has {len(embedding)} numbers; expected {config.flow.spk_embed_dim}, all finite")

    tokens, mel = parts.get(TOKENS), parts.get(MEL)
    if tokens is None and mel is None:
        token, mel = torch.zeros(0, dtype=torch.long), torch.zeros(1, config.mel.n_mels, 0)
    else:
        token, mel = _recording(name, tokens, mel, frontend)
    stored = parts.get(TRANSCRIPT)
    transcript = text if text is not None else _transcript(name, stored, frontend.tokenizer)
    return Prompt(
        token, mel, embedding, transcript.strip(), sha256="", seconds=len(token) / config.token_rate
    )


def speaker_parts(prompt: Prompt, tokenizer: TextTokenizer) -> dict[str, Tensor]:
    """Return a prompt as `spk2info.pt` holds it: int32 tokens and float32 features, each (1, ...)."""
    text = tokenizer.encode(after_system_prompt(prompt.text)) if prompt.text else []
    token = prompt.speech_token[None].int()
    mel = prompt.mel.transpose(1, 2).contiguous().float()
    embedding = prompt.spk_embedding[None].float()
    parts = {
        "prompt_text": torch.tensor([text], dtype=torch.int32),
        "llm_prompt_speech_token": token,
        "flow_prompt_speech_token": token,
        "prompt_speech_feat": mel,
    }
    lengths = {
        f"{key}_len": torch.tensor([value.shape[1]], dtype=torch.int32) for key, value in parts.items()
    }
    return parts | lengths | {"llm_embedding": embedding, "flow_embedding": embedding}


def describe_speakers(speakers: Mapping[str, Any]) -> list[str]:
    """Return a line for each ready-made speaker: its name, and what is stored of it."""
    lines = []
    for name, parts in speakers.items():
        tokens = parts.get(TOKENS) if isinstance(parts, dict) else None
        held = f"{tokens.numel()} speech tokens" if isinstance(tokens, Tensor) else "an embedding alone"
        lines.append(f"{name}: {held}")
    return lines


def _recording(name: str, tokens: Any, mel: Any, frontend: Frontend) -> tuple[Tensor, Tensor]:
    """Return checked speech tokens (L,) and mel (1, M, T)."""
    config = frontend.config
    if not isinstance(tokens, Tensor) or not isinstance(mel, Tensor):
        raise _misfit(name, f"has only one of {TOKENS} and {MEL}")
    token = tokens.detach().cpu().flatten().long()
    size = config.flow.vocab_size
    if len(token) and not 0 <= int(token.min()) <= int(token.max()) < size:
        raise _misfit(name, f"has speech tokens that are not all in 0..{size - 1}")
    if mel.ndim != 3 or mel.shape[0] != 1 or mel.shape[2] != config.mel.n_mels:
        raise _misfit(name, f"has a mel of shape {tuple(mel.shape)}; expected (1, T, {config.mel.n_mels})")
    ratio = config.flow.token_mel_ratio
    if abs(mel.shape[1] - ratio * len(token)) > ratio:
        raise _misfit(
            name, f"has {mel.shape[1]} mel frames for {len(token)} tokens; expected {ratio} a token"
        )
    mel = mel.detach().cpu().float().transpose(1, 2).contiguous()
    if not mel.isfinite().all():
        raise _misfit(name, "has NaN or infinity in its mel")
    return token, mel


def _transcript(name: str, ids: Any, tokenizer: TextTokenizer) -> str:
    if not isinstance(ids, Tensor) or not ids.numel():
        return ""
    found = ids.flatten().tolist()
    text = tokenizer.decode(found) if 0 <= min(found) <= max(found) < len(tokenizer) else ""
    if tokenizer.encode(text) != found:
        raise _misfit(
            name, "has a transcript whose ids this tokenizer does not make; give its transcript as text"
        )
    return text


def _misfit(name: str, what: str) -> WorkbenchError:
    return WorkbenchError(f"speaker {name!r} of spk2info.pt {what}: was it made by another checkpoint?")
