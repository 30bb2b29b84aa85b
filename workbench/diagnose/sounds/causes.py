"""What could make each kind of difference: stages of the pipeline, and steps around it.

These are possibilities, never findings: many faults make the same difference, and a sound alone does not
tell them apart. `compare` of two traces does.
"""

from typing import NamedTuple


class Possibility(NamedTuple):
    """Where a difference could come from, and why."""

    places: str  # stages (text, lm, flow, hift) or steps around the pipeline (prompt, resampler, file)
    reason: str


POSSIBLE: dict[str, Possibility] = {
    "not finite": Possibility("hift, flow", "an overflow in half precision, or a division by zero"),
    "level": Possibility(
        "hift, flow, prompt, file",
        "the inverse STFT's scale, the mel's unit, a louder prompt, or normalising",
    ),
    "delay": Possibility(
        "hift, flow, file",
        "padding of a convolution or STFT, where the prompt is cut off, or leading silence",
    ),
    "drift": Possibility(
        "resampler, file", "two clocks, or a resampler with a rounded ratio; no stage of the model drifts"
    ),
    "polarity": Possibility("hift, file", "a sign in the inverse STFT, or in a sound card or converter"),
    "sample rate": Possibility("resampler, file", "saved at another rate, or a header with a wrong one"),
    "length": Possibility(
        "lm, flow, file", "the LM stopped at another token, a chunk was dropped, or the file was cut"
    ),
    "offset": Possibility("hift, file", "low precision in the vocoder, or the recording"),
    "clipping": Possibility("hift, file", "the vocoder's clamp, or a gain before the file was written"),
    "bandwidth": Possibility(
        "resampler, file, hift", "resampled on the way, lossy coding, or the vocoder's highest bins"
    ),
    "noise floor": Possibility(
        "flow, hift, file", "a silence that is not silent, noise of the excitation, or coarse storage"
    ),
    "spectrum": Possibility(
        "flow, hift, prompt", "another mel, a filter or slope in the vocoder, or another prompt"
    ),
    "f0": Possibility("flow, hift", "another mel, or the F0 predictor and the excitation that follows it"),
    "harmonics": Possibility(
        "flow, hift", "a smeared mel (too few steps, no guidance), or the excitation's harmonics and noise"
    ),
    "phase or noise": Possibility(
        "hift, flow", "the excitation's phase or another draw of its noise, or a mel that is off by rounding"
    ),
    "small difference": Possibility("any, file", "lower precision, other kernels, dither or lossy coding"),
    "prosody": Possibility(
        "lm, text", "other speech tokens (seed, sampling, precision of the LM), the speed, or the prompt"
    ),
    "words": Possibility(
        "text, lm, prompt", "another text or front end, another voice, or a sound that is no speech any more"
    ),
}

# What no comparison of two sound files can tell.
UNKNOWABLE = (
    "which fault it was: a sound alone has no stages, and many faults sound alike",
    "whether both ran the same text, tokens, options and weights",
    "whether the reference itself is right",
)
NEXT_STEP = (
    "To find the stage, record what was computed on the way (`workbench speak --trace everything`, or the "
    "hooks of the page 'Record your own implementation') and run `workbench compare` on the two traces."
)
