"""`workbench glitches` and `workbench precision`: several files at once, and errors."""

import pytest
import soundfile

import workbench as wb
from tests.paths import ROOT
from workbench.cli import main
from workbench.files import data_path

PROMPT = data_path("prompts/kumo_0.flac")


def test_each_file_gets_a_line_and_findings_decide_the_exit_code(tmp_path, capsys):
    quiet, click = tmp_path / "quiet.wav", tmp_path / "click.wav"
    wav, rate = soundfile.read(PROMPT)
    soundfile.write(quiet, wav, rate)
    wav[30_000] = 0.9
    soundfile.write(click, wav, rate)
    assert main(["glitches", str(quiet), str(click)]) == 0
    out = capsys.readouterr().out
    assert f"{quiet}: " in out and f"{click}: " in out and "click" in out.splitlines()[-1]
    assert main(["glitches", str(click), "--fail-on-any"]) == 1


def test_a_missing_file_is_an_error(tmp_path, capsys):
    for name in ("none.wav", "none.trace", "x" * 5000, "x" * 5000 + ".wav", "x" * 5000 + ".trace"):
        assert main(["glitches", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert name in err and ("does not exist" in err or "cannot be opened" in err)


def test_an_unreadable_file_is_a_line_and_the_others_go_on(tmp_path, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF, but no more of it")
    assert main(["glitches", str(bad), str(PROMPT), "--fail-on-any"]) == 2
    printed = capsys.readouterr()
    assert "bad.wav: not checked" in printed.err and "1 of 2 files" in printed.err
    assert f"{PROMPT}: nothing found" in printed.out


def test_properties_of_a_recording_fail_only_where_it_is_called_synthesised(tmp_path, capsys):
    path = tmp_path / "offset.wav"
    wav, rate = soundfile.read(PROMPT)
    soundfile.write(path, wav + 0.02, rate)
    assert main(["glitches", str(path), "--fail-on-any"]) == 0
    assert "defects if a model made this sound" in capsys.readouterr().out
    assert main(["glitches", str(path), "--fail-on-any", "--synthesised"]) == 1


def test_precision_checks_the_device_first(tmp_path, capsys):
    assert main(["precision", "--device", "abacus", "--voice", str(tmp_path / "nowhere")]) == 2
    assert "abacus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of --format, --budget and --max-db"),
        (["--budget", "50%", "--format", "q4_k"], "expected one of --format"),
        (["--format", "float16"], "workbench precision --dtype float16"),
        (["--format", "q4_k", "--known", "x.csv"], "--known goes with"),
        (["--budget", "50%", "--known", "none.csv"], "none.csv"),
        (["--format", "q9"], "there is no format 'q9'"),
        (["--budget", "50%", "--judge", "nobody"], "nobody is no folder and no Whisper model"),
    ],
)
def test_quantise_says_what_it_was_not_given(words, message, capsys):
    assert main(["quantise", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_quantise_writes_a_map_that_speak_reads(tmp_path, capsys):
    known = str(ROOT / "data" / "accuracy" / "quantise.csv")
    out = tmp_path / "map.toml"
    assert main(["quantise", "Hm.", "--budget", "70%", "--known", known, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "% of float16" in said and said.splitlines()[0] in out.read_text()
    assert wb.Options(weights=out).weights
