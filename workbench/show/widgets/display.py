"""A trace in a cell with its player.

`Trace` lies in a room that knows nothing of players, so its own `_repr_html_` is a table. When `workbench` is
imported inside IPython it calls `register`, and a trace is shown with its player from then on.
"""

from IPython.core.interactiveshell import InteractiveShell

from workbench.trace.trace import Trace


def register(shell: InteractiveShell) -> None:
    """Let a shell show traces with a player; a second call changes nothing."""
    shell.display_formatter.formatters["text/html"].for_type(Trace, trace_html)


def trace_html(trace: Trace) -> str:
    """Return the trace's table, under a player where it has sound."""
    if "hift/wav" not in trace or not len(trace.wav):
        return trace._repr_html_()
    from workbench.show.player.page import static_player  # slow to import
    from workbench.show.player.payload import player_data

    return static_player(player_data([trace])) + trace._repr_html_()
