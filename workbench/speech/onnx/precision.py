"""An ONNX graph whose layers have the formats of a map: casts for half precision, codes for weights.

torch's exporter notes at each node which module it comes from, so the nodes of a layer are found by name.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config.formats import Format
from workbench.speech.models.quantise.codes import Codes, codes_of, is_codes

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
HALF = ("float16", "bfloat16")
EXPRESSED = "float16, bfloat16, int8, int4, fp8_e4m3, fp8_e5m2, q8_0 or q4_0"
COMPUTES = ("MatMul", "Gemm", "Conv", "Add")  # a layer's product, and the sum with its bias
OPSET = 18  # upstream's
OPSET_OF_CODES = 21  # from which DequantizeLinear has groups and 4 bits
OPSET_OF_BFLOAT16 = 22  # from which convolutions have it


def check_formats(formats: Mapping[str, Format]) -> None:
    """Raise a WorkbenchError for a format that ONNX has no type for.

    Parameters
    ----------
    formats : mapping of str to Format
        Of each layer.
    """
    for layer, used in formats.items():
        if used.kind.family == "float" or is_codes(used):
            continue
        why = "whose inputs are quantised too" if "dynamic" in used.details else "which ONNX has no type for"
        raise WorkbenchError(
            f"{layer} is in {used}, {why}; expected {EXPRESSED}, or weights that are only simulated: "
            "Options(weights=...)"
        )


def opset_of(formats: Mapping[str, Format]) -> int:
    """Return the version of ONNX's operators that the formats need."""
    if any(used.name == "bfloat16" for used in formats.values()):
        return OPSET_OF_BFLOAT16
    return OPSET_OF_CODES if any(is_codes(used) for used in formats.values()) else OPSET


def set_formats(model: "ir.Model", weights: Mapping[str, Tensor], formats: Mapping[str, Format]) -> list[str]:
    """Give layers their formats, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        As torch exports it: float32, with modules noted.
    weights : mapping of str to Tensor
        Of each layer, by the module's name in the graph.
    formats : mapping of str to Format
        Of each layer, by the same names; layers without one stay in float32.

    Returns
    -------
    list of str
        Names of the nodes that compute in float32.
    """
    nodes_of: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        nodes_of.setdefault(module_of(node), []).append(node)
    in_half: set[str] = set()
    for layer, used in formats.items():
        nodes = [node for node in nodes_of.get(layer, ()) if node.op_type in COMPUTES]
        if not nodes:
            raise WorkbenchError(f"{layer} has no node of its own in the exported graph; leave it in float32")
        if used.name in HALF:
            _cast(model.graph, nodes, used.name)
            in_half |= {node.name for node in nodes}
        elif is_codes(used):
            _store_codes(model.graph, nodes, layer, weights[layer], used)
    return _in_float32(model.graph, in_half)


def module_of(node: "ir.Node") -> str:
    """Return the dotted name of the innermost module that a node comes from."""
    scopes = node.metadata_props.get(SCOPES, "")
    names = [name.strip(" '\"") for name in scopes.strip("[]").split(",")]
    return names[-2] if len(names) > 1 else ""


def _cast(graph: "ir.Graph", nodes: list["ir.Node"], name: str) -> None:
    """Let nodes compute in half precision: casts around them, and their stored inputs in half precision."""
    import onnx_ir as ir

    half = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}[name]
    made = {id(output) for node in nodes for output in node.outputs}
    casts: dict[int, ir.Value] = {}  # by what is cast
    for node in nodes:
        for position, value in enumerate(node.inputs):
            if value is None or id(value) in made or value.dtype != ir.DataType.FLOAT:
                continue
            if id(value) not in casts:
                casts[id(value)] = _in_half(graph, node, value, half)
            node.replace_input_with(position, casts[id(value)])
    for node in nodes:
        for output in node.outputs:
            outside = [use for use in output.uses() if use.node not in nodes]
            output.dtype = half
            if not outside and not output.is_graph_output():
                continue
            back = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{node.name}_to_float32")
            back.outputs[0].name, output.name = output.name, f"{output.name}_{half.name.lower()}"
            back.outputs[0].dtype, back.outputs[0].shape = ir.DataType.FLOAT, output.shape
            for use in outside:
                use.node.replace_input_with(use.idx, back.outputs[0])
            for position, value in enumerate(graph.outputs):
                if value is output:
                    graph.outputs[position] = back.outputs[0]
            graph.insert_after(node, back)


def _in_half(graph: "ir.Graph", node: "ir.Node", value: "ir.Value", half: "ir.DataType") -> "ir.Value":
    """Return a value in half precision: stored so, or cast in front of a node."""
    import onnx_ir as ir

    name = f"{value.name}_{half.name.lower()}"
    if value.is_initializer():
        if name not in graph.initializers:
            stored = value.const_value.numpy().astype(half.numpy())
            graph.register_initializer(_constant(name, stored))
        narrow = graph.initializers[name]
        if len(value.uses()) <= 1:
            graph.initializers.pop(value.name)
        return narrow
    cast = ir.node("Cast", [value], {"to": half}, name=f"{node.name}_{value.name}_to_{half.name.lower()}")
    cast.outputs[0].name = f"{node.name}_{name}"
    cast.outputs[0].dtype, cast.outputs[0].shape = half, value.shape
    graph.insert_before(node, cast)
    return cast.outputs[0]


def _store_codes(graph: "ir.Graph", nodes: list["ir.Node"], layer: str, weight: Tensor, used: Format) -> None:
    """Store a layer's weight as codes, which a DequantizeLinear in front of the layer turns into floats."""
    import onnx_ir as ir

    found = [
        (node, position, value)
        for node in nodes
        for position, value in enumerate(node.inputs)
        if value is not None and value.is_initializer() and len(value.shape) == weight.ndim
    ]
    if len(found) != 1:
        raise WorkbenchError(f"{layer} has {len(found)} weights in the exported graph; leave it in float32")
    node, position, value = found[0]
    coded = codes_of(weight, used)
    stored = torch.from_numpy(value.const_value.numpy().copy())
    if not torch.equal(stored, weight):
        if weight.ndim != 2 or not torch.equal(stored, weight.T):
            raise WorkbenchError(f"{layer}: the exporter has changed its weight; leave it in float32")
        coded = _transposed(coded)
    values = [_constant(f"{layer}.weight_codes", _array(coded.codes, used))]
    values.append(_constant(f"{layer}.weight_scale", coded.scale.numpy()))
    if coded.zero is not None:
        values.append(_constant(f"{layer}.weight_zero", _array(coded.zero, used)))
    for each in values:
        graph.register_initializer(each)
    attributes = {"axis": coded.axis} if coded.scale.ndim else {}
    attributes |= {"block_size": coded.group} if coded.group else {}
    made = ir.node("DequantizeLinear", values, attributes, name=f"{layer}.weight_dequantise")
    made.outputs[0].name = f"{layer}.weight_dequantised"
    made.outputs[0].dtype, made.outputs[0].shape = ir.DataType.FLOAT, value.shape
    graph.insert_before(node, made)
    node.replace_input_with(position, made.outputs[0])
    if not value.uses():
        graph.initializers.pop(value.name)


def _transposed(coded: Codes) -> Codes:
    """Return the codes of a matrix as those of its transpose."""
    scale, zero = coded.scale, coded.zero
    if coded.group:
        scale, zero = scale.T.contiguous(), None if zero is None else zero.T.contiguous()
    return Codes(coded.codes.T.contiguous(), scale, zero, 1 - coded.axis, coded.group)


def _array(values: Tensor, used: Format) -> np.ndarray:
    """Return codes or zeros in the type that they are stored in."""
    import onnx_ir as ir

    if values.dtype == torch.float8_e4m3fn:
        return values.view(torch.uint8).numpy().view(ir.DataType.FLOAT8E4M3FN.numpy())
    if values.dtype == torch.float8_e5m2:
        return values.view(torch.uint8).numpy().view(ir.DataType.FLOAT8E5M2.numpy())
    return values.numpy().astype(ir.DataType.INT4.numpy() if used.kind.bits == 4 else np.int8)


def _constant(name: str, array: np.ndarray) -> "ir.Value":
    import onnx_ir as ir

    stored = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=stored.shape, type=ir.TensorType(stored.dtype), const_value=stored)


def _in_float32(graph: "ir.Graph", in_half: set[str]) -> list[str]:
    """Return the nodes that compute floats in float32, in the order of the graph; casts are none of them."""
    import onnx_ir as ir

    found = []
    for node in graph:
        makes_floats = any(output.dtype == ir.DataType.FLOAT for output in node.outputs)
        if makes_floats and node.name not in in_half and node.op_type not in ("Cast", "DequantizeLinear"):
            found.append(node.name)
    return found
