"""Small ONNX files: traced graphs whose weights are stored as float16 and computed with as float32."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn


def export_onnx(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: str | Path,
    inputs: list[str],
    output: str,
    dynamic: dict[str, int],
    opset: int = 17,
) -> None:
    """Trace a model on the CPU and write it with half-size weights.

    Parameters
    ----------
    model : nn.Module
        Takes `example` by position and returns one tensor.
    example : tuple of Tensor
        Inputs to trace with.
    path : Path
        The file to write.
    inputs, output : list of str, str
        Names of inputs and output.
    dynamic : dict
        Which axis of which input has a free length. The output's second axis is left free too.
    opset : int
        ONNX operator set.
    """
    axes = {name: {axis: "T"} for name, axis in dynamic.items()} | {output: {1: "L"}}
    buffer = io.BytesIO()
    training = model.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its own retirement
        torch.onnx.export(
            model.eval(), example, buffer, input_names=inputs, output_names=[output], dynamic_axes=axes,
            opset_version=opset, dynamo=False,
        )  # fmt: skip
    model.train(training)
    graph = onnx.load_from_string(buffer.getvalue())
    halve(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def halve(model: onnx.ModelProto) -> None:
    """Store every float32 weight as float16, with a cast back in front of its users, in place."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or not weight.dims:
            continue
        name = weight.name
        small = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(small, name + "_half"))
        casts.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
