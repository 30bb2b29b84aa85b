"""`workbench compare`: exit codes, verdicts, and what cannot be compared."""

import json

import pytest
import torch

import workbench as wb
from workbench.cli import main

QUICK = ["--option", "max_tokens=12", "--option", "n_timesteps=2"]


@pytest.fixture
def traces(tmp_path):
    """The paths of two traces whose mels differ by little."""
    mel = torch.linspace(-8, 0, 80)[:, None].repeat(1, 50)  # (M, T)
    paths = []
    for name, shift in (("a", 0.0), ("b", 1e-3)):
        paths.append(str(wb.Trace({"flow/mel": mel + shift}, {}).save(tmp_path / f"{name}.trace")))
    return paths


@pytest.mark.slow
def test_traces_can_be_compared(tmp_path, capsys):
    for name, more in (("a", []), ("b", ["--option", "cfg_rate=0.5"])):
        speak = ["speak", "It is late.", "-o", str(tmp_path), "--name", name, "--trace", "everything"]
        assert main([*speak, *QUICK, *more]) == 0
    a, b = (str(tmp_path / f"{name}_0_0.trace") for name in "ab")
    voice = ["--voice", "data/voices/tiny"]
    capsys.readouterr()
    assert main(["compare", a, a, *voice]) == 0
    assert capsys.readouterr().out == "MATCH\n"
    rows = tmp_path / "rows.json"
    assert main(["compare", a, b, *voice, "-o", str(rows)]) == 1
    out = capsys.readouterr().out
    assert (
        out.startswith("DIVERGED; the runs part at flow/velocity[0]")
        and "option cfg_rate: 0.7 and 0.5" in out
    )
    assert "wrong for what it was given: inputs or options differ" in out and "adds an error" not in out
    assert "rel_l2" in out and "MATCH" not in out  # the rows that are wrong
    assert json.loads(rows.read_text())["verdict"] == "DIVERGED"
    assert main(["compare", a, b, "--fail-on", "never", "--all"]) == 0
    assert "MATCH" in capsys.readouterr().out
    assert main(["compare", a, b, "--fail-on", "never", "--brief"]) == 0
    brief = capsys.readouterr().out
    assert brief.startswith("DIVERGED") and "rel_l2" not in brief
    assert main(["compare", a, str(tmp_path / "a_0_0.wav"), "--brief"]) == 0
    assert "as storage explains (floating point and 16 bit)" in capsys.readouterr().out


def test_comparison_without_a_voice_is_valid_json(traces, tmp_path, capsys):
    a, b = traces
    assert main(["compare", a, b, "--json", "-o", str(tmp_path / "found.json")]) == 1
    text = capsys.readouterr().out
    found = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert found["verdict"] == "DIVERGED" and found["causes"] is None and found["unchecked"] == {}
    assert found["rows"][0]["field"] == "flow/mel" and 0 < found["rows"][0]["rel_l2"] < 1e-3
    assert text == (tmp_path / "found.json").read_text() + "\n"


def test_unknown_fault_is_answered_with_the_closest(capsys):
    assert main(["suspects", "--name", "cfg-of"]) == 2
    assert "did you mean cfg-off?" in capsys.readouterr().err
