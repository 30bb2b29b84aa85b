"""The text tokenizer: its files, its special tokens and their ids."""

import json
import shutil
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.paths import ASSETS, ROOT
from tests.speech.frontend.tiny_bpe import tiny_bpe
from workbench.errors import WorkbenchError
from workbench.speech.frontend.text import TextTokenizer, special_tokens

SPECIALS = ASSETS / "special_tokens_cosyvoice3.json"


def test_special_tokens_follow_the_vocabulary_in_upstreams_order(tokenizer, bpe):
    golden = json.loads(SPECIALS.read_text())["ids"]
    size = len(json.loads((bpe / "vocab.json").read_text()))
    shift = golden["<|endofprompt|>"] - 3 - size
    for token, i in golden.items():
        assert tokenizer.encode(token) == [i - shift], token
    assert tokenizer.end_of_prompt == golden["<|endofprompt|>"] - shift == size + 3
    assert len(tokenizer) == max(golden.values()) + 1 - shift
    assert len(special_tokens()) == 278
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [size, size + 1, size + 2]


def test_special_tokens_get_the_ids_of_the_tokenizer_config(tmp_path):
    tiny_bpe(tmp_path)
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    added = {size + 1: "<|im_start|>", size: "<|endoftext|>", size + 2: "<|im_end|>"}
    config = {"added_tokens_decoder": {str(i): {"content": t} for i, t in added.items()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert TextTokenizer.load(tmp_path).encode("<|im_end|><|endofprompt|>") == [size + 2, size + 3]
    config["added_tokens_decoder"] = {str(size + 5): {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match="tokenizer_config"):
        TextTokenizer.load(tmp_path)


def test_tokenizer_json_alone_is_enough(tmp_path):
    raw = tiny_bpe(tmp_path / "parts")
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.end_of_prompt == raw.get_vocab_size() + 3
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_decode_undoes_encode(tokenizer, text):
    text = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("2024")) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": 0}'),
        ("merges.txt", "q zz\nzz zz"),
        ("tokenizer_config.json", "nope"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'),
    ],
)
def test_corrupt_files_are_named(tmp_path, name, content):
    tiny_bpe(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(WorkbenchError, match=name):
        TextTokenizer.load(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WorkbenchError, match=r"vocab\.json and merges\.txt"):
        TextTokenizer.load(tmp_path)
    tiny_bpe(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(WorkbenchError, match=r"no merges\.txt"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkbenchError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)


def test_encode_refuses_invalid_unicode(tokenizer):
    with pytest.raises(WorkbenchError, match="cannot be encoded"):
        tokenizer.encode("a\ud800")


def test_added_tokens_are_named(tokenizer, bundled):
    assert set(special_tokens()) < set(tokenizer.added_tokens)
    assert "<|endoftext|>" in tokenizer.added_tokens and len(bundled.added_tokens) == 281


def test_a_token_without_text_in_the_config_is_refused(tmp_path):
    folder = shutil.copytree(ROOT / "data/voices/tiny/CosyVoice-BlankEN", tmp_path / "llm")
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"512": {"content": null}}}')
    with pytest.raises(WorkbenchError, match="not id -> token"):
        TextTokenizer.load(folder)


def test_a_panic_of_the_library_is_refused_in_words(monkeypatch):
    class PanicException(BaseException):
        """What PyO3 raises for a panic of Rust code; it is no Exception."""

    class Panicking:
        @staticmethod
        def from_file(*_):
            raise PanicException("index out of bounds")

    monkeypatch.setattr("workbench.speech.frontend.text.tokenizer.BPE", Panicking)
    with pytest.raises(WorkbenchError, match="index out of bounds"):
        TextTokenizer.load(ROOT / "data/voices/tiny/CosyVoice-BlankEN")
