"""Checkpoints as trainers, servers and ports save them: they open with the same weights, or say why not."""

import argparse
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.speech.checkpoint.tiny_voice import FILES
from workbench import cli
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.inspect import inspect_folder
from workbench.speech.checkpoint.weight_names import EMBED, HEAD, LLAMA_LAYER, LLAMA_TOP, QWEN, ROTARY
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import provenance
from workbench.trace.record import NOTHING

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("saved") / "tiny", noise_seconds=0)


def rewritten(folder, stage, change, suffix=".pt"):
    """Replace a stage's file by what `change` makes of its weights."""
    path = folder / f"{FILES[stage]}.safetensors"
    content = change(load_file(path))
    path.unlink()
    torch.save(content, path.with_suffix(suffix))


def prefixed(prefix):
    return lambda weights: {f"{prefix}{name}": value for name, value in weights.items()}


def folded(weights, names=""):
    """Multiply weight norm out where the name begins with `names`."""
    plain = dict(weights)
    for name in weights:
        if name.endswith(".original0") and name.startswith(names):
            stem = name.removesuffix(".parametrizations.weight.original0")
            g, v = plain.pop(name), plain.pop(f"{name[:-1]}1")
            plain[f"{stem}.weight"] = torch._weight_norm(v, g, 0)
    return plain


ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4}]}
LAYOUTS = {
    "ddp": ("lm", prefixed("module.")),
    "compiled": ("flow", prefixed("_orig_mod.")),
    "lightning": ("flow", lambda w: {"state_dict": prefixed("model.")(w), "optimizer_states": [ADAM]}),
    "compiled in ddp": ("hift", prefixed("module._orig_mod.")),
    "any prefix": ("hift", prefixed("net_g.")),
    "a compiled part": (
        "flow",
        lambda w: {k.replace("decoder.estimator.", "decoder.estimator._orig_mod."): v for k, v in w.items()},
    ),
    "nested": ("flow", lambda w: {"state_dict": w, "epoch": 2, "config": {"lr": 1e-4}}),
    "in a tuple": ("flow", lambda w: (w, 3)),
    "nested twice": ("lm", lambda w: {"model": {"state_dict": w}, "step": torch.tensor(7)}),
    "deepspeed": (
        "lm",
        lambda w: {"module": w, "optimizer": ADAM, "ds_version": "0.15", "buffer_names": ["a"], "lr": None},
    ),
    "optimiser in one dict": ("lm", lambda w: w | {"optimizer.state.0.exp_avg": torch.zeros(4)}),
    "gan": ("hift", lambda w: prefixed("generator.")(w) | {"discriminator.mpd.0.weight": torch.zeros(3)}),
    "gan without prefix": ("hift", lambda w: w | {"mpd.0.weight_g": torch.zeros(3)}),
    "counters": ("lm", lambda w: w | {"epoch": torch.tensor(3), "model.global_step": torch.tensor(5)}),
    "numpy scalars": ("lm", lambda w: w | {"epoch": np.int64(3), "loss": np.float32(0.5)}),
    "arguments": ("lm", lambda w: {"model": w, "args": argparse.Namespace(lr=1e-4)}),
    "float64": ("lm", lambda w: {k: v.double() for k, v in w.items()}),
    "noise": ("flow", lambda w: w | {"decoder.rand_noise": torch.zeros(1, 80, 100)}),
    "inv_freq": ("lm", lambda w: w | {"llm.model.model.rotary_emb.inv_freq": torch.zeros(2)}),
    "no inv_freq": ("flow", lambda w: {k: v for k, v in w.items() if k != ROTARY}),
    "window": ("hift", lambda w: w | {"stft_window": torch.zeros(16)}),
    "equal average": ("flow", lambda w: {"model": w, "ema": w}),
    "short names": ("lm", lambda w: {k.removeprefix(QWEN): v for k, v in w.items()}),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_what_trainers_save_opens_with_the_same_weights(folder, tiny, name, suffix):
    stage, change = LAYOUTS[name]
    rewritten(folder, stage, change, suffix)
    loaded = Checkpoint.load(folder)
    assert loaded.content_hash == tiny.content_hash
    assert loaded.origin[stage] == f"{FILES[stage]}{suffix}"


def test_a_file_of_an_old_torch_opens(folder, tiny):
    weights = load_file(folder / "flow.safetensors")
    (folder / "flow.safetensors").unlink()
    path = folder / "flow.pt"
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=False)
    assert Checkpoint.load(folder).content_hash == tiny.content_hash
    data = path.read_bytes()
    for size in (20, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(WorkbenchError, match=r"flow\.pt"):
            Checkpoint.load(folder)
    torch.save({"model": TorchModule(2, 2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WorkbenchError, match="no plain weights"):
        Checkpoint.load(folder)


def test_what_was_changed_is_said_once(folder, capsys):
    rewritten(folder, "hift", LAYOUTS["gan"][1])
    rewritten(folder, "lm", LAYOUTS["float64"][1])
    loaded = Checkpoint.load(folder)
    assert loaded.notes[1:] == (
        "hift.pt: the prefix 'generator.' was taken off all names",
        "hift.pt: discriminator (1 tensor) left out, no part of this stage",
    )
    assert re.match(r"llm\.pt: \d+ tensors cast from float64 .*, exactly$", loaded.notes[0])
    assert "prefix &#x27;generator.&#x27;" in loaded._repr_html_()
    assert cli.main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(note) == 1 for note in loaded.notes)


def test_a_trace_says_what_was_changed(folder):
    rewritten(folder, "lm", prefixed("module."))
    pipe = Pipeline(Checkpoint.load(folder), progress=False)
    about = provenance(pipe, Options(), NOTHING)["checkpoint"]
    assert about["notes"] == ["llm.pt: module was taken out of names"]


def test_the_released_layout_needs_no_note(saved):
    assert Checkpoint.load(saved).notes == ()


@pytest.mark.parametrize("names", ["", "resblocks", "conv_post"])
def test_weight_norm_may_be_multiplied_out_in_all_or_in_some_weights(folder, tiny, names):
    rewritten(folder, "hift", lambda w: folded(w, names))
    loaded = Checkpoint.load(folder)
    ours, theirs = (folded(voice.hift().state_dict()) for voice in (tiny, loaded))
    assert list(ours) == list(theirs)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-9) for name in ours)
    again = Checkpoint.load(loaded.save(folder.parent / "again", noise_seconds=0))
    assert again.content_hash == loaded.content_hash and again.notes == ()


def test_a_filter_of_zeros_stays_zero(folder):
    def pruned(weights):
        plain = folded(weights)
        plain["conv_post.weight"][3] = 0
        return plain

    rewritten(folder, "hift", pruned)
    assert torch.equal(Checkpoint.load(folder).hift().conv_post.weight[3], torch.zeros(1, 7))


def test_folded_weights_in_half_precision_lose_nothing_more(folder):
    half = {}

    def in_half(weights):
        half.update({name: value.half() for name, value in folded(weights).items()})
        return half

    rewritten(folder, "hift", in_half)
    built = Checkpoint.load(folder).hift().ups[0].weight
    assert torch.allclose(built, half["ups.0.weight"].float(), rtol=3e-7, atol=0)


def test_float32_and_float16_of_the_same_values_are_the_same_weights(folder, tiny):
    rewritten(folder, "flow", lambda w: {k: v.half() for k, v in w.items()})
    half = Checkpoint.load(folder)
    rewritten(half.save(folder.parent / "a"), "flow", lambda w: {k: v.float() for k, v in w.items()})
    assert Checkpoint.load(folder.parent / "a").content_hash == half.content_hash != tiny.content_hash


# ---- other files


def joined(folder, prefixes=True):
    weights = {}
    for stem in FILES.values():
        path = folder / f"{stem}.safetensors"
        weights |= {f"{stem}." * prefixes + name: value for name, value in load_file(path).items()}
        path.unlink()
    return weights


@pytest.mark.parametrize("prefixes", [True, False])
def test_one_file_may_hold_all_stages(folder, tiny, prefixes):
    save_file(joined(folder, prefixes), folder / "model.safetensors")
    loaded = Checkpoint.load(folder)
    assert loaded.content_hash == tiny.content_hash
    assert set(loaded.origin.values()) == {"cosyvoice3.yaml", "model.safetensors"}


def test_one_nested_file_or_several_parts_may_hold_all_stages(folder, tiny):
    weights = joined(folder)
    nested = {
        stem: {k[len(stem) + 1 :]: v for k, v in weights.items() if k.startswith(stem)}
        for stem in FILES.values()
    }
    torch.save(nested, folder / "whole.pth")
    assert Checkpoint.load(folder).content_hash == tiny.content_hash
    (folder / "whole.pth").unlink()
    names = list(weights)
    for part, some in enumerate((names[:50], names[50:]), 1):
        save_file({name: weights[name] for name in some}, folder / f"model-{part:05}-of-00002.safetensors")
    assert Checkpoint.load(folder).content_hash == tiny.content_hash


def test_weights_in_two_files_are_refused(folder):
    weights = joined(folder)
    save_file(weights, folder / "epoch_1.safetensors")
    save_file(weights, folder / "epoch_2.safetensors")
    with pytest.raises(WorkbenchError, match=r"no llm, and its weights in several files: epoch_1.*epoch_2"):
        Checkpoint.load(folder)


def test_llm_rl_alone_is_read_and_said(folder, tiny):
    (folder / "llm.safetensors").rename(folder / "llm.rl.safetensors")
    loaded = Checkpoint.load(folder)
    assert loaded.content_hash == tiny.content_hash
    assert loaded.notes == ("llm.rl.safetensors is read, as there is no llm",)
    assert Checkpoint.load(folder, lm="rl").notes == ()


def test_a_folder_of_deepspeed_is_read(folder, tiny):
    weights = load_file(folder / "llm.safetensors")
    (folder / "llm.safetensors").unlink()
    (folder / "llm").mkdir()
    torch.save({"module": weights}, folder / "llm" / "mp_rank_00_model_states.pt")
    assert Checkpoint.load(folder).content_hash == tiny.content_hash


def llama_names(weights):
    """Names of llama.cpp, with the speech embedding and head beside them."""
    names = {ours: theirs for theirs, ours in LLAMA_TOP.items()}
    for name in weights:
        match = re.fullmatch(rf"{re.escape(QWEN)}layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if match:
            theirs = next(key for key, ours in LLAMA_LAYER.items() if ours == match[2])
            names[name] = f"blk.{match[1]}.{theirs}.{match[3]}"
    return {names[name]: value for name, value in weights.items()}


@pytest.mark.parametrize("rename", [llama_names, lambda w: {k.removeprefix(QWEN): v for k, v in w.items()}])
def test_the_lm_may_be_a_gguf_file(folder, tiny, rename):
    gguf = pytest.importorskip("gguf")
    path = folder / "llm.safetensors"
    weights = load_file(path)
    path.unlink()
    writer = gguf.GGUFWriter(folder / "llm.gguf", "qwen2")
    for name, value in rename({k: v for k, v in weights.items() if k != HEAD}).items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert Checkpoint.load(folder).content_hash == tiny.content_hash
    assert len(inspect_folder(folder, "lm")) == len(weights)
    data = (folder / "llm.gguf").read_bytes()
    (folder / "llm.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(WorkbenchError, match=r"llm\.gguf"):
        Checkpoint.load(folder)


def test_quantised_weights_are_read_and_said(folder):
    gguf = pytest.importorskip("gguf")
    weights = joined(folder, prefixes=False)
    writer = gguf.GGUFWriter(folder / "whole.gguf", "cosyvoice3")
    for name, value in folded(weights).items():
        array = value.numpy()
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            quantised = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = Checkpoint.load(folder)
    assert loaded.notes[0] == "whole.gguf: flow: 3 tensors in Q8_0, dequantised to float32"
    key = "decoder.estimator.input_embed.proj.weight"
    error = loaded.weights["flow"][key] - weights[key]
    assert 0 < error.abs().max() < 0.01 * weights[key].abs().max()


# ---- what cannot be opened


class TorchModule(torch.nn.Linear):
    pass


Q_PROJ = f"{QWEN}layers.0.self_attn.q_proj"
REFUSED = {
    "adapter": ("lm", lambda w: w | {f"{Q_PROJ}.lora_A.default.weight": torch.zeros(8, 8)}, "peft"),
    "adapter beside": ("lm", lambda w: {"model": w, "lora": {"A": torch.zeros(8, 8)}}, "holds an adapter"),
    "scales": (
        "lm",
        lambda w: w | {f"{Q_PROJ}.weight_scale": torch.ones(())},
        "weight_scale: expected nothing",
    ),
    "another average": (
        "flow",
        lambda w: {"model": w, "ema": {k: v + 1 for k, v in w.items()}},
        "two different sets of these weights, under 'ema.' and 'model.'",
    ),
    "an average of most": (
        "flow",
        lambda w: {"model": w, "ema": {k: v + 1 for k, v in w.items() if "bias" not in k}},
        "two different sets of these weights, under 'model.' and 'ema.'",
    ),
    "a module": ("hift", lambda w: {"model": TorchModule(2, 2)}, r"objects of .*TorchModule"),
    "unknown names": (
        "flow",
        lambda w: {"a.b.c": torch.zeros(2), "a.b.d": torch.zeros(2)},
        "All 2 names begin with 'a.b'",
    ),
    "a prefix, and one missing": (
        "lm",
        lambda w: {f"module.{k}": v for k, v in w.items() if k != EMBED},
        r"(?s)2 missing.*embed_tokens.*llm.pt: module was taken out of names\. ",
    ),
    "both forms": ("hift", lambda w: w | folded(w, "conv_post"), "multiplied out, and parts of it"),
    "both styles": ("lm", lambda w: w | {"lm_head.weight": w[EMBED], HEAD: w[EMBED]}, "both mean"),
    "a wrong shape": (
        "hift",
        lambda w: folded(w) | {"conv_post.weight": torch.zeros(3)},
        r"expected \(18, 1, 7\)",
    ),
    "arrays": ("flow", lambda w: {k: v.numpy() for k, v in w.items()}, "found a ForeignObject"),
    "an integer": ("hift", lambda w: folded(w) | {"conv_post.weight": torch.zeros(18, 1, 7).int()}, "int32"),
    "a merged vocabulary": (
        "lm",
        lambda w: {"model.embed_tokens.weight": torch.zeros(60, 8), "lm_head.weight": torch.zeros(60, 8)},
        "an embedding of 60 ids: as servers merge",
    ),
    "too many names": ("flow", lambda w: {str(i): 0 for i in range(100_001)}, "over 100,000 names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_opened_is_named(folder, name):
    stage, change, said = REFUSED[name]
    rewritten(folder, stage, change)
    with pytest.raises(WorkbenchError, match=said) as error:
        Checkpoint.load(folder)
    assert "\x1b" not in str(error.value)
    assert f"{FILES[stage]}.pt" in str(error.value)


def test_dicts_that_hold_each_other_many_times_do_not_fill_the_memory(folder):
    def nested(weights):
        inner = {}
        for _ in range(9):
            inner = dict.fromkeys(range(1_000), inner)
        return inner

    rewritten(folder, "flow", nested)
    with pytest.raises(WorkbenchError, match="over 100,000 names"):
        Checkpoint.load(folder)


# ---- inspection


def test_a_folder_without_tensors_is_an_error(tmp_path, folder, capsys):
    with pytest.raises(WorkbenchError, match="holds no tensors"):
        inspect_folder(tmp_path / "tiny" / "CosyVoice-BlankEN")
    assert cli.main(["inspect", str(tmp_path)]) == 2
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({"model": TorchModule(2, 2)}, folder / "llm.pt")
    assert cli.main(["inspect", str(folder)]) == 2
    assert re.search(r"no tensors \(.*objects of .*TorchModule", capsys.readouterr().err)


def test_values_that_break_ports_in_float16_are_noted(folder, capsys):
    def extreme(weights):
        weights["resblocks.0.activations1.0.alpha"][1] = 1e-6
        weights["conv_pre.parametrizations.weight.original1"][2] = 1e-9
        weights["conv_pre.parametrizations.weight.original0"][0] = 1e-6
        weights["conv_post.bias"][0] = 1e5
        return weights

    rewritten(folder, "hift", extreme)
    notes = inspect_folder(folder).set_index("key")["note"]
    assert "1 / alpha leaves float16 in 1 of 4 channels" in notes["resblocks.0.activations1.0.alpha"]
    assert "squared norm leaves float16 in 1 of 8" in notes["conv_pre.parametrizations.weight.original1"]
    assert "1 of 8 norms are near zero" in notes["conv_pre.parametrizations.weight.original0"]
    assert "1 of 18 values leave float16" in notes["conv_post.bias"]
    assert (notes != "").sum() == 4
    assert cli.main(["inspect", str(folder)]) == 0
    assert "hift.pt conv_post.bias: 1 of 18 values leave" in capsys.readouterr().out
