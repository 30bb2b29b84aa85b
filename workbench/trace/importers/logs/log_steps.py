"""Decide to which step of the ODE each line of a text log belongs.

An ODE of n steps has n velocities and n + 1 states, which are called knots. Step k leads from knot k to knot
k + 1, both counted from 0 in a trace. A log may count steps from 0 or from 1.
"""

from collections import Counter

from workbench.trace.importers.logs.log_lines import IDS, LogLine, PrintedValue
from workbench.trace.importers.logs.log_names import TensorName
from workbench.trace.schema import FIELDS, LOOPS

# Logs print the width of a step under this name. The schema has no field for it, but the widths add up to the
# times of the knots, flow/t.
STEP_WIDTH = "dt"


def is_looped(field: str) -> bool:
    """Whether a field has one entry for each knot or step of the ODE, or for each token that the LM draws."""
    return FIELDS[field].dims[0] in LOOPS


def needs_step(value: PrintedValue) -> bool:
    """Whether a number belongs to a step or knot, so that its place is unknown without a step.

    The final state is the exception: the table of names marks it as the "last" knot.
    """
    if value.tensor is None:
        return value.kind == STEP_WIDTH
    return is_looped(value.tensor.field) and value.tensor.knot != "last" and value.kind != IDS


def counts_from_zero(lines: list[LogLine]) -> bool:
    """Whether a source calls its first step 0, whatever first step the table of names gives.

    A velocity or a width at step 0 proves it. A state does not: "step 0: x" may be the noise before step 1.
    """
    values_at_zero = [value for line in lines if line.step == 0 for value in line.values]
    return any(needs_step(value) and not _is_state(value) for value in values_at_zero)


def _is_state(value: PrintedValue) -> bool:
    """Whether a number belongs to a state of the ODE; the table gives a knot to states alone."""
    return value.tensor is not None and value.tensor.knot != ""


def _keys(values: tuple[PrintedValue, ...]) -> set[tuple[TensorName | None, str]]:
    """Return which statistics of which tensors are printed."""
    return {(value.tensor, value.kind) for value in values}


def merge_below_headings(lines: list[LogLine]) -> list[LogLine]:
    """Merge the lines below one heading into one line, as long as no statistic repeats.

    A heading is a line without numbers, such as the first one here. The three lines below it become one line,
    which prints x, mu and spks:

        [PY CFG inputs]
          x_in: mean=0.5
          mu_in[0]: mean=0.25
          spks_in[0]: mean=0.125
    """
    merged: list[LogLine] = []
    for line in lines:
        last = merged[-1] if merged else None
        same_section = last is not None and last.heading == line.heading and last.step == line.step
        if same_section and _keys(last.values).isdisjoint(_keys(line.values)):
            merged[-1] = last._replace(values=last.values + line.values)
        else:
            merged.append(line)
    return merged


def number_steps(lines: list[LogLine], steps: range) -> list[LogLine]:
    """Give a step to each line of the ODE that prints none.

    Such lines wait for the next line that prints a step, and belong to that step. In this log the mean of the
    velocity "v1" is of step 3:

        [PY CFM] v1 mean=0.5
        [PY ODE] step 3: x max=3.0

    If another line without a step, or the end of the log, comes first, the waiting lines are counted from the
    first step on.

    Parameters
    ----------
    lines : list of LogLine
        Lines of one source.
    steps : range
        Numbers that a step may have. Lines whose counted step is outside are dropped.
    """
    numbered: list[LogLine] = []
    waiting: list[LogLine] = []
    for line in lines:
        if line.step is None and any(needs_step(value) for value in line.values):
            waiting.append(line)
        else:
            numbered += _count_steps(waiting, line.step, steps)
            waiting = []
            numbered.append(line)
    numbered += _count_steps(waiting, None, steps)
    return numbered


def _count_steps(waiting: list[LogLine], next_step: int | None, steps: range) -> list[LogLine]:
    """Number the waiting lines.

    Parameters
    ----------
    waiting : list of LogLine
        Lines of the ODE without a step.
    next_step : int or None
        Step that the line after them prints. Then lines are counted backwards: the last mean of a velocity is
        of that step, the mean before it of the step before. Without it lines are counted forwards: the first
        mean is of the first step, the second mean of the second step.
    steps : range
        As in `number_steps`.
    """
    backwards = next_step is not None
    repeats: Counter[tuple[TensorName | None, str]] = Counter()  # how often each statistic was printed so far
    numbered = []
    for line in reversed(waiting) if backwards else waiting:
        looped_values = tuple(value for value in line.values if needs_step(value))
        keys = _keys(looped_values)
        # How many steps this line is away from the step that counting begins with.
        steps_away = max(repeats[key] for key in keys)
        repeats.update(keys)
        step = next_step - steps_away if backwards else steps.start + steps_away
        if step in steps:
            numbered.append(line._replace(step=step))
    if backwards:
        numbered.reverse()
    return numbered
