"""The front ends: upstream's own segments and ids, the text as it is, and what is said where a rule is broken.

Both files of texts were made by upstream's own code: see `make_upstream_segments.py`. The texts of the larger
one come from its templates.
"""

import json

import pytest

from tests.paths import ASSETS
from workbench.errors import WorkbenchError
from workbench.speech.frontend.text import FRONTENDS, read_text, special_tokens
from workbench.speech.frontend.text.normalise import token_pattern
from workbench.speech.frontend.text.upstream import _number_words

CASES = json.loads((ASSETS / "upstream_segments.json").read_text("utf-8"))
VARIED = json.loads((ASSETS / "upstream_segments_varied.json").read_text("utf-8"))
TOKENS = token_pattern(tuple(special_tokens()))


def keeps_tokens(case):
    """Whether upstream leaves the tokens of the vocabulary as they are; we do in any case."""
    return case["up"] is not None and TOKENS.findall("".join(case["up"])) == TOKENS.findall(case["text"])


@pytest.mark.parametrize(
    ("cases", "at_least"),
    [(VARIED, 15), pytest.param(CASES, 170, marks=pytest.mark.slow)],
    ids=["varied", "made"],
)
def test_upstreams_segments_and_ids_are_equal(bundled, cases, at_least):
    found = 0
    for case in filter(keeps_tokens, cases):
        if not case["up"]:  # nothing but punctuation
            with pytest.raises(WorkbenchError, match="nothing to say"):
                read_text(case["text"], bundled, "upstream")
            continue
        reading = read_text(case["text"], bundled, "upstream")
        assert reading.segments == case["up"]
        assert [bundled.encode(segment) for segment in reading.segments] == case["tok"]
        assert reading.frontend == "upstream" and reading.text == "".join(case["up"]) and not reading.notes
        found += 1
    assert found >= at_least


def test_where_upstream_raises_the_text_is_spoken_and_a_note_says_so(bundled):
    failures = [case for case in CASES[::4] + VARIED if case["err"]]
    assert len(failures) > 5
    for case in failures:
        reading = read_text(case["text"], bundled, "upstream")
        assert reading.segments and "AssertionError" in reading.notes[0]
        if reading.frontend == "workbench":
            assert reading.segments == read_text(case["text"], bundled).segments


def test_tokens_that_upstream_would_change_are_kept_and_a_note_says_so(bundled):
    changed = [case for case in CASES if case["up"] and not keeps_tokens(case)]
    assert changed
    for case in changed:
        reading = read_text(case["text"], bundled, "upstream")
        assert TOKENS.findall(reading.text) == TOKENS.findall(case["text"])
        assert len(reading.segments) == len(case["up"])
        assert "changes tokens of the vocabulary" in reading.notes[0]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    "text",
    [
        "This is a [M][AY0][N][UW1][T] detail.",
        "这个词读作[M][AY0][N][UW1][T]。",
        "[breath]<strong>Hm 5</strong>",
    ],
)
def test_tokens_of_the_vocabulary_pass_untouched_in_every_mode(bundled, frontend, text):
    reading = read_text(text, bundled, frontend)
    assert TOKENS.findall(reading.text) == TOKENS.findall("".join(reading.segments)) == TOKENS.findall(text)
    assert reading.frontend == frontend


def test_a_text_that_would_take_gigabytes_is_read_in_pieces_and_a_note_says_so(bundled, monkeypatch):
    text = "It costs $5, i.e. less than 3%. " * 12
    whole = read_text(text, bundled, "upstream")
    for module in ("reading", "upstream"):
        monkeypatch.setattr(f"workbench.speech.frontend.text.{module}.MAX_AT_ONCE", 100)
    pieces = read_text(text, bundled, "upstream")
    assert pieces.segments == whole.segments and not whole.notes
    assert "100 at a time" in pieces.notes[0]


@pytest.mark.parametrize("text", ["It costs $5.", " a  b ", "你 好5", "Hm.<|endofprompt|>5", "one. " * 200])
def test_off_is_the_text_as_it_is(bundled, text):
    assert read_text(text, bundled, "off") == (text, [text], "off", ())


def test_control_tokens_switch_every_front_end_off(bundled):
    text = "Softly.<|endofprompt|> It costs $5. " * 40
    for frontend in FRONTENDS:
        assert read_text(text, bundled, frontend).segments == [text]


def test_unknown_arguments_are_refused(bundled):
    with pytest.raises(
        WorkbenchError, match="frontend is 'ttsfrd'; expected one of workbench, upstream, off"
    ):
        read_text("Hello.", bundled, "ttsfrd")
    with pytest.raises(WorkbenchError, match="takes no language"):
        read_text("Hello.", bundled, "upstream", "de")
    for frontend in FRONTENDS:
        with pytest.raises(WorkbenchError, match="nothing to say"):
            read_text("...", bundled, frontend)


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("²", "zero"),
        ("٣", "three"),
        ("００", "zero"),
        ("１２", "twelve"),
        ("１００", "one hundred"),
        ("１２３", "one hundred and twenty-three"),
        ("１００１", "one thousand and one"),
        ("１１００", "one thousand, one hundred"),
        ("１２３４５", "twelve thousand, three hundred and forty-five"),
        ("１００００００", "one million"),
        ("２０００３４００００", "two billion, three hundred and forty thousand"),
        ("０３００", "thousand, three hundred"),
    ],
)
def test_digits_that_wetext_leaves_are_spelt_as_by_inflect(digits, words):
    assert _number_words(digits) == words
