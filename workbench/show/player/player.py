"""Listen and look: waveform, mel and f0 on one time axis, traces changed without a gap."""

from collections.abc import Sequence

import anywidget
import traitlets

from workbench.errors import WorkbenchError
from workbench.show.player.payload import MODULE, Findings, player_data, static_player
from workbench.trace.trace import Trace


class Player(anywidget.AnyWidget):
    """What `player` returns: a widget that shows itself as HTML.

    A cell shows `static()`: it plays in a notebook that is opened again or exported, where the view of a
    widget is an empty place, because its state is gone or its code would have to be fetched from a server.
    In a container, `ipywidgets.VBox([player])`, it is live: the attributes follow it and move it.

    Attributes
    ----------
    position : float
        Seconds; follows the sound and moves it.
    loop : list of float
        Start and end in seconds while a region is repeated, else empty.
    choice : int
        Index of the trace that is heard; -1 while that is hidden (X).
    data : dict
        What the page draws and plays, see `workbench.show.player.payload.player_data`.
    """

    _esm = MODULE
    data = traitlets.Dict().tag(sync=True)
    position = traitlets.Float(0.0, min=0.0).tag(sync=True)
    loop = traitlets.List(traitlets.Float()).tag(sync=True)
    choice = traitlets.Int(0).tag(sync=True)

    @traitlets.validate("loop")
    def _two_ends(self, proposal: traitlets.Bunch) -> list[float]:
        ends = proposal["value"]
        if ends and not (len(ends) == 2 and 0 <= ends[0] < ends[1]):
            raise WorkbenchError(f"loop is {ends}; expected [start, end] in seconds, or [] for none")
        return ends

    @traitlets.validate("choice")
    def _one_of_them(self, proposal: traitlets.Bunch) -> int:
        choice, most = proposal["value"], len(self.data.get("traces", ())) - 1
        if self.data and not -1 <= choice <= most:
            raise WorkbenchError(f"choice is {choice}; expected 0 to {most}, or -1 for a hidden one")
        return choice

    def static(self) -> str:
        """Return the player as HTML that needs no kernel and nothing outside it, for reports and exports."""
        return static_player(self.data)

    def open(self) -> None:
        """Wait until a container asks for the model: the page that shows the HTML has the sound already."""

    @property
    def model_id(self) -> str:
        """Name of the model, which is sent to the page with the first question for it."""
        if self.comm is None:
            super().open()
        return super().model_id

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.static()}

    def __repr__(self) -> str:
        return f"Player({', '.join(repr(trace['name']) for trace in self.data.get('traces', ()))})"


def player(
    *traces: Trace,
    names: Sequence[str] | None = None,
    findings: Findings | Sequence[Findings] = None,
    match_levels: bool = False,
    seconds: float = 60.0,
) -> Player:
    """Play traces and see them: one time axis, and a change of trace at the same position without a gap.

    The sound is PCM16 at its own level. Samples that PCM16 cannot hold are clipped, NaN is set to 0, and the
    player says so.

    Parameters
    ----------
    *traces : Trace
        With a waveform; where `flow/mel` was not recorded the waveform's own is shown.
    names : sequence of str, optional
        Default: what they say.
    findings : DataFrame, object with `to_frame()`, or a sequence of them with one (or None) a trace, optional
        Places to jump to: columns kind, start, end (seconds) and score. A single one is the first trace's.
    match_levels : bool
        Turn every trace down to the least loud one (LUFS, ITU-R BS.1770); the gain is shown in dB.
    seconds : float
        Most sound that is embedded of a trace, with a note where it was longer.

    Returns
    -------
    Player
        `static()` is the same without a kernel.

    Raises
    ------
    WorkbenchError
        Where a trace has no waveform, or names or findings do not fit the traces.
    """
    return Player(data=player_data(traces, names, findings, match_levels, seconds))
