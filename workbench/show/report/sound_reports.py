"""Reports about sounds without a trace: of one, and of two side by side."""

import numpy as np
import torch

from workbench.diagnose.sounds.compare_sounds import compare_sounds
from workbench.diagnose.sounds.one_sound import examine_sound
from workbench.diagnose.sounds.sound_input import SoundSource
from workbench.show import plots
from workbench.show.player.player import player
from workbench.show.plots.axes import close_figures
from workbench.show.report.report import Report
from workbench.speech.config import RELEASED
from workbench.speech.frontend.audio import log_mel, resample
from workbench.trace.trace import Trace


def one_sound_report(source: SoundSource, sample_rate: int | None = None) -> Report:
    """Return a report of one sound: player, findings, properties.

    Parameters
    ----------
    source : path, Trace, Tensor (N,) or ndarray (N,)
    sample_rate : int, optional
        Hz, of bare samples.
    """
    found = examine_sound(source, sample_rate)
    state = "bad" if len(found.glitches) else "good"
    report = Report(f"Sound: {found.name}", "\n".join([found.line, *found.remarks]), state=state)
    report.add(player(found.trace, findings=found.glitches), "Sound")
    report.add(found.glitches, "Findings")
    return report.add(found.to_frame(), "Properties")


def sound_report(
    reference: SoundSource,
    candidate: SoundSource,
    names: tuple[str, str] = ("reference", "candidate"),
    sample_rate: int | None = None,
) -> Report:
    """Return a report of two sounds: the verdict, both to hear, what differs, when and at which frequencies.

    Parameters
    ----------
    reference, candidate : path, Trace, Tensor (N,) or ndarray (N,)
    names : (str, str)
        What the report calls the two.
    sample_rate : int, optional
        Hz, of bare samples.
    """
    found = compare_sounds(reference, candidate, sample_rate)
    heard = [f"{name}: {each!r}" for name, each in zip(names, found.glitches, strict=True) if len(each)]
    lead = [
        found.line,
        *heard,
        *found.remarks[-2:],
    ]  # the last two: what a sound cannot tell, what to do next
    undecided = found.verdict == "NOT COMPARABLE"
    state = "good" if found.ok else "open" if undecided else "bad"
    report = Report(f"{names[1]} beside {names[0]}", "\n".join(lead), state=state)
    sounds = player(*found.traces, names=names, findings=found.glitches)
    report.add(sounds, "Sound", "As they are, not aligned.")
    for name, findings in zip(names, found.glitches, strict=True):
        report.add(findings, f"Findings: {name}")
    report.add(found.to_frame(), "What differs", "Places are possibilities; a sound alone names no fault.")
    if found.alignment is not None:
        aligned = (found.alignment.reference, found.alignment.candidate)
        mels = [_mel_trace(wav, found.rate, name) for wav, name in zip(aligned, names, strict=True)]
        figure = plots.mel_difference(*mels, names=names)
        report.add(figure, "Difference of the aligned mels")
        close_figures(figure)
        report.add(found.bands, "By frequency", "Levels in dB of full scale after the alignment.")
        report.add(found.times, "By time", f"{names[1]} beside {names[0]}, in segments of 100 ms.")
    properties = found.properties.set_axis(names, axis=1).rename_axis("property").reset_index()
    return report.add(properties, "Each sound alone")


def _mel_trace(wav: np.ndarray, rate: int, name: str) -> Trace:
    """Return the log-mel of samples (N,) as a trace, for figures."""
    sound = resample(torch.from_numpy(wav).float(), rate, RELEASED.mel.sample_rate)
    return Trace({"flow/mel": log_mel(sound, RELEASED.mel)[0]}, {"source": name})
