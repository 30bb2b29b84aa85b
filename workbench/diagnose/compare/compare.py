"""Two runs, field by field in causal order: where they part, and whether the error was made there.

`compare(reference, candidate, pipe)` is the whole of it. With a pipeline at hand every result of the
candidate is worked out again from the candidate's own inputs, in float32 and in float64: what is farther
away than float32 is from float64 was made there (*added*), the rest came with the inputs (*inherited*).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare import statistics as alike
from workbench.diagnose.compare.distance import hints, measure, place_name, relative, where_is
from workbench.diagnose.compare.misfits import misfits
from workbench.diagnose.compare.plausibility import implausible
from workbench.diagnose.compare.transitions import Transition, entry, loop_of, transitions
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.importers.logs import open_run
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import FIELDS, dims_of
from workbench.trace.trace import Trace

Checks = dict[tuple[str, int | None], tuple[float, float]]  # place: error added, error allowed

# From good to bad; a comparison is as bad as its worst row.
# ALIKE is said where statistics are all there is to compare: they agree, which does not make tensors equal.
VERDICTS = ("MATCH", "ROUNDING", "ALIKE", "MISSING", "NOT COMPARABLE", "DIVERGED", "SHAPE", "NONFINITE")
NOT_BAD = VERDICTS[: VERDICTS.index("MISSING") + 1]
ALLOWANCE = 10.0  # times the distance between float32 and float64: other kernels, another order of sums
EPS = torch.finfo(torch.float32).eps
UNREFEREED = 1e-5  # relative L2 taken for rounding where no checkpoint is at hand to find out
DTYPES = ("lm_dtype", "flow_dtype", "hift_dtype", "f0_dtype", "source_dtype", "head_dtype")
# Ours is always torch: other estimators are what is compared, and know no float64.
SINGLE = {name: getattr(Options(), name) for name in ("estimator", *DTYPES)}  # f0 in float64 as upstream
DOUBLE = {"estimator": SINGLE["estimator"]} | dict.fromkeys(DTYPES, "float64")


@dataclass(frozen=True)
class Cause:
    """Where an error was made."""

    name: str
    added: float  # relative L2 to what our model gives on the same inputs
    allowed: float  # what rounding explains

    def __str__(self) -> str:
        return f"{self.name} (adds {self.added:.2g} on its own inputs, rounding explains {self.allowed:.2g})"


class Comparison:
    """What `compare` found: a verdict line, then a row per field and step.

    Attributes
    ----------
    verdict : str
        The worst of `VERDICTS`.
    rows : DataFrame
        In causal order; see `to_frame`.
    guards : list of str
        What differs before any number: text, tokens, options, weights.
    hints : list of str
        What no speech looks like on either side, and what the difference looks like: transposed, shifted,
        scaled. Which estimators ran, where they differ.
    causes : list of Cause
        Places where the candidate adds an error of its own, in causal order; None without a pipeline.
    unchecked : list of str
        Results that could not be worked out again, because the candidate lacks their inputs.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        guards: list[str],
        hints: list[str],
        causes: list[Cause] | None,
        unchecked: list[str],
    ) -> None:
        self.rows, self.guards, self.hints = rows, guards, hints
        self.causes, self.unchecked = causes, unchecked
        self.verdict = max(rows["verdict"], key=VERDICTS.index, default="MISSING")

    @property
    def line(self) -> str:
        """The verdict in one line."""
        bad = self.rows[~self.rows["verdict"].isin(NOT_BAD)]
        parts = [self.verdict]
        if len(bad):
            row = bad.iloc[0]
            error = f"relative L2 {row['rel_l2']:.2g}" if row["rel_l2"] == row["rel_l2"] else row["note"]
            parts.append(
                f"the runs part at {_label(row)} ({', '.join(filter(None, (row['verdict'], error)))})"
            )
        if self.causes:
            parts.append(f"first cause: {self.causes[0]}")
        elif self.causes is not None and len(bad):
            what = "inputs or options differ" if self.guards else "they differ before what was recorded"
            parts.append(f"no result of the candidate is wrong for what it was given: {what}")
        elif len(bad):
            parts.append(self._inputs_of(row))
        counts = self.rows["verdict"].value_counts()
        if "ALIKE" in counts:
            parts.append(f"{counts['ALIKE']} rows have statistics that are alike, which proves no equality")
        if "MISSING" in counts:
            parts.append(f"{counts['MISSING']} rows missing on one side")
        return "; ".join(parts)

    def _inputs_of(self, row: pd.Series) -> str:
        """What can be said of a cause without a checkpoint: whether the inputs agree."""
        one_step = transitions(Trace({"flow/t": torch.zeros(2)}, {}))
        made = [step for step in one_step if row["field"] in step.fields]
        start = pd.notna(row["index"]) and row["index"] == 0
        needs = made[0 if start else -1].needs if made else ()
        before = self.rows.loc[: row.name]
        verdicts = {n: set(before.loc[before["field"] == n, "verdict"]) for n in needs}
        if needs and all(seen and seen <= set(VERDICTS[:2]) for seen in verdicts.values()):
            return f"it is made there or in what the runs did not record: its input {', '.join(needs)} agrees"
        if needs and all(seen and seen <= set(VERDICTS[:3]) for seen in verdicts.values()):
            return (
                f"the statistics of its input {', '.join(needs)} are alike; record tensors to find the cause"
            )
        lacking = [n for n, seen in verdicts.items() if not seen or "MISSING" in seen]
        what = f"{', '.join(lacking)} is not on both sides" if lacking else "its inputs differ as well"
        what = what if needs else "it follows from nothing that was recorded"
        how = "record tensors" if pd.isna(row["rel_l2"]) else "pass a Pipeline of the checkpoint"
        return f"cause unknown ({what}); {how} to find it"

    @property
    def ok(self) -> bool:
        """Whether everything is there and no farther away than rounding."""
        return self.verdict in VERDICTS[:2] and not self.causes

    def assert_ok(self) -> None:
        """Raise a WorkbenchError with the verdict line unless `ok`."""
        if not self.ok:
            raise WorkbenchError(self.line)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a field, knot, step or draw.

        `field`, `index`, `verdict`, `rel_l2`, `allowed` (what rounding explains), `added` and
        `added_allowed` (isolated error), `max_abs`, `rms`, `snr_db`, `cosine`, `norm_ratio`, `nonfinite`,
        `prompt` and `target` (rms error by region), `worst` (place of the largest error),
        `seconds` (when that is in the target's sound), `note`.
        """
        return self.rows.copy()

    def __repr__(self) -> str:
        return self.line

    @property
    def remarks(self) -> list[str]:
        """What to know beside the line: guards, hints, and where errors are added."""
        return [*self.guards, *self.hints, *(f"adds an error: {text}" for text in self._causes())]

    def _causes(self) -> list[str]:
        """The first place of every field that adds an error, and how many more it has."""
        grouped: dict[str, list[Cause]] = {}
        for cause in self.causes or ():
            grouped.setdefault(cause.name.partition("[")[0], []).append(cause)
        return [
            f"{first}, and at {len(rest)} more places" if rest else str(first)
            for first, *rest in grouped.values()
        ]

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(text)}</li>" for text in self.remarks)
        table = self.rows.to_html(float_format="{:.3g}".format, na_rep="", border=0, index=False)
        return f"<div><b>{escape(self.line)}</b><ul>{items}</ul>{table}</div>"


def compare(
    reference: Trace | str | os.PathLike, candidate: Trace | str | os.PathLike, pipe: Pipeline | None = None
) -> Comparison:
    """Put two runs side by side.

    Parameters
    ----------
    reference, candidate : Trace or path
        The candidate may be partial: what it lacks is MISSING, never equal. A path is a saved trace or a text
        log; "server.log#2" is a log's second run. Where one side has statistics alone, those are compared.
    pipe : Pipeline, optional
        Of the checkpoint both should have run. It decides what rounding explains, and names the places
        where the candidate adds an error. Without it a relative L2 of 1e-5 is taken for rounding.

    Returns
    -------
    Comparison
    """
    reference, candidate = open_run(reference), open_run(candidate)
    guards = _guards(reference, candidate)
    oddities = [
        f"{who}: {text}"
        for who, trace in (("reference", reference), ("candidate", candidate))
        for text in (*trace.attrs.get("notes", ()), *misfits(trace), *implausible(trace))
    ]
    options = _options(candidate, reference, pipe)
    referee = _referee(reference, pipe)
    same_speech = not any(guard.startswith(("lm/speech_token", "in/")) for guard in guards)
    same_start = not any(guard.startswith("first_step") for guard in guards)
    one_run = not misfits(candidate)  # what is of several runs cannot be worked out again
    checks, unchecked = _isolate(candidate, pipe, options) if pipe and one_run else ({}, [])
    rows = []
    for field, index in _places(reference, candidate):
        allowed = _allowed(reference, referee, field, index)
        row = {"field": field, "index": index, "allowed": allowed, "note": ""}
        row |= _row(reference, candidate, field, index, allowed)
        if row["verdict"] == "DIVERGED" and not same_speech and field.startswith(("flow/", "hift/")):
            row |= {"verdict": "NOT COMPARABLE", "note": "other speech tokens"}
        if row["verdict"] == "DIVERGED" and not same_start and loop_of(field) and field.startswith("flow/"):
            row |= {"verdict": "NOT COMPARABLE", "note": "the recorded steps begin elsewhere"}
        if (
            field in ("hift/source", "hift/magnitude", "hift/phase", "hift/wav")
            and row["verdict"] == "DIVERGED"
        ):
            advice = "advisory: the phase of the excitation follows every f0 before it"
            row["note"] = f"{row['note']}; {advice}" if row["note"] else advice
        check = checks.get((field, index))
        if check:
            row |= {"added": check[0], "added_allowed": check[1]}
        rows.append(row)
    order = ["field", "index", "verdict", "rel_l2", "allowed", "added", "added_allowed", "max_abs", "rms"]
    order += ["snr_db", "cosine", "norm_ratio", "nonfinite", "prompt", "target", "worst", "seconds", "note"]
    frame = pd.DataFrame(rows).reindex(columns=order)
    frame["index"] = frame["index"].astype("Int64")
    causes = (
        None
        if not checks
        else [
            Cause(place_name(field, index), added, allowed)
            for (field, index), (added, allowed) in checks.items()
            if not added <= allowed
        ]
    )
    remarks = (*_estimators(reference, candidate), *hints(reference, candidate, frame), *alike.hints(frame))
    seen = [*oddities, *remarks]
    return Comparison(frame, guards, seen, causes, unchecked)


# ---- before any number


def _guards(reference: Trace, candidate: Trace) -> list[str]:
    """What the two runs were given that differs."""
    found = []
    a, b = reference.attrs, candidate.attrs
    for key in ("text", "sample_rate", "mode", "first_step", "prompt_frames"):
        if key in a and key in b and a[key] != b[key]:
            found.append(f"{key}: {a[key]!r} and {b[key]!r}")
    hashes = [attrs.get("checkpoint", {}).get("content_hash") for attrs in (a, b)]
    if all(hashes) and hashes[0] != hashes[1]:
        found.append(f"weights: {hashes[0][:12]} and {hashes[1][:12]}")
    mine, other = a.get("options", {}), b.get("options", {})
    for key in sorted(mine.keys() & other.keys()):
        if mine[key] != other[key] and key != "estimator":  # the same model, computed by something else
            found.append(f"option {key}: {mine[key]!r} and {other[key]!r}")
    for name in (n for n in FIELDS if n.startswith("in/") or n == "lm/speech_token"):
        if name in reference and name in candidate:
            x, y = reference[name], candidate[name]
            if x.shape != y.shape:
                found.append(f"{name}: shapes {tuple(x.shape)} and {tuple(y.shape)}")
            elif x.is_floating_point():
                if relative(x, y) > 1e-3:
                    found.append(f"{name}: relative L2 {relative(x, y):.2g}")
            elif not torch.equal(x, y):
                first = int((x != y).nonzero()[0, 0])
                found.append(f"{name}: {int((x != y).sum())} of {len(x)} differ, the first at {first}")
    return found + alike.shapes(reference, candidate)


def _estimators(reference: Trace, candidate: Trace) -> list[str]:
    """What computed the velocities, where it was not the same."""
    a, b = (trace.attrs.get("estimator") for trace in (reference, candidate))
    return [f"estimator: {a} and {b}"] if a and b and a != b else []


def _options(candidate: Trace, reference: Trace, pipe: Pipeline | None) -> Options:
    """What the candidate says it ran with, else what the reference did."""
    known = reference.attrs.get("options", {}) | candidate.attrs.get("options", {})
    return (pipe.checkpoint.options if pipe else Options()).but(**known)


# ---- numbers


def _places(reference: Trace, candidate: Trace) -> Iterator[tuple[str, int | None]]:
    """Fields of either run in causal order, loops entry by entry: step k's velocities before knot k + 1.

    A field that one side lacks altogether is one place.
    """
    sides = (reference, candidate)
    names = [n for n in FIELDS if any(alike.is_there(side, n) for side in sides)]
    count = {
        n: max(alike.entries(side, n) for side in sides)
        for n in names
        if loop_of(n) and all(alike.is_there(side, n) for side in sides)
    }
    solver = [n for n in count if n.startswith("flow/")]

    def noted(name: str, k: int) -> bool:
        return any(alike.is_noted(side, name, k) for side in sides)

    for name in names:
        if name not in count:
            yield name, None
        elif name not in solver:
            yield from ((name, k) for k in range(count[name]) if noted(name, k))
        elif name == solver[0]:
            longest = max(count[n] for n in solver)
            yield from ((n, k) for k in range(longest) for n in solver if noted(n, k))


def _row(reference: Trace, candidate: Trace, field: str, index: int | None, allowed: float) -> dict[str, Any]:
    both = alike.is_there(reference, field) and alike.is_there(candidate, field)
    if both and not (field in reference and field in candidate):
        return alike.row(reference, candidate, field, index, allowed)
    sides = []
    for side in (reference, candidate):
        there = field in side and (index is None or index < len(side[field]))
        sides.append(entry(side, field, index) if there else None)
    x, y = sides
    if x is None or y is None:
        where = "reference" if x is None else "candidate"
        return {"verdict": "MISSING", "note": f"not in the {where}"}
    if x.shape != y.shape:
        return {"verdict": "SHAPE", "note": f"{tuple(x.shape)} and {tuple(y.shape)}"}
    row = measure(x, y, _cut_of(field, reference))
    dims = dims_of(field)[0 if index is None else 1 :]
    row["worst"], row["seconds"] = (
        where_is(dims, row["worst"], reference) if row["worst"] else ("", float("nan"))
    )
    if row["nonfinite"]:
        return row | {"verdict": "NONFINITE"}
    if torch.equal(x.double(), y.double()):
        return row | {"verdict": "MATCH"}
    return row | {"verdict": "ROUNDING" if row["rel_l2"] <= allowed else "DIVERGED"}


def _cut_of(field: str, trace: Trace) -> int | None:
    return trace.prompt_frames if "frame" in dims_of(field) else None


# ---- what rounding explains, and what it does not


def _referee(reference: Trace, pipe: Pipeline | None) -> Trace | None:
    """The reference's run again in float64, from its speech tokens on."""
    needed = ("lm/speech_token", "in/text_token", "in/prompt_mel", "in/spk_embedding", "in/flow_prompt_token")
    if pipe is None or any(name not in reference for name in needed):
        return None
    known = reference.attrs.get("options", {})
    return pipe.replay(reference, "flow", pipe.checkpoint.options.but(**(known | DOUBLE)), EVERYTHING)


def _allowed(reference: Trace, referee: Trace | None, field: str, index: int | None) -> float:
    floor = ALLOWANCE * EPS
    if referee is None:
        return UNREFEREED
    if field not in referee or field not in reference:
        return floor
    if index is not None and index >= min(len(referee[field]), len(reference[field])):
        return floor
    exact, x = entry(referee, field, index), entry(reference, field, index)
    return max(floor, ALLOWANCE * relative(exact, x)) if exact.shape == x.shape else floor


def _isolate(candidate: Trace, pipe: Pipeline, options: Options) -> tuple[Checks, list[str]]:
    """Work every result of the candidate out again from its own inputs: (error added, error allowed)."""
    checks: Checks = {}
    unchecked: list[str] = []
    for step in transitions(candidate):
        fields = [field for field in step.fields if field in candidate]
        if not step.ready(candidate):
            unchecked += [place_name(field, step.index) for field in fields]
        elif fields:
            added = _added(step, candidate, pipe, options.but(**SINGLE), options.but(**DOUBLE))
            checks |= {place: error for place, error in added.items() if place[0] in fields}
    return checks, unchecked


def _added(step: Transition, trace: Trace, pipe: Pipeline, single: Options, double: Options) -> Checks:
    """Errors of one transition's results, those of a whole loop entry by entry."""
    try:
        ours, exact = (step.work(pipe, trace, options) for options in (single, double))
    except WorkbenchError:  # such as NaN in the mel: nothing right can follow from it
        return {(field, step.index): (float("nan"), 0.0) for field in step.fields}
    results: Checks = {}
    for field, x, wide in zip(step.fields, ours, exact, strict=True):
        x, wide, found = x.cpu(), wide.cpu(), entry(trace, field, step.index) if field in trace else None
        if found is None or x.shape != found.shape:
            results[field, step.index] = float("inf"), 0.0
        elif step.index is None and loop_of(field):
            parts = zip(x, wide, found, strict=True)
            results |= {(field, k): _error(*part) for k, part in enumerate(parts)}
        else:
            results[field, step.index] = _error(x, wide, found)
    return results


def _error(ours: Tensor, exact: Tensor, found: Tensor) -> tuple[float, float]:
    return relative(ours, found), ALLOWANCE * max(relative(exact, ours), EPS)


def _label(row: pd.Series) -> str:
    return place_name(row["field"], None if pd.isna(row["index"]) else int(row["index"]))
