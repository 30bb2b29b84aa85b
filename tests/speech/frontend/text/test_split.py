"""Splitting a normalised text into segments."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from workbench.speech.frontend.text import normalise, split


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
