"""Every figure, one function each: `name(trace, *, ax=None) -> Axes`, several panels `axes=None -> array`.

Without axes a white figure is made with the trace's provenance below it; nothing is shown, saved or closed.
"""

from workbench.show.draw_field import field
from workbench.show.draw_flow import guidance_gap, trajectory
from workbench.show.draw_mel import mel, mel_difference, mel_steps
from workbench.show.draw_sound import f0, spectrogram, tokens, waveform
from workbench.show.draw_verdicts import comparison, headroom, suspects
from workbench.show.provenance import provenance

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
