"""The verbs for traces when they are given sound files: `compare`, `diagnose` and `report`."""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests.diagnose.sounds.common import noisy, speech, written
from workbench.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path):
    """The paths of a sound, of one half as loud, and of one with noise."""
    wav = speech("alpha_0", seconds=1.5)
    sounds = {"own": wav, "half": wav / 2, "noisy": noisy(wav, 20)}
    return {name: written(tmp_path / f"{name}.wav", each) for name, each in sounds.items()}


def test_two_sounds_are_compared_with_exit_codes(files, capsys):
    assert main(["compare", files["own"], files["half"]]) == 0
    out = capsys.readouterr().out
    assert out.startswith("MATCH: the same sound after undoing level (-6.02 dB)") and "noise floor" in out
    assert main(["compare", files["own"], files["half"], "--fail-on", "rounding"]) == 1
    assert main(["compare", files["own"], files["noisy"]]) == 1
    assert main(["compare", files["own"], files["noisy"], "--fail-on", "never", "--brief"]) == 0
    out = capsys.readouterr().out
    assert "cannot tell which fault it was" in out and "high_hz" not in out.split("DIVERGED")[-1]


def test_comparison_of_sounds_is_valid_json(files, tmp_path, capsys):
    path = tmp_path / "found.json"
    assert main(["compare", files["own"], files["noisy"], "--json", "-o", str(path)]) == 1
    text = capsys.readouterr().out
    found = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert found["verdict"] == "DIVERGED" and found["names"] == [files["own"], files["noisy"]]
    assert text == path.read_text() + "\n"


def test_trace_beside_a_sound_is_compared_by_its_waveform(files, tmp_path, capsys):
    wav = speech("alpha_0", seconds=1.5)
    trace = wb.Trace({"hift/wav": torch.from_numpy(wav).float()}, {"sample_rate": 24_000, "text": "mine"})
    path = str(trace.save(tmp_path / "mine.trace"))
    assert main(["compare", path, files["own"]]) == 0
    out = capsys.readouterr().out
    assert "its waveform (hift/wav) alone is compared" in out and "MATCH" in out


def test_one_sound_is_described_and_no_fault_is_named(files, capsys):
    assert main(["diagnose", files["noisy"]]) == 0
    out = capsys.readouterr().out
    assert "No fault can be named from one sound" in out and "bandwidth_hz" in out
    assert "workbench compare right.wav" in out
    assert not [fault.name for fault in wb.faults.CATALOGUE if fault.name in out]
    assert main(["diagnose", files["noisy"], "--reference", files["own"]]) == 0
    assert capsys.readouterr().out.startswith("DIVERGED")


def test_reports_of_sounds_are_written(files, tmp_path, capsys):
    two, one = tmp_path / "two.html", tmp_path / "one.html"
    assert main(["report", files["own"], files["noisy"], "-o", str(two)]) == 0
    assert main(["report", files["noisy"], "-o", str(one)]) == 0
    assert "noisy.wav beside own.wav" in two.read_text() and "By frequency" in two.read_text()
    assert "No fault can be named" in one.read_text()


@pytest.mark.parametrize("verb", ["compare", "report", "diagnose"])
def test_missing_sound_is_told_in_one_line(verb, tmp_path, capsys):
    path = str(tmp_path / "none.wav")
    assert main([verb, path] if verb == "diagnose" else [verb, path, path]) == 2
    assert "none.wav does not exist" in capsys.readouterr().err


def test_sound_without_samples_is_told_in_one_line(tmp_path, files, capsys):
    bare = written(tmp_path / "bare.wav", np.zeros(0))
    assert main(["compare", files["own"], bare]) == 2
    assert "no samples" in capsys.readouterr().err
