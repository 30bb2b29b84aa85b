"""Other people's dumps -> `Trace`, by a mapping file that says which tensor is which field.

A mapping is TOML: one table a field, with the tensor's `name` in the dump and its `axes` as the schema names
them (`one` for an axis of length 1 that is dropped). A name with `{step}` stands for one tensor a step,
counted from `first` (0 unless given); `start` lists what the tensor in front of the first step may be called:
a loop of n steps has n + 1 states, and without the one it starts from none of them is at its place, so such a
field is left out. `scale` multiplies; `shape` is needed for raw float32 files, where
`name` is the file's. What the dump lacks is missing in the trace, never zero.

    [fields."flow/velocity_cond"]
    name = "step{step}_v1"
    axes = ["one", "mel", "frame"]
    first = 1
"""

import os
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.importers.tensor_files import Tensors, check_size, tensors_of
from workbench.trace.schema import FIELDS, LOOPS, SAMPLE_RATE
from workbench.trace.trace import Trace

KEYS = {"name": str, "axes": list, "first": int, "start": list, "scale": (int, float), "shape": list}
MOST_STEPS = 1000  # of one field; a mapping's pattern is tried until a step is missing


def read_foreign(path: str | os.PathLike, mapping: str | os.PathLike, **attrs: Any) -> Trace:
    """Open a dump of another implementation.

    Parameters
    ----------
    path : path
        A .safetensors, .npz or .pt file (weights only), or a folder of raw float32 files.
    mapping : path
        TOML as above; `data/foreign/` has some.
    **attrs
        What the dump does not say and the trace shall: `text`, `options` (a dict), `prompt_frames` (that of
        the prompt's mel unless given), ...

    Returns
    -------
    Trace
        `attrs["unmapped"]` names the tensors that no field took.

    Raises
    ------
    WorkbenchError
        When a file cannot be read, the mapping is not one, nothing fits, or a tensor lies otherwise.
    """
    path, rules = Path(path), _mapping(Path(mapping))
    tensors = tensors_of(path)
    found, taken = {}, set()
    for field, rule in rules["fields"].items():
        names = _names(rule, tensors)
        parts = [_placed(field, rule, name, tensors[name]()) for name in names]
        if parts:
            _check_alike(names, parts)
            found[field] = torch.stack(parts) if "{step}" in rule["name"] else parts[0]
            taken.update(names)
    if not found:
        raise WorkbenchError(
            f"no tensor of {path.name} is in {Path(mapping).name}; it holds {', '.join(list(tensors)[:8])}"
        )
    about = {"sample_rate": rules.get("sample_rate", SAMPLE_RATE), "timings": {}, "source": path.name}
    if "in/prompt_mel" in found:
        about["prompt_frames"] = found["in/prompt_mel"].shape[-1]
    order = sorted(found.items(), key=lambda pair: list(FIELDS).index(pair[0]))
    return Trace(dict(order), about | {"unmapped": sorted(tensors.keys() - taken)} | attrs)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        rules = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkbenchError(f"{path} is no mapping that can be read: {error}") from error
    rate = rules.get("sample_rate", SAMPLE_RATE)
    if not isinstance(rate, (int, float)) or not rate > 0:
        raise WorkbenchError(f"{path.name}: sample_rate is {rate!r:.60}; expected a number such as 24000")
    fields = rules.get("fields")
    if not isinstance(fields, dict) or not fields:
        raise WorkbenchError(f'{path.name} has no fields; expected tables such as [fields."flow/mel"]')
    for field, rule in fields.items():
        if field not in FIELDS:
            raise WorkbenchError(f"{path.name}: {field!r} is no field; expected one of {', '.join(FIELDS)}")
        if not isinstance(rule, dict) or not {"name", "axes"} <= rule.keys() <= KEYS.keys():
            raise WorkbenchError(f"{path.name}: {field} needs name and axes, and may have {sorted(KEYS)}")
        for key, value in rule.items():
            if not isinstance(value, KEYS[key]):
                raise WorkbenchError(f"{path.name}: {key} of {field} is {value!r:.60}, of no kind it can be")
        dims = FIELDS[field].dims
        dims = dims[1:] if "{step}" in rule["name"] else dims
        axes = [str(axis) for axis in rule["axes"] if axis != "one"]
        if sorted(axes) != sorted(dims):
            raise WorkbenchError(f"{path.name}: {field} has axes {axes}; expected {list(dims)} in any order")
        if "{step}" in rule["name"] and FIELDS[field].dims[0] not in LOOPS:
            raise WorkbenchError(f"{path.name}: {field} has no steps, so its name cannot hold {{step}}")
    return rules


def _names(rule: dict[str, Any], tensors: Tensors) -> list[str]:
    if "{step}" not in rule["name"]:
        return [rule["name"]] if rule["name"] in tensors else []
    names, first = [], rule.get("first", 0)
    for step in range(first, first + MOST_STEPS):
        name = rule["name"].replace("{step}", str(step))
        if name not in tensors:
            break
        names.append(name)
    if "start" not in rule:
        return names
    start = [name for name in rule["start"] if isinstance(name, str) and name in tensors]
    return start[:1] + names if start else []


def _placed(field: str, rule: dict[str, Any], name: str, value: Tensor) -> Tensor:
    """Turn one tensor the way the schema has it."""
    if "shape" in rule:
        try:
            value = value.reshape(rule["shape"])
        except (RuntimeError, TypeError) as error:
            raise WorkbenchError(
                f"{name} has {value.numel()} values; expected shape {rule['shape']}"
            ) from error
    check_size(name, value.numel() * value.element_size())  # an expanded tensor takes none in the file
    axes = rule["axes"]
    if value.ndim != len(axes) or any(
        n != 1 for n, axis in zip(value.shape, axes, strict=True) if axis == "one"
    ):
        raise WorkbenchError(f"{name} has shape {tuple(value.shape)}; its mapping to {field} says {axes}")
    value = value.reshape([n for n, axis in zip(value.shape, axes, strict=True) if axis != "one"])
    kept = [axis for axis in axes if axis != "one"]
    dims = FIELDS[field].dims[1:] if "{step}" in rule["name"] else FIELDS[field].dims
    value = value.permute([kept.index(dim) for dim in dims])
    return value * rule["scale"] if "scale" in rule else value


def _check_alike(names: list[str], parts: list[Tensor]) -> None:
    """Steps of one run have one shape."""
    for name, part in zip(names, parts, strict=True):
        if part.shape != parts[0].shape:
            raise WorkbenchError(
                f"{names[0]} has {tuple(parts[0].shape)} and {name} {tuple(part.shape)} without axes of one; "
                "were they dumped by one run?"
            )
