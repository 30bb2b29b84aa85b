"""Figures of the mel: the target's, how two differ, and how it comes out of the noise."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    GREY,
    SPEECH,
    VERMILLION,
    axis,
    colorbar,
    first_step,
    grid,
    numbers,
    require,
    seconds_axis,
    titled,
)
from workbench.trace.schema import FIELDS
from workbench.trace.trace import Trace

MOST_KNOTS = 12  # panels of mel_steps unless knots are asked for
COLUMNS = 4
DIVERGING = "PuOr_r"
UNIT = FIELDS["flow/mel"].unit


def mel(trace: Trace, *, ax: Axes | None = None) -> Axes:
    """Draw the log-mel of the target; NaN and Inf are vermillion.

    Parameters
    ----------
    trace : Trace
        With `flow/mel`.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When there is no `flow/mel`.
    """
    require(trace, "flow/mel")
    values = numbers(trace["flow/mel"])
    ax = axis(ax, (8, 3.4), trace)
    image = _image(ax, values, 0, *_limits(values), "viridis")
    ax.set_ylabel("mel bin")
    titled(ax, trace.attrs.get("text", ""))
    seconds_axis(ax, trace)
    colorbar(image, ax, f"log-mel ({UNIT})")
    return ax


def mel_difference(reference: Trace, candidate: Trace, *, ax: Axes | None = None) -> Axes:
    """Draw the candidate's log-mel minus the reference's, over the frames that both have.

    Parameters
    ----------
    reference, candidate : Trace
        With `flow/mel`.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When one has no `flow/mel`, or their bins differ.
    """
    for side in (reference, candidate):
        require(side, "flow/mel")
    x, y = (numbers(side["flow/mel"]) for side in (reference, candidate))
    if len(x) != len(y):
        raise WorkbenchError(f"flow/mel has {len(x)} and {len(y)} bins; expected as many on both sides")
    frames = min(x.shape[1], y.shape[1])
    with np.errstate(invalid="ignore"):
        apart = y[:, :frames] - x[:, :frames]
    finite = apart[np.isfinite(apart)]
    largest = float(np.abs(finite).max(initial=0.0)) or 1.0
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else np.nan
    ax = axis(ax, (8, 3.6), reference, candidate)
    image = _image(ax, apart, 0, -largest, largest, DIVERGING)
    ax.set_ylabel("mel bin")
    lengths = f"; frames: {x.shape[1]} and {y.shape[1]}" if x.shape != y.shape else ""
    titled(ax, f"candidate - reference: rms {rms:.3g}{lengths}")
    seconds_axis(ax, candidate)
    colorbar(image, ax, f"difference ({UNIT})")
    return ax


def mel_steps(
    trace: Trace, *, knots: Sequence[int] | None = None, axes: Sequence[Axes] | None = None
) -> NDArray[np.object_]:
    """Draw the state of the ODE at its knots, from noise to mel, in one colour scale.

    Parameters
    ----------
    trace : Trace
        With `flow/x`. The target begins at 0 s, the prompt before it.
    knots : sequence of int, optional
        Entries of `flow/x`; all of them, or 12 from the first to the last.
    axes : sequence of Axes, optional
        One a knot.

    Returns
    -------
    array (n_knots,) of Axes

    Raises
    ------
    WorkbenchError
        When there is no `flow/x`, or not so many knots.
    """
    require(trace, "flow/x")
    x, cut = trace["flow/x"], trace.prompt_frames
    if knots is None:
        knots = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_KNOTS)).round().astype(int)).tolist()
    if not knots or not all(0 <= k < len(x) for k in knots):
        raise WorkbenchError(f"knots are {list(knots)}; expected some of 0 to {len(x) - 1}")
    values = [numbers(x[k]) for k in knots]
    low, high = _limits(np.stack(values))
    columns = min(COLUMNS, len(knots))
    rows = -(-len(knots) // columns)
    spare = []
    if axes is None:
        axes = grid(None, (rows, columns), (10, 1 + 1.7 * rows), trace)
        axes, spare = axes[: len(knots)], axes[len(knots) :]
    else:
        axes = grid(axes, (1, len(knots)), (0, 0))
    for number, (ax, k, value) in enumerate(zip(axes, knots, values, strict=True)):
        image = _image(ax, value, -cut / SPEECH.mel.frame_rate, low, high, "viridis")
        if 0 < cut < value.shape[1]:
            ax.axvline(0, color="white", linewidth=2.4)
            ax.axvline(0, color="black", linewidth=1.2, linestyle="--")
        time = f", t = {float(trace['flow/t'][k]):.3f}" if "flow/t" in trace else ""
        titled(ax, f"knot {first_step(trace) + k}{time}")
        ax.tick_params(labelleft=number % columns == 0)
        if number + columns >= len(knots):
            ax.set_xlabel("seconds (prompt < 0)" if cut else "seconds")
            ax.tick_params(labelbottom=True)
        if number % columns == 0:
            ax.set_ylabel("mel bin")
    for ax in spare:
        ax.set_axis_off()
    colorbar(image, [*axes, *spare], f"log-mel ({UNIT})")
    return axes


def _image(ax: Axes, values: NDArray, start: float, low: float, high: float, colors: str) -> AxesImage:
    """Show mel bins by frames; what is not finite is vermillion."""
    bins, frames = values.shape
    image = ax.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(start, start + frames / SPEECH.mel.frame_rate, 0, bins),
        vmin=low,
        vmax=high,
        cmap=colors,
    )
    image.set_cmap(image.get_cmap().with_extremes(bad=VERMILLION))
    if bad := int((~np.isfinite(values)).sum()):
        ax.text(
            0.99,
            0.96,
            f"{bad} NaN or Inf",
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": GREY},
            color="black",
        )
    return image


def _limits(values: NDArray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
