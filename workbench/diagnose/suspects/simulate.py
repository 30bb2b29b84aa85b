"""Simulate faults end to end, and predict the fields of another run from these simulations.

`FaultSimulator` runs the utterance of one reference trace with any set of faults. `Predictor` predicts what
the fields of another run, the candidate, would be if it had these faults. It simulates as little of the run
as possible: if the candidate recorded its mel, only the vocoder runs, on that mel. So errors that the
candidate made before do not count again.
"""

import functools
from dataclasses import asdict

import torch
from torch import Tensor

from workbench.diagnose.compare.rounding import PERTURBED_TRACES, StoredRun, checkpoint_objection
from workbench.diagnose.compare.transitions import (
    FLOAT64_PRECISION,
    UPSTREAM_PRECISION,
    target_fields,
    transitions,
)
from workbench.diagnose.layerwise import layerwise
from workbench.diagnose.suspects.catalogue.faults import (
    HEALTHY,
    Fault,
    Faults,
    applied,
    faulty_options,
    faulty_utterance,
)
from workbench.errors import WorkbenchError
from workbench.speech.config import FLOW, HIFT, LM, NAMES, Options
from workbench.speech.frontend.audio import log_mel
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import flow_utterance, utterance_of
from workbench.speech.run import run_part
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import FIELDS, FLOW_INPUTS, LM_INPUTS, ODE_FIELDS, SUFFIX
from workbench.trace.storage import perturbed_trace, storage_of
from workbench.trace.trace import Trace

RANK = {name: place for place, name in enumerate(FIELDS)}  # place of a field in causal order
PREFIXES = ("in", *NAMES)  # first part of field names, in causal order: in, lm, flow, hift
# Compared as log-mels: their phase depends on every earlier f0, so that samples of equal sounds may differ.
AUDIO_FIELDS = ("hift/source", "hift/wav")
# Results of the front end that have known faults; the others are taken as given.
COMPARED_INPUTS = ("in/flow_prompt_token", "in/prompt_mel")
FLOOR_SPACINGS = 4.0  # level of the floor, in spacings of the stored samples: well above what rounding leaves


class FaultSimulator:
    """Runs of one utterance, healthy and with faults. Each run is computed once and kept.

    Parameters
    ----------
    reference : Trace
        A right run with its `in/*` fields.
    pipe : Pipeline
        Of the reference's checkpoint.

    Examples
    --------
    >>> simulator = wb.FaultSimulator(trace, pipe)
    >>> run = simulator.stage_trace("flow", (wb.faults.named("cfg-off"),), simulator.options)
    >>> bool((run["flow/velocity"] == run["flow/velocity_cond"]).all())
    True
    """

    def __init__(self, reference: Trace, pipe: Pipeline) -> None:
        self.reference = reference
        self.pipe = layerwise(pipe)
        self.options = pipe.checkpoint.options.but(**reference.attrs.get("options", {}))
        self.stored_reference = StoredRun(reference)
        # One cache per simulator and stage: (faults, options) -> trace.
        self._stage_runs = {
            LM: functools.cache(self._run_lm),
            FLOW: functools.cache(self._run_flow),
            HIFT: functools.cache(self._run_hift),
        }

    @functools.cached_property
    def objection(self) -> str:
        """Why the reference is no run of this checkpoint; empty where it may be one."""
        return checkpoint_objection(self.stored_reference, self.pipe, self.options)

    def stage_trace(self, stage: str, faults: Faults, options: Options) -> Trace:
        """Return the fields of one stage of a run with faults.

        Stages before it have the faults too. The speech tokens are the reference's own unless the LM has a
        fault.

        Parameters
        ----------
        stage : {"lm", "flow", "hift"}
        faults : tuple of Fault
            Empty for a healthy run. Faults of later stages change nothing here and are ignored.
        options : Options
            Of the run; options that a fault sets are added.
        """
        # Drop them before the cache is used, so that sets of faults share the runs of earlier stages.
        prefixes = PREFIXES[: PREFIXES.index(stage) + 1]
        effective = tuple(fault for fault in faults if fault.stage in prefixes)
        return self._stage_runs[stage](effective, options)

    def _run_lm(self, faults: Faults, options: Options) -> Trace:
        if faults == HEALTHY and options == self.options.but(**FLOAT64_PRECISION):
            drawn = self.stage_trace(LM, HEALTHY, self.options.but(**UPSTREAM_PRECISION))
            if (repeated := lm_in_float64(drawn, self.pipe, options)) is not None:
                return repeated
        with applied(faults):
            utt = faulty_utterance(faults, utterance_of(self.reference))
            return run_part(self.pipe, utt, faulty_options(faults, options), EVERYTHING, "lm", "lm")

    def _run_flow(self, faults: Faults, options: Options) -> Trace:
        given = self.reference
        if any(fault.stage == "lm" for fault in faults):
            given = self.stage_trace("lm", faults, options)
        return run_flow(self.pipe, flow_utterance(self.reference), given, faults, options)

    def _run_hift(self, faults: Faults, options: Options) -> Trace:
        return run_hift(self.pipe, self.stage_trace("flow", faults, options), faults, options)


def lm_in_float64(drawn: Trace, pipe: Pipeline, options: Options) -> Trace | None:
    """Return the run of the LM in float64 that draws the same tokens as one in float32.

    One pass over all tokens gives its log-probabilities. Drawing token by token instead, each token would
    take as long as this pass, where weights are widened layer by layer.

    Returns
    -------
    Trace or None
        None where float64 may draw other tokens.
    """
    run = drawn
    for step in transitions(drawn):
        if step.outputs not in (("lm/logp",), ("lm/entropy",), ("lm/drawn_token",)):
            continue
        if not step.can_recompute(run):
            return None
        [value] = step.recompute(pipe, run, options)
        run = Trace({**run.data, step.outputs[0]: value.cpu()}, run.attrs)
    if not torch.equal(run["lm/drawn_token"], drawn["lm/drawn_token"]):
        return None
    return Trace(run.data, run.attrs | {"options": asdict(options)})


def run_flow(pipe: Pipeline, utt: Utterance, given: Trace, faults: Faults, options: Options) -> Trace:
    """Run the flow with faults on the speech tokens of `given`."""
    with applied(faults):
        faulty = faulty_utterance(faults, utt)
        return run_part(pipe, faulty, faulty_options(faults, options), EVERYTHING, "flow", "flow", given)


def run_hift(pipe: Pipeline, given: Trace, faults: Faults, options: Options) -> Trace:
    """Run the vocoder with faults on the mel of `given`."""
    with applied(faults):
        return run_part(pipe, None, faulty_options(faults, options), EVERYTHING, "hift", given=given)


class Predictor:
    """Predict what a candidate's fields would be if the candidate had given faults.

    Parameters
    ----------
    candidate : Trace
    simulator : FaultSimulator
        Of a right run of the same utterance. Where there is none, its reference is the candidate itself,
        and only the candidate's inputs are used.
    """

    def __init__(self, candidate: Trace, simulator: FaultSimulator) -> None:
        reference = simulator.reference
        self.candidate = candidate
        self.simulator = simulator
        self.pipe = simulator.pipe
        self.has_reference = candidate is not reference
        # Tokens that the LM draws can only be predicted for the seed that the candidate used.
        seed = reference.attrs.get("options", {}).get("seed")
        candidate_seed = candidate.attrs.get("options", {}).get("seed")
        self.same_seed = self.has_reference and seed is not None and seed == candidate_seed
        self.lm_inputs_known = all(name in reference for name in LM_INPUTS)
        self.flow_inputs_known = all(name in reference for name in FLOW_INPUTS)
        # The latest points from which a run of the candidate can be continued.
        self.candidate_tokens = candidate.get("lm/speech_token")  # (token,) or None
        self.candidate_has_mel = "flow/mel" in candidate
        self.stage_trace = functools.cache(self._stage_trace)
        # Fields of which the candidate has the target's frames alone.
        self.target_only = target_fields(reference, candidate)
        self._floors: dict[str, Tensor | float] = {}  # audio field -> see `_storage_floor`

    # ---- what can be predicted

    def can_predict(self, field: str) -> bool:
        """Whether simulated runs can tell what a field of the candidate should be."""
        reference = self.simulator.reference
        prefix = field.partition("/")[0]
        if field in ("hift/source", "hift/magnitude", "hift/phase") and "hift/wav" in self.candidate:
            # They depend on the phase of the excitation, which small errors of f0 change. The waveform, which
            # is compared as a log-mel, tells the same without it.
            return False
        if prefix == "in":
            on_both_sides = field in self.candidate and field in reference
            return field in COMPARED_INPUTS and self.has_reference and on_both_sides
        if prefix == "lm":
            return self.lm_inputs_known and self.flow_inputs_known and self.same_seed
        if prefix == "hift" and self.candidate_has_mel:
            return True  # the vocoder needs nothing else
        tokens_known = self.candidate_tokens is not None or "lm/speech_token" in reference
        return self.flow_inputs_known and tokens_known

    def affects(self, fault: Fault, field: str, index: int | None) -> bool:
        """Whether a fault can change a field, or one entry of it, in the run that predicts this field."""
        # The fault must belong to a stage that this run goes through ...
        prefix = field.partition("/")[0]
        if fault.stage not in self.simulated_stages(field):
            return False
        # ... and show no later than the field. In a loop the order of the schema does not tell that: after
        # the first entry, states depend on velocities, and everything in the LM on the tokens drawn before.
        depends_on = field
        if field in ODE_FIELDS and index != 0:
            depends_on = ODE_FIELDS[-1]
        elif prefix == "lm" and field != "lm/speech_token":
            depends_on = "lm/drawn_token"
        first_wrong_field = fault.fields[0]
        return RANK[first_wrong_field] <= RANK[depends_on]

    def simulated_stages(self, field: str) -> tuple[str, ...]:
        """Return the prefixes of the fields that the run recomputes in order to predict a field."""
        prefix = field.partition("/")[0]
        if prefix in ("in", "lm"):
            return (prefix,)
        if prefix == "hift" and self.candidate_has_mel:
            return ("hift",)
        # The LM is simulated too where the candidate's tokens are unknown but can be drawn again.
        draws_tokens = self.candidate_tokens is None and self.same_seed
        first = PREFIXES.index("lm" if draws_tokens else "flow")
        return ("in", *PREFIXES[first : PREFIXES.index(prefix) + 1])

    # ---- predictions

    def predict(self, name: str, faults: Faults, options: Options) -> Tensor | None:
        """Return a field of a run with faults as `comparable` does; None where these faults leave no result.

        Parameters
        ----------
        name : str
            A field, or the statistics of one ("flow/x.stats").
        faults : tuple of Fault
            Empty for a healthy run.
        options : Options
        """
        field = name.removesuffix(SUFFIX)
        if field in COMPARED_INPUTS:  # no model computes them: faults change them directly
            utt = faulty_utterance(faults, flow_utterance(self.simulator.reference))
            return utt.prompt_mel[0] if field == "in/prompt_mel" else utt.flow_prompt_token
        try:
            trace = self.stage_trace(field.partition("/")[0], faults, options)
        except (WorkbenchError, RuntimeError):  # the run failed: a mel of NaN, or lengths that do not fit
            return None
        return self.comparable(name, trace) if field in trace else None

    def equally_stored(self, name: str, candidate: StoredRun, options: Options) -> list[Tensor]:
        """Predict a field by healthy runs from inputs that would have been stored the same.

        Empty where the inputs of the simulation were stored in full float32.
        """
        stage = name.partition("/")[0]
        made = []
        if stage == "hift" and self.candidate_has_mel:
            if "flow/mel" in candidate.coarse:
                made = [run_hift(self.pipe, trace, HEALTHY, options) for trace in candidate.perturbed]
        elif stage in ("flow", "hift"):
            source = self.simulator.stored_reference if self.has_reference else candidate
            given = self.simulator.reference if self.candidate_tokens is None else self.candidate
            if not source.coarse.keys().isdisjoint(FLOW_INPUTS):
                for trace in source.perturbed:
                    flow = run_flow(self.pipe, flow_utterance(trace), given, HEALTHY, options)
                    made.append(flow if stage == "flow" else run_hift(self.pipe, flow, HEALTHY, options))
        return [self.comparable(name, trace) for trace in made]

    def stored_audio(self, name: str, candidate: StoredRun, options: Options) -> list[Tensor]:
        """Predict audio by a healthy run, and store it like the candidate's with other lost digits."""
        field = name.removesuffix(SUFFIX)
        storage = candidate.coarse.get(field)
        trace = self.stage_trace(field.partition("/")[0], HEALTHY, options)
        if storage is None or field not in trace:
            return []
        stored = [perturbed_trace(trace, {field: storage}, seed) for seed in range(PERTURBED_TRACES)]
        return [self.comparable(name, one) for one in stored]

    def comparable(self, name: str, trace: Trace) -> Tensor:
        """Return a field in the form in which it is compared: values, statistics, or audio as a log-mel."""
        field = name.removesuffix(SUFFIX)
        if name != field:
            return trace.statistics(field)
        if field in AUDIO_FIELDS:
            mel = log_mel(trace[field].float(), self.pipe.config.mel)[0]  # (mel, frame)
            return (mel.exp() + self._storage_floor(field)).log()
        if field in self.target_only and trace is not self.candidate:
            return trace[field][..., trace.prompt_frames :]
        return trace[field]

    def _storage_floor(self, field: str) -> Tensor | float:
        """Return the mel (mel, 1) of the noise that the storage of the candidate's audio leaves; often 0.

        Below it the samples hold nothing but the noise of storing them.
        """
        if field not in self._floors:
            found = self.candidate.get(field)
            storage = None if found is None else storage_of(found)
            floor: Tensor | float = 0.0
            if storage is not None:
                spacing = float(storage.spacing_at(found).square().mean().sqrt())
                generator = torch.Generator().manual_seed(0)
                noise = torch.randn(self.pipe.config.mel.sample_rate, generator=generator)  # one second
                mel = log_mel(FLOOR_SPACINGS * spacing * noise, self.pipe.config.mel)[0].exp()
                floor = mel.mean(-1, keepdim=True)
            self._floors[field] = floor
        return self._floors[field]

    def _stage_trace(self, stage: str, faults: Faults, options: Options) -> Trace:
        """Return the fields of one stage, simulated from the latest point that the candidate recorded."""
        reference = self.simulator.reference
        # 1. The vocoder alone, on the candidate's own mel.
        if stage == "hift" and self.candidate_has_mel:
            return run_hift(self.pipe, self.candidate, faults, options)
        # 2. From the reference's inputs. The simulator keeps these runs for other candidates. It serves where
        #    the candidate's tokens are unknown or the same as the reference's.
        tokens = self.candidate_tokens
        if stage == "lm" or tokens is None:
            return self.simulator.stage_trace(stage, faults, options)
        reference_tokens = reference.get("lm/speech_token")
        if reference_tokens is not None and torch.equal(tokens, reference_tokens):
            return self.simulator.stage_trace(stage, faults, options)
        # 3. From the candidate's own tokens.
        if stage == "flow":
            return run_flow(self.pipe, flow_utterance(reference), self.candidate, faults, options)
        return run_hift(self.pipe, self.stage_trace("flow", faults, options), faults, options)
