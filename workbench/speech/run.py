"""The main path: prepared text -> tokens -> mel -> waveform -> `Trace`, from any place in it to any other."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Prompt, Utterance
from workbench.speech.models.flow import Condition, FlowStep
from workbench.speech.models.hift import Vocoded
from workbench.speech.models.lm import LMStep
from workbench.speech.stages import NAMES
from workbench.trace.record import NOTHING, Recorder, Save, as_save
from workbench.trace.trace import Trace

if TYPE_CHECKING:
    from workbench.speech.pipeline import Pipeline

LM, FLOW, HIFT = range(len(NAMES))


def run(
    pipe: "Pipeline",
    utt: Utterance | None,
    options: Options,
    save: Save | str | Iterable[str] = NOTHING,
    start: str = "lm",
    stop_after: str = "hift",
    given: Trace | None = None,
) -> Trace:
    """Run what lies between two places; see `Pipeline.synthesise` and `Pipeline.replay`.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance or None
        None where the run begins at the vocoder.
    options : Options
    save : Save or globs
        What to keep beside what the stages hand to each other.
    start, stop_after : str
        "lm", "flow", "hift" or "flow/step/3".
    given : Trace, optional
        Holds what the first stage is given, unless that is the LM.
    """
    end = options.n_timesteps - 1
    first, last = place_of(start, 0, end), place_of(stop_after, end, end)
    if first > last:
        raise WorkbenchError(f"a run from {start} on cannot stop after {stop_after}, which comes before")
    record, clock = Recorder(as_save(save)), Clock(pipe.device)
    about = {} if utt is None else note_inputs(record, utt)
    if first.stage != HIFT and last.stage != LM:
        other = pipe.estimator(options)  # a file that cannot be opened costs no stage before it
        about["estimator"] = "torch" if other is None else other.about

    if first.stage == LM:
        token = clock("lm", lambda: pipe.speech_token(utt, options, record))
    elif first.stage == FLOW:
        token = _given(given, "lm/speech_token", start)
    if first.stage != HIFT:
        record.add("lm/speech_token", token)
    if first.stage != HIFT and last.stage != LM:
        x = _state(given, first.step, start) if first.step else None
        mel = clock("flow", lambda: _solve(pipe, utt, token, options, record, first.step, x, last))
    elif first.stage == HIFT:
        mel = _given(given, "flow/mel", start)[None]
    if last >= Place(FLOW, end):
        record.add("flow/mel", mel[0])
    if last.stage == HIFT:
        note_sound(record, clock("hift", lambda: pipe.vocode(mel, options)))

    about |= provenance(pipe, options, record.save)
    return Trace(record.finish(), about | {"first_step": first.step, "timings": clock.seconds})


class Place(NamedTuple):
    """Somewhere in a run: a stage, and a step of the flow's ODE."""

    stage: int
    step: int


def place_of(text: str, step: int, end: int) -> Place:
    """Read "lm", "flow", "hift" or "flow/step/3"; `step` is meant where the flow is named without one."""
    stage, slash, number = text.partition("/step/")
    if stage in NAMES and not slash:
        return Place(NAMES.index(stage), step if stage == "flow" else 0)
    if stage == "flow" and number.isdecimal() and int(number) <= end:
        return Place(FLOW, int(number))
    raise WorkbenchError(
        f"{text!r} is no place in this run; expected lm, flow, hift, or flow/step/0 to {end}"
    )


def recorded_inputs(utt: Utterance) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an utterance as fields and attributes of a trace; `utterance_of` reads them back."""
    data = {
        "in/text_token": utt.text_token,
        "in/prompt_text_token": utt.prompt_text_token,
        "in/lm_prompt_token": utt.lm_prompt_token,
        "in/flow_prompt_token": utt.flow_prompt_token,
        "in/prompt_mel": utt.prompt_mel[0],
        "in/spk_embedding": utt.spk_embedding,
    }
    if utt.source_token is not None:
        data["in/source_token"] = utt.source_token
    prompt = {"text": utt.prompt.text, "sha256": utt.prompt.sha256, "seconds": utt.prompt.seconds}
    return data, {"text": utt.text, "mode": utt.mode, "prompt": prompt}


def utterance_of(trace: Trace) -> Utterance:
    """Return the utterance that a recorded run was given.

    Raises
    ------
    WorkbenchError
        When the trace lacks part of it, as other people's traces may.
    """
    needed = [f"in/{name}" for name in ("text_token", "prompt_text_token", "lm_prompt_token")]
    needed += [f"in/{name}" for name in ("flow_prompt_token", "prompt_mel", "spk_embedding")]
    if missing := [name for name in needed if name not in trace]:
        raise WorkbenchError(f"the trace lacks {', '.join(missing)}, so the run cannot be made again from it")
    text, prompt_text, lm_prompt, flow_prompt, mel, embedding = (trace[name] for name in needed)
    about = {"text": "", "sha256": "", "seconds": 0.0} | trace.attrs.get("prompt", {})
    prompt = Prompt(flow_prompt, mel[None], embedding, **about)
    source = trace.get("in/source_token")
    said, mode = trace.attrs.get("text", ""), trace.attrs.get("mode", "zero-shot")
    return Utterance(
        said, text, prompt_text, lm_prompt, flow_prompt, mel[None], embedding, mode, prompt, source
    )


def note_inputs(record: Recorder, utt: Utterance) -> dict[str, Any]:
    """Note what a run is given; return what its trace says about it."""
    inputs, about = recorded_inputs(utt)
    for name, value in inputs.items():
        record.add(name, value)
    return about | {"prompt_frames": utt.prompt_mel.shape[-1]}


def _given(trace: Trace | None, name: str, start: str) -> Tensor:
    if trace is None or name not in trace:
        raise WorkbenchError(
            f"a run from {start} on is given {name}, which this trace does not hold; record it with "
            f"save={name!r}, or begin earlier"
        )
    return trace[name]


def _state(trace: Trace | None, step: int, start: str) -> Tensor:
    """The ODE's state before a step, of a run that may have been recorded from a later step on."""
    x = _given(trace, "flow/x", start)
    index = step - trace.attrs.get("first_step", 0)
    if not 0 <= index < len(x):
        begin = trace.attrs.get("first_step", 0)
        raise WorkbenchError(
            f"a run from {start} on is given flow/x; this one holds knots {begin} to {begin + len(x) - 1}"
        )
    return x[index]


def check_said(utt: Utterance, token: Tensor) -> None:
    """Raise a WorkbenchError where no speech token came out."""
    if not len(token):
        raise WorkbenchError(
            f"the LM ended {utt.text!r:.80} before the first token; "
            "try another seed, mask_stop_ids=True, or a text of the voice's language"
        )


def recorded_draws(steps: Iterator[LMStep], record: Recorder | None) -> Iterator[LMStep]:
    """Note the LM's steps while they pass."""
    for step in steps:
        if record is not None:
            record.add("lm/logp", step.logp)
            if record.wants("lm/drawn_token"):
                record.add("lm/drawn_token", torch.tensor(step.token))
            if record.wants("lm/entropy"):
                record.add("lm/entropy", -(step.logp.exp() * step.logp).sum())
        yield step


def _solve(
    pipe: "Pipeline",
    utt: Utterance,
    token: Tensor,
    options: Options,
    record: Recorder,
    start: int,
    x: Tensor | None,
    last: Place,
) -> Tensor:
    """Run the flow between two of its steps and return the target's mel, unfinished where it stops early."""
    c = pipe.condition(utt, token, options)
    note_condition(record, c, pipe, options)
    steps = pipe.flow_steps(c, options, start=start, x=None if x is None else x[None])
    for step in pipe.bar(steps, "flow", " step", options.n_timesteps):
        note_step(record, step, c.prompt_frames)
        if Place(FLOW, step.index) == last:
            break
    note_end(record, step, c.prompt_frames)
    return pipe.target(step.x_next, c.prompt_frames, options.speed)


def note_condition(record: Recorder, c: Condition, pipe: "Pipeline", options: Options) -> None:
    """Note what the ODE is given."""
    for name, value in (("flow/mu", c.mu), ("flow/cond", c.cond), ("flow/spks", c.spks)):
        record.add(name, value[0], c.prompt_frames)
    if record.wants("flow/noise"):
        record.add("flow/noise", pipe.noise(c.mu.shape[-1], options)[0], c.prompt_frames)


def note_step(record: Recorder, step: FlowStep, prompt_frames: int) -> None:
    """Note a step of the ODE: where it begins, and the velocity there."""
    record.add("flow/t", step.t)
    record.add("flow/x", step.x[0], prompt_frames)
    record.add("flow/velocity_cond", step.velocity.cond[0], prompt_frames)
    record.add("flow/velocity_uncond", step.velocity.uncond[0], prompt_frames)
    record.add("flow/velocity", step.velocity.guided[0], prompt_frames)


def note_end(record: Recorder, step: FlowStep, prompt_frames: int) -> None:
    """Note where the last step leads to."""
    record.add("flow/t", step.t_next)
    record.add("flow/x", step.x_next[0], prompt_frames)


def note_sound(record: Recorder, sound: Vocoded) -> None:
    """Note what the vocoder made."""
    record.add("hift/source", sound.source[0, 0])
    for name in ("f0", "magnitude", "phase", "wav"):
        record.add(f"hift/{name}", getattr(sound, name)[0])


class Clock:
    """Seconds of each stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start
        return result


def provenance(pipe: "Pipeline", options: Options, save: Save) -> dict[str, Any]:
    """What a trace says about where it comes from; the weights' hash only where more is kept."""
    checkpoint = {"name": pipe.checkpoint.name}
    if save != NOTHING:
        checkpoint["content_hash"] = pipe.checkpoint.content_hash
    return {
        "options": asdict(options),
        "sample_rate": pipe.config.mel.sample_rate,
        "silent_tokens": list(pipe.config.silent_tokens),
        "device": str(pipe.device),
        "checkpoint": checkpoint,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
