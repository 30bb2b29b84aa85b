"""Figures of the mel: that of the target, the difference of two, and its way from noise through the ODE."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    SIDES,
    Names,
    as_float64,
    check_region,
    colorbar,
    first_step,
    frames_of,
    grid,
    require,
    seconds_axis,
    set_title,
    single_axes,
)
from workbench.show.plots.palette import COLORS, DIVERGING_COLORS, GREY, VERMILLION
from workbench.speech.config import RELEASED
from workbench.trace.schema import FIELDS
from workbench.trace.trace import Trace

MAX_KNOTS = 12  # panels of mel_steps unless knots are given
COLUMNS = 4  # panels in a row of mel_steps
UNIT = FIELDS["flow/mel"].unit


def mel(trace: Trace, *, ax: Axes | None = None) -> Axes:
    """Draw the log-mel of the target; NaN and Inf are vermillion.

    Parameters
    ----------
    trace : Trace
        With `flow/mel`.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When there is no `flow/mel`.

    Examples
    --------
    >>> ax = wb.plots.mel(trace)
    """
    require(trace, "flow/mel")
    values = as_float64(trace["flow/mel"])  # (M, T)
    ax = single_axes(ax, (8, 3.4), trace)
    low, high = _value_limits(values)
    image = _draw_image(ax, values, 0, low, high, COLORS)
    ax.set_ylabel("mel bin")
    set_title(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    colorbar(image, ax, f"log-mel ({UNIT})")
    return ax


def mel_difference(
    reference: Trace, candidate: Trace, *, names: Names = SIDES, ax: Axes | None = None
) -> Axes:
    """Draw the candidate's log-mel minus the reference's, over the frames that both have.

    Parameters
    ----------
    reference, candidate : Trace
        With `flow/mel`.
    names : (str, str)
        What the figure calls reference and candidate.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When one has no `flow/mel`, or their numbers of bins differ.

    Examples
    --------
    >>> one_step = pipe.replay(trace, "flow", voice.options.but(n_timesteps=1))
    >>> ax = wb.plots.mel_difference(trace, one_step)
    """
    require(reference, "flow/mel")
    require(candidate, "flow/mel")
    ours = as_float64(reference["flow/mel"])  # (M, T)
    theirs = as_float64(candidate["flow/mel"])
    if len(ours) != len(theirs):
        raise WorkbenchError(
            f"flow/mel has {len(ours)} and {len(theirs)} bins; expected as many on both sides"
        )
    frames = min(ours.shape[1], theirs.shape[1])
    with np.errstate(invalid="ignore"):  # Inf - Inf
        difference = theirs[:, :frames] - ours[:, :frames]
    finite = difference[np.isfinite(difference)]
    largest = float(np.abs(finite).max(initial=0.0)) or 1.0  # of equal mels any range will do
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else np.nan
    ax = single_axes(ax, (8, 3.6), reference, candidate, names=names)
    image = _draw_image(ax, difference, 0, -largest, largest, DIVERGING_COLORS)
    ax.set_ylabel("mel bin")
    lengths = f"; frames: {ours.shape[1]} and {theirs.shape[1]}" if ours.shape != theirs.shape else ""
    set_title(ax, f"{names[1]} - {names[0]}: rms {rms:.3g} {UNIT}{lengths}")
    seconds_axis(ax, candidate)
    colorbar(image, ax, f"difference ({UNIT})")
    return ax


def mel_steps(
    trace: Trace,
    *,
    knots: Sequence[int] | None = None,
    region: str = "target",
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """Draw the state of the ODE at its knots, from noise to mel, in one colour scale.

    Parameters
    ----------
    trace : Trace
        With `flow/x`. The target begins at 0 s, the prompt before it.
    knots : sequence of int, optional
        Entries of `flow/x`. Default: all, or 12 of them from the first to the last.
    region : {"target", "prompt", "whole"}
        The frames that are drawn. The prompt has negative seconds.
    axes : sequence of Axes, optional
        One per knot.

    Returns
    -------
    array (n_knots,) of Axes

    Raises
    ------
    WorkbenchError
        When there is no `flow/x`, no such knot, or no such region.

    Examples
    --------
    >>> axes = wb.plots.mel_steps(trace, knots=[0, 5, 10])
    """
    require(trace, "flow/x")
    x = trace["flow/x"]  # (K, M, T)
    check_region(region)
    x, first_frame = frames_of(trace, x, region)
    if knots is None:
        count = min(len(x), MAX_KNOTS)
        knots = np.unique(np.linspace(0, len(x) - 1, count).round().astype(int)).tolist()
    if not knots or not all(0 <= k < len(x) for k in knots):
        raise WorkbenchError(f"knots are {list(knots)}; expected some of 0 to {len(x) - 1}")
    values = [as_float64(x[k]) for k in knots]
    low, high = _value_limits(np.stack(values))
    columns = _columns(len(knots))
    if axes is None:
        rows = math.ceil(len(knots) / columns)
        panels = grid(None, (rows, columns), (10, 1 + 1.7 * rows), trace)
        for ax in panels[len(knots) :]:
            ax.set_axis_off()
    else:
        panels = grid(axes, (1, len(knots)), (0, 0))
    for number, (ax, k) in enumerate(zip(panels, knots, strict=False)):  # a last row may have spare panels
        image = _draw_image(ax, values[number], first_frame / RELEASED.mel.frame_rate, low, high, COLORS)
        if -x.shape[2] < first_frame < 0:
            ax.axvline(0, color="white", linewidth=2.4)  # the white edge shows on dark values
            ax.axvline(0, color="black", linewidth=1.2, linestyle="--")
        time = f", t = {float(trace['flow/t'][k]):.3f}" if "flow/t" in trace else ""
        set_title(ax, f"knot {first_step(trace) + k}{time}")
        is_leftmost = number % columns == 0
        is_lowest = number >= columns * ((len(knots) - 1) // columns)  # the last row
        ax.tick_params(labelleft=is_leftmost)
        if is_leftmost:
            ax.set_ylabel("mel bin")
        if is_lowest:
            ax.set_xlabel("seconds (prompt < 0)" if first_frame else "seconds")
        ax.tick_params(labelbottom=is_lowest)
    colorbar(image, panels, f"log-mel ({UNIT})")
    return panels[: len(knots)]


def _columns(count: int) -> int:
    """Return how many panels stand in a row: of 4 and 3 the number that leaves the fewest places empty."""
    if count <= COLUMNS:
        return count
    return min((COLUMNS, COLUMNS - 1), key=lambda columns: -count % columns)


def _draw_image(ax: Axes, values: NDArray, start: float, low: float, high: float, colors: str) -> AxesImage:
    """Draw mel bins over time from `start` (seconds); count and colour values that are not finite."""
    bins, frames = values.shape
    image = ax.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(start, start + frames / RELEASED.mel.frame_rate, 0, bins),
        vmin=low,
        vmax=high,
        cmap=colors,
    )
    image.set_cmap(image.get_cmap().with_extremes(bad=VERMILLION))
    nonfinite = int((~np.isfinite(values)).sum())
    if nonfinite:
        ax.text(
            0.99,
            0.96,
            f"{nonfinite} NaN or Inf",
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": GREY},
            color="black",
        )
    return image


def _value_limits(values: NDArray) -> tuple[float, float]:
    """Return the range of the finite values, never an empty one."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low = float(finite.min())
    high = float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
