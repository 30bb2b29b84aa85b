"""`Diagnosis`: the result of `find_suspects`, and how it shows itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pandas as pd

from workbench.diagnose.compare.distance import join_places
from workbench.diagnose.suspects.catalogue.faults import Fault
from workbench.diagnose.suspects.quantised import is_format, where_and_format
from workbench.diagnose.suspects.verdict import Verdict
from workbench.tables import table_html

MAX_SUSPECTS = 10  # in the answer
MAX_ROWS = 10  # of the table in a notebook
# How much of an error a fault explains, in words: (share from which on, word).
EXPLAINED_WORDS = ((0.95, "all"), (0.5, "most"), (0.1, "some"))


@dataclass(frozen=True)
class Suspect:
    """A fault of the catalogue and how well it fits.

    Attributes
    ----------
    fault : Fault
    explained : float
        Share of the error that is gone when our model has this fault too: 1 is all of it, 0 none, below 0 it
        makes things worse. The error is counted in decades above rounding, where the fault was tried.
    evidence : DataFrame
        One row for each result that the fault affects, or, for a fault that is not named, for the results
        that ruled it out: `place`; `healthy` and `faulty`, the candidate's relative distances to a healthy
        model and to one with this fault; `allowed`, the distance that rounding and storage explain; `fits`,
        whether the fault explains this result.
    """

    fault: Fault
    explained: float
    evidence: pd.DataFrame

    @property
    def amount(self) -> str:
        """How much of the error the fault explains: "all", "most", "some" or "none" of it."""
        for share, word in EXPLAINED_WORDS:
            if self.explained >= share:
                return f"{word} of it"
        return "none of it"

    def __str__(self) -> str:
        return f"{self.fault.name}: {self.fault.cause}"


@dataclass(frozen=True)
class Diagnosis:
    """The result of `find_suspects`: which known faults a run shows, by place, and what was not checked.

    Attributes
    ----------
    verdicts : list of Verdict
        One for each group of wrong results in causal order: the faults that explain it, or why none is named.
    suspects : list of Suspect
        The faults that were named come first, then those that come near.
    explained : float
        Share of the error that the named faults explain together, counted in decades above rounding.
    checked : list of str
        Places whose result was predicted and compared.
    unchecked : dict of str to str
        Places, or whole stages, of which nothing can be said, and why.
    notes : list of str
        How the candidate was stored, and other facts beside the verdict.
    objection : str
        Why nothing can be diagnosed, such as a reference that this checkpoint does not give; usually empty.
    next_experiment : str
        What to record or to run next; empty where nothing is left to ask.

    Examples
    --------
    >>> found = wb.find_suspects(trace, trace, pipe)
    >>> found.healthy, found.explained_by, found.suspects
    (True, (), [])
    >>> "flow/velocity[0]" in found.checked
    True
    """

    verdicts: list[Verdict] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    explained: float = 1.0
    checked: list[str] = field(default_factory=list)
    unchecked: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    objection: str = ""
    next_experiment: str = ""

    @property
    def healthy(self) -> bool:
        """Whether every result that could be checked is right; `unchecked` says which could not."""
        return bool(self.checked) and not self.verdicts and not self.objection

    @property
    def explained_by(self) -> tuple[str, ...]:
        """Names of the faults, and of formats of weights, that are named, in causal order."""
        named = [fault.name for verdict in self.verdicts for fault in verdict.faults]
        return () if self.objection else tuple(dict.fromkeys(named))

    @property
    def line(self) -> str:
        """The answer in one line."""
        if self.objection:
            return self.objection
        parts = []
        if self.healthy:
            parts.append(f"nothing to explain: {len(self.checked)} results checked, all within rounding")
        parts += self._named_parts()
        unexplained = [verdict for verdict in self.verdicts if verdict.reason]
        if unexplained:
            places = join_places(place for verdict in unexplained for place in verdict.places)
            beside = "none of these beside it" if parts else "none of these"
            nearest = "" if parts or not self.suspects else f"; {self._nearest()}"
            parts.append(f"{beside}: {places}: {unexplained[0].reason}{nearest}")
        if self.unchecked:
            parts.append(f"not checked: {join_places(self.unchecked)}")
        return "; ".join(parts)

    @property
    def formats(self) -> dict[str, str]:
        """Formats of quantised weights that were found, by part of the model: a choice, and no fault."""
        found = {}
        for verdict in self.verdicts:
            for fault in verdict.faults:
                if is_format(fault):
                    where, text = where_and_format(fault)
                    others = [where_and_format(tie)[1] for tie in verdict.ties if is_format(tie)]
                    found.setdefault(where, " or ".join((text, *others)))
        return {} if self.objection else found

    def _named_parts(self) -> list[str]:
        """Return the formats of weights, then each named fault: its cause, where it shows, and its ties."""
        parts = []
        if self.formats:
            wheres: dict[str, list[str]] = {}
            for where, text in self.formats.items():
                wheres.setdefault(text, []).append(where)
            texts = [f"{text} in {', '.join(named)}" for text, named in wheres.items()]
            showing = [v for v in self.verdicts if any(map(is_format, v.faults))]
            places = join_places(place for verdict in showing for place in verdict.places)
            parts.append(f"quantised weights, no fault: {'; '.join(texts)}; they explain {places}")
        for name in self.explained_by:
            showing = [v for v in self.verdicts if any(fault.name == name for fault in v.faults)]
            fault = next(fault for fault in showing[0].faults if fault.name == name)
            if is_format(fault):
                continue
            places = join_places(place for verdict in showing for place in verdict.places)
            ties = ", ".join(tie.name for verdict in showing for tie in verdict.ties)
            text = f"{fault}; it explains {places}"
            if ties:
                text = f"{name} or {ties}, which nothing recorded tells apart; {fault.cause}; at {places}"
            parts.append(text)
        return parts

    def _nearest(self) -> str:
        nearest = self.suspects[0]
        return f"the nearest, {nearest.fault.name}, explains {nearest.amount}"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each suspect: suspect, stage, explained, amount, cause, source."""
        rows = []
        for suspect in self.suspects:
            fault = suspect.fault
            rows.append(
                (fault.name, fault.stage, suspect.explained, suspect.amount, fault.cause, fault.source)
            )
        return pd.DataFrame(rows, columns=["suspect", "stage", "explained", "amount", "cause", "source"])

    def places_frame(self) -> pd.DataFrame:
        """Return one row for each group of wrong results: places, explained by, as well by, reason."""
        rows = []
        for verdict in self.verdicts:
            names = ", ".join(fault.name for fault in verdict.faults)
            ties = ", ".join(fault.name for fault in verdict.ties)
            rows.append((join_places(verdict.places), names or "none of these", ties, verdict.reason))
        return pd.DataFrame(rows, columns=["places", "explained by", "as well by", "reason"])

    def to_dict(self) -> dict[str, Any]:
        """Return the answer, its reasons and what was checked, as JSON can hold them."""
        return {
            "line": self.line,
            "healthy": self.healthy,
            "explained_by": list(self.explained_by),
            "formats": self.formats,
            "places": self.places_frame().to_dict("records"),
            "suspects": self.to_frame().to_dict("records"),
            "checked": self.checked,
            "unchecked": dict(self.unchecked),
            "notes": self.notes,
            "next_experiment": self.next_experiment,
        }

    @property
    def remarks(self) -> list[str]:
        """What to know beside the line: storage, what was not checked and why, what to do next."""
        found = list(self.notes)
        found += [f"not checked: {place}: {reason}" for place, reason in self.unchecked.items()]
        return [*found, self.next_experiment] if self.next_experiment else found

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(text)}</li>" for text in self.remarks)
        tables = [self.places_frame()] if self.verdicts else []
        if self.suspects:
            tables.append(self.to_frame().head(MAX_ROWS))
        if self.explained_by:
            tables.append(self.suspects[0].evidence)
        html = "".join(table_html(each.reset_index(drop=True)) for each in tables)
        return f"<div><b>{escape(self.line)}</b><ul>{items}</ul>{html}</div>"
