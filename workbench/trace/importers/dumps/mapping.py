"""Read dumps of other implementations, by a mapping file that says which tensor of a dump is which field.

`mapping_file.py` describes mappings. A field or tap that the dump lacks is missing in the trace, never zero.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.mapping_file import (
    BATCH,
    ONE,
    Rule,
    dims_of_one_tensor,
    has_step,
    name_pattern,
    read_mapping,
)
from workbench.trace.importers.dumps.stored_tensor import check_size, plain_tensor
from workbench.trace.importers.dumps.tensor_files import TensorDump, open_tensors
from workbench.trace.record import in_causal_order
from workbench.trace.schema import FIELDS, SAMPLE_RATE
from workbench.trace.trace import MAX_ENTRIES, Trace


def read_foreign(path: str | os.PathLike, mapping: str | os.PathLike, **attrs: Any) -> Trace:
    """Read a dump of another implementation as a trace.

    Parameters
    ----------
    path : path
        A .safetensors, .npz, .npy, .pt (weights only), .gguf, .json or .csv file, raw numbers such as .f32,
        or a folder of such files.
    mapping : path
        TOML as `workbench/trace/importers/dumps/mapping_file.py` describes; `data/foreign/` has some.
    **attrs
        Attributes of the trace that the dump does not hold: `text`, `options` (a dict), `prompt_frames`
        (by default the length of the prompt's mel, or what the target leaves of all frames), ...

    Returns
    -------
    Trace
        `attrs["unmapped"]` names the tensors that belong to no field.

    Raises
    ------
    WorkbenchError
        When a file cannot be read, the mapping is not valid, no tensor is in it, a `{step}` matches nothing,
        or a tensor has other axes.

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
    mapping = Path(mapping)
    rules = read_mapping(mapping)
    return apply_mapping(open_tensors(Path(path)), rules, mapping.name, **attrs)


def apply_mapping(dump: TensorDump, rules: Mapping[str, Any], mapping: str, **attrs: Any) -> Trace:
    """Return a dump as a trace; `rules` are those of `read_mapping`, and `mapping` is their name."""
    reader = _DumpReader(dump, mapping)
    data = {}
    notes = [*([rules["note"]] if "note" in rules else []), *dump.problems]
    for field, rule in rules.get("fields", {}).items():
        names, note = tensor_names(field, rule, dump, mapping)
        notes += [note] if note else []
        if names:
            data[field] = (
                reader.stacked(field, rule, names)
                if has_step(rule["name"])
                else (reader.oriented(field, rule, names[0]))
            )
    taps = {}
    for tap, rule in rules.get("taps", {}).items():
        for found_tap, name in _tap_names(tap, rule, dump):
            taps[found_tap] = reader.oriented(found_tap, rule, name)
    if not data and not taps:
        raise WorkbenchError(
            f"no tensor of {dump.path.name} is in {mapping}; it holds {', '.join(list(dump.tensors)[:8])}"
        )
    found = {
        "sample_rate": rules.get("sample_rate", SAMPLE_RATE),
        "timings": {},
        "source": dump.path.name,
        "mapping": mapping,
    }
    for attr, name in rules.get("attrs", {}).items():
        if full := _find(name, dump):
            found[attr] = reader.number(full)
    found["unmapped"] = sorted(dump.tensors.keys() - reader.used)
    if notes:
        found["notes"] = notes
    all_frames = {value.shape[-1] for field, value in data.items() if FIELDS[field].dims[-1] == "frame"}
    if "in/prompt_mel" in data:
        found["prompt_frames"] = data["in/prompt_mel"].shape[-1]
    elif len(all_frames) == 1 and "flow/mel" in data:
        found["prompt_frames"] = max(min(all_frames) - data["flow/mel"].shape[-1], 0)
    return Trace(in_causal_order(data), found | attrs, taps)


def tensor_names(field: str, rule: Rule, dump: TensorDump, mapping: str) -> tuple[list[str], str]:
    """Return the names of a field's tensors in the dump, step by step, and a note on what was left out.

    The list is empty where the dump lacks the field.

    Raises
    ------
    WorkbenchError
        When `{step}` matches nothing, or two names with the same step, or no first step.
    """
    if not has_step(rule["name"]):
        name = _find(rule["name"], dump)
        return ([name] if name else []), ""
    by_step = _names_by_step(rule["name"], dump)
    first = rule.get("first", 0)
    if not by_step:
        if rule.get("optional"):
            return [], ""
        raise WorkbenchError(
            f"{mapping}: no tensor of {dump.path.name} is called {rule['name']!r} for any step, and {field} "
            f"needs them; it holds {', '.join(list(dump.tensors)[:8])}. Correct the name, or write "
            "optional = true"
        )
    if first not in by_step:
        raise WorkbenchError(
            f"{mapping}: {rule['name']!r} of {field} begins with step {first}, and {dump.path.name} has the "
            f"steps {min(by_step)} to {max(by_step)}; write first = {min(by_step)} if that is the first"
        )
    names: list[str] = []
    while first + len(names) in by_step and len(names) < MAX_ENTRIES:
        names.append(by_step[first + len(names)])
    later = [step for step in by_step if step >= first + len(names)]
    note = ""
    if later:
        note = f"{field}: step {first + len(names)} is missing, so {len(later)} later steps were left out"
    if "start" not in rule:
        return names, note
    start = [found for found in (_find(name, dump) for name in rule["start"]) if found]
    if not start:
        expected = ", ".join(rule["start"])
        return [], f"{field} was left out: the state before its first step is not there ({expected})"
    return start[:1] + names, note


def _names_by_step(name: str, dump: TensorDump) -> dict[int, str]:
    """Return the name of each step's tensor."""
    pattern = name_pattern(name)
    found: dict[int, str] = {}
    for spelling in (*dump.tensors, *dump.aliases):
        match = pattern.fullmatch(spelling)
        if match is None:
            continue
        step, full = int(match["step"]), dump.aliases.get(spelling, spelling)
        if found.setdefault(step, full) != full:
            raise WorkbenchError(
                f"{dump.path.name} has {found[step]} and {full}, both step {step} of {name!r}; expected one"
            )
    return found


def _find(name: str, dump: TensorDump) -> str | None:
    """Return the name of a tensor in the dump; None where it has none."""
    return name if name in dump.tensors else dump.aliases.get(name)


def _tap_names(tap: str, rule: Rule, dump: TensorDump) -> list[tuple[str, str]]:
    """Return each step's tap with the name of its tensor in the dump; steps may be missing."""
    if not has_step(tap):
        name = _find(rule["name"], dump)
        return [(tap, name)] if name else []
    first = rule.get("first", 0)
    by_step = _names_by_step(rule["name"], dump)
    return [(tap.replace("{step}", str(k - first)), by_step[k]) for k in sorted(by_step) if k >= first]


class _DumpReader:
    """Read tensors of a dump, as long as all of them together are not too large."""

    def __init__(self, dump: TensorDump, mapping: str) -> None:
        self.used: set[str] = set()
        self._dump = dump
        self._mapping = mapping
        self._n_bytes = 0

    def stacked(self, field: str, rule: Rule, names: list[str]) -> Tensor:
        """Return the tensors of all steps as one, in the order of `names`."""
        first = self.oriented(field, rule, names[0])
        # Written step by step: a list of all steps beside their stack would take twice the memory.
        self._check_total(names[0], (len(names) - 1) * first.numel() * first.element_size())
        stack = torch.empty((len(names), *first.shape), dtype=first.dtype)
        stack[0] = first
        for k, name in enumerate(names[1:], 1):
            part = self.oriented(field, rule, name, counted=True)
            if part.shape != first.shape:
                raise WorkbenchError(
                    f"{names[0]} has {tuple(first.shape)} and {name} {tuple(part.shape)} without axes of one"
                    "; expected one shape for all steps: were they dumped by one run?"
                )
            if part.dtype != first.dtype:
                stack = stack.to(torch.promote_types(stack.dtype, part.dtype))
            stack[k] = part
        return stack

    def oriented(self, field: str, rule: Rule, name: str, counted: bool = False) -> Tensor:
        """Return a tensor with its axes in the schema's order, scaled."""
        value = plain_tensor(name, self._dump.tensors[name].read(), self._dump.max_bytes)
        self.used.add(name)
        if not counted:
            self._check_total(name, value.numel() * value.element_size())
        if "shape" in rule:
            try:
                value = value.reshape(rule["shape"])
            except (RuntimeError, TypeError) as error:
                raise WorkbenchError(
                    f"{name} has {value.numel()} values; expected shape {rule['shape']}"
                ) from error
        axes = _checked_axes(field, rule, name, value)
        if BATCH in axes:
            position = axes.index(BATCH)
            value = value.select(position, rule["index"])
            axes = axes[:position] + axes[position + 1 :]
        kept_axes = [axis for axis in axes if axis != ONE]
        value = value.reshape([length for length, axis in zip(value.shape, axes, strict=True) if axis != ONE])
        order = [kept_axes.index(dim) for dim in dims_of_one_tensor(field, rule)]
        value = value.permute(order)
        return value * rule["scale"] if "scale" in rule else value

    def number(self, name: str) -> int | float:
        """Return the one number of a tensor."""
        value = plain_tensor(name, self._dump.tensors[name].read(), self._dump.max_bytes)
        if value.numel() != 1:
            raise WorkbenchError(
                f"{name} has shape {tuple(value.shape)}; {self._mapping} expects one number for an attribute"
            )
        self.used.add(name)
        return value.item()

    def _check_total(self, name: str, n_bytes: int) -> None:
        """Count bytes that were read or will be; refuse too many."""
        self._n_bytes += n_bytes
        check_size(f"{self._dump.path.name} up to {name}", self._n_bytes, self._dump.max_bytes)


def _checked_axes(field: str, rule: Rule, name: str, value: Tensor) -> list[str]:
    """Return the names of a tensor's axes; an axis of length 1 that a mapping states may be missing."""
    axes = rule["axes"]
    without_ones = [axis for axis in axes if axis != ONE]
    if value.ndim == len(without_ones) < len(axes):
        axes = without_ones
    fits = value.ndim == len(axes)
    hint = ""
    for length, axis in zip(value.shape, axes, strict=False):
        if axis == ONE and length != 1 and fits:
            fits = False
            hint = (
                f': "{ONE}" has {length} entries; if they are the branches of a batch, write "{BATCH}" in '
                "its place, and index = 0 for the first or 1 for the second"
            )
        if axis == BATCH and rule["index"] >= length and fits:
            fits = False
            hint = f': index is {rule["index"]} and "{BATCH}" has {length} entries'
    if not fits:
        raise WorkbenchError(
            f"{name} has shape {tuple(value.shape)}; its mapping to {field} says {rule['axes']}{hint}"
        )
    return axes
