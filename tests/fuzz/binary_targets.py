"""What hostile weight files, GGUF dumps and ONNX models are given to; joined to the others in `targets.py`."""

import io
import json
import shutil
import struct
import tempfile
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

import workbench as wb
from tests.fuzz.mutations import HUGE, ODD_DTYPES, ODD_SHAPES, Tools, damaged, odd_values
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.layouts import find_stage
from workbench.speech.checkpoint.stage_files import shapes
from workbench.speech.checkpoint.weights import read_weights, select_weights
from workbench.speech.frontend.onnx_session import open_session, run_session

CPU = torch.device("cpu")
WEIGHT_NAMES = (
    *("module.lm.weight", "conv.weight_g", "conv.weight_v", "act.alpha", "epoch", "a.b.c", "", "\ud800"),
    *("llm_decoder.weight", "module.llm_decoder.weight", "speech_embedding.weight", "input_embedding.weight"),
    *("conv_pre.weight_g", "conv_pre.parametrizations.weight.original1", "m_source.l_linear.weight"),
)
GGUF_COUNTS = (8, 16)  # bytes of a header where the counts of tensors and of fields stand
SLOW_SHARE = 0.005  # of the models that never end, each of which takes its whole allowance
CODE = (b"cos\nsystem\n(S'echo'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", b"(" * 50_000, b"]" * 9 + b"h\0.")


# ---- weight files


def weight_file(rng: Random, tools: Tools) -> None:
    """A weight file with odd tensors, objects, shared memory or damaged bytes: read it, or list its folder."""
    kind = rng.choice(("safetensors", "safetensors", "pt", "pt", "pth", "bin", "ckpt", "gguf"))
    path = tools.folder / f"{rng.choice(('llm', 'flow', 'hift', 'whole'))}.{kind}"
    if kind == "safetensors":
        data = _safetensors(rng)
    elif kind == "gguf":
        data = _gguf(rng)
    else:
        data = _saved(rng)
    path.write_bytes(damaged(data, rng) if rng.random() < 0.6 else data)
    if rng.random() < 0.5:
        inspect_folder(tools.folder)
    else:
        stage = rng.choice(("lm", "flow", "hift"))
        expected = shapes(stage, tools.pipe.checkpoint.config)
        found = find_stage(stage, read_weights(path), expected, path.name)
        select_weights(found.weights, expected, path, found.notes)


def _odd_tensor(rng: Random) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    x = torch.randn(rng.choice(ODD_SHAPES), generator=generator) * rng.choice((1, 1, 1e30, float("nan"), 0))
    return x.to(rng.choice(ODD_DTYPES)) if rng.random() < 0.3 else x


def _safetensors(rng: Random) -> bytes:
    """A file whose header states wrong shapes, types, places or lengths."""
    names = [name for name in rng.sample(WEIGHT_NAMES, rng.randrange(5)) if name.isascii()]
    data = save({name: _odd_tensor(rng) for name in names})
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length].decode(), data[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        header = odd_values(header, rng)
    elif kind == 1:
        header = header.replace("F32", rng.choice(("F64", "F8_E4M3", "X", "BOOL", "I64")))
    elif kind == 2:  # every tensor has the same bytes
        entry = {"dtype": "F32", "shape": [len(body) // 4], "data_offsets": [0, len(body) // 4 * 4]}
        header = json.dumps({f"x{k}": entry for k in range(rng.choice((2, 2000)))})
    elif kind == 3:
        header = rng.choice(('{"a":' * 2000, "[" * 100_000, "{}", ""))
    encoded = header.encode("utf-8", "replace")
    stated = rng.choice((len(encoded), len(encoded), len(encoded), 2**62, 2**31, 0))
    return struct.pack("<Q", stated) + encoded + body


def _saved(rng: Random) -> bytes:
    """What torch.save writes of odd objects, or a pickle that would run code."""
    tensors: dict = {name: _odd_tensor(rng) for name in rng.sample(WEIGHT_NAMES, rng.randrange(5))}
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(CODE)
    if kind == 1:  # small in the file, huge as a copy
        tensors["expanded"] = torch.zeros(1).expand(1 << rng.choice((10, 33)))
    elif kind == 2:
        tensors["sparse"] = torch.eye(3).to_sparse()
    elif kind == 3:
        tensors["meta"] = torch.empty(1 << 40, device="meta")
    elif kind == 4:
        for _ in range(rng.choice((1, 1, 5, 200))):
            tensors = {rng.choice(("state_dict", "model", 3, None, (1,))): tensors, "step": 3}
    elif kind == 5:
        tensors["quantised"] = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    content = rng.choice((tensors, tensors, tensors, [tensors, 3], torch.zeros(3), "text", None))
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


# ---- GGUF


@lru_cache(maxsize=4)
def _plain_gguf(version: int) -> bytes:
    gguf = pytest.importorskip("gguf")
    folder = Path(tempfile.mkdtemp())
    path = folder / "plain.gguf"
    writer = gguf.GGUFWriter(path, "crispasr.reference")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "def"])
    writer.add_uint32("general.version", version)
    rows = np.random.default_rng(version).standard_normal((6, 80)).astype("f4")
    writer.add_tensor("flow_euler_mu_in", rows)
    writer.add_tensor("flow_euler_x_init", rows.astype("f2"))
    quantised = gguf.quants.quantize(np.ones((6, 96), "f4"), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    shutil.rmtree(folder)
    return data


def _gguf(rng: Random) -> bytes:
    """A file with huge counts, repeated tensors, another type or version."""
    found = bytearray(_plain_gguf(rng.randrange(4)))
    kind = rng.randrange(6)
    if kind == 0:
        at = rng.choice(GGUF_COUNTS)
        found[at : at + 8] = rng.choice(HUGE)
    elif kind == 1:  # somewhere in the header: lengths of names, dimensions, types, places
        at = rng.randrange(24, 450)
        found[at : at + 8] = rng.choice((*HUGE, struct.pack("<Q", rng.randrange(64))))
    elif kind == 2:
        found[4:8] = struct.pack("<I", rng.choice((0, 1, 2, 99, 2**31)))
    elif kind == 3:
        at = rng.randrange(24, 450)
        found[at : at + 4] = struct.pack("<I", rng.randrange(40))
    elif kind == 4:
        del found[rng.randrange(len(found)) :]
    return bytes(found)


def gguf_dump(rng: Random, tools: Tools) -> None:
    path = tools.folder / rng.choice(("ref.gguf", "ref.bin", "llm.gguf"))
    data = _gguf(rng)
    path.write_bytes(damaged(data, rng) if rng.random() < 0.4 else data)
    if rng.random() < 0.7:
        wb.open(path).to_frame()
    else:
        wb.propose_mapping(path)


# ---- ONNX


def onnx_model(rng: Random, tools: Tools) -> None:
    """A small model with odd nodes or damaged bytes: list its weights, open it and run it."""
    path = tools.folder / "model.onnx"
    data = _model(rng)
    path.write_bytes(damaged(data, rng) if rng.random() < 0.6 else data)
    if rng.random() < 0.3:
        inspect_folder(tools.folder)
        return
    session = open_session(path, CPU)
    run_session(session, path, {"x": torch.ones(1, 8)}, ["y"])


def _model(rng: Random) -> bytes:
    kind = rng.randrange(8)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    w = np.ones((8, 4), "f4")
    tensors = [helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.tobytes(), raw=True)]
    if kind == 0:  # a few bytes that ask for gigabytes
        size = rng.choice((1, 10**6, 10**9, 2**40, -1))
        tensors.append(helper.make_tensor("n", TensorProto.INT64, [1], [size]))
        nodes = [helper.make_node("ConstantOfShape", ["n"], ["y"])]
    elif kind == 1:
        repeats = rng.choice((1, 10**5, 10**8))
        tensors.append(helper.make_tensor("n", TensorProto.INT64, [2], [repeats, 1]))
        nodes = [helper.make_node("Tile", ["x", "n"], ["y"])]
    elif kind == 2:
        tensors[0].dims[:] = rng.choice(([2**40, 2**40], [-8, 4], [], [0, 4], [8, 4, 1, 1, 1]))
    elif kind == 3:
        tensors[0].data_type = rng.randrange(30)
    elif kind == 4:  # weights in another file, which may lie anywhere
        tensors[0].ClearField("raw_data")
        tensors[0].data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", rng.choice(("w.data", "/etc/passwd", "../../w", ""))),
            ("offset", "-1"),
        ):
            entry = tensors[0].external_data.add()
            entry.key, entry.value = key, value
    elif kind == 5:
        nodes = [helper.make_node(rng.choice(("Nothing", "If", "Loop", "Reshape")), ["x", "w"], ["y"])]
    elif kind == 6:
        endless = rng.random() < SLOW_SHARE
        nodes, tensors = _loop(10**9 if endless else rng.choice((1, 1000, -1))), []
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opset = rng.choice((17, 17, 17, 17, 1, 99, 2**31))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    ).SerializeToString()


def _loop(count: int) -> list:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 8]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 8]),
        ],
    )
    return [
        helper.make_node(
            "Constant", [], ["n"], value=helper.make_tensor("n", TensorProto.INT64, [], [count])
        ),
        helper.make_node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True])),
        helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body),
    ]
