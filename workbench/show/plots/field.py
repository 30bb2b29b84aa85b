"""The figure of any field of a trace, or of one entry of it."""

from matplotlib.axes import Axes
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    as_float64,
    check_region,
    colorbar,
    frames_of,
    require,
    set_title,
    single_axes,
)
from workbench.show.plots.palette import BLUE, COLORS, GREY
from workbench.trace.schema import FIELDS, LOOPS, RATES, SUFFIX
from workbench.trace.trace import Trace


def field(
    trace: Trace, name: str, index: int | None = None, *, region: str = "target", ax: Axes | None = None
) -> Axes:
    """Draw a field: a line if it has one dimension, an image if it has two.

    Parameters
    ----------
    trace : Trace
    name : str
        Such as "flow/velocity_cond". Of a field with knots, steps or draws one entry is drawn, unless its
        entries are single numbers.
    index : int, optional
        The entry; the first unless given.
    region : {"target", "prompt", "whole"}
        The frames that are drawn, of a field that has those of the prompt as well.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When the field or the entry was not recorded, or there is no such region.

    Examples
    --------
    >>> ax = wb.plots.field(trace, "flow/velocity_cond", 3)
    """
    require(trace, name)
    check_region(region)
    if name.endswith(SUFFIX):
        raise WorkbenchError(f"{name} is a table; trace.stats({name.removesuffix(SUFFIX)!r}) shows it")
    values = trace[name]
    dims = trace.dims(name)
    title = name
    has_entries = dims[0] in LOOPS and len(dims) > 1
    if has_entries:
        index = index or 0
        if not -len(values) <= index < len(values):
            raise WorkbenchError(f"{name} has {len(values)} entries; {index} is none of them")
        values = values[index]
        dims = dims[1:]
        title = f"{name}[{index}]"
    ax = single_axes(ax, (8, 3.0), trace)
    start = 0  # entries before the target
    if dims[-1] == "frame" and trace.prompt_frames:
        values, start = frames_of(trace, values, region)
        title = f"{title}, {region}"  # an error may lie in the frames that are not drawn
    rate = trace.sample_rate if dims[-1] == "sample" else RATES.get(dims[-1])  # entries per second, or None
    if len(dims) == 1:
        _draw_line(ax, values, start, rate or 1)
        ax.set_ylabel(FIELDS[name].unit or dims[-1])
    else:
        _draw_image(ax, values, start, rate or 1, FIELDS[name].unit or "value")
        ax.set_ylabel(dims[0])
    if start:
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    seconds = "seconds of the target; the prompt is before 0" if start else "seconds"
    ax.set_xlabel(seconds if rate else dims[-1])
    set_title(ax, f"{title}: {FIELDS[name].meaning}")
    return ax


def _draw_line(ax: Axes, values: Tensor, start: int, rate: float) -> None:
    x = [(start + i) / rate for i in range(len(values))]
    ax.plot(x, as_float64(values), color=BLUE, linewidth=1)


def _draw_image(ax: Axes, values: Tensor, start: int, rate: float, label: str) -> None:
    height, width = values.shape
    image = ax.imshow(
        as_float64(values),
        origin="lower",
        aspect="auto",
        extent=(start / rate, (start + width) / rate, 0, height),
        cmap=COLORS,
        interpolation="nearest",
    )
    colorbar(image, ax, label)
