"""Hear and see traces: waveform, mel and f0 on one time axis, and a change of trace without a gap."""

from collections.abc import Sequence

import anywidget
import traitlets

from workbench.diagnose.sounds.sound_input import SoundSource, as_trace
from workbench.errors import WorkbenchError
from workbench.show.player.page import MODULE, static_player
from workbench.show.player.payload import Findings, player_data


class Player(anywidget.AnyWidget):
    """The widget that `player` returns.

    A cell shows `static()`, which also plays in a notebook that is opened again or exported. The view of a
    live widget would be empty there: its state is gone, or its code would have to come from a server. Inside
    a container, `ipywidgets.VBox([player])`, the player is live: the attributes follow it and control it.

    Attributes
    ----------
    position : float
        Seconds; follows the sound and moves it.
    loop : list of float
        Start and end in seconds while a region is repeated, else empty.
    choice : int
        Index of the trace that is heard; -1 during a blind comparison, while the trace is hidden.
    listening : list of dict
        Results of blind tests that ended, for `listening_test`; a player in a container fills it.
    data : dict
        What the page draws and plays, see `workbench.show.player.payload.player_data`.

    Examples
    --------
    >>> widget = wb.player(trace, names=["ten steps"])
    >>> widget
    Player('ten steps')
    >>> widget.loop = [0.2, 0.4]  # seconds
    >>> "<audio" in widget.static()
    True
    """

    _esm = MODULE
    data = traitlets.Dict().tag(sync=True)
    position = traitlets.Float(0.0, min=0.0).tag(sync=True)
    loop = traitlets.List(traitlets.Float()).tag(sync=True)
    choice = traitlets.Int(0).tag(sync=True)
    listening = traitlets.List(traitlets.Dict()).tag(sync=True)

    @traitlets.validate("loop")
    def _validate_loop(self, proposal: traitlets.Bunch) -> list[float]:
        ends = proposal["value"]
        if ends and not (len(ends) == 2 and 0 <= ends[0] < ends[1]):
            raise WorkbenchError(f"loop is {ends}; expected [start, end] in seconds, or [] for none")
        return ends

    @traitlets.validate("choice")
    def _validate_choice(self, proposal: traitlets.Bunch) -> int:
        choice = proposal["value"]
        last = len(self.data.get("traces", ())) - 1
        if self.data and not -1 <= choice <= last:
            raise WorkbenchError(f"choice is {choice}; expected 0 to {last}, or -1 for a hidden one")
        return choice

    def static(self) -> str:
        """Return the player as HTML that needs no kernel and no other file, for reports and exports.

        Examples
        --------
        >>> wb.player(trace).static().startswith('<div class="workbench-player"')
        True
        """
        return static_player(self.data)

    def open(self) -> None:
        """Do nothing: the model goes to the page once a container asks for it.

        `ipywidgets` calls this when a widget is made. A cell shows `static()`, so sending the model as well
        would send the sound twice.
        """

    @property
    def model_id(self) -> str:
        """Identifier of the model; the first access sends the model to the page."""
        if self.comm is None:
            super().open()
        return super().model_id

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.static()}

    def __repr__(self) -> str:
        return f"Player({', '.join(repr(trace['name']) for trace in self.data.get('traces', ()))})"


def player(
    *traces: SoundSource,
    names: Sequence[str] | None = None,
    findings: Findings | Sequence[Findings] = None,
    match_levels: bool = False,
    seconds: float = 60.0,
    sample_rate: int | None = None,
) -> Player:
    """Return a player of traces and sounds on one time axis; a change keeps the position and has no gap.

    The sound is PCM16 at its own level. Samples beyond full scale are clipped and NaN is set to 0; the player
    shows a warning then.

    Parameters
    ----------
    *traces : Trace, path of a sound, trace or dump, Tensor (N,), ndarray (N,), or (samples, rate in Hz)
        1 to 26 sounds. Without a recorded `flow/mel` the mel of the waveform is shown.
    names : sequence of str, optional
        One per trace. Default: each trace's tag, text or source.
    findings : DataFrame, object with `to_frame()`, or a sequence of them, optional
        Places to jump to: columns kind, start, end (seconds) and score. A sequence holds one (or None) per
        trace; a single one belongs to the first trace.
    match_levels : bool
        Turn every trace down to the least loud one (LUFS, ITU-R BS.1770); the player shows the gains in dB.
    seconds : float
        Sound of each trace that is included, from its start; a longer trace gets a warning.
    sample_rate : int, optional
        Hz, of bare samples; files and traces know theirs.

    Returns
    -------
    Player
        A widget; `static()` gives the same as HTML without a kernel.

    Raises
    ------
    WorkbenchError
        When a trace has no waveform, a file cannot be read, or names or findings do not fit the traces.

    Examples
    --------
    >>> louder = wb.Trace({"hift/wav": 1.5 * trace.wav}, trace.attrs)
    >>> wb.player(trace, louder, names=["as it is", "louder"], findings=wb.find_glitches(trace))
    Player('as it is', 'louder')
    >>> prompt = wb.data_path("prompts/kumo_0.flac")
    >>> wb.player(trace, prompt, (0.1 * trace.wav, 24_000), names=["a run", "a file", "samples"])
    Player('a run', 'a file', 'samples')
    """
    # A pair states its own rate, as files and traces do.
    opened = [as_trace(each, None if isinstance(each, tuple) else sample_rate) for each in traces]
    return Player(data=player_data(opened, names, findings, match_levels, seconds))
