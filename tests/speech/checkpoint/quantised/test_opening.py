"""Weights that others quantised: GGUF, torchao and ONNX open dequantised and said once; others are told by name."""

import json
import re
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
from workbench.cli import main
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.quantised.onnx_weights import onnx_entries
from workbench.speech.checkpoint.quantised.torchao_weights import StoredSubclass
from workbench.speech.checkpoint.weight_names import EMBED, HEAD, LLAMA_LAYER, LLAMA_TOP, QWEN
from workbench.speech.checkpoint.weights import read_weights
from workbench.speech.config import Config, LMConfig
from workbench.speech.config.options import Options
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import provenance
from workbench.trace.record import NOTHING

gguf = pytest.importorskip("gguf")
TYPES = gguf.GGMLQuantizationType
TORCHAO = ASSETS / "torchao"
Q_PROJ = f"{QWEN}layers.0.self_attn.q_proj"
# Rows of 256, so that super-blocks fit.
WIDE = Config(
    lm=LMConfig(
        speech_token_size=27,
        n_special=4,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        vocab_size=20,
    ),
    flow=TINY.flow,
    hift=TINY.hift,
    silent_tokens=(1, 2),
)
HEADER = {
    "block_count": 2,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


@pytest.fixture(scope="module")
def wide():
    return Checkpoint.random(WIDE, seed=1)


@pytest.fixture(scope="module")
def saved(wide, tmp_path_factory):
    folder = wide.save(tmp_path_factory.mktemp("wide") / "wide", noise_seconds=0)
    (folder / "llm.safetensors").unlink()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "wide")


def llama_name(name):
    match = re.fullmatch(rf"{re.escape(QWEN)}layers\.(\d+)\.(.*)\.(weight|bias)", name)
    if match is None:
        return {ours: theirs for theirs, ours in LLAMA_TOP.items()}[name]
    theirs = next(key for key, ours in LLAMA_LAYER.items() if ours == match[2])
    return f"blk.{match[1]}.{theirs}.{match[3]}"


def blocks(rng, shape, kind):
    """Random codes of a type: any bytes, whose float16 numbers are made small."""
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (shape[0], shape[1] // size, nbytes), dtype=np.uint8)
    rows[..., 1::2] &= 0b10110011  # as a high byte of a float16: not NaN, not Inf, not large
    return rows.reshape(shape[0], -1)


def write_gguf(path, weights, kind_of, header=None, architecture="qwen2"):
    """Write a file, and return the weights that the library makes of it."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (header or {}).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    expected = {}
    for name, value in weights.items():
        array = value.float().numpy()
        kind = kind_of(name) if value.ndim == 2 else None
        if kind is None:
            writer.add_tensor(llama_name(name), array)
            expected[name] = value.float()
            continue
        packed = gguf.quantize(array, kind) if kind == TYPES.BF16 else blocks(rng, value.shape, kind)
        writer.add_tensor(llama_name(name), packed, raw_dtype=kind)
        expected[name] = torch.from_numpy(gguf.dequantize(packed, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def lm_weights(wide):
    return {name: value for name, value in wide.weights["lm"].items() if name != HEAD}


# ---- GGUF

NAMES = (
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "BF16",
    "IQ4_XS",
    "IQ4_NL",
)


@pytest.mark.parametrize("name", NAMES)
def test_each_type_that_the_library_knows_opens_with_its_values(wide, folder, name):
    expected = write_gguf(folder / "llm.gguf", lm_weights(wide), lambda _: TYPES[name], HEADER)
    loaded = Checkpoint.load(folder)
    for key, value in expected.items():
        assert torch.equal(loaded.weights["lm"][key].float(), value), key
    n_matrices = sum(value.ndim == 2 for value in expected.values())
    said = f"llm.gguf: lm: {n_matrices} tensors in {name}, dequantised to float32"
    assert loaded.notes == (() if name == "BF16" else (said,))


def test_a_mixture_is_said_once_and_stays_in_the_provenance(wide, folder, capsys):
    def kind_of(name):
        return TYPES.Q6_K if name.endswith(("v_proj.weight", "down_proj.weight")) else TYPES.Q4_K

    write_gguf(folder / "cosyvoice3-llm-q4_k_m.gguf", lm_weights(wide), kind_of, HEADER)
    pipe = Pipeline(Checkpoint.load(folder), progress=False)
    said = "cosyvoice3-llm-q4_k_m.gguf: lm: 13 tensors in Q4_K, 4 in Q6_K, dequantised to float32"
    assert pipe.checkpoint.notes == (said,)
    assert provenance(pipe, Options(), NOTHING)["checkpoint"]["notes"] == [said]
    assert main(["inspect", str(folder / "cosyvoice3-llm-q4_k_m.gguf")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "blk.1.attn_v.weight" in line)
    assert "Q6_K" in line and "(128, 256)" in line


def test_a_head_of_its_own_and_parts_in_several_files_open(wide, folder):
    weights = lm_weights(wide) | {HEAD: wide.weights["lm"][EMBED] + 1}
    half = len(weights) // 2
    parts = (dict(list(weights.items())[:half]), dict(list(weights.items())[half:]))
    for number, part in enumerate(parts, 1):
        write_gguf(folder / f"llm-0000{number}-of-00002.gguf", part, lambda _: TYPES.Q8_0, HEADER)
    loaded = Checkpoint.load(folder)
    assert len(loaded.notes) == 1 and loaded.weights["lm"][HEAD] is not loaded.weights["lm"][EMBED]
    (folder / "llm-00002-of-00002.gguf").unlink()
    with pytest.raises(WorkbenchError, match=r"one of 2 parts, and 1 are there"):
        Checkpoint.load(folder)


CONTRADICTIONS = {
    "attention.head_count": (8, "head_count = 8, and the configuration num_attention_heads = 4"),
    "attention.head_count_kv": (1, "num_key_value_heads = 2"),
    "block_count": (24, "num_hidden_layers = 2"),
    "rope.freq_base": (10000.0, r"rope.freq_base = 10000, and the configuration rope_theta = 1e\+06"),
    "attention.layer_norm_rms_epsilon": (1e-5, "rms_norm_eps = 1e-06"),
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_a_header_that_contradicts_the_configuration_is_refused(wide, folder, key):
    value, said = CONTRADICTIONS[key]
    write_gguf(folder / "llm.gguf", lm_weights(wide), lambda _: TYPES.Q8_0, HEADER | {key: value})
    with pytest.raises(WorkbenchError, match=said):
        Checkpoint.load(folder)


def test_rows_of_q_and_k_in_the_order_of_llama_are_refused(wide, folder):
    write_gguf(folder / "llm.gguf", lm_weights(wide), lambda _: None, architecture="llama")
    with pytest.raises(WorkbenchError, match=r"architecture .llama., for which llama\.cpp stores"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_told(wide, folder, share):
    path = folder / "llm.gguf"
    write_gguf(path, lm_weights(wide), lambda _: TYPES.Q4_K, HEADER)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WorkbenchError, match=r"llm\.gguf"):
        Checkpoint.load(folder)
    assert "llm.gguf" in inspect_folder(path)["note"][0]


def test_a_type_without_dequantiser_and_another_shape_are_told(wide, folder):
    path = folder / "llm.gguf"
    weights = lm_weights(wide)
    write_gguf(path, weights | {f"{Q_PROJ}.weight": torch.zeros(512, 256)}, lambda _: TYPES.Q8_0)
    with pytest.raises(WorkbenchError, match=r"q_proj.weight: expected \(256, 256\).*found \(512, 256\)"):
        Checkpoint.load(folder)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((256, 292), np.uint8), raw_dtype=TYPES.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        WorkbenchError, match=r"attn_q.weight is in Q8_K, which the library gguf does not deq"
    ):
        Checkpoint.load(folder)


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
