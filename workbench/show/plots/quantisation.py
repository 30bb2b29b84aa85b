"""Figures of what quantised weights change: block by block, and against the size."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from workbench.diagnose.quantisation.measure import MAX_F0_CHANGE, MAX_LM_CHANGE, MAX_SOUND_CHANGE
from workbench.diagnose.quantisation.recommend import KEPT, Recommendation
from workbench.show.plots.axes import colorbar, legend, set_title, single_axes
from workbench.show.plots.palette import BLUE, COLORS, GREY, VERMILLION

MIN_SHARE, MAX_SHARE = 0.003, 10.0  # of a limit; the ends of the colours


def sensitivity(found: Recommendation, *, ax: Axes | None = None) -> Axes:
    """Draw what each block changes in each format, as a share of the limit.

    The limits are 1 dB of the sound's log-mel, 1 Hz of f0 and 0.01 nat of the next token; of the three
    shares the largest is drawn. A circle marks the format that was chosen.

    Parameters
    ----------
    found : Recommendation
    ax : Axes, optional

    Returns
    -------
    Axes

    Examples
    --------
    >>> import pandas as pd
    >>> known = pd.read_csv(wb.data_path("accuracy/quantise.csv"))
    >>> short = voice.options.but(n_timesteps=1, max_tokens=4, seed=7)
    >>> found = wb.recommend(pipe, utt, budget="60%", options=short, sensitivity=known)
    >>> ax = wb.plots.sensitivity(found)
    """
    rows = found.sensitivity[found.sensitivity["format"] != KEPT]
    shares = (
        rows["sound_db"] / MAX_SOUND_CHANGE,
        rows["kl"] / MAX_LM_CHANGE,
        rows["f0_hz"] / MAX_F0_CHANGE,
    )
    share = np.maximum.reduce(shares)
    cells = rows.assign(share=share).pivot_table(
        index="block", columns="format", values="share", sort=False, dropna=False
    )
    values = cells.to_numpy(dtype=float)  # (blocks, formats)
    ax = single_axes(ax, (8, 1.6 + 0.19 * len(cells)))
    image = ax.imshow(
        np.clip(values, MIN_SHARE, MAX_SHARE), aspect="auto", interpolation="nearest", cmap=COLORS,
        norm=LogNorm(MIN_SHARE, MAX_SHARE),
    )  # fmt: skip
    chosen = [found.weights.get(block) for block in cells.index]
    places = [
        (list(cells.columns).index(name), row) for row, name in enumerate(chosen) if name in cells.columns
    ]
    if places:
        ax.scatter(*zip(*places, strict=True), facecolors="none", edgecolors="white", s=28, linewidths=1.4)
    ax.set_yticks(range(len(cells)), [_short(block) for block in cells.index], fontsize=7)
    ax.set_xticks(range(len(cells.columns)), [name.partition(":")[0] for name in cells.columns])
    ax.set_xlabel("format; a circle is the chosen one")
    colorbar(
        image, ax, f"largest share of {MAX_SOUND_CHANGE:g} dB, {MAX_F0_CHANGE:g} Hz, {MAX_LM_CHANGE:g} nat"
    )
    set_title(ax, "What one block changes when it alone has a format")
    return ax


def size_curve(found: Recommendation, *, ax: Axes | None = None) -> Axes:
    """Draw the change of the sound against the size of the voice, block by block from large to small.

    Parameters
    ----------
    found : Recommendation
    ax : Axes, optional

    Returns
    -------
    Axes
        The line is predicted from the blocks alone, points were measured as a whole.

    Examples
    --------
    >>> import pandas as pd
    >>> known = pd.read_csv(wb.data_path("accuracy/quantise.csv"))
    >>> short = voice.options.but(n_timesteps=1, max_tokens=4, seed=7)
    >>> found = wb.recommend(pipe, utt, max_db=1.0, options=short, sensitivity=known)
    >>> ax = wb.plots.size_curve(found)
    """
    curve = found.curve
    megabytes = curve["nbytes"] / 1e6
    ax = single_axes(ax, (8, 3.6))
    ax.plot(megabytes, curve["sound_db"], color=GREY, linestyle="--", linewidth=1.2, label="predicted")
    is_measured = curve["measured_db"].notna()
    ax.plot(
        megabytes[is_measured],
        curve["measured_db"][is_measured],
        "o",
        color=BLUE,
        markersize=5,
        label="measured",
    )
    ax.plot(found.nbytes / 1e6, found.change.sound_db, "D", color=VERMILLION, markersize=7, label="chosen")
    ax.axhline(MAX_SOUND_CHANGE, color=GREY, linewidth=0.8)
    half = found.base_nbytes / 2e6
    ax.axvline(half, color=GREY, linewidth=0.8, linestyle=":")
    ax.annotate("half of float16", (half, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                textcoords="offset points", fontsize=8)  # fmt: skip
    ax.set_xlabel("size of all matrices [MB]")
    ax.set_ylabel("change of the sound [dB]")
    ax.set_ylim(bottom=0)
    set_title(ax, f"Size and sound; the worst of the runs ({found.runs}) counts")
    legend(ax)
    return ax


def _short(block: str) -> str:
    """Return a block's name without the parts that all blocks of its list have in common."""
    stage, *parts = block.split(".")
    kept = [part for part in parts if part not in ("decoder", "estimator", "llm", "model")]
    return f"{stage}: {'.'.join(kept)}"
