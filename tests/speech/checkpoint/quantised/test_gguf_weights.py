"""GGUF weights of ports: every type opens dequantised and said once; what does not fit is told."""

import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.speech.checkpoint.tiny_voice import TINY
from workbench.cli import main
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.weight_names import EMBED, HEAD, LLAMA_LAYER, LLAMA_TOP, QWEN
from workbench.speech.config import Config, LMConfig
from workbench.speech.config.options import Options
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import provenance
from workbench.trace.record import NOTHING

gguf = pytest.importorskip("gguf")
TYPES = gguf.GGMLQuantizationType
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


# Upstream's names and those of a port's three files, as its converter writes them.
PORT = {
    "flow": (
        (r"^input_embedding\.weight$", "input_embd.w"),
        (r"^spk_embed_affine_layer\.weight$", "spk_affine.w"),
        (r"^spk_embed_affine_layer\.bias$", "spk_affine.b"),
        (r"^pre_lookahead_layer\.conv(\d)\.weight$", r"pre_la.conv\1.w"),
        (r"^pre_lookahead_layer\.conv(\d)\.bias$", r"pre_la.conv\1.b"),
        (r"^decoder\.estimator\.rotary_embed\.inv_freq$", "dit.rope_inv_freq"),
        (r"^decoder\.estimator\.time_embed\.time_mlp\.(\d)\.(w|b).*$", r"dit.time_mlp.\1.\2"),
        (r"^decoder\.estimator\.input_embed\.proj\.(w|b).*$", r"dit.in_proj.\1"),
        (r"^decoder\.estimator\.input_embed\.conv_pos_embed\.conv(\d)\.0\.(w|b).*$", r"dit.conv_pos.c\1.\2"),
        (r"^decoder\.estimator\.transformer_blocks\.0\.attn_norm\.linear\.(w|b).*$", r"dit.blk.0.adaln.\1"),
        (r"^decoder\.estimator\.transformer_blocks\.0\.attn\.to_(q|k|v)\.(w|b).*$", r"dit.blk.0.attn.\1.\2"),
        (r"^decoder\.estimator\.transformer_blocks\.0\.attn\.to_out\.0\.(w|b).*$", r"dit.blk.0.attn.o.\1"),
        (r"^decoder\.estimator\.transformer_blocks\.0\.ff\.ff\.0\.0\.(w|b).*$", r"dit.blk.0.ffn.l1.\1"),
        (r"^decoder\.estimator\.transformer_blocks\.0\.ff\.ff\.2\.(w|b).*$", r"dit.blk.0.ffn.l2.\1"),
        (r"^decoder\.estimator\.norm_out\.linear\.(w|b).*$", r"dit.norm_out.\1"),
        (r"^decoder\.estimator\.proj_out\.(w|b).*$", r"dit.proj_out.\1"),
    ),
    "hift": (
        (r"^(conv_pre|conv_post|ups\.\d|source_downs\.\d)\.(w|b)(eight|ias)$", r"\1.\2"),
        (r"^resblocks\.(\d+)\.convs(\d)\.(\d)\.(w|b)(eight|ias)$", r"resblocks.\1.c\2.\3.\4"),
        (r"^resblocks\.(\d+)\.activations(\d)\.(\d)\.alpha$", r"resblocks.\1.a\2.\3.alpha"),
        (r"^source_resblocks\.(\d+)\.convs(\d)\.(\d)\.(w|b)(eight|ias)$", r"src_resblk.\1.c\2.\3.\4"),
        (r"^source_resblocks\.(\d+)\.activations(\d)\.(\d)\.alpha$", r"src_resblk.\1.a\2.\3.alpha"),
        (r"^m_source\.l_linear\.(w|b)(eight|ias)$", r"m_source.l_linear.\1"),
        (r"^f0_predictor\.condnet\.0\.(w|b)(eight|ias)$", r"f0.condnet.0.\1"),
        (r"^f0_predictor\.condnet\.2\.(w|b)(eight|ias)$", r"f0.condnet.1.\1"),
        (r"^f0_predictor\.condnet\.4\.(w|b)(eight|ias)$", r"f0.condnet.2.\1"),
        (r"^f0_predictor\.condnet\.6\.(w|b)(eight|ias)$", r"f0.condnet.3.\1"),
        (r"^f0_predictor\.condnet\.8\.(w|b)(eight|ias)$", r"f0.condnet.4.\1"),
        (r"^f0_predictor\.classifier\.(w|b)(eight|ias)$", r"f0.classifier.\1"),
    ),
}


def port_name(stage, name):
    found = [re.sub(pattern, theirs, name) for pattern, theirs in PORT[stage] if re.search(pattern, name)]
    assert len(found) == 1, name
    return f"cosyvoice3.{stage}.{found[0]}"


def test_flow_and_vocoder_of_a_port_open_by_its_names(folder, wide):
    (folder / "llm.gguf").unlink(missing_ok=True)
    write_gguf(folder / "cosyvoice3-llm-q8_0.gguf", lm_weights(wide), lambda _: TYPES.Q8_0, HEADER)
    expected = {}
    for stage in ("flow", "hift"):
        path = folder / f"{stage}.safetensors"
        weights = load_file(path)
        path.unlink()
        for name in [name for name in weights if name.endswith(".original0")]:
            stem = name.removesuffix(".parametrizations.weight.original0")
            g, v = weights.pop(name), weights.pop(f"{name[:-1]}1")
            weights[f"{stem}.weight"] = torch._weight_norm(v.float(), g.float(), 0)
        writer = gguf.GGUFWriter(folder / f"cosyvoice3-{stage}-f16.gguf", f"cosyvoice3-{stage}")
        writer.add_uint32("cosyvoice3.flow.dit_heads", 1)
        for name, value in weights.items():
            expected[name] = value.float()
            writer.add_tensor(port_name(stage, name), value.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    loaded = Checkpoint.load(folder)
    flow, hift = loaded.flow().state_dict(), loaded.hift()
    for name, value in expected.items():
        module, _, last = name.rpartition(".")
        found = flow[name] if name in flow else getattr(hift.get_submodule(module), last)
        assert torch.allclose(found, value, rtol=1e-5, atol=1e-7), name


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
