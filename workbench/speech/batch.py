"""Run many utterances with many sets of options, in batches.

A *variant* is one set of options, and a run is one variant of one utterance. Each stage (LM, flow, vocoder)
handles all runs, in batches of up to `MAX_ROWS` rows, before the next stage begins.

Work that several runs share is done once. Variants that differ only in the flow's options share their tokens;
variants that differ only in the vocoder's options share their mel. So one *row* of a batch stands for all
runs that have had the same inputs and options up to this stage.
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
    make_mels,
    make_sounds,
    make_tokens,
    note_inputs,
    program_names,
    provenance,
)
from workbench.speech.stage_runner import StageRunner
from workbench.trace.record import NOTHING, Recorder, Save, as_save
from workbench.trace.trace import Trace

MAX_ROWS = 32  # rows in one batch; the limit bounds the memory that a stage needs

# Options that may differ between the rows of one batch of a stage. All other options are equal in a batch.
PER_ROW_OPTIONS = {LM: fast_lm.PER_ROW_OPTIONS, FLOW: fast_flow.PER_ROW_OPTIONS, HIFT: ()}
# The function that runs a stage for the rows of one batch. It stores the stage's output in the rows.
RUN_STAGE: dict[str, Callable[[StageRunner, Sequence[Row]], None]] = {
    LM: make_tokens,
    FLOW: make_mels,
    HIFT: make_sounds,
}


@dataclass(eq=False)
class _Run:
    """One variant of one utterance, with the outputs of the stages that have run so far."""

    utt: Utterance
    options: Options
    record: Recorder
    attrs: dict[str, Any]  # metadata of the trace
    token: Tensor | None = None  # (L,) speech tokens
    mel: Tensor | None = None  # (1, M, T) mel of the target speech, without the prompt's frames
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> the run's share of the batch's time
    rows: dict[str, int] = field(default_factory=dict)  # stage -> number of rows in the run's batch


class _SharedRecorder:
    """The recorders of all runs that share a row. Each field is added to all of them."""

    def __init__(self, records: Sequence[Recorder]) -> None:
        self.records = records

    def wants(self, name: str) -> bool:
        """Return whether any of the recorders keeps a field."""
        return any(record.wants(name) for record in self.records)

    def add(self, name: str, value: Tensor, prompt_frames: int = 0) -> None:
        """Record a field. The first `prompt_frames` mel frames of the field are those of the voice prompt."""
        for record in self.records:
            record.add(name, value, prompt_frames)


@torch.no_grad()
def run_batch(
    runner: StageRunner,
    utts: Sequence[Utterance],
    variants: Sequence[Options],
    save: Save | str | Iterable[str] = NOTHING,
) -> list[list[Trace]]:
    """Run every variant of every utterance; see `Pipeline.synthesise_many`.

    The result is indexed [utterance][variant].
    """
    runs = []
    for utt in utts:
        for options in variants:
            record = Recorder(as_save(save))
            runs.append(_Run(utt, options, record, program_names(runner, options, FLOW, HIFT)))

    def no_bar(steps: Iterable, name: str, unit: str, total: int | None = None) -> Iterable:
        return steps

    # The bar below counts batches, so the steps of a batch are run by a copy of the runner that shows no bar.
    quiet = runner.watched(no_bar)
    for stage in (LM, FLOW, HIFT):
        batches = list(_batches(stage, runs))
        for batch in runner.bar(iter(batches), stage, " batch", len(batches)):
            _run_stage(quiet, stage, batch)

    traces = []
    for run in runs:
        attrs = (
            note_inputs(run.record, run.utt) | run.attrs | provenance(runner, run.options, run.record.save)
        )
        # Every trace has `first_step`, the number of the ODE step at which its record begins. It differs from
        # 0 only for a run that was resumed from another trace; a batch always begins at the start.
        attrs |= {"first_step": 0, "timings": run.seconds, "rows": run.rows}
        traces.append(Trace(run.record.finish(), attrs))
    return [traces[i : i + len(variants)] for i in range(0, len(traces), len(variants))]


def _batches(stage: str, runs: Sequence[_Run]) -> Iterator[list[list[_Run]]]:
    """Yield the batches of a stage. A batch is a list of rows; a row is the list of runs that share it."""
    # Runs with the same row key share a row. Rows with the same batch key share a batch.
    rows_of_batch_key: dict[Hashable, dict[Hashable, list[_Run]]] = {}  # batch key -> row key -> runs
    for run in runs:
        runs_of_row_key = rows_of_batch_key.setdefault(_batch_key(stage, run), {})
        runs_of_row_key.setdefault(_row_key(stage, run), []).append(run)
    for runs_of_row_key in rows_of_batch_key.values():
        rows = list(runs_of_row_key.values())
        options = rows[0][0].options
        size = 1 if options.eager(stage) else MAX_ROWS  # the eager models take one row at a time
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]


def _row_key(stage: str, run: _Run) -> Hashable:
    """Return a key that is equal for runs which get the same output from a stage.

    Runs get the same output if the utterance, the options of the stage and the output of the stage before are
    equal. Speech tokens are compared by value. Mels are compared by identity, because runs that shared a row
    of the flow hold the same tensor.
    """
    options = tuple(run.options.of_stage(stage).items())
    if stage == LM:
        return id(run.utt), options
    if stage == FLOW:
        return id(run.utt), tuple(run.token.tolist()), options
    return id(run.mel), options


def _batch_key(stage: str, run: _Run) -> Hashable:
    """Return a key that is equal for runs which one batch of a stage can hold."""
    options = run.options.of_stage(stage)
    shared = tuple((name, value) for name, value in options.items() if name not in PER_ROW_OPTIONS[stage])
    # A voice conversion has its tokens already and takes no time in the LM. In a batch with other runs it
    # would be given a share of the LM's seconds. Batches of their own do no harm in the stages after the LM.
    draws_tokens = run.utt.source_token is None
    return shared, draws_tokens


def _run_stage(runner: StageRunner, stage: str, batch: list[list[_Run]]) -> None:
    """Run a stage for one batch, and give the output of each row to all runs that share the row."""
    rows = []
    for runs in batch:
        first = runs[0]
        record = _SharedRecorder([run.record for run in runs])
        rows.append(Row(first.utt, first.options, record, token=first.token, mel=first.mel))

    clock = Clock(runner.device)
    with clock(stage):
        RUN_STAGE[stage](runner, rows)

    for row, runs in zip(rows, batch, strict=True):
        for run in runs:
            run.token, run.mel = row.token, row.mel
            # Runs that share a row do not divide its time: each gets all of it.
            run.seconds[stage] = clock.seconds[stage] / len(rows)
            run.rows[stage] = len(rows)
