"""Table of the fields that a run can record: dimensions, unit and meaning of each.

The fields stand in causal order. Beside a field `flow/x` there may be `flow/x.stats`, which a run keeps in
place of the field or beside it: its `STATS`, for each of the `REGIONS` if the field has frames. A statistic
that was not recorded is NaN.
"""

from typing import NamedTuple

VERSION = 2  # of this table; `Trace.load` reads no other. Version 1 had no region "whole"

STATS = ("min", "max", "mean", "mean_abs", "rms", "nonfinite")  # the first five are of the finite values
VALUE_STATS = STATS[:-1]  # without the count of NaN and Inf
REGIONS = ("prompt", "target", "whole")  # all frames are "whole"; a text log prints no other region
LOOPS = ("draw", "knot", "step")  # dimensions that grow by one entry at a time during a run
SUFFIX = ".stats"
# Prefix, in files, of the taps of a trace: what submodules of a stage returned or were given. A tap is called
# stage/step/dotted name of the submodule, with ".input" behind it for what the submodule was given.
TAP = "tap/"
SAMPLE_RATE = 24_000  # Hz, of a trace that does not state its own
# Files that hold a sound and no fields.
SOUND_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"),
    *(".m4a", ".mp4", ".aac", ".webm"),
)
FRAME_RATE, TOKEN_RATE = 50, 25  # mel frames and speech tokens per second
# Entries per second of each dimension that is the time of the target; `sample` has the trace's own rate.
RATES = {"frame": FRAME_RATE, "target_frame": FRAME_RATE, "token": TOKEN_RATE, "draw": TOKEN_RATE}
# Lengths of dimensions in the released model, by which the axes of other programs' tensors are told.
USUAL_LENGTHS = {"mel": 80, "embedding": 192, "bin": 9}

# Groups of fields that belong together.
LM_INPUTS = ("in/text_token", "in/prompt_text_token", "in/lm_prompt_token")
FLOW_INPUTS = ("in/flow_prompt_token", "in/prompt_mel", "in/spk_embedding")
BRANCH_VELOCITIES = ("flow/velocity_cond", "flow/velocity_uncond")
VELOCITIES = (*BRANCH_VELOCITIES, "flow/velocity")
ODE_FIELDS = ("flow/x", *VELOCITIES)


class Field(NamedTuple):
    """One field of the table."""

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
    """Return the dimensions of a field; None for a name that is not in the table.

    >>> dims_of("flow/x.stats")
    ('knot', 'region', 'stat')
    """
    field = FIELDS.get(name.removesuffix(SUFFIX))
    if field is None or not name.endswith(SUFFIX):
        return None if field is None else field.dims
    loop = field.dims[:1] if field.dims[0] in LOOPS else ()
    region = ("region",) if "frame" in field.dims else ()
    return (*loop, *region, "stat")
