"""A checkpoint, made to speak: `Pipeline` holds the stages, `run.py` the path through them.

Each stage can also be run alone, from somebody else's tokens or mel.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.speech.batch import run_many
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Frontend, Prompt, Utterance
from workbench.speech.model_cache import Stages
from workbench.speech.models.flow import Condition, FlowStep
from workbench.speech.models.hift import Vocoded
from workbench.speech.models.lm import LMStep
from workbench.speech.models.sampling import Sampler, shorten_silences
from workbench.speech.onnx_estimator import OnnxEstimator
from workbench.speech.run import check_said, recorded_draws, run, utterance_of
from workbench.trace.record import NOTHING, Recorder, Save
from workbench.trace.trace import Trace


class Pipeline:
    """A checkpoint, made to speak.

    Parameters
    ----------
    checkpoint : Checkpoint
        The voice.
    device : str
        "cpu", "cuda" or "cuda:1".
    progress : bool
        Show a progress bar on what takes longer than a second.

    Raises
    ------
    WorkbenchError
        When the device is not there.

    Examples
    --------
    >>> pipe = Pipeline(Checkpoint.load("data/voices/tiny"))
    >>> utt = pipe.prepare("Eight months to Mars.", prompt="data/prompts/kumo_0.flac")
    >>> trace = pipe.synthesise(utt, seed=7)
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", progress: bool = True) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.device = _device(device)
        self.progress = progress
        self.stages = Stages(checkpoint, self.device, progress)
        self._seeded_noise = lru_cache(32)(self._drawn_noise)  # drawn whole, 5 MB each

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
            Seed of the sampler's draws; stands above `options.seed`.
        options : Options, optional
            The checkpoint's own by default.
        save : Save or globs
            What to keep beside what the stages hand to each other: NOTHING, SUMMARY (statistics of every
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
            When a stage cannot go on: no token came out, a mel has NaN in it, ...
        """
        return run(self, utt, self.options(options, seed), save, stop_after=stop_after)

    def synthesise_many(
        self,
        utts: Sequence[Utterance],
        variants: Sequence[Options] | None = None,
        save: Save | str | Iterable[str] = NOTHING,
    ) -> list[list[Trace]]:
        """Speak every variant of every utterance, one batch a stage.

        What is equal is made once: variants that differ in the flow share the LM's pass. Rows of one batch
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
            By utterance, then by variant. `attrs["timings"]` are seconds of a batch over its rows, and
            `attrs["rows"]` says how many those were.

        Raises
        ------
        WorkbenchError
            When a stage of any of the runs cannot go on.
        """
        return run_many(self, utts, [self.checkpoint.options] if variants is None else variants, save)

    def replay(
        self,
        trace: Trace,
        stage: str = "lm",
        options: Options | None = None,
        save: Save | str | Iterable[str] = NOTHING,
        stop_after: str = "hift",
    ) -> Trace:
        """Make a recorded run again, from any stage on; from the first, bit for bit on the same device.

        Parameters
        ----------
        trace : Trace
            Holds what the stage is given: `in/*` for all but the vocoder, `lm/speech_token` for the flow,
            `flow/x` for one of its steps, `flow/mel` for the vocoder.
        stage : str
            Where to begin: "lm", "flow", "flow/step/3" or "hift".
        options : Options, optional
            The trace's own by default.
        save, stop_after
            As in `synthesise`. A run that begins inside the ODE records from there; `attrs["first_step"]`
            says so.

        Raises
        ------
        WorkbenchError
            When the trace does not hold what the stage is given.
        """
        if options is None:
            options = self.checkpoint.options.but(**trace.attrs.get("options", {}))
        utt = None if stage == "hift" else utterance_of(trace)
        return run(self, utt, options, save, stage, stop_after, trace)

    def prepare(
        self,
        text: str,
        prompt: Prompt | str | os.PathLike,
        mode: str = "zero-shot",
        instruct: str | None = None,
    ) -> Utterance:
        """Turn a text and a prompt into what the models read.

        Parameters
        ----------
        text : str
            One segment; `prepare_all` splits longer ones.
        prompt : Prompt, or path
            A path's transcript is looked for in a `.txt` of the same name beside it.
        mode : {"zero-shot", "cross-lingual", "instruct"}
            See `Frontend.utterance`.
        instruct : str, optional
            How to speak, for the mode instruct.
        """
        return self.frontend.utterance(text, self.prompt(prompt), mode, instruct)

    def prepare_all(
        self,
        text: str,
        prompt: Prompt | str | os.PathLike,
        mode: str = "zero-shot",
        instruct: str | None = None,
    ) -> list[Utterance]:
        """Like `prepare`, for a text of any length: one utterance a segment."""
        return self.frontend.utterances(text, self.prompt(prompt), mode, instruct)

    def prompt(self, source: Prompt | str | os.PathLike, text: str | None = None) -> Prompt:
        """Prepare a recording to clone.

        Parameters
        ----------
        source : Prompt, or path
            A Prompt is returned as it is.
        text : str, optional
            Its transcript; by default what stands in the `.txt` of the same name, if there is one.
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

    # ---- one stage at a time

    def speech_token(
        self, utt: Utterance, options: Options | None = None, record: Recorder | None = None
    ) -> Tensor:
        """Text to speech tokens (L,); for a voice conversion the source's own."""
        drawn = self.bar(self.tokens(utt, options, record), "LM", " token")
        token = torch.tensor(list(drawn), dtype=torch.long)
        check_said(utt, token)
        return token

    def tokens(
        self, utt: Utterance, options: Options | None = None, record: Recorder | None = None
    ) -> Iterator[int]:
        """Speech tokens as they come, long silences shortened; for a voice conversion the source's own."""
        options = self.options(options)
        if utt.source_token is not None:
            return iter(utt.source_token.tolist())
        said = (step.token for step in recorded_draws(self.lm_steps(utt, options), record))
        return shorten_silences(said, self.config.silent_tokens, options.max_silent_run)

    @torch.no_grad()
    def lm_steps(self, utt: Utterance, options: Options | None = None) -> Iterator[LMStep]:
        """Decode token by token; silences are not shortened yet."""
        options, utt = self.options(options), utt.to(self.device)
        if not options.eager("lm"):
            yield from (step for _, step in self.stages.fast_lm(options).steps([utt], [options]))
            return
        sampler = Sampler(options, self.config.lm, self.config.silent_tokens)
        lm = self.stage("lm", options.lm_dtype)
        yield from lm.steps(
            utt.text_token, utt.prompt_text_token, utt.lm_prompt_token, sampler, options.max_tokens
        )

    @torch.no_grad()
    def condition(
        self, utt: Utterance, token: Tensor, options: Options | None = None, finalize: bool = True
    ) -> Condition:
        """What the flow's estimator is told for these speech tokens."""
        utt, options = utt.to(self.device), self.options(options)
        return self.stages.flow(options).condition(
            token.to(self.device), utt.flow_prompt_token, utt.prompt_mel, utt.spk_embedding, finalize
        )

    @torch.no_grad()
    def flow_steps(
        self,
        c: Condition,
        options: Options | None = None,
        streaming: bool = False,
        start: int = 0,
        x: Tensor | None = None,
    ) -> Iterator[FlowStep]:
        """Solve the ODE step by step; the last step's `x_next` is the mel, prompt included.

        `start` and the state `x` (1, 80, T) there leave out the steps before.
        """
        options = self.options(options)
        x = self.noise(c.mu.shape[-1], options) if x is None else x.to(self.device)
        if not options.eager("flow"):
            batch = self.stages.fast_flow(options).steps([c], [x], [options], streaming, start)
            yield from (step for [step] in batch)
            return
        flow = self.stage("flow", options.flow_dtype)
        yield from flow.steps(c, x, options, streaming, start, self.estimator(options))

    def mel(
        self,
        utt: Utterance,
        token: Tensor,
        options: Options | None = None,
        finalize: bool = True,
        streaming: bool = False,
    ) -> Tensor:
        """Speech tokens to the target's mel (1, 80, T), float32."""
        options = self.options(options)
        c = self.condition(utt, token, options, finalize)
        steps = self.flow_steps(c, options, streaming)
        for step in self.bar(steps, "flow", " step", options.n_timesteps):
            mel = step.x_next
        return self.target(mel, c.prompt_frames, 1.0 if streaming else options.speed)

    def target(self, mel: Tensor, prompt_frames: int, speed: float) -> Tensor:
        """Cut the prompt off, (1, 80, T) float32, and play it faster or slower."""
        mel = mel[..., prompt_frames:].float()
        if speed != 1.0:
            mel = F.interpolate(mel, size=max(1, int(mel.shape[-1] / speed)), mode="linear")
        return mel

    @torch.no_grad()
    def vocode(self, mel: Tensor, options: Options | None = None, finalize: bool = True) -> Vocoded:
        """Mel (1, 80, T) to sound."""
        options, mel = self.options(options), mel.to(self.device)
        head_dtype = getattr(torch, options.head_dtype)
        if not options.eager("hift"):
            [sound] = self.stages.fast_hift(options)([mel], finalize, head_dtype)
        else:
            hift = self.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
            n = mel.shape[-1] * self.config.hift.hop_length
            noise = self.checkpoint.noise.excitation(n).to(self.device)
            sound = hift(mel, noise, finalize, head_dtype=head_dtype)
        return sound._replace(wav=sound.wav.float())

    def noise(self, n_frames: int, options: Options | None = None) -> Tensor:
        """Where the ODE starts, (1, 80, n_frames): upstream's fixed tensor, or one from `noise_seed`."""
        seed = self.options(options).noise_seed
        fixed = self._fixed_noise
        if n_frames > fixed.shape[-1]:
            raise WorkbenchError(
                f"{n_frames} mel frames with the prompt are asked for; the noise reaches {fixed.shape[-1]} "
                f"({fixed.shape[-1] / self.config.mel.frame_rate:.0f} s). Split the text: prepare_all does"
            )
        if seed is not None:
            fixed = self._seeded_noise(seed)
        return fixed[..., :n_frames].to(self.device)

    # ---- what the stages stand on

    @cached_property
    def frontend(self) -> Frontend:
        """Text and audio to tokens and embeddings, with this checkpoint's own models."""
        return self.checkpoint.frontend()

    @cached_property
    def _fixed_noise(self) -> Tensor:
        return self.checkpoint.noise.ode()

    def _drawn_noise(self, seed: int) -> Tensor:
        return torch.randn(self._fixed_noise.shape, generator=torch.Generator().manual_seed(seed))

    def options(self, options: Options | None, seed: int | None = None) -> Options:
        """The given options, or the checkpoint's own; `seed` stands above both."""
        options = options or self.checkpoint.options
        return options if seed is None else options.but(seed=seed)

    def stage(self, name: str, dtype: str, *parts: str) -> nn.Module:
        """A model in some precision; see `Stages.eager`."""
        return self.stages.eager(name, dtype, *parts)

    def estimator(self, options: Options | None = None) -> OnnxEstimator | None:
        """What gives the velocity in place of the flow's own network, if anything; opened once and kept."""
        return self.stages.estimator(self.options(options))

    def watched(self, bar: Callable[[Iterator, str, str, int | None], Iterator]) -> "Pipeline":
        """Return the same pipeline with another `bar`, which may show its steps or stop the run."""
        other = copy.copy(self)
        other.bar = bar
        return other

    def bar(self, steps: Iterator, name: str, unit: str, total: int | None = None) -> Iterator:
        """Show how far a loop is, once it has taken a second."""
        return tqdm(steps, name, total, leave=False, unit=unit, delay=1.0, disable=not self.progress)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WorkbenchError(f"device is {name!r}; expected 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise WorkbenchError(f"device is {name!r}; this workbench runs on 'cpu' and 'cuda'")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise WorkbenchError(
            f"device is {name!r} and torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device='cpu', or install a torch build and driver with CUDA"
        )
    return device
