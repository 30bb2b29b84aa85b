"""Read dumps of other implementations, by a mapping file that says which tensor is which field.

A mapping is TOML with one table per field:

    [fields."flow/velocity_cond"]
    name = "step{step}_v1"
    axes = ["one", "mel", "frame"]
    first = 1

`name`   the tensor's name in the dump. With `{step}` it stands for one tensor per step of the ODE.
`axes`   the tensor's axes under the schema's names; `one` is an axis of length 1, which is dropped.
`first`  number of the first step, 0 unless given.
`start`  names that the state before the first step may have. A loop of n steps has n + 1 states; without the
         first of them no state is at its index, so the field is left out.
`scale`  factor for the values.
`shape`  needed for raw float32 files, where `name` is the file's name.

Taps, which `bisect` reads, have tables of their own. `{step}` stands in both names, and no step is needed:

    [taps."flow/{step}/transformer_blocks.0"]
    name = "step{step}_block0"
    axes = ["branch", "frame", "width"]

Their axes are `branch` (with conditions and without), `channel`, `frame` (or position) and `width`, and the
trace has them in this order.

A field or tap that the dump lacks is missing in the trace, never zero.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.tensor_files import TensorReaders, check_size, open_tensors
from workbench.trace.record import in_causal_order
from workbench.trace.schema import FIELDS, LOOPS, SAMPLE_RATE
from workbench.trace.trace import Trace

KEYS = {"name": str, "axes": list, "first": int, "start": list, "scale": (int, float), "shape": list}
REQUIRED_KEYS = {"name", "axes"}
STEP = "{step}"
MAX_STEPS = 1000  # of one field; bounds the search for the last step of a dump
TAP_AXES = ("branch", "channel", "frame", "width")


def read_foreign(path: str | os.PathLike, mapping: str | os.PathLike, **attrs: Any) -> Trace:
    """Read a dump of another implementation as a trace.

    Parameters
    ----------
    path : path
        A .safetensors, .npz or .pt file (weights only), or a folder of raw float32 files.
    mapping : path
        TOML as above; `data/foreign/` has some.
    **attrs
        Attributes of the trace that the dump does not hold: `text`, `options` (a dict), `prompt_frames`
        (by default the length of the prompt's mel), ...

    Returns
    -------
    Trace
        `attrs["unmapped"]` names the tensors that belong to no field.

    Raises
    ------
    WorkbenchError
        When a file cannot be read, the mapping is not valid, no tensor is in it, or a tensor has other axes.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> from safetensors.torch import save_file
    >>> dump = pathlib.Path(tempfile.mkdtemp()) / "dump.safetensors"
    >>> save_file({"step1_v1": torch.zeros(1, 80, 9), "step2_v1": torch.ones(1, 80, 9)}, dump)
    >>> theirs = wb.read_foreign(dump, wb.data_path("foreign/steps.toml"), text="Hello.")
    >>> theirs["flow/velocity_cond"].shape  # step, mel, frame
    torch.Size([2, 80, 9])
    """
    path = Path(path)
    mapping = Path(mapping)
    rules = _read_mapping(mapping)
    tensors = open_tensors(path)
    data = {}
    mapped = set()
    for field, rule in rules.get("fields", {}).items():
        names = _tensor_names(rule, tensors)
        if not names:
            continue
        parts = [_oriented(field, rule, name, tensors[name]()) for name in names]
        _check_same_shape(names, parts)
        data[field] = torch.stack(parts) if STEP in rule["name"] else parts[0]
        mapped.update(names)
    taps = {}
    for tap, rule in rules.get("taps", {}).items():
        for found_tap, name in _tap_names(tap, rule, tensors):
            taps[found_tap] = _oriented(found_tap, rule, name, tensors[name]())
            mapped.add(name)
    if not data and not taps:
        raise WorkbenchError(
            f"no tensor of {path.name} is in {mapping.name}; it holds {', '.join(list(tensors)[:8])}"
        )
    found = {
        "sample_rate": rules.get("sample_rate", SAMPLE_RATE),
        "timings": {},
        "source": path.name,
        "unmapped": sorted(tensors.keys() - mapped),
    }
    if "in/prompt_mel" in data:
        found["prompt_frames"] = data["in/prompt_mel"].shape[-1]
    return Trace(in_causal_order(data), found | attrs, taps)


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read a mapping file and check all that does not depend on a dump."""
    try:
        rules = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkbenchError(f"{path} cannot be read as a mapping ({error}); expected TOML") from error
    rate = rules.get("sample_rate", SAMPLE_RATE)
    if not isinstance(rate, (int, float)) or not rate > 0:
        raise WorkbenchError(
            f"{path.name}: sample_rate is {rate!r:.60}; expected a number such as {SAMPLE_RATE}"
        )
    fields, taps = rules.get("fields", {}), rules.get("taps", {})
    if not isinstance(fields, dict) or not isinstance(taps, dict) or not (fields or taps):
        raise WorkbenchError(f'{path.name} has no fields; expected tables such as [fields."flow/mel"]')
    for field, rule in fields.items():
        if field not in FIELDS:
            raise WorkbenchError(
                f"{path.name}: {field!r} is not a field; expected one of {', '.join(FIELDS)}"
            )
        _check_rule(path.name, field, rule)
        _check_axes(path.name, field, rule)
    for tap, rule in taps.items():
        _check_rule(path.name, tap, rule)
        _check_tap(path.name, tap, rule)
    return rules


def _check_rule(mapping: str, field: str, rule: Any) -> None:
    if not isinstance(rule, dict) or not REQUIRED_KEYS <= rule.keys() <= KEYS.keys():
        raise WorkbenchError(f"{mapping}: {field} needs name and axes, and may have {sorted(KEYS)}")
    for key, value in rule.items():
        types = KEYS[key] if isinstance(KEYS[key], tuple) else (KEYS[key],)
        if not isinstance(value, types):
            expected = " or ".join(kind.__name__ for kind in types)
            raise WorkbenchError(f"{mapping}: {key} of {field} is {value!r:.60}; expected {expected}")


def _check_axes(mapping: str, field: str, rule: dict[str, Any]) -> None:
    if STEP in rule["name"] and FIELDS[field].dims[0] not in LOOPS:
        raise WorkbenchError(f"{mapping}: {field} has no steps, so its name cannot hold {STEP}")
    axes = [str(axis) for axis in rule["axes"] if axis != "one"]
    dims = _dims_of_one_tensor(field, rule)
    if sorted(axes) != sorted(dims):
        raise WorkbenchError(f"{mapping}: {field} has axes {axes}; expected {list(dims)} in any order")


def _check_tap(mapping: str, tap: str, rule: dict[str, Any]) -> None:
    parts = tap.split("/")
    if len(parts) != 3 or not (parts[1] == STEP or parts[1].isdecimal()):
        raise WorkbenchError(
            f"{mapping}: the tap {tap!r} has no stage and step; expected such as "
            '"flow/{step}/transformer_blocks.0" or "flow/0/transformer_blocks.0"'
        )
    if (STEP in tap) != (STEP in rule["name"]):
        raise WorkbenchError(
            f"{mapping}: {STEP} is in one of {tap!r} and {rule['name']!r}; expected both or none"
        )
    axes = [str(axis) for axis in rule["axes"] if axis != "one"]
    if len(set(axes)) != len(axes) or not set(axes) <= set(TAP_AXES):
        raise WorkbenchError(f"{mapping}: {tap} has axes {axes}; expected some of {list(TAP_AXES)}")


def _tap_names(tap: str, rule: dict[str, Any], tensors: TensorReaders) -> list[tuple[str, str]]:
    """Return each step's tap with the name of its tensor in the dump; steps may be missing."""
    first = rule.get("first", 0)
    steps = range(first, first + MAX_STEPS) if STEP in tap else (first,)
    pairs = []
    for step in steps:
        name = rule["name"].replace(STEP, str(step))
        if name in tensors:
            pairs.append((tap.replace(STEP, str(step - first)), name))
    return pairs


def _dims_of_one_tensor(field: str, rule: dict[str, Any]) -> tuple[str, ...]:
    """Return the dimensions of each tensor of a field: without the first where there is one per step."""
    if field not in FIELDS:  # a tap
        return tuple(axis for axis in TAP_AXES if axis in rule["axes"])
    dims = FIELDS[field].dims
    return dims[1:] if STEP in rule["name"] else dims


def _tensor_names(rule: dict[str, Any], tensors: TensorReaders) -> list[str]:
    """Return the names of a field's tensors in the dump, step by step; empty where it has none."""
    if STEP not in rule["name"]:
        return [rule["name"]] if rule["name"] in tensors else []
    names = []
    first = rule.get("first", 0)
    for step in range(first, first + MAX_STEPS):
        name = rule["name"].replace(STEP, str(step))
        if name not in tensors:
            break
        names.append(name)
    if "start" not in rule:
        return names
    start = [name for name in rule["start"] if isinstance(name, str) and name in tensors]
    return start[:1] + names if start else []


def _oriented(field: str, rule: dict[str, Any], name: str, value: Tensor) -> Tensor:
    """Return a tensor with its axes in the schema's order, scaled."""
    if "shape" in rule:
        try:
            value = value.reshape(rule["shape"])
        except (RuntimeError, TypeError) as error:
            raise WorkbenchError(
                f"{name} has {value.numel()} values; expected shape {rule['shape']}"
            ) from error
    # An expanded tensor is small in the file and large when it is copied.
    check_size(name, value.numel() * value.element_size())

    axes = rule["axes"]
    fits = value.ndim == len(axes)
    for length, axis in zip(value.shape, axes, strict=False):
        if axis == "one" and length != 1:
            fits = False
    if not fits:
        raise WorkbenchError(f"{name} has shape {tuple(value.shape)}; its mapping to {field} says {axes}")

    lengths = [length for length, axis in zip(value.shape, axes, strict=True) if axis != "one"]
    kept_axes = [axis for axis in axes if axis != "one"]
    order = [kept_axes.index(dim) for dim in _dims_of_one_tensor(field, rule)]
    value = value.reshape(lengths).permute(order)
    return value * rule["scale"] if "scale" in rule else value


def _check_same_shape(names: list[str], parts: list[Tensor]) -> None:
    for name, part in zip(names, parts, strict=True):
        if part.shape != parts[0].shape:
            raise WorkbenchError(
                f"{names[0]} has {tuple(parts[0].shape)} and {name} {tuple(part.shape)} without axes of one; "
                "expected one shape for all steps: were they dumped by one run?"
            )
