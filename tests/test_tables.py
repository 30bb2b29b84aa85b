"""Tables as cells and reports show them: rounded, with units, wrapped, escaped, verdicts coloured."""

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.diagnose.compare.comparison import VERDICTS as NAMES
from workbench.errors import WorkbenchError
from workbench.tables import VERDICTS, number_text, table_html


def test_numbers_have_three_digits_and_no_needless_zeros():
    values = (0.123456, 12.3456, 123.456, 4000.0, 4567.8, 1e-7, 2.5e9, np.nan, np.inf, -np.inf, -0.5)
    shown = [number_text(value) for value in values]
    assert shown == ["0.123", "12.3", "123", "4000", "4568", "1e-07", "2.5e+09", "", "inf", "-inf", "-0.5"]


def test_every_verdict_has_a_colour_that_white_letters_are_readable_on():
    assert set(NAMES) <= set(VERDICTS)  # and those of claims
    for color in VERDICTS.values():
        channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.5
    assert VERDICTS["DIVERGED"] in table_html(pd.DataFrame({"verdict": ["DIVERGED"]}))


def test_units_stand_in_headings_and_long_text_is_wrapped():
    frame = pd.DataFrame({"mel_l1": [0.25], "start": [1.0], "why": ["a sentence " * 9]})
    html = wb.table(frame, {"start": "s"})._repr_html_()
    assert ">mel_l1 [ln]</th>" in html and ">start [s]</th>" in html
    assert 'class="long"' in html and "white-space:normal" in html


def test_text_of_other_people_is_escaped_in_headings_index_and_cells():
    hostile = "<script>alert(1)</script>"
    frame = pd.DataFrame({hostile: [hostile]}, index=[hostile])
    assert "<script" not in table_html(frame)
    frame.columns = pd.MultiIndex.from_tuples([(hostile, hostile)])
    assert "<script" not in table_html(frame)


def test_an_index_with_names_is_shown_and_a_counter_is_not():
    frame = pd.DataFrame({"n": [1, 2]})
    assert "<td></td>" not in table_html(frame)
    assert table_html(frame.set_axis(["one", "two"])).count("one") == 1
    both = frame.set_axis(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["kind", "seed"]))
    assert "level_0" not in table_html(frame.set_axis(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])))
    assert ">n</th>" in table_html(frame.set_index("n", drop=False))
    assert ">kind</th>" in table_html(both) and ">seed</th>" in table_html(both)


def test_a_long_table_says_that_it_is_cut():
    assert "the first 2 of 5 rows" in table_html(pd.DataFrame({"n": range(5)}), max_rows=2)


def test_what_is_no_table_is_refused_in_words():
    with pytest.raises(WorkbenchError, match="expected a DataFrame"):
        wb.table([1, 2])
