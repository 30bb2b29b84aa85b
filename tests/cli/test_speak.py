"""`workbench speak`: what it writes and prints, and what it refuses before a model is opened."""

import pytest
import soundfile

import workbench as wb
from workbench.cli import main
from workbench.speech.frontend.frontend import MODES

QUICK = ["--option", "max_tokens=12", "--option", "n_timesteps=2"]


@pytest.mark.slow
def test_speak_writes_numbered_files_and_prints_statistics(tmp_path, capsys):
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


@pytest.mark.slow
def test_files_are_not_replaced_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the bundled voice is found from any folder
    assert main(["speak", "It is late.", "--trace", "summary", *QUICK]) == 0
    assert "output/speech_0_0.trace" in capsys.readouterr().out
    before = (tmp_path / "output" / "speech_0_0.wav").read_bytes()
    assert main(["speak", "It is late.", "--option", "seed=3", *QUICK]) == 0
    second = (tmp_path / "output" / "speech_0_0_1.wav").read_bytes()
    options = wb.Trace.load("output/speech_0_0.trace").attrs["options"]
    assert options["seed"] == 0 and options["n_timesteps"] == 2
    assert (tmp_path / "output" / "speech_0_0.wav").read_bytes() == before
    assert "speech_0_0_1.wav" in capsys.readouterr().out
    assert main(["speak", "It is late.", "--seed", "3", "--name", "speech", "--force", *QUICK]) == 0
    after = (tmp_path / "output" / "speech_0_0.wav").read_bytes()
    assert after != before and after == second  # --seed 3 and --option seed=3 are the same


@pytest.mark.slow
def test_a_text_that_is_spoken_otherwise_than_typed_is_shown(tmp_path, capsys):
    folder = ["-o", str(tmp_path), *QUICK]
    assert main(["speak", "It costs $5.", "It is late.", "--trace", "summary", *folder]) == 0
    out = capsys.readouterr().out
    assert "text 0: spoken as It costs five dollars.\n" in out and "text 1" not in out
    assert main(["speak", "It is §5.", "--frontend", "upstream", *folder]) == 0
    assert "warning: upstream's front end raises AssertionError" in capsys.readouterr().err
    assert main(["speak", "It costs $5.", "--frontend", "off", "--trace", "summary", *folder]) == 0
    assert "text 0" not in capsys.readouterr().out
    frontends = [wb.Trace.load(path).attrs["frontend"] for path in tmp_path.glob("*.trace")]
    assert sorted(frontends) == ["off", "workbench", "workbench"]
    assert main(["speak", "Kapitel 7.", "--language", "de", *folder]) == 0
    assert "text 0" not in capsys.readouterr().out


def test_errors_are_one_line_and_write_nothing(tmp_path, capsys):
    for bad, expected in (
        (["speak", "", "-o", str(tmp_path)], "nothing to say"),
        (["speak", "Hello.", "--prompt", str(tmp_path / "none.wav")], "--prompt"),
        (["speak", "Hello.", "--voice", str(tmp_path)], "cosyvoice3.yaml"),
        (["speak", "Hello.", "--option", "n_timesteps=0"], "n_timesteps"),
        (["speak", "Hello.", "--option", "solver"], "NAME=VALUE"),
        (["speak", "Hello.", "--device", "abacus"], "abacus"),
        (["inspect", str(tmp_path / "none")], "none"),
    ):
        assert main(bad) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "Traceback" not in said.err
        assert expected in said.err
    assert not list(tmp_path.iterdir())


def test_errors_name_what_was_typed_before_a_voice_is_opened(tmp_path, capsys):
    recording = tmp_path / "me.wav"
    recording.write_bytes(b"")
    nowhere = ["--voice", str(tmp_path / "nowhere")]
    for bad, expected in (
        (["speak", "Hello.", "...", *nowhere], "'...' has nothing to say"),
        (["speak", "Hello.", "--option", "n_timestep=1", *nowhere], "did you mean n_timesteps"),
        (["speak", "Hello.", "--device", "abacus", *nowhere], "abacus"),
        (["speak", "Hello.", "--prompt", str(recording), *nowhere], "--prompt-text"),
        (["speak", "Hello.", "--mode", "instruct", *nowhere], "--instruct"),
        (["speak", "Hello.", "--instruct", "Slowly.", *nowhere], "--mode instruct"),
        (
            ["speak", "Hello.", "--language", "de", "--frontend", "off", *nowhere],
            "--language is for --frontend",
        ),
        (["speak", "Hello.", "--language", "German", *nowhere], "expected a code such as en"),
    ):
        assert main(bad) == 2
        assert expected in capsys.readouterr().err


def test_help_lists_every_mode(capsys):
    assert main(["speak", "--help"]) == 0
    assert f"<{'|'.join(MODES)}>" in capsys.readouterr().out


def test_help_lists_every_option_and_the_defaults(capsys):
    assert main(["speak", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())  # lines are wrapped
    for word in ("n_timesteps", "hift_dtype", "the bundled voice", "[default: cpu]", "Example:"):
        assert word in out


@pytest.mark.slow
def test_what_may_go_wrong_with_a_prompt_is_said_and_kept(tmp_path, capsys):
    said = ["--prompt-text", "Hi.", "--trace", "summary", "-o", str(tmp_path), *QUICK]
    assert main(["speak", "It is late.", *said]) == 0
    err = capsys.readouterr().err
    assert "warning: the transcript is far shorter" in err and "WorkbenchWarning" not in err
    kept = wb.Trace.load(tmp_path / "speech_0_0.trace").attrs["warnings"]
    assert "far shorter" in kept[0] and err.count("warning: ") == len(kept)


@pytest.mark.slow
def test_samples_without_a_header_need_their_rate(tmp_path, capsys):
    wav, rate = soundfile.read(wb.data_path("prompts/kumo_0.flac"), dtype="int16")
    wav.tofile(tmp_path / "me.pcm")
    speak = ["speak", "It is late.", "--prompt", str(tmp_path / "me.pcm"), "-o", str(tmp_path), *QUICK]
    speak += ["--prompt-text", wb.data_path("prompts/kumo_0.txt").read_text()]
    assert main(speak) == 2
    assert "--prompt-rate" in capsys.readouterr().err
    assert main([*speak, "--prompt-rate", str(rate)]) == 0
    assert main(["speak", "It is late.", "-o", str(tmp_path), *QUICK]) == 0
    first, second = ((tmp_path / f"speech_0_0{end}.wav").read_bytes() for end in ("", "_1"))
    assert first == second  # the same prompt as from its FLAC


def test_a_transcript_that_is_empty_or_in_another_encoding_is_told_in_shell_words(tmp_path, capsys):
    recording, transcript = tmp_path / "me.flac", tmp_path / "me.txt"
    recording.write_bytes(wb.data_path("prompts/kumo_0.flac").read_bytes())
    for content, expected in ((b" \n", "--prompt-text"), ("今天".encode("gbk"), "me.txt is no UTF-8 text")):
        transcript.write_bytes(content)
        assert main(["speak", "Hello.", "--prompt", str(recording)]) == 2
        err = capsys.readouterr().err
        assert expected in err and "text=" not in err and err.count("\n") == 1


@pytest.mark.slow
def test_weights_are_quantised_from_a_format_or_a_file(tmp_path, capsys):
    path = tmp_path / "map.toml"
    path.write_text('"lm" = "q4_k"\n"flow.decoder.*" = "q8_0"\n')
    for weights, line in ((str(path), "lm=q4_k;flow.decoder.*=q8_0"), ("int8", "*=int8:channel")):
        out = str(tmp_path / line[:2].strip("*="))
        assert (
            main(["speak", "It is late.", "--weights", weights, "--trace", "summary", "-o", out, *QUICK]) == 0
        )
        assert wb.Trace.load(f"{out}/speech_0_0.trace").attrs["options"]["weights"] == line


def test_weights_that_cannot_be_used_are_named_before_a_voice_is_opened(tmp_path, capsys):
    for weights, said in (("q4_x", "did you mean q4_k"), ("no.toml", "no.toml cannot be read")):
        assert main(["speak", "It is late.", "--weights", weights, "-o", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
    both = ["--weights", "q4_k", "--option", "weights=q8_0"]
    assert main(["speak", "It is late.", *both, "-o", str(tmp_path)]) == 2
    assert "expected one of them" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_a_sound_is_no_folder_for_the_output(tmp_path, capsys):
    assert main(["speak", "Hm.", "--out", str(tmp_path / "mine.wav")]) == 2
    assert "--name mine names the files" in capsys.readouterr().err
    assert not (tmp_path / "mine.wav").exists()
