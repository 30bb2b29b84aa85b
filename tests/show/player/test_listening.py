"""Results of the blind test: counted again from their trials, refused in words, and shown in reports."""

import json

import pytest
from scipy.stats import binomtest

import workbench as wb

SIDES = [
    {"letter": "A", "id": "0a", "name": "ten steps", "lufs": -20.0, "gain_db": 0},
    {"letter": "B", "id": "0b", "name": "<b>one</b> step", "lufs": -21.5, "gain_db": 0},
]


def result(right, wrong, planned=10, **more):
    trials = [{"x": "A", "answer": "A"}] * right + [{"x": "A", "answer": "B"}] * wrong
    head = {"kind": "workbench listening test", "version": 1, "ended": "2026-01-01T00:00:00Z"}
    return head | {"candidates": SIDES, "planned": planned, "trials": trials} | more


@pytest.mark.parametrize(("right", "wrong"), [(10, 0), (9, 1), (5, 5), (0, 10)])
def test_p_is_the_probability_of_guessing_as_well(right, wrong):
    test = wb.listening_test(result(right, wrong))
    assert test.p == pytest.approx(binomtest(right, 10, 0.5, alternative="greater").pvalue)
    assert ("A difference was heard" in test.line) == (test.p < 0.05)
    assert ("no proof that there is none" in test.line) == (test.p >= 0.05)


def test_right_answers_and_p_of_the_file_are_not_believed():
    assert wb.listening_test(result(1, 9) | {"right": 10, "p": 0.0001}).right == 1


def test_a_test_that_ended_early_claims_nothing():
    test = wb.listening_test(result(6, 0))
    assert "Ended after 6 of 10 planned trials, so p is too small" in test.line
    assert "was heard" not in test.line


def test_unequal_loudness_is_remarked():
    assert "Loudness differed by 1.5 LU" in "\n".join(wb.listening_test(result(5, 5)).remarks)
    level = [side | {"gain_db": side["lufs"] * -1 - 30} for side in SIDES]
    assert "Loudness" not in "\n".join(wb.listening_test(result(5, 5, candidates=level)).remarks)
    unknown = [side | {"lufs": None} for side in SIDES]
    assert "Not known" in "\n".join(wb.listening_test(result(5, 5, candidates=unknown)).remarks)


def test_a_report_shows_the_result_and_escapes_names(tmp_path):
    (tmp_path / "listening-test.json").write_text(json.dumps(result(9, 1)))
    html = wb.Report("Heard?").add(wb.listening_test(tmp_path / "listening-test.json")).html()
    assert "9 of 10 right" in html
    assert "&lt;b&gt;one" in html and "<b>one</b>" not in html


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "else"},
        {"version": 2},
        {"candidates": SIDES[:1]},
        {"candidates": [SIDES[0], SIDES[0]]},
        {"candidates": 7},
        {"candidates": [SIDES[0], SIDES[1] | {"lufs": "loud"}]},
        {"trials": [{"x": "A", "answer": "C"}]},
        {"trials": [{"x": "A"}]},
        {"trials": [{"x": "A", "answer": "A"}] * 1001},
        {"planned": "ten"},
        {"planned": 0},
        {"planned": float("nan")},
        {"candidates": [SIDES[0], SIDES[1] | {"lufs": float("nan")}]},
    ],
)
def test_what_is_no_result_is_refused_in_words(damage):
    with pytest.raises(wb.WorkbenchError, match="no result of a blind test"):
        wb.listening_test(result(5, 5) | damage)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b"7", b"null", b"[]", b" " * 2_000_000]
)
def test_a_file_that_is_no_result_is_refused_in_words(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(wb.WorkbenchError, match=r"x\.json"):
        wb.listening_test(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_refused_in_words(tmp_path):
    with pytest.raises(wb.WorkbenchError, match="cannot be read"):
        wb.listening_test(tmp_path / "none.json")
