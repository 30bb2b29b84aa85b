"""The table of glitch detectors: threshold, unit and usual cause of each.

A detector is a function of a `Sound` that yields every candidate place as a `Spot` with a score; a higher
score is worse. The first line of its docstring names what it finds and the unit of the score. Thresholds were
set on the part of the clean speech that `benchmark.py` names for it, and on more recordings of the same
voices; they are tested on the rest.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from workbench.diagnose.glitches import level_detectors as levels
from workbench.diagnose.glitches import sample_detectors as samples
from workbench.diagnose.glitches import spectral_detectors as spectra
from workbench.diagnose.glitches.analysis import Sound
from workbench.diagnose.glitches.sample_detectors import Spot


class Detector(NamedTuple):
    """One row of the table."""

    find: Callable[[Sound], Iterator[Spot]]  # yields candidates; those below the threshold are dropped
    threshold: float  # of the score
    unit: str
    cause: str  # what usually causes it in this pipeline


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
    "click": Detector(samples.clicks, 11.0, "dB", "two chunks joined without a cross-fade, or a lost buffer"),
    "seam": Detector(
        samples.seams, 6.5, "dB", "chunks computed with different contexts, or samples lost between them"
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
    "pause": Detector(levels.pauses, 1.05, "s", "many silent tokens in a row; see Options.max_silent_run"),
    "wait": Detector(levels.waits, 1.05, "s", "silent tokens at an end; see Options.max_silent_run"),
    "step": Detector(levels.steps, 12, "dB", "chunks with different prompts, or normalised one by one"),
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
        spectra.off_mel, 0.75, "nats", "the vocoder: the waveform does not fit the mel that it was given"
    ),
    "length": Detector(spectra.length, 0.02, "share", "saved at another rate, or chunks lost"),
}
