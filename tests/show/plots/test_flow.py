"""Figures of the ODE: statistics of state and velocities, and the gap of guidance."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.show.plots.common import STEPS, changed, line, rendered, summary, texts
from workbench.errors import WorkbenchError
from workbench.trace.schema import STATS

plots = wb.plots


@pytest.mark.slow
@pytest.mark.parametrize("stat", STATS[:-1])
@pytest.mark.parametrize("kept", [lambda trace: trace, summary])
def test_trajectory_draws_the_statistics_of_the_trace(trace, one_step, kept, stat):
    axes = plots.trajectory(kept(trace), reference=one_step, stat=stat)
    names = ("flow/x", "flow/velocity_cond", "flow/velocity_uncond", "flow/velocity")
    for ax, name in zip(axes, names, strict=True):
        for region, row in (("prompt", 0), ("target", 1)):
            mine, other = line(ax, f"{region}, candidate"), line(ax, f"{region}, reference")
            column = STATS.index(stat)
            assert np.array_equal(mine.get_ydata(), trace.statistics(name)[:, row, column])
            assert np.array_equal(other.get_ydata(), one_step.statistics(name)[:, row, column])
            assert np.array_equal(mine.get_xdata(), np.arange(STEPS + (name == "flow/x")))
            assert (mine.get_linestyle(), other.get_linestyle()) == ("-", "--")
            assert other.get_zorder() > mine.get_zorder() and other.get_linewidth() < mine.get_linewidth()
    assert len({one.get_marker() for one in axes[0].get_lines()}) == 2
    assert axes[0].get_title("left") == "x, the state: frames of prompt and target"


def test_trajectory_over_ode_time_and_all_frames(trace):
    axes = plots.trajectory(trace, region="whole", against="t")
    assert np.array_equal(line(axes[0], "whole").get_xdata(), trace["flow/t"])
    assert np.array_equal(line(axes[3], "whole").get_xdata(), trace["flow/t"][:-1])
    assert axes[3].get_title("left") == "guided velocity: all frames"
    rms = trace["flow/x"][2].double().square().mean().sqrt()
    assert line(axes[0], "whole").get_ydata()[2] == pytest.approx(float(rms), rel=1e-6)


def test_trajectory_of_a_replay_begins_at_its_first_step(pipe, trace):
    tail = pipe.replay(trace, "flow/step/1", save=wb.EVERYTHING)
    axes = plots.trajectory(tail)
    assert line(axes[0], "target").get_xdata().tolist() == [1, 2, 3]
    assert "from step 1" in axes[0].figure._supxlabel.get_text()


def test_trajectory_of_a_text_log(trace, log):
    axes = rendered(plots.trajectory(log, reference=trace, stat="max"))
    assert np.array_equal(
        line(axes[0], "whole, candidate").get_ydata(), [np.nan, 1.5, 2.5, np.nan, 4.5], equal_nan=True
    )
    assert len(line(axes[0], "whole, reference").get_ydata()) == STEPS + 1
    assert all("not recorded" in texts(ax)[0] for ax in axes[1:])
    assert len(axes[1].get_legend().get_texts()) == 2
    with pytest.raises(WorkbenchError, match=r"no rms of flow/x.*save=wb\.SUMMARY"):
        plots.trajectory(log)
    timed = plots.trajectory(log, stat="max", against="t")  # dt of step 3 is lacking, and so is all after it
    assert np.isnan(line(timed[0], "whole").get_xdata()[-1])


def test_trajectory_marks_nonfinite_values(trace):
    x = trace["flow/x"].clone()
    x[2, 0, -1] = torch.inf
    axes = rendered(plots.trajectory(changed(trace, flow_x=x)))
    assert line(axes[0], "NaN or Inf").get_xdata().tolist() == [2]
    assert np.isfinite(line(axes[0], "target").get_ydata()).all()


@pytest.mark.parametrize("wrong", [{"stat": "median"}, {"region": "middle"}, {"against": "time"}])
def test_trajectory_rejects_unknown_choices(trace, wrong):
    with pytest.raises(WorkbenchError, match="expected one of"):
        plots.trajectory(trace, **wrong)


def test_guidance_gap_draws_distance_cosine_and_ratio(trace, one_step):
    axes = rendered(plots.guidance_gap(trace, reference=one_step))
    cut = trace.prompt_frames
    c, u = (
        trace[f"flow/velocity_{name}"][:, :, cut:].double().flatten(1).numpy() for name in ("cond", "uncond")
    )
    norm = np.linalg.norm
    expected = [
        norm(c - u, axis=1) / norm(c, axis=1),
        [a @ b / norm(a) / norm(b) for a, b in zip(c, u, strict=True)],
        norm(c, axis=1) / norm(u, axis=1),
    ]
    for ax, values in zip(axes, expected, strict=True):
        assert line(ax, "target, candidate").get_ydata() == pytest.approx(np.array(values), rel=1e-9)
        assert len(line(ax, "prompt, reference").get_ydata()) == 1
        assert ax.get_title("left").endswith("\nprompt and target")
    with pytest.raises(
        WorkbenchError, match=r"velocity_uncond \(.*only statistics.*\); .* save=wb\.EVERYTHING"
    ):
        plots.guidance_gap(summary(trace))


def test_guidance_of_one_step_has_one_tick_and_no_offset_over_its_title(one_step):
    for ax in rendered(plots.guidance_gap(one_step)):
        assert ax.get_xticks().tolist() == [0]
        assert ax.yaxis.get_offset_text().get_text() == ""
