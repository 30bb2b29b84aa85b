"""Text logs: the statistics of lines, how lines are grouped into runs, comparison with traces, hostile files."""

import math
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from tests.trace.whole_stats import whole_stats
from workbench.cli import main
from workbench.diagnose.compare.compare import compare
from workbench.diagnose.compare.plausibility import implausible
from workbench.errors import WorkbenchError
from workbench.trace.importers.logs import logs
from workbench.trace.importers.logs.log_lines import NAMES
from workbench.trace.importers.logs.log_runs import MAX_RUNS, MAX_STEPS
from workbench.trace.importers.logs.logs import read_log
from workbench.trace.importers.open_run import open_run
from workbench.trace.schema import STATS
from workbench.trace.trace import Trace

ABOUT = {"sample_rate": 24000, "timings": {}, "prompt_frames": 4}


@pytest.fixture
def log(tmp_path):
    """Write a text and read it."""

    def read(text, **more):
        path = tmp_path / "run.log"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_log(path, **more)

    return read


def said(trace, field, index=None):
    """The statistics of a field that a log printed."""
    values = zip(STATS, whole_stats(trace, field, index).tolist(), strict=True)
    return {what: value for what, value in values if value == value}


# ---- lines


@pytest.mark.parametrize(
    ("line", "field", "index", "expected"),
    [
        (
            "    [PY ODE] step 1: x min=-4.1100, max=4.1800, mean_abs=0.8000, dt=0.012312",
            "flow/x",
            1,
            {"min": -4.11, "max": 4.18, "mean_abs": 0.8},
        ),
        ("[RUST ODE] step 10: x max=7.80, mean_abs=9.59", "flow/x", 10, {"max": 7.8, "mean_abs": 9.59}),
        ("[RUST CFM DEBUG] step 10: v1 mean=-3.16, v2 mean=-3.76", "flow/velocity_cond", 9, {"mean": -3.16}),
        (
            "[RUST CFM DEBUG] step 10: v1 mean=-3.16, v2 mean=-3.76",
            "flow/velocity_uncond",
            9,
            {"mean": -3.76},
        ),
        (
            "    [PY CFM DEBUG] v1 mean=-4.886719, v2 mean=-4.917969",
            "flow/velocity_uncond",
            0,
            {"mean": -4.917969},
        ),
        ("[PY CFM DEBUG] v_cfg mean=-4.86", "flow/velocity", 0, {"mean": -4.86}),
        ("  [PY DEBUG] mu min=-4.09, max=4.63", "flow/mu", None, {"min": -4.09, "max": 4.63}),
        ("  [PY STATS] flow_mel: min=-11.62, max=2.61", "flow/mel", None, {"min": -11.62, "max": 2.61}),
        ("[PY DEBUG] hift_audio min=-0.89, max=0.94", "hift/wav", None, {"min": -0.89, "max": 0.94}),
        (
            "    mu stats: min=-4.27, max=4.63, mean=0.01",
            "flow/mu",
            None,
            {"min": -4.27, "max": 4.63, "mean": 0.01},
        ),
        ("decoder output stats: min=-11.48, max=7.97", "flow/x", 10, {"min": -11.48, "max": 7.97}),
        (
            "decoder output: min=-4.11, max=4.15, mean_abs=0.8",
            "flow/x",
            10,
            {"min": -4.11, "max": 4.15, "mean_abs": 0.8},
        ),
        (
            "    F0 stats: min=0.0 Hz, max=266.2 Hz, mean=100.5 Hz",
            "hift/f0",
            None,
            {"min": 0, "max": 266.2, "mean": 100.5},
        ),
        ("    [decode] magnitude (after exp): max=22.0", "hift/magnitude", None, {"max": 22}),
        ("    source stats: mean=1e-3", "hift/source", None, {"mean": 0.001}),
        ("[HiFT.forward] audio stats: mean=-1.5e-05", "hift/wav", None, {"mean": -1.5e-5}),
        (
            "2026-01-10T13:33:37Z DEBUG native_server::flow: Final mel stats: max=2.61",
            "flow/mel",
            None,
            {"max": 2.61},
        ),
        ("2026-01-10 13:33:37,079 INFO mu: max=2.61", "flow/mu", None, {"max": 2.61}),
        ("\x1b[32mINFO\x1b[0m mu stats: \x1b[1mmax=2.61\x1b[0m", "flow/mu", None, {"max": 2.61}),
        (
            "flow:  30%|███   | 3/10 [00:01<00:02, 2.5it/s][PY ODE] step 3: x max=0.92",
            "flow/x",
            3,
            {"max": 0.92},
        ),
        ("- **Rust step 10:** x min=-11.73, max=7.77.", "flow/x", 10, {"min": -11.73, "max": 7.77}),
        ("1. `mu` stats: max=4.6, mean_abs=0.5", "flow/mu", None, {"max": 4.6, "mean_abs": 0.5}),
        ("- After slice: flow_mel max=2.61", "flow/mel", None, {"max": 2.61}),
        ("x_in: batch=2, mean=0.25", "flow/x", 0, {"mean": 0.25}),
        ('{"step": 3, "x": {"min": -1.5, "max": 2}}', "flow/x", 3, {"min": -1.5, "max": 2}),
        ("step=3 x_min=-1.5 x_max=2", "flow/x", 3, {"min": -1.5, "max": 2}),
        ("mu: min: tensor(-1.5), max: tensor(2., device='cuda:0')", "flow/mu", None, {"min": -1.5, "max": 2}),
        ("x max=2.5 after step 3", "flow/x", 3, {"max": 2.5}),
        ("mu range [-1.5, 2.0]", "flow/mu", None, {"min": -1.5, "max": 2}),
        ("audio Mean Abs: 0.3", "hift/wav", None, {"mean_abs": 0.3}),
        ("mu min=-inf, max=nan, mean=0.5", "flow/mu", None, {"mean": 0.5, "nonfinite": 1}),
        ("mu nan=7, max=2", "flow/mu", None, {"max": 2, "nonfinite": 7}),
        ("mu mean=3.0, std=4.0", "flow/mu", None, {"mean": 3, "rms": 5}),
    ],
)
def test_one_line_gives_its_statistics(log, line, field, index, expected):
    found = log("Loading the model.\n" + line + "\nDone.\n")
    assert len(found.runs) == 1 and found.lines == 3 and found.unparsed == 0
    assert said(found.runs[0], field, index) == pytest.approx(expected)


def test_statistics_that_are_not_printed_are_nan(log):
    (run,) = log("[PY ODE] step 3: x max=2.5\n[PY DEBUG] flow_mel mean_abs=4.87\n").runs
    assert run["flow/x.stats"].shape == (4, 3, 6) and run["flow/mel.stats"].shape == (6,)
    assert int(run["flow/x.stats"].isfinite().sum()) == 1  # neither prompt nor target, nor other knots
    table = run.stats("flow/x")
    assert table.loc[(3, "whole"), "max"] == 2.5 and table.loc[(3, "prompt")].isna().all()
    assert run.to_frame().loc["flow/x.stats", "max"] == 2.5
    assert math.isnan(run.to_frame().loc["flow/x.stats", "min"])


def test_a_heading_gives_source_and_tensor_to_the_lines_below_it(log):
    (run,) = log(
        "[PY CFG Inputs]\n  x_in: batch=2, mean=0.5\n  mu_in[0]: mean=0.25, mu_in[1]: mean=0.0\n"
        "  spks_in[0]: mean=0.125, spks_in[1]: mean=0.0\n"
        "[PY CFG Inputs]\n  x_in: batch=2, mean=0.75\n  mu_in[0]: mean=0.25, mu_in[1]: mean=0.0\n"
        "**Python Flow Mel stats:**\n- min=-11.62, max=2.61\n"
        "HiFT audio:\n  min: -0.5\n  max: 0.75\n"
        "Elsewhere.\n"
    ).runs
    assert run.attrs["tag"] == "PY"
    assert said(run, "flow/x", 0) == {"mean": 0.5} and said(run, "flow/x", 1) == {"mean": 0.75}
    assert said(run, "flow/mu") == {"mean": 0.25} and said(run, "flow/spks") == {"mean": 0.125}
    assert said(run, "flow/mel") == {"min": -11.62, "max": 2.61}
    assert said(run, "hift/wav") == {"min": -0.5, "max": 0.75}


def test_a_line_may_announce_the_step_of_the_next_lines(log):
    lines = "    [Flow parity] solver step {}/2\n    [V DEBUG] rust_v1 stats: mean={}, first 5=[0.5, 0.6]\n"
    (run,) = log(lines.format(1, 0.5) + lines.format(2, 0.25)).runs
    assert said(run, "flow/velocity_cond", 0) == {"mean": 0.5}
    assert said(run, "flow/velocity_cond", 1) == {"mean": 0.25} and run.attrs["tag"] == "RUST"


def test_lines_without_a_step_belong_to_the_next_line_with_one(log):
    """As in the case, where velocities are printed before the state they lead to, and not at every step."""
    (run,) = log(
        "[RUST ODE] step 1: x max=1.0\n[RUST ODE] step 2: x max=2.0\n"
        "[RUST CFM DEBUG] v1 mean=0.5\n[RUST CFM DEBUG] v_cfg mean=0.25\n[RUST ODE] step 3: x max=3.0\n"
        "decoder output stats: max=3.00\n"
    ).runs
    assert said(run, "flow/velocity_cond", 2) == {"mean": 0.5} and said(run, "flow/velocity", 2) == {
        "mean": 0.25
    }
    assert said(run, "flow/velocity_cond", 0) == {} and run["flow/x.stats"].shape[0] == 4


def test_steps_may_count_from_0(log):
    (run,) = log("".join(f"[CPP] step {k}: v1 mean=0.{k}5, x max={k}.5\n" for k in range(3))).runs
    assert said(run, "flow/velocity_cond", 2) == {"mean": 0.25} and said(run, "flow/x", 3) == {"max": 2.5}
    (run,) = log("".join(f"[CPP] step {k}: x max={k}.5\n" for k in range(3))).runs  # 0 is the noise
    assert said(run, "flow/x", 0) == {"max": 0.5} and said(run, "flow/x", 2) == {"max": 2.5}


def test_step_widths_add_up_to_the_knots(log):
    (run,) = log("".join(f"[PY ODE] step {k}: x max=1.0, dt=0.{k}\n" for k in (1, 2, 3))).runs
    knots = [said(run, "flow/t", k).get("mean") for k in range(4)]
    assert knots[0] is None and knots[1:] == pytest.approx([0.1, 0.3, 0.6])


def test_shapes_and_the_prompt_length_are_read(log):
    (run,) = log(
        "prompt_mel_len=174, total_mel_len=346\nmu (to decoder) shape: [1, 80, 346]\n"
        "mu stats: max=2.0\ntts_mel shape=torch.Size([1, 80, 172]), upsampled f0 shape: [1, 1, 82560]\n"
    ).runs
    assert run.attrs["shapes"] == {"flow/mu": [1, 80, 346], "flow/mel": [1, 80, 172]}
    assert run.prompt_frames == 174


# ---- runs


def test_two_sources_in_one_log_are_two_runs(log):
    found = log(
        "[PY DEBUG] mu max=4.5\n[RUST ODE] step 1: x max=1.5\n[PY ODE] step 1: x max=1.25\n"
        "[RUST ODE] step 2: x max=2.5\n[PY ODE] step 2: x max=2.25\n"
    )
    py, rust = found.runs
    assert (py.attrs["tag"], rust.attrs["tag"]) == ("PY", "RUST")
    assert said(py, "flow/x", 2) == {"max": 2.25} and said(rust, "flow/x", 2) == {"max": 2.5}
    assert "flow/mu.stats" in py and "flow/mu.stats" not in rust
    assert py.attrs["lines"] == [1, 5] and rust.attrs["lines"] == [2, 4]


def test_one_source_can_print_several_runs(log):
    one = "mu stats: max={}\nv1 mean=0.5\n[PY ODE] step 1: x max=1.0\nv1 mean=0.25\n[PY ODE] step 2: x max=2.0\n"
    end = "[PY DEBUG] hift_audio max=0.5\n"
    first, second = log(one.format(4.5) + end + one.format(4.25) + end).runs
    assert said(first, "flow/mu") == {"max": 4.5} and said(second, "flow/mu") == {"max": 4.25}
    assert set(first) == set(second) and said(second, "flow/velocity_cond", 0) == {"mean": 0.5}
    assert len(log((one.format(4.5) + end) * 3).runs) == 3  # the ODE follows the sound
    assert len(log("[PY ODE] step 1: x max=1.0\n[PY ODE] step 2: x max=2.0\n" * 2).runs) == 2  # steps restart
    assert len(log("mu max=1.0\nmu max=1.00\nmu max=1.1\n").runs) == 2  # other numbers of one tensor


def test_a_run_from_a_log_can_be_saved(log, tmp_path):
    (run,) = log("[PY ODE] step 1: x max=1.0\nx shape: [1, 80, 9]\n").runs
    back = Trace.load(run.save(tmp_path / "run.trace"))
    assert back.attrs == run.attrs and torch.equal(
        back["flow/x.stats"].nan_to_num(9), run["flow/x.stats"].nan_to_num(9)
    )


def test_runs_are_picked_by_number(log, tmp_path):
    found = log("mu max=1.0\nmu max=2.0\n")
    assert said(found.pick(2), "flow/mu") == {"max": 2}
    assert said(open_run(f"{tmp_path}/run.log#1"), "flow/mu") == {"max": 1}
    for number in (None, 0, 3):
        with pytest.raises(WorkbenchError, match=r"2 runs .*run\.log#2 is no source, lines 2 to 2, flow/mu"):
            found.pick(number)
    (tmp_path / "a#2.log").write_text("mu max=3.0\n")
    assert said(open_run(tmp_path / "a#2.log"), "flow/mu") == {"max": 3}
    assert "2 runs in 2 lines" in repr(found) and "#2" in found._repr_html_()


def test_lines_that_are_not_understood_are_quoted(log):
    found = log("mu max=1.0\nhidden min=3.5\n" + "[PY ODE] step 999999: x max=1.0\n" * 9)
    assert (
        found.unparsed == 10
        and found.examples[0] == "2: hidden min=3.5"
        and len(found.examples) == logs.MAX_EXAMPLES
    )
    assert "hidden min=3.5" in found.notes[0] and found.notes == found.runs[0].attrs["notes"]
    assert any("hidden" in text for text in compare(found.runs[0], found.runs[0]).hints)
    with pytest.raises(WorkbenchError, match=r"none of 1 lines .*hidden min"):
        log("hidden min=3.5\n")


def test_a_table_of_ones_own_adds_names(log, tmp_path):
    path = tmp_path / "mine.toml"
    table = NAMES.read_text().replace("first = 1", "first = 0")
    path.write_text(table + '\n[[tensors]]\nfield = "flow/mu"\nnames = ["hidden_state"]\n')
    (run,) = log("hidden_state min=3.5\n[PY ODE] step 0: x max=1.0\nstep 0 v1 mean=2.0\n", names=path).runs
    assert said(run, "flow/mu") == {"min": 3.5} and said(run, "flow/x", 1) == {"max": 1}
    assert said(run, "flow/velocity_cond", 0) == {"mean": 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "steps",
        '[statistics]\nmin = ["min"]',
        '[[tensors]]\nnames = ["x"]',
        '[statistics]\nwobble = ["min"]\n[[tensors]]\nnames = ["x"]',
        '[statistics]\nmin = ["min"]\n[[tensors]]\nfield = "flow/wobble"\nnames = ["x"]',
        '[statistics]\nmin = ["min"]\n[[tensors]]\nfield = "flow/mu"\nknot = "after"\nnames = ["x"]',
        '[statistics]\nmin = ["min"]\n[[tensors]]\nfield = "flow/x"\nknot = "during"\nnames = ["x"]',
        '[statistics]\nmin = 3\n[[tensors]]\nnames = ["x"]',
        "tensors = 3\nstatistics = 4",
    ],
)
def test_broken_tables_are_refused(log, tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(WorkbenchError, match=r"mine\.toml could not be read as a table"):
        log("mu max=1.0\n", names=tmp_path / "mine.toml")


# ---- compared


@pytest.fixture
def whole():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 80, 12, generator=draw) * torch.tensor([1.0, 1.1, 2.0, 4.0])[:, None, None]
    mel = torch.randn(80, 8, generator=draw) - 6
    data = {"flow/mu": torch.randn(80, 12, generator=draw), "flow/x": x, "flow/mel": mel}
    return Trace(data, ABOUT)


def printed(trace, **changes):
    """The log that a program would write of a trace."""
    lines = [line_of(trace, "flow/mu", None, "[RUST DEBUG] mu", changes)]
    lines += [line_of(trace, "flow/x", k, f"[RUST ODE] step {k}: x", changes) for k in (1, 2, 3)]
    return "\n".join([*lines, line_of(trace, "flow/mel", None, "[RUST DEBUG] final mel", changes), ""])


def line_of(trace, field, k, name, changes):
    low, high, mean, mean_abs, *_ = whole_stats(trace, field, k).tolist()
    values = {"min": low, "max": high, "mean": mean, "mean_abs": mean_abs}
    values = {what: changes.get(f"{field}{k or ''}.{what}", value) for what, value in values.items()}
    return f"{name} " + ", ".join(
        f"{what}={value:.4f}" for what, value in values.items() if value is not None
    )


def test_a_log_of_the_same_run_is_alike(log, whole):
    (run,) = log(printed(whole)).runs
    for pair in ((whole, run), (run, whole)):
        found = compare(*pair)
        assert found.verdict == "MISSING" and "5 rows have statistics that are alike" in found.line
        rows = found.rows.set_index(["field", "index"])
        assert rows.loc[("flow/x", 2), "verdict"] == "ALIKE" and not found.ok  # alike is not equal
        assert rows.loc[("flow/x", 2), "note"] == "min, max, mean, mean_abs alike"
        assert rows.loc[("flow/x", 0), "verdict"] == "MISSING"  # the log does not print it
        assert rows.loc[("flow/x", 2), "norm_ratio"] == pytest.approx(1, abs=1e-3)
    assert compare(run, run).verdict == "ALIKE"


def test_the_first_statistic_that_differs_is_named(log, whole):
    (run,) = log(printed(whole, **{"flow/x2.max": 7.9, "flow/mel.mean": None})).runs
    found = compare(whole, run)
    assert found.verdict == "DIVERGED" and "the runs part at flow/x[2] (DIVERGED, max " in found.line
    assert "and 7.9" in found.line and "record tensors" in found.line
    rows = found.rows.set_index(["field", "index"])
    assert rows.loc[("flow/x", 1), "verdict"] == rows.loc[("flow/x", 3), "verdict"] == "ALIKE"


def test_statistics_of_all_frames_are_not_compared_with_the_target(log, whole):
    """A log that prints the whole is compared with the whole, though the reference knows regions."""
    whole["flow/x"][3, 0, 0] = 99.0  # in the prompt
    state = whole["flow/x"][3]
    verdicts = {}
    for who, part in (("whole", state), ("target", state[:, 4:])):
        (run,) = log(
            f"[PY ODE] step 3: x max={float(part.max()):.3f}\ndecoder output: max={float(part.max()):.3f}\n"
        ).runs
        assert list(run) == ["flow/x.stats"]  # and not flow/mel, which is the target alone
        verdicts[who] = compare(whole, run).rows.set_index(["field", "index"]).loc[("flow/x", 3), "verdict"]
    assert verdicts == {"whole": "ALIKE", "target": "DIVERGED"}


def test_an_equal_mean_alone_is_noted_as_weak_evidence(log, whole):
    mean = float(whole["flow/mu"].mean())
    (run,) = log(f"mu mean={mean:.6f}\n").runs
    row = compare(whole, run).rows.set_index("field").loc["flow/mu"]
    assert row["verdict"] == "ALIKE" and row["note"] == "mean alike alone, which proves little"


def test_values_are_compared_to_the_printed_digits(log):
    coarse, fine, other = (log(f"mu mean_abs={text}\n").runs[0] for text in ("0.80", "0.8049", "0.806"))
    assert compare(coarse, fine).verdict == "ALIKE" and compare(coarse, other).verdict == "DIVERGED"
    assert compare(fine, other).verdict == "DIVERGED"


def test_nan_in_a_log_is_reported_as_nonfinite(log, whole):
    (run,) = log("mu min=-1.0, max=nan\n").runs
    assert compare(whole, run).verdict == compare(run, run).verdict == "NONFINITE"
    assert any("NaN or Inf" in text for text in compare(whole, run).hints)


def test_hints_name_other_noise_and_growth(log):
    line = "[PY ODE] step {}: x max={}, mean_abs={}\n"
    a = log(line.format(1, 4.18, 0.80) + line.format(5, 4.05, 1.57) + line.format(10, 4.28, 4.91)).runs[0]
    b = log(line.format(1, 4.15, 0.80) + line.format(5, 4.36, 2.89) + line.format(10, 7.80, 9.59)).runs[0]
    found = compare(a, b)
    assert "other noise?" in found.hints[0] and "1.95 times at flow/x[10]" in found.hints[1]
    assert list(found.rows["index"]) == [1, 5, 10]  # no rows for what neither printed


def test_shapes_in_logs_are_compared(log, whole):
    (run,) = log("mu shape: [1, 300, 80]\nmu max=2.0\nprompt_mel_len=6\n").runs
    guards = compare(whole, run).input_differences
    assert "flow/mu: shapes (80, 12) and (1, 300, 80)" in guards and "prompt_frames: 4 and 6" in guards
    (same,) = log("mu shape: [1, 12, 80]\nmu max=2.0\n").runs
    assert compare(whole, same).input_differences == []


def test_plausibility_does_not_mix_statistics_of_several_knots(log):
    (run,) = log("[PY ODE] step 1: x min=-4.0, max=4.0\n[PY ODE] step 2: x mean_abs=9.0, mean=-9.0\n").runs
    assert implausible(run) == [] == implausible(log("x step 1 min=-1.0, mean_abs=2.0\n").runs[0])
    (run,) = log("[PY ODE] step 1: x max=4.0\n[PY ODE] step 2: x min=-1.0, max=2.0, mean=9.0\n").runs
    assert implausible(run)[0].startswith("flow/x[2]: min -1, max 2, mean 9 cannot be of one tensor")


def test_statistics_that_no_tensor_can_have_are_named(log):
    hints = compare(
        *log("mu min=-2.0, max=2.0, mean_abs=9.0\naudio mean=0.5\nf0 max=103590\n").runs * 2
    ).hints
    assert any("cannot be of one tensor" in text for text in hints)
    assert any("DC offset" in text for text in hints) and any("103,590 Hz" in text for text in hints)


def test_recorded_summaries_are_compared_like_logs(whole):
    from workbench.trace.record import SUMMARY, Recorder

    recorder = Recorder(SUMMARY)
    for x in whole["flow/x"]:
        recorder.add("flow/x", x, 4)
    kept = Trace(recorder.finish(), ABOUT)
    assert set(compare(Trace({"flow/x": whole["flow/x"]}, ABOUT), kept).rows["verdict"]) == {"ALIKE"}
    moved = whole["flow/x"].clone()
    moved[1, 0, 0] = 1.0  # in the prompt
    moved[1, 0, 1] += whole["flow/x"][1, 0, 0] - 1.0  # so that the mean stays
    found = compare(Trace({"flow/x": moved}, ABOUT), kept)
    assert found.verdict == "DIVERGED" and "flow/x[1]" in found.line


def test_the_shell_compares_a_trace_with_a_log(tmp_path, whole, capsys):
    a, b = tmp_path / "a.trace", tmp_path / "b.log"
    whole.save(a)
    b.write_text(printed(whole) + printed(whole, **{"flow/x2.max": 7.9}))
    assert main(["compare", str(a), f"{b}#1"]) == 0
    assert "MISSING; 5 rows have statistics that are alike" in capsys.readouterr().out
    assert main(["compare", str(a), f"{b}#2"]) == 1
    assert capsys.readouterr().out.startswith("DIVERGED; the runs part at flow/x[2]")
    for wrong in (str(b), f"{b}#9", str(tmp_path / "none.log")):
        assert main(["compare", str(a), wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
    assert main(["compare", f"{b}#1", f"{b}#1", "--names", str(tmp_path / "none.toml")]) == 2


# ---- broken and hostile files


def test_other_encodings_and_line_ends_are_read(log):
    text = "mu max=1.5\r\n\rflow 3/10\r[PY ODE] step 1: x max=2.5\n"
    for data in (text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), b"\xff\x80 \xfe\n" + text.encode()):
        (run,) = log(data).runs
        assert said(run, "flow/mu") == {"max": 1.5} and said(run, "flow/x", 1) == {"max": 2.5}


def test_files_without_statistics_are_refused(log, tmp_path):
    for data in (
        b"[PY ODE] step 7: dt=0.5\n[PY ODE] step 1: dt=nan\n",
        b"",
        b"\0" * 100,
        b"hello\n",
        bytes(range(256)) * 50,
        b"\xff\xfe\x00",
    ):
        with pytest.raises(WorkbenchError, match=r"run\.log: none of \d+ lines"):
            log(data)
    for path in (tmp_path / "none.log", tmp_path):
        with pytest.raises(WorkbenchError, match="cannot be read"):
            read_log(path)


def test_a_prompt_length_that_is_no_number_is_ignored(log):
    (run,) = log("prompt_mel_len=nan\nprompt_mel_len=tensor(inf)\nmu max=1.5\n").runs
    assert said(run, "flow/mu") == {"max": 1.5} and "prompt_frames" not in run.attrs


def test_a_long_line_is_cut(log):
    (run,) = log(
        "a" * 100_000 + " mu max=1.5\nmu max=2.5" + " " * 100_000 + "mu max=3.5\nx step 1 x max=1.0\n"
    ).runs
    assert said(run, "flow/mu") == {"max": 2.5} and said(run, "flow/x", 1) == {"max": 1}


def test_the_number_of_runs_steps_and_lines_is_bounded(log, monkeypatch):
    many = "".join(f"mu max={k}.5\n" for k in range(MAX_RUNS + 50))
    found = log(many)
    assert len(found.runs) == MAX_RUNS and found.left_out == 50 and "too many" in found.notes[0]
    monkeypatch.setattr(logs, "MAX_LINES", 10)
    assert log(many).left_out == MAX_RUNS + 40
    found = log("".join(f"v1 mean={k}.5\n" for k in range(5000)) + "mu max=1.0\n")
    assert (
        max(len(run["flow/velocity_cond.stats"]) for run in found.runs if "flow/velocity_cond.stats" in run)
        <= MAX_STEPS + 1
    )


@pytest.mark.slow
def test_a_huge_log_needs_little_memory(tmp_path):
    """200 MB: 175 in one line without an end, then many lines that print nothing, then a run."""
    path = tmp_path / "huge.log"
    with open(path, "wb") as file:
        file.write(b"mu max=1.5\n")
        file.truncate(175_000_000)  # a hole, so that nothing is written to the disk
        file.seek(0, 2)
        file.write(b"\nINFO " + b"x" * 80_000)
        file.write((b"INFO nothing to see here, but a rather long line all the same" * 80 + b"\n") * 4_900)
        file.write(b"[PY ODE] step 1: x max=2.5\n")
    assert path.stat().st_size > 198_000_000
    tracemalloc.start()
    try:
        (run,) = read_log(path).runs
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # a line and what was found, not the file
    assert said(run, "flow/mu") == {"max": 1.5} and said(run, "flow/x", 1) == {"max": 2.5}


PIECES = st.sampled_from(
    [
        "[PY ODE] ",
        "[RUST CFM DEBUG] ",
        "step 1: ",
        "step 99999999999999: ",
        "step 0 ",
        "x ",
        "v1 ",
        "v2 ",
        "mu_in[1]: ",
        "decoder output ",
        "mel ",
        "min=-4.11",
        ", max=1e999",
        "mean: nan",
        "mean_abs=-inf",
        ", dt=0e999",
        ", dt=0.1",
        "std=9",
        "nan=3",
        "shape: [1, 80]",
        "shape=()",
        "range [1, 2]",
        "\n",
        "\r",
        "\n  ",
        ":\n",
        "**",
        "`",
        "(",
        ")",
        "[",
        "]",
        "\x1b[0m",
        "prompt_mel_len=7",
        "=",
        ":",
        " ",
        "é",
        "\x00",
    ]
)


@settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(PIECES, max_size=60))
def test_any_text_gives_runs_or_an_error(log, pieces):
    try:
        found = log("".join(pieces))
    except WorkbenchError as error:
        assert "none of" in str(error)
        return
    for run in found.runs:
        assert repr(found) and len(run) and compare(run, run).verdict
        assert max(len(value) for value in run.values()) <= MAX_STEPS + 2
