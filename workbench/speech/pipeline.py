"""`Pipeline`: a checkpoint that speaks. It prepares texts and prompts, runs all stages, and replays runs."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.speech.batch import run_batch
from workbench.speech.checkpoint.files import SPK2INFO, read_speakers, write_speakers
from workbench.speech.config import HIFT, LM, Options
from workbench.speech.frontend.audio_input import AudioSource
from workbench.speech.frontend.frontend import Frontend, Prompt, Utterance
from workbench.speech.frontend.prompt_checks import read_transcript
from workbench.speech.frontend.speakers import speaker_parts, speaker_prompt
from workbench.speech.recording import check_sizes, flow_utterance, utterance_of
from workbench.speech.run import run, run_part
from workbench.speech.stage_runner import StageRunner
from workbench.trace.record import NOTHING, Save
from workbench.trace.schema import LM_INPUTS
from workbench.trace.trace import Trace


class Pipeline(StageRunner):
    """A checkpoint that speaks.

    Parameters
    ----------
    checkpoint : Checkpoint
        The voice.
    device : str
        "cpu", "cuda" or "cuda:1".
    progress : bool
        Show a progress bar for loops that take longer than a second.

    Raises
    ------
    WorkbenchError
        When the device does not exist.

    Examples
    --------
    >>> pipe = wb.Pipeline(wb.Checkpoint.load(wb.data_path("voices/tiny")))
    >>> utt = pipe.prepare("Eight months to Mars.", prompt=wb.data_path("prompts/kumo_0.flac"))
    >>> trace = pipe.synthesise(utt, seed=7)
    >>> trace
    Trace('Eight months to Mars.', ... s, ... fields)
    """

    def __repr__(self) -> str:
        return f"Pipeline({self.checkpoint.name!r}, {self.device})"

    # ---- the main path

    def synthesise(
        self,
        utt: Utterance,
        seed: int | None = None,
        options: Options | None = None,
        save: Save | str | Iterable[str] = NOTHING,
        stop_after: str = "hift",
    ) -> Trace:
        """Speak one prepared utterance.

        Parameters
        ----------
        utt : Utterance
            From `prepare`.
        seed : int, optional
            Seed of the sampler's draws; replaces `options.seed`.
        options : Options, optional
            The checkpoint's own by default.
        save : Save or globs
            What to keep beside the inputs and outputs of the stages: NOTHING, SUMMARY (statistics of every
            step), EVERYTHING, or globs of field names such as "flow/velocity*".
        stop_after : str
            "lm", "flow", "hift", or a step of the ODE such as "flow/step/3", counted from 0.

        Returns
        -------
        Trace
            At least `in/*`, `lm/speech_token`, `flow/mel`, `hift/f0`, `hift/source` and `hift/wav`.

        Raises
        ------
        WorkbenchError
            When a stage cannot go on: the LM drew no token, a mel has NaN in it, ...

        Examples
        --------
        >>> import torch
        >>> first = pipe.synthesise(utt, seed=7, stop_after="lm")
        >>> torch.equal(first["lm/speech_token"], trace["lm/speech_token"])
        True
        """
        options = self.options(options, seed)
        if stop_after == HIFT:
            return run(self, utt, options, save)
        return run_part(self, utt, options, save, stop_after=stop_after)

    def synthesise_many(
        self,
        utts: Sequence[Utterance],
        variants: Sequence[Options] | None = None,
        save: Save | str | Iterable[str] = NOTHING,
    ) -> list[list[Trace]]:
        """Speak every variant of every utterance, one batch a stage.

        Equal work is done once: variants that differ only in the flow share the LM's pass. Rows of one batch
        have the same n_timesteps, t_scheduler, solver, precision and rules of sampling; cfg_rate,
        temperature, noise and seeds may differ. With `compute="eager"` rows run one after another.

        Parameters
        ----------
        utts : sequence of Utterance
        variants : sequence of Options, optional
            The checkpoint's own alone by default.
        save : Save or globs
            As in `synthesise`.

        Returns
        -------
        list of list of Trace
            By utterance, then by variant. `attrs["timings"]` are the seconds of a batch divided by its rows,
            and `attrs["rows"]` is their number.

        Raises
        ------
        WorkbenchError
            When a stage of any of the runs cannot go on.

        Examples
        --------
        >>> one_step = voice.options.but(seed=7, n_timesteps=1)
        >>> [row] = pipe.synthesise_many([utt], [one_step.but(cfg_rate=rate) for rate in (0.0, 0.7)])
        >>> [round(run.attrs["options"]["cfg_rate"], 1) for run in row]
        [0.0, 0.7]
        """
        return run_batch(self, utts, [self.checkpoint.options] if variants is None else variants, save)

    def replay(
        self,
        trace: Trace,
        stage: str = "lm",
        options: Options | None = None,
        save: Save | str | Iterable[str] = NOTHING,
        stop_after: str = "hift",
    ) -> Trace:
        """Make a recorded run again, from any stage on; the same device gives the same bits.

        Parameters
        ----------
        trace : Trace
            Holds the inputs of the stage: the text and prompt (`in/*`) for the LM, the prompt and
            `lm/speech_token` for the flow, `flow/x` for one of its steps, `flow/mel` for the vocoder.
        stage : str
            Where to begin: "lm", "flow", "flow/step/3" or "hift".
        options : Options, optional
            The trace's own by default.
        save, stop_after
            As in `synthesise`.

        Returns
        -------
        Trace
            A run that begins inside the ODE is recorded from there; `attrs["first_step"]` is that step.

        Raises
        ------
        WorkbenchError
            When the trace lacks an input of the stage.

        Examples
        --------
        >>> import torch
        >>> again = pipe.replay(trace, "hift")
        >>> torch.equal(again.wav, trace.wav)
        True
        """
        if options is None:
            options = self.checkpoint.options.but(**trace.attrs.get("options", {}))
        check_sizes(trace, self.config)
        if stage == HIFT:
            return run_part(self, None, options, save, stage, stop_after, trace)
        utt = utterance_of(trace) if stage == LM else flow_utterance(trace)
        made = run_part(self, utt, options, save, stage, stop_after, trace)
        unknown = tuple(name for name in LM_INPUTS if name not in trace)  # as in a dump of a conversion
        fields = {name: value for name, value in made.items() if not name.startswith(unknown)}
        return Trace(fields, made.attrs)

    def prepare(
        self,
        text: str | Iterable[str],
        prompt: Prompt | AudioSource,
        mode: str = "zero-shot",
        instruct: str | None = None,
        frontend: str = "workbench",
        language: str | None = None,
    ) -> Utterance:
        """Turn a text and a prompt into the inputs of the models.

        Parameters
        ----------
        text : str, or iterable of str
            One segment; `prepare_all` splits longer ones. An iterable is read while it is spoken, piece by
            piece, and not normalised: for voices that were trained for it.
        prompt : Prompt, path, name, or (array, rate)
            See `Pipeline.prompt`. The transcript of a path is read from the `.txt` of its name beside it.
        mode : {"zero-shot", "cross-lingual", "instruct"}
            See `Frontend.utterance`.
        instruct : str, optional
            How to speak, for the mode "instruct".
        frontend : {"workbench", "upstream", "off"}
            Whose rules write the text as it is spoken. "upstream" gives the same tokens as upstream's front
            end, "off" the text as it is. Tokens of the vocabulary, such as `[breath]`, stay in all of them.
        language : str, optional
            Code of the text's language, such as "de", for "workbench"; guessed by default. Numbers become
            words in English and Chinese alone.

        Returns
        -------
        Utterance
            Its `normalised` text may differ from what was `typed`.

        Raises
        ------
        WorkbenchError
            When the text or the prompt cannot be used; the message says why and what to try.

        Examples
        --------
        >>> prompt = wb.data_path("prompts/kumo_0.flac")
        >>> pipe.prepare("It costs $5.", prompt).normalised
        'It costs five dollars.'
        >>> pipe.prepare("It costs $5.", prompt, frontend="off").normalised
        'It costs $5.'
        """
        return self.frontend.utterance(text, self.prompt(prompt), mode, instruct, frontend, language)

    def prepare_all(
        self,
        text: str | Iterable[str],
        prompt: Prompt | AudioSource,
        mode: str = "zero-shot",
        instruct: str | None = None,
        frontend: str = "workbench",
        language: str | None = None,
    ) -> list[Utterance]:
        """Prepare a text of any length: it is split into segments, each an utterance; see `prepare`."""
        return self.frontend.utterances(text, self.prompt(prompt), mode, instruct, frontend, language)

    def prompt(
        self,
        source: Prompt | AudioSource,
        text: str | None = None,
        sample_rate: float | None = None,
        trim: bool = True,
    ) -> Prompt:
        """Prepare a recording to clone; what may go wrong with it is a warning, and in `Prompt.findings`.

        Parameters
        ----------
        source : Prompt, path, name, array, or (array, rate)
            A Prompt is returned as it is. A name is that of a ready-made speaker of the checkpoint's
            `spk2info.pt`, unless a file has it. An array of any type is (N,), (channels, N) or (N, channels);
            integers are scaled.
        text : str, optional
            Its transcript; by default the content of the `.txt` of the same name, if there is one.
        sample_rate : float, optional
            Hz, of an array or of samples without a header (.pcm, .raw, .f32, ...).
        trim : bool
            False keeps tokens and frames beyond the last whole token, as upstream does for voice conversion.

        Returns
        -------
        Prompt

        Raises
        ------
        WorkbenchError
            When the recording cannot be used; the message says why and what to try.

        Examples
        --------
        >>> import numpy as np
        >>> samples = (np.sin(np.arange(48_000) / 20) * 8000).astype(np.int16)
        >>> prompt = pipe.prompt((samples, 24_000), "A tone.")
        >>> [finding.kind for finding in prompt.findings]
        ['voice']
        """
        if isinstance(source, Prompt):
            return source
        if isinstance(source, str) and not os.path.isfile(source):
            speakers = self.checkpoint.spk2info or {}
            if source in speakers:
                return speaker_prompt(source, speakers[source], self.frontend, text)
            if not Path(source).suffix:
                raise WorkbenchError(_no_such_prompt(source, speakers))
        if text is None:
            is_file = isinstance(source, str | os.PathLike)
            text = (read_transcript(source) if is_file else None) or ""
        return self.frontend.prompt(source, text, sample_rate, trim)

    def convert(
        self,
        source: AudioSource,
        prompt: Prompt | AudioSource,
        sample_rate: float | None = None,
        trim: bool = True,
    ) -> Utterance:
        """Prepare a recording to be said again in the prompt's voice (copy-synthesis: its own voice).

        Parameters
        ----------
        source : path, array, or (array, rate)
            What is said again.
        prompt : Prompt, path, name, or (array, rate)
            The voice; a Prompt is used as it was made.
        sample_rate : float, optional
            Hz, of an array as `source`.
        trim : bool
            False keeps the prompt's tokens and frames beyond its last whole token, as upstream does here.

        Returns
        -------
        Utterance

        Examples
        --------
        >>> recording = wb.data_path("prompts/kumo_0.flac")
        >>> pipe.convert(recording, recording, trim=False).prompt_mel.shape[-1]  # one token is half filled
        282
        """
        return self.frontend.conversion(source, self.prompt(prompt, trim=trim), sample_rate)

    def save_speaker(
        self, name: str, prompt: Prompt, path: str | os.PathLike | None = None, overwrite: bool = False
    ) -> Path:
        """Add a prompt to the ready-made speakers of a `spk2info.pt`, which upstream reads as well.

        Parameters
        ----------
        name : str
            What the speaker is called: `prompt=name` uses it, once the checkpoint is loaded again.
        prompt : Prompt
        path : path, optional
            The file, which may exist. Default: `spk2info.pt` in the checkpoint's folder.
        overwrite : bool
            True replaces a speaker of this name.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        WorkbenchError
            When the file has such a speaker already, holds something else, or cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> prompt = pipe.prompt(wb.data_path("prompts/kumo_0.flac"))
        >>> pipe.save_speaker("kumo", prompt, tempfile.mkdtemp() + "/spk2info.pt").name
        'spk2info.pt'
        """
        if path is None and self.checkpoint.folder is None:
            raise WorkbenchError(f"{self.checkpoint!r} has no folder; pass path, the {SPK2INFO} to write")
        path = self.checkpoint.folder / SPK2INFO if path is None else Path(path)
        speakers = read_speakers(path) if os.path.exists(path) else {}
        if not isinstance(name, str) or not name.strip():
            raise WorkbenchError(f"the speaker's name is {name!r}; expected text that is not empty")
        if name in speakers and not overwrite:
            raise WorkbenchError(f"{path} has a speaker {name!r}; pass another name or overwrite=True")
        write_speakers(speakers | {name: speaker_parts(prompt, self.frontend.tokenizer)}, path)
        return path

    @cached_property
    def frontend(self) -> Frontend:
        """Text and audio to tokens and embeddings, with this checkpoint's own models."""
        return self.checkpoint.frontend()


def _no_such_prompt(name: str, speakers: dict) -> str:
    known = ", ".join(sorted(speakers)) or "none"
    return (
        f"{name!r:.80} is neither a file nor a ready-made speaker of this checkpoint ({SPK2INFO} has "
        f"{known}); expected a recording to clone, or one of these names"
    )
