"""`workbench compare`: exit codes, verdicts, and what cannot be compared."""

import json

import pytest

from workbench.cli import main

QUICK = ["--option", "max_tokens=12", "--option", "n_timesteps=2"]


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
    assert out.splitlines()[-1].startswith("verdict: DIVERGED")
    assert json.loads(rows.read_text())["verdict"] == "DIVERGED"
    assert main(["compare", a, b, "--fail-on", "never", "--brief"]) == 0
    brief = capsys.readouterr().out
    assert brief.startswith("DIVERGED") and "rel_l2" not in brief
    assert main(["compare", a, str(tmp_path / "a_0_0.wav")]) == 2


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_sound_files_are_sent_to_the_verb_for_sound(verb, capsys):
    assert main([verb, "a.wav", "b.wav"]) == 2
    assert "workbench glitches a.wav" in capsys.readouterr().err
