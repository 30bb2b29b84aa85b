"""Figures of any field of a trace, or of one entry of it: alone, and of two traces with their difference."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    as_float64,
    check_region,
    colorbar,
    frames_of,
    grid,
    require,
    set_title,
    single_axes,
)
from workbench.show.plots.palette import BLUE, COLORS, DIVERGING_COLORS, GREY, VERMILLION
from workbench.trace.schema import FIELDS, LOOPS, RATES, SUFFIX
from workbench.trace.trace import Trace


class _Picture(NamedTuple):
    """One entry of a field, and where it lies in time."""

    values: NDArray[np.float64]  # (n,) or (height, n)
    title: str
    dim: str  # along x
    start: float  # seconds, or entries where the dimension has no rate
    rate: float  # entries per second, or 1


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
    picture = _picture(trace, name, index, region)
    ax = single_axes(ax, (8, 3.0), trace)
    if picture.values.ndim == 1:
        _draw_line(ax, picture, BLUE)
        ax.set_ylabel(FIELDS[name].unit or picture.dim)
    else:
        _draw_image(ax, picture, *_limits(picture.values), COLORS, FIELDS[name].unit or "value")
        ax.set_ylabel(trace.dims(name)[-2])
    _label_time(ax, picture)
    set_title(ax, f"{picture.title}: {FIELDS[name].meaning}")
    return ax


def field_pair(
    reference: Trace,
    candidate: Trace,
    name: str,
    index: int | None = None,
    *,
    region: str = "target",
    axes: NDArray[np.object_] | None = None,
    names: tuple[str, str] = ("reference", "candidate"),
) -> NDArray[np.object_]:
    """Draw a field of two traces in one scale, and their difference.

    Parameters
    ----------
    reference, candidate : Trace
    name : str
    index : int, optional
        The entry, as in `field`.
    region : {"target", "prompt", "whole"}
        As in `field`.
    axes : array of Axes, optional
        Three of them.
    names : (str, str)
        What the two are called.

    Returns
    -------
    array (3,) of Axes
        Reference, candidate, and candidate minus reference over the entries that both have.

    Raises
    ------
    WorkbenchError
        When the field or the entry was not recorded, or the two have another height.

    Examples
    --------
    >>> axes = wb.plots.field_pair(trace, trace, "flow/velocity", 3)
    """
    pictures = [_picture(one, name, index, region) for one in (reference, candidate)]
    ours, theirs = (picture.values for picture in pictures)
    if ours.shape[:-1] != theirs.shape[:-1]:
        raise WorkbenchError(f"{name} has shapes {ours.shape} and {theirs.shape}; expected the same height")
    shared = min(ours.shape[-1], theirs.shape[-1])
    with np.errstate(invalid="ignore"):  # Inf - Inf
        difference = theirs[..., :shared] - ours[..., :shared]
    low, high = _limits(np.concatenate((ours.ravel(), theirs.ravel())))
    panels = grid(axes, (3, 1), (8, 6.0), reference, candidate, names=names)
    unit = FIELDS[name].unit or "value"
    for ax, picture, label in zip(panels, pictures, names, strict=False):
        if ours.ndim == 1:
            _draw_line(ax, picture, BLUE)
            ax.set_ylim(low, high)
            ax.set_ylabel(unit)
        else:
            _draw_image(ax, picture, low, high, COLORS, unit)
            ax.set_ylabel(reference.dims(name)[-2])
        set_title(ax, f"{picture.title}, {label}: {FIELDS[name].meaning}")
    _, largest = _limits(np.abs(difference))
    both = pictures[0]._replace(values=difference)
    if ours.ndim == 1:
        _draw_line(panels[2], both, VERMILLION)
        panels[2].set_ylabel(unit)
    else:
        _draw_image(panels[2], both, -largest, largest, DIVERGING_COLORS, unit)
        panels[2].set_ylabel(reference.dims(name)[-2])
    finite = difference[np.isfinite(difference)]
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else np.nan
    set_title(panels[2], f"{names[1]} - {names[0]}: rms {rms:.3g} {FIELDS[name].unit or ''}")
    _label_time(panels[2], both)
    return panels


def _picture(trace: Trace, name: str, index: int | None, region: str) -> _Picture:
    """Return one entry of a field, cut to a region."""
    require(trace, name)
    check_region(region)
    if name.endswith(SUFFIX):
        raise WorkbenchError(f"{name} is a table; trace.stats({name.removesuffix(SUFFIX)!r}) shows it")
    values = trace[name]
    dims = trace.dims(name)
    title = name
    if dims[0] in LOOPS and len(dims) > 1:
        index = index or 0
        if not -len(values) <= index < len(values):
            raise WorkbenchError(f"{name} has {len(values)} entries; {index} is none of them")
        values = values[index]
        title = f"{name}[{index}]"
    start = 0  # entries before the target
    if dims[-1] == "frame" and trace.prompt_frames:
        values, start = frames_of(trace, values, region)
        title = f"{title}, {region}"  # an error may lie in the frames that are not drawn
    rate = trace.sample_rate if dims[-1] == "sample" else RATES.get(dims[-1], 1)
    return _Picture(as_float64(values), title, dims[-1], start / rate, rate)


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the range of the finite values, never an empty one."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() == finite.max():
        middle = float(finite[0]) if finite.size else 0.0
        return middle - 0.5, middle + 0.5
    return float(finite.min()), float(finite.max())


def _label_time(ax: Axes, picture: _Picture) -> None:
    if picture.start:
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    seconds = "seconds of the target; the prompt is before 0" if picture.start else "seconds"
    ax.set_xlabel(seconds if picture.rate != 1 else picture.dim)


def _draw_line(ax: Axes, picture: _Picture, color: str) -> None:
    x = picture.start + np.arange(len(picture.values)) / picture.rate
    ax.plot(x, picture.values, color=color, linewidth=1)


def _draw_image(ax: Axes, picture: _Picture, low: float, high: float, colors: str, label: str) -> None:
    height, width = picture.values.shape
    image = ax.imshow(
        picture.values,
        origin="lower",
        aspect="auto",
        extent=(picture.start, picture.start + width / picture.rate, 0, height),
        vmin=low,
        vmax=high,
        cmap=colors,
        interpolation="nearest",
    )
    colorbar(image, ax, label)
