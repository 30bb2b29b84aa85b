"""What a file picker and a dashboard open: any file, folder or log, as named runs with a preview."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench.diagnose.glitches.glitches import Findings, find_glitches
from workbench.diagnose.open import open
from workbench.diagnose.sounds.sound_input import is_sound_file
from workbench.errors import WorkbenchError
from workbench.tables import Table, table
from workbench.trace.importers.open_run import is_run_file, open_runs
from workbench.trace.schema import FRAME_RATE, SUFFIX
from workbench.trace.trace import Trace

SOUND, LOG, DUMP, TRACE = "sound", "log", "dump", "trace"
PREVIEW_UNITS = {"length": "s", "rate": "Hz"}
MAX_TEXT = 60  # characters of a text in a preview
PARTS = {  # what a run may hold, by the beginning of the fields' names
    "text": "in/text_token",
    "prompt": "in/prompt",
    "draws": "lm/logp",
    "tokens": "lm/speech_token",
    "ODE": "flow/x",
    "velocities": "flow/velocity",
    "mel": "flow/mel",
    "f0": "hift/f0",
    "waveform": "hift/wav",
}


@dataclass(eq=False)
class Source:
    """One run or sound that was opened, and what it is called."""

    name: str
    trace: Trace
    kind: str
    _findings: dict[bool | None, Findings] = field(default_factory=dict)

    @property
    def has_sound(self) -> bool:
        """Whether there is a waveform to hear."""
        return "hift/wav" in self.trace and len(self.trace.wav) > 0

    def findings(self, synthesised: bool | None = None) -> Findings:
        """Return what sounds wrong; it is computed once for each answer to whether a model made the sound."""
        if synthesised not in self._findings:
            self._findings[synthesised] = find_glitches(self.trace, synthesised=synthesised)
        return self._findings[synthesised]


def open_sources(path: str | os.PathLike, mapping: Path | None = None) -> list[Source]:
    """Open a trace, sound, dump or log; a log gives all its runs. `mapping` is for a dump.

    Raises
    ------
    WorkbenchError
        When it cannot be opened, as `wb.open`.
    """
    path = Path(path)
    if is_sound_file(path) or not is_run_file(path):
        return [Source(path.name, open(path), SOUND if os.path.isfile(path) else TRACE)]
    traces = open_runs(path, mapping)
    sources = []
    for number, trace in enumerate(traces, 1):
        name = path.name if len(traces) == 1 else f"{path.name}#{number}"
        kind = DUMP if "mapping" in trace.attrs else LOG if "lines" in trace.attrs else TRACE
        sources.append(Source(name, trace, kind))
    return sources


def preview(sources: Sequence[Source]) -> Table:
    """Return what each source is: kind, length, rate, and which parts of a run it holds."""
    rows = []
    for source in sources:
        trace = source.trace
        rows.append(
            {
                "name": source.name,
                "kind": source.kind,
                "length": _seconds(trace),
                "rate": trace.sample_rate if source.has_sound else None,
                "holds": _holds(trace),
                "text": str(trace.attrs.get("text") or "")[:MAX_TEXT],
            }
        )
    return table(pd.DataFrame(rows), PREVIEW_UNITS)


def notes_of(sources: Sequence[Source]) -> list[str]:
    """Return what importers noted, such as the mapping that was taken or lines that were not read."""
    found = []
    for source in sources:
        notes = source.trace.attrs.get("notes")
        found += [str(note) for note in notes] if isinstance(notes, list) else []
    return list(dict.fromkeys(found))


def unused_name(name: str, used: Collection[str]) -> str:
    """Return a name that is not in use: with a number behind it where it is."""
    found = name
    number = 2
    while found in used:
        found = f"{name} ({number})"
        number += 1
    return found


def first_sentence(error: WorkbenchError) -> str:
    """Return an error as one line."""
    return " ".join(str(error).split())


def _seconds(trace: Trace) -> float:
    """Return the length in seconds, of the waveform or else of the mel; NaN where neither was recorded."""
    if trace.seconds:
        return trace.seconds
    return trace["flow/mel"].shape[-1] / FRAME_RATE if "flow/mel" in trace else float("nan")


def _holds(trace: Trace) -> str:
    """Return the parts of a run that were recorded; of some, the statistics alone."""
    found = []
    for part, start in PARTS.items():
        names = [name for name in trace if name.startswith(start)]
        if names:
            has_values = any(not name.endswith(SUFFIX) for name in names)
            found.append(part if has_values else f"{part} (statistics)")
    if trace.taps:
        found.append(f"{len(trace.taps)} taps")
    return ", ".join(found)
