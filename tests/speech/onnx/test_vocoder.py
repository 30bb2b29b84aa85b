"""The vocoder's core as an ONNX file: the export, files of other ports, and runs that use them."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import workbench as wb
from workbench import Options, Pipeline, WorkbenchError
from workbench.cli import main
from workbench.speech.onnx.export import export_onnx
from workbench.speech.onnx.vocoder import OnnxVocoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_grad")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "hift_decode_core.onnx"
    assert main(["export-onnx", str(path), "--part", "vocoder"]) == 0
    return path


def test_names_and_shapes_are_those_of_engines(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["x_pre"] == [1, 256, "T_mel"] and shapes["s_stft"][:2] == [1, 18]
    assert shapes["magnitude"][:2] == shapes["phase"][:2] == [1, 9]
    assert str(Path.cwd()).encode() not in exported.read_bytes()


@pytest.mark.parametrize(
    ("n_frames", "finalize"), [(1, True), (2, True), (9, True), (9, False), (100, True), (100, False)]
)
def test_a_run_with_the_file_differs_by_rounding(pipe, exported, n_frames, finalize):
    mel = torch.randn(1, 80, n_frames, generator=torch.Generator().manual_seed(1)) - 4
    ours = pipe.vocode(mel, finalize=finalize)
    theirs = pipe.vocode(mel, pipe.checkpoint.options.but(vocoder=str(exported)), finalize)
    for name in ("magnitude", "phase", "wav"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape and (a - b).norm() <= 1e-4 * a.norm()
    assert torch.equal(ours.source, theirs.source)


def test_comparison_and_replay_know_the_program(pipe, recorded, exported):
    options = Options(**recorded.attrs["options"]).but(vocoder=str(exported))
    theirs = pipe.replay(recorded, "hift", options, wb.EVERYTHING)
    assert "hift_decode_core.onnx, sha256 " in theirs.attrs["vocoder"]
    found = wb.compare(recorded, theirs, pipe)
    assert found.input_differences == [] and found.causes == []
    assert f"vocoder: torch and {theirs.attrs['vocoder']}" in found.hints


def test_a_faulty_file_is_named_as_the_cause(pipe, recorded, exported, tmp_path):
    model = onnx.load(exported)
    bias = next(w for w in model.graph.initializer if w.name.endswith("conv_post.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    onnx.save(model, str(tmp_path / "theirs.onnx"))
    options = Options(**recorded.attrs["options"]).but(vocoder=str(tmp_path / "theirs.onnx"))
    faulty = pipe.replay(recorded, "hift", options, wb.EVERYTHING)
    assert wb.compare(recorded, faulty, pipe).causes[0].name == "hift/magnitude"


def core(path, names=("x_pre", "s_stft", "magnitude", "phase"), kind=TensorProto.FLOAT, channels=256):
    """A file with the interface of a core that gives back parts of the spectrum."""
    x, s, magnitude, phase = names
    inputs = [
        helper.make_tensor_value_info(x, kind, ["B", channels, "T"]),
        helper.make_tensor_value_info(s, kind, ["B", 18, "F"]),
    ]
    outputs = [helper.make_tensor_value_info(name, kind, ["B", 9, "F"]) for name in (magnitude, phase)]
    nodes = [helper.make_node("Split", [s], [magnitude, phase], axis=1, num_outputs=2)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "CPUExecutionProvider"),
        (
            {"names": ("input.1", "onnx::s", "mag", "pha")},
            "input.1 is x_pre, onnx::s is s_stft, mag is magnitude",
        ),
        ({"kind": TensorProto.FLOAT16}, "inputs and outputs in float16"),
    ],
)
def test_files_of_other_ports_run(tmp_path, voice, changes, said):
    found = OnnxVocoder(core(tmp_path / "a.onnx", **changes), voice.config.hift, CPU)
    spectrum = torch.arange(18.0 * 7).reshape(1, 18, 7)
    magnitude, phase = found(torch.zeros(1, 256, 1), spectrum)
    assert torch.equal(magnitude, spectrum[:, :9]) and torch.equal(phase, spectrum[:, 9:])
    assert magnitude.dtype == torch.float32 and said in found.about


def test_another_model_is_refused(tmp_path, voice):
    for changes, said in (
        ({"channels": 512}, r"x_pre: expected \(batch, 256, T_mel\) of floats, found .*512"),
        (
            {"names": ("x_pre", "s_stft", "one", "two")},
            "magnitude: expected .*only it can be.*one: an output",
        ),
    ):
        with pytest.raises(WorkbenchError, match=f"is not the core of this vocoder: .*{said}"):
            OnnxVocoder(core(tmp_path / "a.onnx", **changes), voice.config.hift, CPU)


def test_impossible_options_are_refused(voice, utt, monkeypatch):
    pipe = Pipeline(voice, progress=False)
    monkeypatch.setattr(pipe, "lm_batch", lambda *args: pytest.fail("the LM was asked first"))
    for options, said in (
        (voice.options.but(vocoder="onnx", hift_dtype="float16"), "hift_dtype is 'float16'"),
        (voice.options.but(vocoder="none.onnx"), "none.onnx does not exist"),
    ):
        with pytest.raises(WorkbenchError, match=said):
            pipe.synthesise(utt, options=options)
    with pytest.raises(WorkbenchError, match="vocoder is 'tensorrt'; expected torch, onnx"):
        Options(vocoder="tensorrt")
    with pytest.raises(WorkbenchError, match="expected one of estimator, vocoder"):
        export_onnx(voice, "output/a.onnx", part="lm")
