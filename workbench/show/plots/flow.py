"""Figures of the flow's ODE in numbers: where it goes step by step, and what guidance does."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    REGION_LOOKS,
    VERMILLION,
    first_step,
    grid,
    legend,
    note,
    numbers,
    require,
    sides_of,
    titled,
)
from workbench.trace.schema import ODE_FIELDS, REGIONS, STATS, SUFFIX
from workbench.trace.trace import Trace

TITLES = ("x, the state", "velocity with conditions", "velocity without", "guided velocity")
DRAWN_STATS = STATS[:-1]
AGAINST = ("step", "t")


def trajectory(
    trace: Trace,
    *,
    reference: Trace | None = None,
    stat: str = "rms",
    region: str | None = None,
    against: str = "step",
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """Draw one statistic of the ODE's state and of its three velocities, step by step.

    Parameters
    ----------
    trace : Trace
        Tensors, statistics, or what a text log printed; panels of what it lacks say so.
    reference : Trace, optional
        Drawn dashed and hollow.
    stat : {"rms", "mean_abs", "mean", "min", "max"}
    region : {"prompt", "target", "whole"}, optional
        Prompt and target apart by default; the whole where a side has no more, as text logs have.
    against : {"step", "t"}
        x axis: number of the step (of the knot for `flow/x`), or ODE time.
    axes : sequence of 4 Axes, optional

    Returns
    -------
    array (4,) of Axes
        `flow/x`, `flow/velocity_cond`, `flow/velocity_uncond`, `flow/velocity`.

    Raises
    ------
    WorkbenchError
        When the trace has none of it.
    """
    for name, found, known in (
        ("stat", stat, DRAWN_STATS),
        ("against", against, AGAINST),
        ("region", region, (None, *REGIONS)),
    ):
        if found not in known:
            raise WorkbenchError(f"{name} is {found!r}; expected one of {', '.join(map(str, known))}")
    curves = {name: _curves(sides_of(trace, reference), name, stat, region, against) for name in ODE_FIELDS}
    if not any(curves.values()):
        raise WorkbenchError(
            f"the trace has no {stat} of {', '.join(ODE_FIELDS)}; record it with save=wb.SUMMARY or "
            f"save=wb.EVERYTHING, or choose another of {', '.join(DRAWN_STATS)}"
        )
    axes = grid(axes, (2, 2), (10, 5.5), *(side for side, _ in sides_of(trace, reference)))
    for ax, name, title in zip(axes, ODE_FIELDS, TITLES, strict=True):
        titled(ax, title)
        ax.set_ylabel(f"{stat} of {name}", fontsize="small")
        for curve in curves[name]:
            _line(ax, curve, stat)
        if not curves[name]:
            note(ax, f"{stat} of {name}\nwas not recorded")
    for ax in axes[2:]:
        ax.set_xlabel("ODE time t" if against == "t" else "step (knot for x)")
    if against == "step":
        axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[3].xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes[1], max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1])))
    return axes


def guidance_gap(
    trace: Trace, *, reference: Trace | None = None, axes: Sequence[Axes] | None = None
) -> NDArray[np.object_]:
    """Draw how far the velocities with and without conditions are apart, step by step.

    Parameters
    ----------
    trace : Trace
        With both velocities as tensors: their distance does not follow from statistics.
    reference : Trace, optional
        Drawn dashed and hollow.
    axes : sequence of 3 Axes, optional

    Returns
    -------
    array (3,) of Axes
        `|cond - uncond| / |cond|`, the cosine between the two, `|cond| / |uncond|`; prompt and target apart.

    Raises
    ------
    WorkbenchError
        When a velocity is lacking.
    """
    sides = sides_of(trace, reference)
    for side, _ in sides:
        require(side, "flow/velocity_cond", "flow/velocity_uncond")
    axes = grid(axes, (1, 3), (10, 3), *(side for side, _ in sides))
    for side, dashed in sides:
        for region in ("prompt", "target"):
            cond, uncond = (side.select(name, region).double().flatten(1) for name in ODE_FIELDS[1:3])
            if not cond.shape[1]:
                continue
            c, u = cond.norm(dim=1), uncond.norm(dim=1)
            curves = ((cond - uncond).norm(dim=1) / c, (cond * uncond).sum(1) / (c * u), c / u)
            x = first_step(side) + np.arange(len(cond))
            for ax, curve in zip(axes, curves, strict=True):
                ax.plot(x, numbers(curve), **_style(region, dashed))
    for ax, title in zip(axes, ("|cond - uncond| / |cond|", "cosine", "|cond| / |uncond|"), strict=True):
        titled(ax, title)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes[-1])
    return axes


class _Curve(NamedTuple):
    """One line of a panel of `trajectory`."""

    region: str
    dashed: bool
    x: NDArray[np.float64]
    stats: NDArray[np.float64]  # (n, 6), as in `STATS`


def _curves(
    sides: Sequence[tuple[Trace, bool]], name: str, stat: str, region: str | None, against: str
) -> list[_Curve]:
    """Lines of one panel; none where the trace itself, the last of the sides, has none."""
    kept = [(side, dashed, _stats(side, name)) for side, dashed in sides]
    column = STATS.index(stat)
    noted = [item for item in kept if not np.isnan(item[2][..., column]).all()]
    if not noted or noted[-1][0] is not sides[-1][0]:
        return []
    apart = all(not np.isnan(stats[:, :2, column]).all() for _, _, stats in noted)
    parts = (region,) if region else ("prompt", "target") if apart else ("whole",)
    lines = [
        _Curve(part, dashed, _positions(side, len(stats), against), stats[:, REGIONS.index(part)])
        for side, dashed, stats in noted
        for part in parts
    ]
    return [line for line in lines if not np.isnan(line.stats[:, column]).all()]


def _stats(trace: Trace, name: str) -> NDArray[np.float64]:
    """Statistics (n, 3, 6) of a field, no entries where it is not there."""
    there = name in trace or name + SUFFIX in trace
    return numbers(trace.statistics(name)) if there else np.empty((0, len(REGIONS), len(STATS)))


def _positions(trace: Trace, count: int, against: str) -> NDArray[np.float64]:
    if against == "step":
        return first_step(trace) + np.arange(count, dtype=float)
    if "flow/t" not in trace and "flow/t" + SUFFIX not in trace:
        raise WorkbenchError("the trace lacks flow/t; record it, or draw against='step'")
    t = numbers(trace.statistics("flow/t")[:, STATS.index("mean")])
    return np.pad(t, (0, max(0, count - len(t))), constant_values=np.nan)[:count]


def _line(ax: Axes, curve: _Curve, stat: str) -> None:
    ax.plot(curve.x, curve.stats[:, STATS.index(stat)], **_style(curve.region, curve.dashed))
    bad = curve.stats[:, STATS.index("nonfinite")] > 0
    if bad.any():
        spot = {"marker": "X", "markersize": 9, "color": VERMILLION, "linestyle": "none", "clip_on": False}
        named = "_" if "NaN or Inf" in ax.get_legend_handles_labels()[1] else "NaN or Inf"
        ax.plot(curve.x[bad], np.zeros(bad.sum()), transform=ax.get_xaxis_transform(), label=named, **spot)


def _style(region: str, dashed: bool) -> dict[str, object]:
    look = REGION_LOOKS[region]
    how = {"color": look.color, "marker": look.marker, "markersize": 4, "linewidth": 1.5}
    if dashed:
        how |= {"linestyle": "--", "markerfacecolor": "none", "linewidth": 1.2}
    return how | {"label": f"{region}, reference" if dashed else region}
