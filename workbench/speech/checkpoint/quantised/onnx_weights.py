"""The tensors of an ONNX file, quantised ones as what its nodes compute from them."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.speech.checkpoint.quantised.dequantised import Dequantised, dequantise, low_nibble_first

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"


def onnx_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and tensor of each initializer of an ONNX file.

    A `Dequantised` stands for the codes of a DequantizeLinear or MatMulNBits, and a text for what cannot be
    read, such as external data.

    Raises
    ------
    WorkbenchError
        When it is no ONNX file.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # of protobuf or onnx, which have no common class
        raise WorkbenchError(f"{path} is not an ONNX model ({first_line(error)}); copy it again") from error
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers = {"DequantizeLinear": (0, _dequantize_linear), "MatMulNBits": (1, _matmul_nbits)}
    users = {}  # by name of codes: the first node that reads them
    for node in graph.node:
        position, _ = readers.get(node.op_type, (0, None))
        if (
            node.op_type in readers
            and len(node.input) > position
            and node.domain in ("", "ai.onnx", MICROSOFT)
        ):
            users.setdefault(node.input[position], node)
    for name, tensor in tensors.items():
        try:
            node = users.get(name)
            if node is not None:
                yield name, readers[node.op_type][1](node, tensors)
                continue
            yield name, torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        except WorkbenchError as error:
            yield name, f"not dequantised: {error}"
        except Exception:  # external data, broken dimensions, or a type torch does not know
            types = {number: name for name, number in onnx.TensorProto.DataType.items()}
            kind = types.get(tensor.data_type, f"unknown type {tensor.data_type}")
            yield name, f"{math.prod(tensor.dims)} values, {kind}"


def _dequantize_linear(node: "onnx.NodeProto", tensors: dict[str, "onnx.TensorProto"]) -> Dequantised:
    """Compute what a DequantizeLinear makes: one scale for the tensor, each channel, or each group."""
    codes, scale, zero = (_input(node, position, tensors) for position in range(3))
    if codes is None or scale is None:
        raise WorkbenchError("its scale is computed, not stored")
    settings = _attributes(node)
    block = [-1] * codes.ndim
    shared = "tensor"
    if scale.numel() > 1 and codes.ndim:
        axis = settings.get("axis", 1) % codes.ndim
        group = settings.get("block_size", 0)
        block = [1] * codes.ndim if group else block
        block[axis] = group or 1
        shared = f"group of {group}" if group else "channel"
    kind, nbytes = _stored(tensors[node.input[0]])
    nbytes += scale.nbytes
    return Dequantised(dequantise(codes, scale, zero, block), f"{kind} per {shared}", nbytes)


def _matmul_nbits(node: "onnx.NodeProto", tensors: dict[str, "onnx.TensorProto"]) -> Dequantised:
    """Compute the weight (N, K) of ONNX Runtime's MatMulNBits: codes from 0, 8 being the zero by default."""
    packed, scale, zero = (_input(node, position, tensors, keep=True) for position in (1, 2, 3))
    settings = _attributes(node)
    bits, group = settings.get("bits", 4), settings.get("block_size", 0)
    rows, columns = settings.get("N", 0), settings.get("K", 0)
    if packed is None or scale is None or bits not in (4, 8) or min(rows, columns) < 1 or group < 2:
        raise WorkbenchError(f"MatMulNBits with {bits} bits and groups of {group}")
    count = -(-columns // group)
    unpack: Callable[[Tensor], Tensor] = low_nibble_first if bits == 4 else lambda each: each
    codes = unpack(packed).reshape(-1)
    if codes.numel() != rows * count * group or scale.numel() != rows * count:
        raise WorkbenchError(f"{codes.numel()} codes for {rows} x {columns} in groups of {group}")
    zeros = torch.full((rows, count), float(1 << (bits - 1)))
    if zero is not None and zero.is_floating_point():
        zeros = zero.reshape(rows, count)
    elif zero is not None:
        zeros = unpack(zero.reshape(rows, -1))[:, :count]
    values = dequantise(codes.reshape(rows, -1), scale, zeros.contiguous(), (1, group))[:, :columns]
    nbytes = packed.nbytes + scale.nbytes + (0 if zero is None else zero.nbytes)
    return Dequantised(values, f"int{bits} per group of {group}", nbytes)


def _input(
    node: "onnx.NodeProto", position: int, tensors: dict[str, "onnx.TensorProto"], keep: bool = False
) -> Tensor | None:
    """Return a stored input, as float32 unless its type is kept; None where there is none."""
    import onnx

    if len(node.input) <= position or node.input[position] not in tensors:
        return None
    array = onnx.numpy_helper.to_array(tensors[node.input[position]])
    return torch.from_numpy(np.array(array if keep else array.astype(np.float32)))


def _attributes(node: "onnx.NodeProto") -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _stored(tensor: "onnx.TensorProto") -> tuple[str, int]:
    """Return the type of a tensor's elements, and its bytes in the file."""
    import onnx

    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "int16": 16, "uint16": 16, "int32": 32}.get(kind, 8)
    return kind, -(-math.prod(tensor.dims) * bits // 8)
