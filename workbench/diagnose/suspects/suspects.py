"""Which known mistake another implementation's run looks like.

`find_suspects(reference, candidate, pipe)` makes every mistake of the catalogue on purpose. A result whose
inputs the candidate recorded is worked out again from just those, by the right model and by each wrong one;
what lacks its inputs is compared with whole runs from the reference's. The mistake whose values are the
candidate's own is the suspect; its statistics will do where there are no values.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from workbench.diagnose.suspects.faults import CATALOGUE, Fault, Faults
from workbench.diagnose.suspects.scoring import LEAST, WHOLE_RUN, Costs, distance_of, observations
from workbench.diagnose.suspects.simulate import Rehearsals, Runs
from workbench.errors import WorkbenchError
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

ENOUGH = 0.5  # share of the error that a suspect explains
CLEAR = 0.95  # share from which on no second mistake is looked for
LISTED = 10  # suspects
PAIRED = 6  # mistakes that are tried in pairs


@dataclass(frozen=True)
class Suspect:
    """A mistake of the catalogue and how well it fits.

    Attributes
    ----------
    fault : Fault
    explained : float
        Share of the error, in decades above rounding, that is gone when ours makes this mistake too: 1 is all
        of it, 0 none, below 0 it makes things worse.
    evidence : DataFrame
        A row per result it concerns: `place`, `right` and `wrong` (relative distance of the candidate to the
        right model and to the one with this mistake), `allowed` (what rounding explains), `fits`.
    """

    fault: Fault
    explained: float
    evidence: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.fault.name} ({100 * max(self.explained, 0):.0f} %): {self.fault.cause}"


class Diagnosis:
    """What `find_suspects` found.

    Attributes
    ----------
    suspects : list of Suspect
        The best first; those of a combination that explains the run together come before all others.
    together : tuple of str
        Names of the mistakes that explain the run best, one or two; none where nothing does.
    explained : float
        Share of the error that they explain together.
    clean : bool
        Whether every result is within rounding, so that there is nothing to explain.
    next_experiment : str
        What would tell the first two suspects apart.
    """

    def __init__(
        self, suspects: list[Suspect], together: tuple[str, ...], explained: float, clean: bool, next_: str
    ) -> None:
        self.suspects, self.together, self.explained = suspects, together, explained
        self.clean, self.next_experiment = clean, next_

    @property
    def line(self) -> str:
        """The answer in one line."""
        if self.clean:
            return "nothing to explain: every result is what the model gives, within rounding"
        if not self.together:
            best = f"; the nearest, {self.suspects[0]}" if self.suspects else ""
            return f"none of these: no known mistake explains half of the error{best}"
        named = " and ".join(str(s) for s in self.suspects[: len(self.together)])
        return f"{named}. Explained: {100 * self.explained:.0f} % of the error"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a suspect: name, stage, explained, cause, source."""
        rows = [
            (s.fault.name, s.fault.stage, s.explained, s.fault.cause, s.fault.source) for s in self.suspects
        ]
        return pd.DataFrame(rows, columns=["suspect", "stage", "explained", "cause", "source"])

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = self.to_frame().head(10).to_html(float_format="{:.2f}".format, border=0, index=False)
        evidence = (
            self.suspects[0].evidence.to_html(float_format="{:.2g}".format, border=0, index=False)
            if self.together
            else ""
        )
        after = f"<p>{escape(self.next_experiment)}</p>" if self.next_experiment else ""
        return f"<div><b>{escape(self.line)}</b>{after}{table}{evidence}</div>"


def find_suspects(
    reference: Trace | None,
    candidate: Trace,
    pipe: Pipeline,
    catalogue: Sequence[Fault] = CATALOGUE,
    rehearsals: Rehearsals | None = None,
) -> Diagnosis:
    """Name the known mistakes that the candidate's run looks like.

    Parameters
    ----------
    reference : Trace or None
        A right run of the same utterance, with its `in/*` fields. None where the candidate has recorded
        its own inputs.
    candidate : Trace
        Whole, partial (a mel and a waveform), or statistics alone, as from a text log.
    pipe : Pipeline
        Of the checkpoint that both should have run.
    catalogue : sequence of Fault
        The mistakes to try.
    rehearsals : Rehearsals, optional
        Of the reference: whole runs that were made for another candidate need not be made again.

    Returns
    -------
    Diagnosis

    Raises
    ------
    WorkbenchError
        When neither trace says what was spoken.
    """
    rehearsals = rehearsals or Rehearsals(candidate if reference is None else reference, pipe)
    runs = Runs(candidate, rehearsals)
    seen = list(observations(candidate, runs))
    if not seen:
        raise WorkbenchError("the candidate has no field that follows from another; record a mel at least")
    costs = Costs(seen)
    at_first = costs.total(())
    if at_first <= LEAST:
        return Diagnosis([], (), 1.0, True, "")
    tried = costs.worth_trying(catalogue)
    singles = {fault: costs.total((fault,)) for fault in costs.at_the_root(tried)}
    if min(singles.values(), default=at_first) > (1 - CLEAR) * at_first:  # two at once, or what shows late
        singles |= {fault: costs.total((fault,)) for fault in tried if fault not in singles}
    order = sorted(singles, key=singles.__getitem__)
    best = _best(costs, order, tried, at_first)
    explained = 1 - costs.total(best) / at_first
    singles |= {fault: costs.total((fault,)) for fault in best}
    order = [*best, *(fault for fault in order if fault not in best)]
    suspects = [Suspect(f, 1 - singles[f] / at_first, costs.evidence(f)) for f in order[:LISTED]]
    together = tuple(fault.name for fault in best) if explained >= ENOUGH else ()
    rivals = [s for s in suspects if s.explained >= ENOUGH or s.fault in best][:2]
    next_ = _separate(rivals, candidate, runs) if len(rivals) == 2 and len(best) < 2 else ""
    return Diagnosis(suspects, together, explained, False, next_)


def _best(costs: Costs, order: list[Fault], tried: list[Fault], at_first: float) -> Faults:
    """The mistake, or the two, that leave least to explain."""
    if not order:
        return ()
    best: Faults = (order[0],)
    if costs.total(best) <= (1 - CLEAR) * at_first or not costs.from_inputs:
        return best
    aligned = sorted(order, key=costs.alignment, reverse=True)[:PAIRED]
    elsewhere = [(order[0], fault) for fault in tried if fault is not order[0]]
    pairs = {frozenset(pair): pair for pair in (*itertools.combinations(aligned, 2), *elsewhere)}
    pair = min(pairs.values(), key=costs.total, default=best)
    gain = costs.total(best) - costs.total(pair)
    return pair if gain > max(LEAST, 0.1 * at_first) else best


def _separate(rivals: list[Suspect], candidate: Trace, runs: Runs) -> str:
    """Name the field, not recorded yet, in which two mistakes differ most."""
    if not runs.reaches("flow/x") or any(s.fault.stage == "lm" for s in rivals):
        return ""
    try:
        first, second = (runs.leg("hift", (s.fault,), runs.rehearsals.options) for s in rivals)
        if not runs.own_mel:
            first, second = (runs.leg("flow", (s.fault,), runs.rehearsals.options) for s in rivals)
    except (WorkbenchError, RuntimeError):
        return ""
    apart = {
        field: distance_of(first[field], second[field])
        for field in first
        if field not in candidate and field in second and not field.startswith("in/")
    }
    names = " from ".join(s.fault.name for s in rivals)
    if not apart or max(apart.values()) < 10 * WHOLE_RUN:
        return f"Nothing that a run records would tell {names}: on this utterance they come to the same."
    field = max(apart, key=apart.__getitem__)
    return f"To tell {names}, record {field}: there they are {100 * apart[field]:.0f} % apart."
