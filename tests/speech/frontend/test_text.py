"""Text: the tokenizer and its special tokens, normalisation, splitting, and scripts a voice cannot read."""

import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.paths import ASSETS
from tests.profiles import examples
from workbench.errors import WorkbenchError
from workbench.speech.frontend.text import TextTokenizer, check_scripts, normalise, special_tokens, split

SPECIALS = ASSETS / "special_tokens_cosyvoice3.json"
CORPUS = ["Eight months to Mars.", "the quick brown fox jumps over the lazy dog", "It's 你好 世界 и мир"]


def tiny_bpe(folder, size=300):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(CORPUS * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    raw.model.save(str(folder))
    return raw


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    tiny_bpe(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(bpe):
    return TextTokenizer.load(bpe)


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Eight months to Mars", "Eight months to Mars."),
        ("  two\n\n lines\t", "two lines."),
        ("It costs $3.50, 20% of 1,234", None),
        ("hello,", "hello."),
        ("Really?", "Really?"),
        ('He said "yes"', 'He said "yes".'),
        ("He said “yes.”", 'He said "yes."'),
        ("hi 😀👍🏽 there", "hi there."),
        ("cafe\u0301", "café."),
        ("#3 & +5", "number three and plus five."),
        ("42", "forty two."),
        ("[breath] ok", "[breath] ok."),
        ("今天是2024年5月1日，花了3.5元", "今天是二零二四年五月一日，花了三点五元。"),
        ("你 好", "你好。"),
        ("Привет 5 мир", "Привет 5 мир."),
        ("a<|endofprompt|> 5 😀", "a<|endofprompt|> 5 😀"),
        ("See abc.def. 5 of us", "See abc. def. five of us."),  # WeText returns nothing for "abc.def."
    ],
)
def test_normalise_writes_text_as_it_is_spoken(text, said):
    found = normalise(text)
    if said is None:
        assert not any(c.isdigit() for c in found) and "three point five dollars" in found
    else:
        assert found == said


@pytest.mark.parametrize(
    "text", ["", "  \n", "...", "?!", "😀🎉", "—", "。", "\u200b", "<|endofprompt|>", "\ud800"]
)
def test_text_without_words_is_refused(text):
    with pytest.raises(WorkbenchError, match="nothing to say"):
        normalise(text)


@given(st.text(max_size=60) | st.text("ab 059.,:;$%&@#-+=/\\{}[]()'\"<>|~你好😀°€½\n", max_size=60))
@settings(max_examples=examples(300), deadline=None)
def test_any_text_is_normalised_or_refused(text):
    try:
        said = normalise(text)
    except WorkbenchError:
        return
    assert said and ("\n" not in said or "<|" in text)
    assert normalise(said)


def words(text):
    return "".join(c for c in text if c.isalnum())


@given(st.text(st.sampled_from('abcde  .,!?;你好。，\n")é'), max_size=400), st.integers(10, 80))
@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
def test_split_keeps_all_words_and_the_limit(tokenizer, text, most):
    segments = split(text, tokenizer, token_max_n=most, token_min_n=most * 3 // 4, merge_len=most // 4)
    assert words("".join(segments)) == words(text)
    assert all(words(s) for s in segments)
    assert all(len(tokenizer.encode(s)) <= most and s == s.strip() and s for s in segments)


@pytest.mark.parametrize("text", ["word " * 2000, "x" * 10_000, "你好世界" * 2500])
def test_long_text_without_punctuation_is_split(tokenizer, text):
    segments = split(normalise(text), tokenizer)
    assert all(len(tokenizer.encode(s)) <= 80 for s in segments)
    assert words("".join(segments)) == words(text)
    assert len(segments) > 1 and all(len(tokenizer.encode(s)) >= 20 for s in segments)


def test_split_cuts_at_sentences(tokenizer):
    sentence = "the quick brown fox jumps over the lazy dog. "
    segments = split(sentence * 30, tokenizer)
    assert len(segments) > 1 and all(s.endswith("dog.") for s in segments)
    assert split(sentence, tokenizer) == [sentence.strip()]
    chinese = split("你好世界，世界你好。" * 20, tokenizer)
    assert len(chinese) > 1 and all(s.endswith("。") for s in chinese)


def test_a_short_last_segment_takes_a_sentence_from_the_one_before(tokenizer):
    text = "aaaa bbbb cccc dddd. eeee ffff gggg hhhh. iii."
    n = len(tokenizer.encode(text[: text.index(" iii")]))
    last = split(text, tokenizer, token_max_n=n, token_min_n=n // 2, merge_len=8)[-1]
    assert last == "eeee ffff gggg hhhh. iii."
    assert split(text, tokenizer, token_max_n=n, token_min_n=n // 2, merge_len=1)[-1] == "iii."


def test_a_short_segment_is_filled_up_with_clauses(tokenizer):
    text = "ab. " + "abcde abcde, " * 4
    n = len(tokenizer.encode(text)) - 3
    assert split(text, tokenizer, token_max_n=n, token_min_n=n // 2, merge_len=0)[0].count(",") == 3


def test_text_with_control_tokens_is_not_split(tokenizer):
    text = "one. " * 100 + "<|endofprompt|>"
    assert split(text, tokenizer) == [text]


def test_letters_of_other_scripts_are_refused():
    check_scripts("Hello, naïve [breath] world 5!", ("LATIN",))
    check_scripts("Привет 你好", ())
    with pytest.raises(WorkbenchError, match=r"'мир!'.*CYRILLIC.*reads LATIN"):
        check_scripts("hello мир!", ("LATIN",))
    with pytest.raises(WorkbenchError, match="CJK"):
        check_scripts("你好", ("LATIN", "CYRILLIC"))
