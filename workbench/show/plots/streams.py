"""A figure of streams: how long each chunk takes, and how far it is ahead of who listens."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import grid, legend, set_title
from workbench.show.plots.palette import GREY, PALETTE

MARKERS = "osD^v"
PANELS = {"took_s": "Time for a chunk", "margin_s": "Real-time margin: below 0 the sound is interrupted"}


def stream_chunks(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None) -> NDArray[np.object_]:
    """Draw the latency and the real-time margin of each chunk of a stream.

    Parameters
    ----------
    table : DataFrame
        From `workbench bench stream --out`, read with `pandas.read_csv`; or part of its rows.
    axes : sequence of 2 Axes, optional

    Returns
    -------
    array of 2 Axes
        Above the seconds from one chunk to the next, the first from the start on; below by how much each
        chunk comes before it is needed. Both by the speech that went before. One line a way of computing, hop
        and number of streams.

    Raises
    ------
    WorkbenchError
        When columns are missing.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.read_csv(wb.data_path("speed/stream-cpu.csv"))
    >>> axes = wb.plots.stream_chunks(table[table["streams"] == 1])
    """
    case, drawn = ["compute", "hop", "streams"], ["begin_s", *PANELS]
    missing = [name for name in (*case, *drawn) if name not in table]
    if missing:
        raise WorkbenchError(
            f"the table lacks {', '.join(missing)}; expected one that workbench bench stream --out wrote"
        )
    axes = grid(axes, (2, 1), (8, 5))
    for i, ((way, hop, streams), part) in enumerate(table.groupby(case, sort=False)):
        label = f"{way}, {hop} hop" + (f", {streams} streams" if streams > 1 else "")
        style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        for ax, column in zip(axes, PANELS, strict=True):
            ax.plot(part["begin_s"], part[column], label=label, linewidth=1.2, **style)
    for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
        set_title(ax, title)
        ax.set_ylabel(f"{column.removesuffix('_s')} [s]")
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    axes[1].set_xlabel("speech before the chunk [s]")
    legend(axes[0])
    return axes
