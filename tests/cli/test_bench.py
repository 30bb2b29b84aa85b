"""`workbench bench`: each benchmark has its own options, and passes them on."""

import pandas as pd
import pytest

from workbench.cli import main


@pytest.mark.parametrize(
    ("benchmark", "option"),
    [("speed", "--tokens"), ("deviation", "--rounds"), ("trace", "--sentences"), ("glitches", "--batch")],
)
def test_options_of_another_benchmark_are_refused(benchmark, option, capsys):
    assert main(["bench", benchmark, option, "3"]) == 2
    assert f"No such option: {option}" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", ["speed", "deviation", "trace", "glitches"])
def test_an_unknown_device_is_an_error(benchmark, capsys):
    assert main(["bench", benchmark, "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err


def test_cost_of_recording_is_printed_and_written(tmp_path, capsys, monkeypatch):
    table = pd.DataFrame({"mode": ["silent"], "seconds": [1.5], "ratio": [1.25], "megabytes": [0.25]})
    asked = []

    def measured(pipe, utt, options, rounds):
        asked.append((options.max_tokens, rounds))
        return table.set_index("mode")

    monkeypatch.setattr("workbench.diagnose.benchmarks.trace_overhead.trace_cost", measured)
    out = tmp_path / "trace.csv"
    assert main(["bench", "trace", "--tokens", "12", "--rounds", "2", "-o", str(out)]) == 0
    assert asked == [(12, 2)]
    assert "silent" in capsys.readouterr().out
    assert pd.read_csv(out).equals(table)


@pytest.mark.parametrize(
    "verb",
    [["suspects", "--self-test"], *(["bench", name] for name in ("speed", "deviation", "trace", "glitches"))],
)
def test_a_result_that_cannot_be_written_is_refused_before_the_work(verb, tmp_path, capsys, monkeypatch):
    def opened(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("workbench.cli.compare.open_pipe", opened)
    monkeypatch.setattr("workbench.cli.bench.open_pipe", opened)
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "x.csv", tmp_path / ("x" * 300)):
        assert main([*verb, "-o", str(out)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_heard_says_what_it_was_not_given(tmp_path, capsys):
    texts = tmp_path / "texts.tsv"
    texts.write_text("id\ttext\nh0\tHm.\n")
    given = ["--weights", "q8_0", "--judge", "nobody"]
    for words, message in (
        ([str(tmp_path / "none.tsv"), *given], "none.tsv is missing"),
        ([str(texts), *given], "has no column speaker"),
        ([str(texts), "--weights", "q9", "--judge", "nobody"], "there is no format 'q9'"),
    ):
        assert main(["bench", "heard", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_heard_writes_words_runs_and_changes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "workbench.diagnose.experiments.judges.judge_of", lambda judge: lambda wav, rate: "Is late"
    )
    monkeypatch.setattr("workbench.diagnose.quantisation.heard.dnsmos", lambda sound: 3.0)
    texts = tmp_path / "texts.tsv"
    texts.write_text("speaker\ttext\nkumo\tIt is late.\n")
    out = [str(tmp_path / name) for name in ("table.csv", "rows.csv", "change.csv")]
    words = ["--weights", "q8_0", "--judge", "own", "-o", out[0], "--rows", out[1], "--change", out[2]]
    assert main(["bench", "heard", str(texts), *words]) == 0
    assert "Words misheard of 3: 33.3 % -> 33.3 %" in capsys.readouterr().out
    table, rows, change = (pd.read_csv(path) for path in out)
    assert table["tokens"].tolist() == rows["tokens"].tolist() == ["own", "same"]
    assert set(rows["wrong"]) == {1} and change["sound_db"][0] > 0


def test_formats_are_timed_and_written(tmp_path, capsys):
    out = tmp_path / "formats.csv"
    assert main(["bench", "formats", "--rounds", "1", "-o", str(out)]) == 0
    assert "int8:channel" in capsys.readouterr().out
    assert pd.read_csv(out)["format"].is_unique
