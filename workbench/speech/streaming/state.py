"""How far a stream has come (`StreamState`), and one piece of its sound (`Chunk`)."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.models.hift_window import Past


@dataclass(frozen=True, eq=False)
class StreamState:
    """How far a stream has come.

    Parameters
    ----------
    hop : int
        Tokens that the next chunk waits for, beside the look-ahead.
    token_offset : int
        Tokens already rendered.
    mel : Tensor (1, 80, T) or None
        All mel so far.
    speech_offset : int
        Samples already yielded.
    max_hop : int, optional
        The hop doubles after each chunk up to this many tokens. By default four times the checkpoint's
        `chunk_size`, as upstream; with `max_hop=hop` all chunks are equally long.
    past : Past
        Where the vocoder's next window of the mel begins, and the phases there.

    Raises
    ------
    WorkbenchError
        When a hop is less than one token.

    Examples
    --------
    >>> wb.StreamState(hop=50).token_offset
    0
    >>> chunks = list(wb.stream(pipe, utt, voice.options.but(n_timesteps=1), wb.StreamState(10, max_hop=10)))
    >>> [chunk.state.hop for chunk in chunks]
    [10, 10, 10]
    """

    hop: int
    token_offset: int = 0
    mel: Tensor | None = None
    speech_offset: int = 0
    max_hop: int | None = None
    past: Past = field(default_factory=Past)

    def __post_init__(self) -> None:
        for name in ("hop", "max_hop"):
            found = getattr(self, name)
            if found is not None and (not isinstance(found, int) or found < 1):
                raise WorkbenchError(f"{name} is {found!r}; expected a whole number of tokens, 1 or more")


class Chunk(NamedTuple):
    """One piece of sound."""

    wav: Tensor  # (N,) new samples
    n_token: int  # tokens that went into the flow, the prompt's not counted
    state: StreamState  # after this chunk
    final: bool
    token: tuple[int, ...] = ()  # all speech tokens so far, of which the flow was given the first `n_token`
