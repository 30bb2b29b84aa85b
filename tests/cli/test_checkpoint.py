"""`workbench inspect`: what a folder of a checkpoint holds, also where it is none."""

from tests.paths import ROOT
from workbench.cli import main


def test_inspect_lists_the_tensors_below_a_prefix(capsys):
    assert main(["inspect", str(ROOT / "data/voices/tiny"), "--prefix", "flow.decoder"]) == 0
    out = capsys.readouterr().out
    assert "decoder.estimator.proj_out.weight" in out and "conv_pre" not in out


def test_a_folder_without_tensors_is_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no tensors" in capsys.readouterr().err
