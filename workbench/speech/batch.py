"""Many runs at once: every variant of every utterance, one batch a stage.

What is equal is made once: variants that differ in the flow share tokens, those that differ in the vocoder
share a mel, and utterances of one prompt and text share what the flow is told.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.speech.config import Options
from workbench.speech.fast import flow as fast_flow
from workbench.speech.fast import lm as fast_lm
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models.flow import Condition, FlowStep
from workbench.speech.models.hift import Vocoded
from workbench.speech.models.lm import LMStep
from workbench.speech.models.sampling import shorten_silences
from workbench.speech.run import (
    Clock,
    check_said,
    note_condition,
    note_end,
    note_inputs,
    note_sound,
    note_step,
    provenance,
    recorded_draws,
)
from workbench.trace.record import NOTHING, Recorder, Save, as_save
from workbench.trace.trace import Trace

if TYPE_CHECKING:
    from workbench.speech.pipeline import Pipeline

MOST_ROWS = 32  # of one batch
LOGP = ("lm/logp", "lm/entropy")  # what is made of log-probabilities
DRAWS = (*LOGP, "lm/drawn_token")  # what is kept of the LM's steps
NONE = torch.empty(0)

# Options that may differ within a batch of a stage; all others are the same for its rows.
FREE = {"lm": fast_lm.FREE, "flow": fast_flow.FREE, "hift": ()}


@dataclass(eq=False)
class _Run:
    """One of the runs, as far as it has come."""

    utt: Utterance
    options: Options
    record: Recorder
    about: dict[str, Any]
    token: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    mel: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def key(self, stage: str) -> Hashable:
        """Equal for runs whose stage makes the same of the same; what it is given stands beside it."""
        given = {"lm": (), "flow": (tuple(self.token.tolist()),), "hift": (id(self.mel),)}[stage]
        return id(self.utt) if stage != "hift" else None, given, _frozen(self.options.of_stage(stage))

    def kind(self, stage: str) -> Hashable:
        """Equal for runs that one batch of a stage can hold."""
        chosen = self.options.of_stage(stage)
        alike = _frozen({name: value for name, value in chosen.items() if name not in FREE[stage]})
        return alike, self.utt.source_token is None  # a conversion asks the LM nothing


@torch.no_grad()
def run_many(
    pipe: "Pipeline",
    utts: Sequence[Utterance],
    variants: Sequence[Options],
    save: Save | str | Iterable[str] = NOTHING,
) -> list[list[Trace]]:
    """Speak every variant of every utterance; see `Pipeline.synthesise_many`."""
    runs = []
    for utt in utts:
        for options in variants:
            record = Recorder(as_save(save))
            runs.append(_Run(utt, options, record, note_inputs(record, utt)))
    for stage, work in (("lm", _speak), ("flow", _solve), ("hift", _vocode)):
        _in_batches(pipe, stage, runs, work)
    traces = [_trace(pipe, run) for run in runs]
    return [traces[i : i + len(variants)] for i in range(0, len(traces), len(variants))]


def _in_batches(
    pipe: "Pipeline", stage: str, runs: Sequence[_Run], work: Callable[["Pipeline", list[list[_Run]]], None]
) -> None:
    """Let a stage work on rows of runs that are equal so far, as many rows at once as may be."""
    kinds: dict[Hashable, dict[Hashable, list[_Run]]] = {}
    for run in runs:
        kinds.setdefault(run.kind(stage), {}).setdefault(run.key(stage), []).append(run)
    batches = []
    for kind in kinds.values():
        rows = list(kind.values())
        most = 1 if rows[0][0].options.eager(stage) else MOST_ROWS
        batches += [rows[i : i + most] for i in range(0, len(rows), most)]
    for rows in pipe.bar(iter(batches), stage, " batch", len(batches)):
        clock = Clock(pipe.device)
        clock(stage, lambda rows=rows: work(pipe, rows))
        for run in (run for row in rows for run in row):
            run.seconds[stage], run.rows[stage] = clock.seconds[stage] / len(rows), len(rows)


def _speak(pipe: "Pipeline", rows: list[list[_Run]]) -> None:
    """Find each row's speech tokens."""
    first = [row[0] for row in rows]
    drawn: list[list[LMStep]] = [[] for _ in rows]
    if first[0].utt.source_token is None:
        looked_at = [any(run.record.wants(name) for run in row for name in LOGP) for row in rows]
        for index, step in _draws(pipe, first):
            drawn[index].append(step if looked_at[index] else step._replace(logp=NONE))
    for row, steps in zip(rows, drawn, strict=True):
        for run in row:
            if run.utt.source_token is not None:
                run.token = run.utt.source_token
            else:
                if any(run.record.wants(name) for name in DRAWS):
                    steps = list(recorded_draws(iter(steps), run.record))
                said = [step.token for step in steps]
                kept = shorten_silences(said, pipe.config.silent_tokens, run.options.max_silent_run)
                run.token = torch.tensor(list(kept), dtype=torch.long)
            check_said(run.utt, run.token)
            run.record.add("lm/speech_token", run.token)


def _draws(pipe: "Pipeline", runs: list[_Run]) -> Iterator[tuple[int, LMStep]]:
    options = [run.options for run in runs]
    if options[0].eager("lm"):
        yield from ((0, step) for step in pipe.lm_steps(runs[0].utt, options[0]))
    else:
        utts = [run.utt.to(pipe.device) for run in runs]
        yield from pipe.stages.fast_lm(options[0]).steps(utts, options)


def _solve(pipe: "Pipeline", rows: list[list[_Run]]) -> None:
    """Find each row's mel."""
    told: dict[Hashable, Condition] = {}
    conditions = []
    for run, *_ in rows:
        key = id(run.utt), tuple(run.token.tolist())
        if key not in told:
            told[key] = pipe.condition(run.utt, run.token, run.options)
        conditions.append(told[key])
    other = pipe.estimator(rows[0][0].options)
    for row, c in zip(rows, conditions, strict=True):
        for run in row:
            run.about["estimator"] = "torch" if other is None else other.about
            note_condition(run.record, c, pipe, run.options)
    for steps in _flow_steps(pipe, [row[0].options for row in rows], conditions):
        for row, c, step in zip(rows, conditions, steps, strict=True):
            for run in row:
                note_step(run.record, step, c.prompt_frames)
    for row, c, step in zip(rows, conditions, steps, strict=True):
        mel = pipe.target(step.x_next, c.prompt_frames, row[0].options.speed)
        for run in row:
            note_end(run.record, step, c.prompt_frames)
            run.record.add("flow/mel", mel[0])
            run.mel = mel


def _flow_steps(
    pipe: "Pipeline", options: Sequence[Options], conditions: Sequence[Condition]
) -> Iterator[list[FlowStep]]:
    if options[0].eager("flow"):
        yield from ([step] for step in pipe.flow_steps(conditions[0], options[0]))
    else:
        noise = [pipe.noise(c.mu.shape[-1], o) for c, o in zip(conditions, options, strict=True)]
        yield from pipe.stages.fast_flow(options[0]).steps(conditions, noise, options)


def _vocode(pipe: "Pipeline", rows: list[list[_Run]]) -> None:
    """Find each row's sound."""
    options = rows[0][0].options
    for row, sound in zip(rows, _sounds(pipe, [row[0].mel for row in rows], options), strict=True):
        for run in row:
            note_sound(run.record, sound)


def _sounds(pipe: "Pipeline", mels: list[Tensor], options: Options) -> list[Vocoded]:
    if options.eager("hift"):
        return [pipe.vocode(mels[0], options)]
    sounds = pipe.stages.fast_hift(options)(mels, head_dtype=getattr(torch, options.head_dtype))
    return [sound._replace(wav=sound.wav.float()) for sound in sounds]


def _trace(pipe: "Pipeline", run: _Run) -> Trace:
    about = run.about | provenance(pipe, run.options, run.record.save)
    about |= {"first_step": 0, "timings": run.seconds, "rows": run.rows}
    return Trace(run.record.finish(), about)


def _frozen(options: dict[str, Any]) -> Hashable:
    return tuple(sorted(options.items(), key=lambda pair: pair[0]))
