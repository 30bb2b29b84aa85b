"""Open a dump without a mapping of one's own: by a shipped mapping, or by names that are certain."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files import data_path
from workbench.trace.importers.dumps.mapping import apply_mapping, tensor_names
from workbench.trace.importers.dumps.mapping_file import ONE, has_step, name_pattern, read_mapping
from workbench.trace.importers.dumps.proposal import certain_rules
from workbench.trace.importers.dumps.tensor_files import MAX_SHOWN, TensorDump, open_tensors
from workbench.trace.schema import FIELDS
from workbench.trace.trace import Trace

SCHEMA_NAMES = "the names of the schema"
TABLE_NAMES = "names that logs.toml has"
MIN_SHARE = 0.5  # of the tensors that have known names, before these are taken for what they say


def open_dump(path: str | os.PathLike, mapping: str | os.PathLike | None = None, **attrs: Any) -> Trace:
    """Read a dump as a trace, by a mapping or by the one that fits.

    Parameters
    ----------
    path : path
        As in `read_foreign`.
    mapping : path, optional
        Without it the mappings of `data/foreign/` are tried, and names such as "flow.mel" or "flow_mel" that
        are those of fields, and names of the table of logs, such as "mel". What fits is named in
        `attrs["mapping"]` and `attrs["notes"]`.
    **attrs
        As in `read_foreign`.

    Raises
    ------
    WorkbenchError
        As `read_foreign`; and when no shipped mapping fits.
    """
    dump = open_tensors(Path(path))
    if mapping is not None:
        return apply_mapping(dump, read_mapping(Path(mapping)), Path(mapping).name, **attrs)
    problems = []
    for name, rules in _fitting(dump) or _by_table_names(dump):
        try:
            trace = apply_mapping(dump, rules, name, **attrs)
        except WorkbenchError as error:
            problems.append(str(error))
            continue
        unmapped = trace.attrs["unmapped"]
        rest = f"; not read: {_some(unmapped)}" if unmapped else ""
        note = f"{dump.path.name} was read by {name}; fields: {_some(list(trace))}{rest}"
        trace.attrs["notes"] = [note, *trace.attrs.get("notes", [])]
        return trace
    found = f"; {problems[0]}" if problems else ""
    raise WorkbenchError(
        f"{dump.path.name} holds {dump.described()}, and no shipped mapping fits{found}. "
        f"Expected a mapping: `workbench mapping {dump.path.name}` proposes one; pass the file as mapping "
        "(--mapping in the shell)"
    )


def _fitting(dump: TensorDump) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the mappings whose signature is in the dump, the one with most tensors first."""
    candidates = {path.name: read_mapping(path) for path in sorted(data_path("foreign").glob("*.toml"))}
    names = (*dump.tensors, *dump.aliases)
    fitting = []
    for name, rules in candidates.items():
        signature = [name_pattern(each) for each in rules.get("signature", [])]
        if signature and all(any(pattern.fullmatch(one) for one in names) for pattern in signature):
            fitting.append((_count(dump, rules, name), name, rules))
    by_schema = _schema_rules(dump)
    if len(by_schema["fields"]) >= MIN_SHARE * len(dump.tensors):
        fitting.append((len(by_schema["fields"]), SCHEMA_NAMES, by_schema))
    fitting.sort(key=lambda each: -each[0])
    return [(name, rules) for _, name, rules in fitting]


def _by_table_names(dump: TensorDump) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the rules of names that are certain, where they read enough of a dump."""
    rules = certain_rules(dump)
    is_enough = rules and _count(dump, rules, TABLE_NAMES) >= MIN_SHARE * len(dump.tensors)
    return [(TABLE_NAMES, rules)] if is_enough else []


def _count(dump: TensorDump, rules: Mapping[str, Any], mapping: str) -> int:
    """Return how many tensors of a dump a mapping reads; 0 for one that does not fit."""
    try:
        return sum(len(tensor_names(*each, dump, mapping)[0]) for each in rules["fields"].items())
    except WorkbenchError:
        return 0


def _schema_rules(dump: TensorDump) -> dict[str, Any]:
    """Return rules for the tensors that are called as fields are, with the fields' axes."""
    rules = {}
    for field, described in FIELDS.items():
        for name in (field, field.replace("/", "."), field.replace("/", "_")):
            full = name if name in dump.tensors else dump.aliases.get(name)
            shape = dump.tensors[full].shape if full else None
            if shape is not None and not has_step(name):
                extra = [ONE] * (len(shape) - len(described.dims))
                rules[field] = {"name": name, "axes": [*extra, *described.dims]}
                break
    return {"fields": rules}


def _some(names: list[str]) -> str:
    """Return the first few of many names."""
    rest = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + rest
