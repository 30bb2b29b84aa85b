"""The catalogue of mistakes that ports of CosyVoice3 make, each a patch to be put on and taken off.

A fault swaps a function of our own model for the wrong one, runs with other options, or spoils what a run is
given. `applied` puts faults on for a while; what runs meanwhile, runs wrong, in every thread of the process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import log
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from workbench.diagnose.suspects import patches as wrong
from workbench.diagnose.suspects.patches import Patch
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models import dit, flow, hift, lm
from workbench.trace.schema import BRANCH_VELOCITIES

SPECTRUM = ("hift/magnitude", "hift/phase", "hift/wav")


@dataclass(frozen=True, eq=False)
class Fault:
    """One mistake.

    Parameters
    ----------
    name : str
        Short, in words joined by hyphens.
    fields : tuple of str
        Results that are wrong although their inputs are right, the first in causal order first.
    cause : str
        One line: what the port does, and what it should.
    source : str
        Where it was seen or which fact of the model it violates.
    patches : tuple of Patch
        Functions of ours and the wrong ones.
    options : mapping
        Options that make ours run wrong.
    spoil : callable, optional
        Utterance -> Utterance: what the front end hands over.
    random : bool
        Rounding, or another draw: only the size of the error is known, not its values.
    """

    name: str
    fields: tuple[str, ...]
    cause: str
    source: str
    patches: tuple[Patch, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    spoil: Callable[[Utterance], Utterance] | None = None
    random: bool = False

    @property
    def stage(self) -> str:
        """Room of the first wrong result: "in", "lm", "flow" or "hift"."""
        return self.fields[0].partition("/")[0]

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}"


Faults = tuple[Fault, ...]


@contextmanager
def applied(faults: Iterable[Fault]) -> Iterator[None]:
    """Swap in what the faults swap, until the block ends. Of two that swap the same, the later counts."""
    with ExitStack() as stack:
        for fault in faults:
            for patch in fault.patches:
                stack.enter_context(mock.patch.object(*patch))
        yield


def options_of(faults: Iterable[Fault], options: Options) -> Options:
    """Return the options that a run with these faults has."""
    for fault in faults:
        options = options.but(**fault.options)
    return options


def spoiled(faults: Iterable[Fault], utt: Utterance) -> Utterance:
    """Return the utterance that a front end with these faults hands over."""
    for fault in faults:
        utt = fault.spoil(utt) if fault.spoil else utt
    return utt


# ---- the catalogue

_LM, _DIT = "upstream cosyvoice/llm/llm.py", "upstream cosyvoice/flow/DiT/modules.py"
_FLOW, _ODE = "upstream cosyvoice/flow/flow.py", "upstream cosyvoice/flow/flow_matching.py"
_HIFT, _CASE = "upstream cosyvoice/hifigan/generator.py", "the case this workbench began with"

CATALOGUE: tuple[Fault, ...] = (
    # ---- what the front end hands over
    Fault(
        "mel-log10",
        ("in/prompt_mel",),
        "the prompt's mel is in log10; it is the natural logarithm",
        "upstream matcha/utils/audio.py",
        spoil=wrong.mel(lambda mel: mel / log(10)),
    ),
    Fault(
        "mel-fmax-8000",
        ("in/prompt_mel",),
        "the prompt's mel ends at 8 kHz, as other vocoders want it; it goes up to 12 kHz",
        "upstream cosyvoice3.yaml: fmax null",
        spoil=wrong.mel(wrong.narrower),
    ),
    Fault(
        "mel-late",
        ("in/prompt_mel",),
        "the prompt's mel is one frame late against its tokens: padded on one side only",
        "upstream matcha/utils/audio.py: (n_fft - hop) / 2 on both sides",
        spoil=wrong.mel(lambda mel: mel.roll(1, dims=-1)),
    ),
    Fault(
        "mel-normalised",
        ("in/prompt_mel",),
        "the prompt's mel is brought to mean 0 and deviation 1, as Matcha's is; here it stays as it is",
        "upstream matcha/models/components: mel_mean, mel_std are not used",
        spoil=wrong.mel(lambda mel: (mel - mel.mean()) / mel.std()),
    ),
    # ---- LM
    Fault(
        "lm-rope-interleaved",
        ("lm/logp",),
        "rotary positions turn neighbouring channels; Qwen2 turns the first half against the second",
        "transformers Qwen2: rotate_half",
        patches=(Patch(lm, "rotate_half", wrong.rotate_pairs),),
    ),
    Fault(
        "lm-rope-theta",
        ("lm/logp",),
        "rotary base 10,000, as Llama's; Qwen2's is 1,000,000",
        "Qwen2 config.json: rope_theta",
        patches=(Patch(lm.Qwen2, "rope", wrong.rope(10_000.0)),),
    ),
    Fault(
        "lm-norm-plus-one",
        ("lm/logp",),
        "the RMS norm multiplies by 1 + weight, as Gemma's; Qwen2's by the weight",
        "transformers Qwen2: Qwen2RMSNorm",
        patches=(Patch(lm.RMSNorm, "forward", wrong.norm_of_one_plus),),
    ),
    Fault(
        "lm-gelu",
        ("lm/logp",),
        "the MLP's gate is GELU; Qwen2's is SiLU",
        "Qwen2 config.json: hidden_act",
        patches=(Patch(lm, "F", wrong.functional(silu=F.gelu)),),
    ),
    Fault(
        "lm-task-last",
        ("lm/logp",),
        "the task id stands behind the prompt's speech tokens; it stands before them",
        _LM,
        patches=(Patch(lm.LM, "embed", wrong.task_last),),
    ),
    Fault(
        "lm-float16",
        ("lm/logp",),
        "the LM runs in float16",
        _CASE,
        options={"lm_dtype": "float16"},
        random=True,
    ),
    Fault(
        "sampling-greedy",
        ("lm/drawn_token",),
        "the likeliest token is always taken; upstream draws from the nucleus",
        "upstream cosyvoice/utils/common.py",
        options={"top_k": 1},
    ),
    Fault(
        "sampling-no-nucleus",
        ("lm/drawn_token",),
        "tokens are drawn from the whole distribution; upstream keeps 25 at most, 0.8 of the mass",
        "upstream cosyvoice/utils/common.py: nucleus_sampling",
        options={"top_p": 1.0, "top_k": 100_000},
    ),
    Fault(
        "sampling-redraw",
        ("lm/drawn_token",),
        "every token that occurred among the last ten is drawn again: tau_r forgotten or a hundredth",
        "upstream cosyvoice/utils/common.py: ras_sampling",
        options={"tau_r": 0.01, "win_size": 10},
    ),
    Fault(
        "length-counts-prompt",
        ("lm/drawn_token",),
        "least and most speech tokens count the prompt's text; they count the text to speak",
        _LM,
        patches=(Patch(lm.LM, "steps", wrong.count_the_prompt),),
    ),
    Fault(
        "silence-unguarded",
        ("lm/speech_token",),
        "long silences reach the flow; upstream lets five silent tokens through",
        "upstream cosyvoice/cli/model.py; found by hand in the case",
        options={"max_silent_run": None},
    ),
    Fault(
        "silence-dropped",
        ("lm/speech_token",),
        "silent tokens are all dropped; upstream lets five in a row through",
        "upstream cosyvoice/cli/model.py",
        options={"max_silent_run": 0},
    ),
    # ---- what the flow is told
    Fault(
        "token-off-by-one",
        ("flow/mu",),
        "speech tokens are counted from 1; the embedding counts from 0",
        _FLOW,
        patches=(Patch(flow.Flow, "condition", wrong.next_id),),
    ),
    Fault(
        "mu-interpolated",
        ("flow/mu",),
        "tokens are interpolated to frames; each is repeated twice",
        _FLOW + ": repeat_interleave",
        patches=(wrong.condition(wrong.interpolate),),
    ),
    Fault(
        "lookahead-left",
        ("flow/mu",),
        "the pre-lookahead sees three tokens to the left; it sees those to the right",
        "upstream cosyvoice/transformer/upsample_encoder.py: PreLookaheadLayer",
        patches=(Patch(flow.PreLookahead, "forward", wrong.look_back),),
    ),
    Fault(
        "lookahead-slope",
        ("flow/mu",),
        "slope 0.1 in the pre-lookahead's leaky ReLU; its default is 0.01",
        "upstream cosyvoice/transformer/upsample_encoder.py",
        patches=(Patch(flow, "F", wrong.functional(leaky_relu=wrong.leaky(0.1, when_given=False))),),
    ),
    Fault(
        "cond-empty",
        ("flow/cond",),
        "the prompt's mel is not given to the estimator; its frames hold the prompt",
        _FLOW,
        patches=(wrong.condition(lambda c: c._replace(cond=torch.zeros_like(c.cond))),),
    ),
    Fault(
        "cond-late",
        ("flow/cond",),
        "the prompt's mel lies one frame late in cond",
        _FLOW,
        patches=(wrong.condition(lambda c: c._replace(cond=c.cond.roll(1, dims=-1))),),
    ),
    Fault(
        "speaker-not-normalised",
        ("flow/spks",),
        "the speaker embedding goes to the projection as it is; it is brought to length 1 first",
        _FLOW + ": F.normalize",
        patches=(Patch(flow, "F", wrong.functional(normalize=lambda x, dim: x)),),
    ),
    # ---- noise and grid
    Fault(
        "noise-other",
        ("flow/noise", "flow/x"),
        "the ODE starts from other noise; upstream's is one tensor, of torch's seed 0",
        _ODE + ": rand_noise; the case",
        options={"noise_seed": 20_240_601},
        random=True,
    ),
    Fault(
        "noise-transposed",
        ("flow/noise", "flow/x"),
        "the noise is filled frame by frame; it lies bin by bin",
        _ODE + ": torch.randn([1, 80, 15000])",
        patches=(wrong.noise(wrong.transposed),),
    ),
    Fault(
        "noise-late",
        ("flow/noise", "flow/x"),
        "the noise is cut one frame late; it begins with the first",
        _ODE,
        patches=(wrong.noise(lambda noise, n: noise[..., 1 : n + 1]),),
    ),
    Fault(
        "noise-zero",
        ("flow/noise", "flow/x"),
        "the ODE starts from zeros",
        _ODE,
        patches=(wrong.noise(lambda noise, n: torch.zeros_like(noise[..., :n])),),
    ),
    Fault(
        "noise-temperature",
        ("flow/x",),
        "the noise is multiplied by 0.667, as Matcha's default; here the temperature is 1",
        _ODE + ": temperature",
        options={"temperature": 0.667},
    ),
    Fault(
        "grid-linear",
        ("flow/t",),
        "the ODE's knots are evenly spaced; they lie on a cosine",
        _ODE + ": t_scheduler",
        options={"t_scheduler": "linear"},
    ),
    Fault(
        "grid-one-step",
        ("flow/t",),
        "one step in place of ten: it buzzes",
        _CASE,
        options={"n_timesteps": 1},
    ),
    Fault(
        "dt-constant",
        ("flow/x",),
        "every step is 1 / n long while the time follows the cosine",
        _ODE + ": dt = t_span[step + 1] - t",
        patches=(Patch(flow, "step_size", lambda knots, index, t: 1 / (len(knots) - 1) + 0 * t),),
    ),
    Fault(
        "dt-of-next-step",
        ("flow/x",),
        "each step is as long as the one after it: dt is advanced before it is used",
        _ODE + "; suspected in the case",
        patches=(Patch(flow, "step_size", wrong.next_step_size),),
    ),
    # ---- guidance
    Fault(
        "cfg-off",
        ("flow/velocity",),
        "no guidance: the conditional velocity alone",
        _CASE,
        options={"cfg_rate": 0.0},
    ),
    Fault(
        "cfg-sign",
        ("flow/velocity",),
        "guidance with the wrong sign: (1 - r) cond + r uncond",
        _ODE,
        patches=(Patch(flow, "guide", lambda a, b, r: (1 - r) * a + r * b),),
    ),
    Fault(
        "cfg-other-convention",
        ("flow/velocity",),
        "uncond + r (cond - uncond); here the rate counts from cond: (1 + r) cond - r uncond",
        _ODE + "; diffusers' guidance_scale",
        patches=(Patch(flow, "guide", lambda a, b, r: b + r * (a - b)),),
    ),
    Fault(
        "cfg-halves-swapped",
        BRANCH_VELOCITIES,
        "the two halves of the batch are taken for each other",
        _ODE,
        patches=(Patch(flow.Flow, "velocity", wrong.after(flow.Flow.velocity, wrong.swap_halves)),),
    ),
    Fault(
        "uncond-keeps-mu",
        ("flow/velocity_uncond",),
        "the unconditional half is given mu; it is given zeros",
        _ODE + "; speech-core#101",
        patches=(wrong.unguided("mu"),),
    ),
    Fault(
        "uncond-keeps-spks",
        ("flow/velocity_uncond",),
        "the unconditional half is given the speaker; it is given zeros",
        _ODE + "; speech-core#101",
        patches=(wrong.unguided("spks"),),
    ),
    Fault(
        "uncond-keeps-cond",
        ("flow/velocity_uncond",),
        "the unconditional half is given the prompt's mel; it is given zeros",
        _ODE,
        patches=(wrong.unguided("cond"),),
    ),
    Fault(
        "uncond-keeps-all",
        ("flow/velocity_uncond",),
        "both halves are given everything, so that guidance cancels: v_cond equals v_uncond",
        _ODE + "; asked in the case",
        patches=(wrong.unguided("mu", "spks", "cond"),),
    ),
    # ---- estimator
    Fault(
        "rotary-every-head",
        BRANCH_VELOCITIES,
        "rotary positions turn every head; upstream turns the first alone",
        _DIT + ": AttnProcessor; sgl-project/sglang-omni#2164",
        patches=(Patch(dit, "rotate_first_head", wrong.rotate_heads),),
    ),
    Fault(
        "rotary-halves",
        BRANCH_VELOCITIES,
        "rotary positions turn the first half against the second; here neighbouring channels",
        _DIT + "; sgl-project/sglang-omni#2164",
        patches=(Patch(dit, "rotate_first_head", wrong.rotate_halves),),
    ),
    Fault(
        "rotary-none",
        BRANCH_VELOCITIES,
        "no rotary positions at all",
        _DIT,
        patches=(Patch(dit, "rotate_first_head", lambda q, cos, sin: q),),
    ),
    Fault(
        "attention-unscaled",
        BRANCH_VELOCITIES,
        "attention scores are not divided by the root of the head's width",
        _DIT,
        patches=(Patch(dit, "F", wrong.functional(scaled_dot_product_attention=wrong.attention)),),
    ),
    Fault(
        "time-unscaled",
        BRANCH_VELOCITIES,
        "the time embedding is given t in 0..1; it is given 1000 t",
        _DIT + ": SinusPositionEmbedding, scale 1000",
        patches=(wrong.time_embed(scale=1.0),),
    ),
    Fault(
        "time-cos-first",
        BRANCH_VELOCITIES,
        "the time embedding has its cosines first; the sines are first",
        _DIT + ": SinusPositionEmbedding",
        patches=(wrong.time_embed(cos_first=True),),
    ),
    Fault(
        "time-exponent",
        BRANCH_VELOCITIES,
        "frequencies of the time embedding are divided by half its width; by one less",
        _DIT + ": SinusPositionEmbedding, half_dim - 1",
        patches=(wrong.time_embed(less=0),),
    ),
    Fault(
        "gelu-exact",
        BRANCH_VELOCITIES,
        "the feed-forward uses the exact GELU; its tanh approximation",
        _DIT + ": approximate tanh",
        patches=(Patch(dit.FeedForward, "forward", wrong.exact_gelu),),
    ),
    Fault(
        "adaln-order",
        BRANCH_VELOCITIES,
        "a block's modulation is read as scale, shift, gate; it is shift, scale, gate",
        _DIT + ": AdaLayerNormZero",
        patches=(wrong.modulation({6: (1, 0, 2, 4, 3, 5)}),),
    ),
    Fault(
        "adaln-final-order",
        BRANCH_VELOCITIES,
        "the last modulation is read as shift, scale; it is scale, shift",
        _DIT + ": AdaLayerNormZero_Final",
        patches=(wrong.modulation({2: (1, 0)}),),
    ),
    Fault(
        "conv-position-symmetric",
        BRANCH_VELOCITIES,
        "the convolutional position embedding is padded on both sides; it looks to the left alone",
        _DIT + ": CausalConvPositionEmbedding",
        patches=(Patch(dit.ConvPosEmbed, "forward", wrong.look_both_ways),),
    ),
    Fault(
        "chunk-mask-offline",
        BRANCH_VELOCITIES,
        "the streaming mask of 50 frames is on in an offline run",
        _DIT + ": streaming",
        patches=(Patch(dit, "attention_mask", wrong.chunked),),
    ),
    Fault(
        "input-order",
        BRANCH_VELOCITIES,
        "inputs are joined as x, mu, cond, spks; the order is x, cond, mu, spks",
        "upstream cosyvoice/flow/DiT/dit.py: InputEmbedding; suspected in the case",
        patches=(Patch(dit.InputEmbed, "forward", wrong.other_order),),
    ),
    Fault(
        "flow-float16",
        ("flow/mu", "flow/cond", "flow/spks", *BRANCH_VELOCITIES),
        "the flow runs in float16",
        _CASE + "; FunAudioLLM/CosyVoice#1930",
        options={"flow_dtype": "float16"},
        random=True,
    ),
    Fault(
        "flow-bfloat16",
        ("flow/mu", "flow/cond", "flow/spks", *BRANCH_VELOCITIES),
        "the flow runs in bfloat16",
        "sgl-project/sglang-omni#1715",
        options={"flow_dtype": "bfloat16"},
        random=True,
    ),
    # ---- between flow and vocoder
    Fault(
        "prompt-not-cut",
        ("flow/mel",),
        "the prompt's frames stay in the mel, and the prompt is heard",
        _FLOW,
        patches=(wrong.cut(None),),
    ),
    Fault(
        "cut-late",
        ("flow/mel",),
        "the mel is cut one frame late",
        _FLOW,
        patches=(wrong.cut(1),),
    ),
    Fault(
        "cut-early",
        ("flow/mel",),
        "the mel is cut one frame early, so that a frame of the prompt is heard",
        _FLOW,
        patches=(wrong.cut(-1),),
    ),
    # ---- f0 and source
    Fault(
        "f0-float32",
        ("hift/f0",),
        "the f0 predictor runs in float32; upstream's runs in float64",
        _HIFT + ": f0_predictor.to(torch.float64)",
        options={"f0_dtype": "float32"},
        random=True,
    ),
    Fault(
        "f0-float16",
        ("hift/f0",),
        "the f0 predictor runs in float16; upstream's runs in float64",
        _CASE,
        options={"f0_dtype": "float16"},
        random=True,
    ),
    Fault(
        "f0-signed",
        ("hift/f0",),
        "f0 may be negative; upstream takes its absolute value",
        "upstream cosyvoice/hifigan/f0_predictor.py",
        patches=(Patch(hift.F0Predictor, "forward", wrong.signed_f0),),
    ),
    Fault(
        "looks-left",
        ("hift/f0", *SPECTRUM),
        "convolutions that look ahead (conv_pre, the first of the f0 predictor) are padded on the left",
        "upstream cosyvoice/transformer/convolution.py: causal_type right",
        patches=(Patch(hift.CausalConv1d, "forward", wrong.look_left),),
    ),
    Fault(
        "source-noise-gaussian",
        ("hift/source",),
        "the excitation's noise is Gaussian; upstream's is uniform in 0..1",
        _HIFT + ": torch.rand in SineGen2",
        patches=(Patch(hift.Source, "forward", wrong.gaussian),),
        random=True,
    ),
    Fault(
        "source-noise-centred",
        ("hift/source",),
        "the excitation's noise has mean 0; upstream's has mean 0.5",
        _HIFT + ": torch.rand in SineGen2",
        patches=(Patch(hift.Source, "forward", wrong.centred),),
    ),
    Fault(
        "source-noise-none",
        ("hift/source",),
        "the excitation has no noise",
        _HIFT + ": SineGen2",
        patches=(Patch(hift.Source, "forward", wrong.silent),),
    ),
    Fault(
        "source-phase-smooth",
        ("hift/source",),
        "the phase grows with every sample; upstream's is a staircase, constant over a mel frame",
        _HIFT + ": upsample nearest in SineGen2",
        patches=(Patch(hift.Source, "forward", wrong.smooth_phase),),
    ),
    Fault(
        "source-all-voiced",
        ("hift/source",),
        "frames below 10 Hz count as voiced: the threshold is 0",
        _HIFT + ": voiced_threshold",
        patches=(wrong.source(nsf_voiced_threshold=0.0),),
    ),
    Fault(
        "source-loud",
        ("hift/source",),
        "sines ten times as loud: sine_amp is 1; it is 0.1",
        _HIFT + ": sine_amp",
        patches=(wrong.source(nsf_alpha=1.0),),
    ),
    # ---- trunk and head
    Fault(
        "last-slope",
        SPECTRUM,
        "slope 0.1 in the last leaky ReLU; that one has the default 0.01",
        _HIFT + "; CrispASR, mlx-audio-swift#216",
        patches=(Patch(hift, "F", wrong.functional(leaky_relu=wrong.leaky(0.1, when_given=False))),),
    ),
    Fault(
        "trunk-slope",
        SPECTRUM,
        "slope 0.01 between the upsamplings; it is 0.1 there",
        _HIFT,
        patches=(Patch(hift, "F", wrong.functional(leaky_relu=wrong.leaky(0.01, when_given=True))),),
    ),
    Fault(
        "snake-log-alpha",
        SPECTRUM,
        "Snake's alpha is taken as a logarithm, as BigVGAN's; here it is alpha itself",
        "upstream cosyvoice/transformer/activation.py: alpha_logscale False",
        patches=(Patch(hift.Snake, "forward", wrong.snake_of_log),),
    ),
    Fault(
        "no-reflection",
        SPECTRUM,
        "the frame before the last upsampling's first is zero; it is a reflection",
        _HIFT + ": ReflectionPad1d((1, 0))",
        patches=(Patch(hift, "F", wrong.functional(pad=wrong.pad_without_reflection(1))),),
    ),
    Fault(
        "stft-zero-padded",
        SPECTRUM,
        "the excitation's STFT is padded with zeros; torch.stft reflects",
        _HIFT + ": torch.stft, center",
        patches=(Patch(hift, "F", wrong.functional(pad=wrong.pad_without_reflection(8))),),
    ),
    Fault(
        "magnitude-unclipped",
        SPECTRUM,
        "the magnitude is not clipped at 100",
        _HIFT + ": torch.clip",
        patches=(wrong.head(clip=False, sine=True),),
    ),
    Fault(
        "phase-without-sine",
        SPECTRUM[1:],
        "the phase is the network's output; upstream takes its sine",
        _HIFT + ": torch.sin",
        patches=(wrong.head(clip=True, sine=False),),
    ),
    Fault(
        "hann-symmetric",
        SPECTRUM,
        "the STFT's window is the symmetric Hann; scipy's fftbins and torch's default are periodic",
        _HIFT + ": get_window fftbins=True",
        patches=(Patch(hift, "_windowed_dft", wrong.symmetric_window),),
    ),
    Fault(
        "window-sum-left-out",
        ("hift/wav",),
        "the inverse STFT is not divided by the sum of squared windows: 1.5 times too loud",
        _HIFT + ": torch.istft; checked in the case",
        patches=(Patch(hift.HiFT, "istft", wrong.after(hift.HiFT.istft, wrong.undivided)),),
    ),
    Fault(
        "vocoder-float16",
        SPECTRUM,
        "the vocoder runs in float16",
        _CASE,
        options={"hift_dtype": "float16"},
        random=True,
    ),
    Fault(
        "vocoder-bfloat16",
        SPECTRUM,
        "the vocoder runs in bfloat16",
        _CASE,
        options={"hift_dtype": "bfloat16"},
        random=True,
    ),
    Fault(
        "head-float16",
        SPECTRUM,
        "exponential, sine and inverse STFT run in float16",
        _CASE,
        options={"head_dtype": "float16"},
        random=True,
    ),
)
