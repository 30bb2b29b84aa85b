"""Tokenizers for tests of the text's front end."""

import pytest

from tests.paths import ROOT
from tests.speech.frontend.tiny_bpe import tiny_bpe
from workbench.speech.frontend.text import TextTokenizer


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    tiny_bpe(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(bpe):
    return TextTokenizer.load(bpe)


@pytest.fixture(scope="session")
def bundled():
    """The tokenizer of the bundled voice."""
    return TextTokenizer.load(ROOT / "data" / "voices" / "tiny" / "CosyVoice-BlankEN")
