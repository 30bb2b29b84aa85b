"""The ONNX estimator: the exported file, calling it, and runs that use it."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import Checkpoint, Options, Pipeline, WorkbenchError
from workbench.cli import main
from workbench.speech.checkpoint.files import ESTIMATOR
from workbench.speech.config import Config, DiTConfig, FlowConfig, HiFTConfig, LMConfig
from workbench.speech.frontend.onnx_session import CUDA
from workbench.speech.onnx import export
from workbench.speech.onnx.estimator import OnnxEstimator, open_estimator
from workbench.speech.onnx.export import export_onnx
from workbench.speech.recording import utterance_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_grad")]
VOICE = Path("data/voices/tiny")
CPU = torch.device("cpu")
LENGTHS = (1, 2, 3, 4, 5, 17, 64, 333, 700)
INPUTS = {
    "x": [2, 80, "seq_len"],
    "mask": [2, 1, "seq_len"],
    "mu": [2, 80, "seq_len"],
    "t": [2],
    "spks": [2, 80],
    "cond": [2, 80, "seq_len"],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The bundled voice's estimator, written by the shell's verb, and what that printed."""
    path, out = tmp_path_factory.mktemp("onnx") / "deep" / "tiny.onnx", io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["export-onnx", str(path), "--voice", str(VOICE)]) == 0
    return path, out.getvalue()


@pytest.fixture(scope="module")
def voice(exported):
    return replace(Checkpoint.load(VOICE), estimator=exported[0])


@pytest.fixture(scope="module")
def pipe(voice):
    return Pipeline(voice, progress=False)


@pytest.fixture(scope="module")
def runs(pipe):
    """The same utterance by torch and by ONNX Runtime."""
    utt = pipe.prepare("It is late.", "data/prompts/kumo_0.flac")
    options = pipe.checkpoint.options.but(max_tokens=12, n_timesteps=3)
    return [
        pipe.synthesise(utt, options=options.but(estimator=name), save=wb.EVERYTHING)
        for name in ("torch", "onnx")
    ]


def small():
    """The released estimator's heads, narrower than they are together, in a checkpoint small elsewhere."""
    return Config(
        lm=LMConfig(6561, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                    intermediate_size=16, vocab_size=300),
        flow=FlowConfig(pre_lookahead_channels=8, dit=DiTConfig(dim=96, depth=1)),
        hift=HiFTConfig(base_channels=16, f0_cond_channels=8),
    )  # fmt: skip


def draw(length, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, mu, cond = (torch.randn(2, 80, length, generator=g) for _ in range(3))
    return x, torch.ones(2, 1, length), mu, torch.rand(2, generator=g), torch.randn(2, 80, generator=g), cond


def graph(path, inputs=INPUTS, kind=TensorProto.FLOAT, output="estimator_out"):
    """A file with the interface of an estimator that gives back x."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
    first = next(iter(inputs))
    out = helper.make_tensor_value_info(output, kind, inputs[first])
    nodes = [helper.make_node("Identity", [first], [output])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, [out]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    onnx.save(model, str(path))
    return path


# ---- the file


def test_names_and_shapes_equal_upstreams(exported):
    model = onnx.load(exported[0])
    onnx.checker.check_model(model)
    shape = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]  # noqa: E731
    assert {v.name: shape(v) for v in model.graph.input} == INPUTS
    assert {v.name: shape(v) for v in model.graph.output} == {"estimator_out": [2, 80, "seq_len"]}
    assert {v.type.tensor_type.elem_type for v in model.graph.input} == {TensorProto.FLOAT}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    for line in ("float32", "x: (2, 80, seq_len)", "t: (2)", "estimator_out: (2, 80, seq_len)"):
        assert line in exported[1]


def test_the_file_keeps_names_of_weights_but_no_paths(exported, voice):
    content = exported[0].read_bytes()
    assert str(Path.cwd()).encode() not in content and b"site-packages" not in content
    other = exported[0].with_name("other")
    other.touch()
    assert exported[0].stat().st_mode == other.stat().st_mode
    stored = {w.name: numpy_helper.to_array(w) for w in onnx.load(exported[0]).graph.initializer}
    own = voice.weights["flow"]["decoder.estimator.proj_out.bias"].float()
    assert torch.equal(torch.from_numpy(stored["proj_out.bias"].copy()), own)


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch, voice):
    class Program:
        def save(self, path, external_data):
            Path(path).write_bytes(b"half")
            raise OSError("No space left on device")

    monkeypatch.setattr(export, "_program", lambda *args: (Program(), []))
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(WorkbenchError, match=r"a\.onnx could not be written \(No space"):
        export_onnx(voice, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"] and path.read_bytes() == b"old"
    with pytest.raises(WorkbenchError, match="could not be written"):
        export_onnx(voice, path / "b.onnx")


# ---- as called


@pytest.mark.parametrize("length", LENGTHS)
def test_the_onnx_estimator_equals_torch(pipe, voice, length):
    ours, theirs = pipe.stage("flow", "float32").decoder.estimator, pipe.estimator(Options(estimator="onnx"))
    x, mask, mu, t, spks, cond = draw(length, seed=length)
    expected = ours(x, None, mu, t, spks, cond)
    for given in (None, mask):
        found = theirs(x, given, mu, t, spks, cond)
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert (found - expected).norm() < 3e-6 * expected.norm()
    mask[1, :, length // 2 + 1 :] = 0
    expected, found = (f(x, mask, mu, t, spks, cond) for f in (ours, theirs))
    assert (found - expected).norm() < 3e-6 * expected.norm()


def test_two_calls_return_the_same_bytes(pipe):
    theirs = pipe.estimator(Options(estimator="onnx"))
    assert torch.equal(theirs(*draw(40)), theirs(*draw(40)))
    settings = theirs._file.session.get_session_options()
    assert settings.intra_op_num_threads == torch.get_num_threads() and settings.inter_op_num_threads == 1
    assert theirs is pipe.estimator(Options(estimator="onnx"))


def test_weights_are_exported_if_there_is_no_file():
    voice = Checkpoint.random(small())
    assert voice.estimator is None
    theirs = open_estimator(voice, "onnx", CPU)
    assert "exported from the weights" in theirs.about and not theirs.path.exists()
    expected, found = voice.flow().decoder.estimator(*draw(37)), theirs(*draw(37))
    assert (found - expected).norm() < 3e-6 * expected.norm()


def test_a_file_in_the_checkpoints_folder_is_found(tmp_path, exported):
    for path in VOICE.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    assert Checkpoint.load(tmp_path).estimator is None
    (tmp_path / ESTIMATOR).symlink_to(exported[0])
    voice = Checkpoint.load(tmp_path)
    assert voice.estimator == tmp_path / "flow.decoder.estimator.fp32.onnx"
    found = open_estimator(voice, "onnx", CPU)
    assert ESTIMATOR in found.about and "CPUExecutionProvider" in repr(found)


def test_any_file_of_the_same_interface_runs(tmp_path, voice):
    free = {name: ["batch", *shape[1:]] for name, shape in INPUTS.items()}
    for inputs in (INPUTS, free):
        found = open_estimator(voice, str(graph(tmp_path / "a.onnx", inputs)), CPU)
        assert torch.equal(found(*draw(9)), draw(9)[0])
    with pytest.raises(WorkbenchError, match=r"a\.onnx refused x \(2, 81, 9\)"):
        found(torch.zeros(2, 81, 9), *draw(9)[1:])


WEIGHTS = {"x": 1.0, "mu": 2.0, "cond": 3.0, "mask": 5.0, "t": 7.0, "spks": 11.0}
WIDE = {"t": [-1, 1, 1], "spks": [-1, 80, 1], "mask": [0, 1, -1]}  # shapes that broadcast to x


def weighted_sum(path, names=None, shapes=None, kinds=None, output="estimator_out"):
    """A file that adds its inputs with weights, so that its result tells which input was which."""
    names, shapes, kinds = names or {}, INPUTS | (shapes or {}), kinds or {}
    io_kind = kinds.get("all", TensorProto.FLOAT)
    nodes, values, constants, terms = [], [], [], []
    for name, weight in WEIGHTS.items():
        if shapes[name] is None:
            continue
        given = names.get(name, name)
        values.append(helper.make_tensor_value_info(given, kinds.get(name, io_kind), shapes[name]))
        nodes.append(helper.make_node("Cast", [given], [f"{name}_float"], to=TensorProto.FLOAT))
        last = f"{name}_float"
        if name in WIDE and len(shapes[name]) != 3:
            constants.append(numpy_helper.from_array(torch.tensor(WIDE[name]).numpy(), f"{name}_shape"))
            nodes.append(helper.make_node("Reshape", [last, f"{name}_shape"], [f"{name}_wide"]))
            last = f"{name}_wide"
        constants.append(numpy_helper.from_array(torch.tensor(weight).numpy(), f"{name}_weight"))
        nodes.append(helper.make_node("Mul", [last, f"{name}_weight"], [f"{name}_term"]))
        terms.append(f"{name}_term")
    nodes.append(helper.make_node("Sum", terms, ["total"]))
    nodes.append(helper.make_node("Cast", ["total"], [output], to=io_kind))
    out = helper.make_tensor_value_info(output, io_kind, shapes["x"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, [out], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def sum_of(x, mask, mu, t, spks, cond):
    return x + 2 * mu + 3 * cond + 5 * mask + 7 * t[:, None, None] + 11 * spks[..., None]


FREE = {name: ["B", *shape[1:]] for name, shape in INPUTS.items()}
ONE = {name: [1, *shape[1:]] for name, shape in INPUTS.items()}
OTHERS = {"x": "sample", "mu": "mu.1", "t": "timestep", "spks": "speaker_emb", "cond": "prompt_cond"}
PORTS = {
    "upstream's": ({}, "CPUExecutionProvider"),
    "any batch": ({"shapes": FREE}, "CPUExecutionProvider"),
    "a batch of one": ({"shapes": ONE}, "a batch of one"),
    "other names": ({"names": OTHERS, "output": "velocity"}, "sample is x, mu.1 is mu, timestep is t"),
    "names by shape": ({"names": {"mask": "valid", "t": "u", "spks": "who", "cond": "what"}}, "what is cond"),
    "float16": ({"kinds": {"all": TensorProto.FLOAT16}}, "inputs and outputs in float16"),
    "float64": ({"kinds": {"all": TensorProto.DOUBLE}}, "inputs and outputs in double"),
    "a mask of bools": ({"kinds": {"mask": TensorProto.BOOL}}, "bool"),
    "a flat mask": ({"shapes": {"mask": [2, "T"]}}, ""),
    "one time": ({"shapes": {"t": []}}, ""),
    "one time in a row": ({"shapes": {"t": [1]}}, ""),
    "a column of times": ({"shapes": {"t": [2, 1]}}, ""),
}


@pytest.mark.parametrize("name", PORTS)
def test_files_of_other_ports_run(tmp_path, voice, name):
    changes, said = PORTS[name]
    found = OnnxEstimator(weighted_sum(tmp_path / "a.onnx", **changes), voice.config.flow.dit, CPU)
    x, mask, mu, _, spks, cond = draw(9)
    given = (x, mask, mu, torch.tensor([0.25, 0.25]), spks, cond)
    tolerance = 0.1 if name == "float16" else 1e-4
    torch.testing.assert_close(found(*given), sum_of(*given), atol=tolerance, rtol=0)
    assert said in found.about and found.attention == "other"


def test_a_graph_in_float16_runs(tmp_path, pipe, exported):
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    path = tmp_path / "half.onnx"
    onnx.save(float16.convert_float_to_float16(onnx.load(exported[0])), str(path))
    found = OnnxEstimator(path, pipe.config.flow.dit, CPU)
    expected = pipe.stage("flow", "float32").decoder.estimator(*draw(64))
    assert found.attention == "full" and "in float16" in found.about
    assert 1e-5 < (found(*draw(64)) - expected).norm() / expected.norm() < 2e-3


def test_weights_in_a_file_beside_the_graph_count_for_its_name(tmp_path, exported, voice):
    found = set()
    for factor in (1, 2):
        model = onnx.load(exported[0])
        weight = max(model.graph.initializer, key=lambda w: len(w.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * factor, weight.name))
        onnx.save(model, str(tmp_path / "a.onnx"), save_as_external_data=True, location="a.onnx.data")
        found.add(OnnxEstimator(tmp_path / "a.onnx", voice.config.flow.dit, CPU).about)
        (tmp_path / "a.onnx.data").unlink()
    assert len(found) == 2


def test_a_file_without_a_mask_runs(tmp_path, voice):
    path = weighted_sum(tmp_path / "a.onnx", shapes={"mask": None})
    found = OnnxEstimator(path, voice.config.flow.dit, CPU)
    x, mask, mu, t, spks, cond = draw(9)
    torch.testing.assert_close(found(x, None, mu, t, spks, cond), sum_of(x, 0 * mask, mu, t, spks, cond))


NAMELESS = {f"in{i}": shape for i, shape in enumerate(INPUTS.values())}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": {"a": [2, 80, "T"]}}, r"x: expected .*found nothing.*a: expected nothing"),
        ({"inputs": INPUTS | {"r": [2]}}, "r: expected nothing"),
        ({"inputs": INPUTS | {"x": [2, 80, 256]}}, r"x: expected .*seq_len\) of floats, found .*256\)"),
        ({"inputs": INPUTS | {"mu": [2, 100, "T"]}}, r"mu: expected .*seq_len\) .*found .*\(2, 100, T\)"),
        ({"inputs": INPUTS | {"t": [2, 2]}}, "t: expected"),
        ({"inputs": INPUTS | {"x": [4, 80, "T"]}}, r"x: expected .*found .*\(4, 80, T\)"),
        ({"inputs": NAMELESS}, "cond: expected .*only it can be"),
        ({"kind": TensorProto.INT32}, r"found tensor\(int32\)"),
    ],
)
def test_another_model_is_refused(tmp_path, voice, changes, said):
    path = graph(tmp_path / "a.onnx", **changes)
    with pytest.raises(WorkbenchError, match=rf"a\.onnx is not the estimator of this flow: .*{said}"):
        OnnxEstimator(path, voice.config.flow.dit, CPU)


def test_the_only_output_of_the_right_shape_is_taken(tmp_path, voice):
    found = OnnxEstimator(graph(tmp_path / "a.onnx", output="y_1"), voice.config.flow.dit, CPU)
    assert "y_1 is estimator_out" in found.about


def test_what_a_frame_attends_to_is_found_by_running_the_file(pipe, tmp_path, runs):
    full = pipe.estimator(Options(estimator="onnx"))
    assert full.attention == "full" and "chunk" not in full.about
    small_pipe = Pipeline(Checkpoint.random(small()), progress=False)
    path = export_onnx(small_pipe.checkpoint, tmp_path / "stream.onnx", streaming=True)
    options = Options(n_timesteps=2, estimator=str(path))
    chunks = small_pipe.estimator(options)
    assert chunks.attention == "chunks" and "chunk mask inside" in chunks.about
    given = (utterance_of(runs[0]), runs[0]["lm/speech_token"])
    ours, theirs = (
        small_pipe.mel(*given, options.but(estimator=name), finalize=False, streaming=True)
        for name in ("torch", str(path))
    )
    assert 0 < (theirs - ours).norm() < 1e-5 * ours.norm()


def test_damaged_and_missing_files_are_refused(tmp_path, voice, exported):
    (tmp_path / "cut.onnx").write_bytes(exported[0].read_bytes()[:100_000])
    with pytest.raises(WorkbenchError, match=r"cut\.onnx is not a readable"):
        open_estimator(voice, str(tmp_path / "cut.onnx"), CPU)
    with pytest.raises(WorkbenchError, match=r"none\.onnx does not exist"):
        open_estimator(voice, str(tmp_path / "none.onnx"), CPU)


def test_a_gpu_that_onnxruntime_cannot_use_is_an_error(voice):
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime knows CUDA")
    with pytest.raises(WorkbenchError, match="Install onnxruntime-gpu"):
        open_estimator(voice, "onnx", torch.device("cuda"))


# ---- inside a run


def test_impossible_options_are_refused_before_the_run(pipe, runs, monkeypatch):
    for wrong in ("tensorrt", "", 3, None, Path("a.onnx")):
        with pytest.raises(WorkbenchError, match="estimator is"):
            Options(estimator=wrong)
    for wrong, said in (
        (Options(estimator="onnx", flow_dtype="bfloat16"), "flow_dtype is 'bfloat16'"),
        (Options(estimator="none.onnx"), "none.onnx does not exist"),
    ):
        with monkeypatch.context() as m, pytest.raises(WorkbenchError, match=said):
            m.setattr(pipe, "lm_batch", lambda *args: pytest.fail("the LM was asked first"))
            pipe.synthesise(utterance_of(runs[0]), options=wrong)
        pipe.synthesise(utterance_of(runs[0]), options=wrong.but(max_tokens=2), stop_after="lm")


def test_a_run_differs_from_torch_by_rounding_alone(pipe, runs):
    ours, theirs = runs
    assert not torch.equal(ours["flow/velocity"], theirs["flow/velocity"])
    found = wb.compare(ours, theirs, pipe)
    rows = found.rows[found.rows["field"].str.startswith(("flow/", "lm/", "in/"))]
    assert set(rows["verdict"]) == {"MATCH", "ROUNDING"}
    assert found.causes == [] and found.input_differences == [] and found.ok


def test_a_trace_names_the_estimator(runs):
    ours, theirs = runs
    assert ours.attrs["estimator"] == "torch" and theirs.attrs["options"]["estimator"] == "onnx"
    for word in ("tiny.onnx, sha256 ", "onnxruntime 1.", "CPUExecutionProvider"):
        assert word in theirs.attrs["estimator"]
    note = f"estimator: torch and {theirs.attrs['estimator']}"
    assert note in wb.compare(ours, theirs).hints
    assert ours.attrs["checkpoint"] == theirs.attrs["checkpoint"]


def test_replays_use_the_estimator_of_the_trace(pipe, runs):
    _, theirs = runs
    again = pipe.replay(theirs, "flow", save=wb.EVERYTHING)
    assert torch.equal(again["flow/velocity"], theirs["flow/velocity"])
    inside = pipe.replay(theirs, "flow/step/1", save="flow/x", stop_after="flow/step/1")
    assert torch.equal(inside["flow/x"], theirs["flow/x"][1:3]) and "onnxruntime" in inside.attrs["estimator"]
    assert "estimator" not in pipe.replay(theirs, "hift").attrs  # none was asked


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_every_solver_uses_the_estimator(pipe, runs, solver):
    options = Options(**runs[0].attrs["options"]).but(solver=solver, n_timesteps=2)
    ours, theirs = (
        pipe.replay(runs[0], "flow", options.but(estimator=name), stop_after="flow")["flow/mel"]
        for name in ("torch", "onnx")
    )
    assert 0 < (theirs - ours).norm() < 1e-5 * ours.norm()


def test_a_faulty_file_is_named_as_the_cause(tmp_path, exported, pipe, runs):
    model = onnx.load(exported[0])
    bias = next(w for w in model.graph.initializer if w.name == "proj_out.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.01, bias.name))
    onnx.save(model, str(tmp_path / "theirs.onnx"))
    options = Options(**runs[0].attrs["options"]).but(estimator=str(tmp_path / "theirs.onnx"))
    faulty = pipe.replay(runs[0], "flow", options, wb.EVERYTHING)
    found = wb.compare(runs[0], faulty, pipe)
    assert found.verdict == "DIVERGED" and found.causes[0].name == "flow/velocity_cond[0]"
    assert {c.name.split("[")[0] for c in found.causes} == {"flow/velocity_cond", "flow/velocity_uncond"}


def test_streaming_is_refused(pipe, runs):
    options = Options(**runs[1].attrs["options"])
    with pytest.raises(WorkbenchError, match="has no chunk mask"):
        pipe.mel(utterance_of(runs[1]), runs[1]["lm/speech_token"], options, finalize=False, streaming=True)


def test_the_shell_uses_an_onnx_estimator(tmp_path, exported):
    quick = ["--option", "max_tokens=8", "--option", "n_timesteps=1"]
    speak = ["speak", "It is late.", "-o", str(tmp_path), "--trace", "summary", *quick]
    assert main([*speak, "--option", f"estimator={exported[0]}"]) == 0
    trace = wb.Trace.load(tmp_path / "speech_0_0.trace")
    assert "tiny.onnx" in trace.attrs["estimator"]
    assert main([*speak, "--option", "estimator=tensorrt"]) == 2
