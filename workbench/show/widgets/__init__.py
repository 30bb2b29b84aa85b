"""Widgets: controls around plain functions of the package.

Each widget has `static()`, which gives its present state as HTML; that is shown where no kernel runs. Labs
compute again when a control changes; browsers show what is recorded already.

Read `panel.py` first: what all widgets have in common. `labs.py` and `browsers.py` hold the widgets,
`controls.py` makes sliders and fields, `background.py` runs the slow work in a thread, and `display.py` lets
a trace in a cell show its player.
"""

from workbench.show.widgets.browsers import ComparisonBrowser, FilePicker, TraceBrowser
from workbench.show.widgets.labs import (
    OdeExplorer,
    SamplingLab,
    VocoderLab,
    ode_explorer,
    sampling_lab,
    vocoder_lab,
)

__all__ = [
    "ComparisonBrowser",
    "FilePicker",
    "OdeExplorer",
    "SamplingLab",
    "TraceBrowser",
    "VocoderLab",
    "ode_explorer",
    "sampling_lab",
    "vocoder_lab",
]
