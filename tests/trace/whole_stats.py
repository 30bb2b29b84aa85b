"""What a test expects of the statistics of a field, whether a trace holds the field or its statistics alone."""

from torch import Tensor

from workbench.trace.record import summarise
from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace, whole_region


def whole_stats(trace: Trace, name: str, index: int | None = None) -> Tensor:
    """Return `STATS` (6,) of a field over all its frames, or of one entry of the field."""
    if name in trace:
        return summarise(trace[name] if index is None else trace[name][index])
    kept = trace[name + SUFFIX]
    return whole_region(name + SUFFIX, kept if index is None else kept[index])
