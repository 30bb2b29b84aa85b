"""The numbers of CosyVoice3, with their units: `Config` for sizes, `Options` for the settings of a run.

The weights depend on a `Config`, which is part of a `Checkpoint`. `Options` may differ from run to run and
are part of a trace. Defaults are those of the released Fun-CosyVoice3-0.5B and of upstream's inference; a
smaller voice states its own sizes in its `cosyvoice3.yaml`.

Shape letters, here and in the model files: `B` batch, `L` speech tokens, `T` mel frames, `M` mel
bins, `N` samples, `D` width, `K` knots of the time grid.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError
from workbench.trace.schema import FLOW_INPUTS, LM_INPUTS, SAMPLE_RATE, TOKEN_RATE

DTYPES: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")
SOLVERS: tuple[str, ...] = ("euler", "midpoint", "heun")
T_SCHEDULERS: tuple[str, ...] = ("cosine", "linear")
COMPUTE: tuple[str, ...] = ("eager", "exact", "fast")
ESTIMATORS: tuple[str, ...] = ("torch", "onnx")  # or the path of an .onnx file
MAX_TIMESTEPS = 64  # steps of the ODE; more change nothing that can be heard
MAX_INTEGER = 2**63 - 1  # what an int64 tensor holds

# Ids of the released speech tokenizer that stand for silence or breath (upstream cli/model.py).
SILENT_TOKENS = (1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323)


class Stage(NamedTuple):
    """One of the three stages: its inputs, its output, and the options that change the output."""

    inputs: tuple[str, ...]  # fields of a trace that the stage needs
    output: str  # the field that the next stage needs
    options: tuple[str, ...]  # names of the options that change the output
    fast_dtype: str  # takes the place of float32 with `compute="fast"`


# text -> lm -> speech tokens -> flow -> mel -> hift -> waveform
STAGES = {
    "lm": Stage(
        inputs=LM_INPUTS,
        output="lm/speech_token",
        options=(
            *("lm_dtype", "top_p", "top_k", "win_size", "tau_r", "seed", "mask_stop_ids"),
            *("silent_tokens_repeat", "repetition_fallback", "max_silent_run", "max_tokens", "compute"),
        ),
        fast_dtype="bfloat16",
    ),
    "flow": Stage(
        inputs=("lm/speech_token", *FLOW_INPUTS),
        output="flow/mel",
        options=(
            *("n_timesteps", "solver", "t_scheduler", "cfg_rate", "temperature"),
            *("estimator", "noise_seed", "flow_dtype", "speed", "compute"),
        ),
        fast_dtype="bfloat16",
    ),
    "hift": Stage(
        inputs=("flow/mel",),
        output="hift/wav",
        options=("hift_dtype", "f0_dtype", "source_dtype", "head_dtype", "compute"),
        fast_dtype="float32",  # TF32 products on a GPU, which is no dtype
    ),
}
NAMES = tuple(STAGES)
LM, FLOW, HIFT = NAMES


@dataclass(frozen=True)
class MelConfig:
    """Log-mel features: natural log, Slaney filters."""

    sample_rate: int = SAMPLE_RATE  # Hz
    n_fft: int = 1920  # samples, 80 ms
    win_length: int = 1920  # samples
    hop_length: int = 480  # samples, 20 ms
    n_mels: int = 80
    fmin: float = 0.0  # Hz
    fmax: float | None = None  # Hz; None is half the sample rate

    @property
    def frame_rate(self) -> float:
        """Mel frames per second."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class LMConfig:
    """Qwen2 decoder over text and speech tokens."""

    speech_token_size: int = 6561  # 3**8 FSQ codes; the ids above are sos, eos, task, fill and unused ones
    n_special: int = 200  # how many ids are above
    mix_ratio: tuple[int, int] = (5, 15)  # text : speech tokens when text arrives as a stream
    hidden_size: int = 896
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864
    vocab_size: int = 151_936
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    min_token_text_ratio: float = 2.0  # speech tokens per text token before which the LM may not stop
    max_token_text_ratio: float = 20.0  # speech tokens per text token at which decoding is cut off

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def n_ids(self) -> int:
        """Rows of the speech embedding and of the output layer."""
        return self.speech_token_size + self.n_special

    @property
    def sos(self) -> int:
        """Start of sequence. Every id from here on stops decoding."""
        return self.speech_token_size

    @property
    def eos(self) -> int:
        """End of speech."""
        return self.speech_token_size + 1

    @property
    def task_id(self) -> int:
        """Boundary between text and speech."""
        return self.speech_token_size + 2

    @property
    def fill(self) -> int:
        """Request for more text when text arrives as a stream."""
        return self.speech_token_size + 3


@dataclass(frozen=True)
class DiTConfig:
    """The flow's velocity estimator, a diffusion transformer."""

    dim: int = 1024
    depth: int = 22
    heads: int = 16
    dim_head: int = 64
    ff_mult: int = 2
    mel_dim: int = 80
    mu_dim: int = 80
    spk_dim: int = 80
    out_channels: int = 80
    static_chunk_size: int = 50  # mel frames per chunk of the attention mask in streaming
    num_decoding_left_chunks: int = -1  # upstream ignores it: a chunk attends to all chunks before it


@dataclass(frozen=True)
class FlowConfig:
    """The flow: speech tokens to mel."""

    vocab_size: int = 6561
    output_size: int = 80  # mel bins
    spk_embed_dim: int = 192
    token_mel_ratio: int = 2  # mel frames per token
    pre_lookahead_len: int = 3  # tokens
    pre_lookahead_channels: int = 1024
    input_frame_rate: int = TOKEN_RATE  # tokens per second
    noise_frames: int = 15_000  # length of upstream's fixed noise: 300 s
    dit: DiTConfig = field(default_factory=DiTConfig)


@dataclass(frozen=True)
class HiFTConfig:
    """The vocoder, mel to waveform: f0 -> harmonic source -> inverse STFT."""

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = SAMPLE_RATE  # Hz
    nsf_alpha: float = 0.1  # amplitude of each sine
    nsf_sigma: float = 0.003  # noise amplitude where voiced
    nsf_voiced_threshold: float = 10.0  # Hz
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernel_sizes: tuple[int, ...] = (16, 11, 7)
    istft_n_fft: int = 16
    istft_hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99  # samples beyond it are clipped
    conv_pre_look_right: int = 4  # mel frames
    f0_cond_channels: int = 512
    noise_samples: int = 7_200_000  # length of the stored excitation noise: 300 s

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        hop = self.istft_hop_len
        for rate in self.upsample_rates:
            hop *= rate
        return hop


@dataclass(frozen=True)
class Config:
    """The sizes and rates that the weights of one CosyVoice3 checkpoint depend on.

    Parameters
    ----------
    mel, lm, flow, hift, chunk_size, silent_tokens, scripts
        As said below, beside each field.

    Examples
    --------
    >>> wb.Config().lm.hidden_size  # the released model
    896
    >>> voice.config.token_rate, voice.config.mel.frame_rate  # per second
    (25, 50.0)
    """

    mel: MelConfig = field(default_factory=MelConfig)
    lm: LMConfig = field(default_factory=LMConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)
    chunk_size: int = 25  # speech tokens per chunk in streaming
    silent_tokens: tuple[int, ...] = SILENT_TOKENS
    scripts: tuple[str, ...] = ()  # Unicode scripts that the voice can read, such as LATIN; empty for any

    @property
    def token_rate(self) -> int:
        """Speech tokens per second."""
        return self.flow.input_frame_rate


RELEASED = Config()  # sizes and rates of the released model


@dataclass(frozen=True)
class Options:
    """Settings of one run. The defaults are what upstream does.

    Parameters
    ----------
    n_timesteps : int
        ODE steps, 1..64. Upstream hard-codes 10.
    solver : {"euler", "midpoint", "heun"}
        midpoint and heun evaluate the velocity twice per step.
    t_scheduler : {"cosine", "linear"}
        `t = 1 - cos(pi/2 * u)` or `t = u` for `u` evenly spaced in [0, 1].
    cfg_rate : float
        `velocity = cond + cfg_rate * (cond - uncond)`; 0 is no guidance: the conditional
        branch alone.
    temperature : float
        Scale of the ODE's initial noise.
    estimator : str
        What computes the velocity. "torch": the model. "onnx": the checkpoint's
        `flow.decoder.estimator.fp32.onnx` in ONNX Runtime, exported from its weights where there is no such
        file. Or the path of another such file. ONNX runs in float32 and cannot stream.
    compute : {"eager", "exact", "fast"}
        How the stages run. "eager" is the plain model, layer by layer: the reference. "exact" does less work
        and differs by rounding of float32: what is the same in every step is computed once, and a GPU replays
        CUDA graphs and splits a float32 product into three products on tensor cores. "fast" also lowers the
        precision of stages that are in float32: LM and flow to bfloat16, the vocoder to TF32.
    noise_seed : int or None
        Seed of the noise that the flow starts from. None is upstream's one fixed noise tensor, so that no
        seed changes the mel.
    lm_dtype, flow_dtype, hift_dtype : str
        Arithmetic of each stage: float16, bfloat16, float32 or float64.
    f0_dtype, source_dtype, head_dtype : str
        Arithmetic of the vocoder's f0 predictor (upstream casts it to float64), of its excitation
        and of its last step, exp, sin and inverse STFT; `hift_dtype` is the trunk between them.
    top_p, top_k, win_size, tau_r
        Repetition-aware sampling. A token is drawn from the nucleus: the `top_k` likeliest ids, up to a
        probability of `top_p`. It is drawn again if it is among the last `win_size` tokens at least
        `win_size * tau_r` times (not rounded).
    seed : int
        Seed of the sampler's draws.
    mask_stop_ids : bool
        True keeps every stop id from being drawn before the minimum length. Upstream intends that, but
        masks `sos` in place of `eos` (`speech_token_size` in place of `+ 1`), so that speech may end early.
    silent_tokens_repeat : bool
        False: silent tokens do not count as repetition, as in the case.
    repetition_fallback : {"full", "top_k"}
        Distribution of the second draw of repetition-aware sampling: all ids as upstream, or the `top_k`
        likeliest ids as in the case.
    max_silent_run : int or None
        How many silent tokens in a row the flow is given; further ones are dropped, though not from the LM's
        own history. Upstream: 5. None keeps all.
    max_tokens : int or None
        Largest number of generated speech tokens, in addition to the limit by the length of the text.
    stream_final_offline : bool
        Streaming: True computes the last chunk without the chunk mask, as upstream does, so that its
        frames do not continue those before. False keeps the mask.
    speed : float
        Playback speed, by linear interpolation of the mel; not when streaming.

    Raises
    ------
    WorkbenchError
        When a value has the wrong type or is out of range.

    Examples
    --------
    >>> options = voice.options.but(n_timesteps=4, seed=7)
    >>> options.n_timesteps
    4
    >>> wb.Options(solver="rk4")
    Traceback (most recent call last):
    workbench.errors.WorkbenchError: solver is 'rk4'; expected one of euler, midpoint, heun
    """

    n_timesteps: int = 10
    solver: str = "euler"
    t_scheduler: str = "cosine"
    cfg_rate: float = 0.7
    temperature: float = 1.0
    estimator: str = "torch"
    compute: str = "eager"
    noise_seed: int | None = None
    lm_dtype: str = "float32"
    flow_dtype: str = "float32"
    hift_dtype: str = "float32"
    f0_dtype: str = "float64"
    source_dtype: str = "float32"
    head_dtype: str = "float32"
    top_p: float = 0.8
    top_k: int = 25
    win_size: int = 10
    tau_r: float = 0.1
    seed: int = 0
    mask_stop_ids: bool = False
    silent_tokens_repeat: bool = True
    repetition_fallback: str = "full"
    max_silent_run: int | None = 5
    max_tokens: int | None = None
    stream_final_offline: bool = True
    speed: float = 1.0

    def __post_init__(self) -> None:
        _choice("solver", self.solver, SOLVERS)
        _choice("t_scheduler", self.t_scheduler, T_SCHEDULERS)
        _choice("compute", self.compute, COMPUTE)
        _choice("repetition_fallback", self.repetition_fallback, ("full", "top_k"))
        for name in ("lm_dtype", "flow_dtype", "hift_dtype", "f0_dtype", "source_dtype", "head_dtype"):
            _choice(name, getattr(self, name), DTYPES)
        is_path = isinstance(self.estimator, str) and self.estimator.endswith(".onnx")
        if not is_path and self.estimator not in ESTIMATORS:
            allowed = ", ".join(ESTIMATORS)
            raise WorkbenchError(
                f"estimator is {self.estimator!r}; expected {allowed}, or the path of an .onnx file, a str"
            )
        for name in ("mask_stop_ids", "silent_tokens_repeat", "stream_final_offline"):
            _choice(name, getattr(self, name), (False, True))
        _between("seed", self.seed, 0, MAX_INTEGER, whole=True)
        for name, low in (("noise_seed", 0), ("max_tokens", 1), ("max_silent_run", 0)):
            if getattr(self, name) is not None:
                _between(name, getattr(self, name), low, MAX_INTEGER, whole=True)
        _between("n_timesteps", self.n_timesteps, 1, MAX_TIMESTEPS, whole=True)
        _between("cfg_rate", self.cfg_rate, -10, 10)
        _between("temperature", self.temperature, 0, 10)
        _between("top_p", self.top_p, 0, 1)
        _between("top_k", self.top_k, 1, 100_000, whole=True)
        _between("win_size", self.win_size, 0, 100_000, whole=True)
        _between("tau_r", self.tau_r, 0, 1_000)
        _between("speed", self.speed, 0.25, 4)

    def of_stage(self, stage: str) -> dict[str, Any]:
        """Return the options that change the output of a stage."""
        names = [f.name for f in fields(self) if f.name in STAGES[stage].options]
        return {name: getattr(self, name) for name in names}

    def dtype_of(self, stage: str) -> str:
        """Return the type of a stage's weights: its own option, or the lower precision of "fast"."""
        dtype = getattr(self, f"{stage}_dtype")
        if self.compute == "fast" and not self.eager(stage) and dtype == "float32":
            return STAGES[stage].fast_dtype
        return dtype

    def eager(self, stage: str) -> bool:
        """Whether a stage runs layer by layer, one utterance at a time; so does an ONNX estimator."""
        return self.compute == "eager" or (stage == "flow" and self.estimator != "torch")

    def but(self, **changes: Any) -> "Options":
        """Return a copy with some fields changed."""
        known = {f.name for f in fields(self)}
        for name in changes:
            _choice("option name", name, tuple(sorted(known)))
        return replace(self, **changes)


def _choice(name: str, found: Any, allowed: tuple) -> None:
    """Raise unless a value is one of those allowed and of their type: 1 is not True."""
    if type(found) is not type(allowed[0]) or found not in allowed:
        raise WorkbenchError(f"{name} is {found!r}; expected one of {', '.join(map(str, allowed))}")


def _between(name: str, found: Any, low: float, high: float, whole: bool = False) -> None:
    """Raise unless a value is a number from `low` to `high`; True and False are none."""
    is_number = isinstance(found, int) or (not whole and isinstance(found, float))
    if isinstance(found, bool) or not is_number or not low <= found <= high:
        kind = "a whole number" if whole else "a number"
        raise WorkbenchError(f"{name} is {found!r}; expected {kind} from {low} to {high}")
