"""The catalogue of faults that ports of CosyVoice3 are known to have, and how to give them to our model.

A fault replaces functions of our own model by faulty ones (`patches.py`), runs with other options, or changes
the utterance that the front end hands over. `inject` makes a run that has faults. `applied` activates their
patches for a `with` block, in every thread of the process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import log
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from workbench.diagnose.compare.transitions import SPECTRUM
from workbench.diagnose.suspects.catalogue import patches
from workbench.diagnose.suspects.catalogue.patches import Patch
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models import dit, flow, hift, lm
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import utterance_of
from workbench.speech.run import run_part
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import BRANCH_VELOCITIES
from workbench.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Fault:
    """One known fault.

    Parameters
    ----------
    name : str
        Short words joined by hyphens.
    fields : tuple of str
        Fields that are wrong although their inputs are right, in causal order.
    cause : str
        One line: what the port does, and what it should do.
    source : str
        Where the fault was seen, or which fact of the model it violates.
    patches : tuple of Patch
        Functions of our model and their faulty replacements.
    options : mapping
        Options that give our model the fault.
    change_utterance : callable, optional
        Utterance -> Utterance: a fault of the front end.
    rounds : bool
        The fault rounds values. Other programs round in another order, so that not every value of the error
        can be predicted, only its size and roughly its direction.
    redraws : sequence of Fault
        Of a fault that draws other random numbers: the same fault with further draws. The error's values
        cannot be predicted, only how they are distributed.
    """

    name: str
    fields: tuple[str, ...]
    cause: str
    source: str
    patches: tuple[Patch, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    change_utterance: Callable[[Utterance], Utterance] | None = None
    rounds: bool = False
    redraws: tuple["Fault", ...] = ()

    @property
    def stage(self) -> str:
        """Prefix of the first wrong field: "in", "lm", "flow" or "hift"."""
        return self.fields[0].partition("/")[0]

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}"


Faults = tuple[Fault, ...]
HEALTHY: Faults = ()  # no fault


@contextmanager
def applied(faults: Iterable[Fault]) -> Iterator[None]:
    """Activate the patches of faults until the block ends. Of two patches of one function the later counts.

    Options and utterances are not changed: see `faulty_options` and `faulty_utterance`.
    """
    with ExitStack() as stack:
        for fault in faults:
            for patch in fault.patches:
                stack.enter_context(mock.patch.object(*patch))
        yield


def faulty_options(faults: Iterable[Fault], options: Options) -> Options:
    """Return the options that a run with these faults has."""
    for fault in faults:
        changed = dict(fault.options)
        if options.weights and "weights" in changed:  # of other layers, so that both stay
            changed["weights"] = f"{options.weights};{changed['weights']}"
        options = options.but(**changed)
    return options


def faulty_utterance(faults: Iterable[Fault], utt: Utterance) -> Utterance:
    """Return the utterance that a front end with these faults hands over."""
    for fault in faults:
        if fault.change_utterance:
            utt = fault.change_utterance(utt)
    return utt


def inject(pipe: Pipeline, reference: Trace, faults: Sequence[Fault]) -> Trace:
    """Make a run that has these faults, as a port with these faults would have recorded it.

    Parameters
    ----------
    pipe : Pipeline
    reference : Trace
        A right run with its `in/*` fields. Its speech tokens are used unless a fault changes the LM.
    faults : sequence of Fault

    Returns
    -------
    Trace
        It does not say which faults it has: its only option is the seed.

    Raises
    ------
    WorkbenchError
        When the faults leave nothing to run, such as a mel of NaN.

    Examples
    --------
    >>> port = wb.faults.inject(pipe, trace, [wb.faults.named("cfg-off")])
    >>> bool((port["flow/velocity"][0] == port["flow/velocity_cond"][0]).all())
    True
    """
    options = pipe.checkpoint.options.but(**reference.attrs["options"])
    utt = faulty_utterance(faults, utterance_of(reference))
    start = "lm" if any(fault.stage == "lm" for fault in faults) else "flow"
    with applied(faults):
        made = run_part(pipe, utt, faulty_options(faults, options), EVERYTHING, start, given=reference)
    data = dict(made.data)
    if start == "flow":  # the LM did not run: its fields are the reference's
        data |= {name: value for name, value in reference.items() if name.startswith("lm/")}
    attrs = {
        "sample_rate": made.sample_rate,
        "prompt_frames": made.prompt_frames,
        "options": {"seed": options.seed},
    }
    return Trace(data, attrs)


# ---- the catalogue

_LM, _DIT = "upstream cosyvoice/llm/llm.py", "upstream cosyvoice/flow/DiT/modules.py"
_FLOW, _ODE = "upstream cosyvoice/flow/flow.py", "upstream cosyvoice/flow/flow_matching.py"
_HIFT, _CASE = "upstream cosyvoice/hifigan/generator.py", "the case this workbench began with"

REDRAWS = 4  # further draws of a fault with random numbers: enough to know how much draws differ


def _with_redraws(make: Callable[[int], Fault]) -> Fault:
    """Return a fault that draws random numbers; `make` returns it for a seed."""
    return replace(make(0), redraws=tuple(make(seed) for seed in range(1, REDRAWS + 1)))


CATALOGUE: tuple[Fault, ...] = (
    # ---- front end
    Fault(
        "mel-log10",
        ("in/prompt_mel",),
        "the prompt's mel is in log10; it should be the natural logarithm",
        "upstream matcha/utils/audio.py",
        change_utterance=patches.changed_prompt_mel(lambda mel: mel / log(10)),
    ),
    Fault(
        "mel-fmax-8000",
        ("in/prompt_mel",),
        "the prompt's mel ends at 8 kHz, as for other vocoders; it should end at 12 kHz",
        "upstream cosyvoice3.yaml: fmax null",
        change_utterance=patches.changed_prompt_mel(patches.narrower_filters),
    ),
    Fault(
        "mel-late",
        ("in/prompt_mel",),
        "the prompt's mel is one frame late against its tokens: the audio is padded on one side only",
        "upstream matcha/utils/audio.py: (n_fft - hop) / 2 on both sides",
        change_utterance=patches.changed_prompt_mel(lambda mel: mel.roll(1, dims=-1)),
    ),
    Fault(
        "mel-normalised",
        ("in/prompt_mel",),
        "the prompt's mel is normalised to mean 0 and deviation 1, as in Matcha; it should not be normalised",
        "upstream matcha/models/components: mel_mean, mel_std are not used",
        change_utterance=patches.changed_prompt_mel(lambda mel: (mel - mel.mean()) / mel.std()),
    ),
    # ---- LM
    Fault(
        "lm-rope-interleaved",
        ("lm/logp",),
        "rotary positions rotate neighbouring channels; Qwen2 rotates the first half with the second",
        "transformers Qwen2: rotate_half",
        patches=(Patch(lm, "rotate_half", patches.rotate_pairs),),
    ),
    Fault(
        "lm-rope-theta",
        ("lm/logp",),
        "the rotary base is 10,000, as in Llama; it should be 1,000,000",
        "Qwen2 config.json: rope_theta",
        patches=(Patch(lm.Qwen2, "rope", patches.rope_with_base(10_000.0)),),
    ),
    Fault(
        "lm-norm-plus-one",
        ("lm/logp",),
        "the RMS norm multiplies by 1 + weight, as in Gemma; it should multiply by the weight",
        "transformers Qwen2: Qwen2RMSNorm",
        patches=(Patch(lm.RMSNorm, "forward", patches.norm_one_plus_weight),),
    ),
    Fault(
        "lm-gelu",
        ("lm/logp",),
        "the MLP's gate is GELU; it should be SiLU",
        "Qwen2 config.json: hidden_act",
        patches=(Patch(lm, "F", patches.functional(silu=F.gelu)),),
    ),
    Fault(
        "lm-task-last",
        ("lm/logp",),
        "the task id comes after the prompt's speech tokens; it should come before them",
        _LM,
        patches=(Patch(lm.LM, "embed", patches.task_id_last),),
    ),
    Fault(
        "lm-float16",
        ("lm/logp",),
        "the LM runs in float16",
        _CASE,
        options={"lm_dtype": "float16"},
        rounds=True,
    ),
    Fault(
        "sampling-greedy",
        ("lm/drawn_token",),
        "the most likely token is always taken; upstream draws from the nucleus",
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
        "sampling-top-k-alone",
        ("lm/drawn_token",),
        "tokens are drawn from the 25 likeliest, and never drawn again for being repeated",
        "upstream's vLLM path: top_k without top_p and without repetition-aware sampling",
        options={"top_p": 1.0, "tau_r": 10.0},
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
        "limits on the number of speech tokens count the prompt's text; only the text to speak counts",
        _LM,
        patches=(Patch(lm.LM, "steps", patches.count_prompt_text),),
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
        "all silent tokens are dropped; upstream lets five in a row through",
        "upstream cosyvoice/cli/model.py",
        options={"max_silent_run": 0},
    ),
    # ---- conditioning of the flow
    Fault(
        "token-off-by-one",
        ("flow/mu",),
        "speech tokens are counted from 1; they should be counted from 0",
        _FLOW,
        patches=(Patch(flow.Flow, "condition", patches.tokens_plus_one),),
    ),
    Fault(
        "mu-interpolated",
        ("flow/mu",),
        "tokens are interpolated to frames; each should be repeated twice",
        _FLOW + ": repeat_interleave",
        patches=(patches.changed_condition(patches.interpolate_mu),),
    ),
    Fault(
        "lookahead-left",
        ("flow/mu",),
        "the pre-lookahead looks three tokens to the left; it should look to the right",
        "upstream cosyvoice/transformer/upsample_encoder.py: PreLookaheadLayer",
        patches=(Patch(flow.PreLookahead, "forward", patches.lookahead_to_left),),
    ),
    Fault(
        "lookahead-slope",
        ("flow/mu",),
        "slope 0.1 in the pre-lookahead's leaky ReLU; it should be the default 0.01",
        "upstream cosyvoice/transformer/upsample_encoder.py",
        patches=(
            Patch(flow, "F", patches.functional(leaky_relu=patches.leaky_relu_slope(0.1, when_given=False))),
        ),
    ),
    Fault(
        "cond-empty",
        ("flow/cond",),
        "the estimator is not given the prompt's mel: cond is zero in the prompt's frames",
        _FLOW,
        patches=(patches.changed_condition(lambda c: c._replace(cond=torch.zeros_like(c.cond))),),
    ),
    Fault(
        "cond-late",
        ("flow/cond",),
        "the prompt's mel lies one frame late in cond",
        _FLOW,
        patches=(patches.changed_condition(lambda c: c._replace(cond=c.cond.roll(1, dims=-1))),),
    ),
    Fault(
        "speaker-not-normalised",
        ("flow/spks",),
        "the speaker embedding is projected as it is; it should be scaled to length 1 first",
        _FLOW + ": F.normalize",
        patches=(Patch(flow, "F", patches.functional(normalize=lambda x, dim: x)),),
    ),
    # ---- noise and grid
    _with_redraws(
        lambda seed: Fault(
            "noise-other",
            ("flow/noise", "flow/x"),
            "the ODE starts from other noise; upstream's is one tensor, of torch's seed 0",
            _ODE + ": rand_noise; the case",
            options={"noise_seed": 20_240_601 + seed},
        )
    ),
    Fault(
        "noise-transposed",
        ("flow/noise", "flow/x"),
        "the noise is filled frame by frame; it should be filled bin by bin",
        _ODE + ": torch.randn([1, 80, 15000])",
        patches=(patches.changed_noise(patches.transpose_noise),),
    ),
    Fault(
        "noise-late",
        ("flow/noise", "flow/x"),
        "the noise is cut one frame late; it should begin with the first frame",
        _ODE,
        patches=(patches.changed_noise(lambda noise, n: noise[..., 1 : n + 1]),),
    ),
    Fault(
        "noise-zero",
        ("flow/noise", "flow/x"),
        "the ODE starts from zeros",
        _ODE,
        patches=(patches.changed_noise(lambda noise, n: torch.zeros_like(noise[..., :n])),),
    ),
    Fault(
        "noise-temperature",
        ("flow/x",),
        "the noise is multiplied by 0.667, Matcha's default temperature; it should be 1",
        _ODE + ": temperature",
        options={"temperature": 0.667},
    ),
    Fault(
        "grid-linear",
        ("flow/t",),
        "the ODE's knots are evenly spaced; they should follow a cosine",
        _ODE + ": t_scheduler",
        options={"t_scheduler": "linear"},
    ),
    Fault(
        "grid-one-step",
        ("flow/t",),
        "the ODE has one step instead of ten: the voice buzzes",
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
        patches=(Patch(flow, "step_size", patches.next_step_size),),
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
        "guidance has the wrong sign: (1 - r) cond + r uncond",
        _ODE,
        patches=(Patch(flow, "guide", lambda a, b, r: (1 - r) * a + r * b),),
    ),
    Fault(
        "cfg-other-convention",
        ("flow/velocity",),
        "guidance is uncond + r (cond - uncond); it should be (1 + r) cond - r uncond",
        _ODE + "; diffusers' guidance_scale",
        patches=(Patch(flow, "guide", lambda a, b, r: b + r * (a - b)),),
    ),
    Fault(
        "cfg-halves-swapped",
        BRANCH_VELOCITIES,
        "the conditional and unconditional halves of the batch are swapped",
        _ODE,
        patches=(
            Patch(flow.Flow, "velocity", patches.change_result(flow.Flow.velocity, patches.swap_branches)),
        ),
    ),
    Fault(
        "uncond-keeps-mu",
        ("flow/velocity_uncond",),
        "the unconditional half is given mu; it should be given zeros",
        _ODE + "; speech-core#101",
        patches=(patches.unconditional_keeps("mu"),),
    ),
    Fault(
        "uncond-keeps-spks",
        ("flow/velocity_uncond",),
        "the unconditional half is given the speaker; it should be given zeros",
        _ODE + "; speech-core#101",
        patches=(patches.unconditional_keeps("spks"),),
    ),
    Fault(
        "uncond-keeps-cond",
        ("flow/velocity_uncond",),
        "the unconditional half is given the prompt's mel; it should be given zeros",
        _ODE,
        patches=(patches.unconditional_keeps("cond"),),
    ),
    Fault(
        "uncond-keeps-all",
        ("flow/velocity_uncond",),
        "both halves are given everything, so that guidance cancels: v_cond equals v_uncond",
        _ODE + "; a question in the case",
        patches=(patches.unconditional_keeps("mu", "spks", "cond"),),
    ),
    # ---- estimator
    Fault(
        "rotary-every-head",
        BRANCH_VELOCITIES,
        "rotary positions rotate every head; upstream rotates only the first",
        _DIT + ": AttnProcessor; sgl-project/sglang-omni#2164",
        patches=(Patch(dit, "rotate_first_head", patches.rotate_all_heads),),
    ),
    Fault(
        "rotary-halves",
        BRANCH_VELOCITIES,
        "rotary positions rotate the first half with the second; upstream rotates neighbouring channels",
        _DIT + "; sgl-project/sglang-omni#2164",
        patches=(Patch(dit, "rotate_first_head", patches.rotate_halves),),
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
        patches=(
            Patch(dit, "F", patches.functional(scaled_dot_product_attention=patches.unscaled_attention)),
        ),
    ),
    Fault(
        "time-unscaled",
        BRANCH_VELOCITIES,
        "the time embedding is given t in 0..1; it should be given 1000 t",
        _DIT + ": SinusPositionEmbedding, scale 1000",
        patches=(patches.time_embed(scale=1.0),),
    ),
    Fault(
        "time-cos-first",
        BRANCH_VELOCITIES,
        "the time embedding has its cosines first; the sines should come first",
        _DIT + ": SinusPositionEmbedding",
        patches=(patches.time_embed(cos_first=True),),
    ),
    Fault(
        "time-exponent",
        BRANCH_VELOCITIES,
        "exponents of the time embedding are divided by half its width; it should be one less",
        _DIT + ": SinusPositionEmbedding, half_dim - 1",
        patches=(patches.time_embed(less=0),),
    ),
    Fault(
        "gelu-exact",
        BRANCH_VELOCITIES,
        "the feed-forward uses the exact GELU; it should use the tanh approximation",
        _DIT + ": approximate tanh",
        patches=(Patch(dit.FeedForward, "forward", patches.exact_gelu),),
    ),
    Fault(
        "adaln-order",
        BRANCH_VELOCITIES,
        "a block's modulation is read as scale, shift, gate; the order is shift, scale, gate",
        _DIT + ": AdaLayerNormZero",
        patches=(patches.modulation_order({6: (1, 0, 2, 4, 3, 5)}),),
    ),
    Fault(
        "adaln-final-order",
        BRANCH_VELOCITIES,
        "the last modulation is read as shift, scale; the order is scale, shift",
        _DIT + ": AdaLayerNormZero_Final",
        patches=(patches.modulation_order({2: (1, 0)}),),
    ),
    Fault(
        "conv-position-symmetric",
        BRANCH_VELOCITIES,
        "the convolutional position embedding is padded on both sides; it should be padded on the left only",
        _DIT + ": CausalConvPositionEmbedding",
        patches=(Patch(dit.ConvPosEmbed, "forward", patches.pad_both_sides),),
    ),
    Fault(
        "chunk-mask-offline",
        BRANCH_VELOCITIES,
        "the streaming mask of 50 frames is used in an offline run",
        _DIT + ": streaming",
        patches=(Patch(dit, "attention_mask", patches.chunked_mask),),
    ),
    Fault(
        "input-order",
        BRANCH_VELOCITIES,
        "inputs are joined as x, mu, cond, spks; the order should be x, cond, mu, spks",
        "upstream cosyvoice/flow/DiT/dit.py: InputEmbedding; suspected in the case",
        patches=(Patch(dit.InputEmbed, "forward", patches.mu_before_cond),),
    ),
    Fault(
        "flow-float16",
        ("flow/mu", "flow/cond", "flow/spks", *BRANCH_VELOCITIES),
        "the flow runs in float16",
        _CASE + "; FunAudioLLM/CosyVoice#1930",
        options={"flow_dtype": "float16"},
        rounds=True,
    ),
    Fault(
        "flow-bfloat16",
        ("flow/mu", "flow/cond", "flow/spks", *BRANCH_VELOCITIES),
        "the flow runs in bfloat16",
        "sgl-project/sglang-omni#1715",
        options={"flow_dtype": "bfloat16"},
        rounds=True,
    ),
    # ---- between flow and vocoder
    Fault(
        "prompt-not-cut",
        ("flow/mel",),
        "the prompt's frames stay in the mel, and the prompt is heard",
        _FLOW,
        patches=(patches.cut_late(None),),
    ),
    Fault(
        "cut-late",
        ("flow/mel",),
        "the mel is cut one frame late",
        _FLOW,
        patches=(patches.cut_late(1),),
    ),
    Fault(
        "cut-early",
        ("flow/mel",),
        "the mel is cut one frame early, so that a frame of the prompt is heard",
        _FLOW,
        patches=(patches.cut_late(-1),),
    ),
    # ---- f0 and source
    Fault(
        "f0-float32",
        ("hift/f0",),
        "the f0 predictor runs in float32; upstream's runs in float64",
        _HIFT + ": f0_predictor.to(torch.float64)",
        options={"f0_dtype": "float32"},
        rounds=True,
    ),
    Fault(
        "f0-float16",
        ("hift/f0",),
        "the f0 predictor runs in float16; upstream's runs in float64",
        _CASE,
        options={"f0_dtype": "float16"},
        rounds=True,
    ),
    Fault(
        "f0-signed",
        ("hift/f0",),
        "f0 may be negative; upstream takes its absolute value",
        "upstream cosyvoice/hifigan/f0_predictor.py",
        patches=(Patch(hift.F0Predictor, "forward", patches.signed_f0),),
    ),
    Fault(
        "looks-left",
        ("hift/f0", *SPECTRUM),
        "convolutions that look ahead (conv_pre, the first of the f0 predictor) are padded on the left",
        "upstream cosyvoice/transformer/convolution.py: causal_type right",
        patches=(Patch(hift.CausalConv1d, "forward", patches.pad_left),),
    ),
    _with_redraws(
        lambda seed: Fault(
            "source-noise-other",
            ("hift/source",),
            "the excitation's noise is another draw than upstream's, of the same kind; that is not audible",
            _HIFT + ": torch.rand in SineGen2; every port draws its own",
            patches=(patches.redrawn_noise(torch.rand, seed),),
        )
    ),
    _with_redraws(
        lambda seed: Fault(
            "source-noise-gaussian",
            ("hift/source",),
            "the excitation's noise is Gaussian; upstream's is uniform in 0..1",
            _HIFT + ": torch.rand in SineGen2",
            patches=(patches.redrawn_noise(torch.randn, seed),),
        )
    ),
    Fault(
        "source-noise-centred",
        ("hift/source",),
        "the excitation's noise has mean 0; upstream's has mean 0.5",
        _HIFT + ": torch.rand in SineGen2",
        patches=(Patch(hift.Source, "forward", patches.centred_noise),),
    ),
    Fault(
        "source-noise-none",
        ("hift/source",),
        "the excitation has no noise",
        _HIFT + ": SineGen2",
        patches=(Patch(hift.Source, "forward", patches.no_noise),),
    ),
    Fault(
        "source-phase-smooth",
        ("hift/source",),
        "the phase grows with every sample; upstream's is a staircase, constant over a mel frame",
        _HIFT + ": upsample nearest in SineGen2",
        patches=(Patch(hift.Source, "forward", patches.smooth_phase),),
    ),
    Fault(
        "source-all-voiced",
        ("hift/source",),
        "frames below 10 Hz count as voiced: the threshold is 0",
        _HIFT + ": voiced_threshold",
        patches=(patches.source_config(nsf_voiced_threshold=0.0),),
    ),
    Fault(
        "source-loud",
        ("hift/source",),
        "the sines are ten times as loud: sine_amp is 1; it should be 0.1",
        _HIFT + ": sine_amp",
        patches=(patches.source_config(nsf_alpha=1.0),),
    ),
    # ---- trunk and head
    Fault(
        "last-slope",
        SPECTRUM,
        "slope 0.1 in the last leaky ReLU; it should be the default 0.01",
        _HIFT + "; CrispASR, mlx-audio-swift#216",
        patches=(
            Patch(hift, "F", patches.functional(leaky_relu=patches.leaky_relu_slope(0.1, when_given=False))),
        ),
    ),
    Fault(
        "trunk-slope",
        SPECTRUM,
        "slope 0.01 between the upsamplings; it should be 0.1",
        _HIFT,
        patches=(
            Patch(hift, "F", patches.functional(leaky_relu=patches.leaky_relu_slope(0.01, when_given=True))),
        ),
    ),
    Fault(
        "snake-log-alpha",
        SPECTRUM,
        "Snake's alpha is taken as a logarithm, as in BigVGAN; it should be alpha itself",
        "upstream cosyvoice/transformer/activation.py: alpha_logscale False",
        patches=(Patch(hift.Snake, "forward", patches.snake_of_log),),
    ),
    Fault(
        "no-reflection",
        SPECTRUM,
        "the frame before the last upsampling's first is zero; it should be a reflection",
        _HIFT + ": ReflectionPad1d((1, 0))",
        patches=(Patch(hift, "F", patches.functional(pad=patches.pad_without_reflection(1))),),
    ),
    Fault(
        "stft-zero-padded",
        SPECTRUM,
        "the excitation's STFT is padded with zeros; torch.stft reflects",
        _HIFT + ": torch.stft, center",
        patches=(Patch(hift, "F", patches.functional(pad=patches.pad_without_reflection(8))),),
    ),
    Fault(
        "magnitude-unclipped",
        SPECTRUM,
        "the magnitude is not clipped at 100",
        _HIFT + ": torch.clip",
        patches=(patches.head(clip=False, sine=True),),
    ),
    Fault(
        "phase-without-sine",
        SPECTRUM[1:],
        "the phase is the network's output; upstream takes its sine",
        _HIFT + ": torch.sin",
        patches=(patches.head(clip=True, sine=False),),
    ),
    Fault(
        "hann-symmetric",
        SPECTRUM,
        "the STFT's window is the symmetric Hann; scipy's fftbins and torch's default are periodic",
        _HIFT + ": get_window fftbins=True",
        patches=(Patch(hift, "_windowed_dft", patches.symmetric_window),),
    ),
    Fault(
        "window-sum-left-out",
        ("hift/wav",),
        "the inverse STFT is not divided by the sum of squared windows: 1.5 times too loud",
        _HIFT + ": torch.istft; checked in the case",
        patches=(
            Patch(hift.HiFT, "istft", patches.change_result(hift.HiFT.istft, patches.without_window_sum)),
        ),
    ),
    Fault(
        "vocoder-float16",
        SPECTRUM,
        "the vocoder runs in float16",
        _CASE,
        options={"hift_dtype": "float16"},
        rounds=True,
    ),
    Fault(
        "vocoder-bfloat16",
        SPECTRUM,
        "the vocoder runs in bfloat16",
        _CASE,
        options={"hift_dtype": "bfloat16"},
        rounds=True,
    ),
    Fault(
        "head-float16",
        SPECTRUM,
        "exponential, sine and inverse STFT run in float16",
        _CASE,
        options={"head_dtype": "float16"},
        rounds=True,
    ),
)


def named(name: str) -> Fault:
    """Return a fault of the catalogue.

    Parameters
    ----------
    name : str

    Returns
    -------
    Fault

    Raises
    ------
    WorkbenchError
        When there is no fault of this name.

    Examples
    --------
    >>> wb.faults.named("cfg-off").fields
    ('flow/velocity',)
    """
    for fault in CATALOGUE:
        if fault.name == name:
            return fault
    raise WorkbenchError(
        f"the catalogue has no fault {name!r}; it has {', '.join(fault.name for fault in CATALOGUE)}"
    )
