"""Numbers in text logs: read completely or not at all, in any locale and from any C library."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from workbench.trace.importers.logs.log_numbers import number_at, read_numbers, split_numbers


def read(*texts):
    """The values of the numbers that one line prints; None where the line is refused."""
    found = [number_at(text, 0) for text in texts]
    numbers = read_numbers([number.text if number else "" for number in found])
    return None if numbers is None else [number.value for number in numbers]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5,817,890", 5817890),
        ("-1,234,567.25", -1234567.25),
        ("1,234.5", 1234.5),
        ("1.234.567", 1234567),
        ("1.234.567,5", 1234567.5),
        ("5'817'890", 5817890),
        ("5\u2019817\u2019890.5", 5817890.5),
        ("5_817_890", 5817890),
        ("5\u202f817\u202f890,5", 5817890.5),
        ("5\u00a0817", 5817),
        ("-4,3497", -4.3497),
        ("-0,057", -0.057),
        ("1,234e+01", 12.34),
        ("\u22124.5", -4.5),
        ("2.", 2),
        (".5", 0.5),
        ("7.77. The end", 7.77),
        ("1.5e-3, mean", 0.0015),
        ("1.e+3", 1000),
        ("1.5d-03", 0.0015),
        ("266.2hz", 266.2),
        ("3 200ms", 3),
        ("0e999", 0),
    ],
)
def test_a_number_is_read_completely(text, value):
    assert read(text) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("1.#INF", math.inf),
        ("-1.#INF00", -math.inf),
        ("1,#INF", math.inf),
        ("1.#J", math.inf),
        ("\u2212inf", -math.inf),
        ("\u221e", math.inf),
        ("1e999", math.inf),
        ("1.#QNAN", math.nan),
        ("-1.#IND", math.nan),
        ("-nan(ind)", math.nan),
        ("nan(0x8000)", math.nan),
        ("NaN", math.nan),
    ],
)
def test_numbers_that_are_not_finite_are_read(text, value):
    assert read(text.lower()) == [pytest.approx(value, nan_ok=True)]


REFUSED = [
    *("1,234", "12,345", "5,81,7890", "1,2,3", "0x1p3", "--4", "1.5e", "1.5e5.3", "1.2.3", "1_23", "1'5"),
    *(
        "5.8m",
        "5.8 m mean",
        "12%",
        "12 %",
        "0.26 khz",
        "1.5 million",
        "1.5(3)",
        "1.5-2",
        "1.5+0j",
        "1:30",
        "3/4",
    ),
    *(
        "1.5...",
        "1.5\u2026",
        "1.5*10^3",
        "1.5 \u00d7 10",
        "1.5 x 10^3",
        "1.5 e5",
        "5 817 890",
        "5 817",
        "1\u0663",
    ),
    *("5\uff0c817", "1.5\u00b5", "1.5f32", "1.5~2", "9" * 8000),
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_number_for_certain_is_refused(text):
    assert number_at(text, 0) is not None and read(text) is None


@pytest.mark.parametrize("text", ["info", "-", "nan_count", "none", "x", ""])
def test_words_are_no_numbers(text):
    assert number_at(text, 0) is None


def test_one_line_has_one_decimal_mark():
    assert read("-0,057", "1,234") == [-0.057, 1.234]
    assert read("5,817", "0.5") == [5817, 0.5]
    assert read("1.234", "1.234.567,5") == [1234, 1234567.5]
    assert read("4.1", "4,2") is None


def test_lists_are_split_into_the_expected_count():
    assert split_numbers("-4.1/3.8/0.5", 3) == ["-4.1", "3.8", "0.5"]
    assert split_numbers("-4,1; 3,8", 2) == ["-4,1", "3,8"]
    assert split_numbers("-4,35, 3,78", 2) == ["-4,35", "3,78"]
    assert split_numbers("-4,35 3,78", 2) == ["-4,35", "3,78"]
    assert split_numbers("1,5", 2) == ["1", "5"]
    assert split_numbers("-4.1..3.8", 2) == split_numbers("-4.1..=3.8", 2) == ["-4.1", "3.8"]
    assert split_numbers("1...5", 2) is split_numbers("1/2/3", 2) is split_numbers("1 2 3", 2) is None


def grouped(mark, point="."):
    """A formatter that groups digits by a mark."""
    return lambda x: f"{x:,.3f}".replace(".", "P").replace(",", mark).replace("P", point)


# Formats, and what they print in plain digits. Those of the second list may be ambiguous, such as "1,234".
CERTAIN = [(form, form) for form in (repr, "{:.4f}".format, "{:g}".format, "{:e}".format, "{:.0f}".format)]
CERTAIN += [(grouped("'"), "{:.3f}".format), (grouped("_"), "{:.3f}".format)]
CERTAIN += [(lambda x: repr(x).replace("-", "\u2212"), repr)]
AMBIGUOUS = [
    (grouped("\u2009", ","), "{:.3f}".format),
    (grouped(","), "{:.3f}".format),
    (grouped(".", ","), "{:.3f}".format),
]
AMBIGUOUS += [("{:,.0f}".format, "{:.0f}".format), (lambda x: f"{x:.3f}".replace(".", ","), "{:.3f}".format)]


@settings(max_examples=examples(300), deadline=None)
@given(x=st.floats(), form=st.sampled_from(CERTAIN), after=st.sampled_from(["", ",", ", mean=3", "]", ")"]))
def test_any_float_is_read_back_exactly(x, form, after):
    printed, plain = form
    assert read(printed(x) + after) == [pytest.approx(float(plain(x)), rel=0, abs=0, nan_ok=True)]


@settings(max_examples=examples(300), deadline=None)
@given(x=st.floats(-1e12, 1e12), form=st.sampled_from(AMBIGUOUS))
def test_a_float_of_any_locale_is_read_back_or_refused(x, form):
    printed, plain = form
    assert read(printed(x)) in (None, [float(plain(x))])


SUFFIXES = [
    "m",
    "%",
    " %",
    "e",
    "#",
    "_1",
    "'1",
    "k",
    "/2",
    ":30",
    "(3)",
    "+2j",
    "-3",
    "^2",
    "*10",
    "\u2026",
    "..",
    " 000",
]


@settings(max_examples=examples(200), deadline=None)
@given(x=st.integers(-999, 999), suffix=st.sampled_from(SUFFIXES))
def test_a_number_is_never_cut(x, suffix):
    assert read(f"{x}{suffix}") is None
