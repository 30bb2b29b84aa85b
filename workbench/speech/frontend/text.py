"""Text: write numbers and symbols as words, split into segments for the LM, and encode as token ids."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from workbench.errors import WorkbenchError

END_OF_PROMPT = "<|endofprompt|>"  # between instruction and text
_BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pre-tokenisation, as published in its tokenizer.json.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Where a segment may end, the best boundary first: sentences, clauses, words, and at last any characters.
_BOUNDARIES = (
    re.compile(r"[.!?;:…।؟]+[\"'”’)\]]*\s+|[。！？；：]+[”’」』）]*\s*"),
    re.compile(r"[,،—–]\s+|[，、]\s*"),
    re.compile(r"\s+"),
    re.compile(r"(?s:.)"),
)
_CLOSING = "\"'”’»」』）)]}> "  # may follow the last punctuation mark of a sentence
_SPOKEN_SYMBOLS = "°©®™"  # symbols for which the normaliser has words
_MAX_CHUNK = 400  # characters that are normalised at once; the grammars slow down with length


def special_tokens() -> list[str]:
    """Return CosyVoice3's own special tokens, in the order of their ids."""
    return files("workbench.speech.frontend").joinpath("special_tokens.txt").read_text("utf-8").splitlines()


class TextTokenizer:
    """Qwen2's byte-level BPE with CosyVoice3's special tokens after its vocabulary.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Qwen2's; the special tokens are added to it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        for token in (*_BASE_SPECIALS, *special_tokens()):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TextTokenizer":
        """Read a tokenizer folder, such as a checkpoint's `CosyVoice-BlankEN`.

        Parameters
        ----------
        folder : path
            Holds `vocab.json` and `merges.txt`, or `tokenizer.json`.

        Raises
        ------
        WorkbenchError
            When a file is missing or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        vocab = folder / "vocab.json"
        merges = folder / "merges.txt"
        complete = folder / "tokenizer.json"
        if vocab.is_file() and merges.is_file():
            return cls(_qwen2(vocab, merges, folder / "tokenizer_config.json"))
        if not complete.is_file():
            missing = " and ".join(f.name for f in (vocab, merges) if not f.is_file())
            raise WorkbenchError(
                f"{folder} has no {missing} and no tokenizer.json; expected a Qwen2 tokenizer: "
                "point at the checkpoint's CosyVoice-BlankEN folder"
            )
        try:
            return cls(Tokenizer.from_file(str(complete)))
        except Exception as error:  # tokenizers raises bare Exception
            raise WorkbenchError(f"{complete} is not a readable tokenizer ({error}); copy it again") from None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; a special token in it becomes one id."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError):
            raise WorkbenchError(f"{text!r:.80} cannot be encoded; expected Unicode text") from None

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    @property
    def end_of_prompt(self) -> int:
        """Id of `<|endofprompt|>`, which every input of the LM contains."""
        return self._tokenizer.token_to_id(END_OF_PROMPT)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        return f"TextTokenizer({len(self)} ids)"


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{path} is not readable JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise WorkbenchError(f"{path} holds a {type(found).__name__}; expected a JSON object")
    return found


def _qwen2(vocab: Path, merges: Path, config: Path) -> Tokenizer:
    """Build Qwen2's tokenizer from its vocabulary, merges and, if there is one, `tokenizer_config.json`."""
    _json(vocab)  # for an error that names the file
    try:
        tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # tokenizers raises bare Exception
        raise WorkbenchError(f"{merges} does not fit {vocab.name} ({error}); copy both again") from None
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Tokens that the config adds must get the ids that it states.
    added = _json(config).get("added_tokens_decoder", {}) if config.is_file() else {}
    try:
        named = sorted((int(i), token["content"]) for i, token in added.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WorkbenchError(f"{config}: added_tokens_decoder is not id -> token; copy it again") from None
    for expected, token in named:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        found = tokenizer.token_to_id(token)
        if found != expected:
            raise WorkbenchError(
                f"{token} got id {found}, but {config} says {expected}; {vocab.name} is not its vocabulary"
            )
    return tokenizer


def is_verbatim(text: str) -> bool:
    """Whether a text has control tokens (`<|...|>`); such a text is neither normalised nor split."""
    return "<|" in text and "|>" in text


def normalise(text: str) -> str:
    """Return a text in the form in which the LM reads it.

    The result is NFC with single spaces and ends with a full stop or another final mark. Numbers and common
    symbols become words, in English and Chinese (by WeText, as upstream); other languages keep their digits.
    Emoji and other signs without a sound are removed. A text with control tokens (`<|...|>`) is returned as
    it is.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        The normalised text.

    Raises
    ------
    WorkbenchError
        If the text has no letter and no number.
    """
    if is_verbatim(text):
        _check_has_words(re.sub(r"<\|.*?\|>", "", text), text)
        return text
    clean = _drop_unspeakable(unicodedata.normalize("NFC", text), keep=_SPOKEN_SYMBOLS)
    language = _language(clean)
    if language == "en":
        clean = clean.translate(str.maketrans("‘’“”", "''\"\""))  # typographic to plain quotes
    if language:
        chunks = _pack(clean, lambda piece: len(piece.strip()) <= _MAX_CHUNK)
        clean = " ".join(_in_words(chunk.strip(), language) for chunk in chunks if chunk.strip())
    clean = _drop_unspeakable(clean)
    if language == "zh":  # no spaces between Chinese characters
        clean = re.sub(r"(?<=[\u3400-\u9fff，。！？；：、]) +(?=[\u3400-\u9fff])", "", clean)
    _check_has_words(clean, text)
    body = clean.rstrip(_CLOSING)
    if body[-1] in ".!?…。！？।؟":
        return clean
    return clean.rstrip(",;:-–—，；：、،/ ") + ("。" if language == "zh" else ".")


def _check_has_words(clean: str, text: str) -> None:
    if not _has_words(clean):
        raise WorkbenchError(f"{text!r:.80} has nothing to say; expected at least one letter or number")


def _has_words(text: str) -> bool:
    """Whether a text has a letter or a number: Unicode categories L* and N*."""
    return any(unicodedata.category(c)[0] in "LN" for c in text)


def _drop_unspeakable(text: str, keep: str = "") -> str:
    """Return a text without characters that have no sound, with single spaces."""

    def is_kept(c: str) -> bool:
        if c in keep or c.isspace():
            return True
        category = unicodedata.category(c)
        is_variation_selector = "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"
        if c == "\\" or is_variation_selector:
            return False
        # C*: controls, surrogates, unassigned; So and Me: emoji and keycaps.
        return category[0] != "C" and category not in ("So", "Me")

    without_skin_tones = re.sub("[\U0001f3fb-\U0001f3ff]", "", text)
    kept = "".join(c for c in without_skin_tones if is_kept(c))
    return " ".join(kept.split())


def _script(char: str) -> str:
    """Return a letter's script by its Unicode name: "LATIN SMALL LETTER A" -> "LATIN"."""
    folded = unicodedata.normalize("NFKC", char)
    return unicodedata.name(folded[0], "UNKNOWN").split()[0].split("-")[0]


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script."""
    letters = (c for c in text if unicodedata.category(c) in ("Ll", "Lu", "Lt", "Lo"))
    return Counter(_script(c) for c in letters)


def _language(text: str) -> str | None:
    """Guess which of WeText's languages a text is in; None for another one.

    Chinese characters without Japanese or Korean letters are Chinese. Text in Latin letters, or with none,
    is read as English.
    """
    found = _scripts(text)
    if found["CJK"] and not found["HIRAGANA"] and not found["KATAKANA"] and not found["HANGUL"]:
        return "zh"
    is_latin = not found or found.most_common(1)[0][0] == "LATIN"
    return "en" if is_latin else None


@cache
def _wetext(language: str) -> Callable[[str], str]:
    from wetext import Normalizer  # loads 45 MB of grammars

    return Normalizer(lang=language, operator="tn", remove_erhua=False).normalize


def _in_words(text: str, language: str) -> str:
    """Return a text with numbers and symbols as words.

    Where WeText fails, the text is halved until the word that it cannot read is alone; that word is kept.
    """
    words = None
    with suppress(Exception):  # WeText's grammars raise assertions and parse errors for odd symbols
        words = _wetext(language)(text).replace("\\", "")  # it escapes quotes
    # WeText returns an empty text for some it cannot read, such as "abc.def.".
    is_lost = words is None or (not words.strip() and _has_words(text))
    if not is_lost:
        return words
    parts = text.split(" ")
    if len(parts) == 1:
        parts = re.findall(r"\d[\d.,]*\d|\d|[^\W\d_]+|.", text)
    if len(parts) < 2:
        return text
    half = len(parts) // 2
    separator = " " if " " in text else ""
    halves = (separator.join(parts[:half]), separator.join(parts[half:]))
    return " ".join(_in_words(part, language) for part in halves if part)


def check_scripts(text: str, scripts: tuple[str, ...]) -> None:
    """Raise a WorkbenchError for a text with letters that a voice was not trained to read.

    Parameters
    ----------
    text : str
        Text to speak.
    scripts : tuple of str
        Unicode script names as in `unicodedata.name`, such as LATIN or CJK; empty allows all.
    """
    if not scripts:
        return
    for word in re.sub(r"<\|.*?\|>", " ", text).split():
        for script in _scripts(word):
            if script not in scripts:
                raise WorkbenchError(
                    f"{word!r:.40} is written in {script}; this voice reads {', '.join(scripts)}: "
                    "write the text in that script, or load a voice trained for it"
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
    or if the segment before it would be short. The defaults are upstream's.

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

    pieces = _pack(text, lambda p: count(p) <= token_max_n, lambda p: count(p) >= token_min_n)
    pieces = [piece for piece in pieces if _has_words(piece)]
    if len(pieces) > 1 and count(pieces[-1]) < merge_len:
        pieces[-2:] = _balance(pieces[-2], pieces[-1], count, merge_len)
    return [piece.strip() for piece in pieces]


def _balance(before: str, tail: str, count: Callable[[str], int], merge_len: int) -> list[str]:
    """Move the cut before a short last segment, so that the segment has `merge_len` tokens or more."""
    both = before + tail
    limit = count(both) - merge_len
    pieces = _pack(both, lambda p: count(p) <= limit)
    # Never move a cut from a pause into the middle of a clause.
    is_better = len(pieces) == 2 and (_ends_at_pause(pieces[0]) or not _ends_at_pause(before))
    return pieces if is_better else [before, tail]


def _ends_at_pause(piece: str) -> bool:
    """Whether a segment ends with punctuation."""
    return not piece.rstrip()[-1:].isalnum()


def _pack(
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
