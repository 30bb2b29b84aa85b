"""Compare fields when one side recorded only summary statistics, such as a text log.

Equal statistics do not prove that the tensors are equal, and an equal mean proves least. So the best
verdict here is ALIKE. Statistics that differ do prove that the tensors differ.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare.distance import place_of
from workbench.diagnose.compare.transitions import entry, loop_dimension
from workbench.trace.print_errors import HALF_UNITS, half_unit
from workbench.trace.record import summarise, summarise_regions
from workbench.trace.schema import FIELDS, REGIONS, STATS, SUFFIX, VALUE_STATS, dims_of
from workbench.trace.trace import Trace

SIZE_STATS = ("rms", "mean_abs")  # either one measures how large a tensor is
MAX_SAME_SIZE = 1.1  # sizes within this factor, up or down, count as the same
SAME_STATE = 1e-3  # share of the largest value by which a state's statistics may differ and be of one knot
MIN_GROWTH = 1.25  # from this factor on, up or down, a size counts as changed


def has_field(trace: Trace, field: str) -> bool:
    """Whether a run recorded a field, or statistics of it."""
    return field in trace or field + SUFFIX in trace


def has_entry(trace: Trace, field: str, index: int) -> bool:
    """Whether a run recorded one knot, step or draw of a field, or any statistic of it."""
    if index >= entry_count(trace, field):
        return False
    return field in trace or not bool(trace[field + SUFFIX][index].isnan().all())


def entry_count(trace: Trace, field: str) -> int:
    """Return how many knots, steps or draws of a field were recorded."""
    return len(trace[field] if field in trace else trace[field + SUFFIX])


def compare_statistics(
    reference: Trace, candidate: Trace, field: str, index: int | None, allowed: float
) -> dict[str, Any]:
    """Compare the statistics that both sides have of a field, or of one entry of it.

    Parameters
    ----------
    reference, candidate : Trace
        Each has the field or its statistics.
    field : str
    index : int, optional
        Knot, step or draw.
    allowed : float
        Relative L2 that rounding explains. A statistic may differ by this share of the largest value, plus
        half a unit of the last digit that a log printed.

    Returns
    -------
    dict
        `verdict` and `note`; where numbers were compared also `nonfinite` and `norm_ratio`.
    """
    x = _statistics_by_region(reference, field, index)
    y = _statistics_by_region(candidate, field, index)
    for side_name, side in (("reference", x), ("candidate", y)):
        if side is None or side.isnan().all():
            return {"verdict": "MISSING", "note": f"not in the {side_name}"}
    nonfinite = y[-1, -1]  # of the whole field
    if nonfinite > 0:
        return {"verdict": "NONFINITE", "nonfinite": int(nonfinite), "note": "as the run itself says"}
    x, y = x[:, :-1], y[:, :-1]  # (region, statistic), without the count of NaN and Inf
    on_both_sides = ~(x.isnan() | y.isnan())
    if not on_both_sides.any():
        return {"verdict": "MISSING", "note": "no statistic is on both sides"}
    # A statistic may differ by what rounding explains and by the digits that a log did not print.
    largest = torch.stack([x, y]).abs().nan_to_num(0.0).amax()
    print_error = sum(half_unit(trace, field, index) for trace in (reference, candidate))
    tolerance = allowed * largest + print_error
    differs = on_both_sides & ((y - x).abs() > tolerance)
    if differs.any():
        verdict, note = "DIVERGED", _note_of_difference(field, x, y, differs)
    else:
        verdict, note = "ALIKE", _note_of_agreement(on_both_sides)
    return {"verdict": verdict, "nonfinite": 0, "norm_ratio": _size_ratio(x[-1], y[-1]), "note": note}


def renumbered(reference: Trace, candidate: Trace) -> tuple[Trace, list[str]]:
    """Return the candidate with its states at the right knots, and a sentence where they were moved.

    A log that prints the state after each step and counts the steps from 0 has knot 1 at index 0. That shows
    where the states agree with the reference's next knots, and not with those of the same number.
    """
    name = "flow/x" + SUFFIX
    if name not in candidate or "flow/x" in candidate or not has_field(reference, "flow/x"):
        return candidate, []
    count = entry_count(candidate, "flow/x")
    if entry_count(reference, "flow/x") < count + 1 or not count:
        return candidate, []
    moved = torch.cat((torch.full_like(candidate[name][:1], float("nan")), candidate[name]))
    half_units = dict(candidate.attrs.get(HALF_UNITS, {}))
    if half_units.get("flow/x"):
        half_units["flow/x"] = [half_units["flow/x"][0], *half_units["flow/x"]]
    attrs = candidate.attrs | ({HALF_UNITS: half_units} if half_units else {})
    shifted = Trace(dict(candidate.data) | {name: moved}, attrs)

    def alike(trace: Trace, indices: range) -> int:
        verdicts = [compare_statistics(reference, trace, "flow/x", k, SAME_STATE)["verdict"] for k in indices]
        return verdicts.count("ALIKE")

    if alike(candidate, range(count)) == 0 and alike(shifted, range(1, count + 1)) == count:
        return shifted, [
            "flow/x is numbered by the steps that it was printed after, from 0: moved one knot on"
        ]
    return candidate, []


def hints(rows: pd.DataFrame) -> list[str]:
    """Return sentences about how the size of the ODE's state develops, judged by statistics alone."""
    states = rows[(rows["field"] == "flow/x") & rows["rel_l2"].isna() & rows["index"].notna()]
    sized = states[states["norm_ratio"].notna()]
    if not len(sized):
        return []
    found = []
    first, last = sized.iloc[0], sized.iloc[-1]
    starts_at_same_size = 1 / MAX_SAME_SIZE < first["norm_ratio"] < MAX_SAME_SIZE
    ends_at_other_size = not 1 / MIN_GROWTH < last["norm_ratio"] < MIN_GROWTH
    if starts_at_same_size and first["verdict"] == "DIVERGED":
        found.append(
            f"{place_of(first)}: extremes or signs differ while the size is the same "
            f"({first['norm_ratio']:.2f} times): did the runs start from other noise?"
        )
    if starts_at_same_size and ends_at_other_size:
        found.append(
            f"flow/x: of one size at {place_of(first)} ({first['norm_ratio']:.2f} times the reference's) "
            f"and {last['norm_ratio']:.2f} times at {place_of(last)}: other noise alone would not do that"
        )
    return found


def shape_differences(reference: Trace, candidate: Trace) -> list[str]:
    """Return a sentence for every shape that a log printed and that the other run does not have."""
    found = []
    for field in FIELDS:
        if field in reference and field in candidate:
            continue  # tensors on both sides: `compare` checks their shapes
        x, y = _shape(reference, field), _shape(candidate, field)
        if not x or not y:
            continue
        # A log does not name its axes and may add axes of length 1, so only the other lengths are compared.
        if sorted(n for n in x if n != 1) != sorted(n for n in y if n != 1):
            found.append(f"{field}: shapes {x} and {y}")
    return found


def _statistics_by_region(trace: Trace, field: str, index: int | None) -> Tensor | None:
    """Return statistics (region, 6), the whole field in the last row; None where there is no such entry."""
    if index is not None and index >= entry_count(trace, field):
        return None
    if field not in trace:
        recorded = trace[field + SUFFIX] if index is None else trace[field + SUFFIX][index]
        return recorded.double().reshape(-1, len(STATS))  # (3 or 1, 6)
    x = entry(trace, field, index)
    return summarise_regions(x, trace.prompt_frames) if _has_regions(field) else summarise(x)[None]


def _has_regions(field: str) -> bool:
    return "region" in dims_of(field + SUFFIX)


def _size_ratio(x: Tensor, y: Tensor) -> float:
    """Return how many times as large the candidate's field is; NaN where no statistic says so."""
    for name in SIZE_STATS:
        a, b = float(x[STATS.index(name)]), float(y[STATS.index(name)])
        if a > 0 and b == b:  # b is not NaN
            return b / a
    return float("nan")


def _note_of_agreement(compared: Tensor) -> str:
    """Name the statistics that were compared; `compared` is (region, 5)."""
    in_any_region = compared.any(0).tolist()
    names = [name for name, there in zip(VALUE_STATS, in_any_region, strict=True) if there]
    alone = " alone, which proves little" if names == ["mean"] else ""
    return f"{', '.join(names)} alike{alone}"


def _note_of_difference(field: str, x: Tensor, y: Tensor, differs: Tensor) -> str:
    """Name the statistics that differ, with their values: of the whole field, or else of one region."""
    regions = REGIONS if _has_regions(field) else ("whole",)
    row = max(k for k in range(len(regions)) if differs[k].any())  # the whole field is the last
    values = zip(VALUE_STATS, x[row].tolist(), y[row].tolist(), differs[row].tolist(), strict=True)
    text = ", ".join(f"{name} {a:.4g} and {b:.4g}" for name, a, b, is_far in values if is_far)
    return text if regions[row] == "whole" else f"{regions[row]}: {text}"


def _shape(trace: Trace, field: str) -> tuple[int, ...] | None:
    """Return the shape of a field, or of one entry of a loop; from a log, the shape that it printed."""
    if field in trace:
        return tuple(trace[field].shape[1 if loop_dimension(field) else 0 :])
    printed = trace.attrs.get("shapes", {}).get(field)
    return tuple(printed) if printed else None
