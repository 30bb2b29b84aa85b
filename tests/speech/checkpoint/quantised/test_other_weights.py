"""Weights of torchao and ONNX open dequantised; other schemes are told by the names of their tensors."""

import json
import shutil
import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from tests.paths import ASSETS
from tests.speech.checkpoint.tiny_voice import TINY
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.quantised.onnx_weights import onnx_entries
from workbench.speech.checkpoint.quantised.torchao_weights import StoredSubclass
from workbench.speech.checkpoint.weight_names import QWEN
from workbench.speech.checkpoint.weights import read_weights

TORCHAO = ASSETS / "torchao"
Q_PROJ = f"{QWEN}layers.0.self_attn.q_proj"

# ---- torchao


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Checkpoint.random(TINY, seed=3).save(tmp_path_factory.mktemp("tiny") / "tiny", noise_seconds=0)


FILES = sorted(
    path.name
    for path in TORCHAO.iterdir()
    if "expected" not in path.name and "affine-int8-dynamic" not in path.name
)


@pytest.mark.parametrize("name", FILES)
def test_what_torchao_saved_opens_with_its_values(small, tmp_path, name):
    folder = shutil.copytree(small, tmp_path / "tiny")
    (folder / "llm.safetensors").unlink()
    path = TORCHAO / name
    shutil.copyfile(path, folder / f"llm{path.suffix}")
    expected = load_file(path.with_name(f"{path.stem}.expected.safetensors"))
    loaded = Checkpoint.load(folder)
    for key, value in expected.items():
        assert torch.allclose(loaded.weights["lm"][key].float(), value, rtol=1e-6, atol=0), key
    kind = {"float8": "float8_e4m3fn", "int4-groups": "int4"}.get(path.stem, "int8")
    assert loaded.notes == (f"llm{path.suffix}: lm: 9 tensors in {kind} of torchao, dequantised to float32",)


def test_weights_whose_inputs_are_quantised_too_open():
    found = read_weights(TORCHAO / "affine-int8-dynamic.pt")["weight"]
    expected = load_file(TORCHAO / "affine-int8-dynamic.expected.safetensors")["weight"]
    assert torch.allclose(found.values, expected, rtol=1e-6, atol=0) and found.format == "int8 of torchao"


def test_packed_int4_of_torchao_is_unpacked(tmp_path):
    """The layout of `Int4Tensor`: low four bits first, groups in the rows of scales, zeros added."""
    codes = torch.randint(-8, 8, (6, 32), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scale, zero = torch.rand(2, 6), torch.rand(2, 6)
    packed = (codes[:, ::2] & 15) | (codes[:, 1::2] << 4)
    header = {
        "tensor_names": json.dumps(["a.weight"]),
        "a.weight": json.dumps({"_type": "Int4Tensor", "_data": {"block_size": [1, 16], "shape": [6, 32]}}),
    }
    parts = {"a._weight_qdata": packed, "a._weight_scale": scale, "a._weight_zero_point": zero}
    save_file(parts, tmp_path / "x.safetensors", header)
    found = read_weights(tmp_path / "x.safetensors")["a.weight"]
    by_code = codes.float().reshape(6, 2, 16) * scale.T[..., None] + zero.T[..., None]
    assert torch.equal(found.values, by_code.reshape(6, 32)) and found.format == "int4 of torchao"


BROKEN = {
    "Int8Tensor": ({"block_size": [1, 5]}, r"blocks of \(1, 5\) do not divide"),
    "Float8Tensor": ({"block_size": [1, 4]}, "6 scales for 48 blocks"),
    "Int4TilePackedTo4dTensor": ({"block_size": [1, 32]}, "packed for a kernel; where torchao is at hand"),
    "IntxUnpackedToInt8Tensor": ({"block_size": "x"}, "without sizes of its blocks"),
    "MXTensor": ({}, "a MXTensor of torchao, packed"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_or_packed_tensors_of_torchao_are_told(tmp_path, kind):
    settings, said = BROKEN[kind]
    described = json.dumps({"_type": kind, "_data": settings})
    parts = {"a._weight_qdata": torch.zeros(6, 32, dtype=torch.int8), "a._weight_scale": torch.ones(6, 1)}
    header = {"tensor_names": json.dumps(["a.weight"]), "a.weight": described}
    save_file(parts, tmp_path / "x.safetensors", header)
    with pytest.raises(WorkbenchError, match=said):
        read_weights(tmp_path / "x.safetensors")


def test_a_pickle_of_torchao_runs_no_code_and_does_not_multiply(tmp_path, monkeypatch):
    class Int8Tensor(StoredSubclass):
        pass

    Int8Tensor.__module__, Int8Tensor.__qualname__ = "torchao.quantization", "Int8Tensor"
    codes = torch.zeros(1 << 10, 1 << 10, dtype=torch.int8)
    many = {}
    for number in range(600):  # each would take 4 MB
        made = torch.Tensor._make_wrapper_subclass(Int8Tensor, codes.shape, dtype=torch.float32)
        made.qdata, made.scale, made.block_size = codes, torch.ones(1), [-1, -1]
        many[str(number)] = made
    with monkeypatch.context() as patch:  # to write it, pickle looks the class up
        patch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
        patch.setitem(sys.modules, "torchao.quantization", types.ModuleType("torchao.quantization"))
        sys.modules["torchao.quantization"].Int8Tensor = Int8Tensor
        torch.save(many, tmp_path / "x.pt")
        torch.save({"0": many["0"]}, tmp_path / "one.pt")
    assert read_weights(tmp_path / "one.pt")["0"].values.shape == (1 << 10, 1 << 10)
    with pytest.raises(WorkbenchError, match=r"all tensors takes .* GiB; expected \d+ MiB"):
        read_weights(tmp_path / "x.pt")


# ---- schemes that are told by their names

W = Q_PROJ
SCHEMES = {
    "GPTQ": {f"{W}.qweight": 4, f"{W}.qzeros": 4, f"{W}.scales": 4, f"{W}.g_idx": 4},
    "AWQ": {f"{W}.qweight": 4, f"{W}.qzeros": 4, f"{W}.scales": 4},
    "bitsandbytes 4 bits": {
        f"{W}.weight": 1,
        f"{W}.weight.absmax": 4,
        f"{W}.weight.quant_map": 4,
        f"{W}.weight.quant_state.bitsandbytes__nf4": 1,
    },
    "bitsandbytes int8": {f"{W}.weight": 1, f"{W}.SCB": 4},
    "compressed-tensors": {f"{W}.weight_packed": 4, f"{W}.weight_scale": 4, f"{W}.weight_shape": 4},
    "HQQ": {f"{W}.W_q": 1, f"{W}.scale": 4, f"{W}.zero": 4},
    "MLX": {f"{W}.weight": 4, f"{W}.scales": 4, f"{W}.biases": 4},
    "torch.ao": {f"{W}._packed_params._packed_params": 1},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_that_is_not_opened_is_named(small, tmp_path, name):
    folder = shutil.copytree(small, tmp_path / "tiny")
    path = folder / "llm.safetensors"
    weights = load_file(path)
    del weights[f"{W}.weight"]
    kinds = {1: torch.uint8, 4: torch.int32}
    codes = {key: torch.zeros(8, dtype=kinds[size]) for key, size in SCHEMES[name].items()}
    save_file(weights | codes, path)
    with pytest.raises(
        WorkbenchError, match=rf"llm.safetensors is quantised by {name} \(.*which is not opened"
    ):
        Checkpoint.load(folder)


def test_plain_weights_in_8_bit_floats_are_listed(tmp_path):
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        save_file({"w": torch.tensor([1.0, float("nan")]).to(dtype)}, tmp_path / "x.safetensors")
        row = inspect_folder(tmp_path / "x.safetensors").iloc[0]
        assert row["dtype"] == str(dtype).removeprefix("torch.") and row["nan"] == 1


# ---- ONNX


def onnx_file(path, nodes, initializers, inputs, outputs, domain=None):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    onnx.save(model, path)


KINDS = {
    "int8 per tensor": (TensorProto.INT8, (), {}),
    "uint8 per channel": (TensorProto.UINT8, (8,), {"axis": 0}),
    "int4 per group of 16": (TensorProto.INT4, (8, 2), {"axis": 1, "block_size": 16}),
    "uint4 per group of 4": (TensorProto.UINT4, (2, 32), {"axis": 0, "block_size": 4}),
    "float8e4m3fn per channel": (TensorProto.FLOAT8E4M3FN, (32,), {"axis": 1}),
}


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_onnx_are_what_onnxruntime_computes(tmp_path, name):
    kind, shape, settings = KINDS[name]
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    codes = rng.integers(0, 8, (8, 32)).astype(np.float32).astype(dtype)
    scale = rng.uniform(0.5, 1, shape).astype(np.float32)
    zero = rng.integers(0, 3, shape).astype(np.float32).astype(dtype)
    names = ["w", "s"] if "float8" in name else ["w", "s", "z"]
    values = dict(zip("wsz", (codes, np.array(scale), np.array(zero)), strict=True))
    stored = [numpy_helper.from_array(values[each], each) for each in names]
    node = helper.make_node("DequantizeLinear", names, ["y"], **settings)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (8, 32))
    onnx_file(tmp_path / "x.onnx", [node], stored, [], [output])
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    found = dict(onnx_entries(tmp_path / "x.onnx"))["w"]
    assert found.format == name
    assert np.array_equal(found.values.numpy(), session.run(None, {})[0])
    row = inspect_folder(tmp_path / "x.onnx").set_index("key").loc["w"]
    assert row["dtype"] == name and row["shape"] == (8, 32) and row["MB"] < 0.0009


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_matmulnbits_is_what_onnxruntime_computes(tmp_path, bits, has_zeros):
    rng = np.random.default_rng(0)
    rows, columns, group = 6, 64, 16
    count = columns // group
    values = {
        "B": rng.integers(0, 256, (rows, count, group * bits // 8), dtype=np.uint8),
        "scales": rng.uniform(0.5, 1, rows * count).astype(np.float32),
        "zeros": rng.integers(0, 256, rows * -(-count * bits // 8), dtype=np.uint8),
    }
    names = ["B", "scales"] + ["zeros"] * has_zeros
    node = helper.make_node(
        "MatMulNBits",
        ["A", *names],
        ["y"],
        domain="com.microsoft",
        N=rows,
        K=columns,
        bits=bits,
        block_size=group,
    )
    a = helper.make_tensor_value_info("A", TensorProto.FLOAT, (columns, columns))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (columns, rows))
    stored = [numpy_helper.from_array(values[each], each) for each in names]
    onnx_file(tmp_path / "x.onnx", [node], stored, [a], [y], "com.microsoft")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"A": np.eye(columns, dtype=np.float32)})[0].T
    found = dict(onnx_entries(tmp_path / "x.onnx"))["B"]
    assert found.format == f"int{bits} per group of 16"
    assert np.allclose(found.values.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_codes_that_do_not_fit_their_scales_are_told(tmp_path):
    stored = [
        numpy_helper.from_array(np.zeros((8, 32), np.int8), "w"),
        numpy_helper.from_array(np.ones(5, np.float32), "s"),
    ]
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0)
    onnx_file(tmp_path / "x.onnx", [node], stored, [], [helper.make_tensor_value_info("y", 1, (8, 32))])
    assert "5 scales for 8 blocks" in inspect_folder(tmp_path / "x.onnx").set_index("key").loc["w", "note"]
