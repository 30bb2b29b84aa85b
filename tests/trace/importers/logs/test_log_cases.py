"""Logs as people print them, one file for each format: each number is read right, or the line refused."""

import pytest
import torch

import workbench as wb
from tests.paths import ASSETS
from tests.trace.whole_stats import whole_stats
from workbench.errors import WorkbenchError
from workbench.trace.schema import STATS

LOGS = ASSETS / "logs"
# The state of the ODE after its 1st and its 10th step.
FIRST = {"min": -4.3497, "max": 3.7801, "mean": -0.0574}
LAST = {"min": -11.5778, "max": 1.2623, "mean": -5.1508}


def said(trace, field, index=None):
    values = zip(STATS, whole_stats(trace, field, index).tolist(), strict=True)
    return {what: value for what, value in values if value == value}


@pytest.mark.parametrize(
    "name", ["bracket.log", "comma_decimal.log", "csv.csv", "slash.log", "spaces.log", "table.md"]
)
def test_ten_steps_are_read_from_each_format(name):
    log = wb.read_log(LOGS / name)
    [run] = log.runs
    assert log.unparsed == 0 and list(run) == ["flow/x.stats"] and len(run["flow/x.stats"]) == 11
    for index, expected in ((1, FIRST), (10, LAST)):
        found = said(run, "flow/x", index)
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-4)


def test_sums_of_a_callback_become_means():
    [run] = wb.read_log(LOGS / "llamacb.log").runs
    assert said(run, "flow/x", 1) == {"mean": pytest.approx(-1468.477535 / 25_600)}


def test_statistics_of_polygraphy_are_read_behind_places():
    [run] = wb.read_log(LOGS / "polygraphy.log").runs
    found = said(run, "flow/mel")
    assert found == pytest.approx(
        {
            "min": -10.545,
            "max": 1.1632,
            "mean": -4.5302,
            "mean_abs": 4.549,
            "rms": (4.5302**2 + 2.5342**2) ** 0.5,
        }
    )


@pytest.mark.parametrize("name", ["ref_bars.log", "ref_cpp.log"])
def test_every_tensor_of_a_reference_log_is_read(name):
    [run] = wb.read_log(LOGS / name).runs
    assert said(run, "flow/velocity", 0) == {"min": -18.954, "max": 6.0491, "mean": -5.698}
    assert said(run, "flow/x", 2) == {"min": -4.1349, "max": 3.52, "mean": -0.25689}
    assert len(run) == 14


def test_bare_numbers_are_refused_with_what_to_print():
    with pytest.raises(WorkbenchError, match=r"10 lines with numbers in an unknown format.*behind the name"):
        wb.read_log(LOGS / "pyprint.log")


def test_token_ids_in_text_are_read():
    trace = wb.open(LOGS / "tokens.txt")
    assert trace["in/text_token"].tolist() == [417, 305, 293, 395, 13]
    assert trace["lm/speech_token"][:4].tolist() == [236, 234, 8, 159] and len(trace["lm/speech_token"]) == 19
    assert len(trace["in/flow_prompt_token"]) == 141


@pytest.mark.parametrize("name", ["log_394121.log", "log_4200bf.log"])
def test_hostile_logs_are_read_or_refused_line_by_line(name):
    log = wb.read_log(LOGS / name)
    assert log.unparsed > 0 and len(log.runs) > 1
    for run in log.runs:
        for field in run:
            run.stats(field.removesuffix(".stats"))
    assert len(wb.open(f"{LOGS / name}#2")) > 0


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("tokens (3): 236 234 8", "a name that the table of names does not have"),
        ("speech_token ids: 236/234/8", "an unknown format"),
        ("speech_token: <236><234><8>", "an unknown format"),
        ("speech_tokens: <|s_236|><|s_234|><|s_8|>", "an unknown format"),
        ("generated_tokens(19): 236 234 8", "an unknown format"),
        ("mel: -11.5 .. 2.5 khz", "an unknown format|a number"),
    ],
)
def test_lists_that_are_not_understood_are_counted_and_quoted(tmp_path, line, match):
    (tmp_path / "run.log").write_text(f"mu max=1.5\n{line}\n")
    log = wb.read_log(tmp_path / "run.log")
    assert log.unparsed == 1
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(log.notes)


@pytest.mark.parametrize("line", ["mel\tmin\t-11.5\tmax\t2.5", "mel -11.5 .. 2.5", "mel in [-11.5, 2.5]"])
def test_a_range_is_read(tmp_path, line):
    (tmp_path / "run.log").write_text(f"{line}\n")
    assert said(wb.open(tmp_path / "run.log"), "flow/mel") == {"min": -11.5, "max": 2.5}


def test_counts_that_are_none_are_left_out_of_the_table(tmp_path):
    (tmp_path / "run.log").write_text("x min=0 nan=1e300\n")
    table = wb.open(tmp_path / "run.log").stats("flow/x")
    assert table["nonfinite"].isna().all() and table["min"].max() == 0


def test_prompt_lengths_that_are_no_number_are_ignored(tmp_path):
    (tmp_path / "run.log").write_text("mel_len1=nan\nmu max=1\n")
    assert "prompt_frames" not in wb.open(tmp_path / "run.log").attrs


def test_a_log_beside_a_trace_of_the_same_ids_is_compared(tmp_path):
    mine = wb.Trace({"lm/speech_token": torch.tensor([236, 234, 8])}, {})
    (tmp_path / "run.log").write_text("speech_token: [236, 234, 9]\n")
    assert "lm/speech_token" in " ".join(wb.compare(mine, tmp_path / "run.log").input_differences)
