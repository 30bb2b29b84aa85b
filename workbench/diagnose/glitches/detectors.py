"""The table of glitch detectors: threshold, unit and usual causes of each.

A detector is a function of a `Sound` that yields every candidate place as a `Spot` with a score; a higher
score is worse. The first line of its docstring names what it finds and the unit of the score.

Thresholds were set on half of the recordings that data/accuracy/README.md names, real voices at six sample
rates and the bundled voice; the other half tests them.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from workbench.diagnose.glitches import level_detectors as levels
from workbench.diagnose.glitches import sample_detectors as samples
from workbench.diagnose.glitches import spectral_detectors as spectra
from workbench.diagnose.glitches import trace_detectors as recorded
from workbench.diagnose.glitches.analysis import Sound, Spot
from workbench.diagnose.glitches.causes import (
    Cause,
    few_steps,
    half_f0,
    half_flow,
    half_lm,
    half_vocoder,
    in_chunks,
)


class Detector(NamedTuple):
    """One row of the table."""

    find: Callable[[Sound], Iterator[Spot]]  # yields candidates; those below the threshold are dropped
    threshold: float  # of the score
    unit: str
    causes: tuple[Cause, ...]  # what usually causes it in this pipeline
    # What it is in a recording of a person, where it is common and no defect. Empty: a defect there as well.
    in_recordings: str = ""
    follows_mel: bool = True  # a healthy vocoder makes it from a wrong mel


DETECTORS: dict[str, Detector] = {
    "not finite": Detector(
        samples.nonfinite,
        1,
        "samples",
        (
            Cause("the vocoder's exp overflows in half precision", half_vocoder),
            Cause("the flow overflows in half precision", half_flow),
            Cause("NaN in the weights"),
        ),
    ),
    "dead": Detector(
        samples.dead,
        60,
        "dB below full scale",
        (Cause("NaN turned to zeros"), Cause("the LM stopped after a few tokens")),
    ),
    "beyond": Detector(
        samples.beyond,
        1.0,
        "of full scale",
        (Cause("samples are 16-bit integers"), Cause("the waveform was never clamped")),
        follows_mel=False,
    ),
    "clamped": Detector(
        samples.clamped,
        3,
        "samples",
        (
            Cause("a magnitude that is too large for the vocoder's clamp"),
            Cause("a mel in another unit"),
            Cause("f0 that is off"),
            Cause("an overdriven recording"),
        ),
    ),
    "offset": Detector(
        samples.offset,
        0.0025,
        "of full scale",
        (
            Cause("the vocoder in half precision", half_vocoder),
            Cause("a bias of the vocoder's last layers"),
            Cause("clipping"),
        ),
        in_recordings="an offset of the sound card or of the microphone's amplifier",
    ),
    "click": Detector(
        samples.clicks,
        10.5,
        "dB",
        (
            Cause("two chunks joined without a cross-fade", in_chunks),
            Cause("a lost buffer"),
            Cause("samples that wrapped around full scale"),
        ),
        follows_mel=False,
    ),
    "seam": Detector(
        samples.seams,
        6.5,
        "dB",
        (Cause("chunks computed with different contexts"), Cause("samples lost between chunks")),
        follows_mel=False,
    ),
    "hop": Detector(
        samples.hops,
        5.3,
        "standard deviations",
        (Cause("a click at every chunk of a streaming player"),),
        follows_mel=False,
    ),
    "repeat": Detector(
        samples.repeats,
        10.5,
        "dB",
        (
            Cause("the inverse STFT or an upsampling stride written wrongly"),
            Cause("a mel frame that is held"),
        ),
    ),
    "start cut": Detector(
        levels.start_cut,
        -42,
        "dB",
        (Cause("samples cut off at the front"), Cause("a stale vocoder state", in_chunks)),
        in_recordings="the file begins amid sound: it was cut out of something longer",
    ),
    "stop cut": Detector(
        levels.stop_cut,
        -38,
        "dB",
        (Cause("the LM stopped too early"), Cause("the last chunk was dropped", in_chunks)),
        in_recordings="the file ends amid sound: it was cut out of something longer",
    ),
    "onset burst": Detector(
        levels.onset_burst,
        12,
        "dB",
        (Cause("the prompt's end leaks in"), Cause("the vocoder starts from a cold state")),
        in_recordings="a noise at the very start, such as the end of an earlier word",
    ),
    "tail burst": Detector(
        levels.tail_burst,
        10,
        "dB",
        (
            Cause("the last chunk lacks look-ahead: its mel ends in noise", in_chunks),
            Cause("the LM began another word"),
        ),
        in_recordings="a noise at the very end, such as the start of a next word",
    ),
    "gap": Detector(
        levels.gaps,
        19,
        "dB",
        (Cause("a lost chunk", in_chunks), Cause("frames that were zeroed"), Cause("a noise gate")),
    ),
    "pause": Detector(
        levels.pauses,
        1.05,
        "s",
        (Cause("many silent tokens in a row; see Options.max_silent_run"),),
        in_recordings="the speaker pauses",
        follows_mel=False,
    ),
    "wait": Detector(
        levels.waits,
        1.05,
        "s",
        (Cause("silent tokens at an end; see Options.max_silent_run"),),
        in_recordings="silence was left in the file before or after the speech",
        follows_mel=False,
    ),
    "step": Detector(
        levels.steps,
        13.5,
        "dB",
        (Cause("chunks with different prompts"), Cause("parts that were normalised one by one")),
    ),
    "noise floor": Detector(
        spectra.noise_floor,
        -30,
        "dB",
        (Cause("a noisy prompt"), Cause("a flow whose silence is not silent")),
        in_recordings="noise of the room or of the microphone",
    ),
    "hiss": Detector(
        spectra.hiss,
        -53,
        "dB",
        (
            Cause("the slope of the vocoder's last leaky ReLU"),
            Cause("a resampler without a filter"),
            Cause("a noisy prompt"),
        ),
        in_recordings="noise of the microphone and its amplifier",
    ),
    "line": Detector(
        spectra.lines,
        20.5,
        "dB",
        (Cause("the vocoder's upsampling"), Cause("mains hum in the prompt")),
        in_recordings="mains hum, a fan or a screen near the microphone",
    ),
    "unvoiced": Detector(
        spectra.unvoiced,
        0.6,
        "share",
        (Cause("f0 is lost: the excitation is noise everywhere"), Cause("whispering")),
    ),
    "smear": Detector(
        spectra.smear,
        1.25,
        "standard deviations",
        (
            Cause("too few steps of the ODE: a mean of many mels", few_steps),
            Cause("a fault of the flow"),
            Cause("a voice unlike the bundled one, which the threshold was set on"),
        ),
        in_recordings="a voice that is smoother than the bundled one",
        follows_mel=False,
    ),
    "buzz": Detector(
        spectra.buzz, 0.55, "harmonicity", (Cause("the excitation reaches where noise should be"),)
    ),
    "f0": Detector(
        recorded.f0,
        0.25,
        "octaves",
        (Cause("the f0 predictor in half precision", half_f0), Cause("a wrong mel")),
    ),
    "leap": Detector(
        recorded.leaps, 0.7, "octaves", (Cause("the f0 predictor takes a harmonic for the fundamental"),)
    ),
    "mel": Detector(
        recorded.mel,
        1,
        "",
        (
            Cause("too few steps of the ODE", few_steps),
            Cause("the LM in half precision", half_lm),
            Cause("the flow in half precision", half_flow),
            Cause("an earlier stage"),
        ),
        follows_mel=False,
    ),
    "off mel": Detector(
        recorded.off_mel,
        0.75,
        "nats",
        (
            Cause("the vocoder in half precision", half_vocoder),
            Cause("a fault of the vocoder"),
            Cause("a gain or clipping behind it"),
        ),
    ),
    "length": Detector(
        recorded.length,
        0.02,
        "share",
        (Cause("saved at another rate"), Cause("chunks lost", in_chunks)),
        follows_mel=False,
    ),
    "pace": Detector(
        recorded.pace,
        1.3,
        "octaves",
        (
            Cause("the prompt's transcript is not what the prompt says, and is read aloud or skipped"),
            Cause("the LM did not find the end, or stopped early"),
        ),
        follows_mel=False,
    ),
}
