"""The figure of the speech tokens: ids over time, entropy of each draw, distance from stopping."""

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    Style,
    as_float64,
    grid,
    legend,
    note,
    require,
    seconds_axis,
    set_title,
    token_rate,
)
from workbench.show.plots.palette import BLUE, GREY, VERMILLION
from workbench.speech.config import RELEASED
from workbench.trace.schema import STATS, SUFFIX
from workbench.trace.trace import Trace

STOP_TOKENS = RELEASED.lm.n_special  # ids above those of speech
SPOKEN = Style(BLUE, "o")
REPEATED = Style(VERMILLION, "s")
SILENT = Style(GREY, "d")
LABELS = ("token id", "entropy (nat)", "ln p(speech)\n- ln p(stop)")


def tokens(
    trace: Trace, *, silent: Collection[int] | None = None, axes: Sequence[Axes] | None = None
) -> NDArray[np.object_]:
    """Draw the speech tokens over time, the LM's uncertainty at each draw, and how near it was to stopping.

    Parameters
    ----------
    trace : Trace
        With `lm/drawn_token` or `lm/speech_token`.
    silent : collection of int, optional
        Ids that sound like silence. Default: those of the run's own attributes.
    axes : sequence of 3 Axes, optional

    Returns
    -------
    array (3,) of Axes
        Ids; entropy of each draw in nat; `ln p` of the likeliest speech token minus that of the likeliest
        stop token, below 0 where stopping was likelier. The last two need `lm/entropy` and `lm/logp`.

    Raises
    ------
    WorkbenchError
        When there are no tokens.

    Examples
    --------
    >>> axes = wb.plots.tokens(trace)
    """
    name = "lm/drawn_token" if "lm/drawn_token" in trace else "lm/speech_token"
    require(trace, name)
    ids = trace[name].numpy()  # (draws,)
    silent_ids = trace.attrs.get("silent_tokens", ()) if silent is None else silent
    is_silent = np.isin(ids, list(silent_ids))
    is_repeat = np.append(False, ids[1:] == ids[:-1]) & ~is_silent
    margin = _stop_margin(trace)
    rate = token_rate(trace)
    axes = grid(axes, (3, 1), (8, 5.6), trace)
    _draw_ids(axes[0], ids, is_silent, is_repeat, rate)
    _shade_silences(axes, is_silent, rate)
    _draw_curve(axes[1], _entropy(trace), rate, "lm/entropy was not recorded: save=wb.SUMMARY keeps it")
    _draw_curve(axes[2], margin, rate, "lm/logp was not recorded: save='lm/logp' keeps it")
    if margin is not None:
        axes[2].axhline(0, color=VERMILLION, linewidth=1, linestyle="--", label="stop as likely")
    for ax, label in zip(axes, LABELS, strict=True):
        ax.set_ylabel(label, fontsize="small")
        ax.set_xlim(0, len(ids) / rate)
        legend(ax)
    n_kept = len(trace["lm/speech_token"]) if "lm/speech_token" in trace else len(ids)
    n_dropped = len(ids) - n_kept
    dropped = f" ({n_dropped} silent draws were dropped)" if n_dropped > 0 else ""
    set_title(axes[0], trace.attrs.get("text", "") + dropped)
    seconds_axis(axes[0], trace, label="")
    axes[2].set_xlabel("seconds as drawn, before silences were shortened" if dropped else "seconds")
    return axes


def _centres(count: int, rate: float) -> NDArray[np.float64]:
    """Return the time in the middle of each token, in seconds."""
    return (np.arange(count) + 0.5) / rate


def _draw_ids(ax: Axes, ids: NDArray, is_silent: NDArray, is_repeat: NDArray, rate: float) -> None:
    time = _centres(len(ids), rate)
    groups = (
        (~is_silent & ~is_repeat, SPOKEN, "speech"),
        (is_repeat, REPEATED, "same as before"),
        (is_silent, SILENT, "silent"),
    )
    for group, style, name in groups:
        if group.any():
            label = f"{name}: {group.sum()}"
            ax.plot(time[group], ids[group], style.marker, color=style.color, markersize=4, label=label)


def _shade_silences(axes: Sequence[Axes], is_silent: NDArray, rate: float) -> None:
    """Shade runs of two and more silent tokens in all panels."""
    padded = np.concatenate(([False], is_silent, [False])).astype(int)
    edges = np.flatnonzero(np.diff(padded)).reshape(-1, 2)  # (runs, 2): first token, token after the last
    spans = [(start / rate, (end - start) / rate) for start, end in edges if end - start > 1]
    if not spans:
        return
    for number, ax in enumerate(axes):
        ax.broken_barh(
            spans,
            (0, 1),
            transform=ax.get_xaxis_transform(),  # y from 0 to 1 of the panel
            facecolor=(GREY, 0.25),
            edgecolor=GREY,
            hatch="//",
            linewidth=0,
            label=f"silence, runs: {len(spans)}" if number == 0 else "_",  # "_" is left out of legends
        )


def _entropy(trace: Trace) -> NDArray | None:
    """Return the entropy of each draw in nat; None where it was not recorded."""
    if "lm/entropy" in trace or "lm/entropy" + SUFFIX in trace:
        return as_float64(trace.statistics("lm/entropy")[:, STATS.index("mean")])
    return None


def _stop_margin(trace: Trace) -> NDArray | None:
    """Return `ln p(speech) - ln p(stop)` of each draw; None where the probabilities were not recorded."""
    if "lm/logp" not in trace:
        return None
    logp = trace["lm/logp"].double()  # (draws, vocabulary)
    if logp.shape[1] <= STOP_TOKENS:
        raise WorkbenchError(
            f"lm/logp has {logp.shape[1]} ids; expected {STOP_TOKENS} stop ids after those of speech"
        )
    speech = logp[:, :-STOP_TOKENS].amax(1)
    stop = logp[:, -STOP_TOKENS:].amax(1)
    return as_float64(speech - stop)


def _draw_curve(ax: Axes, values: NDArray | None, rate: float, missing: str) -> None:
    if values is None:
        note(ax, missing)
        return
    ax.plot(_centres(len(values), rate), values, color=BLUE, marker="o", markersize=3, linewidth=1)
