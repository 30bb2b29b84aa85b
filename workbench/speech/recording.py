"""Stages that record what they do: each runs the rows of one batch and notes it in the rows' traces.

A single run is a batch of one row. Below the stages stands what else a trace says of a run: its inputs, its
seconds and its origin.
"""

import platform
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.quantised.layers import check_weights, quantised
from workbench.speech.config import FLOW, HIFT, Config, Options
from workbench.speech.fast.capability import way_taken
from workbench.speech.frontend.frontend import Prompt, Utterance
from workbench.speech.frontend.text import TextStream
from workbench.speech.models.flow import Condition, FlowStep
from workbench.speech.models.hift import Vocoded
from workbench.speech.models.lm import LMStep
from workbench.speech.models.sampling import shorten_silences
from workbench.speech.stage_runner import StageRunner, check_spoken
from workbench.trace.record import NOTHING, Recorder, Save
from workbench.trace.schema import FLOW_INPUTS, LM_INPUTS, dims_of
from workbench.trace.trace import Trace


@dataclass(eq=False)
class Row:
    """One row of a batch: an utterance with its options, and what the stages made of it so far."""

    utt: Utterance | None  # None where only the vocoder runs
    options: Options
    record: Recorder
    token: Tensor | None = None  # (L,) speech tokens
    x: Tensor | None = None  # (1, M, T) state of the ODE, where the flow begins at a later step
    mel: Tensor | None = None  # (1, M, T) of the target


def make_tokens(runner: StageRunner, rows: Sequence[Row]) -> None:
    """Find each row's speech tokens: the LM draws them, or a voice conversion has its recording's own."""
    speaking = [row for row in rows if row.utt.source_token is None]
    drawn: list[list[int]] = [[] for _ in speaking]
    if speaking:
        draws = runner.lm_batch([row.utt for row in speaking], [row.options for row in speaking])
        for index, step in runner.bar(draws, "LM", " token"):
            note_draw(speaking[index].record, step)
            drawn[index].append(step.token)

    for row, tokens in zip(speaking, drawn, strict=True):
        kept = shorten_silences(tokens, runner.config.silent_tokens, row.options.max_silent_run)
        row.token = torch.tensor(list(kept), dtype=torch.long)
    for row in rows:
        if row.utt.source_token is not None:
            row.token = row.utt.source_token.long()
        check_spoken(row.utt, row.token)
        row.record.add("lm/speech_token", row.token)


def make_mels(runner: StageRunner, rows: Sequence[Row], start: int = 0, end: int | None = None) -> None:
    """Solve each row's ODE from step `start` to step `end`; the mel of an ODE stopped early is unfinished."""
    options = [row.options for row in rows]
    conditions = _conditions(runner, rows)
    for row, c in zip(rows, conditions, strict=True):
        if row.x is not None and row.x.shape != c.mu.shape:
            raise WorkbenchError(
                f"the ODE's state is {tuple(row.x.shape)}, and the speech tokens make {tuple(c.mu.shape)}"
                "; are they of one run?"
            )
        note_condition(row.record, c)
        if row.record.wants("flow/noise"):
            noise = runner.noise(c.mu.shape[-1], row.options)
            row.record.add("flow/noise", noise[0], c.prompt_frames)

    end = options[0].n_timesteps - 1 if end is None else end
    count = end - start + 1
    states = [row.x for row in rows] if start else None
    solution = islice(runner.flow_batch(conditions, options, start=start, states=states), count)
    for steps in runner.bar(solution, "flow", " step", count):
        for row, c, step in zip(rows, conditions, steps, strict=True):
            note_step(row.record, step, c.prompt_frames)

    for row, c, step in zip(rows, conditions, steps, strict=True):
        note_end(row.record, step, c.prompt_frames)
        row.mel = runner.target(step.x_next, c.prompt_frames, row.options.speed)
        if end == row.options.n_timesteps - 1:
            row.record.add("flow/mel", row.mel[0])


def make_sounds(runner: StageRunner, rows: Sequence[Row]) -> None:
    """Turn each row's mel into sound."""
    sounds = runner.vocode_batch([row.mel for row in rows], rows[0].options)
    for row, sound in zip(rows, sounds, strict=True):
        note_sound(row.record, sound)


def program_names(runner: StageRunner, options: Options, *stages: str) -> dict[str, str]:
    """Return what computes velocity and spectrum; ONNX files are opened here, before any stage runs.

    So are the globs of `weights` checked here.
    """
    check_weights(runner.checkpoint, options.weights)
    names = {}
    if FLOW in stages:
        estimator = runner.estimator(options)
        names["estimator"] = "torch" if estimator is None else estimator.about
    if HIFT in stages:
        vocoder = runner.models.vocoder(options)
        names["vocoder"] = "torch" if vocoder is None else vocoder.about
    return names


def _conditions(runner: StageRunner, rows: Sequence[Row]) -> list[Condition]:
    """Compute the estimator's inputs once for all rows with the same utterance and tokens."""
    known: dict[Hashable, Condition] = {}
    found = []
    for row in rows:
        key = (id(row.utt), tuple(row.token.tolist()))
        if key not in known:
            known[key] = runner.condition(row.utt, row.token, row.options)
        found.append(known[key])
    return found


def recorded_inputs(utt: Utterance) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an utterance as fields and attributes of a trace; `utterance_of` reads them back.

    Of a text that arrives as a stream, they hold what has been read so far.
    """
    text_token = utt.text_token if utt.text_stream is None else torch.tensor(utt.text_stream.ids)
    data = {
        "in/text_token": text_token.long(),
        "in/prompt_text_token": utt.prompt_text_token,
        "in/lm_prompt_token": utt.lm_prompt_token,
        "in/flow_prompt_token": utt.flow_prompt_token,
        "in/prompt_mel": utt.prompt_mel[0],
        "in/spk_embedding": utt.spk_embedding,
    }
    if utt.source_token is not None:
        data["in/source_token"] = utt.source_token
    prompt = {"text": utt.prompt.text, "sha256": utt.prompt.sha256, "seconds": utt.prompt.seconds}
    about = {"text": utt.normalised, "mode": utt.mode, "prompt": prompt, "frontend": utt.frontend}
    about |= {"typed": utt.typed, "warnings": list(utt.warnings)}
    return data, about | ({} if utt.text_stream is None else {"text_stream": True})


def check_sizes(trace: Trace, config: Config) -> None:
    """Raise a WorkbenchError for fields whose sizes are not those of a checkpoint, or of one ODE."""
    sizes = {"mel": config.mel.n_mels, "embedding": config.flow.spk_embed_dim}
    frames = {name: value.shape[-1] for name, value in trace.items() if dims_of(name)[-1] == "frame"}
    for name, value in trace.items():
        for dim, length in zip(dims_of(name), value.shape, strict=True):
            if length != sizes.get(dim, length):
                raise WorkbenchError(
                    f"{name} has {length} along {dim}, and this checkpoint {sizes[dim]}; is it the trace of "
                    "another model?"
                )
    if len(set(frames.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in frames.items())
        raise WorkbenchError(f"fields of one ODE differ in their frames: {listed}; are they of one run?")


def utterance_of(trace: Trace) -> Utterance:
    """Return the utterance of a recorded run.

    Raises
    ------
    WorkbenchError
        When the trace lacks part of it, as other people's traces may.
    """
    needed = (*LM_INPUTS, *FLOW_INPUTS)
    if missing := [name for name in needed if name not in trace]:
        raise WorkbenchError(f"the trace lacks {', '.join(missing)}, so the run cannot be made again from it")
    text, prompt_text, lm_prompt, flow_prompt, mel, embedding = (trace[name] for name in needed)
    given = trace.attrs.get("prompt", {})
    about = {name: given.get(name, empty) for name, empty in (("text", ""), ("sha256", ""), ("seconds", 0.0))}
    prompt = Prompt(flow_prompt, mel[None], embedding, **about)
    source = trace.get("in/source_token")
    attrs = trace.attrs
    said, mode = attrs.get("text", ""), attrs.get("mode", "zero-shot")
    utt = Utterance(
        said,
        text,
        prompt_text,
        lm_prompt,
        flow_prompt,
        mel[None],
        embedding,
        mode,
        prompt,
        source,
        typed=attrs.get("typed", ""),
        frontend=attrs.get("frontend", "workbench"),
        warnings=tuple(attrs.get("warnings", ())),
    )
    if attrs.get("text_stream"):
        return replace(utt, text="", text_token=text[:0], text_stream=TextStream.read(said, text.tolist()))
    return utt


def flow_utterance(trace: Trace) -> Utterance:
    """Return the utterance of a run for the flow; what only the LM is given may be missing in the trace."""
    nothing = torch.empty(0, dtype=torch.long)
    lm_inputs = {name: trace.get(name, nothing) for name in LM_INPUTS}
    return utterance_of(Trace(dict(trace.data) | lm_inputs, trace.attrs))


def note_inputs(record: Recorder, utt: Utterance) -> dict[str, Any]:
    """Note the inputs of a run; return the attributes that describe them."""
    inputs, about = recorded_inputs(utt)
    for name, value in inputs.items():
        record.add(name, value)
    return about | {"prompt_frames": utt.prompt_mel.shape[-1]}


def note_draw(record: Recorder, step: LMStep) -> None:
    """Note one draw of the LM."""
    record.add("lm/logp", step.logp)
    if record.wants("lm/drawn_token"):
        record.add("lm/drawn_token", torch.tensor(step.token))
    if record.wants("lm/entropy"):
        record.add("lm/entropy", -(step.logp.exp() * step.logp).sum())


def note_condition(record: Recorder, c: Condition) -> None:
    """Note the inputs of the flow's estimator."""
    for name, value in (("flow/mu", c.mu), ("flow/cond", c.cond), ("flow/spks", c.spks)):
        record.add(name, value[0], c.prompt_frames)


def note_step(record: Recorder, step: FlowStep, prompt_frames: int) -> None:
    """Note the state at which a step of the ODE begins, and the velocity there."""
    record.add("flow/t", step.t)
    record.add("flow/x", step.x[0], prompt_frames)
    record.add("flow/velocity_cond", step.velocity.cond[0], prompt_frames)
    record.add("flow/velocity_uncond", step.velocity.uncond[0], prompt_frames)
    record.add("flow/velocity", step.velocity.guided[0], prompt_frames)


def note_end(record: Recorder, step: FlowStep, prompt_frames: int) -> None:
    """Note the state at which the last step ends."""
    record.add("flow/t", step.t_next)
    record.add("flow/x", step.x_next[0], prompt_frames)


def note_sound(record: Recorder, sound: Vocoded) -> None:
    """Note what the vocoder computed."""
    record.add("hift/source", sound.source[0, 0])
    for name in ("f0", "magnitude", "phase", "wav"):
        record.add(f"hift/{name}", getattr(sound, name)[0])


class Clock:
    """Measures the seconds of each stage, to the end of its work on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the block that follows."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start


def stated_options(runner: StageRunner, options: Options) -> dict[str, Any]:
    """Return what a trace says of the options, of quantised weights, and of a GPU that lacks something."""
    said = quantised(runner.checkpoint, options.weights)
    way = way_taken(runner.device, options.compute)
    return (
        {"options": asdict(options)} | ({"quantised": said} if said else {}) | ({"way": way} if way else {})
    )


def provenance(runner: StageRunner, options: Options, save: Save) -> dict[str, Any]:
    """Return what a trace says about its origin; the weights' hash only where more than NOTHING is kept."""
    checkpoint = {"name": runner.checkpoint.name}
    if save != NOTHING:
        checkpoint["content_hash"] = runner.checkpoint.content_hash
    if runner.checkpoint.notes:
        checkpoint["notes"] = list(runner.checkpoint.notes)
    return stated_options(runner, options) | {
        "sample_rate": runner.config.mel.sample_rate,
        "silent_tokens": list(runner.config.silent_tokens),
        "device": str(runner.device),
        "checkpoint": checkpoint,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
