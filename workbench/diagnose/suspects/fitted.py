"""Fit the parameter of a fault to what a candidate recorded, such as the rate of its guidance."""

from collections.abc import Iterable, Sequence

from workbench.diagnose.suspects.catalogue.faults import HEALTHY, Fault
from workbench.diagnose.suspects.catalogue.kind_makers import Kind, LinearParameter
from workbench.diagnose.suspects.observations import Observation

DIGITS = 5  # of a fitted value; more would be rounding
MIN_CHANGE = 1e-3  # share by which a fitted value differs from the right one and from those that are listed


def fitted_faults(kinds: Iterable[Kind], observations: Sequence[Observation]) -> list[Fault]:
    """Return for each kind with a linear parameter the fault whose value fits the candidate's record."""
    found = []
    for kind in kinds:
        if kind.linear:
            value = fitted_value(kind.linear, observations)
            known = (kind.linear.right, *kind.linear.listed)
            if value is not None and all(abs(value - one) > MIN_CHANGE * abs(one) for one in known):
                found.append(kind.linear.with_value(value))
    return found


def fitted_value(parameter: LinearParameter, observations: Sequence[Observation]) -> float | None:
    """Return the value of a parameter that fits the first record of its field; None where nothing can.

    The field depends on the value linearly, so two predictions tell all others. The best one is taken by
    least squares; the search then asks whether it gives what was recorded.
    """
    usable = [one for one in observations if one.field == parameter.field and not one.is_statistics]
    if not usable:
        return None
    first = min(usable, key=lambda one: one.index or 0)
    healthy = first.predict(HEALTHY)
    further = first.predict((parameter.with_value(parameter.right + 1),))
    if healthy is None or further is None or not first.found.shape == healthy.shape == further.shape:
        return None
    slope, error = (further - healthy).double(), (first.found - healthy).double()
    if not float(slope.norm()) or not bool(error.isfinite().all()):
        return None
    value = parameter.right + float((error * slope).sum() / slope.square().sum())
    return float(f"{value:.{DIGITS}g}")
