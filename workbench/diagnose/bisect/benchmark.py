"""Measure how often `bisect` names the right block and part of a fault inside the estimator.

Texts, prompts and seeds are used nowhere else, so that nothing was tuned on them.
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.bisect.bisect import bisect
from workbench.diagnose.bisect.bisection import Bisection
from workbench.diagnose.bisect.inside_faults import KINDS, Inside
from workbench.diagnose.bisect.model_run import exchanged
from workbench.diagnose.bisect.stages import SOURCE, StageTaps, stage_taps
from workbench.files import data_path
from workbench.speech.models.dit import DiT
from workbench.speech.models.flow import Condition
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import ODE_FIELDS, TOKEN_RATE
from workbench.trace.trace import Trace

# (text, prompt, seed of the sampler)
UTTERANCES = (
    ("A narrow bridge crossed the stream.", "nezumi_1.flac", 311),
    ("Why did the bells ring twice?", "tebukuro_0.flac", 312),
    ("Seven.", "alpha_0.flac", 313),
    ("The gardener counted forty red tulips before breakfast.", "kumo_alpha_1.flac", 314),
)
# How taps were stored, and which branches of the batch they hold.
VIEWS: Mapping[str, tuple[torch.dtype, slice]] = {
    "float32": (torch.float32, slice(None)),
    "float32, one branch": (torch.float32, slice(0, 1)),
    "float16": (torch.float16, slice(None)),
    "bfloat16": (torch.bfloat16, slice(None)),
}
COLUMNS = ("view", "kind", "fault", "outcome", "named_block", "named_part")
N_STEPS = 4  # of the ODE
WHOLE_BLOCK = ("block skipped", "blocks swapped", "block in half")  # no part is more wrong than another


class Row(NamedTuple):
    """The result for one run."""

    view: str
    kind: str  # of the fault; "right run" for none
    fault: str
    outcome: str  # "part", "block" (right block, wrong part), "wrong", "none", "hidden"; "right", "accused"
    named_block: str
    named_part: str


class OtherProgram:
    """A run of the flow by another program: our estimator with a fault inside.

    Parameters
    ----------
    pipe : Pipeline
    right : Trace
        A right run with everything recorded; the other program has its inputs.
    estimator : DiT
        Changed at will.
    fault : Inside
    """

    def __init__(self, pipe: Pipeline, right: Trace, estimator: DiT, fault: Inside) -> None:
        self.pipe, self.right, self.estimator, self.fault = pipe, right, estimator, fault
        self.known: dict[tuple[int, ...], Trace] = {}  # runs by the steps at which they recorded taps

    def recorded(self, names: Sequence[str], steps: Sequence[int], stage: StageTaps) -> Trace:
        """Return the run with some taps, and all inputs of the estimator, recorded at some steps."""
        key = tuple(steps)
        if key not in self.known:
            self.known[key] = self._run(key, stage)
        run = self.known[key]
        taps = {}
        for key, value in run.taps.items():
            name = key.split("/")[2]
            if name in names or name.startswith(SOURCE):
                taps[key] = value
        return Trace(run.data, run.attrs, taps)

    def _run(self, steps: Sequence[int], stage: StageTaps) -> Trace:
        """Solve the ODE, and record all taps at some steps."""
        right = self.right
        condition = Condition(
            right["flow/mu"][None], right["flow/spks"][None], right["flow/cond"][None], right.prompt_frames
        )
        options = self.pipe.checkpoint.options.but(**right.attrs["options"])
        flow = self.pipe.stage("flow", "float32")
        taps: dict[str, Tensor] = {}
        call = -1
        inputs = ("x", "mask", "mu", "t", "spks", "cond")

        def note(name: str, value: Tensor) -> Tensor:
            silent = self.fault.silent and f"{name}.".startswith(f"{self.fault.silent}.")
            if call in steps and not silent:
                taps[f"flow/{call}/{name}"] = self._cut(stage, name, value)
            return value

        def estimate(*args: Tensor) -> Tensor:
            nonlocal call
            call += 1
            for name, value in zip(inputs, args, strict=False):
                if value is not None:
                    note(SOURCE + name, value)
            return self.estimator(*args)

        states, times, velocities = [], [], []
        with torch.no_grad(), exchanged(self.estimator, [tap.name for tap in stage.taps], note):
            for step in flow.steps(condition, right["flow/noise"][None], options, estimator=estimate):
                states.append(step.x[0])
                times.append(step.t)
                velocities.append(step.velocity)
        states.append(step.x_next[0])
        times.append(step.t_next)
        fields = {
            "flow/t": torch.stack(times),
            "flow/x": torch.stack(states),
            "flow/velocity_cond": torch.stack([v.cond[0] for v in velocities]),
            "flow/velocity_uncond": torch.stack([v.uncond[0] for v in velocities]),
            "flow/velocity": torch.stack([v.guided[0] for v in velocities]),
        }
        kept = {name: right[name] for name in right if name not in ODE_FIELDS and name != "flow/mel"}
        return Trace(kept | fields, right.attrs, taps)

    def _cut(self, stage: StageTaps, name: str, value: Tensor) -> Tensor:
        """Cut a tap of a program that pads to the frames it was given."""
        if not self.fault.padded or name.startswith(SOURCE):
            return value
        axes = stage.tap(name).axes
        if "frame" not in axes:
            return value
        return value.narrow(axes.index("frame"), 0, self.right["flow/mu"].shape[-1])


def stored(trace: Trace, view: str) -> Trace:
    """Return a trace whose taps and float fields were stored in a view."""
    dtype, branches = VIEWS[view]
    taps = {}
    for name, value in trace.taps.items():
        value = value[branches] if value.ndim else value
        taps[name] = value.to(dtype).float() if value.is_floating_point() else value
    data = {
        name: value.to(dtype).float() if name.startswith("flow/") and value.is_floating_point() else value
        for name, value in trace.data.items()
    }
    return Trace(data, trace.attrs, taps)


def in_rounds(program: OtherProgram, pipe: Pipeline, view: str) -> tuple[Bisection, Bisection, Bisection]:
    """Follow `bisect` as its reader would: without taps, with those it asks for, and with the next ones."""
    stage = stage_taps(pipe, "flow")
    found = [bisect(program.right, stored(program.recorded((), (), stage), view), pipe)]
    steps = found[0].steps
    names: list[str] = []
    for _ in range(2):
        names = [*names, *found[-1].next_taps] or list(stage.blocks)
        theirs = stored(program.recorded(names, steps, stage), view)
        found.append(bisect(program.right, theirs, pipe))
    return found[0], found[1], found[2]


def measure(
    pipe: Pipeline,
    kinds: Sequence[str] = tuple(KINDS),
    views: Sequence[str] = tuple(VIEWS),
    each: int = 3,
    healthy: Sequence[int] = range(25),
    utterances: Sequence[tuple[str, str, int]] = UTTERANCES,
) -> Iterator[Row]:
    """Look for faults of every kind in every view, and for faults in right runs.

    Parameters
    ----------
    pipe : Pipeline
    kinds : sequence of str
        Of `KINDS`.
    views : sequence of str
        Of `VIEWS`. Every fault is looked for in the first, and in one of the others in turn.
    each : int
        Faults of each kind, with random blocks, parts and sizes.
    healthy : sequence of int
        Numbers of right runs, each in every view and with all taps. Seed, utterance and precision vary.
    utterances : sequence of (text, prompt, seed)
        Used in turn.
    """
    runs = [_short_run(pipe, *utterance) for utterance in utterances]
    for kind in kinds:
        for repeat in range(each):
            # The utterance and the second view follow from the fault, whatever other kinds are looked for.
            number = list(KINDS).index(kind) * each + repeat
            estimator = copy.deepcopy(pipe.stage("flow", "float32").decoder.estimator)
            fault = KINDS[kind](estimator, random.Random(f"{kind} {repeat}"))
            program = OtherProgram(pipe, runs[number % len(runs)], estimator, fault)
            # Every fault in the first view, and in turn in one of the others.
            others = views[1:]
            chosen = [views[0], *([others[number % len(others)]] if others else [])]
            for view in chosen:
                yield _row(program, pipe, view, kind)
    for number in healthy:
        text, prompt, seed = utterances[number % len(utterances)]
        right = _short_run(pipe, text, prompt, seed + 1 + number)
        dtype = ("float32", "float64")[number // len(utterances) % 2]
        estimator = InPrecision(copy.deepcopy(pipe.stage("flow", dtype).decoder.estimator))
        program = OtherProgram(pipe, right, estimator, Inside("", ""))
        for view in views:
            yield _right_row(program, pipe, dtype, view)


def _short_run(pipe: Pipeline, text: str, prompt: str, seed: int) -> Trace:
    """Return a right run that is quick: few steps, and only the first second of the prompt for the flow."""
    utt = pipe.prepare(text, data_path("prompts") / prompt)
    token = utt.flow_prompt_token[:TOKEN_RATE]
    mel = utt.prompt_mel[..., : 2 * len(token)]  # two frames a token
    utt = replace(utt, flow_prompt_token=token, prompt_mel=mel)
    options = pipe.checkpoint.options.but(n_timesteps=N_STEPS)
    return pipe.synthesise(utt, seed, save=EVERYTHING, options=options, stop_after="flow")


def _row(program: OtherProgram, pipe: Pipeline, view: str, kind: str) -> Row:
    fault = program.fault
    without, first, second = in_rounds(program, pipe, view)
    block = block_of(fault.tap)
    is_whole = kind in WHOLE_BLOCK
    if not without.next_taps:
        outcome = "hidden"
    elif not first.wrong:
        outcome = "none"
    elif first.block != block or second.block != block:
        outcome = "wrong"
    elif is_whole or second.first == fault.tap:
        outcome = "part"
    else:
        outcome = "block"
    return Row(view, kind, fault.about, outcome, second.block or first.block, second.first)


def _right_row(program: OtherProgram, pipe: Pipeline, dtype: str, view: str) -> Row:
    """Look for a fault in a right run with every tap, computed by our model in some precision."""
    stage = stage_taps(pipe, "flow")
    names = [tap.name for tap in stage.taps]
    found = bisect(program.right, stored(program.recorded(names, (0, N_STEPS - 1), stage), view), pipe)
    outcome = "accused" if found.first else "right"
    return Row(view, "right run", dtype, outcome, found.block, found.first)


class InPrecision(torch.nn.Module):
    """An estimator that computes in its own precision and takes and returns float32."""

    def __init__(self, estimator: DiT) -> None:
        super().__init__()
        self.estimator = estimator

    def named_modules(self, *args, **kwargs):  # the names of the estimator's own submodules
        return self.estimator.named_modules(*args, **kwargs)

    def forward(self, *args: Tensor) -> Tensor:
        dtype = self.estimator.proj_out.weight.dtype
        wide = [x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
        return self.estimator(*wide).float()


def block_of(tap: str) -> str:
    """Return the block of a tap of the estimator, such as "transformer_blocks.3"."""
    parts = tap.split(".")
    if parts[0] == "transformer_blocks":
        return ".".join(parts[:2])
    return "proj_out" if parts[0] == "norm_out" else parts[0]


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the percentage of first blocks and parts that were named, by view; right runs that were accused.

    Faults that change no velocity by more than rounding and storage explain are counted as hidden.
    """
    frame = pd.DataFrame(rows, columns=COLUMNS)
    result = []
    for view, part in frame.groupby("view", sort=False):
        right, faults = part[part["kind"] == "right run"], part[part["kind"] != "right run"]
        counted = faults[faults["outcome"] != "hidden"]
        count = counted["outcome"].value_counts()
        n = max(len(counted), 1)
        result.append(
            {
                "view": view,
                "faults": len(counted),
                "first block %": 100 * (count.get("part", 0) + count.get("block", 0)) / n,
                "first part %": 100 * count.get("part", 0) / n,
                "wrong block": count.get("wrong", 0),
                "nothing named": count.get("none", 0),
                "hidden": len(faults) - len(counted),
                "right runs": len(right),
                "accused": int((right["outcome"] == "accused").sum()),
            }
        )
    return pd.DataFrame(result)
