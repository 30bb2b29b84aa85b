"""Name the known faults that a run of another implementation shows.

`find_suspects(reference, candidate, pipe)` gives our own model every fault of the catalogue (`faults.py`) and
asks with which one it computes what the candidate recorded. Each result is predicted from the inputs that the
candidate recorded, or else by a simulated run (`observations.py`, `simulate.py`). A fault is named where its
predictions agree with the record (`scoring.py`, `search.py`). Statistics serve where the candidate recorded
no values. `Diagnosis` also says what was checked and what was not.
"""

import os
from collections.abc import Sequence

from workbench.diagnose.compare.rounding import OTHER_WEIGHTS, STREAMING, WEIGHED, StoredRun
from workbench.diagnose.compare.transitions import transitions
from workbench.diagnose.suspects.catalogue.faults import CATALOGUE, HEALTHY, Fault, Faults
from workbench.diagnose.suspects.catalogue.kind_makers import QUANTISED
from workbench.diagnose.suspects.catalogue.kinds import KINDS, Kind, faults_of_kinds
from workbench.diagnose.suspects.diagnosis import MAX_SUSPECTS, Diagnosis, Suspect
from workbench.diagnose.suspects.fitted import fitted_faults
from workbench.diagnose.suspects.observations import RUN_TOLERANCE, Observed, observe, value_distance
from workbench.diagnose.suspects.quantised import FormatSearch, is_format
from workbench.diagnose.suspects.scoring import Scorer, thinned
from workbench.diagnose.suspects.search import Search
from workbench.diagnose.suspects.simulate import FaultSimulator, Predictor
from workbench.diagnose.suspects.verdict import Verdict
from workbench.errors import WorkbenchError
from workbench.speech.config import NAMES
from workbench.speech.pipeline import Pipeline
from workbench.trace.importers.open_run import open_run
from workbench.trace.schema import BRANCH_VELOCITIES
from workbench.trace.trace import Trace

MAX_LEFT = 0.02  # share of an error that the format of weights may leave without a word
# Relative distance from which recording a field would tell two faults apart, well above other kernels.
MIN_SEPARATION = 10 * RUN_TOLERANCE


def find_suspects(
    reference: Trace | str | os.PathLike | None,
    candidate: Trace | str | os.PathLike,
    pipe: Pipeline,
    catalogue: Sequence[Fault] = CATALOGUE,
    simulator: FaultSimulator | None = None,
    kinds: Sequence[Kind] = KINDS,
) -> Diagnosis:
    """Name the known faults that the candidate's run shows.

    Parameters
    ----------
    reference : Trace, path or None
        A right run of the same utterance, with its `in/*` fields. None where the candidate recorded its own
        inputs.
    candidate : Trace or path
        Everything, a part (such as a mel and a waveform), or statistics alone, as from a text log. A path is
        that of a trace, dump or log.
    pipe : Pipeline
        Of the checkpoint that both should have run.
    catalogue : sequence of Fault
        The faults to try.
    simulator : FaultSimulator, optional
        Of the reference. Pass one simulator for several candidates, so that each simulated run is made once.
    kinds : sequence of Kind
        Faults with a parameter, such as one block left out; tried where the catalogue explains nothing.

    Returns
    -------
    Diagnosis
        A fault is named only where our model with this fault gives what the candidate recorded.

    Raises
    ------
    WorkbenchError
        When neither trace holds what was spoken, or the candidate holds nothing that can be predicted.

    Examples
    --------
    Leave the guidance out of a run's velocities, and ask which of three faults that is:

    >>> wrong = wb.Trace(dict(trace) | {"flow/velocity": trace["flow/velocity_cond"]}, trace.attrs)
    >>> names = ("cfg-off", "cfg-sign", "time-unscaled")
    >>> few = [fault for fault in wb.faults.CATALOGUE if fault.name in names]
    >>> wb.find_suspects(trace, wrong, pipe, few).explained_by
    ('cfg-off',)
    """
    reference = None if reference is None else open_run(reference)
    candidate = open_run(candidate)
    if any(side is not None and side.attrs.get("streaming") for side in (reference, candidate)):
        return Diagnosis(objection=f"{STREAMING}; compare an offline run to have faults named")
    if simulator is None:
        simulator = FaultSimulator(candidate if reference is None else reference, pipe)
    if reference is not None and simulator.objection:
        return Diagnosis(objection=f"{simulator.objection}; until then nothing is said of the candidate")
    predictor = Predictor(candidate, simulator)
    run = StoredRun(candidate)
    notes = run.describe()  # as stored; `observe` may take a field for computed
    observed = observe(run, predictor)
    if not observed.observations:
        raise WorkbenchError("the candidate has no field that follows from another; record a mel at least")
    _note_silent_stages(observed)
    checked = [observation.name for observation in observed.observations]

    # 1. What is wrong? Other weights make everything wrong, and no fault can be told then.
    all_results = Scorer(observed.observations)
    if objection := _weights_objection(all_results):
        return Diagnosis(checked=checked, unchecked=observed.unchecked, notes=notes, objection=objection)

    # 2. Search the faults that explain what is wrong, in causal order.
    scorer = Scorer(thinned(observed.observations, all_results))
    search = Search(
        scorer,
        catalogue,
        lambda: _of_kinds(pipe, kinds, observed),
        FormatSearch(pipe, scorer).formats if any(kind.name == QUANTISED for kind in kinds) else _no_formats,
    )
    notes += _format_notes(search, scorer)
    healthy_score = scorer.total(HEALTHY)
    explained = 1 - scorer.total(search.chosen) / healthy_score if search.verdicts else 1.0

    # 3. Report.
    ties = [fault for verdict in search.verdicts for fault in verdict.ties]
    others = sorted(search.shares, key=search.shares.__getitem__, reverse=True)
    ranking = list(dict.fromkeys((*search.chosen, *ties, *others)))
    suspects = []
    for fault in ranking[:MAX_SUSPECTS]:
        # Where a fault was ruled out by its first result, that result is the evidence.
        is_named = fault in search.chosen or fault in ties
        numbers = range(len(scorer.observations)) if is_named else sorted(search.tried_at[fault])
        evidence = scorer.evidence(fault, numbers)
        suspects.append(Suspect(fault, search.shares.get(fault, 0.0), evidence))
    return Diagnosis(
        search.verdicts,
        suspects,
        explained,
        checked,
        observed.unchecked,
        notes,
        next_experiment=_next_experiment(search.verdicts, candidate, predictor),
    )


def _note_silent_stages(observed: Observed) -> None:
    """Note as unchecked every stage of which no result was checked."""
    fields = [observation.field for observation in observed.observations]
    for stage in NAMES:
        if not any(field.startswith(stage) for field in fields):
            named = [place for place in observed.unchecked if place.startswith(stage)]
            if not named:
                observed.unchecked[stage] = "no result of it was recorded"


def _of_kinds(pipe: Pipeline, kinds: Sequence[Kind], observed: Observed) -> list[Fault]:
    """Return the faults with a parameter; formats of weights have a search of their own."""
    faults = faults_of_kinds(pipe, kinds) + fitted_faults(kinds, observed.observations)
    return [fault for fault in faults if not is_format(fault)]


def _no_formats(number: int, base: Faults, tried: tuple[str, ...] = ()) -> list[Faults]:
    return []


def _format_notes(search: Search, scorer: Scorer) -> list[str]:
    """Say of formats that were named by likeness how much of the error they leave."""
    left: dict[str, float] = {}
    for verdict in search.verdicts:
        names = [fault.name for fault in verdict.faults if is_format(fault)]
        for number, observation in enumerate(scorer.observations):
            if not names or observation.is_statistics or observation.name not in verdict.places:
                continue
            if scorer.is_beyond_prediction(number, search.chosen):
                share = scorer.distance(number, search.chosen) / scorer.distance(number, HEALTHY)
                left[names[0]] = max(share, left.get(names[0], 0.0))
    return [
        f"{name} is alike, not equal: it leaves up to {100 * share:.0f} % of the error. Integer sums and "
        "rounded inputs leave such a rest; another format of some layers, or a small fault, may hide in it"
        for name, share in left.items()
        if share > MAX_LEFT
    ]


# ---- other weights


def _weights_objection(scorer: Scorer) -> str:
    """Say that the candidate's weights are others: every part of the model is far off on its own inputs."""
    far, near = [], []
    for number, observation in enumerate(scorer.observations):
        if observation.is_local and observation.field in WEIGHED and not observation.index:
            distance = scorer.distance(number, HEALTHY)
            (far if distance > OTHER_WEIGHTS else near).append(observation.field)
    if len(far) < 3 or near:
        return ""
    return (
        f"every part of the model differs on its own inputs ({', '.join(far)}): the candidate has another "
        "checkpoint or another pipeline, so no fault is named. Compare the files' hashes first"
    )


# ---- what to do next


def _next_experiment(verdicts: Sequence[Verdict], candidate: Trace, predictor: Predictor) -> str:
    """Say what to record or to run next."""
    for verdict in verdicts:
        if verdict.ties:
            return _separating_field(verdict.faults[0], verdict.ties[0], candidate, predictor)
    for verdict in verdicts:
        if verdict.reason:
            return _next_for(verdict, candidate)
    return ""


def _next_for(verdict: Verdict, candidate: Trace) -> str:
    """Say how to narrow down a place that no known fault explains."""
    field = verdict.fields[0]
    if field in BRANCH_VELOCITIES:
        return (
            f"{field} is wrong on its own inputs: wb.bisect(reference, candidate, pipe) says which blocks of "
            "the estimator to dump, and names the first that adds an error."
        )
    inputs = [name for step in transitions(candidate) if field in step.outputs for name in step.inputs]
    missing = [name for name in dict.fromkeys(inputs) if name not in candidate]
    if missing:
        return f"Record {', '.join(missing)}: {field} can then be computed from the candidate's own inputs."
    return (
        f"{field} is wrong on its own inputs, so the error is in this one computation: dump what lies inside "
        "it, and compare with wb.taps on ours."
    )


def _separating_field(first: Fault, second: Fault, candidate: Trace, predictor: Predictor) -> str:
    """Name the field, not recorded yet, in which two faults differ most; empty where runs cannot tell."""
    if not predictor.can_predict("flow/x") or "lm" in (first.stage, second.stage):
        return ""
    # With the candidate's own mel a simulation begins at the vocoder, so only its fields can differ.
    stage = "hift" if predictor.candidate_has_mel else "flow"
    options = predictor.simulator.options
    try:
        first_run = predictor.stage_trace(stage, (first,), options)
        second_run = predictor.stage_trace(stage, (second,), options)
    except (WorkbenchError, RuntimeError):  # a faulty run failed, such as by a mel of NaN
        return ""
    distances = {}
    for field in first_run:
        is_new = field not in candidate and not field.startswith("in/")
        if is_new and field in second_run:
            distances[field] = value_distance(first_run[field], second_run[field])
    names = f"{first.name} from {second.name}"
    if not distances or max(distances.values()) < MIN_SEPARATION:
        return f"Nothing that a run records would tell {names}: on this utterance they come to the same."
    field = max(distances, key=distances.__getitem__)
    return f"To tell {names}, record {field}: there they are {100 * distances[field]:.0f} % apart."
