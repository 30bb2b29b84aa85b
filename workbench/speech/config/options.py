"""The settings of a run: `Options`, the stages that they belong to, and presets of other programs."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError
from workbench.speech.config.formats import rules_of_stage, rules_text
from workbench.trace.schema import FLOW_INPUTS, LM_INPUTS

DTYPES: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")
SOLVERS: tuple[str, ...] = ("euler", "midpoint", "heun")
T_SCHEDULERS: tuple[str, ...] = ("cosine", "linear")
COMPUTE: tuple[str, ...] = ("eager", "exact", "fast")
PROGRAMS: tuple[str, ...] = ("torch", "onnx")  # of estimator and vocoder; or the path of an .onnx file
MAX_TIMESTEPS = 64  # steps of the ODE; more change nothing that can be heard
MAX_INTEGER = 2**63 - 1  # what an int64 tensor holds


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
            *("top_p_of", "token_temperature", "repetition_penalty"),
            *("silent_tokens_repeat", "repetition_fallback", "max_silent_run", "max_tokens", "compute"),
            "weights",
        ),
        fast_dtype="bfloat16",
    ),
    "flow": Stage(
        inputs=("lm/speech_token", *FLOW_INPUTS),
        output="flow/mel",
        options=(
            *("n_timesteps", "solver", "t_scheduler", "cfg_rate", "temperature"),
            *("estimator", "noise_seed", "flow_dtype", "speed", "compute", "weights"),
        ),
        fast_dtype="bfloat16",
    ),
    "hift": Stage(
        inputs=("flow/mel",),
        output="hift/wav",
        options=("hift_dtype", "f0_dtype", "source_dtype", "head_dtype", "vocoder", "compute", "weights"),
        fast_dtype="float32",  # TF32 products on a GPU, which is no dtype
    ),
}
NAMES = tuple(STAGES)
LM, FLOW, HIFT = NAMES


# How other programs sample tokens. Neither is repetition-aware: no token is in a window often enough.
NO_WINDOW = 1000.0  # as tau_r
PRESETS: dict[str, dict[str, Any]] = {
    "vllm": {
        "top_p": 1.0,
        "top_k": 25,
        "tau_r": NO_WINDOW,
        "token_temperature": 1.0,
        "repetition_penalty": 1.0,
        "mask_stop_ids": True,
        "lm_dtype": "bfloat16",
    },
    "trtllm-serve": {
        "top_p": 0.95,
        "top_k": 50,
        "top_p_of": "top_k",
        "tau_r": NO_WINDOW,
        "token_temperature": 0.8,
        "repetition_penalty": 1.1,
        "mask_stop_ids": False,
        "max_tokens": 750,
        "lm_dtype": "bfloat16",
    },
}


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
        file. Or the path of anybody's .onnx file; only one with the chunk mask inside can stream.
    vocoder : str
        What computes magnitude and phase. "torch": the model. "onnx": the vocoder's core, exported from the
        weights, in ONNX Runtime. Or the path of a file such as `hift_decode_core.onnx`.
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
    top_p_of : {"all", "top_k"}
        What `top_p` is a share of: all ids as upstream, or the `top_k` likeliest as in TensorRT-LLM.
    token_temperature, repetition_penalty : float
        Of servers; 1 is none, as upstream. Logits of tokens in the prompt or drawn before are divided by the
        penalty where they are positive and multiplied by it where they are negative; then all are divided by
        the temperature. With one of these three the LM runs as with `compute="eager"`.
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
    weights : str, dict or Path, optional
        Number formats of the weights of linear layers, convolutions and embedding tables: a format for all,
        such as "q4_k"; globs of layers with formats, such as `{"lm": "q4_k", "flow.decoder.*": "int8"}`, of
        which the last one that matches a layer or a module around it counts; or a TOML file of these. The
        option keeps them as one line. `wb.formats()` lists the formats and `wb.layers(voice)` the layers.
        Weights are quantised from float32 and dequantised, and the ordinary model runs with them in the
        stage's dtype; with "int8:dynamic" or "q4_0:dynamic" linear layers quantise their inputs too, as
        torchao's and ggml's kernels do. Left out is what these add to that: integer sums. Norms and biases
        stay. Of a weight norm, the product is quantised.

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
    >>> voice.options.preset("trtllm-serve").repetition_penalty
    1.1
    >>> wb.Options(weights={"lm": "q4_k", "flow.decoder.*": "int8"}).weights
    'lm=q4_k;flow.decoder.*=int8:channel'
    """

    n_timesteps: int = 10
    solver: str = "euler"
    t_scheduler: str = "cosine"
    cfg_rate: float = 0.7
    temperature: float = 1.0
    estimator: str = "torch"
    vocoder: str = "torch"
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
    top_p_of: str = "all"
    win_size: int = 10
    tau_r: float = 0.1
    token_temperature: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    mask_stop_ids: bool = False
    silent_tokens_repeat: bool = True
    repetition_fallback: str = "full"
    max_silent_run: int | None = 5
    max_tokens: int | None = None
    stream_final_offline: bool = True
    speed: float = 1.0
    weights: str | dict | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", rules_text(self.weights))
        _choice("solver", self.solver, SOLVERS)
        _choice("t_scheduler", self.t_scheduler, T_SCHEDULERS)
        _choice("compute", self.compute, COMPUTE)
        _choice("top_p_of", self.top_p_of, ("all", "top_k"))
        _choice("repetition_fallback", self.repetition_fallback, ("full", "top_k"))
        for name in ("lm_dtype", "flow_dtype", "hift_dtype", "f0_dtype", "source_dtype", "head_dtype"):
            _choice(name, getattr(self, name), DTYPES)
        for name in ("estimator", "vocoder"):
            found = getattr(self, name)
            is_path = isinstance(found, str) and found.endswith(".onnx")
            if not is_path and found not in PROGRAMS:
                allowed = ", ".join(PROGRAMS)
                raise WorkbenchError(
                    f"{name} is {found!r}; expected {allowed}, or the path of an .onnx file, a str"
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
        _between("token_temperature", self.token_temperature, 0.01, 100)
        _between("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _between("speed", self.speed, 0.25, 4)

    def of_stage(self, stage: str) -> dict[str, Any]:
        """Return the options that change the output of a stage."""
        names = [f.name for f in fields(self) if f.name in STAGES[stage].options]
        found = {name: getattr(self, name) for name in names}
        return found | {"weights": self.weights_of(stage)}

    def weights_of(self, stage: str) -> str | None:
        """Return the part of `weights` that may concern a stage; None where nothing does."""
        return rules_of_stage(self.weights, stage)

    def dtype_of(self, stage: str) -> str:
        """Return the type of a stage's weights: its own option, or the lower precision of "fast"."""
        dtype = getattr(self, f"{stage}_dtype")
        if self.compute == "fast" and not self.eager(stage) and dtype == "float32":
            return STAGES[stage].fast_dtype
        return dtype

    def eager(self, stage: str) -> bool:
        """Whether a stage runs layer by layer, one utterance at a time; so do ONNX files."""
        other = {
            LM: (self.token_temperature, self.repetition_penalty, self.top_p_of) != (1, 1, "all"),
            FLOW: self.estimator != "torch",
            HIFT: self.vocoder != "torch",
        }
        return self.compute == "eager" or other[stage]

    def but(self, **changes: Any) -> "Options":
        """Return a copy with some fields changed."""
        known = {f.name for f in fields(self)}
        for name in changes:
            _choice("option name", name, tuple(sorted(known)))
        return replace(self, **changes)

    def preset(self, name: str) -> "Options":
        """Return a copy that samples tokens as another program does.

        Parameters
        ----------
        name : {"vllm", "trtllm-serve"}
            "vllm": upstream with `load_vllm=True`, the 25 likeliest ids in bfloat16. "trtllm-serve":
            upstream's `runtime/triton_trtllm`. The probabilities are theirs, the random numbers are not.
        """
        _choice("preset", name, tuple(PRESETS))
        return self.but(**PRESETS[name])


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
