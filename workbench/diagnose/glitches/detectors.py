"""The detectors of glitches, each with its threshold and with what usually causes it here.

A detector is a function of a `Sound` that yields every `Spot` it could speak of, with a score; the higher,
the worse. What it counts stands in its docstring. Thresholds were set on part of the clean speech of
`calibrate.py`, and on more recordings of the same voices, and are tested on the rest.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from workbench.diagnose.glitches import level_detectors as levels
from workbench.diagnose.glitches import sample_detectors as samples
from workbench.diagnose.glitches import spectral_detectors as spectra
from workbench.diagnose.glitches.analysis import Sound
from workbench.diagnose.glitches.sample_detectors import Spot


class Detector(NamedTuple):
    """A line of the catalogue."""

    find: Callable[[Sound], Iterator[Spot]]
    threshold: float  # of the score
    unit: str
    cause: str  # what usually does it in this pipeline


DETECTORS: dict[str, Detector] = {
    "not finite": Detector(
        samples.nonfinite, 1, "samples", "half precision overflows: exp in the vocoder's head, or the flow"
    ),
    "dead": Detector(
        samples.dead, 60, "dB below full scale", "NaN turned to zeros, or the LM stopped after a few tokens"
    ),
    "beyond": Detector(
        samples.beyond, 1.0, "of full scale", "samples are 16-bit integers, or were never clamped"
    ),
    "clamped": Detector(
        samples.clamped, 3, "samples", "the vocoder's clamp: magnitude too large, mel in another unit, f0 off"
    ),
    "offset": Detector(samples.offset, 0.0025, "of full scale", "the vocoder in half precision"),
    "click": Detector(
        samples.clicks, 11.0, "dB", "two chunks joined without looking at each other, or a lost buffer"
    ),
    "seam": Detector(
        samples.seams, 6.5, "dB", "chunks rendered from unlike histories, or samples lost between"
    ),
    "hop": Detector(samples.hops, 5.2, "standard deviations", "a click at every chunk of a streaming player"),
    "repeat": Detector(
        samples.repeats, 10.5, "dB", "the inverse STFT or an upsampling stride written wrongly"
    ),
    "start cut": Detector(
        levels.start_cut, -42, "dB", "samples cut off at the front, or a stale vocoder state"
    ),
    "stop cut": Detector(
        levels.stop_cut, -38, "dB", "the LM stopped too early, or the last chunk was dropped"
    ),
    "onset burst": Detector(
        levels.onset_burst, 12, "dB", "the prompt's end leaks in, or the vocoder starts from a cold state"
    ),
    "tail burst": Detector(
        levels.tail_burst, 10, "dB", "the last chunk lacks look-ahead: its mel ends in noise"
    ),
    "gap": Detector(levels.gaps, 19, "dB", "a lost chunk, or frames that were zeroed"),
    "pause": Detector(levels.pauses, 1.05, "s", "a run of silent tokens; see Options.max_silent_run"),
    "wait": Detector(levels.waits, 1.05, "s", "silent tokens at an end; see Options.max_silent_run"),
    "step": Detector(levels.steps, 12, "dB", "chunks rendered with unlike prompts or normalised one by one"),
    "noise floor": Detector(
        spectra.noise_floor, -30, "dB", "a noisy prompt, or a flow whose silence is not silent"
    ),
    "hiss": Detector(
        spectra.hiss, -55, "dB", "slope of the vocoder's last leaky ReLU, or a resampler without a filter"
    ),
    "line": Detector(spectra.lines, 20.5, "dB", "the vocoder's upsampling, or mains hum in the prompt"),
    "unvoiced": Detector(spectra.unvoiced, 0.6, "share", "f0 is lost: the excitation is noise everywhere"),
    "smear": Detector(
        spectra.smear, 1.2, "standard deviations", "too few steps of the ODE: a mean of many mels"
    ),
    "buzz": Detector(spectra.buzz, 0.45, "harmonicity", "the excitation reaches where noise should be"),
    "f0": Detector(spectra.f0, 0.25, "octaves", "the f0 predictor in half precision, or a wrong mel"),
    "leap": Detector(spectra.leaps, 0.7, "octaves", "the f0 predictor takes a harmonic for the fundamental"),
    "mel": Detector(spectra.mel, 1, "", "an earlier stage; the note says which values"),
    "off mel": Detector(
        spectra.off_mel, 0.75, "nats", "the vocoder: this waveform is not of the mel that it was given"
    ),
    "length": Detector(spectra.length, 0.02, "share", "saved at another rate, or chunks lost"),
}
