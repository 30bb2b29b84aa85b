"""How far printing may have moved the statistics of a run: half a unit of the last digit.

A log says it for every number that it prints. Statistics that came another way show it by themselves: all of
them have so many digits, or decimals, or the precision of float16.
"""

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.schema import SUFFIX, VALUE_STATS, dims_of
from workbench.trace.storage import storage_of
from workbench.trace.trace import Trace

HALF_UNITS = "half_units"  # attribute of a trace: {field: half units, nested lists (entries, statistics)}


def with_half_units(trace: Trace) -> Trace:
    """Return a trace that says how coarse its statistics are, where all of them show it."""
    names = [name for name in trace if name.endswith(SUFFIX)]
    if not names or HALF_UNITS in trace.attrs:
        return trace
    form = storage_of(torch.cat([trace[name][..., :-1].double().flatten() for name in names]))
    if form is None:
        return trace
    half_units = {}
    for name in names:
        half_unit = form.spacing_at(trace[name].double().nan_to_num(0.0)) / 2
        if "region" in dims_of(name):
            half_unit = half_unit.amax(-2)
        half_units[name.removesuffix(SUFFIX)] = half_unit.tolist()
    return Trace(trace.data, trace.attrs | {HALF_UNITS: half_units})


def half_unit(trace: Trace, field: str, index: int | None) -> Tensor:
    """Return half a unit of the last printed digit of each statistic but the count (5,); zeros if unknown.

    `index` is an entry of a field with one for each step; None gives those of all entries (..., 5).
    """
    printed = trace.attrs.get(HALF_UNITS, {}).get(field) if field not in trace else None
    if printed is None:
        return torch.zeros(len(VALUE_STATS), dtype=torch.float64)
    try:
        half_units = printed if index is None else printed[index]
        return torch.tensor(half_units, dtype=torch.float64)[..., : len(VALUE_STATS)]
    except (TypeError, ValueError, IndexError) as error:
        raise WorkbenchError(f"{HALF_UNITS} of {field} is not a number for every statistic") from error
