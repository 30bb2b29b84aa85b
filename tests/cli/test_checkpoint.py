"""`workbench inspect` and `workbench export`: what a folder of a checkpoint holds, and how others get it."""

import pytest
import torch
from safetensors.torch import load_file

from tests.paths import ROOT
from workbench import Checkpoint
from workbench.cli import main
from workbench.cli.common import open_pipe
from workbench.speech.checkpoint.weight_names import EMBED, HEAD

VOICE = ROOT / "data" / "voices" / "tiny"


def test_inspect_lists_the_tensors_below_a_prefix(capsys):
    assert main(["inspect", str(VOICE), "--prefix", "flow.decoder"]) == 0
    out = capsys.readouterr().out
    assert "decoder.estimator.proj_out.weight" in out and "conv_pre" not in out


def test_a_folder_without_tensors_is_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no tensors" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "tiny"
    assert main(["export", "--for", "upstream", str(folder), "--voice", str(VOICE)]) == 0
    return folder


def test_an_export_for_upstream_has_the_files_that_its_loader_opens(exported, voice):
    names = {path.name for path in exported.iterdir()}
    expected = {
        "cosyvoice3.yaml",
        "llm.pt",
        "flow.pt",
        "hift.pt",
        "campplus.onnx",
        "speech_tokenizer_v3.onnx",
    }
    assert names == expected | {"CosyVoice-BlankEN", "DIFFERENCES.md"}
    llm = torch.load(exported / "llm.pt", weights_only=True)
    assert llm[HEAD].data_ptr() == llm[EMBED].data_ptr()
    assert set(llm) == set(voice.lm().state_dict())
    backbone = load_file(exported / "CosyVoice-BlankEN" / "model.safetensors")
    assert torch.equal(backbone["model.norm.weight"], llm["llm.model.model.norm.weight"])
    assert not any(name.startswith(("llm", "lm_head")) for name in backbone)
    assert Checkpoint.load(exported).content_hash == voice.content_hash


def test_the_export_says_what_upstream_does_otherwise(exported, capsys):
    said = (exported / "DIFFERENCES.md").read_text()
    for word in ("151646", "is 515", "[203, 230]", "mask_stop_ids is True", "AssertionError"):
        assert word in said
    assert len(said.splitlines()) == 2 + 3


def test_an_export_replaces_nothing_by_itself(exported, capsys):
    command = ["export", "--for", "upstream", str(exported), "--voice", str(VOICE)]
    assert main(command) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert "# What upstream does otherwise with tiny" in capsys.readouterr().out
    assert main(["export", "--for", "nobody", str(exported)]) == 2


def test_verbs_say_what_was_changed_to_read_a_voice(tmp_path, capsys):
    for path in VOICE.iterdir():
        (tmp_path / path.name).symlink_to(path)
    weights = load_file(VOICE / "llm.safetensors")
    (tmp_path / "llm.safetensors").unlink()
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "llm.pt")
    open_pipe(str(tmp_path), "cpu")
    assert capsys.readouterr().err == f"{tmp_path}: llm.pt: module was taken out of names\n"


def test_upstreams_own_loader_opens_an_export(exported):
    """Upstream's code is not installed with the workbench; where a copy is on the path, it is asked."""
    cosyvoice = pytest.importorskip("cosyvoice.cli.cosyvoice", reason="no copy of upstream is on the path")
    model = cosyvoice.AutoModel(model_dir=str(exported)).model
    theirs = {"lm": model.llm, "flow": model.flow, "hift": model.hift}
    for stage, weights in Checkpoint.load(exported).weights.items():
        found = theirs[stage].state_dict()
        assert all(torch.equal(found[name], value.float()) for name, value in weights.items())
