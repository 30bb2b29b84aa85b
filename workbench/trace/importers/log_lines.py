"""One line of a text log -> the statistics it prints, by a table such as `logs.toml`.

A line has prefixes of any kind, perhaps a step, and then names with their numbers. Lines that print nothing
may say something about those after them: a heading names source, tensor or step, "solver step 3/10" the step.
"""

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError
from workbench.trace.schema import FIELDS, STATS

NAMES = Path(__file__).with_name("logs.toml")
KNOTS = ("before", "after", "last")
EXTRA = ("std",)  # statistics that are printed and not kept as such
NUMBERS = ("dt", "prompt_frames")
SHAPE = "shape"

# All of these are for text in small letters.
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
MARKUP = re.compile(r"[*`]")
ASIDE = re.compile(r"\([^()]*\)|\[(?!\d\])[^\[\]]*\]")  # (before exp), [PY ODE]; but not an index: mu[0]
KEYED = re.compile(r"\b[a-z_]+\s?=\s?[-+.\w]*\d[\w.]*")  # batch=2
STEP = re.compile(r"(?<![a-z])(?:time[_ ]?)?step[\s_=:#\"']*(\d{1,9})(?:\s*/\s*\d+)?")
WORD = re.compile(r"[a-z0-9+]+(?:\[\d\])?")
NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d{1,3})?|\.\d+(?:e[-+]?\d{1,3})?|nan|inf)"
RANGE = re.compile(rf"\brange\s*[=:]?\s*[\[(]\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])]")
FILLERS = {"stats", "stat", "statistics", "tensor", "output", "values", "hz", "comparison", "region"}
REACH = 160  # characters before a number in which its name is looked for
LONGEST_NAME = 4  # words


class Row(NamedTuple):
    """Where the table puts a name."""

    field: str  # "" for a tensor that is known and of no field
    knot: str  # of KNOTS for flow/x, else ""


class Found(NamedTuple):
    """One number of a line."""

    row: Row | None  # None for NUMBERS
    what: str  # of STATS, EXTRA or NUMBERS, or SHAPE
    value: float | tuple[int, ...]
    half: float  # half a unit of the last digit that was printed


class Line(NamedTuple):
    """A line that prints statistics."""

    number: int  # in the file, from 1
    heading: int  # number of the line it stands below; its own if none
    tag: str  # source, "" where the line does not say
    step: int | None  # as printed
    found: tuple[Found, ...]
    strange: int  # statistics of names that are not in the table


class LogNames(NamedTuple):
    """The table."""

    names: Mapping[str, Row]
    statistics: Mapping[str, str]  # spelling -> STATS, EXTRA or NUMBERS
    sources: Mapping[str, str]  # word -> tag
    first: int
    count: int
    printed: re.Pattern[str]  # finds every number with a meaning

    @classmethod
    def load(cls, path: str | os.PathLike = NAMES) -> "LogNames":
        """Read a table.

        Raises
        ------
        WorkbenchError
            When it cannot be read or names what is no field, statistic or knot.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            steps, numbers = table.get("steps", {}), table.get("numbers", {})
            spelled = _turned(table["statistics"], (*STATS, *EXTRA)) | _turned(numbers, NUMBERS)
            sources = _turned(table.get("sources", {}), None)
            names = {name: row for rule in table["tensors"] for name, row in _rows(rule)}
            first, count = int(steps.get("first", 1)), int(steps.get("count", 10))
            if not 1 <= count <= 100:
                raise ValueError(f"{count} steps; expected 1 to 100")
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:  # TOML's are ValueErrors
            raise WorkbenchError(f"{path} is no table of names that can be read: {error!r}") from error
        return cls(names, spelled, sources, first, count, _printed(spelled))


class LineReader:
    """Reads one line after another and remembers what headings said.

    Parameters
    ----------
    names : LogNames
        What logs call the tensors.
    """

    def __init__(self, names: LogNames) -> None:
        self.names = names
        words = "|".join(_either(word) for word in names.statistics)
        self._looks = re.compile(rf"(?:{words})[\"']?\s*[=:]|{SHAPE}|range")  # quick: most lines have none
        self._below: tuple[int, str, Row | None] | None = None  # heading's number, tag and tensor
        self._announced: dict[str, int] = {}  # step, by tag

    def read(self, number: int, text: str) -> Line | None:
        """Return what a line prints; None where it prints no statistic."""
        text, tokens = text.lower(), []
        if self._looks.search(text):
            text = RANGE.sub(r"min=\1, max=\2", MARKUP.sub("", ANSI.sub("", text)))
            tokens = list(self.names.printed.finditer(text))
        if not tokens:
            self._heading(number, text)
            return None
        said = STEP.search(text, 0, tokens[0].start()) or STEP.search(text)
        step, tag = int(said[1]) if said else None, self._tag(text[: tokens[0].start()])
        if not text.lstrip(" \t").startswith(("-", "•", "|")) and text[:1].strip():
            self._below = None
        heading, outer, row = self._below or (number, "", None)
        if tag and outer and tag != outer:
            heading, row = number, None
        tag = tag or outer
        if step is None:
            step = self._announced.get(tag, self._announced.get(""))
        else:
            self._announced.pop(tag, None)
            self._announced.pop("", None)
        found = tuple(self._found(text, tokens, row))
        known = tuple(f for f in found if f.row is None or f.row.field)
        strange = sum(f.row == UNKNOWN and f.what != SHAPE for f in found)
        return Line(number, heading, tag, step, known, strange)

    def _heading(self, number: int, text: str) -> None:
        """Remember what a line without numbers says of those after it."""
        if _is_heading(text):
            self._below = number, self._tag(text), self._named(text[-REACH:])
        elif text[:1].strip():  # a line that is not indented ends what stands below a heading
            self._below = None
        said = STEP.search(text) if "step" in text else None
        if said and not text[said.end() :].strip(" \t\r\n:.-=#*`"):
            self._announced[self._tag(text)] = int(said[1])

    def _found(self, text: str, tokens: list[re.Match[str]], row: Row | None) -> Iterator[Found]:
        """Numbers of a line; each goes with the name before it, or with the one before that."""
        row, end = row or UNKNOWN, 0
        for token in tokens:
            between = text[max(end, token.start() - REACH) : token.start()]
            end = token.end()
            named = self._named(between)
            row = row if named is None else named
            if token["shape"]:
                sizes = tuple(int(n) for n in re.findall(r"\d{1,12}", token["shape"]))
                yield Found(row, SHAPE, sizes, 0.0)
                continue
            what = self.names.statistics[_spaced(token["stat"])]
            value, half = _number(token["value"])
            yield Found(None if what in NUMBERS else row, what, value, half)

    def _named(self, text: str) -> Row | None:
        """Return the row of the name a text ends with; None where it ends with no word at all."""
        words = WORD.findall(_spaced(ASIDE.sub(" ", KEYED.sub(" ", STEP.sub(" ", text)))))
        while words:
            for n in range(min(len(words), LONGEST_NAME), 0, -1):
                if (row := self.names.names.get(" ".join(words[-n:]))) is not None:
                    return row
            if words[-1] not in FILLERS:
                return UNKNOWN
            words.pop()
        return None

    def _tag(self, text: str) -> str:
        words = WORD.findall(_spaced(text))
        return next((self.names.sources[word] for word in words if word in self.names.sources), "")


UNKNOWN = Row("", "unknown")


def _spaced(text: str) -> str:
    return text.replace("_", " ")


def _either(word: str) -> str:
    return re.escape(word).replace(r"\ ", "[_ ]")


def _is_heading(text: str) -> bool:
    """Whether a line ends with a colon or is nothing but a tag such as [PY CFG Inputs]."""
    bare = text.strip(" \t\r\n*`#")
    return bare.endswith(":") or (bare.startswith("[") and bare.endswith("]") and bare.count("[") == 1)


def _number(text: str) -> tuple[float, float]:
    """Return a printed number and half a unit of its last digit."""
    value = float(text)
    if not math.isfinite(value):
        return value, math.inf
    mantissa, _, exponent = text.partition("e")
    return value, 0.5 * 10.0 ** (min(int(exponent or 0), 300) - len(mantissa.partition(".")[2]))


def _turned(table: Mapping[str, list[str]], allowed: tuple[str, ...] | None) -> dict[str, str]:
    """Spelling -> meaning, of meaning -> spellings."""
    for key in table:
        if allowed is not None and key not in allowed:
            raise ValueError(f"{key!r} is none of {', '.join(allowed)}")
    return {_spaced(spelling.lower()): key for key, spellings in table.items() for spelling in spellings}


def _rows(rule: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    field, knot = rule.get("field", ""), rule.get("knot", "after" if rule.get("field") == "flow/x" else "")
    if field and field not in FIELDS:
        raise ValueError(f"{field!r} is no field; expected one of {', '.join(FIELDS)}")
    if (knot not in KNOTS) if field == "flow/x" else knot:
        raise ValueError(f"knot is {knot!r} of {field!r}; expected {', '.join(KNOTS)}, of flow/x")
    return ((_spaced(name.lower()), Row(field, knot)) for name in rule["names"])


def _printed(spelled: Mapping[str, str]) -> re.Pattern[str]:
    """`min=-1.2`, `"mean_abs": 0.5`, `max = tensor(3.1)`, `shape: torch.Size([1, 80])`."""
    ordered = sorted(spelled, key=len, reverse=True)
    words = "|".join(("(?<!_)" if spelled[word] in NUMBERS else "") + _either(word) for word in ordered)
    number = rf"(?P<stat>{words})[\"']?\s*[=:]\s*(?:[\w.]{{1,12}}\()?(?P<value>{NUMBER})(?!\w|\.\d)"
    shape = r"shape[\"']?(?:\s*[=:]\s*|\s+)(?:[\w.]{1,12}\()?[\[(](?P<shape>[\d,\s]{1,64})[\])]"
    return re.compile(rf"(?<![a-z0-9])(?:{number}|{shape})")
