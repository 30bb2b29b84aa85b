"""Two runs of which one kept statistics alone, such as a text log: what can be said of a field.

Equal statistics do not make equal tensors, and a mean that agrees proves least, so the best that comes out
here is ALIKE. Statistics that differ do prove that the tensors differ.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare.distance import place_name
from workbench.diagnose.compare.transitions import entry, loop_of
from workbench.errors import WorkbenchError
from workbench.trace.importers.log_runs import HALF_UNITS
from workbench.trace.record import summarise, summarise_regions
from workbench.trace.schema import FIELDS, REGIONS, STATS, SUFFIX, dims_of
from workbench.trace.trace import Trace

FIVE = STATS[:-1]  # those of the finite values
SIZE = ("rms", "mean_abs")  # either says how large a tensor is
SAME_SIZE, GROWN = 1.1, 1.25  # times the reference's, either way


def is_there(trace: Trace, field: str) -> bool:
    """Whether a run kept a field, or statistics of it."""
    return field in trace or field + SUFFIX in trace


def is_noted(trace: Trace, field: str, index: int) -> bool:
    """Whether a run kept one knot, step or draw of a field, or any statistic of it."""
    if index >= entries(trace, field):
        return False
    return field in trace or not bool(trace[field + SUFFIX][index].isnan().all())


def entries(trace: Trace, field: str) -> int:
    """How many knots, steps or draws of a field are there."""
    return len(trace[field] if field in trace else trace[field + SUFFIX])


def row(reference: Trace, candidate: Trace, field: str, index: int | None, allowed: float) -> dict[str, Any]:
    """Compare what statistics both sides have of a field, or of one entry of it.

    Parameters
    ----------
    reference, candidate : Trace
        Each has the field or its statistics.
    field : str
    index : int, optional
        Knot, step or draw.
    allowed : float
        Relative L2 that rounding explains. A statistic may differ by as much of the largest value, and by
        half a unit of the last digit that a log printed.
    """
    x, y = _table(reference, field, index), _table(candidate, field, index)
    for who, side in (("reference", x), ("candidate", y)):
        if side is None or side.isnan().all():
            return {"verdict": "MISSING", "note": f"not in the {who}"}
    if y[-1, -1] > 0:
        return {"verdict": "NONFINITE", "nonfinite": int(y[-1, -1]), "note": "as the run itself says"}
    x, y = x[:, :-1], y[:, :-1]
    both = ~(x.isnan() | y.isnan())
    if not both.any():
        return {"verdict": "MISSING", "note": "no statistic is on both sides"}
    scale = torch.stack([x, y]).abs().nan_to_num(0.0).amax()
    room = allowed * scale + sum(_half_unit(trace, field, index) for trace in (reference, candidate))
    far = both & ((y - x).abs() > room)
    verdict = "DIVERGED" if far.any() else "ALIKE"
    return {
        "verdict": verdict,
        "nonfinite": 0,
        "norm_ratio": _size_ratio(x[-1], y[-1]),
        "note": _note(field, x, y, far if far.any() else both, verdict),
    }


def hints(rows: pd.DataFrame) -> list[str]:
    """What the statistics of the ODE look like from step to step."""
    found = []
    states = rows[(rows["field"] == "flow/x") & rows["rel_l2"].isna() & rows["index"].notna()]
    sized = states[states["norm_ratio"].notna()]
    if not len(sized):
        return found
    first, last = sized.iloc[0], sized.iloc[-1]
    alike = 1 / SAME_SIZE < first["norm_ratio"] < SAME_SIZE
    if alike and first["verdict"] == "DIVERGED":
        found.append(
            f"{_name(first)}: extremes or signs differ while the size is the same "
            f"({first['norm_ratio']:.2f} times): did the runs start from other noise?"
        )
    if alike and not 1 / GROWN < last["norm_ratio"] < GROWN:
        found.append(
            f"flow/x: of one size at {_name(first)} ({first['norm_ratio']:.2f} times the reference's) and "
            f"{last['norm_ratio']:.2f} times at {_name(last)}: other noise alone would not do that"
        )
    return found


def shapes(reference: Trace, candidate: Trace) -> list[str]:
    """Sentences about shapes that a log printed and that are not those of the other run."""
    found = []
    for field in (n for n in FIELDS if n not in reference or n not in candidate):
        x, y = _shape(reference, field), _shape(candidate, field)
        # A log does not say which axis is which, so only the lengths are compared.
        if x and y and sorted(n for n in x if n != 1) != sorted(n for n in y if n != 1):
            found.append(f"{field}: shapes {x} and {y}")
    return found


def _table(trace: Trace, field: str, index: int | None) -> Tensor | None:
    """Statistics by region, the whole last, (3 or 1, 6); None where the entry is not there."""
    if index is not None and index >= entries(trace, field):
        return None
    if field not in trace:
        kept = trace[field + SUFFIX] if index is None else trace[field + SUFFIX][index]
        return kept.double().reshape(-1, len(STATS))
    x = entry(trace, field, index)
    return summarise_regions(x, trace.prompt_frames) if _has_regions(field) else summarise(x)[None]


def _has_regions(field: str) -> bool:
    return "region" in dims_of(field + SUFFIX)


def _half_unit(trace: Trace, field: str, index: int | None) -> Tensor:
    """Half a unit of the last digit that was printed, of the whole; zeros (5,) where nothing was."""
    half = trace.attrs.get(HALF_UNITS, {}).get(field) if field not in trace else None
    if half is None:
        return torch.zeros(len(FIVE), dtype=torch.float64)
    try:
        return torch.tensor(half if index is None else half[index], dtype=torch.float64)[: len(FIVE)]
    except (TypeError, ValueError, IndexError) as error:
        raise WorkbenchError(f"{HALF_UNITS} of {field} is not a number for every statistic") from error


def _size_ratio(x: Tensor, y: Tensor) -> float:
    for what in SIZE:
        a, b = (float(side[STATS.index(what)]) for side in (x, y))
        if a > 0 and b == b:
            return b / a
    return float("nan")


def _note(field: str, x: Tensor, y: Tensor, which: Tensor, verdict: str) -> str:
    """Which statistics are meant, with their values where they differ."""
    regions = REGIONS if _has_regions(field) else ("whole",)
    if verdict == "ALIKE":
        names = [what for what, there in zip(FIVE, which.any(0).tolist(), strict=True) if there]
        alone = " alone, which proves little" if names == ["mean"] else ""
        return f"{', '.join(names)} alike{alone}"
    first = max(k for k in range(len(regions)) if which[k].any())  # the whole, if it differs
    values = zip(FIVE, x[first].tolist(), y[first].tolist(), which[first].tolist(), strict=True)
    differ = ", ".join(f"{what} {a:.4g} and {b:.4g}" for what, a, b, far in values if far)
    return differ if regions[first] == "whole" else f"{regions[first]}: {differ}"


def _shape(trace: Trace, field: str) -> tuple[int, ...] | None:
    if field in trace:
        return tuple(trace[field].shape[1 if loop_of(field) else 0 :])
    printed = trace.attrs.get("shapes", {}).get(field)
    return tuple(printed) if printed else None


def _name(line: pd.Series) -> str:
    return place_name(line["field"], int(line["index"]))
