"""`workbench glitches` and `workbench precision`: several files at once, and errors."""

import soundfile
import torch

from workbench.cli import main


def test_each_file_gets_a_line_and_findings_decide_the_exit_code(tmp_path, capsys):
    quiet, click = tmp_path / "quiet.wav", tmp_path / "click.wav"
    wav = 0.1 * torch.sin(torch.arange(24_000) * 0.05)
    soundfile.write(quiet, wav.numpy(), 24_000)
    wav[12_000] = 0.9
    soundfile.write(click, wav.numpy(), 24_000)
    assert main(["glitches", str(quiet), str(click)]) == 0
    out = capsys.readouterr().out
    assert f"{quiet}: " in out and f"{click}: " in out and "click" in out.splitlines()[-1]
    assert main(["glitches", str(click), "--fail-on-any"]) == 1


def test_a_missing_file_is_an_error(tmp_path, capsys):
    assert main(["glitches", str(tmp_path / "none.wav")]) == 2
    assert "none.wav" in capsys.readouterr().err


def test_precision_checks_the_device_first(tmp_path, capsys):
    assert main(["precision", "--device", "abacus", "--voice", str(tmp_path / "nowhere")]) == 2
    assert "abacus" in capsys.readouterr().err
