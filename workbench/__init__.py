"""An investigation workbench for CosyVoice3.

Load a checkpoint, make it speak, keep what happened on the way, find out where it went wrong. Read
`workbench.speech.run` first: the main path fits one screen.
"""

from importlib import import_module
from types import ModuleType

from workbench.diagnose.compare import Comparison, compare
from workbench.diagnose.experiment import CachedRuns, Experiment
from workbench.diagnose.plausible import implausible
from workbench.diagnose.precision import bisect_precision, headroom
from workbench.diagnose.suspects import Diagnosis, find_suspects
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint import Checkpoint
from workbench.speech.config import Config, Options
from workbench.speech.frontend import Prompt, Utterance
from workbench.speech.onnx_estimator import export_onnx
from workbench.speech.pipeline import Pipeline
from workbench.speech.stream import StreamState, stream
from workbench.trace.foreign import read_foreign
from workbench.trace.logs import Log, read_log
from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY, Save, taps
from workbench.trace.trace import Trace

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
    "Log",
    "Options",
    "Pipeline",
    "Prompt",
    "Save",
    "StreamState",
    "Trace",
    "Utterance",
    "WorkbenchError",
    "bisect_precision",
    "compare",
    "export_onnx",
    "find_suspects",
    "headroom",
    "implausible",
    "plots",
    "read_foreign",
    "read_log",
    "stream",
    "taps",
]


def __getattr__(name: str) -> ModuleType:
    """Import `plots` when it is asked for: matplotlib takes as long as a third of all else together."""
    if name != "plots":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("workbench.show.plots")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
