"""Read numbers as programs print them, each one completely or not at all.

"5,817,890" is 5817890 or nothing, but never 5. Reading takes two steps:

1. `number_at` returns everything behind a position that could belong to a number: digits, letters, signs,
   grouping marks, units that scale it. It does not judge: "5.8m" and "1.5e" are returned as they are.
2. `read_numbers` reads all numbers of a line together and refuses what is no number.

A comma is a decimal mark in some countries and groups digits in others, so "1,234" alone is refused. One line
has one style: "min=-0,057 max=1,234" has decimal commas, because 0,057 cannot be a group of digits.
"""

import math
import re
from typing import NamedTuple

# Minus signs: hyphen-minus, hyphen, non-breaking hyphen, en dash, minus, small and full-width hyphen-minus.
MINUS = "-\u2010\u2011\u2013\u2212\ufe63\uff0d"
SIGN = f"[{MINUS}+]"
GROUPING = "'\u2019_\u00a0\u2007\u2009\u202f"  # apostrophes, underscore, and spaces that do not break a line
# What a number begins with: a digit, or one of the words for numbers that are not finite.
START = rf"{SIGN}*(?:[.,]?[0-9]|(?:nan|inf|infinity)(?![a-z0-9_])|\u221e)"
# Letters and digits of any script, and marks between two digits; also the Arabic and full-width comma.
BODY = rf"(?:[\w#$.\u2026\u221e]|[,{GROUPING}\u066b\u066c\uff0c](?=[0-9#$])|(?<=[ed]){SIGN}(?=[0-9]))*"
NAN_TYPE = r"(?:(?<=nan)\([a-z0-9_]*\))?"  # "nan(ind)" of Windows
# What may follow a number and change it: a unit, a power of ten, another number without a space.
UNITS = "k|m|g|khz|mhz|ms|db|thousand|million|billion"
# Signs that do not end a number. Those that do: spaces, quotes, closing brackets, and the marks listed here.
JOINING_SIGN = r"[^\w\s\"')\]},;|<>!\u00b1\u2014\u3001\u3002\uff0c\uff1b]"
SCALE = (
    rf"(?:[ \t]*(?:[%\u2030\u00d7\u00b7^*]|(?:{UNITS}|e[-+]?[0-9]+)(?![a-z0-9_])|x[ ]?10)"
    rf"|{JOINING_SIGN}+[{MINUS}.\w])?"
)
EXTENT = re.compile(f"(?={START}){SIGN}*{BODY}{NAN_TYPE}{SCALE}")
# "5 817 890" with ordinary spaces: it may be one number or three, so all of it counts as the number's text.
SHORT_INTEGER = re.compile(rf"{SIGN}?[0-9]{{1,3}}")
SPACED_GROUP = re.compile(r" [0-9]{3}(?![0-9a-z_:/])")

MAX_NUMBER_LENGTH = 500  # characters; the largest double has 309 digits and 102 marks before the point
MAX_EXPONENT = 300  # 10.0**309 would be an OverflowError
NONFINITE = re.compile(r"([+-]?)(?:(nan(?:\([a-z0-9_]*\))?)|inf|infinity|\u221e|1[.,][#$]([a-z0-9]*))\.?")
# A full stop or "hz" may stand directly behind a number.
NUMBER = (
    r"([+-]?)(?:({whole})(?:{point}([0-9]*))?|{point}([0-9]+))(?:[ed]([+-]?[0-9]{{1,4}}))?(?:hz)?(?<!\.)\.?"
)
WHOLE = r"[0-9]+|[1-9][0-9]{{0,2}}(?:(?P<mark>[{marks}])[0-9]{{3}})(?:(?P=mark)[0-9]{{3}})*"


class Rounded(NamedTuple):
    """A number as it was printed."""

    value: float
    half_unit: float  # half a unit of its last digit: the largest error that rounding made; 0.005 for "2.61"


class NumberText(NamedTuple):
    """Everything that could belong to a number."""

    text: str
    end: int  # position behind it


def number_at(text: str, start: int) -> NumberText | None:
    """Return everything that could belong to a number that begins at a position; None where none begins.

    Examples
    --------
    >>> number_at("max=5,817,890, mean=3", 4)
    NumberText(text='5,817,890', end=13)
    """
    match = EXTENT.match(text, start)
    if match is None:
        return None
    end = match.end()
    if SHORT_INTEGER.fullmatch(match[0]):
        while group := SPACED_GROUP.match(text, end):
            end = group.end()
    return NumberText(text[start:end], end)


def read_numbers(texts: list[str]) -> list[Rounded] | None:
    """Read the numbers of one line, all with the same decimal mark.

    Parameters
    ----------
    texts : list of str
        In lower case.

    Returns
    -------
    list of Rounded or None
        None where a text is no number, or where the line could be read in two ways.

    Examples
    --------
    >>> read_numbers(["-4,35", "1.234,5"])
    [Rounded(value=-4.35, half_unit=0.005), Rounded(value=1234.5, half_unit=0.05)]
    >>> read_numbers(["1,234"]) is None
    True
    """
    with_point = [_read(text, POINT) for text in texts]
    with_comma = [_read(text, COMMA) for text in texts]
    point_fits = None not in with_point
    comma_fits = None not in with_comma
    has_comma = any("," in text and "#" not in text for text in texts)  # the comma of "1,#inf" is harmless
    if point_fits and comma_fits and has_comma:
        return None  # "1,234"
    if point_fits:
        return with_point
    return with_comma if comma_fits else None


def split_numbers(text: str, count: int) -> list[str] | None:
    """Split a list such as "-4.1/3.8/-0.05", "-4.1, 3.8" or "-4.1..3.8" into the texts of its numbers.

    None where the list cannot be split into as many as `count`. A comma separates numbers here if it can:
    where two are expected, "1,5" holds 1 and 5.
    """
    text = text.strip(" \t\r\n,;/|")
    for separator in CERTAIN_SEPARATORS:
        parts = separator.split(text)
        if len(parts) > 1:
            return [part.strip() for part in parts] if len(parts) == count else None
    for separator in POSSIBLE_SEPARATORS:
        parts = separator.split(text)
        if len(parts) == count:
            return [part.strip() for part in parts]
    return None


def _number_pattern(point: str, marks: str) -> re.Pattern[str]:
    return re.compile(NUMBER.format(whole=WHOLE.format(marks=marks), point=point))


POINT = _number_pattern(r"\.", "," + GROUPING)
COMMA = _number_pattern(",", "." + GROUPING)
CERTAIN_SEPARATORS = [re.compile(pattern) for pattern in (r"[;/|]", r"(?<!\.)\.\.=?(?!\.)", r"[ \t]to[ \t]")]
POSSIBLE_SEPARATORS = [re.compile(pattern) for pattern in (r",[ \t]+", ",", r"[ \t]+")]


def _read(text: str, style: re.Pattern[str]) -> Rounded | None:
    """Read a text as a number; None where it is none in this style, which is `POINT` or `COMMA`."""
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    for minus in MINUS:
        text = text.replace(minus, "-")
    if nonfinite := NONFINITE.fullmatch(text):
        sign, nan, windows_name = nonfinite.groups()
        is_nan = nan or (
            windows_name and not windows_name.startswith(("inf", "j"))
        )  # "1.#j" is a rounded inf
        return Rounded(math.nan if is_nan else float(sign + "inf"), math.inf)
    match = style.fullmatch(text)
    if match is None:
        return None
    sign, whole, mark, decimals, only_decimals, exponent = match.groups()
    if mark and exponent:
        return None  # the comma of "1,234e+01" is no grouping: no program groups digits before an exponent
    whole = re.sub("[^0-9]", "", whole or "0")
    decimals = decimals or only_decimals or ""
    power = int(exponent or 0)
    value = float(f"{sign}{whole}.{decimals}e{power}")
    if math.isinf(value):
        return Rounded(value, math.inf)
    return Rounded(value, 0.5 * 10.0 ** (min(power, MAX_EXPONENT) - len(decimals)))
