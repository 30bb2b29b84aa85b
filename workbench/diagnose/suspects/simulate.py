"""Whole runs with mistakes made on purpose, and what the fields of another run should be then."""

import functools

import torch
from torch import Tensor

from workbench.diagnose.suspects.faults import Fault, Faults, applied, options_of, spoiled
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.frontend.audio import log_mel
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import utterance_of
from workbench.speech.run import run_part
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import FIELDS, LM_INPUTS, SUFFIX
from workbench.trace.trace import Trace

RANK = {name: place for place, name in enumerate(FIELDS)}
SOUND = ("hift/source", "hift/wav")  # compared as log-mels: their phase follows every f0 before it
STAGES = ("in", "lm", "flow", "hift")


class Rehearsals:
    """Runs of what one reference was given, right and with mistakes; each is made once and kept.

    Parameters
    ----------
    reference : Trace
        A right run with its `in/*` fields.
    pipe : Pipeline
        Of the reference's checkpoint.
    """

    def __init__(self, reference: Trace, pipe: Pipeline) -> None:
        self.reference, self.pipe = reference, pipe
        self.options = pipe.checkpoint.options.but(**reference.attrs.get("options", {}))
        self.draw, self.solve, self.sound = (
            functools.cache(made) for made in (self._draw, self._solve, self._sound)
        )

    def leg(self, stage: str, faults: Faults, options: Options) -> Trace:
        """The run up to the end of a stage; speech tokens are the reference's own unless the LM is faulty."""
        make = {"lm": self.draw, "flow": self.solve, "hift": self.sound}[stage]
        last = tuple(STAGES[: STAGES.index(stage) + 1])
        return make(tuple(fault for fault in faults if fault.stage in last), options)

    def _draw(self, faults: Faults, options: Options) -> Trace:
        with applied(faults):
            utt = spoiled(faults, utterance_of(self.reference))
            return run_part(self.pipe, utt, options_of(faults, options), EVERYTHING, "lm", "lm")

    def _solve(self, faults: Faults, options: Options) -> Trace:
        drawn = any(fault.stage == "lm" for fault in faults)
        given = self.leg("lm", faults, options) if drawn else self.reference
        return solved(self.pipe, utterance_of(self.reference), given, faults, options)

    def _sound(self, faults: Faults, options: Options) -> Trace:
        return sounded(self.pipe, self.leg("flow", faults, options), faults, options)


def solved(pipe: Pipeline, utt: Utterance, given: Trace, faults: Faults, options: Options) -> Trace:
    """Run the flow on given speech tokens, with mistakes."""
    with applied(faults):
        return run_part(
            pipe, spoiled(faults, utt), options_of(faults, options), EVERYTHING, "flow", "flow", given
        )


def sounded(pipe: Pipeline, given: Trace, faults: Faults, options: Options) -> Trace:
    """Run the vocoder on a given mel, with mistakes."""
    with applied(faults):
        return run_part(pipe, None, options_of(faults, options), EVERYTHING, "hift", given=given)


class Runs:
    """What fields of a candidate should be, by whole runs that begin as late as it allows."""

    def __init__(self, candidate: Trace, rehearsals: Rehearsals) -> None:
        reference, self.candidate, self.rehearsals = rehearsals.reference, candidate, rehearsals
        self.pipe, self.others = rehearsals.pipe, candidate is not reference
        seeds = [trace.attrs.get("options", {}).get("seed") for trace in (reference, candidate)]
        self.drawn_alike = self.others and None not in seeds and seeds[0] == seeds[1]
        self.has_inputs = all(name in reference for name in (*LM_INPUTS, "in/prompt_mel", "in/spk_embedding"))
        self.tokens = candidate.get("lm/speech_token")
        self.own_mel = "flow/mel" in candidate
        self.leg = functools.cache(self._leg)

    def reaches(self, field: str) -> bool:
        """Whether runs can tell what a field should be."""
        stage = field.partition("/")[0]
        reference = self.rehearsals.reference
        if field in ("hift/phase", "hift/source", "hift/magnitude") and "hift/wav" in self.candidate:
            return False  # the waveform says it, without the phase
        if stage == "in":
            both = field in self.candidate and field in reference
            return field == "in/prompt_mel" and self.others and both
        if stage == "lm":
            return self.has_inputs and self.drawn_alike
        if stage == "hift" and self.own_mel:
            return True
        return self.has_inputs and (self.tokens is not None or "lm/speech_token" in reference)

    def concerned(self, fault: Fault, field: str, index: int | None) -> bool:
        """Whether a mistake can change a field, or one entry of it, in the runs that lead to it."""
        stage = field.partition("/")[0]
        first = STAGES.index("lm") if self.tokens is None and self.drawn_alike else STAGES.index("flow")
        if stage in ("in", "lm"):
            leads = (stage,)
        elif stage == "hift" and self.own_mel:
            leads = ("hift",)
        else:
            leads = ("in", *STAGES[first : STAGES.index(stage) + 1])
        # After its first knot the state follows the velocities, and after the first draw so do all draws.
        if field == "flow/x" and index != 0:
            field = "flow/velocity"
        elif stage == "lm" and field != "lm/speech_token":
            field = "lm/drawn_token"
        return fault.stage in leads and RANK[fault.fields[0]] <= RANK[field]

    def result(self, name: str, faults: Faults, options: Options) -> Tensor | None:
        """A field, or statistics of one, of a run with mistakes."""
        field = name.removesuffix(SUFFIX)
        if field == "in/prompt_mel":
            return spoiled(faults, utterance_of(self.rehearsals.reference)).prompt_mel[0]
        try:
            trace = self.leg(field.partition("/")[0], faults, options)
        except (WorkbenchError, RuntimeError):  # such as a mel of NaN: no sound can follow
            return None
        return self.heard(name, trace) if field in trace else None

    def heard(self, name: str, trace: Trace) -> Tensor:
        """A field as it is compared: itself, its statistics, or sound as log-mel."""
        field = name.removesuffix(SUFFIX)
        if name != field:
            return trace.statistics(field)
        if field in SOUND:
            return log_mel(trace[field].float(), self.pipe.config.mel)[0]
        return trace[field]

    def _leg(self, stage: str, faults: Faults, options: Options) -> Trace:
        reference = self.rehearsals.reference
        if stage == "hift" and self.own_mel:
            return sounded(self.pipe, self.candidate, faults, options)
        alike = self.tokens is None or torch.equal(
            self.tokens, reference.get("lm/speech_token", self.tokens[:0])
        )
        if stage == "lm" or alike:
            return self.rehearsals.leg(stage, faults, options)
        if stage == "flow":
            return solved(self.pipe, utterance_of(reference), self.candidate, faults, options)
        return sounded(self.pipe, self.leg("flow", faults, options), faults, options)
