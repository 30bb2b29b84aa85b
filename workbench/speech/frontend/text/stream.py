"""Text that arrives while it is spoken."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.frontend.text.language import check_has_words, check_scripts
from workbench.speech.frontend.text.tokenizer import TextTokenizer


class TextStream:
    """Text from an iterator, as ids one by one; what has been read is kept, so it can be read again.

    As upstream does, each piece is encoded by itself and neither normalised nor split: a word that is cut
    into two pieces has other ids than the whole word.

    Parameters
    ----------
    pieces : iterable of str
        The text as it comes. It is asked for more only when the LM needs more.
    tokenizer : TextTokenizer
    scripts : tuple of str
        Scripts that the voice reads; empty allows all.

    Raises
    ------
    WorkbenchError
        When `pieces` is no iterable. While it is read: when a piece is not text, has letters of another
        script, or the whole text has nothing to say.
    """

    def __init__(
        self, pieces: Iterable[str], tokenizer: TextTokenizer, scripts: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(pieces, Iterable) or isinstance(pieces, bytes | bytearray):
            raise WorkbenchError(f"text is a {type(pieces).__name__}; expected a str or an iterable of str")
        self._source = iter(pieces)
        self._tokenizer = tokenizer
        self._scripts = scripts
        self.text = ""  # read so far
        self.ids: list[int] = []  # of that text

    @classmethod
    def read(cls, text: str, ids: list[int]) -> "TextStream":
        """Return a stream that has come to its end, such as that of a recorded run."""
        stream = cls((), None)
        stream.text, stream.ids = text, ids
        return stream

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the ids as tensors (1,)."""
        given = 0
        while True:
            for token in self.ids[given:]:
                given += 1
                yield torch.tensor([token])
            if given == len(self.ids) and not self._read_piece():
                return

    def _read_piece(self) -> bool:
        """Read one more piece; False at the end."""
        for piece in self._source:
            if not isinstance(piece, str):
                raise WorkbenchError(f"a piece of the text is a {type(piece).__name__}; expected a str")
            check_scripts(piece, self._scripts)
            self.text += piece
            self.ids += self._tokenizer.encode(piece)
            return True
        check_has_words(self.text, self.text)
        return False

    def __repr__(self) -> str:
        return f"TextStream({self.text!r:.60}, {len(self.ids)} tokens so far)"
