"""Text that arrives as a stream: its ids one by one, and what is refused."""

import pytest

from workbench.errors import WorkbenchError
from workbench.speech.frontend.text import TextStream


def test_pieces_are_read_when_their_ids_are_asked_for(bundled):
    given = []

    def pieces():
        for piece in ("Eight ", "months 5"):
            given.append(piece)
            yield piece

    stream = TextStream(pieces(), bundled)
    ids = iter(stream)
    first = next(ids)
    assert first.shape == (1,) and given == ["Eight "] and stream.text == "Eight "
    rest = [int(token) for token in ids]
    assert [int(first), *rest] == stream.ids == bundled.encode("Eight ") + bundled.encode("months 5")
    assert [int(token) for token in stream] == stream.ids and len(given) == 2  # read once, spoken again


def test_a_stream_that_was_read_is_made_of_its_ids():
    assert [int(token) for token in TextStream.read("ab", [4, 5])] == [4, 5]


@pytest.mark.parametrize(
    ("pieces", "scripts", "expected"),
    [
        (5, (), "text is a int; expected a str or an iterable"),
        (b"abc", (), "text is a bytes"),
        (["a", None], (), "piece of the text is a NoneType"),
        (["...", " "], (), "nothing to say"),
        ([], (), "nothing to say"),
        (["Hello ", "мир"], ("LATIN",), "written in CYRILLIC"),
    ],
)
def test_what_cannot_be_spoken_is_refused(bundled, pieces, scripts, expected):
    with pytest.raises(WorkbenchError, match=expected):
        list(TextStream(pieces, bundled, scripts))
