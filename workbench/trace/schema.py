"""Every field a run can record: which way round it lies, in what unit, and what it is.

The order is the causal one. Beside a field `flow/x` there may be `flow/x.stats`, which is what a run
keeps when it does not keep the field: `STATS` of each of the `REGIONS` where it has frames. A statistic
that nobody noted is NaN.
"""

from typing import NamedTuple

VERSION = 2  # of this table; `Trace.load` reads no other. 1 had no statistics of the whole

STATS = ("min", "max", "mean", "mean_abs", "rms", "nonfinite")  # the first five of the finite values
REGIONS = ("prompt", "target", "whole")  # the whole alone is what a text log prints
LOOPS = ("draw", "knot", "step")  # dimensions that grow while the run goes on
SUFFIX = ".stats"
SAMPLE_RATE = 24_000  # Hz, of a trace that does not state its own
FRAME_RATE, TOKEN_RATE = 50, 25  # mel frames and speech tokens per second
# Entries per second along a dimension that is the time of the target; `sample` has the trace's own rate.
RATES = {"frame": FRAME_RATE, "target_frame": FRAME_RATE, "token": TOKEN_RATE, "draw": TOKEN_RATE}

# Groups of fields that belong together.
LM_INPUTS = ("in/text_token", "in/prompt_text_token", "in/lm_prompt_token")
FLOW_INPUTS = ("in/flow_prompt_token", "in/prompt_mel", "in/spk_embedding")
BRANCH_VELOCITIES = ("flow/velocity_cond", "flow/velocity_uncond")
VELOCITIES = (*BRANCH_VELOCITIES, "flow/velocity")
ODE_FIELDS = ("flow/x", *VELOCITIES)


class Field(NamedTuple):
    """One line of the table."""

    dims: tuple[str, ...]
    unit: str
    meaning: str


FIELDS = {
    "in/text_token": Field(("text",), "id", "the text to speak"),
    "in/prompt_text_token": Field(("prompt_text",), "id", "instruction and the prompt's transcript"),
    "in/lm_prompt_token": Field(("lm_prompt",), "id", "the prompt's speech tokens that the LM goes on from"),
    "in/flow_prompt_token": Field(("flow_prompt",), "id", "the prompt's speech tokens that the flow hears"),
    "in/prompt_mel": Field(("mel", "prompt_frame"), "ln", "the prompt's log-mel"),
    "in/spk_embedding": Field(("embedding",), "", "speaker embedding, not normalised"),
    "in/source_token": Field(("token",), "id", "conversion: the recording's speech tokens"),
    "lm/logp": Field(("draw", "vocab"), "ln", "log-probabilities the draw was made from"),
    "lm/entropy": Field(("draw",), "nat", "of those probabilities"),
    "lm/drawn_token": Field(("draw",), "id", "what the LM drew, before long silences are shortened"),
    "lm/speech_token": Field(("token",), "id", "what the flow is given, 25 a second"),
    "flow/mu": Field(("mel", "frame"), "", "conditioning from the speech tokens"),
    "flow/cond": Field(("mel", "frame"), "ln", "the prompt's mel, zeros behind it"),
    "flow/spks": Field(("mel",), "", "projected speaker embedding"),
    "flow/noise": Field(("mel", "frame"), "", "where the ODE starts, before the temperature"),
    "flow/t": Field(("knot",), "", "ODE time, from noise at 0 to mel at 1"),
    "flow/x": Field(("knot", "mel", "frame"), "ln", "state of the ODE"),
    "flow/velocity_cond": Field(("step", "mel", "frame"), "ln", "velocity with conditions"),
    "flow/velocity_uncond": Field(("step", "mel", "frame"), "ln", "velocity without"),
    "flow/velocity": Field(("step", "mel", "frame"), "ln", "cond + cfg_rate * (cond - uncond)"),
    "flow/mel": Field(("mel", "target_frame"), "ln", "log-mel of the target, 50 frames a second"),
    "hift/f0": Field(("target_frame",), "Hz", "fundamental frequency"),
    "hift/source": Field(("sample",), "", "excitation, 24 kHz"),
    "hift/magnitude": Field(("bin", "stft_frame"), "", "of the spectrum that is inverted"),
    "hift/phase": Field(("bin", "stft_frame"), "rad", "of the spectrum that is inverted"),
    "hift/wav": Field(("sample",), "", "waveform of the target, full scale 1"),
}


def dims_of(name: str) -> tuple[str, ...] | None:
    """Return a field's dimensions by name; None where the table does not know it.

    >>> dims_of("flow/x.stats")
    ('knot', 'region', 'stat')
    """
    field = FIELDS.get(name.removesuffix(SUFFIX))
    if field is None or not name.endswith(SUFFIX):
        return None if field is None else field.dims
    loop = field.dims[:1] if field.dims[0] in LOOPS else ()
    region = ("region",) if "frame" in field.dims else ()
    return (*loop, *region, "stat")
