"""The main path: prepared text -> speech tokens -> mel -> waveform -> `Trace`.

`run` is the whole path of one utterance; `run_part` is any part of it, from what a trace holds. The stages
that they call stand in `recording.py`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import FLOW, HIFT, NAMES, Options
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

AT_LM, AT_FLOW, AT_HIFT = range(len(NAMES))  # positions of the stages in a run


def run(
    runner: StageRunner, utt: Utterance, options: Options, save: Save | str | Iterable[str] = NOTHING
) -> Trace:
    """Speak one prepared utterance; see `Pipeline.synthesise`."""
    record, clock = Recorder(as_save(save)), Clock(runner.device)
    row = Row(utt, options, record)
    programs = program_names(runner, options, FLOW, HIFT)

    with clock("lm"):
        make_tokens(runner, [row])
    with clock("flow"):
        make_mels(runner, [row])
    with clock("hift"):
        make_sounds(runner, [row])

    # Only now has a text that arrives as a stream been read.
    about = note_inputs(record, utt) | programs | provenance(runner, options, record.save)
    return Trace(record.finish(), about | {"first_step": 0, "timings": clock.seconds})


class Place(NamedTuple):
    """A place in a run: a stage by its position, and a step of the flow's ODE."""

    stage: int
    step: int


def run_part(
    runner: StageRunner,
    utt: Utterance | None,
    options: Options,
    save: Save | str | Iterable[str] = NOTHING,
    start: str = "lm",
    stop_after: str = "hift",
    given: Trace | None = None,
) -> Trace:
    """Run what lies between two places; see `Pipeline.replay`.

    Parameters
    ----------
    runner : StageRunner
    utt : Utterance or None
        None where the run begins at the vocoder.
    options : Options
    save : Save or globs
        What to record.
    start, stop_after : str
        "lm", "flow", "hift" or "flow/step/3".
    given : Trace, optional
        Holds the inputs of the first stage, unless that is the LM.

    Returns
    -------
    Trace
        `attrs["first_step"]` is the step of the ODE at which the record begins.

    Raises
    ------
    WorkbenchError
        When the places are unknown or in the wrong order, or `given` lacks an input.
    """
    final_step = options.n_timesteps - 1
    first = place_of(start, 0, final_step)
    last = place_of(stop_after, final_step, final_step)
    if first > last:
        raise WorkbenchError(f"a run from {start} on cannot stop after {stop_after}, which comes before")
    runs_flow = first.stage != AT_HIFT and last.stage != AT_LM

    record, clock = Recorder(as_save(save)), Clock(runner.device)
    row = Row(utt, options, record)
    runs = [FLOW] * runs_flow + [HIFT] * (last.stage == AT_HIFT)
    about = program_names(runner, options, *runs)

    if first.stage == AT_LM:
        with clock("lm"):
            make_tokens(runner, [row])
    elif first.stage == AT_FLOW:
        row.token = _given(given, "lm/speech_token", start)
        row.x = _state(given, first.step, start)[None] if first.step else None
        record.add("lm/speech_token", row.token)
    if runs_flow:
        with clock("flow"):
            make_mels(runner, [row], first.step, last.step if last.stage == AT_FLOW else final_step)
    elif first.stage == AT_HIFT:
        row.mel = _given(given, "flow/mel", start)[None]
        record.add("flow/mel", row.mel[0])
    if last.stage == AT_HIFT:
        with clock("hift"):
            make_sounds(runner, [row])

    if utt is not None:
        about |= note_inputs(record, utt)
    about |= provenance(runner, options, record.save)
    return Trace(record.finish(), about | {"first_step": first.step, "timings": clock.seconds})


def place_of(text: str, default_step: int, final_step: int) -> Place:
    """Read "lm", "flow", "hift" or "flow/step/3"; "flow" alone means `default_step`."""
    stage, slash, number = text.partition("/step/")
    if stage in NAMES and not slash:
        return Place(NAMES.index(stage), default_step if stage == "flow" else 0)
    if stage == "flow" and number.isdecimal() and int(number) <= final_step:
        return Place(AT_FLOW, int(number))
    raise WorkbenchError(
        f"{text!r} is no place in this run; expected lm, flow, hift, or flow/step/0 to {final_step}"
    )


def _given(trace: Trace | None, name: str, start: str) -> Tensor:
    if trace is None or name not in trace:
        raise WorkbenchError(
            f"a run from {start} on needs {name}, which this trace does not hold; record it with "
            f"save={name!r}, or begin earlier"
        )
    return trace[name]


def _state(trace: Trace | None, step: int, start: str) -> Tensor:
    """Return the ODE's state (M, T) before a step; the trace may have been recorded from a later step on."""
    x = _given(trace, "flow/x", start)
    begin = trace.attrs.get("first_step", 0)
    if not begin <= step < begin + len(x):
        raise WorkbenchError(
            f"a run from {start} on needs flow/x at knot {step}; this trace holds knots {begin} to "
            f"{begin + len(x) - 1}"
        )
    return x[step - begin]
