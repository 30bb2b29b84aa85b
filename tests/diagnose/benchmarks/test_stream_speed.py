"""The benchmark of streams measures what it says. No test depends on how fast the machine is."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.cli import main
from workbench.diagnose.benchmarks import stream_speed
from workbench.show import plots


@pytest.fixture
def clocked(voice, monkeypatch):
    """A voice whose streams yield chunks at times that are given, and the calls of the stream."""
    calls = []
    clock = SimpleNamespace(now=0.0)

    def stream_many(pipe, utts, options, state):
        calls.append((options.compute, state.hop, state.max_hop, len(set(map(id, utts)))))
        start = clock.now
        # The second stream comes half a second after the first.
        for ready, samples in ((1.0, 24_000), (1.5, 12_000), (4.0, 6_000)):
            for index in range(len(utts)):
                clock.now = start + ready + 0.5 * index
                yield index, SimpleNamespace(wav=torch.zeros(samples))

    monkeypatch.setattr(stream_speed, "stream_many", stream_many)
    monkeypatch.setattr(stream_speed, "now", lambda device: clock.now)
    monkeypatch.setattr(stream_speed.time, "perf_counter", lambda: clock.now)
    return voice, calls


def test_margin_and_latency_are_those_of_who_listens(clocked):
    voice, calls = clocked
    turns = stream_speed.measure_stream(voice, ways=("eager",), seconds=1.0, streams=(1, 2), rounds=1)
    table = stream_speed.medians(list(turns))
    one = table[(table.streams == 1) & (table.hop == "growing")]
    assert one.ready_s.tolist() == [1.0, 1.5, 4.0] and one.took_s.tolist() == [1.0, 0.5, 2.5]
    assert one.begin_s.tolist() == [0, 1.0, 1.5] and one.audio_s.tolist() == [1.0, 0.5, 0.25]
    # Sound plays from 1.0 on: the second chunk is needed at 2.0, the third at 2.5.
    assert one.margin_s.isna().tolist() == [True, False, False] and one.margin_s.tolist()[1:] == [0.5, -1.5]
    two = table[(table.streams == 2) & (table.hop == "fixed")]
    assert two.ready_s.tolist() == [1.5, 2.0, 4.5]  # of the slower
    assert calls[:4] == [
        ("eager", 25, None, 1),
        ("eager", 25, None, 2),
        ("eager", 25, 25, 1),
        ("eager", 25, 25, 2),
    ]
    assert len(calls) == 8  # one round to warm up, one that counts
    row = stream_speed.summary(table).set_index(["compute", "hop", "streams"]).loc[("eager", "growing", 1)]
    assert row.tolist() == [1.0, 2.5, -1.5, 4.0, 1.75]


@pytest.mark.parametrize("given", [{"streams": (0,)}, {"rounds": 0}, {"seconds": -1}, {"ways": ("quick",)}])
def test_numbers_that_measure_nothing_are_refused(voice, given):
    with pytest.raises(wb.WorkbenchError, match="expected"):
        next(stream_speed.measure_stream(voice, **given))


def test_a_run_that_is_cut_off_keeps_the_turns_before_it(clocked, tmp_path, monkeypatch):
    voice, calls = clocked
    whole = stream_speed.stream_many

    def cut_off(*given):
        if len(calls) == 3:  # two turns to warm up, one that counts
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(stream_speed, "stream_many", cut_off)
    monkeypatch.setattr(wb.Checkpoint, "load", lambda *args: voice)
    out = tmp_path / "stream.csv"
    assert main(["bench", "stream", "--seconds", "1", "--rounds", "1", "--out", str(out)]) == 130
    table = pd.read_csv(out)
    assert set(table.hop) == {"growing"} and table.ready_s.tolist() == [1.0, 1.5, 4.0]


@pytest.mark.slow
def test_bench_writes_the_table_that_the_figure_reads(tmp_path, voice, monkeypatch, capsys):
    short = replace(voice, options=voice.options.but(n_timesteps=1))
    monkeypatch.setattr(wb.Checkpoint, "load", lambda *args: short)
    out = tmp_path / "stream.csv"
    command = "bench stream --seconds 1.2 --streams 1 --streams 2 --rounds 1 --out"
    assert main([*command.split(), str(out)]) == 0
    table = pd.read_csv(out)
    assert set(table.compute) == {"eager"} and set(table.streams) == {1, 2}
    assert (table.took_s > 0).all() and table.groupby(["hop", "streams"]).audio_s.sum().max() <= 1.2
    assert "least_margin_s" in capsys.readouterr().out
    axes = plots.stream_chunks(table)
    assert [len(ax.get_lines()) for ax in axes] == [4, 5]  # and the line at 0
    plt.close(axes[0].figure)


def test_the_figure_names_columns_that_are_missing():
    with pytest.raises(wb.WorkbenchError, match="lacks streams, margin_s"):
        plots.stream_chunks(pd.DataFrame(columns=["compute", "hop", "begin_s", "took_s"]))
