"""`Verdict`: what explains one group of wrong results."""

from dataclasses import dataclass

from workbench.diagnose.suspects.catalogue.faults import HEALTHY, Faults


@dataclass(frozen=True)
class Verdict:
    """What explains the wrong results of one group.

    Attributes
    ----------
    fields : tuple of str
    places : tuple of str
        The wrong results, such as "flow/x[3]".
    faults : tuple of Fault
        They explain all of these results; empty where no known fault does.
    ties : tuple of Fault
        Faults that explain them as well as the first of `faults` does.
    reason : str
        Why no fault is named; empty where one is.
    """

    fields: tuple[str, ...]
    places: tuple[str, ...]
    faults: Faults = HEALTHY  # no fault
    ties: Faults = HEALTHY
    reason: str = ""
