"""The workbench's own rules: what is written as it is spoken, in which language, and what stays as it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from workbench.errors import WorkbenchError
from workbench.speech.frontend.text import check_scripts, normalise, special_tokens


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
        ("&", "and."),
        ("x² is 4", "x² is four."),
        ("3½ cups", "three and one half cups."),
        ("Los Angeles 1984", "Los Angeles nineteen eighty four."),
        ("5 µg of café", "five µg of café."),
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


def test_letters_of_other_scripts_are_refused():
    check_scripts("Hello, naïve [breath] world 5!", ("LATIN",))
    check_scripts("Привет 你好", ())
    with pytest.raises(WorkbenchError, match=r"'мир!'.*CYRILLIC.*reads LATIN"):
        check_scripts("hello мир!", ("LATIN",))
    with pytest.raises(WorkbenchError, match="CJK"):
        check_scripts("你好", ("LATIN", "CYRILLIC"))


@pytest.mark.parametrize("frame", ["say {} now 5", "说{}吧5", "{}", "A{}5{}B", "Sag {} und 5"])
def test_tokens_of_the_vocabulary_pass_untouched(frame):
    for token in special_tokens():
        if token.startswith("<|"):
            continue  # a control token: the text stays as it is
        said = normalise(frame.format(token, token))
        assert said.count(token) == frame.count("{}"), token


def test_a_voice_may_have_more_tokens_of_its_own():
    assert normalise("5 [happy5] 5", tokens=["[happy5]"]) == "five [happy5] five."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "温度是25℃，面积100㎡，重5㎏，长3㎞，№5号。",
            "温度是二十五摄氏度，面积一百平方米，重五千克，长三公里，第五号。",
        ),
        ("今天温度-5℃。", "今天温度负五摄氏度。"),
        (
            "25℃, 5℉, 100㎡, 5㎏, 3㎞, №5 and 5㎖",
            "twenty five degrees Celsius, five degrees Fahrenheit, one hundred square meters, five kilograms, "
            "three kilometers, number five and five milliliters.",
        ),
        ("Es sind 25℃ und 5㎡, № 5.", "Es sind 25°C und 5m², № 5."),
        ("5\\6", "five backslash six."),
    ],
)
def test_units_in_one_character_are_read(text, said):
    assert normalise(text) == said


@pytest.mark.parametrize("symbol", "★▲⌀↑◆©®™¬¶‰§₹₿¦■℧±×÷√≈≥≠→¢′″†ª#@~^|•№")
@pytest.mark.parametrize("text", ["{}5", "5{}", "价格{}5元", "Es sind 5{} und"])
def test_a_symbol_that_touches_a_digit_is_never_dropped(symbol, text):
    said = normalise(text.format(symbol))
    words = normalise(text.format(""))
    assert symbol in said or len(said) > len(words), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No.", "No."),
        ("Yes or No.", "Yes or No."),
        ("No. That is not right.", "No. That is not right."),
        ('He said "No."', 'He said "No."'),
        ("NO. NO.", "NO. NO."),
        ("It is No. 5.", "It is Number five."),
        ("The Sun is hot.", "The Sun is hot."),
        ("We met on Sun. 5 May.", "We met on Sunday. five May."),
    ],
)
def test_words_that_look_like_abbreviations_are_kept(text, said):
    assert normalise(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "Er kostet 3,50 € und wiegt 1.200 g.",
        "Bei 10 hoch 7 Metern.",
        "Der Zug kommt um 8 Uhr 15 an Gleis 3.",
        "Il y a 3 chats.",
        "J'ai 25 ans.",
        "Tengo 3 gatos.",
        "Ho 25 anni.",
        "Tenho 25 anos.",
        "Ik ben 25 jaar.",
        "Das Paket wiegt 2,5 kg.",
        "La réunion commence à 9 heures.",
        "Mi número es el 555 1234.",
        "Il treno parte alle 9.",
        "Привет 5 мир.",
        "これは 5 です.",
    ],
)
def test_digits_of_other_languages_stay(text):
    assert normalise(text) == text


@pytest.mark.parametrize(
    "text", ["Chapter 5", "Take plus 5", "via port 5", "Julia met 3 men", "AI 5", "5 per day"]
)
def test_digits_of_english_become_words(text):
    assert not any(c.isdigit() for c in normalise(text))


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "Take five."),
        ("en-GB", "Take five."),
        ("zh", "Take 五。"),
        ("de", "Take 5."),
        (None, "Take five."),
    ],
)
def test_the_language_may_be_given(language, said):
    assert normalise("Take 5", language) == said


@pytest.mark.parametrize("language", ["German", "", "e", "en_GB", 5])
def test_what_is_no_code_of_a_language_is_refused(language):
    with pytest.raises(WorkbenchError, match="expected a code such as en"):
        normalise("Hello.", language)
