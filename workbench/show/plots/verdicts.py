"""Figures of what a diagnosis found: headroom, a comparison, suspects."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.diagnose.compare.comparison import NO_ERROR, VERDICTS, Comparison
from workbench.diagnose.compare.distance import place_name
from workbench.diagnose.suspects.suspects import MAX_SUSPECTS, MIN_EXPLAINED, Diagnosis
from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Look,
    axis,
    colorbar,
    ink,
    legend,
    note,
    titled,
)

TIGHT = 1.0  # doublings below which a module is flagged
ONCE = "once"  # column of what runs outside the ODE
MODULES = 30
DRAWS_WIDTH, NAMED_WIDTH = (
    5.0,
    1.7,
)  # of all draws of a field, and of what has a label; 1 is a place in the ODE
MOST_LABELS = 8
LEAST = 1e-9  # error where no other is known
LOOKS = {
    "MATCH": Look(GREEN, "o"),
    "ROUNDING": Look(SKY, "s"),
    "ALIKE": Look(BLUE, "D"),
    "MISSING": Look(GREY, "x"),
    "NOT COMPARABLE": Look(GREY, "P"),
    "DIVERGED": Look(VERMILLION, "^"),
    "SHAPE": Look(ORANGE, "*"),
    "NONFINITE": Look(PURPLE, "X"),
}


# ---- headroom


def headroom(table: pd.DataFrame, *, modules: int = MODULES, ax: Axes | None = None) -> Axes:
    """Draw how often the largest value of a module could double, by module and step.

    Parameters
    ----------
    table : DataFrame
        What `wb.headroom` returned; of the two branches the one with less room is shown.
    modules : int
        Those with the least room, in the order of the run.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When the table is another, or empty.
    """
    columns = {"stage", "module", "step", "doublings"}
    if not columns <= set(table.columns) or not len(table) or modules < 1:
        seen = f"{len(table)} rows with {', '.join(map(str, table.columns))}"
        raise WorkbenchError(f"{seen}, modules {modules}; expected what wb.headroom returns, and modules > 0")
    cells = _cells(table, modules)
    values = cells.to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    most = float(finite.max()) if finite.size else 1.0
    shown = np.where(np.isposinf(values), most, np.where(np.isneginf(values), np.nan, values))
    ax = axis(ax, (8, 1.6 + 0.2 * len(cells)))
    least = min(0.0, float(finite.min()) if finite.size else 0.0)
    image = ax.imshow(shown, aspect="auto", interpolation="nearest", vmin=least, vmax=most, cmap="cividis")
    image.set_cmap(image.get_cmap().with_extremes(bad=(0, 0, 0, 0)))
    rows, steps = np.nonzero(values < TIGHT)
    if len(rows):
        mark = {"marker": "X", "color": VERMILLION, "edgecolors": "white", "s": 60}
        ax.scatter(steps, rows, label=f"less than {TIGHT:g} doubling: {len(rows)}", **mark)
    ax.set_yticks(range(len(cells)), [f"{stage}: {module}" for stage, module in cells.index], fontsize=7)
    ax.set_xticks(range(len(cells.columns)), [str(column) for column in cells.columns])
    ax.set_xlabel("step of the ODE")
    total = len(table[["stage", "module"]].drop_duplicates())
    titled(ax, f"the {len(cells)} of {total} modules with the least room")
    colorbar(image, ax, "doublings before overflow")
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.06), borderaxespad=0)
    return ax


def _cells(table: pd.DataFrame, modules: int) -> pd.DataFrame:
    """Least doublings by module and step; NaN, which has no room, counts as less than any."""
    part = table.assign(
        room=table["doublings"].fillna(-np.inf),
        column=[ONCE if pd.isna(step) else int(step) for step in table["step"]],
    )
    order = part[["stage", "module"]].drop_duplicates().itertuples(index=False, name=None)
    least = part.groupby(["stage", "module"])["room"].min().nsmallest(modules).index
    cells = part.pivot_table(index=["stage", "module"], columns="column", values="room", aggfunc="min")
    steps = sorted(column for column in cells.columns if column != ONCE)
    chosen = [key for key in order if key in set(least)]
    return cells.loc[chosen, [*steps, *([ONCE] if ONCE in cells.columns else [])]]


# ---- comparison


def comparison(found: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the relative L2 of every place of a comparison, in causal order.

    Parameters
    ----------
    found : Comparison
        Colour and marker are the verdict's. Places without a number, such as missing ones and those of which
        there are statistics alone, stand at the upper edge. A dashed line is what rounding explains.
    ax : Axes, optional

    Raises
    ------
    WorkbenchError
        When nothing was compared.
    """
    rows = found.rows.reset_index(drop=True)
    if not len(rows):
        raise WorkbenchError("the comparison has no rows; expected two runs that share a field")
    names = _names(rows)
    x, new = _places(rows, names), np.flatnonzero(_is_new(names))
    error, allowed = (rows[name].to_numpy(dtype=float) for name in ("rel_l2", "allowed"))
    numbered = np.isfinite(error)
    positive = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in (error, allowed)])
    floor = 10.0 ** (np.floor(np.log10(positive.min())) - 1) if positive.size else LEAST
    top = 10.0 ** (np.ceil(np.log10(positive.max())) + 1) if positive.size else 1.0
    ax = axis(ax, (10, 4))
    ax.set_yscale("log")
    ax.plot(x, np.maximum(allowed, floor), color=GREY, linestyle="--", linewidth=1, label="rounding explains")
    for verdict in VERDICTS:
        mine = (rows["verdict"] == verdict).to_numpy()
        look, name = LOOKS[verdict], f"{verdict} ({mine.sum()})"
        for which, y, where in (
            (mine & numbered, np.maximum(error, floor), ax.transData),
            (mine & ~numbered, np.full(len(rows), 0.97), ax.get_xaxis_transform()),
        ):
            if which.any():
                ax.plot(
                    x[which],
                    y[which],
                    look.marker,
                    color=look.color,
                    markersize=6,
                    label=name,
                    transform=where,
                )
                name = "_"
    ax.set_xticks(x[new], [names[k] for k in new], rotation=90, fontsize=7)
    ax.set_xlim(x[0] - 1, x[-1] + 1)
    _first(ax, found, rows, x)
    _name_errors(ax, floor, top)
    titled(ax, found.line, most=120)
    legend(ax)
    return ax


def _name_errors(ax: Axes, floor: float, top: float) -> None:
    """Label powers of ten with what they are in decibels, and the lowest as no error at all."""
    powers = np.arange(round(np.log10(floor)), round(np.log10(top)) + 1)
    powers = powers[:: max(1, len(powers) // MOST_LABELS)].tolist()
    labels = [f"1e{power:+d} ({-20 * power} dB)" for power in powers[1:]]
    ax.set_yticks([10.0**power for power in powers], ["equal", *labels])
    ax.minorticks_off()
    ax.set_ylabel("relative L2 (signal to noise)")
    ax.set_ylim(floor / 2, top)


def _places(rows: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """More than one apart where a label stands; all draws of a field share the width of a few."""
    counts = rows["field"].map(rows["field"].value_counts())
    draws = rows["field"].str.startswith("lm/") & rows["index"].notna()
    between = np.where(draws, DRAWS_WIDTH / counts, 1.0)
    return np.cumsum(np.where(_is_new(names), NAMED_WIDTH, between))


def _names(rows: pd.DataFrame) -> list[str]:
    """What stands below each place: its field, of the ODE its step."""
    in_ode = rows["field"].str.startswith("flow/") & rows["index"].notna()
    return [
        f"flow [{index}]" if ode else field
        for field, index, ode in zip(rows["field"], rows["index"], in_ode, strict=True)
    ]


def _is_new(names: list[str]) -> NDArray[np.bool_]:
    return np.array([k == 0 or name != names[k - 1] for k, name in enumerate(names)])


def _first(ax: Axes, found: Comparison, rows: pd.DataFrame, x: NDArray) -> None:
    """Mark the first cause, or where the runs part if no cause is known."""
    names = [
        place_name(field, None if pd.isna(index) else int(index))
        for field, index in zip(rows["field"], rows["index"], strict=True)
    ]
    if found.causes:
        place, what = found.causes[0].name, "first cause"
    else:
        bad = [name for name, verdict in zip(names, rows["verdict"], strict=True) if verdict not in NO_ERROR]
        place, what = (bad or [""])[0], "the runs part"
    if place in names:
        ax.axvline(x[names.index(place)], color=ink(ax), linewidth=1, label=f"{what}: {place}", zorder=0)


# ---- suspects


def suspects(diagnosis: Diagnosis, *, ax: Axes | None = None) -> Axes:
    """Draw which share of the error each suspect explains, the best on top.

    Parameters
    ----------
    diagnosis : Diagnosis
        Suspects that explain the run together are darker and hatched.
    ax : Axes, optional
    """
    best = diagnosis.suspects[:MAX_SUSPECTS]
    ax = axis(ax, (8, 1.4 + 0.3 * max(len(best), 3)))
    titled(ax, "nothing to explain" if diagnosis.healthy else f"together {100 * diagnosis.explained:.0f} %")
    ax.set(xlabel="share of the error that is explained", xlim=(min(0.0, *_shares(best)), 1.05))
    if not best:
        note(ax, diagnosis.line)
        ax.set_yticks([])
        return ax
    named = [suspect.fault.name in diagnosis.explained_by for suspect in best]
    for chosen, color, hatch, label in (
        (True, BLUE, "//", "the answer"),
        (False, SKY, "", "others"),
    ):
        spots = [k for k, mine in enumerate(named) if mine is chosen]
        if spots:
            shares = [best[k].explained for k in spots]
            ax.barh(spots, shares, color=color, hatch=hatch, edgecolor="white", label=label)
    ax.axvline(MIN_EXPLAINED, color=VERMILLION, linestyle="--", label=f"enough: {MIN_EXPLAINED:g}")
    ax.set_yticks(range(len(best)), [suspect.fault.name for suspect in best], fontsize=8)
    ax.invert_yaxis()
    legend(ax)
    return ax


def _shares(best: list) -> list[float]:
    return [suspect.explained for suspect in best] or [0.0]
