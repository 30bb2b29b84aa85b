"""Read the table of names: what text logs call tensors, statistics and sources.

`logs.toml` beside this file is the table of the package. Names are compared in lower case, with "_" and "-"
read as spaces.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError
from workbench.files import read_text_file
from workbench.trace.schema import FIELDS, STATS

NAMES = Path(__file__).with_name("logs.toml")  # the table that is used where no other is given
KNOTS = ("before", "after", "last")  # which state of the ODE a log prints at a step, see logs.toml
OTHER = "other"  # a statistic that is of no use here, such as the median
EXTRA_STATS = ("std", OTHER)  # a trace has neither; the standard deviation helps to compute the rms
NUMBERS = ("dt", "prompt_frames")  # numbers that belong to no tensor: width of a step, start of the target
MAX_ODE_STEPS = 100  # that a table may state
UNREADABLE_STEP = 10**9  # larger than the number of any step, so that its line is refused
MAX_NAME_DISTANCE = 160  # characters before a number in which the tensor's name is searched; bounds the time
MAX_NAME_WORDS = 4  # longest name in a table

# The patterns below read text in lower case.
# "step 3", "step=3/10", "step-3". What is no integer is found too, so that it is refused: "step 1,000".
STEP = re.compile(
    r"(?<![a-z])(?:time[_ ]?)?step(?:-(?=[0-9])|[\s_=:#\"']*)"
    r"(-?[0-9][0-9a-z]*(?:[.,'][0-9]+)*)(?:\s*/\s*[0-9]+)?"
)
ASIDE = re.compile(r"\([^()]*\)|\[(?!\d\])[^\[\]]*\]")  # "(before exp)", "[py ode]"; not an index: "mu[0]"
ASSIGNMENT = re.compile(r"\b[a-z_]+\s?=\s?[-+.\w]*\d[\w.]*|\bcuda:\d")  # "batch=2": no name of a tensor
WORD = re.compile(r"[a-z0-9+]+(?:\[\d\])?")
# Words that may stand between a name and its numbers: "x stats:", "x (1, 80) float32", "min=-3 at (0, 3)".
FILLER = re.compile(
    "stats?|statistics|tensor|output|values|hz|comparison|region|range|at|shape|size|dtype|device|torch|cuda|cpu"
    "|half|b?float[0-9]*|b?f[0-9]+"
)


class TensorName(NamedTuple):
    """The meaning of a tensor's name in a log: a field of the schema."""

    field: str  # of the schema; "" for a tensor that the table lists as having no field
    knot: str  # one of KNOTS for flow/x, else ""


UNKNOWN = TensorName("", "unknown")  # a name that the table does not have
UNNAMED = TensorName("", "unnamed")  # no name at all


class LogNames(NamedTuple):
    """The table of names: which words in a log mean what."""

    tensors: Mapping[str, TensorName]
    statistics: Mapping[str, str]  # spelling -> one of STATS, EXTRA_STATS or NUMBERS
    sources: Mapping[str, str]  # word -> tag
    first_step: int  # number of the first step of the ODE
    step_count: int  # steps of the ODE, for logs that number none

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
            table = tomllib.loads(read_text_file(path))
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
        # Errors of tomllib are ValueErrors, or a RecursionError for deep nesting; the others come from values
        # of another type or size than expected.
        except (
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise WorkbenchError(
                f"{path} could not be read as a table of names ({error!r}); expected TOML with [statistics] "
                "and [[tensors]]: start from a copy of workbench/trace/importers/logs/logs.toml"
            ) from error
        return cls(tensors, statistics, sources, first_step, step_count)

    def last_tensor(self, text: str) -> TensorName | None:
        """Return the tensor whose name a text ends with.

        The longest name of the table wins; filler words such as "stats" may follow the name. UNKNOWN stands
        for another word, UNNAMED for a number, None for a text without words.
        """
        text = text[-MAX_NAME_DISTANCE:]
        for pattern in (STEP, ASSIGNMENT, ASIDE):
            text = pattern.sub(" ", text)
        words = WORD.findall(with_spaces(text))
        while words:
            for length in range(min(len(words), MAX_NAME_WORDS), 0, -1):
                name = " ".join(words[-length:])
                if name in self.tensors:
                    return self.tensors[name]
            if not FILLER.fullmatch(words[-1]):
                return UNNAMED if words[-1].isdigit() else UNKNOWN
            words.pop()
        return None

    def source(self, text: str) -> str:
        """Return the tag of the first word that names a source; "" where no word does."""
        for word in WORD.findall(with_spaces(text)):
            if word in self.sources:
                return self.sources[word]
        return ""


def step_number(text: str) -> int:
    """Return the number of a step as it was printed; `UNREADABLE_STEP` for what is no integer."""
    return int(text) if text.isdecimal() and len(text) <= 9 else UNREADABLE_STEP


def with_spaces(text: str) -> str:
    """Return a text with underscores and hyphens as spaces."""
    return text.replace("_", " ").replace("-", " ")


def any_spelling(spellings: list[str]) -> str:
    """Return a pattern that finds any of the spellings, the longest first; it has no groups."""
    longest_first = sorted(spellings, key=len, reverse=True)  # "mean abs" has to be tried before "mean"
    return "|".join(re.escape(spelling).replace(r"\ ", "[-_ ]") for spelling in longest_first)


def _by_spelling(table: Mapping[str, list[str]], allowed: tuple[str, ...] | None) -> dict[str, str]:
    """Turn a table of meaning -> spellings into spelling -> meaning."""
    meanings = {}
    for meaning in table:
        if allowed is not None and meaning not in allowed:
            raise ValueError(f"{meaning!r} is not one of {', '.join(allowed)}")
    for meaning, spellings in table.items():
        for spelling in spellings:
            meanings[with_spaces(spelling.lower())] = meaning
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
    return {with_spaces(name.lower()): tensor for name in rule["names"]}
