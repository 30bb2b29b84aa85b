"""Writes a text as the LM reads it: numbers and symbols become words, what has no sound is removed."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache

from workbench.speech.frontend.text.language import (
    check_has_words,
    has_words,
    is_verbatim,
    language_of_numbers,
)
from workbench.speech.frontend.text.split import pack
from workbench.speech.frontend.text.tokenizer import special_tokens

_CLOSING = "\"'”’»」』）)]}> "  # may follow the last punctuation mark of a sentence
# Symbols that are kept wherever they stand; others only where they touch a digit.
_SPOKEN_SYMBOLS = {"en": "°©®™", "zh": "°№", None: "°№"}
_BACKSLASH = {"en": " backslash ", "zh": "反斜杠", None: " "}  # beside a digit; WeText escapes with it
_MAX_CHUNK = 400  # characters that are normalised at once; the grammars slow down with length
# English words that WeText takes for "number" and "Sunday": No without a number behind it, and the Sun.
_NOT_ABBREVIATED = r"\bN[oO]\.(?!\s*[\d#№])|(?<=\b[Tt]he )Sun\b(?!\.?,?\s*\d)"


def normalise(text: str, language: str | None = None, tokens: Iterable[str] | None = None) -> str:
    """Return a text in the form in which the LM reads it.

    The result is NFC with single spaces and ends with a full stop or another final mark. Numbers and common
    symbols become words, in English and Chinese (by WeText); other languages keep their digits. Emoji and
    other signs without a sound are removed, unless they touch a digit. Tokens of the vocabulary, such as
    `[breath]` and `[AY0]`, stay as they are, and so does a text with control tokens (`<|...|>`).

    Parameters
    ----------
    text : str
        Any text.
    language : str, optional
        Code of its language, such as "de"; guessed by default.
    tokens : iterable of str, optional
        Tokens of the vocabulary; CosyVoice3's own by default.

    Returns
    -------
    str
        The normalised text.

    Raises
    ------
    WorkbenchError
        If the text has no letter and no number, or `language` is no code of a language.
    """
    spoken_in = language_of_numbers(text, language)
    if is_verbatim(text):
        check_has_words(text, text)
        return text
    clean = unicodedata.normalize("NFC", text)
    kept = token_pattern(tuple(special_tokens() if tokens is None else tokens))
    if spoken_in == "en":
        kept = re.compile(f"{kept.pattern}|{_NOT_ABBREVIATED}")
    clean = between(kept, clean, lambda piece: _normalise_piece(piece, spoken_in))
    clean = " ".join(clean.split())
    if spoken_in == "zh":  # no spaces between Chinese characters
        clean = re.sub(r"(?<=[\u3400-\u9fff，。！？；：、]) +(?=[\u3400-\u9fff])", "", clean)
    check_has_words(clean, text)
    body = clean.rstrip(_CLOSING)
    if body and body[-1] in ".!?…。！？।؟":
        return clean
    return clean.rstrip(",;:-–—，；：、،/ ") + ("。" if spoken_in == "zh" else ".")


@cache
def token_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that finds tokens of the vocabulary in a text, the longest that fits."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def between(kept: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """Return a text with the pieces between a pattern's matches changed, but not the spaces around them."""
    parts = []
    start = 0
    for match in [*kept.finditer(text), None]:
        piece = text[start:] if match is None else text[start : match.start()]
        bare = piece.strip()
        if bare:
            before, _, after = piece.partition(bare)
            parts += [before, change(bare), after]
        else:
            parts.append(piece)
        if match is not None:
            parts.append(match[0])
            start = match.end()
    return "".join(parts)


def _normalise_piece(text: str, language: str | None) -> str:
    """Normalise a piece of a text that has no token of the vocabulary."""
    clean = _drop_unspeakable(_spell_signs(text, language), keep=_SPOKEN_SYMBOLS[language])
    if language == "en":
        clean = clean.translate(str.maketrans("‘’“”", "''\"\""))  # typographic to plain quotes
    if language:
        chunks = pack(clean, lambda piece: len(piece.strip()) <= _MAX_CHUNK)
        clean = " ".join(_in_words(chunk.strip(), language) for chunk in chunks if chunk.strip())
    return clean


def _spell_signs(text: str, language: str | None) -> str:
    """Return a text with signs that stand for letters written out: ㎡ as m², ℃ as °C, № as a word."""
    if language == "zh":
        text = re.sub(r"第?№\s*(\d+)号?", r"第\1号", text)
    elif language == "en":  # WeText reads "No. 5" as "Number. five"
        text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " and ", text)
        text = re.sub(r"\b(N)[oO]\.\s*(?=\d)|№", lambda m: "Number " if m[1] else " number ", text)
    text = re.sub(r"(?<=\d)\\|\\(?=\d)", lambda _: _BACKSLASH[language], text)
    return "".join(_letters_of(c) for c in text)


def _letters_of(c: str) -> str:
    """Return what a symbol such as ㎡ is made of, and any other character as it is."""
    kind, *codes = unicodedata.decomposition(c).split() or [""]
    if c == "№" or unicodedata.category(c) != "So" or kind not in ("<square>", "<compat>"):
        return c
    letters = "".join(chr(int(code, 16)) for code in codes)
    return letters.replace("ℓ", "l").replace("∕", "/")  # ㎖ is mℓ, ㎧ is m∕s


def _drop_unspeakable(text: str, keep: str) -> str:
    """Return a text without characters that have no sound, with single spaces."""
    without_skin_tones = re.sub("[\U0001f3fb-\U0001f3ff]", "", text)
    kept = []
    for i, c in enumerate(without_skin_tones):
        beside = without_skin_tones[max(i - 1, 0) : i + 2]
        is_of_number = any(neighbour.isdigit() for neighbour in beside) and not _is_picture(c)
        if c in keep or _has_sound(c) or (is_of_number and unicodedata.category(c) == "So"):
            kept.append(c)
    return " ".join("".join(kept).split())


def _has_sound(c: str) -> bool:
    if c.isspace():
        return True
    category = unicodedata.category(c)
    is_variation_selector = "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"
    if c == "\\" or is_variation_selector:
        return False
    # C*: controls, surrogates, unassigned; So and Me: emoji and keycaps.
    return category[0] != "C" and category not in ("So", "Me")


def _is_picture(c: str) -> bool:
    """Whether a symbol is an emoji; it says nothing about a number that it touches."""
    return c >= "\U0001f000"


@cache
def wetext(language: str) -> Callable[[str], str]:
    """Return WeText's normaliser of "en" or "zh", or of "auto", which looks for Chinese characters."""
    from wetext import Normalizer  # loads 45 MB of grammars

    return Normalizer(lang=language, operator="tn", remove_erhua=False).normalize


def _in_words(text: str, language: str) -> str:
    """Return a text with numbers and symbols as words.

    Where WeText fails, the text is halved until the word that it cannot read is alone; that word is kept.
    """
    words = None
    with suppress(Exception):  # WeText's grammars raise assertions and parse errors for odd symbols
        words = wetext(language)(text).replace("\\", "")  # it escapes quotes
    # WeText returns an empty text for some it cannot read, such as "abc.def.".
    is_lost = words is None or (not words.strip() and has_words(text))
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
