"""Ready-made speakers: prompts by name, in upstream's layout of `spk2info.pt`, and refused where they do not fit."""

import shutil
from dataclasses import replace

import pytest
import torch

import workbench as wb
from tests.paths import ASSETS
from workbench.cli import main
from workbench.speech.checkpoint.files import read_speakers
from workbench.speech.frontend.speakers import speaker_parts
from workbench.speech.pipeline import Pipeline

KUMO = wb.data_path("prompts/kumo_0.flac")
SYSTEM = "You are a helpful assistant.<|endofprompt|>"


@pytest.fixture(scope="module")
def kumo(pipe):
    return pipe.prompt(KUMO)


@pytest.fixture(scope="module")
def with_speakers(voice, pipe, kumo):
    """The bundled voice with a whole speaker, and with one that is an embedding alone."""
    speakers = {"kumo": speaker_parts(kumo, pipe.frontend.tokenizer)}
    speakers |= read_speakers(ASSETS / "prompts" / "embedding_alone.pt")
    return Pipeline(replace(voice, spk2info=speakers), progress=False)


def test_the_layout_is_upstreams(kumo, pipe):
    parts = speaker_parts(kumo, pipe.frontend.tokenizer)
    n = len(kumo.speech_token)
    shapes = {
        "prompt_text": (1, len(pipe.frontend.tokenizer.encode(SYSTEM + kumo.text))),
        "llm_prompt_speech_token": (1, n),
        "flow_prompt_speech_token": (1, n),
        "prompt_speech_feat": (1, 2 * n, 80),
        "llm_embedding": (1, 192),
        "flow_embedding": (1, 192),
    }
    lengths = {f"{name}_len": shape[1] for name, shape in shapes.items() if "embedding" not in name}
    assert {name: tuple(parts[name].shape) for name in shapes} == shapes
    assert {name: parts[name].tolist() for name in lengths} == {name: [n] for name, n in lengths.items()}
    integers = {name for name, value in parts.items() if value.dtype == torch.int32}
    assert integers == {name for name in parts if "embedding" not in name and name != "prompt_speech_feat"}


def test_a_speaker_by_name_gives_what_its_recording_gives(with_speakers, kumo):
    by_name = with_speakers.prepare("It is late.", "kumo")
    expected = with_speakers.prepare("It is late.", kumo)
    for name in ("text_token", "prompt_text_token", "lm_prompt_token", "flow_prompt_token", "prompt_mel"):
        assert torch.equal(getattr(by_name, name), getattr(expected, name)), name
    assert torch.equal(by_name.spk_embedding, expected.spk_embedding)
    assert by_name.prompt.text == SYSTEM + kumo.text
    assert with_speakers.prompt("kumo", "Other words.").text == "Other words."


@pytest.mark.slow
def test_an_embedding_alone_speaks_without_a_recording(with_speakers):
    utt = with_speakers.prepare("It is late.", "a", mode="cross-lingual")
    assert len(utt.flow_prompt_token) == utt.prompt_mel.shape[-1] == 0
    trace = with_speakers.synthesise(utt, options=with_speakers.checkpoint.options.but(max_tokens=10))
    assert len(trace.wav) == 960 * len(trace["lm/speech_token"])
    with pytest.raises(wb.WorkbenchError, match="no transcript"):
        with_speakers.prepare("It is late.", "a")


def test_a_name_that_is_no_speaker_lists_those_that_are(with_speakers, pipe, tmp_path, monkeypatch):
    with pytest.raises(wb.WorkbenchError, match=r"'kuno' is neither a file nor .* has a, kumo"):
        with_speakers.prompt("kuno")
    with pytest.raises(wb.WorkbenchError, match="has none"):
        pipe.prompt("kumo")
    for path in ("x" * 5000, "a\0b", "", "."):
        with pytest.raises(wb.WorkbenchError, match="is neither a file nor"):
            with_speakers.prompt(path)
        with pytest.raises(wb.WorkbenchError):
            wb.check_prompt(path)
    with pytest.raises(wb.WorkbenchError, match=r"none\.wav does not exist"):
        with_speakers.prompt("none.wav")


CHANGES = {
    "tokens beyond the vocabulary": (
        lambda p: p | {"flow_prompt_speech_token": torch.tensor([[9999]])},
        "not all in",
    ),
    "no mel": (lambda p: {k: v for k, v in p.items() if k != "prompt_speech_feat"}, "only one of"),
    "mel as (1, M, T)": (lambda p: p | {"prompt_speech_feat": torch.zeros(1, 80, 282)}, "expected .1, T, 80"),
    "mel of another length": (
        lambda p: p | {"prompt_speech_feat": torch.zeros(1, 100, 80)},
        "100 mel frames",
    ),
    "NaN": (lambda p: p | {"prompt_speech_feat": p["prompt_speech_feat"] * torch.nan}, "NaN"),
    "embedding of another model": (lambda p: {"embedding": torch.zeros(512)}, "512 numbers"),
    "nothing": (lambda p: {}, "no embedding"),
    "transcript of another tokenizer": (
        lambda p: p | {"prompt_text": torch.tensor([[99_999]])},
        "transcript",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_speakers_of_another_checkpoint_are_refused(voice, pipe, kumo, name):
    change, message = CHANGES[name]
    parts = change(speaker_parts(kumo, pipe.frontend.tokenizer))
    other = Pipeline(replace(voice, spk2info={"me": parts}), progress=False)
    with pytest.raises(wb.WorkbenchError, match=message) as caught:
        other.prompt("me")
    assert "speaker 'me'" in str(caught.value)


def test_speakers_are_saved_beside_those_there_are(pipe, kumo, tmp_path):
    path = tmp_path / "spk2info.pt"
    shutil.copyfile(ASSETS / "prompts" / "embedding_alone.pt", path)
    assert pipe.save_speaker("kumo", kumo, path) == path
    assert sorted(read_speakers(path)) == ["a", "kumo"]
    with pytest.raises(wb.WorkbenchError, match="has a speaker 'kumo'"):
        pipe.save_speaker("kumo", kumo, path)
    pipe.save_speaker("kumo", kumo, path, overwrite=True)
    before = path.read_bytes()
    with pytest.raises(wb.WorkbenchError, match="not empty"):
        pipe.save_speaker(" ", kumo, path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["spk2info.pt"]


def test_a_file_that_is_no_list_of_speakers_is_refused(pipe, kumo, tmp_path):
    path = tmp_path / "spk2info.pt"
    torch.save({"me": 3}, path)
    with pytest.raises(wb.WorkbenchError, match="speaker 'me' is a int"):
        pipe.save_speaker("you", kumo, path)
    path.write_bytes(b"no archive")
    with pytest.raises(wb.WorkbenchError, match=r"spk2info\.pt"):
        pipe.save_speaker("you", kumo, path)


@pytest.mark.slow
def test_speakers_in_the_shell(pipe, kumo, tmp_path, capsys):
    folder = tmp_path / "voice"
    shutil.copytree(wb.data_path("voices/tiny"), folder)
    shutil.copyfile(ASSETS / "prompts" / "embedding_alone.pt", folder / "spk2info.pt")
    pipe.save_speaker("kumo", kumo, folder / "spk2info.pt")
    assert main(["inspect", str(folder), "--prefix", "hift.conv_pre"]) == 0
    out = capsys.readouterr().out
    assert "speaker for --prompt: a: an embedding alone" in out
    assert "speaker for --prompt: kumo: 141 speech tokens" in out
    speak = [
        "speak",
        "It is late.",
        "--voice",
        str(folder),
        "-o",
        str(tmp_path / "out"),
        "--option",
        "max_tokens=9",
    ]
    assert main([*speak, "--prompt", "kumo"]) == 0
    assert main([*speak, "--prompt", "kuno"]) == 2
    assert "has a, kumo" in capsys.readouterr().err
    assert main([*speak, "--prompt", "a"]) == 2
    assert "--mode cross-lingual" in capsys.readouterr().err
    assert main([*speak, "--prompt", "a", "--mode", "cross-lingual"]) == 0
