"""An investigation workbench for CosyVoice3.

Load a checkpoint, make it speak, keep everything that happened on the way, and find out where and why it went
wrong. Every public name is imported when it is first used, so `import workbench` is quick. To read the code,
begin with `workbench.speech.run`: the main path fits one screen.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors; the table below is what runs
    from workbench.diagnose.bisect.bisect import bisect
    from workbench.diagnose.bisect.bisection import Bisection
    from workbench.diagnose.compare.compare import compare
    from workbench.diagnose.compare.comparison import Comparison
    from workbench.diagnose.compare.plausibility import implausible
    from workbench.diagnose.experiments import metrics
    from workbench.diagnose.experiments.cached_runs import CachedRuns
    from workbench.diagnose.experiments.experiment import Experiment
    from workbench.diagnose.glitches.glitches import Finding, Findings, find_glitches
    from workbench.diagnose.glitches.wave_stats import wave_stats
    from workbench.diagnose.headroom import headroom
    from workbench.diagnose.open import open
    from workbench.diagnose.precision import bisect_precision
    from workbench.diagnose.quantisation.outliers import outliers
    from workbench.diagnose.quantisation.recommend import Recommendation, recommend
    from workbench.diagnose.sounds.compare_sounds import compare_sounds
    from workbench.diagnose.sounds.sound_comparison import SoundComparison
    from workbench.diagnose.suspects.catalogue import faults
    from workbench.diagnose.suspects.diagnosis import Diagnosis
    from workbench.diagnose.suspects.simulate import FaultSimulator
    from workbench.diagnose.suspects.suspects import find_suspects
    from workbench.errors import WorkbenchError, WorkbenchWarning
    from workbench.files import data_path
    from workbench.show import plots, widgets
    from workbench.show.dashboard.dashboard import Dashboard
    from workbench.show.player.listening import ListeningTest, listening_test
    from workbench.show.player.player import Player, player
    from workbench.show.report.report import Report
    from workbench.show.report.run_reports import comparison_report, run_report
    from workbench.speech.checkpoint.checkpoint import Checkpoint
    from workbench.speech.checkpoint.for_upstream import export_for_upstream
    from workbench.speech.checkpoint.quantised.layers import layers
    from workbench.speech.config import Config, Options
    from workbench.speech.frontend.audio import log_mel
    from workbench.speech.frontend.frontend import Prompt, Utterance
    from workbench.speech.frontend.prompt_checks import PromptCheck, PromptFinding, check_prompt
    from workbench.speech.models.quantise.quantise import formats, quantise
    from workbench.speech.onnx.export import export_onnx
    from workbench.speech.pipeline import Pipeline
    from workbench.speech.streaming.state import StreamState
    from workbench.speech.streaming.stream import stream, stream_many, streamed
    from workbench.tables import Table, table
    from workbench.trace.importers.dumps.mapping import read_foreign
    from workbench.trace.importers.dumps.proposal import propose_mapping
    from workbench.trace.importers.logs.logs import Log, read_log
    from workbench.trace.record import EVERYTHING, NOTHING, SUMMARY, Save, taps
    from workbench.trace.trace import Trace

# Public name -> the module that holds it, or that it is.
PUBLIC = {
    "EVERYTHING": "workbench.trace.record",
    "NOTHING": "workbench.trace.record",
    "SUMMARY": "workbench.trace.record",
    "Bisection": "workbench.diagnose.bisect.bisection",
    "CachedRuns": "workbench.diagnose.experiments.cached_runs",
    "Checkpoint": "workbench.speech.checkpoint.checkpoint",
    "Comparison": "workbench.diagnose.compare.comparison",
    "Config": "workbench.speech.config",
    "Dashboard": "workbench.show.dashboard.dashboard",
    "Diagnosis": "workbench.diagnose.suspects.diagnosis",
    "Experiment": "workbench.diagnose.experiments.experiment",
    "FaultSimulator": "workbench.diagnose.suspects.simulate",
    "Finding": "workbench.diagnose.glitches.glitches",
    "Findings": "workbench.diagnose.glitches.glitches",
    "ListeningTest": "workbench.show.player.listening",
    "Log": "workbench.trace.importers.logs.logs",
    "Options": "workbench.speech.config",
    "Pipeline": "workbench.speech.pipeline",
    "Player": "workbench.show.player.player",
    "Prompt": "workbench.speech.frontend.frontend",
    "PromptCheck": "workbench.speech.frontend.prompt_checks",
    "PromptFinding": "workbench.speech.frontend.prompt_checks",
    "Recommendation": "workbench.diagnose.quantisation.recommend",
    "Report": "workbench.show.report.report",
    "Save": "workbench.trace.record",
    "SoundComparison": "workbench.diagnose.sounds.sound_comparison",
    "StreamState": "workbench.speech.streaming.state",
    "Table": "workbench.tables",
    "Trace": "workbench.trace.trace",
    "Utterance": "workbench.speech.frontend.frontend",
    "WorkbenchError": "workbench.errors",
    "WorkbenchWarning": "workbench.errors",
    "bisect": "workbench.diagnose.bisect.bisect",
    "bisect_precision": "workbench.diagnose.precision",
    "check_prompt": "workbench.speech.frontend.prompt_checks",
    "compare": "workbench.diagnose.compare.compare",
    "compare_sounds": "workbench.diagnose.sounds.compare_sounds",
    "comparison_report": "workbench.show.report.run_reports",
    "data_path": "workbench.files",
    "export_for_upstream": "workbench.speech.checkpoint.for_upstream",
    "export_onnx": "workbench.speech.onnx.export",
    "faults": "workbench.diagnose.suspects.catalogue.faults",
    "find_glitches": "workbench.diagnose.glitches.glitches",
    "find_suspects": "workbench.diagnose.suspects.suspects",
    "formats": "workbench.speech.models.quantise.quantise",
    "headroom": "workbench.diagnose.headroom",
    "implausible": "workbench.diagnose.compare.plausibility",
    "layers": "workbench.speech.checkpoint.quantised.layers",
    "listening_test": "workbench.show.player.listening",
    "log_mel": "workbench.speech.frontend.audio",
    "metrics": "workbench.diagnose.experiments.metrics",
    "open": "workbench.diagnose.open",
    "outliers": "workbench.diagnose.quantisation.outliers",
    "player": "workbench.show.player.player",
    "plots": "workbench.show.plots",
    "propose_mapping": "workbench.trace.importers.dumps.proposal",
    "quantise": "workbench.speech.models.quantise.quantise",
    "read_foreign": "workbench.trace.importers.dumps.mapping",
    "read_log": "workbench.trace.importers.logs.logs",
    "recommend": "workbench.diagnose.quantisation.recommend",
    "run_report": "workbench.show.report.run_reports",
    "stream": "workbench.speech.streaming.stream",
    "stream_many": "workbench.speech.streaming.stream",
    "streamed": "workbench.speech.streaming.stream",
    "table": "workbench.tables",
    "taps": "workbench.trace.record",
    "wave_stats": "workbench.diagnose.glitches.wave_stats",
    "widgets": "workbench.show.widgets",
}
MODULES = ("faults", "metrics", "plots", "widgets")  # public names that are modules
__version__ = "0.2.0"
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, and keep it."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(PUBLIC[name])
    value = module if name in MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*PUBLIC, "__version__"]


def _show_players(shell: Any) -> None:
    """Let an IPython shell show a trace with its player; nothing is imported until there is one to show."""
    html = shell.display_formatter.formatters["text/html"]
    html.for_type_by_name("workbench.trace.trace", "Trace", _trace_html)


def _trace_html(trace: Any) -> str:
    from workbench.show.widgets.display import trace_html

    return trace_html(trace)


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()) is not None:
    _show_players(_shell)
