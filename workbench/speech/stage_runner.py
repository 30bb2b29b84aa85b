"""`StageRunner`: one stage of CosyVoice3 at a time, for one utterance or for a batch of them.

Each stage can be run alone, from somebody else's tokens or mel. `run.py` is the path through all three.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.progress import ProgressBar
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.frontend.given import given_mel, given_tokens
from workbench.speech.frontend.text import TextTokenizer
from workbench.speech.frontend.utterance import on_device
from workbench.speech.model_cache import ModelCache
from workbench.speech.models.flow import Condition, FlowStep
from workbench.speech.models.hift import Vocoded
from workbench.speech.models.hift_window import Past
from workbench.speech.models.lm import LMStep
from workbench.speech.models.lm_bistream import check_reads_streams, steps_bistream
from workbench.speech.models.sampling import Sampler, shorten_silences
from workbench.speech.onnx.estimator import OnnxEstimator

SEEDED_NOISES = 32  # kept of `noise_seed`; each is drawn at full length, 5 MB


class StageRunner:
    """The three stages of a checkpoint on one device.

    Methods named `*_batch` take rows that share the model, its precision and its rules; with
    `compute="eager"` a batch has one row. The others take one utterance. `options` are the checkpoint's own
    unless given.

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
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", progress: bool = True) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.device = open_device(device)
        self.progress = progress
        self.models = ModelCache(checkpoint, self.device, progress)
        # Not a method, which would hold the runner, so that its gigabytes go as soon as nobody has it.
        self._seeded_noise = lru_cache(SEEDED_NOISES)(_drawn_noise)

    # ---- text -> speech tokens

    def speech_token(self, utt: Utterance, options: Options | None = None) -> Tensor:
        """Draw the speech tokens of an utterance; a voice conversion has its recording's own.

        Parameters
        ----------
        utt : Utterance
        options : Options, optional

        Returns
        -------
        Tensor (L,)
            Token ids, 25 a second, with long silences shortened.

        Examples
        --------
        >>> pipe.speech_token(utt).ndim
        1
        """
        tokens = self.bar(self.tokens(utt, options), "LM", " token")
        token = torch.tensor(list(tokens), dtype=torch.long)
        check_spoken(utt, token)
        return token

    def tokens(
        self, utt: Utterance, options: Options | None = None, wanted: Callable[[], int] | None = None
    ) -> Iterator[int]:
        """Yield speech tokens one by one, with long silences shortened; see `lm_batch` for `wanted`."""
        options = self.options(options)
        if utt.source_token is not None:
            return iter(utt.source_token.tolist())
        drawn = (step.token for _, step in self.lm_batch([utt], [options], wanted))
        return shorten_silences(drawn, self.config.silent_tokens, options.max_silent_run)

    def lm_steps(self, utt: Utterance, options: Options | None = None) -> Iterator[LMStep]:
        """Yield the LM's draws one by one; silences are not shortened yet."""
        for _, step in self.lm_batch([utt], [self.options(options)]):
            yield step

    @torch.no_grad()
    def lm_batch(
        self,
        utts: Sequence[Utterance],
        options: Sequence[Options],
        wanted: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, LMStep]]:
        """Yield (row, draw) in the order in which rows of a batch draw.

        Where given, `wanted()` says how many more draws of a row are taken before the caller turns to other
        work; a GPU then does not draw further ahead.
        """
        utts = on_device(utts, self.device)
        if not options[0].eager("lm"):
            if any(utt.text_stream is not None for utt in utts):
                raise WorkbenchError("text that arrives as a stream is read with compute='eager' alone")
            yield from self.models.fast_lm(options[0]).steps(utts, options, wanted)
            return
        [utt], [own] = utts, options
        sampler = Sampler(own, self.config.lm, self.config.silent_tokens, utt.lm_prompt_token.tolist())
        lm = self.stage("lm", own.lm_dtype, weights=own.weights)
        from_logits = own.repetition_penalty != 1.0
        if utt.text_stream is None:
            inputs = (utt.text_token, utt.prompt_text_token, utt.lm_prompt_token)
            steps = lm.steps(*inputs, sampler, own.max_tokens, from_logits)
        elif from_logits:
            raise WorkbenchError("text that arrives as a stream is read with repetition_penalty=1 alone")
        else:
            chunks = (ids.to(self.device) for ids in utt.text_stream)
            inputs = (chunks, utt.prompt_text_token, utt.lm_prompt_token, sampler, self._end_of_prompt)
            steps = steps_bistream(lm, *inputs, own.max_tokens, check_reads_streams)
        for step in steps:
            yield 0, step

    # ---- speech tokens -> mel

    @torch.no_grad()
    def condition(
        self, utt: Utterance, token: Tensor, options: Options | None = None, finalize: bool = True
    ) -> Condition:
        """Compute the inputs of the flow's estimator from speech tokens.

        Parameters
        ----------
        utt : Utterance
            Gives the prompt's tokens, its mel and the speaker embedding.
        token : Tensor (L,)
            Speech tokens of the target.
        options : Options, optional
        finalize : bool
            False where more tokens will follow: the last ones are then only look-ahead.

        Returns
        -------
        Condition
            mu, spks, cond, and where the target begins.
        """
        utt, options = utt.to(self.device), self.options(options)
        return self.models.flow(options).condition(
            token.to(self.device), utt.flow_prompt_token, utt.prompt_mel, utt.spk_embedding, finalize
        )

    def flow_steps(
        self,
        c: Condition,
        options: Options | None = None,
        streaming: bool = False,
        start: int = 0,
        x: Tensor | None = None,
    ) -> Iterator[FlowStep]:
        """Solve the ODE and yield its steps; the last step's `x_next` is the mel, prompt included.

        Parameters
        ----------
        c : Condition
            From `condition`.
        options : Options, optional
        streaming : bool
            Let a frame see no further than its chunk.
        start : int
            The first step to compute.
        x : Tensor (1, M, T), optional
            The state at `start`; the noise at step 0.

        Yields
        ------
        FlowStep
        """
        states = None if x is None else [x]
        for [step] in self.flow_batch([c], [self.options(options)], streaming, start, states):
            yield step

    @torch.no_grad()
    def flow_batch(
        self,
        conditions: Sequence[Condition],
        options: Sequence[Options],
        streaming: bool = False,
        start: int = 0,
        states: Sequence[Tensor] | None = None,
    ) -> Iterator[list[FlowStep]]:
        """Solve the ODE of each row and yield the rows' steps; `states` (1, M, T) are given with `start`."""
        if states is None:
            states = [self.noise(c.mu.shape[-1], own) for c, own in zip(conditions, options, strict=True)]
        states = [x.to(self.device) for x in states]
        if not options[0].eager("flow"):
            yield from self.models.fast_flow(options[0]).steps(conditions, states, options, streaming, start)
            return
        [c], [x], [own] = conditions, states, options
        flow = self.stage("flow", own.flow_dtype, weights=own.weights)
        for step in flow.steps(c, x, own, streaming, start, self.estimator(own)):
            yield [step]

    def mel(
        self,
        utt: Utterance,
        token: Tensor,
        options: Options | None = None,
        finalize: bool = True,
        streaming: bool = False,
    ) -> Tensor:
        """Turn speech tokens into the target's mel.

        Parameters
        ----------
        utt : Utterance
        token : Tensor, array or sequence of int (L,)
            Anybody's speech tokens; `trace["lm/speech_token"]` are those of a run.
        options : Options, optional
        finalize, streaming
            As in `condition` and `flow_steps`.

        Returns
        -------
        Tensor (1, M, T)
            Natural-log mel without the prompt, float32.

        Raises
        ------
        WorkbenchError
            When the tokens are not speech tokens of this voice.

        Examples
        --------
        >>> mel = pipe.mel(utt, trace["lm/speech_token"], options=voice.options.but(n_timesteps=1))
        >>> mel.shape[:2]
        torch.Size([1, 80])
        """
        options = self.options(options)
        c = self.condition(utt, given_tokens(token, self.config), options, finalize)
        steps = self.flow_steps(c, options, streaming)
        for step in self.bar(steps, "flow", " step", options.n_timesteps):
            mel = step.x_next
        return self.target(mel, c.prompt_frames, 1.0 if streaming else options.speed)

    def target(self, mel: Tensor, prompt_frames: int, speed: float) -> Tensor:
        """Cut the prompt off a mel, (1, M, T) float32, and stretch or shrink it for `speed`."""
        mel = mel[..., prompt_frames:].float()
        if speed != 1.0:
            mel = F.interpolate(mel, size=max(1, int(mel.shape[-1] / speed)), mode="linear")
        return mel

    def noise(self, n_frames: int, options: Options | None = None) -> Tensor:
        """Return the ODE's initial noise (1, M, n_frames): upstream's fixed one, or one of `noise_seed`."""
        seed = self.options(options).noise_seed
        noise = self._fixed_noise
        if seed is not None:
            noise = self._seeded_noise(seed, noise.shape)
        longest = noise.shape[-1]
        if n_frames > longest:
            raise WorkbenchError(
                f"the utterance has {n_frames} mel frames with its prompt; expected {longest} at most "
                f"({longest / self.config.mel.frame_rate:.0f} s). Split the text: prepare_all does"
            )
        return noise[..., :n_frames].to(self.device)

    # ---- mel -> waveform

    def vocode(self, mel: Tensor, options: Options | None = None, finalize: bool = True) -> Vocoded:
        """Turn a mel into sound.

        Parameters
        ----------
        mel : Tensor or array (1, M, T) or (M, T)
            Natural-log mel.
        options : Options, optional
        finalize : bool
            False where more mel will follow: the last frames are then only look-ahead.

        Returns
        -------
        Vocoded
            f0, source, magnitude, phase and wav.

        Raises
        ------
        WorkbenchError
            When the mel has another shape.

        Examples
        --------
        >>> pipe.vocode(trace["flow/mel"]).wav.shape[-1] == 480 * trace["flow/mel"].shape[-1]
        True
        """
        [sound] = self.vocode_batch([given_mel(mel, self.config)], self.options(options), finalize)
        return sound

    @torch.no_grad()
    def vocode_batch(
        self, mels: Sequence[Tensor], options: Options, finalize: bool = True, pasts: Sequence[Past] = ()
    ) -> list[Vocoded]:
        """Turn each row's mel (1, M, T) into sound; `pasts` are of mels that go on from earlier ones."""
        mels = [mel.to(self.device) for mel in mels]
        pasts = pasts or [Past()] * len(mels)
        head_dtype = getattr(torch, options.head_dtype)
        if not options.eager("hift"):
            sounds = self.models.fast_hift(options)(mels, finalize, head_dtype, pasts)
        else:
            [mel], [past] = mels, pasts
            dtypes = options.hift_dtype, options.f0_dtype, options.source_dtype
            hift = self.stage("hift", *dtypes, weights=options.weights)
            hop = self.config.hift.hop_length
            noise = self.checkpoint.noise.excitation((past.frame + mel.shape[-1]) * hop)
            noise = noise[:, past.frame * hop :].to(self.device)
            core = self.models.vocoder(options)
            sounds = [hift(mel, noise, finalize, None, head_dtype, core, past.turns)]
        return [sound._replace(wav=sound.wav.float()) for sound in sounds]

    # ---- what the stages need

    def options(self, options: Options | None, seed: int | None = None) -> Options:
        """Return the given options or the checkpoint's own; `seed`, where given, replaces theirs."""
        options = options or self.checkpoint.options
        return options if seed is None else options.but(seed=seed)

    def stage(self, name: str, dtype: str, *parts: str, weights: str | None = None) -> nn.Module:
        """Return the eager model of a stage in some precision; see `ModelCache.eager`."""
        return self.models.eager(name, dtype, *parts, weights=weights)

    def estimator(self, options: Options | None = None) -> OnnxEstimator | None:
        """Return the network that replaces the flow's own, if any; it is opened once."""
        return self.models.estimator(self.options(options))

    def watched(self, bar: Callable[[Iterator, str, str, int | None], Iterator]) -> "StageRunner":
        """Return a copy that shows its loops with another `bar`, which may also stop them."""
        other = copy.copy(self)
        other.bar = bar
        return other

    def bar(self, steps: Iterator, name: str, unit: str, total: int | None = None) -> Iterator:
        """Show how far a loop is, once it has taken a second."""
        return ProgressBar(steps, name, total, leave=False, unit=unit, delay=1.0, disable=not self.progress)

    @cached_property
    def _end_of_prompt(self) -> int:
        return TextTokenizer.load(self.checkpoint.tokenizer).end_of_prompt

    @cached_property
    def _fixed_noise(self) -> Tensor:
        return self.checkpoint.noise.ode().to(self.device)


def _drawn_noise(seed: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check_spoken(utt: Utterance, token: Tensor) -> None:
    """Raise a WorkbenchError where the LM drew no speech token."""
    if not len(token):
        raise WorkbenchError(
            f"the LM ended {utt.text!r:.80} before the first token; "
            "try another seed, the option mask_stop_ids, or a text of the voice's language"
        )


def open_device(name: str) -> torch.device:
    """Return a device by name, or raise a WorkbenchError that says what this machine has."""
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
