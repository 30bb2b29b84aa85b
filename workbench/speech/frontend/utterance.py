"""The input of the pipeline: a `Prompt` is the voice, an `Utterance` one segment of text in that voice."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from workbench.speech.frontend.prompt_checks import PromptFinding
from workbench.speech.frontend.text import TextStream


class _TensorFields:
    """A frozen dataclass with tensors, which can be moved to a device."""

    def to(self, device: str | torch.device) -> Any:
        """Return a copy with every tensor on `device`; where all are there already, this object."""
        moved = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor | _TensorFields):
                there = value.to(device)
                if there is not value:
                    moved[f.name] = there
        return replace(self, **moved) if moved else self


@dataclass(frozen=True, eq=False, repr=False)
class Prompt(_TensorFields):
    """A recording whose voice is imitated; `Pipeline.prompt` makes one.

    Parameters
    ----------
    speech_token : Tensor (L,)
        Tokens of the recording.
    mel : Tensor (1, M, 2L)
        Natural-log mel, two frames per token; of a prompt that was not trimmed, all frames.
    spk_embedding : Tensor (192,)
        Output of the speaker encoder.
    text : str
        Transcript, or empty.
    sha256 : str
        Hash of the float32 samples, as they were given.
    seconds : float
        Length of the recording, as it was given.
    findings : tuple of PromptFinding
        What `wb.check_prompt` found in recording and transcript.

    Examples
    --------
    >>> prompt = pipe.prompt(wb.data_path("prompts/kumo_0.flac"))
    >>> prompt.mel.shape == (1, 80, 2 * len(prompt.speech_token))
    True
    """

    speech_token: Tensor
    mel: Tensor
    spk_embedding: Tensor
    text: str
    sha256: str
    seconds: float
    findings: tuple[PromptFinding, ...] = ()

    def __repr__(self) -> str:
        return f"Prompt({self.seconds:.2f} s, {len(self.speech_token)} tokens, {self.text!r:.60})"


@dataclass(frozen=True, eq=False, repr=False)
class Utterance(_TensorFields):
    """The pipeline's input for one segment of text; `Pipeline.prepare` makes one.

    Parameters
    ----------
    text : str
        The normalised text; empty where it arrives as a stream.
    text_token : Tensor (L,)
        Its ids.
    prompt_text_token : Tensor (P,)
        Ids before those of the text: instruction and transcript of the prompt.
    lm_prompt_token : Tensor (S,)
        Speech tokens that the LM continues; empty unless the mode is zero-shot.
    flow_prompt_token : Tensor (S,)
        Speech tokens before those of the utterance, for the flow.
    prompt_mel : Tensor (1, M, 2S)
        Their mel.
    spk_embedding : Tensor (192,)
        Of the prompt.
    mode : {"zero-shot", "cross-lingual", "instruct", "conversion"}
        How the prompt is used.
    prompt : Prompt
        The recording.
    source_token : Tensor (L,) or None
        Conversion: speech tokens of the source recording, which take the place of the LM's.
    typed : str
        The text as it was given, of which this may be one segment.
    frontend : {"workbench", "upstream", "off"}
        Whose rules made `text` of `typed`; see `Pipeline.prepare`.
    warnings : tuple of str
        What may go wrong with this text and this prompt, in sentences.
    text_stream : TextStream or None
        The text that arrives while it is spoken, which takes the place of `text` and `text_token`.

    Examples
    --------
    >>> utt.mode, len(utt.text_token) > 0
    ('zero-shot', True)
    >>> utt.to("cpu").flow_prompt_token.equal(utt.prompt.speech_token)
    True
    """

    text: str
    text_token: Tensor
    prompt_text_token: Tensor
    lm_prompt_token: Tensor
    flow_prompt_token: Tensor
    prompt_mel: Tensor
    spk_embedding: Tensor
    mode: str
    prompt: Prompt
    source_token: Tensor | None = None
    typed: str = ""
    frontend: str = "workbench"
    warnings: tuple[str, ...] = ()
    text_stream: TextStream | None = None

    @property
    def normalised(self) -> str:
        """The text as the LM reads it; what differs from `typed` was changed by the front end."""
        return self.text if self.text_stream is None else self.text_stream.text

    def __repr__(self) -> str:
        source = "" if self.source_token is None else f", {len(self.source_token)} source tokens"
        return f"Utterance({self.text!r:.60}, {self.mode}, {len(self.text_token)} text tokens{source})"


def on_device(utts: Sequence[Utterance], device: torch.device) -> list[Utterance]:
    """Return utterances on a device; one that is given twice stays one, and its prompt is read once."""
    moved: dict[int, Utterance] = {}
    for utt in utts:
        if id(utt) not in moved:
            moved[id(utt)] = utt.to(device)
    return [moved[id(utt)] for utt in utts]
