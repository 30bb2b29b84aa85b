"""Read and check mapping files, which say which tensor of a dump is which field.

A mapping is TOML with one table per field:

    [fields."flow/velocity_cond"]
    name = "step{step}_v1"
    axes = ["one", "mel", "frame"]
    first = 1

`name`      the tensor's name in the dump. With `{step}` it stands for one tensor per step of the ODE, padded
            with zeros or not; `{step:03d}` for numbers of at least three digits.
`axes`      the tensor's axes under the schema's names. `one` is an axis of length 1, which is dropped and may
            be missing; of `batch` the entry `index` is taken, as where both branches stand in one batch.
`index`     entry of the axis `batch`, from 0.
`first`     number of the first step, 0 unless given.
`start`     names that the state before the first step may have. A loop of n steps has n + 1 states; without
            the first of them no state is at its index, so the field is left out.
`scale`     factor for the values.
`shape`     needed for raw files whose names do not give it; then `name` is the file's name.
`optional`  true where `{step}` may match nothing; else that is an error.

At the top may stand `sample_rate` in Hz, `note`, a sentence that goes with every trace, and `signature`:
names that all have to be in a dump before a shipped mapping is tried on it. A table `[attrs]` names tensors
of one number that become attributes of the trace, such as `streaming = "is_chunk"`.

Taps, which `bisect` reads, have tables of their own. `{step}` stands in both names, and no step is needed:

    [taps."flow/{step}/transformer_blocks.0"]
    name = "step{step}_block0"
    axes = ["branch", "frame", "width"]

Their axes are `branch` (with conditions and without), `channel`, `frame` (or position) and `width`, and the
trace has them in this order.
"""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files import check_regular
from workbench.trace.attributes import MAX_RATE, MIN_RATE
from workbench.trace.schema import FIELDS, LOOPS, SAMPLE_RATE

KEYS = {
    "name": str,
    "axes": list,
    "index": int,
    "first": int,
    "start": list,
    "scale": (int, float),
    "shape": list,
    "optional": bool,
}
REQUIRED_KEYS = {"name", "axes"}
TOP_KEYS = {"fields", "taps", "attrs", "sample_rate", "note", "signature"}
STEP = re.compile(r"\{step(?::0?([1-9]?)d?)?\}")
ONE, BATCH = "one", "batch"  # axes of a tensor that its field does not have
TAP_AXES = ("branch", "channel", "frame", "width")
MAX_BYTES = 1 << 20  # of a mapping
MAX_LENGTH = 2**40  # of an axis, and of any whole number of a mapping

Rule = dict[str, Any]


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a mapping file and check all that does not depend on a dump.

    Raises
    ------
    WorkbenchError
        When the file cannot be read or states something that no dump can have.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WorkbenchError(
                f"{path} has {path.stat().st_size:,} bytes; a mapping has {MAX_BYTES:,} at most"
            )
        check_regular(path)
        return parse_mapping(path.read_text(encoding="utf-8-sig"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path} cannot be read as a mapping ({error}); expected TOML") from error


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """Parse and check the text of a mapping; `name` is what errors call it."""
    try:
        rules = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"{name} cannot be read as a mapping ({error}); expected TOML") from error
    for key in sorted(rules.keys() - TOP_KEYS):
        raise WorkbenchError(f"{name}: {key!r} stands at the top; expected {sorted(TOP_KEYS)}")
    rate = rules.get("sample_rate", SAMPLE_RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not MIN_RATE <= rate <= MAX_RATE:
        raise WorkbenchError(
            f"{name}: sample_rate is {_shown(rate)}; expected a number such as {SAMPLE_RATE}"
        )
    if not isinstance(rules.get("note", ""), str) or not _is_list_of_text(rules.get("signature", [])):
        raise WorkbenchError(f"{name}: expected a text as note and a list of names as signature")
    attrs = rules.get("attrs", {})
    if not isinstance(attrs, dict) or not _is_list_of_text(list(attrs.values())):
        raise WorkbenchError(f"{name}: expected [attrs] with a name of a tensor for each attribute")
    fields, taps = rules.get("fields", {}), rules.get("taps", {})
    if not isinstance(fields, dict) or not isinstance(taps, dict) or not (fields or taps):
        raise WorkbenchError(f'{name} has no fields; expected tables such as [fields."flow/mel"]')
    for field, rule in fields.items():
        if field not in FIELDS:
            raise WorkbenchError(f"{name}: {field!r} is not a field; expected one of {', '.join(FIELDS)}")
        _check_rule(name, field, rule)
        _check_axes(name, field, rule)
    for tap, rule in taps.items():
        _check_rule(name, tap, rule)
        _check_tap(name, tap, rule)
    return rules


def has_step(name: str) -> bool:
    """Whether a name stands for one tensor per step."""
    return STEP.search(name) is not None


def name_pattern(name: str) -> re.Pattern[str]:
    """Return a pattern that finds the names that a mapping's name stands for; its group is the step."""
    pattern = ""
    end = 0
    for match in STEP.finditer(name):
        digits = "(?P=step)" if end else rf"(?P<step>[0-9]{{{match[1] or 1},9}})"
        pattern += re.escape(name[end : match.start()]) + digits
        end = match.end()
    return re.compile(pattern + re.escape(name[end:]))


def dims_of_one_tensor(field: str, rule: Rule) -> tuple[str, ...]:
    """Return the dimensions of each tensor of a field: without the first where there is one per step."""
    if field not in FIELDS:  # a tap
        return tuple(axis for axis in TAP_AXES if axis in rule["axes"])
    dims = FIELDS[field].dims
    return dims[1:] if has_step(rule["name"]) else dims


def _check_rule(mapping: str, field: str, rule: Any) -> None:
    if not isinstance(rule, dict) or not REQUIRED_KEYS <= rule.keys() <= KEYS.keys():
        raise WorkbenchError(f"{mapping}: {field} needs name and axes, and may have {sorted(KEYS)}")
    for key, value in rule.items():
        types = KEYS[key] if isinstance(KEYS[key], tuple) else (KEYS[key],)
        is_bool_by_mistake = isinstance(value, bool) and bool not in types
        if not isinstance(value, types) or is_bool_by_mistake:
            expected = " or ".join(kind.__name__ for kind in types)
            raise WorkbenchError(f"{mapping}: {key} of {field} is {_shown(value)}; expected {expected}")
    whole_numbers = [rule.get("first", 0), rule.get("index", 0), *rule.get("shape", [])]
    if not all(isinstance(number, int) and abs(number) < MAX_LENGTH for number in whole_numbers):
        raise WorkbenchError(f"{mapping}: {field} has a first, index or shape that is no number of entries")
    if min(rule.get("first", 0), rule.get("index", 0)) < 0:
        raise WorkbenchError(f"{mapping}: first and index of {field} count from 0")
    scale = rule.get("scale", 1)
    if (isinstance(scale, int) and abs(scale) >= MAX_LENGTH) or not math.isfinite(scale):
        raise WorkbenchError(f"{mapping}: scale of {field} is {_shown(scale)}; expected a factor")
    if not _is_list_of_text(rule.get("start", [])):
        raise WorkbenchError(f"{mapping}: start of {field} is no list of names of tensors")
    if "{" in STEP.sub("", rule["name"]):
        raise WorkbenchError(
            f"{mapping}: the name {rule['name']!r} of {field} has braces; expected {{step}} or {{step:03d}}"
        )


def _check_axes(mapping: str, field: str, rule: Rule) -> None:
    if has_step(rule["name"]) and FIELDS[field].dims[0] not in LOOPS:
        raise WorkbenchError(
            f"{mapping}: {field} has no steps, so its name cannot hold {STEP.search(rule['name'])[0]}"
        )
    axes = [str(axis) for axis in rule["axes"] if axis not in (ONE, BATCH)]
    dims = dims_of_one_tensor(field, rule)
    if sorted(axes) != sorted(dims):
        raise WorkbenchError(f"{mapping}: {field} has axes {axes}; expected {list(dims)} in any order")
    if rule["axes"].count(BATCH) != ("index" in rule):
        raise WorkbenchError(
            f'{mapping}: {field} needs both the axis "{BATCH}" and index, the entry to take, or neither'
        )


def _check_tap(mapping: str, tap: str, rule: Rule) -> None:
    parts = tap.split("/")
    if len(parts) != 3 or not (parts[1] == "{step}" or (parts[1].isdecimal() and len(parts[1]) < 10)):
        raise WorkbenchError(
            f"{mapping}: the tap {tap!r} has no stage and step; expected such as "
            '"flow/{step}/transformer_blocks.0" or "flow/0/transformer_blocks.0"'
        )
    if has_step(tap) != has_step(rule["name"]):
        raise WorkbenchError(
            f"{mapping}: {{step}} is in one of {tap!r} and {rule['name']!r}; expected both or none"
        )
    axes = [str(axis) for axis in rule["axes"] if axis != ONE]
    if len(set(axes)) != len(axes) or not set(axes) <= set(TAP_AXES):
        raise WorkbenchError(f"{mapping}: {tap} has axes {axes}; expected some of {list(TAP_AXES)}")


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _shown(value: Any) -> str:
    """Return a value of a mapping for an error; a number of 5,000 digits cannot be printed."""
    return "a huge number" if isinstance(value, int) and abs(value) >= MAX_LENGTH else f"{value!r:.60}"
