"""What all figures have in common: axes, colours, a time axis in seconds, what stands below, what is lacking.

Figures are white with dark ink, whatever the theme around them: no grey has a contrast of 4.5 against both
white and a dark page. Axes that are passed in keep their own style, and what is added takes over their ink.
"""

import textwrap
from collections.abc import Iterable, Sequence
from threading import current_thread, main_thread
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.show.plots.provenance import provenance
from workbench.speech.config import Config
from workbench.trace.schema import FIELDS, SUFFIX
from workbench.trace.trace import Trace

# Okabe and Ito, "Color Universal Design", 2008.
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"  # contrast of 4.5 against white
SPEECH = Config()  # rates and limits that every CosyVoice3 shares
SMALL = 7  # points: what stands below a figure
LINE = 150  # characters below a figure of 8 inches


class Look(NamedTuple):
    """How a line is drawn; the marker tells it apart in print."""

    color: str
    marker: str


REGION_LOOKS = {"prompt": Look(ORANGE, "s"), "target": Look(BLUE, "o"), "whole": Look(GREEN, "D")}


def axis(ax: Axes | None, size: tuple[float, float], *traces: Trace) -> Axes:
    """Return the axes given, or those of a new figure with the provenance of `traces` below it."""
    return ax if ax is not None else grid(None, (1, 1), size, *traces)[0]


def grid(
    axes: Sequence[Axes] | None, shape: tuple[int, int], size: tuple[float, float], *traces: Trace
) -> NDArray[np.object_]:
    """Return the axes given, or those of a new figure, row by row; they share their x axis.

    Parameters
    ----------
    axes : sequence of Axes, optional
        Of any shape, as many as there are panels.
    shape : tuple of int
        Rows and columns.
    size : tuple of float
        Inches.
    *traces : Trace
        Those whose provenance stands below a new figure: one, or reference and candidate.
    """
    count = shape[0] * shape[1]
    if axes is not None:
        given = np.asarray(axes, dtype=object).ravel()
        if len(given) != count:
            raise WorkbenchError(f"axes holds {len(given)}; expected {count}, one a panel")
        return given
    # The first figure loads the backend, which turns a notebook's display on: not within a style, whose end
    # would turn it off. A thread's figure must not come up under the cell that happens to run meanwhile.
    new = plt.figure if current_thread() is main_thread() else Figure
    fig = new(figsize=size, layout="constrained", facecolor="white")
    with plt.style.context("default"):
        made = fig.subplots(*shape, sharex=True, squeeze=False)
        lines = [provenance(trace) for trace in traces]
        if len(traces) == 2:
            lines = [f"{who}: {line}" for who, line in zip(("reference", "candidate"), lines, strict=True)]
        if lines:
            width = round(LINE * size[0] / 8)
            text = "\n".join(part for line in lines for part in textwrap.wrap(line, width))
            fig.supxlabel(text, fontsize=SMALL, x=0.01, ha="left", parse_math=False)
    return made.ravel()


def let_go(thing: object) -> None:
    """Take a figure that is shown elsewhere off pyplot's list, or the cell would show it again."""
    for item in thing.flat if isinstance(thing, np.ndarray) else [thing]:
        if isinstance(item, Axes):
            plt.close(item.get_figure(root=True))


def require(trace: Trace, *names: str) -> None:
    """Raise a WorkbenchError that says what to record, where a field is lacking or is empty."""
    missing = [name for name in names if name not in trace]
    if missing:
        summed = [name for name in missing if name + SUFFIX in trace]
        only = f" (of {', '.join(summed)} only statistics were kept)" if summed else ""
        globs = ", ".join(repr(name) for name in missing)
        raise WorkbenchError(
            f"the trace lacks {', '.join(missing)}{only}; record it with save=wb.EVERYTHING or "
            f"save=({globs},), in a run that goes so far"
        )
    for name in names:
        if not trace[name].numel():
            raise WorkbenchError(
                f"{name} has shape {tuple(trace[name].shape)} and nothing in it; expected "
                f"({', '.join(FIELDS[name].dims)}) of a run that spoke"
            )


def sides_of(trace: Trace, reference: Trace | None) -> list[tuple[Trace, bool]]:
    """Return what is drawn in which order, and whether it is the reference."""
    return [*([] if reference is None else [(reference, True)]), (trace, False)]


def first_step(trace: Trace) -> int:
    """Return the number of the first step that was recorded."""
    return trace.attrs.get("first_step", 0)


def numbers(x: Tensor) -> NDArray[np.float64]:
    """Return a tensor of any type as float64."""
    return x.double().numpy()


def ink(ax: Axes) -> str:
    """Return the colour that the axes write with."""
    return ax.xaxis.label.get_color()


def legend(ax: Axes, of: Axes | None = None) -> None:
    """Put a legend beside the axes, where it hides no data; of another panel's lines if that is given."""
    handles, labels = (of or ax).get_legend_handles_labels()
    if handles:
        box = ax.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            fontsize="small",
            facecolor=ax.get_facecolor(),
            labelcolor=ink(ax),
        )
        for text in box.get_texts():
            text.set_parse_math(False)


def titled(ax: Axes, text: str, most: int = 90) -> None:
    """Set a title that may hold anything, such as the sentence that was spoken."""
    ax.set_title(
        textwrap.shorten(text, most, placeholder="…"), fontsize="medium", loc="left", parse_math=False
    )


def note(ax: Axes, text: str) -> None:
    """Say something in the middle of a panel that has nothing to show."""
    where = {"ha": "center", "va": "center", "transform": ax.transAxes, "wrap": True}
    ax.set_yticks([])
    ax.text(0.5, 0.5, text, color=ink(ax), parse_math=False, fontsize="small", **where)


def colorbar(image: AxesImage, axes: Axes | Iterable[Axes], label: str) -> None:
    """Put a colour bar beside the axes."""
    several = [axes] if isinstance(axes, Axes) else list(axes)
    color = ink(several[0])
    bar = several[0].figure.colorbar(image, ax=several, label=label, pad=0.02)
    bar.ax.yaxis.label.set_color(color)
    bar.ax.tick_params(colors=color)


def seconds_axis(ax: Axes, trace: Trace, label: str = "seconds") -> None:
    """Name the x axis seconds and put tokens, with their mel frames, on the other side."""
    rate, frames = token_rate(trace), SPEECH.mel.frame_rate

    def to_tokens(seconds: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(seconds) * rate

    def to_seconds(tokens: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(tokens) / rate

    ax.set_xlabel(label)
    other = ax.secondary_xaxis("top", functions=(to_tokens, to_seconds))
    other.xaxis.set_major_formatter(FuncFormatter(lambda token, _: f"{token:g} ({token / rate * frames:g})"))
    other.tick_params(colors=ink(ax), labelsize="small")
    other.set_xlabel("token (mel frame)", color=ink(ax), fontsize="small")


def token_rate(trace: Trace) -> float:
    """Tokens per second of sound; `speed` squeezes them."""
    return SPEECH.token_rate * float(trace.attrs.get("options", {}).get("speed", 1.0))
