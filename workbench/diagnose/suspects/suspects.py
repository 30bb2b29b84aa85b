"""Name the known faults that a run of another implementation shows.

`find_suspects(reference, candidate, pipe)` gives our own model every fault of the catalogue (`faults.py`) and
asks with which one it computes what the candidate recorded. Each result is predicted from the inputs that the
candidate recorded, or else by a simulated run (`observations.py`, `simulate.py`). The fault whose predictions
are nearest is the first suspect (`scoring.py`). Statistics serve where the candidate recorded no values.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from workbench.diagnose.suspects.faults import CATALOGUE, HEALTHY, Fault, Faults
from workbench.diagnose.suspects.observations import RUN_TOLERANCE, distance_of, observations
from workbench.diagnose.suspects.scoring import MIN_TOTAL_SCORE, Scorer
from workbench.diagnose.suspects.simulate import FaultSimulator, Predictor
from workbench.errors import WorkbenchError
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

# Shares of the error.
MIN_EXPLAINED = 0.5  # a suspect that explains less is not named as the answer
MOSTLY_EXPLAINED = 0.95  # from here on no second fault is looked for
MIN_PAIR_GAIN = 0.1  # a pair must explain so much more than its best member

MAX_SUSPECTS = 10  # in the answer
MAX_PAIRED = 6  # faults that are tried in all pairs: 15 pairs
MAX_ROWS = 10  # of the table in a notebook
# Relative distance from which recording a field would tell two faults apart, well above other kernels.
MIN_SEPARATION = 10 * RUN_TOLERANCE


@dataclass(frozen=True)
class Suspect:
    """A fault of the catalogue and how well it fits.

    Attributes
    ----------
    fault : Fault
    explained : float
        Share of the error that is gone when our model has this fault too: 1 is all of it, 0 none, below 0 it
        makes things worse. The error is counted in decades above rounding.
    evidence : DataFrame
        One row for each result that the fault affects: `place`; `healthy` and `faulty`, the candidate's
        relative distances to a healthy model and to one with this fault; `allowed`, the distance that
        rounding explains; `fits`, whether the fault explains this result.
    """

    fault: Fault
    explained: float
    evidence: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.fault.name} ({100 * max(self.explained, 0):.0f} %): {self.fault.cause}"


class Diagnosis:
    """The result of `find_suspects`: the fault or the two that explain a run, and all that come near.

    Attributes
    ----------
    suspects : list of Suspect
        The best first; those in `explained_by` come before all others.
    explained_by : tuple of str
        Names of the faults that explain the run best, one or two; empty where none explains half of it.
    explained : float
        Share of the error that these faults explain together.
    healthy : bool
        Whether every result is within rounding, so that there is nothing to explain.
    next_experiment : str
        What to record to tell the first two suspects apart; empty where that is not needed.

    Examples
    --------
    >>> found = wb.find_suspects(trace, trace, pipe)
    >>> found
    nothing to explain: every result is what the model gives, within rounding
    >>> found.healthy, found.explained_by, found.suspects
    (True, (), [])
    """

    def __init__(
        self,
        suspects: list[Suspect],
        explained_by: tuple[str, ...],
        explained: float,
        healthy: bool,
        next_experiment: str,
    ) -> None:
        self.suspects = suspects
        self.explained_by = explained_by
        self.explained = explained
        self.healthy = healthy
        self.next_experiment = next_experiment

    @property
    def line(self) -> str:
        """The answer in one line."""
        if self.healthy:
            return "nothing to explain: every result is what the model gives, within rounding"
        if not self.explained_by:
            best = f"; the nearest, {self.suspects[0]}" if self.suspects else ""
            return f"none of these: no known fault explains half of the error{best}"
        named = self.suspects[: len(self.explained_by)]
        return f"{' and '.join(map(str, named))}. Explained: {100 * self.explained:.0f} % of the error"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each suspect: name, stage, explained, cause, source."""
        rows = []
        for suspect in self.suspects:
            fault = suspect.fault
            rows.append((fault.name, fault.stage, suspect.explained, fault.cause, fault.source))
        return pd.DataFrame(rows, columns=["suspect", "stage", "explained", "cause", "source"])

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = self.to_frame().head(MAX_ROWS).to_html(float_format="{:.2f}".format, border=0, index=False)
        evidence = ""
        if self.explained_by:
            best = self.suspects[0]
            evidence = best.evidence.to_html(float_format="{:.2g}".format, border=0, index=False)
        advice = f"<p>{escape(self.next_experiment)}</p>" if self.next_experiment else ""
        return f"<div><b>{escape(self.line)}</b>{advice}{table}{evidence}</div>"


def find_suspects(
    reference: Trace | None,
    candidate: Trace,
    pipe: Pipeline,
    catalogue: Sequence[Fault] = CATALOGUE,
    simulator: FaultSimulator | None = None,
) -> Diagnosis:
    """Name the known faults that the candidate's run shows.

    Parameters
    ----------
    reference : Trace or None
        A right run of the same utterance, with its `in/*` fields. None where the candidate recorded its own
        inputs.
    candidate : Trace
        Everything, a part (such as a mel and a waveform), or statistics alone, as from a text log.
    pipe : Pipeline
        Of the checkpoint that both should have run.
    catalogue : sequence of Fault
        The faults to try.
    simulator : FaultSimulator, optional
        Of the reference. Pass one simulator for several candidates, so that each simulated run is made once.

    Returns
    -------
    Diagnosis

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
    >>> wb.find_suspects(trace, wrong, pipe, few).suspects[0].fault.name
    'cfg-off'
    """
    if simulator is None:
        simulator = FaultSimulator(candidate if reference is None else reference, pipe)
    predictor = Predictor(candidate, simulator)
    observed = list(observations(candidate, predictor))
    if not observed:
        raise WorkbenchError("the candidate has no field that follows from another; record a mel at least")

    # 1. How much is there to explain?
    scorer = Scorer(observed)
    healthy_score = scorer.total(HEALTHY)
    if healthy_score <= MIN_TOTAL_SCORE:
        return Diagnosis([], (), 1.0, True, "")

    # 2. Score single faults. Those that can explain the first error come first; the others cost more runs and
    #    are scored only if none of the first explains nearly everything: there may be two faults at once.
    tried = scorer.faults_to_try(catalogue)
    single_scores = {fault: scorer.total((fault,)) for fault in scorer.faults_of_first_error(tried)}
    best_single = min(single_scores.values(), default=healthy_score)
    if best_single > (1 - MOSTLY_EXPLAINED) * healthy_score:
        for fault in tried:
            if fault not in single_scores:
                single_scores[fault] = scorer.total((fault,))
    ranking = sorted(single_scores, key=single_scores.__getitem__)

    # 3. Choose the fault, or the pair, that explains most.
    best = _best_explanation(scorer, ranking, tried, healthy_score)
    explained = 1 - scorer.total(best) / healthy_score
    for fault in best:
        single_scores[fault] = scorer.total((fault,))
    ranking = [*best, *(fault for fault in ranking if fault not in best)]

    # 4. Report.
    suspects = []
    for fault in ranking[:MAX_SUSPECTS]:
        share = 1 - single_scores[fault] / healthy_score
        suspects.append(Suspect(fault, share, scorer.evidence(fault)))
    explained_by = tuple(fault.name for fault in best) if explained >= MIN_EXPLAINED else ()
    rivals = [s for s in suspects if s.explained >= MIN_EXPLAINED or s.fault in best][:2]
    next_experiment = ""
    if len(rivals) == 2 and len(best) < 2:
        next_experiment = _next_experiment(rivals[0].fault, rivals[1].fault, candidate, predictor)
    return Diagnosis(suspects, explained_by, explained, False, next_experiment)


def _best_explanation(
    scorer: Scorer, ranking: list[Fault], tried: list[Fault], healthy_score: float
) -> Faults:
    """Return the fault, or the pair of faults, with the lowest score.

    Parameters
    ----------
    ranking : list of Fault
        Faults whose single score is known, the best first.
    tried : list of Fault
        All faults that can explain an error.
    healthy_score : float
    """
    if not ranking:
        return ()
    best: Faults = (ranking[0],)
    # Pairs are tried only where part of the error is left, and where predictions are local: without these
    # every pair would cost a simulated run.
    if scorer.total(best) <= (1 - MOSTLY_EXPLAINED) * healthy_score or not scorer.has_local:
        return best
    # Pairs of the faults that point in the direction of the error, and the best fault with any other. A pair
    # counts once, whichever comes first.
    aligned = sorted(ranking, key=scorer.alignment, reverse=True)[:MAX_PAIRED]
    pairs: dict[frozenset[Fault], Faults] = {}
    for pair in itertools.combinations(aligned, 2):
        pairs[frozenset(pair)] = pair
    for fault in tried:
        if fault is not ranking[0]:
            pairs[frozenset((ranking[0], fault))] = (ranking[0], fault)
    best_pair = min(pairs.values(), key=scorer.total, default=best)
    gain = scorer.total(best) - scorer.total(best_pair)
    min_gain = max(MIN_TOTAL_SCORE, MIN_PAIR_GAIN * healthy_score)
    return best_pair if gain > min_gain else best


def _next_experiment(first: Fault, second: Fault, candidate: Trace, predictor: Predictor) -> str:
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
            distances[field] = distance_of(first_run[field], second_run[field])
    names = f"{first.name} from {second.name}"
    if not distances or max(distances.values()) < MIN_SEPARATION:
        return f"Nothing that a run records would tell {names}: on this utterance they come to the same."
    field = max(distances, key=distances.__getitem__)
    return f"To tell {names}, record {field}: there they are {100 * distances[field]:.0f} % apart."
