"""Weights that torchao quantised: read without torchao, and without running any code of it.

torch.save stores such a tensor as the name of a class and a dict of plain tensors. Placeholders take the
place of the classes, and the weights are computed from the tensors here. safetensors store the plain tensors
under names of their own, and the rest as JSON in the header.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.quantised.dequantised import Dequantised, dequantise, low_nibble_first
from workbench.trace.importers.dumps.stored_tensor import check_size, max_bytes

PACKAGE = "torchao"
ADVICE = (
    "where torchao is at hand, save {name: w.dequantize() for each weight}, or quantise with a plain layout"
)
INT, NONE = 1, 3  # values of torchao's ZeroPointDomain: zeros count codes, or there are none
WRAPPERS = ("original_weight_tensor", "tensor_impl")  # where older versions keep the codes
CODES = ("qdata", "int_data", "float8_data")
MAX_WRAPPERS = 3


class StoredClass:
    """Stands for an object of torchao that is no tensor, such as a setting; keeps what it was made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass


class StoredSubclass(Tensor):
    """Stands for a tensor of torchao: its attributes are those of the file; it computes nothing."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise WorkbenchError(f"a tensor of torchao's {cls.__name__} cannot be computed with")


def placeholder(name: str) -> type:
    """Return what takes the place of a class of torchao, by its dotted name."""
    short = name.split(".")[-1]
    return type(short, (StoredSubclass if short.endswith(("Tensor", "TensorImpl")) else StoredClass,), {})


def dequantise_torchao(content: dict[Any, Any], path: Path) -> None:
    """Replace each tensor of torchao in a dict, and in dicts inside of it, by a `Dequantised`.

    Raises
    ------
    WorkbenchError
        When the codes of one are packed for a kernel, or do not fit their scales.
    """
    size, limit = 0, max_bytes(path.stat().st_size)
    made: dict[int, Dequantised] = {}  # one tensor may have many names, and one dict many places
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        mapping = waiting.pop()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, Tensor) and type(value) not in (Tensor, torch.nn.Parameter):
                if id(value) not in made:
                    size += 4 * value.numel()
                    check_size(f"{path.name}: all tensors", size, limit)
                    made[id(value)] = _dequantised(type(value).__name__, vars(value), f"{path.name}: {key}")
                mapping[key] = made[id(value)]


def unflattened(tensors: dict[str, Tensor], header: Mapping[str, str] | None, file: str) -> dict[str, Any]:
    """Return the tensors of a safetensors file, those that torchao flattened dequantised."""
    try:
        names = json.loads((header or {})["tensor_names"])
        described = {name: json.loads(header[name]) for name in names}
        kinds = {name: each["_type"] for name, each in described.items() if each["_type"] != "Tensor"}
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError):
        return tensors  # of another program, which has a header of its own
    found: dict[str, Any] = dict(tensors)
    for name, kind in kinds.items():
        module, _, last = name.rpartition(".")
        start = f"{module}._{last}_"
        parts = {key.removeprefix(start): found.pop(key) for key in tensors if key.startswith(start)}
        settings = described[name].get("_data")
        attributes = (settings if isinstance(settings, dict) else {}) | parts
        found[name] = _dequantised(str(kind), attributes, f"{file}: {name}")
    return found


def _dequantised(kind: str, attributes: Mapping[str, Any], file: str) -> Dequantised:
    """Compute a weight from what a tensor of torchao consists of."""
    outer = dict(attributes)
    inner = outer
    for _ in range(MAX_WRAPPERS):
        wrapped = next((inner[name] for name in WRAPPERS if isinstance(inner.get(name), Tensor)), None)
        if wrapped is None:
            break
        kind = type(wrapped).__name__ if kind == "LinearActivationQuantizedTensor" else kind
        inner = vars(wrapped)
        outer |= inner
    codes = next((outer[name] for name in CODES if isinstance(outer.get(name), Tensor)), None)
    scale, zero, block = outer.get("scale"), outer.get("zero_point"), outer.get("block_size")
    if kind == "Int4Tensor" and _is_plain(codes) and codes.element_size() == 1:
        # Two signed codes a byte; scales and zeros have the groups in rows, and zeros are added.
        codes = low_nibble_first(codes).to(torch.int8)
        codes = torch.where(codes > 7, codes - 16, codes)
        is_added = True
        scale, zero = (each.mT if _is_plain(each) and each.ndim > 1 else each for each in (scale, zero))
    elif kind in ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor", "AffineQuantizedTensor"):
        is_added = False
        domain = outer.get("zero_point_domain")
        value = getattr(domain, "value", None) or next(iter(getattr(domain, "args", ())), INT)
        if value == NONE:
            zero = None
        elif value != INT:
            codes = None
    else:
        codes = None
    if kind == "Float8Tensor" and block is None and _is_plain(codes):
        block = _block_of(codes, scale)
    if not (_is_plain(codes) and _is_plain(scale) and (zero is None or _is_plain(zero))):
        raise WorkbenchError(f"{file} holds a {kind} of torchao, packed for a kernel; {ADVICE}")
    if outer.get("act_pre_scale") is not None:
        raise WorkbenchError(f"{file} holds a {kind} whose inputs are scaled before it; {ADVICE}")
    if not isinstance(block, list | tuple) or not all(type(size) is int for size in block):
        raise WorkbenchError(f"{file} holds a {kind} without sizes of its blocks; {ADVICE}")
    try:
        values = dequantise(codes, scale.contiguous(), zero, block, is_added)
    except WorkbenchError as error:
        raise WorkbenchError(f"{file}: a {kind} of torchao is broken: {error}") from error
    target = outer.get("target_dtype")  # a dtype; in safetensors {"_type": "torch.dtype", "_data": "int4"}
    target = target.get("_data") if isinstance(target, dict) else target
    stored = str(target or ("int4" if is_added else codes.dtype))
    nbytes = sum(outer[name].nbytes for name in (*CODES, "scale", "zero_point") if _is_plain(outer.get(name)))
    return Dequantised(values, f"{stored.removeprefix('torch.')} of torchao", nbytes)


def _is_plain(value: Any) -> bool:
    """Whether a value is a plain tensor with memory of its own for each element."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _block_of(codes: Tensor, scale: Any) -> tuple[int, ...] | None:
    """Return the size of a block where there are as many axes of scales as of codes."""
    if not _is_plain(scale) or scale.ndim != codes.ndim or 0 in scale.shape:
        return None
    return tuple(n // count for n, count in zip(codes.shape, scale.shape, strict=True))
