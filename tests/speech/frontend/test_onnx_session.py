"""ONNX files that ask for any amount of memory or time, or that cannot be opened: refused in words."""

import resource
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from workbench import WorkbenchError
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.frontend import onnx_session
from workbench.speech.frontend.onnx_session import open_session, run_session

CPU = torch.device("cpu")


def saved(path, nodes, constants=(), opset=17, ir_version=8):
    """A file with an input x of any length and an output y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    onnx.save(model, str(path))
    return path


def node(kind, inputs, output="big", **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def summed(*nodes):
    """Nodes, and the sum of what the last of them made."""
    return [*nodes, node("ReduceSum", ["big"], "sum", keepdims=0), node("Add", ["x", "sum"], "y")]


def loop():
    """A loop of a billion turns over a number."""
    number = [helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in ("v", "w")]
    turn = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    go_on = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("c", "d")]
    body = helper.make_graph(
        [helper.make_node("Sin", ["v"], ["w"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [turn, go_on[0], number[0]],
        [go_on[1], number[1]],
    )
    return [
        helper.make_node("Loop", ["n", "yes", "zero"], ["sum"], body=body),
        node("Add", ["x", "sum"], "y"),
    ]


HUGE = {"n": [1_000_000_000]}
BOMBS = {
    "ConstantOfShape": (summed(node("ConstantOfShape", ["n"])), HUGE),
    "Expand": (summed(node("Expand", ["one", "n"])), HUGE | {"one": np.ones(1, np.float32)}),
    "Tile": (summed(node("Tile", ["one", "n"])), HUGE | {"one": np.ones(1, np.float32)}),
    "Range": (
        summed(node("Range", ["a", "b", "c"])),
        {"a": np.float32(0), "b": np.float32(1e9), "c": np.float32(1)},
    ),
    "RandomNormal": (summed(node("RandomNormal", [], shape=[1_000_000_000])), {}),
    "an outer product": (
        summed(node("MatMul", ["a", "b"])),
        {"a": np.ones((40_000, 1), np.float32), "b": np.ones((1, 40_000), np.float32)},
    ),
    "a size from the input": (
        summed(node("Shape", ["x"], "s"), node("Mul", ["s", "n"], "m"), node("ConstantOfShape", ["m"])),
        {"n": [100_000_000]},
    ),
    "Pad": (
        summed(node("Pad", ["one", "p"])),
        {"one": np.ones(1, np.float32), "p": [0, 1_000_000_000]},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_asks_for_too_much_memory_is_stopped(tmp_path, name):
    path = saved(tmp_path / "bomb.onnx", *BOMBS[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WorkbenchError, match=r"bomb\.onnx asks for more than 38[45] MB"):
        run_session(open_session(path, CPU), path, {"x": torch.ones(10)}, ["y"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 600_000
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_a_loop_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_session, "FREE_SECONDS", 0.3)
    path = saved(tmp_path / "loop.onnx", loop(), {"n": 1_000_000_000, "yes": True, "zero": np.float32(1)})
    start = time.perf_counter()
    with pytest.raises(WorkbenchError, match=r"loop\.onnx did not end within 0 s"):
        run_session(open_session(path, CPU), path, {"x": torch.ones(10)}, ["y"])
    assert time.perf_counter() - start < 5


def test_a_file_of_a_newer_version_is_refused_with_its_reason(tmp_path):
    path = saved(tmp_path / "new.onnx", [node("Identity", ["x"], "y")], ir_version=99)
    with pytest.raises(WorkbenchError, match=r"IR version.*onnxruntime .* is older"):
        open_session(path, CPU)


def test_inspection_lists_tensors_that_cannot_be_read(tmp_path):
    outside = numpy_helper.from_array(np.ones(2, np.float32), "outside")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=str(Path("/etc/hostname")))
    broken = numpy_helper.from_array(np.ones(2, np.float32), "broken")
    broken.dims[0] = 7
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph([node("Identity", ["x"], "y")], "g", [x], [x], [outside, broken])
    (tmp_path / "a.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    notes = inspect_folder(tmp_path).set_index("key")["note"]
    assert "2 values, FLOAT" in notes["outside"] and "7 values, FLOAT" in notes["broken"]
