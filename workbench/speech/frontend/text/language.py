"""What a text is made of: words, control tokens, scripts, and the language that its numbers are read in."""

import re
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from importlib.resources import files

from workbench.errors import WorkbenchError

_NAME = re.compile(r"\b(?:El|La|Las|Le|Les|Los|De|Di|Do|San|Die)\s+(?=[A-Z])")
_CHINESE = ("zh", "cmn", "yue")  # codes of languages that are read as Chinese


@cache
def _frequent_words() -> dict[str, frozenset[str]]:
    found = files("workbench.speech.frontend.text").joinpath("frequent_words.toml").read_text("utf-8")
    return {language: frozenset(words.split()) for language, words in tomllib.loads(found).items()}


def is_verbatim(text: str) -> bool:
    """Whether a text has control tokens (`<|...|>`); such a text is neither normalised nor split."""
    return "<|" in text and "|>" in text


def has_words(text: str) -> bool:
    """Whether a text has a letter or a number: Unicode categories L* and N*."""
    return any(unicodedata.category(c)[0] in "LN" for c in text)


def check_has_words(text: str, given: str) -> None:
    """Raise a WorkbenchError where a text has no word to say; `given` is how it was typed."""
    if not has_words(re.sub(r"<\|.*?\|>", "", text)):
        raise WorkbenchError(f"{given!r:.80} has nothing to say; expected at least one letter or number")


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


def language_of_numbers(text: str, language: str | None = None) -> str | None:
    """Return the language in which a text's numbers and symbols become words.

    Parameters
    ----------
    text : str
        Any text.
    language : str, optional
        Code of its language, such as "en", "zh", "de" or "pt-BR"; guessed by default.

    Returns
    -------
    "en", "zh" or None
        None for all other languages: their digits stay.

    Raises
    ------
    WorkbenchError
        When `language` is no code of a language.
    """
    if language is None:
        return _guess(text)
    if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*", language):
        raise WorkbenchError(f"language is {language!r}; expected a code such as en, zh, de, fr or ja")
    primary = language.partition("-")[0]
    if primary in _CHINESE:
        return "zh"
    return "en" if primary == "en" else None


def _guess(text: str) -> str | None:
    """Guess the language of a text's numbers.

    Chinese characters without Japanese or Korean letters are Chinese. A text in Latin letters is English
    unless more of its words are frequent in one other language, or have letters that English has not.
    """
    found = _scripts(text)
    if found["CJK"] and not found["HIRAGANA"] and not found["KATAKANA"] and not found["HANGUL"]:
        return "zh"
    if not found:
        return "en"
    if found.most_common(1)[0][0] != "LATIN":
        return None
    # Of names such as Los Angeles only the last word counts.
    words = re.findall(r"[^\W\d_]+", _NAME.sub("", text).lower())
    frequent = {
        language: sum(word in known for word in words) for language, known in _frequent_words().items()
    }
    foreign_letters = sum(any(not c.isascii() and _script(c) == "LATIN" for c in word) for word in words)
    english = frequent.pop("en")
    return None if max(frequent.values()) + foreign_letters > english else "en"


def _script(char: str) -> str:
    """Return a letter's script by its Unicode name: "LATIN SMALL LETTER A" -> "LATIN"."""
    folded = unicodedata.normalize("NFKC", char)
    return unicodedata.name(folded[0], "UNKNOWN").split()[0].split("-")[0]


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script."""
    letters = (c for c in text if unicodedata.category(c) in ("Ll", "Lu", "Lt", "Lo"))
    return Counter(_script(c) for c in letters)
