"""The three stages in one table: what each is given, what it makes, and which options change that.

text -> **lm** -> speech tokens -> **flow** -> mel -> **hift** -> waveform
"""

from typing import NamedTuple

from workbench.trace.schema import FLOW_INPUTS, LM_INPUTS


class Stage(NamedTuple):
    """One line of the table."""

    inputs: tuple[str, ...]  # fields of a trace that the stage needs
    output: str  # the field that the next stage needs
    options: tuple[str, ...]  # names of the options that change the output
    fast_dtype: str  # what `compute="fast"` makes of float32


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
LM, FLOW, HIFT = NAMES = tuple(STAGES)
