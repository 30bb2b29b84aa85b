"""Propose a mapping for a dump, from the names and shapes of its tensors.

Names are looked up in the table of names of logs. A proposal is for a person to check: each table says in a
comment what it rests on, and what was not understood is listed at the end.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.mapping_file import BATCH, ONE, parse_mapping
from workbench.trace.importers.dumps.tensor_files import ONE_TENSOR, TensorDump, open_tensors
from workbench.trace.importers.logs.log_names import NAMES, LogNames
from workbench.trace.schema import BRANCH_VELOCITIES, FIELDS, LOOPS, USUAL_LENGTHS

# Words that say where or when a tensor was taken, and not which one it is.
PLACES = re.compile(
    "step|ode|flow|hift|l?lm|dump|euler|tensor|data|ref|cfm|in|out|output|final|knot|t|python|py|rust|native|cpp"
    "|torch|onnx|trt|mlx"
)
WORD = re.compile(r"[a-z]+[0-9]?(?![a-z])|[a-z]+|[0-9]+")
FILE_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, ONE_TENSOR))})$")
NUMBER = re.compile(r"[0-9]+")
MAX_LISTED = 40  # names without a field


class Proposed(NamedTuple):
    """A proposed table of a mapping."""

    field: str
    text: str  # TOML, with comments on what is doubtful
    is_certain: bool  # whether the name, the shape and the other tensors leave no other reading


class Group(NamedTuple):
    """Tensors whose names differ in the number of the step alone."""

    template: str  # with "{step}"; a name where there is one tensor
    names: tuple[str, ...]
    steps: tuple[int, ...]  # in order; empty for one tensor
    shape: tuple[int, ...]  # of the first


def propose_mapping(path: str | os.PathLike, names: str | os.PathLike = NAMES) -> str:
    """Propose a mapping for a dump.

    Parameters
    ----------
    path : path
        As in `read_foreign`. Headers alone are read where a format has them.
    names : path
        Table of what programs call tensors, as in `read_log`.

    Returns
    -------
    str
        TOML, to be checked and saved; `wb.open(path, mapping=...)` reads it.

    Raises
    ------
    WorkbenchError
        When the file cannot be read, or no tensor has a name that the table knows.

    Examples
    --------
    >>> import pathlib, tempfile, numpy as np
    >>> dump = pathlib.Path(tempfile.mkdtemp()) / "dump.npz"
    >>> np.savez(dump, step000_x=np.zeros((1, 80, 9)), step001_x=np.zeros((1, 80, 9)), audio=np.zeros(480))
    >>> print(wb.propose_mapping(dump).split("[fields", 2)[2])
    ."hift/wav"]
    name = "audio"
    axes = ["sample"]
    <BLANKLINE>
    """
    dump = open_tensors(Path(path))
    table = LogNames.load(names)
    proposed, unknown = _proposals(dump, table)
    tables = []
    seen = set()
    for field, text, _ in proposed:
        tables.append(_commented(f"another candidate for {field}:\n{text}") if field in seen else text)
        seen.add(field)
    if not tables:
        raise WorkbenchError(
            f"{dump.path.name} holds {dump.described()}, and no name of {Path(names).name}; "
            "write a mapping by hand: workbench/trace/importers/dumps/mapping_file.py describes it"
        )
    head = [
        f"# Proposed for {dump.path.name!r} from names and shapes. Check it: a name does not prove what a",
        "# tensor is.",
        "",
    ]
    rest = [f"# no field: {group.template!r} {group.shape}" for group in unknown[:MAX_LISTED]]
    if len(unknown) > MAX_LISTED:
        rest.append(f"# and {len(unknown) - MAX_LISTED} more without a field")
    text = "\n".join([*head, "\n".join(tables), *rest])
    parse_mapping(text, "the proposal")  # so that what is proposed can be read
    return text


def certain_rules(dump: TensorDump) -> dict[str, Any]:
    """Return the rules of a mapping for those tensors whose names and shapes leave no doubt; {} for none.

    As for a log, a name of the table counts as what the table says. States of the ODE without the number of
    its steps, branches of a batch, and names with other words are left out.
    """
    proposed, _ = _proposals(dump, LogNames.load())
    texts = [each.text for each in proposed if each.is_certain]
    return parse_mapping("\n".join(texts), "the proposal") if texts else {}


def _proposals(dump: TensorDump, table: LogNames) -> tuple[list[Proposed], list[Group]]:
    """Return the proposed tables in the order of the schema, and the groups without a field."""
    by_field: dict[str, list[Group]] = {}
    unknown = []
    exact = set()
    for group in _groups(dump):
        fields, is_exact = _fields_of(group, _spellings(group, dump), table)
        for field in fields:
            by_field.setdefault(field, []).append(group)
        if not fields:
            unknown.append(group)
        if is_exact:
            exact.add(group)
    proposed = []
    for field in FIELDS:
        groups = by_field.get(field, [])
        for group in groups:
            text, has_doubt = _table(field, group, by_field, dump)
            is_certain = group in exact and len(groups) == 1 and not has_doubt
            proposed.append(Proposed(field, text, is_certain))
    return proposed, unknown


def _groups(dump: TensorDump) -> Iterator[Group]:
    """Yield the tensors of a dump, those of one loop together."""
    # A number counts steps where names differ in it alone. Each number of a name is tried as the step.
    by_template: dict[str, dict[int, str]] = {}
    for name in dump.tensors:
        for match in NUMBER.finditer(name):
            template = f"{name[: match.start()]}{{step}}{name[match.end() :]}"
            if len(match[0]) <= 4:
                by_template.setdefault(template, {}).setdefault(int(match[0]), name)
    taken: set[str] = set()
    for template, by_step in sorted(by_template.items(), key=lambda each: -len(each[1])):
        steps = sorted(by_step)
        names = tuple(by_step[step] for step in steps)
        is_loop = len(steps) > 1 and steps[0] in (0, 1) and steps[-1] - steps[0] == len(steps) - 1
        shapes = {dump.tensors[name].shape for name in names}
        if is_loop and len(shapes) == 1 and None not in shapes and taken.isdisjoint(names):
            taken.update(names)
            yield Group(template, names, tuple(steps), dump.tensors[names[0]].shape)
    for name, tensor in dump.tensors.items():
        if name not in taken and tensor.shape is not None:
            yield Group(name, (name,), (), tensor.shape)


def _spellings(group: Group, dump: TensorDump) -> list[str]:
    """Return the name of a group, and that of a file without its suffix and shape, the shortest first."""
    aliases = [alias for alias, name in dump.aliases.items() if name == group.template]
    return [*sorted(aliases, key=len), group.template]


def _fields_of(group: Group, spellings: list[str], table: LogNames) -> tuple[list[str], bool]:
    """Return the fields that a group may be, and whether its name says no more than the field's.

    There are two fields for the branches of a velocity, and none for an unknown name.
    """
    if not group.template.isprintable() or "{" in group.template.replace("{step}", ""):
        return [], False  # no name that a mapping can hold
    return next((found for each in spellings if (found := _fields_named(each, group, table))[0]), ([], False))


def _fields_named(name: str, group: Group, table: LogNames) -> tuple[list[str], bool]:
    """Return the fields that a group of a name may be, and whether the name says no more than the field's."""
    stem = FILE_SUFFIX.sub("", name.replace("{step}", " ").lower())
    words = WORD.findall(stem.replace("_", " ").replace("-", " ").replace(".", " "))
    field = ""
    is_exact = True
    for first in range(len(words)):
        # The longest end of the name that the table knows, then the same without words of place.
        tail = words[first:]
        for candidate in (" ".join(tail), " ".join(word for word in tail if not PLACES.fullmatch(word))):
            found = table.tensors.get(candidate)
            if found is not None and found.field and _fits(found.field, group):
                field = found.field
                is_exact = all(PLACES.fullmatch(word) for word in words[:first])
                break
        if field:
            break
    if not field:
        joined = "_".join(words)
        field = next((name for name in FIELDS if name.replace("/", "_") == joined and _fits(name, group)), "")
    is_velocity = field.startswith("flow/velocity")
    if is_velocity and _batch_axis(group.shape) is not None:
        return list(BRANCH_VELOCITIES), is_exact
    return ([field], is_exact) if field else ([], False)


def _fits(field: str, group: Group) -> bool:
    """Whether a field has as many axes as a group's tensors, and steps where these have."""
    dims = FIELDS[field].dims
    if group.steps and dims[0] not in LOOPS:
        return False
    wanted = dims[1:] if group.steps else dims
    lengths = [length for length in group.shape if length != 1]
    batch = _batch_axis(group.shape) is not None and field.startswith("flow/")
    known = [USUAL_LENGTHS[dim] for dim in wanted if dim in USUAL_LENGTHS]
    return len(lengths) - batch == len(wanted) and (group.shape == () or all(n in lengths for n in known))


def _batch_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of two branches: the first one, where three axes remain."""
    return 0 if len(shape) == 3 and shape[0] == 2 else None


def _table(field: str, group: Group, by_field: dict[str, list[Group]], dump: TensorDump) -> tuple[str, bool]:
    """Return the table of one field, and whether anything about it is doubtful."""
    has_doubt = False
    dims = FIELDS[field].dims
    wanted = list(dims[1:] if group.steps else dims)
    comments = []
    axes = []
    lines = []
    batch = _batch_axis(group.shape) if field.startswith("flow/") else None
    for k, length in enumerate(group.shape):
        if k == batch:
            axes.append(BATCH)
            continue
        if length == 1 and len(group.shape) - len(axes) > len(wanted):
            axes.append(ONE)
            continue
        exact = [dim for dim in wanted if USUAL_LENGTHS.get(dim) == length]
        free = [dim for dim in wanted if dim not in USUAL_LENGTHS]
        if exact and group.shape.count(length) > 1:
            comments.append(f"# two axes of {length}: check their order")
            has_doubt = True
        axes.append((exact or free or wanted)[0])
        wanted.remove(axes[-1])
    lines.append(f'[fields."{field}"]')
    lines.append(f"name = {_quoted(group.template)}")
    lines.append(f"axes = [{', '.join(_quoted(axis) for axis in axes)}]")
    if batch is not None:
        lines.append(f"index = {0 if field != BRANCH_VELOCITIES[1] else 1}")
        comments.append("# a batch of two: upstream has the branch with conditions first; check your program")
        has_doubt = True
    if group.steps and group.steps[0] != 0:
        lines.append(f"first = {group.steps[0]}")
    if field == "flow/x" and group.steps:
        start, comment, is_known = _start(group, by_field, dump)
        lines += [f"start = [{_quoted(start)}]"] if start else []
        comments.append(comment)
        has_doubt = has_doubt or not is_known
    return "\n".join([*comments, *lines, ""]), has_doubt


def _start(group: Group, by_field: dict[str, list[Group]], dump: TensorDump) -> tuple[str, str, bool]:
    """Return the name of the state before the first, what the states are taken for, and if it is known."""
    velocities = [
        len(found.steps)
        for field, groups in by_field.items()
        for found in groups
        if field.startswith("flow/velocity")
    ]
    noise = [found.template for found in by_field.get("flow/noise", []) if not found.steps]
    count = len(group.steps)
    if noise:
        pair = [dump.tensors[name].read().squeeze().double() for name in (noise[0], group.names[0])]
        if torch.equal(*pair):
            comment = f"# state {group.steps[0]} equals {noise[0]}: it is the one before the first step"
            return "", comment, True
    if velocities and count == max(velocities) + 1:
        return "", f"# {count} states for {count - 1} steps: the first one is taken for the noise", True
    if noise:
        comment = f"# state {group.steps[0]} is taken for the one after the first step"
        return noise[0], comment, bool(velocities) and count == max(velocities)
    comment = "# the first state is taken for the noise; if it comes after a step, name the noise as start"
    return "", comment, False


def _commented(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines()) + "\n"


def _quoted(text: str) -> str:
    """Return a printable text as a TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
