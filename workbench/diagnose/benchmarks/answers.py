"""Measure how long an answer takes: whole processes of the shell, from their start to their end.

`workbench bench answers` prints it. Other work on the machine lengthens the time on the wall clock, and
the CPU seconds little.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from workbench.diagnose.benchmarks import process_cost
from workbench.diagnose.benchmarks.trace_overhead import random_checkpoint, utterance_of_length
from workbench.errors import WorkbenchError
from workbench.files import PACKAGE, data_path
from workbench.speech.checkpoint.checkpoint import BUNDLED_VOICE, Checkpoint
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING

TEXT = "Eight months to Mars."
PROMPT = "prompts/kumo_0.flac"
SEED = 7
WRONG_GUIDANCE = 0.5  # cfg_rate of the run that is compared; the voice's own is 0.7
RELEASED_TOKENS = 40  # of speech, 1.6 s, at the released size
SAID = 300  # characters of what a failed process said


class Cost(NamedTuple):
    """What one process took."""

    wall: float  # seconds
    cpu: float  # seconds of all its threads, in the program and in the kernel
    peak: int  # bytes of memory at most


def measure_answers(
    released: bool = False,
    notebooks: Sequence[str] = (),
    rounds: int = 3,
    names: Sequence[str] = (),
    progress: Callable[[Iterable, int], Iterable] = lambda each, total: each,
) -> pd.DataFrame:
    """Time whole processes, which take turns, so that all see the same machine.

    Parameters
    ----------
    released : bool
        Compare and diagnose runs of 1.6 s by random weights of the released sizes, instead of all answers
        about the bundled voice.
    notebooks : sequence of str
        Notebooks of the book to run as well, such as "00-start-here".
    rounds : int
        Every process runs once per round.
    names : sequence of str
        Only these answers; all by default.
    progress : callable
        Shows the loop over all processes, given their number.

    Returns
    -------
    DataFrame
        By `answer`: `wall_s` and `cpu_s`, medians; `low_s` and `high_s` of the wall clock; `peak_gb`, the
        most memory of any round.

    Raises
    ------
    WorkbenchError
        When an answer is unknown, or a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = _released(Path(folder)) if released else _bundled(Path(folder), notebooks)
        unknown = [name for name in names if name not in commands]
        if unknown:
            raise WorkbenchError(
                f"there is no answer {unknown[0]!r:.80}; expected one of {', '.join(commands)}"
            )
        turns = [name for _ in range(rounds) for name in commands if not names or name in names]
        costs: dict[str, list[Cost]] = {name: [] for name in dict.fromkeys(turns)}
        for name in progress(turns, len(turns)):
            costs[name].append(cost_of([sys.executable, *commands[name]]))
    return _table(costs)


def cost_of(command: Sequence[str]) -> Cost:
    """Run a process to its end and return what it took.

    Parameters
    ----------
    command : sequence of str
        Exit codes 0 and 1, "something was found", are fine.

    Raises
    ------
    WorkbenchError
        When it ends otherwise; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cost.json"
        ended = subprocess.run(
            [sys.executable, process_cost.__file__, str(out), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=PACKAGE.parent,
            check=False,
        )
        if ended.returncode not in (0, 1) or not out.is_file():
            said = ended.stdout.decode(errors="replace").strip()[-SAID:]
            raise WorkbenchError(f"{' '.join(command)!r:.400} ended with {ended.returncode}: {said}")
        return Cost(**json.loads(out.read_text(encoding="utf-8")))


def _bundled(folder: Path, notebooks: Sequence[str]) -> dict[str, list[str]]:
    """Return the arguments of Python for each answer about the bundled voice, on two runs made for that."""
    voice = data_path(BUNDLED_VOICE)
    pipe = Pipeline(Checkpoint.load(voice), progress=False)
    right, wrong = _two_traces(pipe, pipe.prepare(TEXT, data_path(PROMPT)), pipe.options(None, SEED), folder)
    verb = ["-m", "workbench"]
    commands = {
        "import": ["-c", "import workbench; workbench.Pipeline"],
        "speak": [*verb, "speak", TEXT, "--force", "-o", str(folder)],
        "compare": [*verb, "compare", right, wrong],
        "compare --voice": [*verb, "compare", right, wrong, "--voice", str(voice)],
        "diagnose": [*verb, "diagnose", wrong, "--reference", right],
        "report of two": [*verb, "report", right, wrong, "-o", str(folder / "report.html")],
        "precision": [*verb, "precision", TEXT],
    }
    for name in notebooks:
        commands[f"notebook {name}"] = [*verb, "notebook", name, "-o", str(folder / f"{name}.html")]
    return commands


def _released(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for the answers that need every weight twice, at the released size."""
    voice = random_checkpoint().save(folder / "voice")
    pipe = Pipeline(Checkpoint.load(voice), progress=False)
    right, wrong = _two_traces(pipe, *utterance_of_length(pipe.checkpoint, RELEASED_TOKENS), folder)
    verb = ["-m", "workbench"]
    return {
        "compare --voice": [*verb, "compare", right, wrong, "--voice", str(voice)],
        "diagnose": [*verb, "diagnose", wrong, "--reference", right, "--voice", str(voice)],
    }


def _two_traces(pipe: Pipeline, utt: Utterance, options: Options, folder: Path) -> list[str]:
    """Save a right run with everything recorded, and one with another guidance."""
    right = pipe.synthesise(utt, options=options, save=EVERYTHING)
    wrong = pipe.replay(right, "flow", options.but(cfg_rate=WRONG_GUIDANCE), save=EVERYTHING)
    return [str(right.save(folder / "right.trace")), str(wrong.save(folder / "wrong.trace"))]


def _table(costs: Mapping[str, Sequence[Cost]]) -> pd.DataFrame:
    rows = []
    for name, found in costs.items():
        walls = pd.Series([cost.wall for cost in found])
        cpu = pd.Series([cost.cpu for cost in found]).median()
        peak = max(cost.peak for cost in found) / 1e9
        rows.append((name, walls.median(), cpu, walls.min(), walls.max(), peak))
    return pd.DataFrame(rows, columns=["answer", "wall_s", "cpu_s", "low_s", "high_s", "peak_gb"])
