"""Figures of the mel: the mel of the target, the difference of two, the states of the ODE."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.show.plots.common import STEPS, changed, image, rendered, texts
from workbench.errors import WorkbenchError

plots = wb.plots


def test_mel_draws_the_mel_with_tokens_on_the_upper_axis(trace):
    ax = rendered(plots.mel(trace))
    assert np.array_equal(image(ax), trace["flow/mel"].double())
    assert ax.get_xlim() == (0, pytest.approx(trace.seconds))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("seconds", "mel bin")
    labels = [text.get_text() for text in ax.child_axes[0].get_xticklabels()]
    assert "4 (8)" in labels and ax.get_title("left") == "Eight months to Mars."


def test_mel_counts_nonfinite_values(trace):
    mel = trace["flow/mel"].clone()
    mel[3, 5], mel[4, 6] = torch.nan, torch.inf
    ax = rendered(plots.mel(changed(trace, flow_mel=mel)))
    assert image(ax).mask.sum() == 2 and texts(ax) == ["2 NaN or Inf"]
    assert np.isfinite(ax.get_images()[0].get_clim()).all()
    rendered(plots.mel(changed(trace, flow_mel=torch.full_like(mel, torch.nan))))


def test_mel_difference_is_candidate_minus_reference(trace, one_step):
    ax = rendered(plots.mel_difference(trace, one_step))
    expected = one_step["flow/mel"].double() - trace["flow/mel"].double()
    assert np.array_equal(image(ax), expected)
    low, high = ax.get_images()[0].get_clim()
    assert high == -low == expected.abs().max()
    assert f"rms {expected.square().mean().sqrt():.3g}" in ax.get_title("left")
    below = ax.figure._supxlabel.get_text()
    assert "reference: seed 7" in below and "candidate: seed 0 · n_timesteps 1" in below
    short = changed(one_step, flow_mel=one_step["flow/mel"][:, :10])
    assert image(plots.mel_difference(trace, short)).shape == (80, 10)
    assert image(plots.mel_difference(trace, trace)).max() == 0
    with pytest.raises(WorkbenchError, match="80 and 40 bins"):
        plots.mel_difference(trace, changed(trace, flow_mel=trace["flow/mel"][:40]))


def test_mel_steps_draws_a_panel_per_knot(trace):
    axes = rendered(plots.mel_steps(trace, region="whole"))
    assert len(axes) == STEPS + 1
    for k, ax in enumerate(axes):
        assert np.array_equal(image(ax), trace["flow/x"][k].double())
        assert ax.get_images()[0].get_clim() == (trace["flow/x"].min(), trace["flow/x"].max())
        assert ax.get_xlim()[0] == -trace.prompt_frames / 50 and len(ax.get_lines()) == 2
        assert f"knot {k}" in ax.get_title("left")
    (few,) = plots.mel_steps(trace, knots=[2], region="whole")
    assert np.array_equal(image(few), trace["flow/x"][2].double())
    for wrong in ([], [STEPS + 1], [-1]):
        with pytest.raises(WorkbenchError, match="expected some of 0 to 3"):
            plots.mel_steps(trace, knots=wrong)


def test_mel_steps_of_many_knots(trace):
    x = trace["flow/x"][:1, :, :4].expand(65, -1, -1)
    assert len(plots.mel_steps(changed(trace, flow_x=x, flow_t=torch.linspace(0, 1, 65)))) == 12


def test_mel_steps_show_the_target_and_the_prompt_on_request(trace):
    split = trace.prompt_frames
    frames = {"target": trace["flow/x"].shape[2] - split, "prompt": split, "whole": trace["flow/x"].shape[2]}
    for region, count in frames.items():
        (ax,) = plots.mel_steps(trace, knots=[0], region=region)
        assert image(ax).shape[1] == count
        assert image(plots.field(trace, "flow/velocity", 0, region=region)).shape[1] == count
    assert image(plots.mel_steps(trace, knots=[0])[0]).shape[1] == frames["target"]
    for draw in (
        lambda: plots.mel_steps(trace, region="all"),
        lambda: plots.field(trace, "flow/x", region=""),
    ):
        with pytest.raises(WorkbenchError, match="expected one of prompt, target, whole"):
            draw()


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (4, 4), (6, 3), (8, 4), (11, 4)])
def test_only_the_last_row_of_mel_steps_has_labels_below(trace, count, columns):
    x = trace["flow/x"][:1].expand(count, -1, -1)
    axes = plots.mel_steps(changed(trace, flow_x=x, flow_t=None), knots=range(count))
    labelled = [bool(ax.get_xlabel()) for ax in axes]
    last_row = (count - 1) % columns + 1
    assert labelled == [False] * (count - last_row) + [True] * last_row
