"""Many runs at once: every variant of every utterance, one batch a stage.

Equal work is done once. Variants that differ only in the flow share their tokens, those that differ only in
the vocoder share their mel. A *row* of a batch stands for all runs that are equal so far.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.speech.config import FLOW, HIFT, LM, Options
from workbench.speech.fast import flow as fast_flow
from workbench.speech.fast import lm as fast_lm
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.recording import (
    Clock,
    Row,
    estimator_name,
    make_mels,
    make_sounds,
    make_tokens,
    note_inputs,
    provenance,
)
from workbench.speech.stage_runner import StageRunner
from workbench.trace.record import NOTHING, Recorder, Save, as_save
from workbench.trace.trace import Trace

MAX_ROWS = 32  # of one batch

# Options that may differ between the rows of a stage's batch; all others are equal within it.
FREE = {LM: fast_lm.PER_ROW_OPTIONS, FLOW: fast_flow.PER_ROW_OPTIONS, HIFT: ()}
WORK: dict[str, Callable[[StageRunner, Sequence[Row]], None]] = {
    LM: make_tokens,
    FLOW: make_mels,
    HIFT: make_sounds,
}


@dataclass(eq=False)
class _Run:
    """One variant of one utterance, and what the stages made of it so far."""

    utt: Utterance
    options: Options
    record: Recorder
    about: dict[str, Any]
    token: Tensor | None = None
    mel: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # of the batch that each stage ran in


class _SharedRecorder:
    """The recorders of all runs that share a row: what is added goes to each of them."""

    def __init__(self, records: Sequence[Recorder]) -> None:
        self.records = records

    def wants(self, name: str) -> bool:
        return any(record.wants(name) for record in self.records)

    def add(self, name: str, value: Tensor, prompt_frames: int = 0) -> None:
        for record in self.records:
            record.add(name, value, prompt_frames)


@torch.no_grad()
def run_batch(
    runner: StageRunner,
    utts: Sequence[Utterance],
    variants: Sequence[Options],
    save: Save | str | Iterable[str] = NOTHING,
) -> list[list[Trace]]:
    """Speak every variant of every utterance; see `Pipeline.synthesise_many`."""
    runs = []
    for utt in utts:
        for options in variants:
            record = Recorder(as_save(save))
            about = note_inputs(record, utt)
            about["estimator"] = estimator_name(runner, options)
            runs.append(_Run(utt, options, record, about))

    quiet = runner.watched(lambda steps, name, unit, total=None: steps)  # one bar a stage, below
    for stage in (LM, FLOW, HIFT):
        batches = list(_batches(stage, runs))
        for batch in runner.bar(iter(batches), stage, " batch", len(batches)):
            _run_stage(quiet, stage, batch)

    traces = []
    for run in runs:
        about = run.about | provenance(runner, run.options, run.record.save)
        about |= {"first_step": 0, "timings": run.seconds, "rows": run.rows}
        traces.append(Trace(run.record.finish(), about))
    return [traces[i : i + len(variants)] for i in range(0, len(traces), len(variants))]


def _batches(stage: str, runs: Sequence[_Run]) -> Iterator[list[list[_Run]]]:
    """Group runs into batches: a batch is a list of rows, a row a list of runs that are equal so far."""
    kinds: dict[Hashable, dict[Hashable, list[_Run]]] = {}
    for run in runs:
        rows = kinds.setdefault(_batch_key(stage, run), {})
        rows.setdefault(_row_key(stage, run), []).append(run)
    for rows in kinds.values():
        listed = list(rows.values())
        options = listed[0][0].options
        size = 1 if options.eager(stage) else MAX_ROWS
        for begin in range(0, len(listed), size):
            yield listed[begin : begin + size]


def _row_key(stage: str, run: _Run) -> Hashable:
    """Return a key that is equal for runs which get the same output from a stage.

    Equal are the options of the stage and its inputs: the utterance, and what the stage before it made.
    Runs that shared a row of the flow hold the very same mel.
    """
    options = tuple(run.options.of_stage(stage).items())
    if stage == LM:
        return id(run.utt), options
    if stage == FLOW:
        return id(run.utt), tuple(run.token.tolist()), options
    return id(run.mel), options


def _batch_key(stage: str, run: _Run) -> Hashable:
    """Return a key that is equal for runs which one batch of a stage can hold."""
    fixed = tuple(pair for pair in run.options.of_stage(stage).items() if pair[0] not in FREE[stage])
    draws_tokens = run.utt.source_token is None  # a voice conversion needs no LM
    return fixed, draws_tokens


def _run_stage(runner: StageRunner, stage: str, batch: list[list[_Run]]) -> None:
    """Run a stage once for each row of a batch, and give its output to all runs of the row."""
    rows = []
    for runs in batch:
        first = runs[0]
        record = _SharedRecorder([run.record for run in runs])
        rows.append(Row(first.utt, first.options, record, token=first.token, mel=first.mel))

    clock = Clock(runner.device)
    with clock(stage):
        WORK[stage](runner, rows)

    for row, runs in zip(rows, batch, strict=True):
        for run in runs:
            run.token, run.mel = row.token, row.mel
            run.seconds[stage] = clock.seconds[stage] / len(rows)
            run.rows[stage] = len(rows)
