"""How a notebook shows a trace: its player above its table.

The room of traces lies below players, so `Trace._repr_html_` is a table alone. `workbench/__init__.py`
registers `trace_html` with IPython.
"""

from workbench.show.player.page import static_player
from workbench.show.player.payload import player_data
from workbench.trace.trace import Trace


def trace_html(trace: Trace) -> str:
    """Return the trace's table, below a player where the trace has a waveform."""
    table = trace._repr_html_()
    if "hift/wav" not in trace or not len(trace.wav):
        return table
    return static_player(player_data([trace])) + table
