"""The front end: text and a recording become an `Utterance` of tokens and features, the pipeline's input."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import WorkbenchError, WorkbenchWarning
from workbench.speech.config import Config
from workbench.speech.frontend.audio import WHISPER_RATE, log_mel, resample, speaker_features, whisper_log_mel
from workbench.speech.frontend.audio_input import MAX_RECORDING_SECONDS, AudioSource, open_recording
from workbench.speech.frontend.onnx_session import open_session, run_session
from workbench.speech.frontend.prompt_checks import (
    TRANSCRIPT_KINDS,
    PromptFinding,
    check_samples,
    text_findings,
    warn_of,
)
from workbench.speech.frontend.text import (
    END_OF_PROMPT,
    WORKBENCH,
    Reading,
    TextStream,
    TextTokenizer,
    check_frontend,
    check_scripts,
    read_text,
)
from workbench.speech.frontend.transcript_checks import SYSTEM_PROMPT
from workbench.speech.frontend.utterance import Prompt, Utterance

MODES = ("zero-shot", "cross-lingual", "instruct")


class _OnnxModel:
    """An ONNX model with one output, whose inputs are given by position."""

    def __init__(self, path: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        self.path = Path(path)
        self._session = open_session(self.path, torch.device(device))

    def _run(self, *inputs: Tensor) -> Tensor:
        names = [found.name for found in self._session.get_inputs()]
        if len(names) != len(inputs):
            raise WorkbenchError(
                f"{self.path} has inputs {names}; expected {len(inputs)}: is it another model?"
            )
        output = self._session.get_outputs()[0].name
        by_name = dict(zip(names, inputs, strict=True))
        return run_session(self._session, self.path, by_name, [output])[0].flatten()


class SpeechTokenizer(_OnnxModel):
    """Turn a recording into speech tokens, 25 per second, by a checkpoint's `speech_tokenizer_v3.onnx`."""

    def __call__(self, wav16: Tensor) -> Tensor:
        """Return the speech tokens of a recording.

        Parameters
        ----------
        wav16 : Tensor (N,)
            At 16 kHz, 30 s at most.

        Returns
        -------
        Tensor (L,)
            int64.
        """
        seconds = wav16.shape[-1] / WHISPER_RATE
        if seconds > MAX_RECORDING_SECONDS:
            raise WorkbenchError(
                f"{seconds:.1f} s of speech; the speech tokenizer takes {MAX_RECORDING_SECONDS:.0f} s: cut it"
            )
        features = whisper_log_mel(wav16.float())
        return self._run(features, torch.tensor([features.shape[2]], dtype=torch.int32)).long()


class SpeakerEncoder(_OnnxModel):
    """Turn a recording into a speaker embedding, by a checkpoint's `campplus.onnx`."""

    def __call__(self, wav16: Tensor) -> Tensor:
        """Return the speaker embedding `(192,)` of a recording `(N,)` at 16 kHz."""
        return self._run(speaker_features(wav16.float())).float()


class Frontend:
    """Prepare texts and recordings for the models.

    Parameters
    ----------
    tokenizer : TextTokenizer
        Text to ids.
    speech_tokenizer : callable
        Recording `(N,)` at 16 kHz to tokens `(L,)`, as `SpeechTokenizer`.
    speaker_encoder : callable
        Recording `(N,)` at 16 kHz to an embedding, as `SpeakerEncoder`.
    config : Config
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        speech_tokenizer: Callable[[Tensor], Tensor],
        speaker_encoder: Callable[[Tensor], Tensor],
        config: Config,
    ) -> None:
        if len(tokenizer) > config.lm.vocab_size:
            raise WorkbenchError(
                f"the tokenizer has {len(tokenizer)} ids but the LM only {config.lm.vocab_size}; "
                "they are from different checkpoints"
            )
        self.tokenizer = tokenizer
        self.speech_tokenizer = speech_tokenizer
        self.speaker_encoder = speaker_encoder
        self.config = config

    def prompt(
        self, source: AudioSource, text: str = "", sample_rate: float | None = None, trim: bool = True
    ) -> Prompt:
        """Prepare a recording whose voice is imitated.

        Parameters
        ----------
        source : path, array, or (array, rate)
            The recording; see `open_audio` for the arrays that it may be.
        text : str
            Its transcript; zero-shot needs it.
        sample_rate : float, optional
            Rate of an array or of a file without a header, Hz; other files state their own.
        trim : bool
            Cut tokens and mel to whole tokens that have all their frames. Upstream does so except for voice
            conversion.
        """
        if not isinstance(text, str):
            raise WorkbenchError(f"the transcript is {text!r:.60}; expected text")
        text = text.strip().strip("\ufeff").strip()
        wav, rate, _, _ = open_recording(source, sample_rate, "prompt")
        name = str(source) if isinstance(source, str | os.PathLike) else "prompt"
        findings = check_samples(wav, rate, text, name).findings
        warn_of(findings, name)
        mel = log_mel(resample(wav, rate, self.config.mel.sample_rate), self.config.mel)
        wav16 = resample(wav, rate, WHISPER_RATE)
        token = self._speech_tokens(wav16)
        ratio = self.config.flow.token_mel_ratio
        if trim:
            n_tokens = min(mel.shape[2] // ratio, len(token))  # whole tokens with all their frames
            token, mel = token[:n_tokens], mel[:, :, : ratio * n_tokens]
        digest = hashlib.sha256(wav.contiguous().numpy().tobytes()).hexdigest()
        embedding = self.speaker_encoder(wav16).flatten()
        width = self.config.flow.spk_embed_dim
        if len(embedding) != width:
            raise WorkbenchError(
                f"the speaker encoder gave {len(embedding)} numbers; expected {width}: is campplus.onnx from "
                "another checkpoint?"
            )
        return Prompt(
            speech_token=token,
            mel=mel,
            spk_embedding=embedding,
            text=text,
            sha256=digest,
            seconds=len(wav) / rate,
            findings=findings,
        )

    def utterance(
        self,
        text: str | Iterable[str],
        prompt: Prompt,
        mode: str = "zero-shot",
        instruct: str | None = None,
        frontend: str = "workbench",
        language: str | None = None,
    ) -> Utterance:
        """Prepare one segment of text; it is normalised but not split.

        Parameters
        ----------
        text : str, or iterable of str
            Any text. Pieces of an iterable are read while they are spoken, as they are.
        prompt : Prompt
            The voice.
        mode : {"zero-shot", "cross-lingual", "instruct"}
            zero-shot continues the prompt and needs its transcript; the others use its voice alone.
        instruct : str, optional
            How to speak, for the mode "instruct".
        frontend, language
            How the text is normalised: see `Pipeline.prepare`.
        """
        if not isinstance(text, str):
            return self._streamed(text, prompt, mode, instruct, frontend, language)
        reading = self._read(text, frontend, language)
        return self._utterance(reading.text, text, reading, prompt, mode, instruct)

    def utterances(
        self,
        text: str | Iterable[str],
        prompt: Prompt,
        mode: str = "zero-shot",
        instruct: str | None = None,
        frontend: str = "workbench",
        language: str | None = None,
    ) -> list[Utterance]:
        """Prepare a text of any length: it is normalised and split, one `Utterance` per segment."""
        if not isinstance(text, str):
            return [self._streamed(text, prompt, mode, instruct, frontend, language)]
        reading = self._read(text, frontend, language)
        return [
            self._utterance(segment, text, reading, prompt, mode, instruct) for segment in reading.segments
        ]

    def conversion(self, source: AudioSource, prompt: Prompt, sample_rate: float | None = None) -> Utterance:
        """Prepare a recording that is spoken again in the prompt's voice; the LM has no part in it."""
        wav, rate, _, _ = open_recording(source, sample_rate, "source")
        token = self._speech_tokens(resample(wav, rate, WHISPER_RATE))
        return self._assemble("", "", "", prompt, "conversion", source_token=token)

    def _read(self, text: str, frontend: str, language: str | None) -> Reading:
        reading = read_text(text, self.tokenizer, frontend, language)
        notes = list(reading.notes)
        try:
            check_scripts(reading.text, self.config.scripts)
        except WorkbenchError as error:
            if frontend == WORKBENCH:
                raise
            notes.append(str(error))  # upstream reads on, and whoever asks for its rules wants its ids
        for note in notes:
            warnings.warn(note, WorkbenchWarning, stacklevel=4)
        return reading._replace(notes=tuple(notes))

    def _streamed(
        self,
        pieces: Iterable[str],
        prompt: Prompt,
        mode: str,
        instruct: str | None,
        frontend: str,
        language: str | None,
    ) -> Utterance:
        check_frontend(frontend, language)
        unread = Reading("", [""], "off")
        utt = self._utterance("", "", unread, prompt, mode, instruct)
        if mode == "cross-lingual":  # what stands before the text is given before the first turn
            utt = replace(utt, text_token=utt.text_token[:0], prompt_text_token=utt.text_token)
        return replace(utt, text_stream=TextStream(pieces, self.tokenizer, self.config.scripts))

    def _utterance(
        self, text: str, typed: str, reading: Reading, prompt: Prompt, mode: str, instruct: str | None
    ) -> Utterance:
        if mode not in MODES:
            raise WorkbenchError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
        if (mode == "instruct") != bool(instruct and instruct.strip()):
            raise WorkbenchError(f"mode is {mode} and instruct is {instruct!r}; expected both or neither")
        before = ""  # the text before the one to speak
        spoken = text
        if mode == "zero-shot":
            if not prompt.text:
                raise WorkbenchError(
                    "the prompt has no transcript, which the mode zero-shot needs; "
                    "give its words, prompt(..., text='what is said in it'), or use the mode cross-lingual"
                )
            check_scripts(prompt.text, self.config.scripts)
            before = after_system_prompt(prompt.text)
        elif mode == "cross-lingual":
            spoken = after_system_prompt(text)
        else:
            before = instruct.strip()
            if END_OF_PROMPT not in before:
                before = before if before.startswith(SYSTEM_PROMPT) else f"{SYSTEM_PROMPT} {before}"
                before += END_OF_PROMPT
        findings = text_findings(text, typed, prompt.text, mode, instruct)
        warn_of(findings)
        utt = self._assemble(text, spoken, before, prompt, mode, findings=findings)
        noted = (*reading.notes, *utt.warnings)
        return replace(utt, typed=typed, frontend=reading.frontend, warnings=noted)

    def _assemble(
        self,
        text: str,
        spoken: str,
        before: str,
        prompt: Prompt,
        mode: str,
        source_token: Tensor | None = None,
        findings: tuple[PromptFinding, ...] = (),
    ) -> Utterance:
        token = prompt.speech_token
        of_prompt = [f for f in prompt.findings if mode == "zero-shot" or f.kind not in TRANSCRIPT_KINDS]
        return Utterance(
            text=text,
            text_token=torch.tensor(self.tokenizer.encode(spoken), dtype=torch.long),
            prompt_text_token=torch.tensor(self.tokenizer.encode(before), dtype=torch.long),
            lm_prompt_token=token if mode == "zero-shot" else token[:0],
            flow_prompt_token=token,
            prompt_mel=prompt.mel,
            spk_embedding=prompt.spk_embedding,
            mode=mode,
            prompt=prompt,
            source_token=source_token,
            warnings=tuple(finding.message for finding in (*of_prompt, *findings)),
        )

    def _speech_tokens(self, wav16: Tensor) -> Tensor:
        token = self.speech_tokenizer(wav16)
        size = self.config.flow.vocab_size
        if not len(token) or not 0 <= int(token.min()) <= int(token.max()) < size:
            raise WorkbenchError(
                f"the speech tokenizer gave {len(token)} tokens, not all of them in 0..{size - 1}; expected "
                "one or more: it is from another checkpoint"
            )
        return token


def after_system_prompt(text: str) -> str:
    """Return a text with upstream's system prompt before it, unless it has a prompt of its own."""
    return text if END_OF_PROMPT in text else f"{SYSTEM_PROMPT}{END_OF_PROMPT}{text}"
