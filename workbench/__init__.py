"""An investigation workbench for CosyVoice3.

Load a checkpoint, make it speak, keep what happened on the way, find out where it went wrong. Read
`workbench.speech.run` first: the main path fits one screen.
"""

from workbench.diagnose.compare import Comparison, compare
from workbench.diagnose.glitches import Finding, Findings, find_glitches
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
    "Checkpoint",
    "Comparison",
    "Config",
    "Diagnosis",
    "Finding",
    "Findings",
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
    "find_glitches",
    "find_suspects",
    "headroom",
    "implausible",
    "read_foreign",
    "read_log",
    "stream",
    "taps",
]
