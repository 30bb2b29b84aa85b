"""Checkpoints: saving and loading, wrong and hostile files, options, noise and inspection."""

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.paths import ASSETS
from tests.profiles import examples
from tests.speech.checkpoint.tiny_voice import FILES, TINY
from workbench import cli
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import MODELS, Checkpoint
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.weights import EMBED, HEAD
from workbench.speech.config import Config, Options
from workbench.speech.frontend.frontend import Frontend
from workbench.speech.models.noise import Noise


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("saved") / "tiny")


def as_pt(folder, stage, change=lambda weights: weights, **more):
    path = folder / f"{FILES[stage]}.safetensors"
    weights = load_file(path)
    path.unlink()
    torch.save(change(weights) | more, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def same(a, b):
    assert a.config == b.config
    for stage in MODELS:
        assert list(a.weights[stage]) == list(b.weights[stage])
        for key, value in a.weights[stage].items():
            assert value.dtype == b.weights[stage][key].dtype
            assert value.view(torch.uint8).equal(b.weights[stage][key].view(torch.uint8)), key
    assert a.content_hash == b.content_hash


def test_the_models_have_every_released_key_and_shape():
    manifest = json.loads((ASSETS / "manifest_full.json").read_text())
    with torch.device("meta"):
        for stage, model in MODELS.items():
            found = {k: list(v.shape) for k, v in model(getattr(Config(), stage)).state_dict().items()}
            expected = manifest[f"{FILES[stage]}.pt"]["tensors"]
            assert found == {key: shape for key, (_, shape) in expected.items()}


def test_round_trip_is_bit_equal(tiny, saved):
    loaded = Checkpoint.load(saved)
    same(loaded, tiny)
    assert loaded.name == "tiny" and loaded.tokenizer is None and loaded.campplus is None
    assert loaded.weights["lm"][HEAD] is loaded.weights["lm"][EMBED]
    assert loaded.nonfinite == {"lm": 0, "flow": 0, "hift": 0}
    a, b = loaded.noise, tiny.noise
    assert torch.equal(a.ode(), b.ode()) and torch.equal(a.initial_phase(), b.initial_phase())
    assert torch.equal(a.excitation(4_800), b.excitation(4_800))


def test_saved_files_have_the_mode_of_any_new_file(saved, tmp_path):
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in saved.iterdir() if path.is_file()} == {
        (tmp_path / "other").stat().st_mode
    }


def test_random_depends_on_its_seed_alone(tiny):
    state = torch.random.get_rng_state()
    same(Checkpoint.random(TINY, seed=3), tiny)
    assert Checkpoint.random(TINY, seed=4).content_hash != tiny.content_hash
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pt_files_with_trainer_names_load(folder, tiny):
    def prefixed(weights):
        return {f"generator.{key}": value for key, value in weights.items()}

    def old_weight_norm(weights):
        names = {
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v",
        }
        for new, old in names.items():
            weights = {key.replace(new, old): value for key, value in weights.items()}
        return prefixed(weights)

    as_pt(folder, "lm", lambda w: w | {HEAD: w[EMBED]}, epoch=3, step=9)
    as_pt(folder, "flow", epoch=3, step=9)
    as_pt(folder, "hift", prefixed)
    loaded = Checkpoint.load(folder)
    same(loaded, tiny)
    assert loaded.origin["hift"] == "hift.pt"
    weights = torch.load(folder / "hift.pt", weights_only=True)
    torch.save(
        old_weight_norm({k.removeprefix("generator."): v for k, v in weights.items()}), folder / "hift.pt"
    )
    same(Checkpoint.load(folder), tiny)


def test_a_head_without_embedding_and_the_rl_weights_load(folder, tiny):
    path = folder / "llm.safetensors"
    weights = load_file(path)
    weights[HEAD] = weights.pop(EMBED)
    path.unlink()
    save_file(weights, path)
    same(Checkpoint.load(folder), tiny)
    with pytest.raises(WorkbenchError, match=r"llm\.rl"):
        Checkpoint.load(folder, lm="rl")
    torch.save({k: v + 1 for k, v in tiny.weights["lm"].items()}, folder / "llm.rl.pt")
    assert Checkpoint.load(folder, lm="rl").content_hash != tiny.content_hash
    with pytest.raises(WorkbenchError, match="'auto' or 'rl'"):
        Checkpoint.load(folder, lm="best")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_stay_half_and_are_upcast(folder, tiny, dtype):
    as_pt(folder, "flow", lambda w: {k: v.to(dtype) for k, v in w.items()})
    loaded = Checkpoint.load(folder)
    key = "proj_out.weight"
    assert loaded.weights["flow"][f"decoder.estimator.{key}"].dtype == dtype
    built = loaded.flow().decoder.estimator.proj_out.weight
    assert built.dtype == torch.float32
    assert torch.equal(built, tiny.flow().decoder.estimator.proj_out.weight.to(dtype).float())
    same(Checkpoint.load(loaded.save(folder.parent / "again", noise_seconds=0)), loaded)


@pytest.mark.parametrize("stage", MODELS)
def test_modules_are_in_eval_mode_and_have_copies_of_the_weights(tiny, stage):
    module = getattr(tiny, stage)()
    assert not module.training
    before = tiny.content_hash
    for key, value in module.state_dict().items():
        assert value.dtype == torch.float32 and value.device.type == "cpu"
        assert torch.equal(value, tiny.weights[stage][key])
    for value in module.state_dict().values():
        value.zero_()
    assert not any(p.requires_grad for p in module.parameters())
    assert Checkpoint(**{f.name: getattr(tiny, f.name) for f in fields(tiny)}).content_hash == before
    double = tiny.build(stage, dtype=torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    if stage == "lm":
        assert module.llm.model.lm_head.weight is module.qwen.embed_tokens.weight
    with pytest.raises(WorkbenchError, match="one of lm, flow, hift"):
        tiny.build("vocoder")


def test_wrong_shapes_types_and_names_are_listed(folder):
    path = folder / "flow.safetensors"
    weights = load_file(path)
    key = "input_embedding.weight"
    path.unlink()
    save_file({**weights, key: torch.zeros(3, 80), "extra": torch.zeros(1)}, path)
    with pytest.raises(
        WorkbenchError,
        match=r"(?s)flow.*1 of another shape.*1 unexpected, 0 missing.*\(27, 80\).*\(3, 80\).*extra",
    ):
        Checkpoint.load(folder)
    path.unlink()
    save_file({"extra": torch.zeros(1)}, path)
    with pytest.raises(WorkbenchError, match=r"and \d+ more"):
        Checkpoint.load(folder)
    path.unlink()
    save_file({**weights, key: torch.zeros(27, 80, dtype=torch.int32)}, path)
    with pytest.raises(WorkbenchError, match="int32"):
        Checkpoint.load(folder)


def test_nan_in_weights_is_allowed_and_counted(folder):
    path = folder / "flow.safetensors"
    weights = load_file(path)
    path.unlink()
    weights["spk_embed_affine_layer.bias"] = torch.tensor([float("nan")] * 3 + [float("inf")] + [0.0] * 76)
    save_file(weights, path)
    assert Checkpoint.load(folder).nonfinite["flow"] == 4
    row = inspect_folder(folder, "flow.spk_embed_affine_layer.bias").iloc[0]
    assert (row["nan"], row["inf"], row["shape"]) == (3, 1, (80,))


@pytest.mark.parametrize(
    "name", ["cosyvoice3.yaml", "llm.safetensors", "hift.safetensors", "CosyVoice-BlankEN"]
)
def test_missing_parts_are_named(folder, name):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(WorkbenchError, match=path.stem):
        Checkpoint.load(folder)
    with pytest.raises(WorkbenchError, match="not a folder"):
        Checkpoint.load(folder / "nowhere")


def test_the_qwen_folder_may_have_another_name(folder, tiny):
    (folder / "CosyVoice-BlankEN").rename(folder / "qwen")
    with pytest.raises(WorkbenchError, match="CosyVoice-BlankEN"):
        Checkpoint.load(folder)
    (folder / "qwen" / "vocab.json").write_text("{}")
    loaded = Checkpoint.load(folder)
    assert loaded.tokenizer == folder / "qwen"
    again = Checkpoint.load(loaded.save(folder.parent / "again"))
    assert again.tokenizer == (folder.parent / "again" / "CosyVoice-BlankEN").resolve()
    same(again, tiny)


def test_onnx_models_and_speakers_are_saved(folder):
    for name in ("campplus.onnx", "speech_tokenizer_v3.onnx"):
        (folder / name).write_bytes(name.encode())
    torch.save({"kumo": {"embedding": torch.ones(1, 8)}}, folder / "spk2info.pt")
    loaded = Checkpoint.load(Checkpoint.load(folder).save(folder.parent / "again"))
    assert loaded.campplus.read_bytes() == b"campplus.onnx"
    assert loaded.speech_tokenizer.name == "speech_tokenizer_v3.onnx"
    assert torch.equal(loaded.spk2info["kumo"]["embedding"], torch.ones(1, 8))
    torch.save({"kumo": 3}, folder / "spk2info.pt")
    with pytest.raises(WorkbenchError, match="kumo"):
        Checkpoint.load(folder)


def test_saving_overwrites_checkpoints_alone(folder, tiny):
    with pytest.raises(WorkbenchError, match="overwrite=True"):
        tiny.save(folder)
    loaded = Checkpoint.load(folder)
    loaded.save(folder, overwrite=True)  # onto the very files it is mapped from
    same(Checkpoint.load(folder), loaded)
    other = folder.parent / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("hello")
    with pytest.raises(WorkbenchError, match="no checkpoint to overwrite"):
        tiny.save(other, overwrite=True)
    assert (other / "dear.txt").exists()
    (folder.parent / "empty").mkdir()
    tiny.save(folder.parent / "empty", noise_seconds=0)
    assert not (folder.parent / "empty" / "noise.safetensors").exists()
    broken = replace(tiny, campplus=folder / "nowhere.onnx")
    with pytest.raises(WorkbenchError, match="cannot be written"):
        broken.save(folder, overwrite=True)
    same(Checkpoint.load(folder), tiny)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["empty", "letters", "tiny"]


def test_the_noise_is_saved(tiny, tmp_path):
    parts = {
        "ode": torch.ones(1, 80, 100),
        "initial_phase": torch.ones(1, 2),
        "excitation": torch.ones(1, 480, 2),
    }
    own = replace(tiny, noise=Noise(TINY, parts))
    loaded = Checkpoint.load(own.save(tmp_path / "own", noise_seconds=0.02))
    assert torch.equal(loaded.noise.ode(), parts["ode"])
    with pytest.raises(WorkbenchError, match="480 samples and 481 are needed"):
        loaded.noise.excitation(481)


def test_the_options_are_saved(tiny, saved, tmp_path):
    assert tiny.options == Checkpoint.load(saved).options == Options()
    options = Options(top_k=7, cfg_rate=0.2, n_timesteps=4, max_silent_run=None, lm_dtype="float16")
    path = replace(tiny, options=options).save(tmp_path / "own", noise_seconds=0)
    loaded = Checkpoint.load(path)
    assert loaded.options == options
    same(loaded, tiny)
    text = (path / "cosyvoice3.yaml").read_text()
    (path / "cosyvoice3.yaml").write_text(text.replace("top_k: 7", "top_k: seven"))
    with pytest.raises(WorkbenchError, match=r"cosyvoice3\.yaml: top_k is 'seven'; expected int"):
        Checkpoint.load(path)


def save_graph(path, node, inputs, output):  # types: 1 float32, 6 int32, 7 int64
    from onnx import helper, save

    inputs = [helper.make_tensor_value_info(*i) for i in inputs]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info(*output)])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_frontend_is_built_from_the_folder(folder, tiny):
    from onnx import helper
    from tokenizers import Tokenizer, models

    with pytest.raises(WorkbenchError, match=r"random-3 has no .*vocab\.json, speech_tok.*, campplus\.onnx"):
        tiny.frontend()
    tokens = helper.make_node("ArgMax", ["feats"], ["tokens"], axis=1, keepdims=0)
    feats = [("feats", 1, [1, 128, "T"]), ("feats_length", 6, [1])]
    save_graph(folder / "speech_tokenizer_v3.onnx", tokens, feats, ("tokens", 7, None))
    with pytest.raises(WorkbenchError, match=r"tiny has no CosyVoice-BlankEN/vocab\.json, campplus\.onnx;"):
        Checkpoint.load(folder).frontend()
    mean = helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1], keepdims=0)
    save_graph(folder / "campplus.onnx", mean, [("input", 1, [1, "T", 80])], ("mean", 1, None))
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "CosyVoice-BlankEN" / "tokenizer.json"))
    loaded = Checkpoint.load(folder)
    with pytest.raises(WorkbenchError, match="different checkpoints"):
        loaded.frontend()
    wide = replace(loaded, config=replace(TINY, lm=replace(TINY.lm, vocab_size=1_000)))
    frontend = wide.frontend()
    assert isinstance(frontend, Frontend) and frontend.config is wide.config
    assert frontend.tokenizer.encode("ab") == [0, 1]
    wav = torch.sin(torch.arange(16_000) * 0.1)
    assert frontend.speaker_encoder(wav).shape == (80,)
    assert frontend.speech_tokenizer(wav).dtype == torch.int64


class Boom:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_hostile_and_damaged_pt_files_are_refused(folder, tmp_path):
    good = as_pt(folder, "lm")
    data = good.read_bytes()
    target = tmp_path / "run"

    def refused(message):
        with pytest.raises(WorkbenchError, match=message):
            Checkpoint.load(folder)
        assert not target.exists()
        assert inspect_folder(folder)["note"].str.contains(message, regex=True).any()

    for size in [0, 1, 30, *range(64, len(data), len(data) // 25)]:
        good.write_bytes(data[:size])
        refused("cut short|cannot be read|no plain weights")
    good.write_text("hello")
    refused("no zip archive")
    good.write_bytes(pickle.dumps(Boom(str(target))))
    refused("no zip archive")
    good.unlink()
    torch.save({EMBED: Boom(str(target))}, good)
    refused("no plain weights")
    torch.save([1, 2], good)
    refused("holds a list")
    torch.save({"model": {EMBED: torch.zeros(1)}}, good)
    with pytest.raises(WorkbenchError, match=r"embed_tokens.*found \(1,\) float32"):
        Checkpoint.load(folder)
    torch.save({EMBED: torch.zeros(1).expand(2**20, 2**20)}, good)
    with pytest.raises(WorkbenchError, match="not dense"):
        Checkpoint.load(folder)
    assert inspect_folder(folder, "lm")["note"].str.contains("not dense").any()
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10**7))
    refused("compressed")
    good.unlink()
    good.mkdir()
    with pytest.raises(WorkbenchError, match="neither llm"):
        Checkpoint.load(folder)


def test_truncated_safetensors_are_refused(folder):
    path = folder / "hift.safetensors"
    data = path.read_bytes()
    for size in [0, 7, 8, 100, *range(1000, len(data), len(data) // 20)]:
        path.unlink()
        path.write_bytes(data[:size])
        with pytest.raises(WorkbenchError, match="cannot be read"):
            Checkpoint.load(folder)


def test_inspect_lists_the_tensors_of_broken_folders(folder, capsys):
    (folder / "cosyvoice3.yaml").unlink()
    torch.save({"epoch": 3, "net": {"odd.key": torch.zeros(2, 3)}}, folder / "other.pt")
    import onnx

    weight = onnx.numpy_helper.from_array(torch.tensor([1.0, float("inf")]).numpy(), "w")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[weight])
    onnx.save(onnx.helper.make_model(graph), folder / "campplus.onnx")
    (folder / "speech_tokenizer_v3.onnx").write_bytes(b"\xff" * 50)
    frame = inspect_folder(folder)
    by_key = frame.set_index("key")
    assert by_key.loc["net.odd.key", "shape"] == (2, 3)
    assert by_key.loc["epoch", "dtype"] == "int"
    assert by_key.loc["w", "inf"] == 1
    assert "not an ONNX model" in frame[frame["file"] == "speech_tokenizer_v3.onnx"]["note"].iloc[0]
    assert len(frame.attrs["sha256"]) == 7
    assert cli.main(["inspect", str(folder), "--prefix", "flow.decoder"]) == 0
    printed = capsys.readouterr().out
    assert "decoder.estimator.proj_out.weight" in printed and "unreadable: " in printed
    assert "q_proj" not in printed and "llm.safetensors: 0 tensors" in printed
    assert cli.main(["inspect", str(folder / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_repr_and_html_describe_the_checkpoint(tiny, saved):
    assert repr(tiny).startswith("Checkpoint('random-3', 0.0 M parameters, float32")
    html = Checkpoint.load(saved)._repr_html_()
    assert "flow.safetensors" in html and "<script" not in html
    assert "&lt;b&gt;" in replace(tiny, name="<b>")._repr_html_()


# A file, and the stage that is built from it.
NAMES = {
    "cosyvoice3.yaml": "hift",
    "CosyVoice-BlankEN/config.json": "lm",
    "llm.safetensors": "lm",
    "flow.pt": "flow",
    "hift.pt": "hift",
}


@pytest.fixture(scope="module")
def fuzzed(saved, tmp_path_factory):
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("fuzz") / "tiny"))
    (folder / "noise.safetensors").unlink()
    as_pt(folder, "flow")
    as_pt(folder, "hift")
    return folder, {name: (folder / name).read_bytes() for name in NAMES}


places = st.one_of(st.integers(0, 400), st.integers(-1500, -1), st.integers(0, 10**6))


@settings(max_examples=examples(1000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(NAMES)), st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6))
@example("flow.pt", [(0, 0)])
def test_mutated_files_load_or_raise_workbench_errors(fuzzed, name, changes):
    folder, originals = fuzzed
    data = bytearray(originals[name])
    for place, byte in changes:
        data[place % len(data)] = byte
    path = folder / name
    path.unlink()  # never in place: earlier tensors are mapped from it
    path.write_bytes(data)
    try:
        with contextlib.suppress(WorkbenchError):
            Checkpoint.load(folder).build(NAMES[name])
    finally:
        path.unlink()
        path.write_bytes(originals[name])
