"""What all figures share: errors about missing fields, given axes, white ground, provenance."""

import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import workbench as wb
from tests.show.plots.common import STEPS, changed, rendered
from workbench.errors import WorkbenchError

plots = wb.plots


SIZES = {"trajectory": 4, "guidance_gap": 3, "tokens": 3}
REQUIRED_FIELD = {
    "trajectory": "flow/x",
    "guidance_gap": "flow/velocity_cond",
    "mel": "flow/mel",
    "mel_steps": "flow/x",
    "waveform": "hift/wav",
    "spectrogram": "hift/wav",
    "f0": "hift/f0",
    "tokens": "lm/speech_token",
}


@pytest.mark.parametrize("name", REQUIRED_FIELD)
def test_missing_fields_raise_and_leave_no_figure_open(name):
    for trace in (wb.Trace({}, {}), wb.Trace({"in/spk_embedding": torch.zeros(3)}, {})):
        with pytest.raises(WorkbenchError, match=f"{REQUIRED_FIELD[name]}.*save="):
            getattr(plots, name)(trace)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    "name", [name for name in REQUIRED_FIELD if name not in ("trajectory", "guidance_gap", "mel_steps")]
)
def test_empty_fields_raise_and_leave_no_figure_open(name):
    shape = (80, 0) if name == "mel" else (0,)
    with pytest.raises(WorkbenchError, match="nothing in it"):
        getattr(plots, name)(wb.Trace({REQUIRED_FIELD[name]: torch.zeros(shape)}, {}))
    assert plt.get_fignums() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUIRED_FIELD)
def test_given_axes_are_used_and_no_figure_is_made(trace, name):
    settings = dict(matplotlib.rcParams)
    with plt.style.context("dark_background"):
        count = SIZES.get(name, STEPS + 1 if name == "mel_steps" else 1)
        fig, axes = plt.subplots(1, count, squeeze=False)
        more = {"ax": axes[0, 0]} if count == 1 else {"axes": axes}
        found = getattr(plots, name)(trace, **more)
        assert list(np.atleast_1d(found)) == list(axes.ravel())
        assert plt.get_fignums() == [fig.number] and fig._supxlabel is None
        boxes = [ax.get_legend() for ax in axes.ravel() if ax.get_legend()]
        assert {to_hex(text.get_color()) for box in boxes for text in box.get_texts()} <= {"#ffffff"}
        others = [child for ax in axes.ravel() for child in ax.child_axes]
        assert {other.xaxis.label.get_color() for other in others} <= {"white"}
        assert {one.get_color() for other in others for one in other.get_xticklabels()} <= {"white"}
        fig.canvas.draw()
    assert dict(matplotlib.rcParams) == settings
    if count > 1:
        with pytest.raises(WorkbenchError, match=f"axes holds 2; expected {count}"):
            getattr(plots, name)(trace, axes=axes.ravel()[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUIRED_FIELD)
def test_figures_are_white_under_a_dark_style_and_show_their_provenance(trace, name):
    with plt.style.context("dark_background"):
        axes = np.atleast_1d(getattr(plots, name)(changed(trace, {"text": "It costs $5 or $_6."})))
    fig = rendered(axes[0]).figure
    assert plt.get_fignums() == [fig.number]
    assert fig.get_facecolor() == (1, 1, 1, 1) and axes[0].xaxis.label.get_color() == "black"
    below = fig._supxlabel.get_text().replace("\n", " ")
    assert below == plots.provenance(trace) and trace.attrs["checkpoint"]["content_hash"][:12] in below


def test_provenance_lists_options_checkpoint_and_source(trace, log, one_step):
    assert plots.provenance(trace).startswith("seed 7 · n_timesteps 3 · cfg_rate 0.7 · ")
    assert "dtype" not in plots.provenance(trace) and "· cpu · torch 2" in plots.provenance(trace)
    assert "flow_dtype bfloat16" in plots.provenance(one_step)
    assert plots.provenance(log) == "run.log · PY · lines 1 to 3"
    assert plots.provenance(wb.Trace({}, {})) == "origin unknown"
    odd = {"device": "a\nb" + "c" * 100, "lines": [], "versions": "1", "options": {"seed": None}}
    assert "\n" not in plots.provenance(wb.Trace({}, odd)) and len(plots.provenance(wb.Trace({}, odd))) < 100


@pytest.mark.slow
@pytest.mark.process
def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, workbench as wb; assert 'matplotlib' not in sys.modules; wb.plots.mel; assert 'plots' in dir(wb)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        wb.plot  # noqa: B018


def test_the_player_draws_in_the_colours_of_the_figures():
    from workbench.show.player import payload
    from workbench.show.player.page import FOLDER
    from workbench.show.plots import palette

    assert payload.COLORS == palette.COLORS
    light = (FOLDER / "player.css").read_text().partition("}")[0]
    assert f"--wave: {palette.BLUE.lower()};" in light
