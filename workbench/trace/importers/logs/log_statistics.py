"""Find the statistics and shapes that stand on one line, in any of the ways in which programs print them:

    min=-4.1, max: 4.2, "mean": tensor(0.5)     a name and its number
    min -4.1 max 4.2                            the same, separated by spaces
    min/max/mean = -4.1/4.2/0.5                 several names, then as many numbers
    range [-4.1, 4.2], range -4.1..4.2          "range" stands for the names min and max
    shape=(1, 80, 320)

A line is searched once from left to right, so the time grows linearly with its length.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from workbench.trace.importers.logs.log_names import NUMBERS, any_spelling, with_spaces
from workbench.trace.importers.logs.log_numbers import MINUS, START, number_at, split_numbers

SHAPE = "shape"
RANGE = "range"

ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colours of a terminal
MARKUP = re.compile(r"[*`]+")  # Markdown
# A number in a call: "tensor(2., device='cuda:0')", "np.float32(1.5)", "tensor[4.1; f32]".
TYPE = (
    r"\b(?:[a-z]{1,12}\.)?(?:tensor|array|devicearray|parameter|scalar|some|float\d*|int\d*|f32|f64|bfloat16)"
)
ARGUMENTS = r"(?:[,;]\s*[a-z][^()\[\]]*(?:\(\)[^()\[\]]*)?)?"
CALL = re.compile(rf"{TYPE}[(\[]\s*([^\s()\[\],;]{{1,400}})\s*{ARGUMENTS}[)\]]")

# Between a name and its number: "min=", "min: ", "'min': ", "x.min()=", "x.min().item(): ".
EQUALS = re.compile(r"(?:\(\)(?:\.item\(\))?)?[\"']?\s*[=:]\s*[\"']?")
SPACES = re.compile(r"\s+")
OPENING = re.compile(r"[a-z0-9_.]{0,30}[(\[{]+\s*")  # "max=[1.5, 2.5]": several numbers where one is expected
# What is not read between a name and its number: "min -> 3.5" and "min(3.5)"; "mean(abs)=3.5".
OTHER_SIGNS = (re.compile(r"\s*[^\w\s=:]{1,3}\s*"), re.compile(r"\s*\([^()]{0,40}\)\s*[=:]?\s*"))
UNCERTAINTY = re.compile(r"\s*(?:\u00b1|\+/-)\s*(?=[0-9.])")  # "0.5 ± 0.1"

# Between the names of "min/max", "min, max", "min..max" and "min max"; between these names and the numbers.
JOINER = re.compile(r"\s*(?:[/,|&;]|\.\.)\s*|\s+")
BEFORE_LIST = re.compile(r"[\"')\]]*\s*[=:]?\s*")
BRACKETED = re.compile(r"[(\[{]([^()\[\]{}]{0,4000})[)\]}]")
# A list is bounded, because each name on a line begins one: without bounds the time would be quadratic.
ITEM = rf"(?={START})[{MINUS}+]{{0,9}}[^\s/;|=:()\[\]{{}}]{{1,500}}+"
UNBRACKETED = re.compile(rf"{ITEM}(?:(?:\s*[/;|]\s*|\s+to\s+|\s+){ITEM}){{0,20}}")
SHAPE_SIZES = re.compile(r"[\"']?\s*+[=:]?\s*+(?:[\w.]{1,12}\()?[\[(]([\d,\s]{1,64})[\])]")


class FoundStatistic(NamedTuple):
    """A statistic or shape on a line."""

    kind: str  # meaning of its name in the table of names, or SHAPE
    text: str  # everything that could belong to the number, or the sizes of the shape
    start: int  # position of the name of the statistic; the name of the tensor stands before it
    end: int
    after_space: bool  # whether a space alone separates name and number, as also in prose: "max 3 times"


class FoundOnLine(NamedTuple):
    """What `StatisticFinder.find` returns."""

    statistics: list[FoundStatistic]
    unread: list[int]  # positions of names whose numbers stand in a format that is not known


class StatisticFinder:
    """Find the statistics of lines.

    Parameters
    ----------
    meanings : mapping
        Meaning of each spelling, as in `LogNames.statistics`.
    """

    def __init__(self, meanings: Mapping[str, str]) -> None:
        self._meanings = {**meanings, SHAPE: SHAPE, RANGE: RANGE}
        of_tensors = [word for word, meaning in self._meanings.items() if meaning not in NUMBERS]
        pattern = any_spelling(of_tensors)
        others = [word for word, meaning in self._meanings.items() if meaning in NUMBERS]
        if others:
            # "dt" alone is a number of its own, but "dphi_dt" is a tensor.
            pattern += f"|(?<!_)(?:{any_spelling(others)})"
        self._name = re.compile(f"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])")

    def has_name(self, text: str) -> bool:
        """Whether a statistic is named on a line in lower case, with or without a number."""
        return self._name.search(text) is not None

    def meaning(self, name: str) -> str:
        """Return the meaning of a name that the pattern of names found."""
        return self._meanings[with_spaces(name)]

    def find(self, text: str) -> FoundOnLine:
        """Return what stands on a line that `plain_text` returned."""
        statistics: list[FoundStatistic] = []
        unread: list[int] = []
        names = list(self._name.finditer(text))
        first = 0
        end = 0  # of what was read so far
        while first < len(names):
            start = names[first].start()
            if start < end:  # inside a number that was read, such as the word "nan"
                first += 1
                continue
            group = self._group(text, names, first)
            first += len(group)
            kinds = [self.meaning(name[0]) for name in group]
            if kinds == [SHAPE]:
                found = _shape_at(text, group[0])
            elif kinds == [RANGE]:
                found = _list_at(text, start, group[0].end(), ["min", "max"])
            elif len(kinds) > 1:
                found = _list_at(text, start, group[-1].end(), kinds)
            else:
                found = _single_at(text, group[0], kinds[0])
            if found is None:
                continue  # a name without a number
            statistics += found
            if found:
                end = found[-1].end
            else:
                unread.append(start)
        return FoundOnLine(statistics, unread)

    def _group(self, text: str, names: list[re.Match[str]], first: int) -> list[re.Match[str]]:
        """Return the names from the first one on that only a joiner separates, as in "min/max/mean"."""
        group = [names[first]]
        if self.meaning(names[first][0]) in (SHAPE, RANGE):
            return group
        for name in names[first + 1 :]:
            is_joined = JOINER.fullmatch(text, group[-1].end(), name.start())
            # In "max nan" the second word may be the number.
            may_be_number = text[group[-1].end() : name.start()].isspace() and number_at(text, name.start())
            if not is_joined or may_be_number or self.meaning(name[0]) in (SHAPE, RANGE):
                break
            group.append(name)
        return group


def without_colours(text: str) -> str:
    """Return a line without the codes that colour it in a terminal."""
    return ANSI.sub("", text) if "\x1b" in text else text


def plain_text(text: str) -> str:
    """Return a line without Markdown and without calls such as "tensor(...)" around numbers."""
    text = MARKUP.sub(_without_markup, text)
    return CALL.sub(r"\1", text)


def _without_markup(match: re.Match[str]) -> str:
    """Return "" for a mark of Markdown; the mark itself between two digits, as in "1.5*10"."""
    before = match.string[match.start() - 1 : match.start()]
    after = match.string[match.end() : match.end() + 1]
    return match[0] if before.isdigit() and after.isdigit() else ""


# The functions below return None where no number follows a name, and an empty list where numbers follow in a
# format that is not known.


def _single_at(text: str, name: re.Match[str], kind: str) -> list[FoundStatistic] | None:
    """Return the statistic whose one number follows a name."""
    after_space = False
    separator = EQUALS.match(text, name.end())
    if separator is None:
        separator = SPACES.match(text, name.end())
        after_space = True
    if separator:
        number = number_at(text, separator.end())
        if number:
            end = number.end
            uncertainty = UNCERTAINTY.match(text, end)
            error = number_at(text, uncertainty.end()) if uncertainty else None
            if error:
                end = error.end
            return [FoundStatistic(kind, number.text, name.start(), end, after_space)]
    if separator is None or after_space:
        others = [sign.match(text, name.end()) for sign in OTHER_SIGNS]
    else:
        others = [OPENING.match(text, separator.end())]
    return [] if any(other and number_at(text, other.end()) for other in others) else None


def _list_at(text: str, start: int, end: int, kinds: list[str]) -> list[FoundStatistic] | None:
    """Return the statistics whose numbers follow several names; the names stand from `start` to `end`."""
    end = BEFORE_LIST.match(text, end).end()
    bracketed = BRACKETED.match(text, end)
    listed = bracketed or UNBRACKETED.match(text, end)
    if listed is None:
        return None
    content = bracketed[1] if bracketed else listed[0]
    parts = split_numbers(content, len(kinds))
    if parts is None:
        return [] if any(character.isdigit() for character in content) else None
    if not bracketed:
        # What follows the last number may belong to it, as in "-4.1..4.2 khz".
        last = number_at(text, listed.start() + content.rindex(parts[-1]))
        parts[-1] = last.text if last else ""
    return [
        FoundStatistic(kind, part, start, listed.end(), False)
        for kind, part in zip(kinds, parts, strict=True)
    ]


def _shape_at(text: str, name: re.Match[str]) -> list[FoundStatistic] | None:
    """Return the shape that follows the word "shape"."""
    sizes = SHAPE_SIZES.match(text, name.end())
    if sizes is None:
        return None
    return [FoundStatistic(SHAPE, sizes[1], name.start(), sizes.end(), False)]
