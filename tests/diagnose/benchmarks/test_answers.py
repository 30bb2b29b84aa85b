"""Whole processes are timed, and what goes wrong in one of them is told."""

import sys

import pytest

from workbench.cli import main
from workbench.diagnose.benchmarks import answers
from workbench.errors import WorkbenchError


@pytest.mark.process
def test_a_process_is_charged_for_its_work_and_memory():
    idle = answers.cost_of([sys.executable, "-c", ""])
    busy = "import time\nkept = bytearray(b'x') * 200_000_000\nwhile time.process_time() < 0.5: pass"
    cost = answers.cost_of([sys.executable, "-c", busy])
    assert 0 < idle.cpu < 0.5 <= cost.cpu <= 2 * cost.wall
    assert cost.peak - idle.peak == pytest.approx(200e6, rel=0.1)


@pytest.mark.process
def test_a_process_that_found_something_counts_and_one_that_failed_is_told():
    assert answers.cost_of([sys.executable, "-c", "raise SystemExit(1)"]).wall > 0
    with pytest.raises(WorkbenchError, match="ended with 2: no such voice"):
        answers.cost_of([sys.executable, "-c", "print('no such voice'); raise SystemExit(2)"])


def test_answers_take_turns_and_their_median_counts(monkeypatch, tmp_path):
    started = []
    walls = iter([1.0, 10.0, 5.0, 30.0, 3.0, 20.0])

    def cost_of(command):
        started.append(command[-1])
        return answers.Cost(next(walls), 0.5, 2_000_000_000 if len(started) == 3 else 1_000_000_000)

    monkeypatch.setattr(answers, "cost_of", cost_of)
    monkeypatch.setattr(answers, "_bundled", lambda folder, notebooks: {"a": ["first"], "b": ["second"]})
    table = answers.measure_answers().set_index("answer")
    assert started == ["first", "second"] * 3
    assert table.wall_s.to_dict() == {"a": 3.0, "b": 20.0}
    assert table.loc["a"].to_dict() == {
        "wall_s": 3.0,
        "cpu_s": 0.5,
        "low_s": 1.0,
        "high_s": 5.0,
        "peak_gb": 2.0,
    }
    with pytest.raises(WorkbenchError, match="no answer 'c'; expected one of a, b"):
        answers.measure_answers(names=["c"])


@pytest.mark.slow
@pytest.mark.process
def test_the_shell_prints_and_writes_the_cost_of_an_answer(tmp_path, capsys):
    out = tmp_path / "answers.csv"
    assert main(["bench", "answers", "--only", "compare", "--rounds", "1", "-o", str(out)]) == 0
    assert "compare" in capsys.readouterr().out
    assert out.read_text().splitlines()[0] == "answer,wall_s,cpu_s,low_s,high_s,peak_gb"
