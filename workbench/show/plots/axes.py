"""What all figures have in common: axes, colours, the time axis, legends, and errors about missing fields.

Figures are white with dark ink, also in a dark theme: no grey has a contrast of 4.5 against both white and a
dark page. Axes that are passed in keep their own style, and what is added takes over their text colour.
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
from workbench.show.plots.palette import BLUE, GREEN, ORANGE
from workbench.show.plots.provenance import provenance
from workbench.speech.config import RELEASED
from workbench.trace.schema import FIELDS, REGIONS, SUFFIX
from workbench.trace.trace import Trace

PROVENANCE_POINTS = 7  # font size of the provenance
PROVENANCE_CHARACTERS = 150  # in a line of it, below a figure of 8 inches
MAX_TITLE = 90  # characters
Names = tuple[str, str]  # what a figure calls reference and candidate
SIDES: Names = ("reference", "candidate")


class Style(NamedTuple):
    """How a line is drawn; the marker distinguishes it in print."""

    color: str
    marker: str


REGION_STYLES = {"prompt": Style(ORANGE, "s"), "target": Style(BLUE, "o"), "whole": Style(GREEN, "D")}


def single_axes(ax: Axes | None, size: tuple[float, float], *traces: Trace, names: Names = SIDES) -> Axes:
    """Return the given axes, or those of a new figure with the provenance of `traces` below it."""
    return ax if ax is not None else grid(None, (1, 1), size, *traces, names=names)[0]


def grid(
    axes: Sequence[Axes] | None,
    shape: tuple[int, int],
    size: tuple[float, float],
    *traces: Trace,
    names: Names = SIDES,
) -> NDArray[np.object_]:
    """Return the given axes, or those of a new figure, row by row; panels of a new figure share their x axis.

    Parameters
    ----------
    axes : sequence of Axes, optional
        Of any shape, one per panel.
    shape : tuple of int
        Rows and columns.
    size : tuple of float
        Inches.
    *traces : Trace
        One trace, or reference and candidate, for the provenance below a new figure.
    names : (str, str)
        What the figure calls reference and candidate.

    Returns
    -------
    array (rows * columns,) of Axes

    Raises
    ------
    WorkbenchError
        When the number of given axes is wrong.
    """
    count = shape[0] * shape[1]
    if axes is not None:
        given = np.asarray(axes, dtype=object).ravel()
        if len(given) != count:
            raise WorkbenchError(f"axes holds {len(given)}; expected {count}, one a panel")
        return given
    # The first figure loads the backend, which turns the display of a notebook on: outside the style context,
    # whose end would turn it off again. A figure made in a thread must not be registered with pyplot, or it
    # would appear below the cell that happens to run.
    make_figure = plt.figure if current_thread() is main_thread() else Figure
    figure = make_figure(figsize=size, layout="constrained", facecolor="white")
    with plt.style.context("default"):
        made = figure.subplots(*shape, sharex=True, squeeze=False)
        _add_provenance(figure, size[0], traces, names)
    return made.ravel()


def _add_provenance(figure: Figure, width: float, traces: Sequence[Trace], names: Names) -> None:
    """Write where the traces come from below a figure of this width (inches)."""
    lines = [provenance(trace) for trace in traces]
    if len(traces) == 2:
        lines = [f"{name}: {line}" for name, line in zip(names, lines, strict=True)]
    if not lines:
        return
    characters = round(PROVENANCE_CHARACTERS * width / 8)
    wrapped = [part for line in lines for part in textwrap.wrap(line, characters)]
    figure.supxlabel("\n".join(wrapped), fontsize=PROVENANCE_POINTS, x=0.01, ha="left", parse_math=False)


def close_figures(thing: object) -> None:
    """Close the figures of Axes in pyplot: they are shown elsewhere, and the cell would show them again."""
    for item in thing.flat if isinstance(thing, np.ndarray) else [thing]:
        if isinstance(item, Axes):
            plt.close(item.get_figure(root=True))


def require(trace: Trace, *names: str) -> None:
    """Raise a WorkbenchError that says what to record, when a field is missing or empty."""
    missing = [name for name in names if name not in trace]
    if missing:
        with_statistics = [name for name in missing if name + SUFFIX in trace]
        kept = f" (of {', '.join(with_statistics)} only statistics were kept)" if with_statistics else ""
        globs = ", ".join(repr(name) for name in missing)
        raise WorkbenchError(
            f"the trace lacks {', '.join(missing)}{kept}; record it with save=wb.EVERYTHING or "
            f"save=({globs},), in a run that reaches this stage"
        )
    for name in names:
        if not trace[name].numel():
            raise WorkbenchError(
                f"{name} has shape {tuple(trace[name].shape)} and nothing in it; expected "
                f"({', '.join(FIELDS[name].dims)}) of a run that spoke"
            )


def reference_style(ax: Axes) -> dict[str, object]:
    """Return the style of a reference: thin dashes in the colour of text, over the candidate's broad line.

    Both are seen where they agree.
    """
    color = text_color(ax)
    return {
        "color": color,
        "linestyle": "--",
        "linewidth": 1.1,
        "markersize": 3.5,
        "markerfacecolor": "none",
        "markeredgecolor": color,
        "markeredgewidth": 0.8,
        "zorder": 3,
    }


def with_reference(trace: Trace, reference: Trace | None) -> list[tuple[Trace, bool]]:
    """Return the traces in the order in which they are drawn, each with whether it is the reference."""
    if reference is None:
        return [(trace, False)]
    return [(reference, True), (trace, False)]


def first_step(trace: Trace) -> int:
    """Return the number of the first step that was recorded."""
    return trace.attrs.get("first_step", 0)


def check_region(region: str) -> None:
    """Raise a WorkbenchError for a region that no trace has."""
    if region not in REGIONS:
        raise WorkbenchError(f"region is {region!r}; expected one of {', '.join(REGIONS)}")


def frames_of(trace: Trace, values: Tensor, region: str) -> tuple[Tensor, int]:
    """Return the frames (..., T) of a region, and the first one's number; the target begins at 0.

    A run without frames of the region is drawn whole.
    """
    split = trace.prompt_frames
    if region == "prompt" and split > 0:
        return values[..., :split], -split
    if region == "target" and split < values.shape[-1]:
        return values[..., split:], 0
    return values, -split


def as_float64(x: Tensor) -> NDArray[np.float64]:
    """Return a tensor of any type as a float64 array."""
    return x.double().numpy()


def text_color(ax: Axes) -> str:
    """Return the colour of the labels of the axes."""
    return ax.xaxis.label.get_color()


def legend(ax: Axes, source: Axes | None = None) -> None:
    """Put a legend beside the axes, where it hides no data; of another panel's lines if that is given."""
    handles, labels = (source or ax).get_legend_handles_labels()
    if not handles:
        return
    box = ax.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        fontsize="small",
        facecolor=ax.get_facecolor(),
        labelcolor=text_color(ax),
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def set_title(ax: Axes, text: str, max_length: int = MAX_TITLE) -> None:
    """Set a title from any text, such as the spoken sentence: shortened, and a $ in it starts no formula."""
    short = textwrap.shorten(text, max_length, placeholder="…")
    ax.set_title(short, fontsize="medium", loc="left", parse_math=False)


def note(ax: Axes, text: str) -> None:
    """Write a text in the middle of a panel that has nothing to show."""
    ax.set_yticks([])
    ax.text(
        0.5,
        0.5,
        text,
        ha="center",
        va="center",
        transform=ax.transAxes,
        wrap=True,
        color=text_color(ax),
        parse_math=False,
        fontsize="small",
    )


def colorbar(image: AxesImage, axes: Axes | Iterable[Axes], label: str) -> None:
    """Put a colour bar beside the axes."""
    panels = [axes] if isinstance(axes, Axes) else list(axes)
    color = text_color(panels[0])
    bar = panels[0].figure.colorbar(image, ax=panels, label=label, pad=0.02)
    bar.ax.yaxis.label.set_color(color)
    bar.ax.tick_params(colors=color)


def seconds_axis(ax: Axes, trace: Trace, label: str = "seconds") -> None:
    """Label the x axis in seconds, and in tokens and mel frames on the other side."""
    rate = token_rate(trace)
    frame_rate = RELEASED.mel.frame_rate

    def to_tokens(seconds: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(seconds) * rate

    def to_seconds(tokens: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(tokens) / rate

    def format_token(token: float, _: int) -> str:
        return f"{token:g} ({token / rate * frame_rate:g})"

    ax.set_xlabel(label)
    color = text_color(ax)
    other = ax.secondary_xaxis("top", functions=(to_tokens, to_seconds))
    other.xaxis.set_major_formatter(FuncFormatter(format_token))
    other.tick_params(colors=color, labelsize="small")
    other.set_xlabel("token (mel frame)", color=color, fontsize="small")


def token_rate(trace: Trace) -> float:
    """Return the tokens per second of sound; the option `speed` changes it."""
    return RELEASED.token_rate * float(trace.attrs.get("options", {}).get("speed", 1.0))
