"""Figures of diagnoses: headroom, comparison, suspects."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.show.plots.common import STEPS, changed, image, line, rendered, summary, texts
from workbench.diagnose.suspects.diagnosis import Diagnosis
from workbench.diagnose.suspects.verdict import Verdict
from workbench.errors import WorkbenchError

plots = wb.plots


def test_headroom_draws_doublings_and_marks_tight_modules():
    room = {"a": [5.0, 0.5], "b": [9.0, 8.0], "c": [torch.nan, 3.0]}
    rows = [
        {"stage": "flow", "module": name, "step": step, "branch": branch, "doublings": values[step] + more}
        for name, values in room.items()
        for step in (0, 1)
        for branch, more in (("cond", 0.0), ("uncond", 1.0))
    ]
    rows.append({"stage": "hift", "module": "d", "step": None, "branch": None, "doublings": np.inf})
    table = pd.DataFrame(rows)
    table["step"] = table["step"].astype("Int64")
    ax = rendered(plots.headroom(table))
    shown = image(ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "flow: a",
        "flow: b",
        "flow: c",
        "hift: d (once)",
    ]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1"]
    assert shown[:2, :2].tolist() == [[5.0, 0.5], [9.0, 8.0]] and shown[2, 1] == 3
    assert shown.mask[2, 0] and shown[3].tolist() == [9, 9]  # what runs once fills its row
    flags = ax.collections[0].get_offsets()
    assert (
        sorted(flags.tolist()) == [[0.0, 2.0], [1.0, 0.0]] and "doubling: 2" in ax.collections[0].get_label()
    )
    fewest = plots.headroom(table, modules=1)
    assert [text.get_text() for text in fewest.get_yticklabels()] == ["flow: c"]
    for wrong in (table[:0], table.drop(columns="doublings")):
        with pytest.raises(WorkbenchError, match=r"expected what wb\.headroom returns"):
            plots.headroom(wrong)


@pytest.mark.slow
def test_headroom_of_a_run(pipe, trace):
    ax = rendered(plots.headroom(wb.headroom(pipe, trace), modules=8))
    assert len(ax.get_yticklabels()) == 8


@pytest.mark.slow
def test_comparison_draws_errors_by_verdict(trace, one_step):
    mel = trace["flow/mel"] * 1.01
    found = wb.compare(trace, changed(trace, flow_mel=mel, hift_f0=None))
    ax = rendered(plots.comparison(found))
    diverged, match = line(ax, "DIVERGED (1)"), line(ax, "MATCH")
    assert diverged.get_ydata() == pytest.approx(0.01, rel=1e-3)
    assert len(match.get_ydata()) == (found.rows["verdict"] == "MATCH").sum()
    assert len(line(ax, "MISSING (1)").get_ydata()) == 1
    assert line(ax, "the runs part: flow/mel").get_xdata()[0] == diverged.get_xdata()[0]
    assert np.all(np.diff(line(ax, "rounding explains").get_xdata()) > 0)
    assert ax.get_yticklabels()[0].get_text() == "equal" and "1e-2 (40 dB)" in [
        text.get_text() for text in ax.get_yticklabels()
    ]
    rendered(plots.comparison(wb.compare(trace, one_step)))
    rendered(plots.comparison(wb.compare(trace, summary(trace))))
    rendered(plots.comparison(wb.compare(trace, trace)))
    with pytest.raises(WorkbenchError, match="no rows"):
        plots.comparison(wb.compare(wb.Trace({}, {}), wb.Trace({}, {})))


@pytest.mark.slow
def test_comparison_marks_the_first_cause(pipe, trace):
    half = pipe.replay(
        trace, "flow", pipe.checkpoint.options.but(n_timesteps=STEPS, flow_dtype="bfloat16"), wb.EVERYTHING
    )
    ax = rendered(plots.comparison(wb.compare(trace, half, pipe)))
    assert line(ax, "first cause: flow/mu")


def diagnosis(shares, explained_by=()):
    faults = {name: SimpleNamespace(name=name) for name in shares}
    found = [
        SimpleNamespace(fault=faults[name], explained=share, amount="") for name, share in shares.items()
    ]
    verdicts = [Verdict(("flow/mu",), ("flow/mu",), (faults[name],)) for name in explained_by]
    return Diagnosis(verdicts, found, checked=["flow/mu"])


def test_suspects_draws_the_share_of_each():
    ax = rendered(plots.suspects(diagnosis({"rotary": 0.97, "grid": 0.3, "slope": -0.2}, ("rotary",))))
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())
    assert [bar.get_width() for bar in bars] == [0.97, 0.3, 0] and texts(ax) == ["makes it worse"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["rotary", "grid", "slope"]
    assert [bool(bar.get_hatch()) for bar in bars] == [True, False, False]
    assert line(ax, "all of it").get_xdata()[0] == 0.95 and ax.get_ylim()[0] > ax.get_ylim()[1]
    clean = rendered(plots.suspects(diagnosis({})))
    assert clean.get_title("left") == "nothing to explain" and "within rounding" in texts(clean)[0]
