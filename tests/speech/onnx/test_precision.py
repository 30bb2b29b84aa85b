"""ONNX files whose layers have the formats of a map: they compute what `Options(weights=...)` simulates."""

import onnx
import pytest
import torch
from onnx import TensorProto

import workbench as wb
from tests.speech.checkpoint.tiny_voice import TINY
from tests.speech.onnx.test_estimator import draw, small
from workbench import Checkpoint, WorkbenchError
from workbench.cli import main
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.config.formats import rules_of, rules_text
from workbench.speech.models.quantise.modules import quantise_layers
from workbench.speech.onnx.estimator import OnnxEstimator
from workbench.speech.onnx.export import export_onnx
from workbench.speech.onnx.vocoder import OnnxVocoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_grad")]
CPU = torch.device("cpu")
DIT = "flow.decoder.estimator"
BLOCK = f"{DIT}.transformer_blocks.0"
CODES = {
    "flow": "int8",
    f"{DIT}.time_embed": "fp8_e4m3",
    f"{DIT}.input_embed.proj": "int8:tensor,asymmetric",
    f"{BLOCK}.attn.to_q": "int4:group=32",
    f"{BLOCK}.attn.to_k": "int4:group=32,asymmetric",
    f"{BLOCK}.attn.to_v": "q8_0",
    f"{BLOCK}.attn.to_out": "q4_0",
    f"{BLOCK}.ff": "int8:group=32,asymmetric",
    f"{DIT}.norm_out": "fp8_e5m2:tensor",
    f"{DIT}.proj_out": "float32",
}
MIXED = {"flow": "float16", f"{BLOCK}.attn": "int8", f"{DIT}.proj_out": "float32"}


@pytest.fixture(scope="module")
def small_voice():
    return Checkpoint.random(small(), seed=0)


def simulated(checkpoint, stage, weights):
    model = checkpoint.build(stage)
    quantise_layers(model, stage, rules_of(rules_text(weights)))
    return model


def error(a, b):
    return float((a - b).norm() / b.norm())


def listed(path):
    lines = path.with_name(f"{path.name}.float32.txt").read_text().splitlines()
    assert all(line.endswith(":fp32") and line.count(":") == 1 and "," not in line for line in lines)
    return [line.removesuffix(":fp32") for line in lines]


def test_stored_codes_compute_what_is_simulated(small_voice, tmp_path):
    path = export_onnx(small_voice, tmp_path / "e.onnx", streaming=True, precision=CODES)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    given = draw(130)
    found = OnnxEstimator(path, small_voice.config.flow.dit, CPU)(*given, True)
    expected = simulated(small_voice, "flow", CODES).decoder.estimator(*given, True)
    plain = small_voice.flow().decoder.estimator(*given, True)
    assert error(found, expected) < 1e-5 < 1e-3 < error(plain, expected)
    kinds = set(inspect_folder(path)["dtype"])
    assert {
        "int8 per channel",
        "int4 per group of 32",
        "int8 per tensor",
        "float8e4m3fn per channel",
    } <= kinds


def test_half_precision_is_between_casts_and_the_rest_in_float32(small_voice, tmp_path):
    path = export_onnx(small_voice, tmp_path / "e.onnx", precision=MIXED)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    given = draw(64)
    found = OnnxEstimator(path, small_voice.config.flow.dit, CPU)(*given)
    # The inputs of those layers are rounded as well, which the simulation leaves out.
    assert error(found, simulated(small_voice, "flow", MIXED).decoder.estimator(*given)) < 1e-3
    types = {each.name: each.data_type for each in model.graph.initializer}
    assert types["time_embed.time_mlp.0.weight_float16"] == TensorProto.FLOAT16
    kept = listed(path)
    nodes = {node.name: node for node in model.graph.node}
    assert set(kept) <= set(nodes)
    half = {
        node.name
        for node in nodes.values()
        if any(types.get(name) == TensorProto.FLOAT16 for name in node.input) and node.op_type != "Cast"
    }
    assert len(half) > 5 and not half & set(kept)
    products = {name for name, node in nodes.items() if node.op_type in ("MatMul", "Gemm", "Conv")}
    assert products - half <= set(kept) and {node.op_type for node in map(nodes.get, kept)} >= {"Softmax"}


def test_bfloat16_is_valid_and_the_cpu_says_that_it_lacks_it(small_voice, tmp_path):
    path = export_onnx(small_voice, tmp_path / "e.onnx", precision="bfloat16")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with pytest.raises(WorkbenchError, match=r"lacks it here, as bfloat16 on a CPU; try float16"):
        OnnxEstimator(path, small_voice.config.flow.dit, CPU)


def test_the_vocoder_follows_a_map_from_the_shell(tmp_path, capsys):
    voice = Checkpoint.random(TINY, seed=0)
    rules = tmp_path / "map.toml"
    rules.write_text('"hift" = "int8"\n"hift.conv_post" = "float16"\n"lm" = "q4_k"\n')
    path = tmp_path / "core.onnx"
    folder = voice.save(tmp_path / "tiny", noise_seconds=0)
    arguments = [str(path), "--voice", str(folder), "--part", "vocoder", "--precision", str(rules)]
    assert main(["export-onnx", *arguments]) == 0
    said = capsys.readouterr().out
    assert "formats of" in said and "core.onnx.float32.txt: nodes in float32" in said
    hift = simulated(voice, "hift", {"hift": "int8", "hift.conv_post": "float16"})
    g = torch.Generator().manual_seed(0)
    x_pre = torch.randn(1, voice.config.hift.base_channels, 7, generator=g)
    s_stft = torch.randn(1, 18, 7 * 120 + 1, generator=g)
    magnitude, phase = OnnxVocoder(path, voice.config.hift, CPU)(x_pre, s_stft)
    log_magnitude, angle = hift.decode_core(x_pre, s_stft).chunk(2, dim=1)
    assert error(magnitude, log_magnitude.exp()) < 2e-3 and error(phase, angle.sin()) < 2e-3
    assert len(listed(path)) > 30


REFUSED = {
    "q4_k": r"time_mlp.0 is in q4_k, which ONNX has no type for; expected float16.*int8.*q4_0",
    "nf4": "which ONNX has no type for",
    "mlx4:group=32": "which ONNX has no type for",
    "int4:channel,offset": "which ONNX has no type for",
    "int8:channel,dynamic": "whose inputs are quantised too",
    "q4_0:dynamic": "whose inputs are quantised too",
    "float32": "no layer of the estimator another format than float32",
    "lm=q8_0": "no layer of the estimator another format than float32",
    "flow.nothing=q8_0": r"'flow\.nothing' matches none",
}


@pytest.mark.parametrize("rules", REFUSED)
def test_what_onnx_cannot_express_is_told_before_the_export(small_voice, tmp_path, rules):
    with pytest.raises(WorkbenchError, match=REFUSED[rules]):
        wb.export_onnx(small_voice, tmp_path / "e.onnx", precision=rules)
    assert not list(tmp_path.iterdir())
