"""Any field of a trace, or one entry of it, as it is."""

from matplotlib.axes import Axes

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import BLUE, GREY, axis, colorbar, numbers, require, titled
from workbench.trace.schema import FIELDS, LOOPS, RATES, SUFFIX
from workbench.trace.trace import Trace


def field(trace: Trace, name: str, index: int | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw a field: a line over its one dimension, or an image of its two.

    Parameters
    ----------
    trace : Trace
    name : str
        Such as "flow/velocity_cond". Of fields with knots, steps or draws one entry is drawn, unless an
        entry is a single number.
    index : int, optional
        Which entry; the first unless given.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When the field or the entry was not recorded.
    """
    require(trace, name)
    values, dims, where = trace[name], trace.dims(name), name
    if name.endswith(SUFFIX):
        raise WorkbenchError(f"{name} is a table; trace.stats({name.removesuffix(SUFFIX)!r}) shows it")
    if dims[0] in LOOPS and len(dims) > 1:
        index = index or 0
        if not -len(values) <= index < len(values):
            raise WorkbenchError(f"{name} has {len(values)} entries; {index} is none of them")
        values, dims, where = values[index], dims[1:], f"{name}[{index}]"
    ax = axis(ax, (8, 3.0), trace)
    unit = FIELDS[name].unit
    rate = trace.sample_rate if dims[-1] == "sample" else RATES.get(dims[-1])
    start = -trace.prompt_frames if dims[-1] == "frame" else 0
    if len(dims) == 1:
        ax.plot(
            [(start + i) / (rate or 1) for i in range(len(values))], numbers(values), color=BLUE, linewidth=1
        )
        ax.set_ylabel(unit or dims[-1])
    else:
        span = (start / (rate or 1), (start + values.shape[1]) / (rate or 1), 0, len(values))
        image = ax.imshow(
            numbers(values),
            origin="lower",
            aspect="auto",
            extent=span,
            cmap="viridis",
            interpolation="nearest",
        )
        ax.set_ylabel(dims[0])
        colorbar(image, ax, unit or "value")
    if start:
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlabel(f"seconds{' of the target; the prompt is before 0' if start else ''}" if rate else dims[-1])
    titled(ax, f"{where}: {FIELDS[name].meaning}")
    return ax
