"""Formats of lines in text logs: lists, ranges, tables, token ids, ggml; what is refused, and how long it takes."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from tests.trace.whole_stats import whole_stats
from workbench.diagnose.compare.compare import compare
from workbench.errors import WorkbenchError
from workbench.trace.importers.logs import logs
from workbench.trace.importers.logs.logs import ADVICE, read_log
from workbench.trace.importers.open_run import open_run
from workbench.trace.schema import STATS


@pytest.fixture
def log(tmp_path):
    """Write a text and read it."""

    def read(text):
        path = tmp_path / "run.log"
        path.write_text(text, encoding="utf-8")
        return read_log(path)

    return read


def said(trace, field, index=None):
    """The statistics of a field that a log printed."""
    values = zip(STATS, whole_stats(trace, field, index).tolist(), strict=True)
    return {what: value for what, value in values if value == value}


MEL = {"min": -11.5, "max": 2.5, "mean": -4.75}
POLYGRAPHY = (
    "[I] mel [dtype=float32, shape=(1, 80, 38)] | Stats: mean=-4.75, std-dev=0.5, var=0.25, median=-5, "
    "min=-11.5 at (0, 3, 5), max=2.5 at (0, 7, 9)"
)


@pytest.mark.parametrize(
    "line",
    [
        "mel min -11.5 max 2.5 avg -4.75",
        "I0110 13:33:37.123456  1234 flow.cpp:12] mel: min -11.5 max 2.5 avg -4.75",
        "mel min tensor(-11.5) max tensor(2.5, device='cuda:0') mean np.float32(-4.75)",
        "mel min/max/mean = -11.5/2.5/-4.75",
        "mel: min / max / mean: -11.5 / 2.5 / -4.75",
        "mel (min, max, mean) = (-11.5, 2.5, -4.75)",
        "mel min, max, mean: -11,5; 2,5; -4,75",
        "mel min max mean tensor(-11.5) tensor(2.5) tensor(-4.75)",
        "mel [-11.5, 2.5] mean -4.75",
        "mel: [-11.5..2.5], mean=-4.75",
        "mel range -11.5..2.5, mean=-4.75",
        "mel range (-11.5 to 2.5) mean=-4.75",
        "mel (1, 80, 320) float32 min=-11.5 max=2.5 mean=-4.75",
        "mel torch.Size([1, 80, 320]) torch.float32 cuda:0 min=-11.5 max=2.5 mean=-4.75",
        "mel.min()=tensor(-11.5), mel.max()=tensor(2.5), mel.mean()=tensor(-4.75)",
        "mel mean=-4.75 \u00b1 0.25, min=-11.5, max=2.5",
        "mel | min: -11.5 | max: 2.5 | mean: -4.75 | median: -5",
        "mel min=\u221211.5 max=2.5 mean=\u22124.75",
    ],
)
def test_a_line_in_another_format_is_read(log, line):
    found = log(line + "\n")
    assert said(found.runs[0], "flow/mel") == MEL and found.unparsed == 0


def test_polygraphy_statistics_are_read(log):
    found = log(POLYGRAPHY + "\n")
    values = said(found.runs[0], "flow/mel")
    assert values == {**MEL, "rms": pytest.approx((4.75**2 + 0.5**2) ** 0.5)} and found.unparsed == 0
    assert found.runs[0].attrs["shapes"] == {"flow/mel": [1, 80, 38]}


TABLES = {
    "bars": "| step | tensor | min | max |\n|---|:-:|--:|---|\n| - | mu | -1.5 | 2 |\n| 1 | x | -4 | **3.5** |\n| 2 | x | -5 | 4 |\n",
    "names": "| step | x min | x max | mu min | mu max |\n|---|---|---|---|---|\n| 1 | -4 | 3.5 | -1.5 | 2 |\n| 2 | -5 | 4 | | |\n",
    "csv": "time,step,x_min,x_max,mu_min,mu_max\n0.1,1,-4,3.5,-1.5,2\n0.2,2,-5,4,,\n",
    "german csv": "step;x_min;x_max;mu_min;mu_max\n1;-4,0;3,5;-1,5;2\n2;-5,0;4,0;;\n",
    "tabs": "tensor\tstep\tmin\tmax\nmu\t\t-1.5\t2\nx\t1\t-4\t3.5\nx\t2\t-5\t4\n",
    "aligned": "INFO step tensor    min   max\nINFO    - mu       -1.5     2\nINFO    1 x          -4   3.5\nINFO    2 x  -5 4\n",
    "heading": "mu min -1.5 max 2\nx:\n  step    min    max\n     1     -4    3.5\n     2     -5    4\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read(log, name):
    found = log("Loading.\n" + TABLES[name] + "\nDone with 3 of 4 lines, 5 left.\n")
    (run,) = found.runs
    assert said(run, "flow/mu") == {"min": -1.5, "max": 2} and found.unparsed == 0
    assert said(run, "flow/x", 1) == {"min": -4, "max": 3.5} and said(run, "flow/x", 2) == {
        "min": -5,
        "max": 4,
    }


def test_other_lines_may_stand_between_the_rows_of_a_table(log):
    text = "| tensor | min |\n|---|---|\n| mask | - |\nx:\nLoaded 3 files, 4 of 5.\n\nmu max=2.0\n| mu | -1.5 |\n"
    found = log(text + "f0_max;f0_mean\n5 817 890;3\n[INFO] took 2 s\n266,5;3\n")
    (run,) = found.runs
    assert said(run, "flow/mu") == {"min": -1.5, "max": 2} and said(run, "hift/f0") == {
        "max": 266.5,
        "mean": 3,
    }
    assert found.problems == {"number": (1, ["10: 5 817 890;3"])}


def test_rows_that_do_not_fit_are_counted(log):
    found = log("step,x_min,x_max\n1,-4,5,3,5\n2,-4.5,3.5\n")
    assert said(found.runs[0], "flow/x", 2) == {"min": -4.5, "max": 3.5} and set(found.problems) == {"format"}
    found = log("mu max=1.0\n| tensor | Python min | Rust min |\n|---|---|---|\n| mel | -3 | -4 |\n")
    assert found.problems["format"] == (1, ["4: | mel | -3 | -4 |"])
    found = log("mu max=1.0\n| step | x min |\n| 1 | 5.8M |\n| 1.5 | 5 |\n")
    assert set(found.problems) == {"number", "step"} and list(found.runs[0]) == ["flow/mu.stats"]


@pytest.mark.parametrize(
    "line",
    [
        "generated_tokens(3): 236 234 8",
        "speech_token = tensor([[236, 234, 8]], device='cuda:0', dtype=torch.int32)",
        "INFO speech tokens (n=3): [236, 234, 8].",
        '{"speech_token": [236,234,8], "seconds": 0.12}',
        "generated tokens:\n236\n234\n8",
        "speech_tokens = [\n  236, 234,\n  8,\n]",
        "speech tokens: tensor([[ 236, 234,\n         8 ]])",
    ],
)
def test_token_ids_are_read(log, line):
    (run,) = log(
        "text_ids(2): 5 7\n" + line + "\nprompt_speech_tokens: [1, 2]\nspeech tokens: 3 in 1.5 s\n"
    ).runs
    assert run["lm/speech_token"].tolist() == [236, 234, 8] and run["in/text_token"].tolist() == [5, 7]
    assert run["in/flow_prompt_token"].tolist() == [1, 2]
    assert compare(run, run).rows.set_index("field").loc["lm/speech_token", "verdict"] == "MATCH"


@pytest.mark.parametrize(
    "line",
    [
        "generated_tokens(19): 236 234 8",
        "speech_token = tensor([[236, 234, 8, ..., 4, 5, 6]])",
        "speech_token = tensor([[236, 234, 8,",
        "speech tokens: " + "1234 " * 4000,
    ],
)
def test_token_ids_that_are_not_complete_are_refused(log, line):
    found = log(f"mu max=1.0\n{line}\n")
    assert list(found.runs[0]) == ["flow/mu.stats"] and set(found.problems) == {"format"}


def test_other_token_ids_begin_another_run(log):
    text = "generated_tokens(2): 5 {}\nmel max=1.0\n"
    first, second = log(text.format(6) + text.format(7)).runs
    assert first["lm/speech_token"].tolist() == [5, 6] and second["lm/speech_token"].tolist() == [5, 7]


NODE = "{}:  {} = (f32)  ADD(x_0{{10, 80, 1, 1}}, dxt{{10, 80, 1, 1}}}}) = {{10, 80, 1, 1}}\n  [ 0.1, ...]\n  sum = {}\n"


def test_sums_of_ggml_callbacks_are_means(log):
    text = "".join(NODE.format("common_debug_cb_eval", f"x_t-{k}", 800.0 * (k + 1)) for k in range(3))
    (run,) = log(text + NODE.format("common_debug_cb_eval", "norm-0", 5) + " sum = 7\n").runs
    assert [said(run, "flow/x", k) for k in (1, 2, 3)] == [{"mean": 1}, {"mean": 2}, {"mean": 3}]
    assert run.attrs["shapes"] == {"flow/x": [10, 80, 1, 1]} and list(run) == ["flow/x.stats"]
    found = log("mel max=1.0\n" + NODE.format("ggml_debug", "mu-0", 5))  # adds up the printed values alone
    assert list(found.runs[0]) == ["flow/mel.stats"] and set(found.problems) == {"format"}


# ---- what is refused


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hidden min=3.5", "name"),
        ("hidden min 3.5 max 4.5", "name"),
        ("hidden min/max: 3.5/4.5", "name"),
        ("min=3.5, max=4.5", "no name"),
        ("x step 0 tensor(-4.3497) tensor(3.7801) tensor(-0.0574)", "format"),
        ("mel -4.35 3.78 0.5", "format"),
        ("mel min -> -4.35", "format"),
        ("mel min(-4.35) max(3.5)", "format"),
        ("mel mean(abs)=4.5", "format"),
        ("mel max=[1.5, 2.5]", "format"),
        ("mel min/max/mean = 1.5/2.5", "format"),
        ("| mean_abs | 4.87 | 3.04 |", "format"),
        ("f0 max=1,234", "number"),
        ("f0 min=0.5, max=5.8M", "number"),
        ("f0 min=0.5, max=5 817 890", "number"),
        ("f0 range -4.1..4.2 kHz", "number"),
        ("mel max=1.5*10^3", "number"),
        ("x step 1,000 min=3.5", "step"),
        ("x step=-1 min=3.5", "step"),
    ],
)
def test_a_line_that_cannot_be_read_is_counted_quoted_and_explained(log, line, problem):
    found = log(f"mu max=1.0\n{line}\n")
    assert found.unparsed == 1 and found.problems == {problem: (1, [f"2: {line}"])}
    assert list(found.runs[0]) == ["flow/mu.stats"] and said(found.runs[0], "flow/mu") == {"max": 1}
    assert found.notes == [f"run.log: 1 line with {ADVICE[problem]}; the first: 2: {line}"]
    with pytest.raises(WorkbenchError) as refused:
        log(line + "\n")
    assert line in str(refused.value) and ADVICE[problem] in str(refused.value)


def test_the_advice_fits_the_problem():
    assert "logs.toml" in ADVICE["name"] and "no table of names" in ADVICE["format"]
    assert all("logs.toml" not in advice for problem, advice in ADVICE.items() if problem != "name")


@pytest.mark.parametrize(
    "line",
    ["retry at max 3 times", "mean of 5 runs", "took 3.5 4.5 s", "range of motion", "the min, the max"],
)
def test_prose_is_not_counted(log, line):
    assert log(f"mu max=1.0\n{line}\n").unparsed == 0


def test_the_last_number_of_a_line_that_is_too_long_is_not_cut(log):
    line = "mu min=-1.5 " + "a" * (logs.MAX_LINE_LENGTH - 20) + " max=1.23456\n"
    (run,) = log(line).runs
    assert line[: logs.MAX_LINE_LENGTH].endswith("max=1.2") and said(run, "flow/mu") == {"min": -1.5}


def test_logs_with_other_suffixes_are_opened(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,x_min\n1,-4.5\n")
    assert said(open_run(path), "flow/x", 1) == {"min": -4.5}


LINES = [
    "x step 1 min={} max={}",
    "x step 1 min {} max {}",
    "step 1 x min/max: {}/{}",
    "step=1 x: min: {}, max: {}",
    "step 1 x range [{}, {}]",
    "step 1 x range {}..{}",
    "| step | x min | x max |\n| 1 | {} | {} |",
    "step;x_min;x_max\n1;{};{}",
    "step tensor min max\n1 x {} {}",
    "x step 1 min=tensor({}, device='cuda:0') max=tensor({})",
    '{{"step": 1, "x": {{"min": {}, "max": {}}}}}',
]
# How a program may print a number, and the same number in plain digits.
NUMBERS = [(form, form) for form in (repr, "{:.4f}".format, "{:g}".format, "{:e}".format)]
NUMBERS += [("{:,.2f}".format, "{:.2f}".format), ("{:,.0f}".format, "{:.0f}".format)]
NUMBERS += [(lambda x: f"{x:.4f}".replace(".", ","), "{:.4f}".format)]
NUMBERS += [(lambda x: repr(x).replace("-", "\u2212"), repr)]


@settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    line=st.sampled_from(LINES), form=st.sampled_from(NUMBERS), low=st.floats(-1e9, 0), high=st.floats(0, 1e9)
)
def test_any_floats_in_any_format_are_read_back_exactly_or_refused(log, line, form, low, high):
    printed, plain = form
    found = log("mu max=1.0\n" + line.format(printed(low), printed(high)) + "\n")
    expected = {"min": float(plain(low)), "max": float(plain(high))}
    values = said(found.runs[-1], "flow/x", 1) if "flow/x.stats" in found.runs[-1] else {}
    assert values.items() <= expected.items()
    assert (values == expected) == (found.unparsed == 0)


N = 16_000
SLOW = {
    "digits": "mu min=" + "1" * N + "x",
    "digits in a range": "mu range(" + "1" * N,
    "spaces": "range" + " " * N + "x min" + " " * N,
    "spaces after shape": "shape" + " " * N + "x",
    "stars": "mu min=1" + "*" * N + "1",
    "names": "mu " + "min/" * (N // 4) + ": 1",
    "brackets": "mu min=1 " + "[" * N,
    "ranges": "mu min=1 " + "[1,2]" * (N // 10),
    "calls": "mu max=" + "tensor(" * (N // 7),
    "commas": "mu max=" + "1," * (N // 2),
    "numbers": "mu min/max: " + "1 " * (N // 2),
    "bars": "| min | max " * (N // 12),
    "ids": "speech tokens: " + "1 " * (N // 2) + "x",
    "letters": "a" * N + " = {1}",
    "headings": "step" + " " * N,
}


@pytest.mark.parametrize("name", SLOW)
def test_time_grows_linearly_with_the_length_of_a_line(log, name):
    """10 such lines took up to minutes where a pattern tried each of many ways to match; now they take 0.1 s."""
    text = (SLOW[name] + "\n") * 10 + "mu max=1.5\n"
    seconds = []
    for _ in range(3):  # the least counts: garbage of the tests before may be collected in any of them
        start = time.process_time()
        log(text)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
