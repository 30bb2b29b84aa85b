"""Every figure, one function each: `name(trace, *, ax=None) -> Axes`, several panels `axes=None -> array`.

Without axes a white figure is made with the trace's provenance below it; nothing is shown, saved or closed.
"""

from workbench.show.plots.field import field
from workbench.show.plots.flow import guidance_gap, trajectory
from workbench.show.plots.mel import mel, mel_difference, mel_steps
from workbench.show.plots.provenance import provenance
from workbench.show.plots.sound import f0, spectrogram, tokens, waveform
from workbench.show.plots.verdicts import comparison, headroom, suspects

__all__ = [
    "comparison",
    "f0",
    "field",
    "guidance_gap",
    "headroom",
    "mel",
    "mel_difference",
    "mel_steps",
    "provenance",
    "spectrogram",
    "suspects",
    "tokens",
    "trajectory",
    "waveform",
]
