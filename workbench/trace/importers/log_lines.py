"""Read one line of a text log: the statistics it prints, by a table of names such as `logs.toml`.

A line has any prefix, perhaps a source and a step, and then names of tensors with their numbers:

    2026-01-10 13:33:37 INFO [PY ODE] step 3: x min=-4.1, max=4.2, dt=0.071

Lines without statistics are read too, because they may describe the lines after them:

    [PY CFG inputs]               a heading: source PY, for the indented lines below it
      x_in: mean=0.5
    solver step 3/10              an announced step, for the next lines that print none
"""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError
from workbench.trace.schema import FIELDS, STATS

NAMES = Path(__file__).with_name("logs.toml")  # the table that is used where no other is given
KNOTS = ("before", "after", "last")  # which state of the ODE a log prints at a step, see logs.toml
EXTRA_STATS = ("std",)  # printed by logs; a trace has no such statistic, so they only help to compute one
NUMBERS = ("dt", "prompt_frames")  # numbers that belong to no tensor: width of a step, start of the target
SHAPE = "shape"

# The patterns below read text in lower case.
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colours of a terminal
MARKUP = re.compile(r"[*`]")  # Markdown
ASIDE = re.compile(r"\([^()]*\)|\[(?!\d\])[^\[\]]*\]")  # "(before exp)", "[py ode]"; not an index: "mu[0]"
ASSIGNMENT = re.compile(r"\b[a-z_]+\s?=\s?[-+.\w]*\d[\w.]*")  # "batch=2", which is no name of a tensor
STEP = re.compile(r"(?<![a-z])(?:time[_ ]?)?step[\s_=:#\"']*(\d{1,9})(?:\s*/\s*\d+)?")
WORD = re.compile(r"[a-z0-9+]+(?:\[\d\])?")
NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d{1,3})?|\.\d+(?:e[-+]?\d{1,3})?|nan|inf)"
RANGE = re.compile(rf"\brange\s*[=:]?\s*[\[(]\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])]")
FILLERS = {"stats", "stat", "statistics", "tensor", "output", "values", "hz", "comparison", "region"}
LIST_MARKS = ("-", "•", "|")  # first character of a list item or a table row
MAX_NAME_DISTANCE = 160  # characters before a number in which the tensor's name is searched; bounds the time
MAX_NAME_WORDS = 4  # longest name in a table
MAX_ODE_STEPS = 100  # that a table may state


class TensorName(NamedTuple):
    """The meaning of a tensor's name in a log: a field of the schema."""

    field: str  # of the schema; "" for a tensor that the table lists as having no field
    knot: str  # one of KNOTS for flow/x, else ""


UNKNOWN = TensorName("", "unknown")  # a name that the table does not have


class PrintedValue(NamedTuple):
    """One number or shape on a line."""

    tensor: TensorName | None  # None for NUMBERS
    kind: str  # one of STATS, EXTRA_STATS or NUMBERS, or SHAPE
    value: float | tuple[int, ...]
    half_unit: float  # half a unit of the last printed digit: 0.005 for "2.61"


class LogLine(NamedTuple):
    """A line that prints statistics."""

    number: int  # in the file, from 1
    heading: int  # number of the heading above the line; its own number where there is none
    tag: str  # source, such as "PY"; "" where the line does not say
    step: int | None  # as printed or announced
    values: tuple[PrintedValue, ...]
    unknown: int  # how many statistics have a name that is not in the table


class Heading(NamedTuple):
    """A line without numbers that describes the lines below it."""

    number: int
    tag: str
    tensor: TensorName | None


class LogNames(NamedTuple):
    """The table of names: which words in a log mean what."""

    tensors: Mapping[str, TensorName]
    statistics: Mapping[str, str]  # spelling -> one of STATS, EXTRA_STATS or NUMBERS
    sources: Mapping[str, str]  # word -> tag
    first_step: int  # number of the first step of the ODE
    step_count: int  # steps of the ODE, for logs that number none
    pattern: re.Pattern[str]  # finds every statistic and shape of a line

    @classmethod
    def load(cls, path: str | os.PathLike = NAMES) -> "LogNames":
        """Read a table.

        Raises
        ------
        WorkbenchError
            When the file cannot be read, or has a field, statistic or knot that does not exist.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            statistics = _by_spelling(table["statistics"], (*STATS, *EXTRA_STATS))
            statistics |= _by_spelling(table.get("numbers", {}), NUMBERS)
            sources = _by_spelling(table.get("sources", {}), None)
            tensors: dict[str, TensorName] = {}
            for rule in table["tensors"]:
                tensors |= _tensor_names(rule)
            steps = table.get("steps", {})
            first_step = int(steps.get("first", 1))
            step_count = int(steps.get("count", 10))
            if not 1 <= step_count <= MAX_ODE_STEPS:
                raise ValueError(f"{step_count} steps; expected 1 to {MAX_ODE_STEPS}")
        # Errors of tomllib are ValueErrors; the others come from values of another type than expected.
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise WorkbenchError(
                f"{path} could not be read as a table of names ({error!r}); expected TOML with [statistics] "
                "and [[tensors]]: start from a copy of workbench/trace/importers/logs.toml"
            ) from error
        return cls(tensors, statistics, sources, first_step, step_count, _value_pattern(statistics))


class LineReader:
    """Read one line after another, and remember headings and announced steps.

    Parameters
    ----------
    names : LogNames
        What logs call the tensors.
    """

    def __init__(self, names: LogNames) -> None:
        self.names = names
        words = "|".join(_spelling_pattern(word) for word in names.statistics)
        # Most lines of a log print no statistic. This cheap pattern rejects them before the expensive one.
        self._may_have_values = re.compile(rf"(?:{words})[\"']?\s*[=:]|{SHAPE}|range")
        self._heading: Heading | None = None
        self._announced_steps: dict[str, int] = {}  # by tag

    def read(self, number: int, text: str) -> LogLine | None:
        """Return what a line prints; None for a line without statistics."""
        text = text.lower()
        matches: list[re.Match[str]] = []
        if self._may_have_values.search(text):
            # Remove colours and Markdown, which may stand between a name and its number, and turn
            # "range [-1.5, 2.0]" into two statistics.
            text = ANSI.sub("", text)
            text = MARKUP.sub("", text)
            text = RANGE.sub(r"min=\1, max=\2", text)
            matches = list(self.names.pattern.finditer(text))
        if not matches:
            self._remember(number, text)
            return None

        # Source and step usually stand before the first number. A step may also stand after the numbers:
        # "x max=2.5 after step 3".
        before_numbers = text[: matches[0].start()]
        tag = self._tag(before_numbers)
        step_match = STEP.search(before_numbers) or STEP.search(text)
        step = int(step_match[1]) if step_match else None

        # Source and tensor of the heading hold for the line, unless the line has its own or ends the section.
        if _ends_section(text):
            self._heading = None
        heading = self._heading
        if heading is None or (tag and heading.tag and tag != heading.tag):
            heading = Heading(number, "", None)
        tag = tag or heading.tag

        # An announced step ends with the first line of its source that prints its own step.
        if step is None:
            step = self._announced_steps.get(tag, self._announced_steps.get(""))
        else:
            self._announced_steps.pop(tag, None)
            self._announced_steps.pop("", None)

        values = []
        unknown = 0
        for value in self._values(text, matches, heading.tensor):
            if value.tensor == UNKNOWN and value.kind != SHAPE:
                unknown += 1
            if value.tensor is None or value.tensor.field:
                values.append(value)
        return LogLine(number, heading.number, tag, step, tuple(values), unknown)

    def _remember(self, number: int, text: str) -> None:
        """Remember a heading or an announced step, for the lines after it."""
        if _is_heading(text):
            self._heading = Heading(number, self._tag(text), self._last_name(text[-MAX_NAME_DISTANCE:]))
        elif text[:1].strip():  # a line that is not indented ends the section of a heading
            self._heading = None
        # A line that ends with "step 3" or "step 3/10" announces the step of the lines after it.
        step = STEP.search(text) if "step" in text else None
        if step and not text[step.end() :].strip(" \t\r\n:.-=#*`"):
            self._announced_steps[self._tag(text)] = int(step[1])

    def _values(
        self, text: str, matches: list[re.Match[str]], heading_tensor: TensorName | None
    ) -> list[PrintedValue]:
        """Return the values of a line, each with the tensor it belongs to.

        In "v1 mean=-3.1, max=2.0, v2 mean=-3.7" a number belongs to the name before it; where there is none
        ("max"), to the tensor of the number before; at the start of a line, to the heading's tensor.
        """
        values = []
        tensor = heading_tensor or UNKNOWN
        last_end = 0
        for match in matches:
            start = max(last_end, match.start() - MAX_NAME_DISTANCE)
            name = self._last_name(text[start : match.start()])
            last_end = match.end()
            if name is not None:
                tensor = name
            if match["shape"]:
                sizes = tuple(int(size) for size in re.findall(r"\d{1,12}", match["shape"]))
                values.append(PrintedValue(tensor, SHAPE, sizes, 0.0))
                continue
            kind = self.names.statistics[_with_spaces(match["stat"])]
            value, half_unit = _parse_number(match["value"])
            values.append(PrintedValue(None if kind in NUMBERS else tensor, kind, value, half_unit))
        return values

    def _last_name(self, text: str) -> TensorName | None:
        """Return the tensor whose name a text ends with: UNKNOWN for another word, None for no word.

        The longest name of the table wins; filler words such as "stats" may follow the name.
        """
        for pattern in (STEP, ASSIGNMENT, ASIDE):
            text = pattern.sub(" ", text)
        words = WORD.findall(_with_spaces(text))
        while words:
            for length in range(min(len(words), MAX_NAME_WORDS), 0, -1):
                name = " ".join(words[-length:])
                if name in self.names.tensors:
                    return self.names.tensors[name]
            if words[-1] not in FILLERS:
                return UNKNOWN
            words.pop()
        return None

    def _tag(self, text: str) -> str:
        for word in WORD.findall(_with_spaces(text)):
            if word in self.names.sources:
                return self.names.sources[word]
        return ""


def _with_spaces(text: str) -> str:
    return text.replace("_", " ")


def _spelling_pattern(word: str) -> str:
    """Return a pattern that finds a word with spaces or underscores in it."""
    return re.escape(word).replace(r"\ ", "[_ ]")


def _is_heading(text: str) -> bool:
    """Whether a line ends with a colon or is nothing but a tag such as [PY CFG Inputs]."""
    bare = text.strip(" \t\r\n*`#")
    is_tag = bare.startswith("[") and bare.endswith("]") and bare.count("[") == 1
    return bare.endswith(":") or is_tag


def _ends_section(text: str) -> bool:
    """Whether a line is neither indented nor a list item, so that the heading above it ends."""
    is_item = text.lstrip(" \t").startswith(LIST_MARKS)
    is_indented = not text[:1].strip()
    return not is_item and not is_indented


def _parse_number(text: str) -> tuple[float, float]:
    """Return a printed number and half a unit of its last digit: "1.50e-3" -> (0.0015, 0.000005)."""
    value = float(text)
    if not math.isfinite(value):
        return value, math.inf
    mantissa, _, exponent = text.partition("e")
    decimals = len(mantissa.partition(".")[2])
    power = min(int(exponent or 0), 300)  # 10.0**309 would be an OverflowError
    return value, 0.5 * 10.0 ** (power - decimals)


def _by_spelling(table: Mapping[str, list[str]], allowed: tuple[str, ...] | None) -> dict[str, str]:
    """Turn a table of meaning -> spellings into spelling -> meaning."""
    meanings = {}
    for meaning in table:
        if allowed is not None and meaning not in allowed:
            raise ValueError(f"{meaning!r} is not one of {', '.join(allowed)}")
    for meaning, spellings in table.items():
        for spelling in spellings:
            meanings[_with_spaces(spelling.lower())] = meaning
    return meanings


def _tensor_names(rule: Mapping[str, Any]) -> dict[str, TensorName]:
    """Return the names that one [[tensors]] entry of the table gives a field."""
    field = rule.get("field", "")
    knot = rule.get("knot", "after" if field == "flow/x" else "")
    if field and field not in FIELDS:
        raise ValueError(f"{field!r} is not a field; expected one of {', '.join(FIELDS)}")
    knot_fits = knot in KNOTS if field == "flow/x" else not knot
    if not knot_fits:
        raise ValueError(f"knot is {knot!r} for {field!r}; expected {', '.join(KNOTS)}, for flow/x alone")
    tensor = TensorName(field, knot)
    return {_with_spaces(name.lower()): tensor for name in rule["names"]}


def _value_pattern(statistics: Mapping[str, str]) -> re.Pattern[str]:
    """Return the pattern of a value: `min=-1.2`, `"mean_abs": 0.5`, `max = tensor(3.1)`, `shape: [1, 80]`."""
    words = []
    for word in sorted(statistics, key=len, reverse=True):  # "mean abs" has to be tried before "mean"
        # "dt" alone is a number of its own, but "dphi_dt" is a tensor.
        not_inside_a_name = "(?<!_)" if statistics[word] in NUMBERS else ""
        words.append(not_inside_a_name + _spelling_pattern(word))
    call = r"(?:[\w.]{1,12}\()?"  # "tensor(", "torch.Size("
    number = rf"(?P<stat>{'|'.join(words)})[\"']?\s*[=:]\s*{call}(?P<value>{NUMBER})(?!\w|\.\d)"
    shape = rf"shape[\"']?(?:\s*[=:]\s*|\s+){call}[\[(](?P<shape>[\d,\s]{{1,64}})[\])]"
    return re.compile(rf"(?<![a-z0-9])(?:{number}|{shape})")
