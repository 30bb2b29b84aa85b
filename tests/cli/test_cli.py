"""The shell: what is written, what is printed, how errors read."""

import pytest
import soundfile

from workbench.cli import main, options_of

QUICK = ["--option", "max_tokens=12", "--option", "n_timesteps=2"]


@pytest.mark.slow
def test_speak_writes_and_tells(tmp_path, capsys):
    assert main(["speak", "It is late.", "The ship leaves.", "-o", str(tmp_path), "--name", "x", *QUICK]) == 0
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["x_0_0.wav", "x_1_0.wav"]
    wav, rate = soundfile.read(tmp_path / "x_0_0.wav")
    assert rate == 24_000 and 0 < len(wav) <= 12 * 960
    out = capsys.readouterr().out
    for word in ("seconds", "peak", "rms", "dc", "clamped", "nonfinite", "silence", "rtf", "It is late."):
        assert word in out


@pytest.mark.slow
def test_long_text_becomes_segments(tmp_path):
    text = "The ship leaves at midnight, and nobody on the long pier knows its name. " * 4
    assert main(["speak", text, "-o", str(tmp_path), *QUICK]) == 0
    assert len(list(tmp_path.glob("speech_0_*.wav"))) > 1


def test_errors_are_one_line(tmp_path, capsys):
    for bad in (
        ["speak", "", "-o", str(tmp_path)],
        ["speak", "Hello.", "--prompt", str(tmp_path / "none.wav")],
        ["speak", "Hello.", "--voice", str(tmp_path)],
        ["speak", "Hello.", "--option", "n_timesteps=0"],
        ["speak", "Hello.", "--option", "solver"],
        ["speak", "Hello.", "--device", "abacus"],
        ["inspect", str(tmp_path / "none")],
    ):
        assert main(bad) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


def test_inspect_prefix(capsys):
    assert main(["inspect", "data/voices/tiny", "--prefix", "flow.decoder"]) == 0
    out = capsys.readouterr().out
    assert "decoder.estimator.proj_out.weight" in out and "conv_pre" not in out


def test_option_values():
    found = options_of(["n_timesteps=3", "solver=heun", "noise_seed=null", "mask_stop_ids=true"])
    assert found == {"n_timesteps": 3, "solver": "heun", "noise_seed": None, "mask_stop_ids": True}


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
    assert main(["compare", a, b, *voice]) == 1
    out = capsys.readouterr().out
    assert (
        out.startswith("DIVERGED; the runs part at flow/velocity[0]")
        and "option cfg_rate: 0.7 and 0.5" in out
    )
    assert "wrong for what it was given: inputs or options differ" in out and "adds an error" not in out
    assert main(["compare", a, b, "--fail-on", "never"]) == 0
    assert main(["compare", a, str(tmp_path / "a_0_0.wav")]) == 2
