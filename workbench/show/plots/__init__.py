"""Figures: one function each, `name(trace, *, ax=None) -> Axes`, or `axes=None -> array` for several panels.

Without axes a function makes a white figure with the trace's provenance below it. It never shows, saves or
closes a figure.

- `waveform`: samples over time, clamped and non-finite ones marked, findings shaded
- `mel`: log-mel of the target
- `mel_difference`: log-mel of a candidate minus that of a reference
- `mel_steps`: the state of the ODE from noise to mel
- `spectrogram`: power of the waveform over time and frequency
- `f0`: fundamental frequency
- `tokens`: speech tokens, entropy of each draw, distance from stopping
- `field`: any field of a trace, or one entry of it
- `field_pair`: the same of two traces in one scale, and their difference
- `trajectory`: a statistic of the ODE's state and velocities, step by step
- `guidance_gap`: distance between the velocities with and without conditions
- `comparison`: error of every place of a comparison, in causal order
- `suspects`: share of the error that each suspect explains
- `headroom`: how often the largest value of a module could double before it overflows
- `provenance`: the line below a figure
- `PALETTE`: the colours of lines, for figures of your own
- `sensitivity`, `size_curve`: what quantised weights change, by block and by size
- `stream_chunks`: time for each chunk of a stream, and its real-time margin

Read `mel.py` first; `axes.py` holds what all figures have in common.
"""

from workbench.show.plots.field import field, field_pair
from workbench.show.plots.flow import guidance_gap, trajectory
from workbench.show.plots.mel import mel, mel_difference, mel_steps
from workbench.show.plots.palette import PALETTE
from workbench.show.plots.provenance import provenance
from workbench.show.plots.quantisation import sensitivity, size_curve
from workbench.show.plots.sound import f0, spectrogram, waveform
from workbench.show.plots.streams import stream_chunks
from workbench.show.plots.tokens import tokens
from workbench.show.plots.verdicts import comparison, headroom, suspects

__all__ = [
    "PALETTE",
    "comparison",
    "f0",
    "field",
    "field_pair",
    "guidance_gap",
    "headroom",
    "mel",
    "mel_difference",
    "mel_steps",
    "provenance",
    "sensitivity",
    "size_curve",
    "spectrogram",
    "stream_chunks",
    "suspects",
    "tokens",
    "trajectory",
    "waveform",
]
