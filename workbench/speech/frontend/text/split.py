"""Splits a normalised text into segments, each of which the LM speaks in one run."""

import re
from collections.abc import Callable

from workbench.speech.frontend.text.language import has_words, is_verbatim
from workbench.speech.frontend.text.tokenizer import TextTokenizer

# Where a segment may end, the best boundary first: sentences, clauses, words, and at last any characters.
_BOUNDARIES = (
    re.compile(r"[.!?;:…।؟]+[\"'”’)\]]*\s+|[。！？；：]+[”’」』）]*\s*"),
    re.compile(r"[,،—–]\s+|[，、]\s*"),
    re.compile(r"\s+"),
    re.compile(r"(?s:.)"),
)


def split(
    text: str,
    tokenizer: TextTokenizer,
    token_max_n: int = 80,
    token_min_n: int = 60,
    merge_len: int = 20,
) -> list[str]:
    """Split a text into segments, each of which the LM speaks in one run.

    Segments end at sentence ends. A sentence is split at commas, spaces or anywhere only if it is too long,
    or if the segment before it would be short. The numbers are upstream's, the rules are not.

    Parameters
    ----------
    text : str
        Normalised text.
    tokenizer : TextTokenizer
        Counts the tokens.
    token_max_n : int
        Largest number of tokens of a segment.
    token_min_n : int
        A segment with fewer tokens is filled up with clauses of the next sentence.
    merge_len : int
        A last segment with fewer tokens is filled up with clauses of the segment before it.

    Returns
    -------
    list of str
        All letters and digits, in order; a segment of punctuation alone is left out.
    """
    if is_verbatim(text):
        return [text]

    def count(piece: str) -> int:
        return len(tokenizer.encode(piece.strip()))

    pieces = pack(text, lambda p: count(p) <= token_max_n, lambda p: count(p) >= token_min_n)
    pieces = [piece for piece in pieces if has_words(piece)]
    if len(pieces) > 1 and count(pieces[-1]) < merge_len:
        pieces[-2:] = _balance(pieces[-2], pieces[-1], count, merge_len)
    return [piece.strip() for piece in pieces]


def _balance(before: str, tail: str, count: Callable[[str], int], merge_len: int) -> list[str]:
    """Move the cut before a short last segment, so that the segment has `merge_len` tokens or more."""
    both = before + tail
    limit = count(both) - merge_len
    pieces = pack(both, lambda p: count(p) <= limit)
    # Never move a cut from a pause into the middle of a clause.
    is_better = len(pieces) == 2 and (_ends_at_pause(pieces[0]) or not _ends_at_pause(before))
    return pieces if is_better else [before, tail]


def _ends_at_pause(piece: str) -> bool:
    """Whether a segment ends with punctuation."""
    return not piece.rstrip()[-1:].isalnum()


def pack(
    text: str, fits: Callable[[str], bool], enough: Callable[[str], bool] = lambda piece: True
) -> list[str]:
    """Split a text at its best boundaries into pieces, each as long as `fits` allows.

    Parameters
    ----------
    text : str
        The pieces joined are this text.
    fits : callable str -> bool
        Whether a piece is short enough.
    enough : callable str -> bool
        Whether a piece is long enough to end before the next sentence.
    """
    pieces = [""]  # the last one is still growing

    def add(text: str, level: int) -> None:
        """Add a text to the pieces, cut at the boundaries of a level where it has to be cut."""
        cuts = [m.end() for m in _BOUNDARIES[level].finditer(text)]
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            part = text[start:end]
            can_cut_finer = level + 1 < len(_BOUNDARIES)
            if fits(pieces[-1] + part):
                pieces[-1] += part
            elif can_cut_finer and (not fits(part) or (level == 0 and not enough(pieces[-1]))):
                # The part is too long, or is needed to fill up the last piece: cut it at finer boundaries.
                add(part, level + 1)
            elif pieces[-1]:
                pieces.append(part)
            else:
                pieces[-1] = part

    add(text, 0)
    return pieces
