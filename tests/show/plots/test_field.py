"""Figures of any field: the region that is drawn, and two traces in one scale with their difference."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.show.plots.common import changed, image, rendered

plots = wb.plots


def test_a_field_shows_the_target_unless_asked_for_more(trace):
    ax = rendered(plots.field(trace, "flow/velocity", 1))
    assert np.array_equal(image(ax), trace.select("flow/velocity", "target")[1].double())
    assert ax.get_xlim()[0] == 0
    whole = plots.field(trace, "flow/velocity", 1, region="whole")
    assert np.array_equal(image(whole), trace["flow/velocity"][1].double())
    assert whole.get_xlim()[0] == -trace.prompt_frames / 50
    with pytest.raises(wb.WorkbenchError, match="region is 'all'"):
        plots.field(trace, "flow/velocity", region="all")


def test_two_fields_share_one_scale_and_show_their_difference(trace):
    other = changed(trace, flow_mel=trace["flow/mel"] + 0.25)
    axes = rendered(plots.field_pair(trace, other, "flow/mel", names=("mine", "theirs")))
    clims = [ax.get_images()[0].get_clim() for ax in axes]
    assert clims[0] == clims[1] and clims[2][0] == -clims[2][1]
    assert np.allclose(image(axes[2]), 0.25)
    assert "mine" in axes[0].get_title("left") and "theirs - mine: rms 0.25" in axes[2].get_title("left")


def test_lines_of_other_lengths_are_compared_where_both_are(trace):
    short = changed(trace, hift_wav=trace["hift/wav"][:1000] * 0.5)
    axes = rendered(plots.field_pair(trace, short, "hift/wav"))
    assert len(axes[2].get_lines()[0].get_ydata()) == 1000
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_fields_of_other_heights_are_refused(trace):
    low = changed(trace, flow_mel=torch.zeros(40, 10))
    with pytest.raises(wb.WorkbenchError, match="expected the same height"):
        plots.field_pair(trace, low, "flow/mel")
