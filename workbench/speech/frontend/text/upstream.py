"""Reads a text as upstream's front end does, token for token, its oddities included.

Facts: upstream `cosyvoice/cli/frontend.py` (`text_normalize`) and `cosyvoice/utils/frontend_utils.py`. A
parity file made by upstream's own code holds this module to it. What surprises most:

- Chinese is measured in characters, everything else in tokens. A sentence is never cut, however long.
- All segments but the first keep the space before them, which changes their ids.
- Of marks in a row only the first is kept: "Wait... what?!" becomes "Wait. what?".
- WeText's escapes stay: a plain quotation mark has a backslash before it.
"""

import re
import unicodedata
from collections.abc import Callable
from itertools import groupby

from workbench.speech.frontend.text.normalise import between, token_pattern, wetext
from workbench.speech.frontend.text.split import pack
from workbench.speech.frontend.text.tokenizer import TextTokenizer

_NOTHING = token_pattern(())
LONGEST, LONG_ENOUGH, TOO_SHORT = 80, 60, 20  # lengths of segments: characters of Chinese, tokens of others
MAX_AT_ONCE = 10_000  # characters that WeText is given at once; 50,000 take it 3 GB
_MARKS = {True: "。？！；：、.?!;", False: ".?!;:"}  # that end a sentence, in Chinese and in others
_SCALES = (
    "",
    *("thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion"),
    *("septillion", "octillion", "nonillion", "decillion"),
)
_ONES = (
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def upstream_segments(text: str, tokenizer: TextTokenizer, keep_tokens: bool = False) -> list[str]:
    """Return the segments that upstream's front end makes of a text without control tokens.

    Parameters
    ----------
    text : str
        Any text without `<|...|>`.
    tokenizer : TextTokenizer
        Counts the tokens of languages other than Chinese.
    keep_tokens : bool
        Normalise what stands between tokens of the vocabulary alone, which upstream does not.

    Returns
    -------
    list of str
        Empty for a text of punctuation alone.

    Raises
    ------
    Exception
        Where upstream raises as well: AssertionError by WeText, IndexError for quotes behind no sentence.
    """
    is_chinese = re.search(r"[\u4e00-\u9fff]", text) is not None
    in_words = wetext(("zh" if is_chinese else "en") if keep_tokens else "auto")

    def rewrite(piece: str) -> str:
        chunks = pack(piece, lambda chunk: len(chunk) <= MAX_AT_ONCE)
        words = "".join(between(_NOTHING, chunk, in_words) for chunk in chunks)
        return words if is_chinese else _spell_digits(words)

    kept = token_pattern(tuple(tokenizer.added_tokens))
    words = between(kept, text.strip(), rewrite) if keep_tokens else rewrite(text.strip())
    if is_chinese:
        words = _chinese_marks(words)
    if words[-1] not in _MARKS[is_chinese]:
        words += "。" if is_chinese else "."

    def length(piece: str) -> int:
        return len(piece) if is_chinese else len(tokenizer.encode(piece))

    segments = _join(_sentences(words, _MARKS[is_chinese]), length)
    return [segment for segment in segments if not _is_punctuation(segment)]


def _chinese_marks(text: str) -> str:
    """Rewrite spaces, marks and brackets of a Chinese text, in upstream's order."""
    text = text.replace("\n", "")
    # A space stays only between two ASCII characters, neither of them a space.
    text = re.sub(r" (?![\x00-\x1f\x21-\x7f])|(?<![\x00-\x1f\x21-\x7f]) ", "", text)
    for old, new in (("²", "平方"), ("³", "立方"), (".", "。"), (" - ", "，")):
        text = text.replace(old, new)
    text = re.sub("[（）【】`]", "", text).replace("——", " ")
    body = text.rstrip("，,、")
    return text if body == text else f"{body}。"


def _sentences(text: str, marks: str) -> list[str]:
    """Cut a text behind its marks; a closing quotation mark goes with the sentence before it."""
    sentences = []
    for body, mark, quote in re.findall(rf"([^{marks}]*)([{marks}])([\"”]?)", text):
        if body:
            sentences.append(body + mark)
        if quote:
            sentences[-1] += quote
    return sentences


def _join(sentences: list[str], length: Callable[[str], int]) -> list[str]:
    """Join sentences to segments."""
    segments = []
    current = ""
    for sentence in sentences:
        if length(current + sentence) > LONGEST and length(current) > LONG_ENOUGH:
            segments.append(current)
            current = ""
        current += sentence
    if current and segments and length(current) < TOO_SHORT:
        segments[-1] += current
    elif current:
        segments.append(current)
    return segments


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(c)[0] in "PS" for c in text)


def _spell_digits(text: str) -> str:
    """Write the digits that WeText left, such as １２ and ², as English words."""
    runs = groupby(text, str.isdigit)
    return "".join(_number_words("".join(run)) if is_number else "".join(run) for is_number, run in runs)


def _number_words(run: str) -> str:
    """Write digits as the library inflect does: "１２３４" -> "one thousand, two hundred and thirty-four"."""
    digits = [int(c) for c in run if c.isdecimal()]  # ² and ① count as nothing
    rest = int("".join(map(str, digits)) or "0")
    if rest < 2:
        return "one" if rest else "zero"
    groups = []
    for scale in _SCALES:
        rest, group = divmod(rest, 1000)
        if group:
            groups.insert(0, f"{_hundreds(group)} {scale}".strip())
    if rest:
        raise OverflowError("a number of more than 36 digits")
    thousands, extra = divmod(len(digits), 3)
    if thousands and extra and not any(digits[:extra]):
        groups.insert(0, _SCALES[thousands])  # inflect says "thousand, three hundred" for ０３００
    ends_small = len(groups) > 1 and " hundred" not in groups[-1] and groups[-1].split()[-1] not in _SCALES
    return (", ".join(groups[:-1]) + " and " + groups[-1]) if ends_small else ", ".join(groups)


def _hundreds(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    small = _ONES[rest] if rest < 20 else "-".join(filter(None, (_TENS[rest // 10], _ONES[rest % 10])))
    return " and ".join(filter(None, (f"{_ONES[hundreds]} hundred" if hundreds else "", small)))
