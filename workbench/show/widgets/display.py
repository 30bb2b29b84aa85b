"""What a notebook shows of a trace: its player above its table.

`Trace` lies in a room below players, so its own `_repr_html_` is a table. `workbench/__init__.py` tells
IPython to show traces through `trace_html`.
"""

from workbench.show.player.page import static_player
from workbench.show.player.payload import player_data
from workbench.trace.trace import Trace


def trace_html(trace: Trace) -> str:
    """Return the trace's table, below a player where the trace has sound."""
    table = trace._repr_html_()
    if "hift/wav" not in trace or not len(trace.wav):
        return table
    return static_player(player_data([trace])) + table
