"""The bundled voice: its card, its weights, its tokenizers, and that it loads from any folder."""

import json
from pathlib import Path

import pytest
import torch

from workbench import Checkpoint, Pipeline
from workbench.speech.frontend.text import special_tokens

VOICE = Path("data/voices/tiny")
SPEAKERS = ("alpha", "gongitsune", "kumo", "kumo_alpha")


@pytest.fixture(scope="module")
def voice():
    return Checkpoint.load(VOICE)


def test_the_figures_of_the_card_belong_to_these_weights(voice):
    figures = json.loads((VOICE / "figures.json").read_text())
    assert figures["content_hash"] == voice.content_hash
    assert {"text", "copy", "vocoder"} <= set(figures)
    card = (VOICE / "README.md").read_text()
    for name in ("text", "copy", "vocoder"):
        assert f"{100 * figures[name]['wer']:.1f} %" in card, f"WER of {name} is not the one in the card"
    assert f"{figures['text']['dnsmos_ovrl']:.2f}" in card


def test_it_is_loaded_by_default_from_any_working_directory(voice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.load().content_hash == voice.content_hash
    assert Checkpoint.load(None, device="cpu").name == "tiny"


def test_weights_are_finite_and_small(voice):
    assert not any(voice.nonfinite.values())
    assert sum(t.numel() for stage in voice.weights.values() for t in stage.values()) < 16_000_000


def test_special_tokens_have_the_released_order(voice):
    tokenizer = voice.frontend().tokenizer
    first = tokenizer.end_of_prompt
    names = special_tokens()
    assert [tokenizer.encode(name) for name in names] == [[first + i] for i in range(len(names))]
    assert tokenizer.decode(tokenizer.encode("Eight months to Mars.")) == "Eight months to Mars."


def test_speakers_can_be_told_apart(voice):
    """The second prompt of each speaker is nearest to the first of the same."""
    encode = Pipeline(voice, progress=False).prompt
    first, second = (
        torch.nn.functional.normalize(
            torch.stack([encode(f"data/prompts/{s}_{k}.flac").spk_embedding for s in SPEAKERS]), dim=1
        )
        for k in (0, 1)
    )
    assert (second @ first.T).argmax(1).tolist() == list(range(len(SPEAKERS)))


def test_silence_is_a_silent_token(voice):
    frontend = voice.frontend()
    hush = frontend.speech_tokenizer(torch.randn(16_000, generator=torch.Generator().manual_seed(0)) * 1e-4)
    assert set(hush.tolist()[5:-5]) & set(voice.config.silent_tokens)
