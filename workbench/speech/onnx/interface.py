"""Which input and output of an ONNX file is which: by name, else by a shape that only one of them has."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.weights import hash_file
from workbench.speech.frontend.onnx_session import files_of, run_session

if TYPE_CHECKING:
    import onnxruntime

# ONNX Runtime's types that a tensor can be turned into; NumPy has no bfloat16.
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(bool)": torch.bool,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
BATCH = "batch"  # a dimension that may be 1, the batch of a call, or any

Shape = tuple[int | str, ...]


class Slot(NamedTuple):
    """An input or output that a file must have, or may have."""

    name: str  # upstream's
    shapes: tuple[Shape, ...]  # that are understood; a str is a dimension of any length
    aliases: tuple[str, ...] = ()  # lower case
    types: tuple[str, ...] = FLOATS
    is_optional: bool = False


class Interface:
    """A session with inputs and outputs under upstream's names, whatever the file calls them.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    path : Path
        Its file, for messages.
    inputs, outputs : sequence of Slot
        What the file must have and may have. Other outputs are ignored, other inputs refused.
    what : str
        What the file should be, for messages.

    Attributes
    ----------
    notes : list of str
        What differs from upstream's file: names, types, a batch of one.

    Raises
    ------
    WorkbenchError
        When an input or output is missing, unknown, or of another shape or type.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        path: Path,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        what: str,
    ) -> None:
        self.session, self.path = session, path
        found_inputs, found_outputs = session.get_inputs(), session.get_outputs()
        self.inputs, wrong = _match(inputs, found_inputs)
        self.outputs, wrong_outputs = _match(outputs, found_outputs)
        known = [arg.name for arg in self.inputs.values()]
        unknown = [
            f"{a.name}: expected nothing, found {_show(a)}" for a in found_inputs if a.name not in known
        ]
        # An output that is missing may have another name: say which ones there are.
        others = [arg for arg in found_outputs if arg.name not in (o.name for o in self.outputs.values())]
        unknown += [f"{a.name}: an output, {_show(a)}" for a in others if wrong_outputs]
        if problems := [*wrong, *wrong_outputs, *unknown]:
            raise WorkbenchError(
                f"{path} is not {what}: {'; '.join(problems)}. Rename its inputs and outputs, or write one "
                "with `workbench export-onnx`"
            )
        self.single_row = any(arg.shape[:1] == [1] and len(arg.shape) > 1 for arg in self.inputs.values())
        self.notes = self._notes()

    def _notes(self) -> list[str]:
        pairs = (*self.inputs.items(), *self.outputs.items())
        renamed = [f"{arg.name} is {name}" for name, arg in pairs if arg.name != name]
        types = sorted({arg.type.removeprefix("tensor(").rstrip(")") for _, arg in pairs})
        notes = [", ".join(renamed)] if renamed else []
        if types != ["float"]:
            notes.append(f"inputs and outputs in {', '.join(types)}")
        if self.single_row:
            notes.append("a batch of one")
        return notes

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the file on values under upstream's names, in one call or row by row.

        Returns
        -------
        dict of str to Tensor
            Outputs under upstream's names, float32, on the CPU.
        """
        n_rows = max(len(value) for value in values.values() if value.ndim)
        if not self.single_row or n_rows == 1:
            return self._run(values)
        rows = [
            self._run({name: value[i : i + 1] if value.ndim else value for name, value in values.items()})
            for i in range(n_rows)
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feed = {}
        for name, arg in self.inputs.items():
            value = values[name]
            rank = len(arg.shape)
            if value.ndim == 1 and rank != 1:  # a time, as one number or as a column
                value = value[0] if rank == 0 else value[:, None]
            elif value.ndim == 1 and arg.shape == [1]:
                value = value[:1]  # one time for all rows
            elif value.ndim == 3 and rank == 2:  # a mask without its middle dimension
                value = value[:, 0]
            feed[arg.name] = value.to(DTYPES[arg.type])
        names = [arg.name for arg in self.outputs.values()]
        found = run_session(self.session, self.path, feed, names)
        return {name: value.float() for name, value in zip(self.outputs, found, strict=True)}


def program_name(path: Path, session: "onnxruntime.InferenceSession", origin: str | None) -> str:
    """Return what a trace says of a file: its name, the sha256 of it and its weights, and what runs it."""
    import onnxruntime

    program = f"onnxruntime {onnxruntime.__version__} {session.get_providers()[0]}"
    return f"{origin or path.name}, sha256 {hash_model(path)[:12]}, {program}"


def hash_model(path: Path) -> str:
    """Return the sha256 of a file, or of the sha256s of a file and of the weights beside it."""
    hashes = [hash_file(file) for file in files_of(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _match(
    slots: Sequence[Slot], found: Sequence["onnxruntime.NodeArg"]
) -> tuple[dict[str, "onnxruntime.NodeArg"], list[str]]:
    """Return which argument of a file fills each slot, and what is wrong."""
    matched = {}
    wrong = []
    free = list(found)
    for slot in slots:
        for arg in [arg for arg in free if _plain_name(arg.name) in (slot.name.lower(), *slot.aliases)]:
            if slot.name not in matched:
                matched[slot.name] = arg
                free.remove(arg)
                if not _fits(slot, arg):
                    wrong.append(f"{slot.name}: expected {_expected(slot)}, found {_show(arg)}")

    # By shape, where one slot is left for an argument and one argument for that slot.
    left = [slot for slot in slots if slot.name not in matched]
    for slot in left:
        candidates = [arg for arg in free if _fits(slot, arg)]
        rivals = [other for other in left if any(_fits(other, arg) for arg in candidates)]
        if len(candidates) == 1 and rivals == [slot]:
            matched[slot.name] = candidates[0]
            free.remove(candidates[0])
        elif not slot.is_optional:
            wrong.append(f"{slot.name}: expected {_expected(slot)}, found nothing that only it can be")
    return {slot.name: matched[slot.name] for slot in slots if slot.name in matched}, wrong


def _plain_name(name: str) -> str:
    """Return a name without what exporters add: `onnx::x`, `x.1`, `input_x`."""
    return re.sub(r"^(onnx::|input[_.])|[.]\d+$", "", name).lower()


def _fits(slot: Slot, arg: "onnxruntime.NodeArg") -> bool:
    """Whether an argument has a shape and type of a slot; dimensions with a name are free."""
    if arg.type not in slot.types:
        return False
    return any(
        len(shape) == len(arg.shape)
        and all(_dimension_fits(want, have) for want, have in zip(shape, arg.shape, strict=True))
        for shape in slot.shapes
    )


def _dimension_fits(want: int | str, have: int | str | None) -> bool:
    if not isinstance(have, int):
        return True
    return have in (1, 2) if want == BATCH else have == want


def _expected(slot: Slot) -> str:
    return f"({', '.join(map(str, slot.shapes[0]))}) of floats" + (", or nothing" if slot.is_optional else "")


def _show(arg: "onnxruntime.NodeArg") -> str:
    return f"{arg.type} ({', '.join(map(str, arg.shape))})"
