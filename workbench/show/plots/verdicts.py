"""Figures of what a diagnosis found: headroom before overflow, a comparison, suspects."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.diagnose.compare.comparison import NO_ERROR, VERDICTS, Comparison
from workbench.diagnose.compare.distance import place_name
from workbench.diagnose.suspects.diagnosis import EXPLAINED_WORDS, MAX_SUSPECTS, Diagnosis
from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    Style,
    colorbar,
    legend,
    note,
    set_title,
    single_axes,
    text_color,
)
from workbench.show.plots.palette import BLUE, COLORS, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

MIN_DOUBLINGS = 1.0  # a module with less headroom is marked
ONCE = "once"  # of modules outside the ODE
MAX_MODULES = 30  # rows of the headroom figure
DRAWS_WIDTH = 5.0  # width of all draws of one field together; a place in the ODE has a width of 1
LABELLED_WIDTH = 2.2  # width of a place that has a label below
TITLE_WIDTH = 120  # characters in a line above a comparison
MAX_TICKS = 8  # labels of the error axis
MIN_ERROR = 1e-9  # lower end of the error axis where no error is known
VERDICT_STYLES = {
    "MATCH": Style(GREEN, "o"),
    "ROUNDING": Style(SKY, "s"),
    "ALIKE": Style(BLUE, "D"),
    "MISSING": Style(GREY, "x"),
    "NOT COMPARABLE": Style(GREY, "P"),
    "DIVERGED": Style(VERMILLION, "^"),
    "SHAPE": Style(ORANGE, "*"),
    "NONFINITE": Style(PURPLE, "X"),
}


# ---- headroom


def headroom(table: pd.DataFrame, *, modules: int = MAX_MODULES, ax: Axes | None = None) -> Axes:
    """Draw how often the largest value of a module could double before it overflows, by module and step.

    Parameters
    ----------
    table : DataFrame
        What `wb.headroom` returned. Of the two branches of guidance the one with less headroom is shown.
    modules : int
        How many modules are shown: those with the least headroom, in the order of the run.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When the table has other columns or no rows, or `modules` is below 1.

    Examples
    --------
    >>> ax = wb.plots.headroom(wb.headroom(pipe, trace), modules=10)
    """
    expected = {"stage", "module", "step", "doublings"}
    if not expected <= set(table.columns) or not len(table) or modules < 1:
        found = f"{len(table)} rows with {', '.join(map(str, table.columns))}"
        raise WorkbenchError(
            f"{found}, modules {modules}; expected what wb.headroom returns, and modules > 0"
        )
    cells, runs_once = _headroom_cells(table, modules)
    values = cells.to_numpy(dtype=float)  # (modules, steps)
    finite = values[np.isfinite(values)]
    low = min(0.0, float(finite.min())) if finite.size else 0.0
    high = float(finite.max()) if finite.size else 1.0
    # Inf (a module that gave only zeros) is drawn like the most headroom, -Inf (NaN in the table) not at all.
    drawn = np.where(np.isposinf(values), high, values)
    drawn = np.where(np.isneginf(drawn), np.nan, drawn)
    ax = single_axes(ax, (9, 1.6 + 0.22 * len(cells)))
    image = ax.imshow(drawn, aspect="auto", interpolation="nearest", vmin=low, vmax=high, cmap=COLORS)
    image.set_cmap(image.get_cmap().with_extremes(bad=(0, 0, 0, 0)))
    rows, columns = np.nonzero(values < MIN_DOUBLINGS)
    if len(rows):
        label = f"less than {MIN_DOUBLINGS:g} doubling: {len(rows)}"
        ax.scatter(columns, rows, label=label, marker="X", color=VERMILLION, edgecolors="white", s=60)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.06), borderaxespad=0)
    names = [f"{stage}: {module}" for stage, module in cells.index]
    labels = [f"{name} ({ONCE})" if once else name for name, once in zip(names, runs_once, strict=True)]
    ax.set_yticks(range(len(cells)), labels, fontsize=8)
    ax.set_xticks(range(len(cells.columns)), [str(column) for column in cells.columns])
    ax.set_xlabel(
        "step of the ODE; a module that runs once has one value" if any(runs_once) else "step of the ODE"
    )
    total = len(table[["stage", "module"]].drop_duplicates())
    set_title(ax, f"the {len(cells)} of {total} modules with the least room")
    colorbar(image, ax, "doublings before overflow")
    return ax


def _headroom_cells(table: pd.DataFrame, modules: int) -> tuple[pd.DataFrame, list[bool]]:
    """Return the least doublings by module and step, and which modules run once: their value fills the row.

    NaN, which has no headroom, counts as -Inf.
    """
    part = table.assign(
        doublings=table["doublings"].fillna(-np.inf),
        column=[ONCE if pd.isna(step) else int(step) for step in table["step"]],
    )
    keys = ["stage", "module"]
    tightest = set(part.groupby(keys)["doublings"].min().nsmallest(modules).index)
    in_run_order = part[keys].drop_duplicates().itertuples(index=False, name=None)
    cells = part.pivot_table(index=keys, columns="column", values="doublings", aggfunc="min")
    cells = cells.loc[[key for key in in_run_order if key in tightest]]
    steps = sorted(column for column in cells.columns if column != ONCE)
    runs_once = [False] * len(cells)
    if ONCE in cells.columns and not cells[ONCE].isna().all():
        runs_once = cells[ONCE].notna().tolist()
        for step in steps:
            cells[step] = cells[step].fillna(cells[ONCE])
    return cells[steps or [ONCE]], runs_once


# ---- comparison


def comparison(found: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the relative L2 error of every place of a comparison, in causal order.

    Parameters
    ----------
    found : Comparison
        Colour and marker show the verdict. Places without a number, such as missing fields or fields of which
        only statistics were kept, stand at the upper edge. A dashed line is the error that rounding explains.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    WorkbenchError
        When nothing was compared.

    Examples
    --------
    >>> ax = wb.plots.comparison(wb.compare(trace, trace))
    """
    rows = found.rows.reset_index(drop=True)
    if not len(rows):
        raise WorkbenchError("the comparison has no rows; expected two runs that share a field")
    error = rows["rel_l2"].to_numpy(dtype=float)
    allowed = rows["allowed"].to_numpy(dtype=float)
    bottom, top = _error_limits(np.concatenate([error, allowed]))
    labels = _labels(rows)
    is_labelled = _differs_from_previous(labels)
    x = _positions(rows, is_labelled)
    ax = single_axes(ax, (12, 5))
    ax.set_yscale("log")
    ax.plot(
        x, np.maximum(allowed, bottom), color=GREY, linestyle="--", linewidth=1, label="rounding explains"
    )
    for verdict in VERDICTS:
        _draw_verdict(ax, verdict, (rows["verdict"] == verdict).to_numpy(), x, np.maximum(error, bottom))
    ticks = np.flatnonzero(is_labelled)
    ax.set_xticks(
        x[ticks], [labels[k] for k in ticks], rotation=60, ha="right", rotation_mode="anchor", fontsize=8
    )
    ax.set_xlim(x[0] - 1, x[-1] + 1)
    _mark_first_bad(ax, found, rows, x)
    _label_errors(ax, bottom, top)
    title = textwrap.shorten(found.line, 2 * TITLE_WIDTH, placeholder="…")
    ax.set_title(textwrap.fill(title, TITLE_WIDTH), fontsize="medium", loc="left", parse_math=False)
    legend(ax)
    return ax


def _error_limits(values: NDArray) -> tuple[float, float]:
    """Return powers of ten that hold all positive values, with a factor of ten to spare."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return MIN_ERROR, 1.0
    bottom = 10.0 ** (np.floor(np.log10(positive.min())) - 1)
    top = 10.0 ** (np.ceil(np.log10(positive.max())) + 1)
    return bottom, top


def _draw_verdict(ax: Axes, verdict: str, chosen: NDArray, x: NDArray, error: NDArray) -> None:
    """Draw the places with one verdict: at their error, or at the upper edge where it is not a number."""
    style = VERDICT_STYLES[verdict]
    label = f"{verdict} ({chosen.sum()})"
    has_error = np.isfinite(error)
    upper_edge = np.full(len(error), 0.97)
    for places, y, transform in (
        (chosen & has_error, error, ax.transData),
        (chosen & ~has_error, upper_edge, ax.get_xaxis_transform()),  # y from 0 to 1 of the panel
    ):
        if places.any():
            ax.plot(
                x[places],
                y[places],
                style.marker,
                color=style.color,
                markersize=6,
                label=label,
                transform=transform,
            )
            label = "_"  # one entry in the legend


def _label_errors(ax: Axes, bottom: float, top: float) -> None:
    """Label powers of ten also in decibels; the lowest stands for no error at all."""
    powers = np.arange(round(np.log10(bottom)), round(np.log10(top)) + 1)
    powers = powers[:: max(1, len(powers) // MAX_TICKS)].tolist()
    labels = [f"1e{power:+d} ({-20 * power} dB)" for power in powers[1:]]
    ax.set_yticks([10.0**power for power in powers], ["equal", *labels])
    ax.minorticks_off()
    ax.set_ylabel("relative L2 (signal to noise)")
    ax.set_ylim(bottom / 2, top)


def _positions(rows: pd.DataFrame, is_labelled: NDArray) -> NDArray[np.float64]:
    """Return the x coordinate of each row: labelled places need more width, many draws share a few units."""
    is_draw = rows["field"].str.startswith("lm/") & rows["index"].notna()
    entries = rows["field"].map(rows["field"].value_counts())
    width = np.where(is_draw, DRAWS_WIDTH / entries, 1.0)
    return np.cumsum(np.where(is_labelled, LABELLED_WIDTH, width))


def _labels(rows: pd.DataFrame) -> list[str]:
    """Return the label of each row: its field, or the step for what is inside the ODE."""
    labels = []
    for field, index in zip(rows["field"], rows["index"], strict=True):
        is_in_ode = field.startswith("flow/") and not pd.isna(index)
        labels.append(f"flow [{index}]" if is_in_ode else field)
    return labels


def _differs_from_previous(labels: list[str]) -> NDArray[np.bool_]:
    return np.array([k == 0 or label != labels[k - 1] for k, label in enumerate(labels)])


def _mark_first_bad(ax: Axes, found: Comparison, rows: pd.DataFrame, x: NDArray) -> None:
    """Mark the first cause, or where the runs part when no cause is known."""
    names = []
    first_bad = ""
    for field, index, verdict in zip(rows["field"], rows["index"], rows["verdict"], strict=True):
        name = place_name(field, None if pd.isna(index) else int(index))
        names.append(name)
        if not first_bad and verdict not in NO_ERROR:
            first_bad = name
    if found.causes:
        place = found.causes[0].name
        label = f"first cause: {place}"
    else:
        place = first_bad
        label = f"the runs part: {place}"
    if place in names:
        ax.axvline(x[names.index(place)], color=text_color(ax), linewidth=1, label=label, zorder=0)


# ---- suspects


def suspects(diagnosis: Diagnosis, *, ax: Axes | None = None) -> Axes:
    """Draw which share of the error each suspect explains, the best on top.

    Parameters
    ----------
    diagnosis : Diagnosis
        Suspects that explain the run together are darker and hatched. One that makes the error
        larger has no bar and says so.
    ax : Axes, optional

    Returns
    -------
    Axes

    Examples
    --------
    >>> ax = wb.plots.suspects(wb.find_suspects(trace, trace, pipe))
    """
    best = diagnosis.suspects[:MAX_SUSPECTS]
    shares = [max(0.0, suspect.explained) for suspect in best]
    ax = single_axes(ax, (8, 1.4 + 0.3 * max(len(best), 3)))
    answer = ", ".join(diagnosis.explained_by) or "none of these"
    set_title(ax, "nothing to explain" if diagnosis.healthy else f"explained by: {answer}")
    ax.set(xlabel="share of the error that is explained", xlim=(0, 1.05))
    if not best:
        note(ax, diagnosis.line)
        return ax
    in_answer = [suspect.fault.name in diagnosis.explained_by for suspect in best]
    for chosen, color, hatch, label in ((True, BLUE, "//", "the answer"), (False, SKY, "", "others")):
        bars = [k for k in range(len(best)) if in_answer[k] is chosen]
        if bars:
            widths = [shares[k] for k in bars]
            ax.barh(bars, widths, color=color, hatch=hatch, edgecolor="white", label=label)
    for k, suspect in enumerate(best):
        if suspect.explained < EXPLAINED_WORDS[-1][0]:
            words = "makes it worse" if suspect.explained < 0 else "explains none of it"
            ax.annotate(words, (shares[k], k), (4, 0), textcoords="offset points", va="center", fontsize=8)
    all_of_it = EXPLAINED_WORDS[0][0]
    ax.axvline(all_of_it, color=VERMILLION, linestyle="--", label=f"all of it: {all_of_it:g}")
    ax.set_yticks(range(len(best)), [suspect.fault.name for suspect in best], fontsize=8)
    ax.invert_yaxis()
    legend(ax)
    return ax
