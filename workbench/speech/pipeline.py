"""`Pipeline`: a checkpoint that speaks. It prepares texts and prompts, runs all stages, and replays runs."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from workbench.speech.batch import run_batch
from workbench.speech.config import HIFT, Options
from workbench.speech.frontend.frontend import Frontend, Prompt, Utterance
from workbench.speech.recording import utterance_of
from workbench.speech.run import run, run_part
from workbench.speech.stage_runner import StageRunner
from workbench.trace.record import NOTHING, Save
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
            Holds the inputs of the stage: `in/*` for all but the vocoder, `lm/speech_token` for the flow,
            `flow/x` for one of its steps, `flow/mel` for the vocoder.
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
        utt = None if stage == HIFT else utterance_of(trace)
        return run_part(self, utt, options, save, stage, stop_after, trace)

    def prepare(
        self,
        text: str | Iterable[str],
        prompt: Prompt | str | os.PathLike,
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
        prompt : Prompt, or path
            The transcript of a path is read from the `.txt` of the same name beside it.
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
        prompt: Prompt | str | os.PathLike,
        mode: str = "zero-shot",
        instruct: str | None = None,
        frontend: str = "workbench",
        language: str | None = None,
    ) -> list[Utterance]:
        """Prepare a text of any length: it is split into segments, each an utterance; see `prepare`."""
        return self.frontend.utterances(text, self.prompt(prompt), mode, instruct, frontend, language)

    def prompt(self, source: Prompt | str | os.PathLike, text: str | None = None) -> Prompt:
        """Prepare a recording to clone.

        Parameters
        ----------
        source : Prompt, or path
            A Prompt is returned as it is.
        text : str, optional
            Its transcript; by default the content of the `.txt` of the same name, if there is one.

        Returns
        -------
        Prompt
        """
        if isinstance(source, Prompt):
            return source
        beside = Path(source).with_suffix(".txt")
        if text is None:
            text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
        return self.frontend.prompt(source, text)

    def convert(self, source: str | os.PathLike, prompt: Prompt | str | os.PathLike) -> Utterance:
        """Prepare a recording to be said again in the prompt's voice (copy-synthesis: its own voice)."""
        return self.frontend.conversion(source, self.prompt(prompt))

    @cached_property
    def frontend(self) -> Frontend:
        """Text and audio to tokens and embeddings, with this checkpoint's own models."""
        return self.checkpoint.frontend()
