"""Figures of the flow's ODE: statistics of its state and velocities, and what guidance does, step by step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import (
    REGION_STYLES,
    SIDES,
    Names,
    as_float64,
    first_step,
    grid,
    legend,
    note,
    reference_style,
    require,
    set_title,
    with_reference,
)
from workbench.show.plots.palette import VERMILLION
from workbench.trace.schema import BRANCH_VELOCITIES, ODE_FIELDS, REGIONS, STATS, SUFFIX
from workbench.trace.trace import Trace

TITLES = ("x, the state", "velocity with conditions", "velocity without", "guided velocity")  # of ODE_FIELDS
DRAWN_STATS = STATS[:-1]  # the last one counts values that are not finite; they get a marker
X_AXES = ("step", "t")


def trajectory(
    trace: Trace,
    *,
    reference: Trace | None = None,
    stat: str = "rms",
    region: str | None = None,
    against: str = "step",
    names: Names = SIDES,
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """Draw one statistic of the ODE's state and of its three velocities, step by step.

    Parameters
    ----------
    trace : Trace
        Holds tensors, statistics, or what a text log printed. A panel whose field is missing says so.
    reference : Trace, optional
        Drawn over it, dashed and hollow.
    stat : {"rms", "mean_abs", "mean", "min", "max"}
    region : {"prompt", "target", "whole"}, optional
        Default: prompt and target, or all frames where one side has no more, as text logs have.
    against : {"step", "t"}
        The x axis: number of the step (of the knot for `flow/x`), or ODE time.
    names : (str, str)
        What the figure calls reference and candidate.
    axes : sequence of 4 Axes, optional

    Returns
    -------
    array (4,) of Axes
        `flow/x`, `flow/velocity_cond`, `flow/velocity_uncond`, `flow/velocity`.

    Raises
    ------
    WorkbenchError
        When the trace has this statistic of none of them.

    Examples
    --------
    >>> axes = wb.plots.trajectory(trace, stat="max")
    """
    _check_choice("stat", stat, DRAWN_STATS)
    _check_choice("against", against, X_AXES)
    _check_choice("region", region, (None, *REGIONS))
    sides = with_reference(trace, reference)
    curves = {name: _curves(sides, name, stat, region, against) for name in ODE_FIELDS}
    if not any(curves.values()):
        raise WorkbenchError(
            f"the trace has no {stat} of {', '.join(ODE_FIELDS)}; record it with save=wb.SUMMARY or "
            f"save=wb.EVERYTHING, or choose another of {', '.join(DRAWN_STATS)}"
        )
    axes = grid(axes, (2, 2), (10, 5.5), *(side for side, _ in sides), names=names)
    for ax, name, title in zip(axes, ODE_FIELDS, TITLES, strict=True):
        set_title(ax, f"{title}: {_frames_drawn(curves[name])}" if curves[name] else title)
        ax.set_ylabel(f"{stat} of {name}", fontsize="small")
        for curve in curves[name]:
            _draw_curve(ax, curve, stat, _owner(names, reference, curve.is_reference))
        if not curves[name]:
            note(ax, f"{stat} of {name}\nwas not recorded")
    for ax in axes[2:]:
        ax.set_xlabel("ODE time t" if against == "t" else "step (knot for x)")
        if against == "step":
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fullest = max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    legend(axes[1], fullest)
    return axes


def guidance_gap(
    trace: Trace,
    *,
    reference: Trace | None = None,
    names: Names = SIDES,
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """Draw the distance between the velocities with and without conditions, step by step.

    Parameters
    ----------
    trace : Trace
        With both velocities as tensors: statistics do not determine their distance.
    reference : Trace, optional
        Drawn over it, dashed and hollow.
    names : (str, str)
        What the figure calls reference and candidate.
    axes : sequence of 3 Axes, optional

    Returns
    -------
    array (3,) of Axes
        `|cond - uncond| / |cond|`, the cosine between the two, `|cond| / |uncond|`; a line each for prompt
        and target.

    Raises
    ------
    WorkbenchError
        When a velocity is missing, or the two have other shapes.

    Examples
    --------
    >>> axes = wb.plots.guidance_gap(trace)
    """
    sides = with_reference(trace, reference)
    for side, _ in sides:
        require(side, *BRANCH_VELOCITIES)
        cond, uncond = (side[name].shape for name in BRANCH_VELOCITIES)
        if cond != uncond:
            raise WorkbenchError(
                f"the velocities have shapes {tuple(cond)} and {tuple(uncond)}; expected those of one run"
            )
    axes = grid(axes, (1, 3), (10, 3), *(side for side, _ in sides), names=names)
    for side, is_reference in sides:
        for region in ("prompt", "target"):
            _draw_gap(axes, side, region, is_reference, _owner(names, reference, is_reference))
    owner = _owner(names, reference, False)
    regions = " and ".join(region for region in ("prompt", "target") if _has_line(axes[0], region + owner))
    titles = ("|cond - uncond| / |cond|", "cosine", "|cond| / |uncond|")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(f"{title}\n{regions}", fontsize="medium", loc="left")  # one line would be too long
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.ticklabel_format(axis="y", useOffset=False)  # it would stand in the title
        if ax.lines and all(len(line.get_xdata()) == 1 for line in ax.lines):
            ax.set_xticks([ax.lines[0].get_xdata()[0]])
    legend(axes[-1])
    return axes


def _has_line(ax: Axes, label: str) -> bool:
    """Return whether a line with a label was drawn."""
    return label in ax.get_legend_handles_labels()[1]


def _check_choice(name: str, value: str | None, allowed: Sequence[str | None]) -> None:
    if value not in allowed:
        raise WorkbenchError(f"{name} is {value!r}; expected one of {', '.join(map(str, allowed))}")


def _draw_gap(axes: Sequence[Axes], trace: Trace, region: str, is_reference: bool, owner: str) -> None:
    """Draw the three curves of `guidance_gap` for one trace and region."""
    cond_name, uncond_name = BRANCH_VELOCITIES
    cond = trace.select(cond_name, region).double().flatten(1)  # (steps, M * T)
    uncond = trace.select(uncond_name, region).double().flatten(1)
    if not cond.shape[1]:
        return  # a run without a prompt
    cond_norm = cond.norm(dim=1)  # (steps,)
    uncond_norm = uncond.norm(dim=1)
    distance = (cond - uncond).norm(dim=1) / cond_norm
    cosine = (cond * uncond).sum(1) / (cond_norm * uncond_norm)
    ratio = cond_norm / uncond_norm
    x = first_step(trace) + np.arange(len(cond))
    for ax, curve in zip(axes, (distance, cosine, ratio), strict=True):
        ax.plot(x, as_float64(curve), **_line_style(ax, region, is_reference, owner))


class _Curve(NamedTuple):
    """One line of a panel of `trajectory`."""

    region: str
    is_reference: bool
    x: NDArray[np.float64]  # (n,)
    stats: NDArray[np.float64]  # (n, 6), columns as in `STATS`


def _curves(
    sides: Sequence[tuple[Trace, bool]], name: str, stat: str, region: str | None, against: str
) -> list[_Curve]:
    """Return the lines of one panel; none where the trace itself, the last of the sides, has none."""
    column = STATS.index(stat)
    recorded = []  # the sides that have this statistic
    for side, is_reference in sides:
        stats = _statistics(side, name)  # (n, 3, 6)
        if not np.isnan(stats[..., column]).all():
            recorded.append((side, is_reference, stats))
    if not recorded or recorded[-1][0] is not sides[-1][0]:
        return []
    if region is not None:
        regions = (region,)
    elif all(not np.isnan(stats[:, :2, column]).all() for _, _, stats in recorded):
        regions = ("prompt", "target")  # the first two of `REGIONS`
    else:
        regions = ("whole",)
    curves = []
    for side, is_reference, stats in recorded:
        x = _positions(side, len(stats), against)
        for part in regions:
            of_region = stats[:, REGIONS.index(part)]
            if not np.isnan(of_region[:, column]).all():
                curves.append(_Curve(part, is_reference, x, of_region))
    return curves


def _frames_drawn(curves: Sequence[_Curve]) -> str:
    """Return in words which frames the lines of a panel count."""
    regions = dict.fromkeys(curve.region for curve in curves)  # in their order
    return "all frames" if "whole" in regions else f"frames of {' and '.join(regions)}"


def _statistics(trace: Trace, name: str) -> NDArray[np.float64]:
    """Return the statistics (n, 3, 6) of a field; without entries where the field is missing."""
    if name in trace or name + SUFFIX in trace:
        return as_float64(trace.statistics(name))
    return np.empty((0, len(REGIONS), len(STATS)))


def _positions(trace: Trace, count: int, against: str) -> NDArray[np.float64]:
    """Return the x coordinate of each entry; NaN where a log did not print the time."""
    if against == "step":
        return first_step(trace) + np.arange(count, dtype=float)
    if "flow/t" not in trace and "flow/t" + SUFFIX not in trace:
        raise WorkbenchError("the trace lacks flow/t; record it, or draw against='step'")
    t = as_float64(trace.statistics("flow/t")[:, STATS.index("mean")])
    return np.pad(t, (0, max(0, count - len(t))), constant_values=np.nan)[:count]


def _draw_curve(ax: Axes, curve: _Curve, stat: str, owner: str) -> None:
    """Draw a line, and a marker at the lower edge for entries with values that are not finite."""
    ax.plot(
        curve.x,
        curve.stats[:, STATS.index(stat)],
        **_line_style(ax, curve.region, curve.is_reference, owner),
    )
    nonfinite = curve.stats[:, STATS.index("nonfinite")] > 0
    if not nonfinite.any():
        return
    is_labelled = "NaN or Inf" in ax.get_legend_handles_labels()[1]
    ax.plot(
        curve.x[nonfinite],
        np.zeros(nonfinite.sum()),
        transform=ax.get_xaxis_transform(),  # y from 0 to 1 of the panel
        label="_" if is_labelled else "NaN or Inf",  # matplotlib leaves "_" out of the legend
        marker="X",
        markersize=9,
        color=VERMILLION,
        linestyle="none",
        clip_on=False,
    )


def _owner(names: Names, reference: Trace | None, is_reference: bool) -> str:
    """Return what follows a label to say whose line it is; nothing for a trace alone."""
    return "" if reference is None else f", {names[0] if is_reference else names[1]}"


def _line_style(ax: Axes, region: str, is_reference: bool, owner: str) -> dict[str, object]:
    color, marker = REGION_STYLES[region]
    if is_reference:
        return {"marker": marker, "label": f"{region}{owner}"} | reference_style(ax)
    return {"color": color, "marker": marker, "markersize": 5, "linewidth": 2.6, "label": f"{region}{owner}"}
