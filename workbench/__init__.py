"""An investigation workbench for CosyVoice3.

Load a checkpoint, make it speak, keep what happened on the way, find out where it went wrong. Read
`workbench.speech.run` first: the main path fits one screen.
"""

import sys
from importlib import import_module

from workbench.diagnose.compare.compare import Comparison, compare
from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.experiment import Experiment
from workbench.diagnose.glitches.glitches import Finding, Findings, find_glitches
from workbench.diagnose.precision import bisect_precision, headroom
from workbench.diagnose.suspects.suspects import Diagnosis, find_suspects
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import Config, Options
from workbench.speech.frontend.frontend import Prompt, Utterance
from workbench.speech.onnx_estimator import export_onnx
from workbench.speech.pipeline import Pipeline
from workbench.speech.stream import StreamState, stream, streamed
from workbench.trace.importers.logs import Log, read_log
from workbench.trace.importers.mapping import read_foreign
from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY, Save, taps
from workbench.trace.trace import Trace

__version__ = "0.2.0"

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "SUMMARY",
    "CachedRuns",
    "Checkpoint",
    "Comparison",
    "Config",
    "Diagnosis",
    "Experiment",
    "Finding",
    "Findings",
    "Log",
    "Options",
    "Pipeline",
    "Player",
    "Prompt",
    "Report",
    "Save",
    "StreamState",
    "Trace",
    "Utterance",
    "WorkbenchError",
    "bisect_precision",
    "compare",
    "comparison_report",
    "export_onnx",
    "find_glitches",
    "find_suspects",
    "headroom",
    "implausible",
    "player",
    "plots",
    "read_foreign",
    "read_log",
    "run_report",
    "stream",
    "streamed",
    "taps",
    "widgets",
]

# Imported when they are asked for: what they stand on is slow to import.
LATE = {
    "Player": "workbench.show.player.player",
    "Report": "workbench.show.report.report",
    "comparison_report": "workbench.show.report.standard",
    "player": "workbench.show.player.player",
    "plots": "workbench.show",
    "run_report": "workbench.show.report.standard",
    "widgets": "workbench.show",
}


def __getattr__(name: str) -> object:
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if LATE[name] == "workbench.show":
        return import_module(f"workbench.show.{name}")
    return getattr(import_module(LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LATE})


def _show_players_in_cells() -> None:
    """Where IPython runs, a trace in a cell shows its player from now on."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from workbench.show.widgets.display import register

        register(shell)


_show_players_in_cells()
