"""Figures of sound and tokens: waveform, spectrogram, f0, speech tokens."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.show.plots.common import changed, image, line, rendered, texts
from workbench.errors import WorkbenchError

plots = wb.plots


def test_waveform_draws_every_sample_or_the_envelope(trace):
    short = trace.wav[:1000]
    ax = rendered(plots.waveform(changed(trace, hift_wav=short)))
    assert np.array_equal(ax.get_lines()[0].get_ydata(), short.double())
    curve = plots.waveform(trace).get_lines()[0].get_ydata()
    width = -(-len(trace.wav) // 2000)
    parts = trace.wav.double()[: len(trace.wav) // width * width].view(-1, width)
    n = len(parts)
    assert np.array_equal(curve[0 : 2 * n : 2], parts.amin(1)) and np.array_equal(
        curve[1 : 2 * n : 2], parts.amax(1)
    )
    assert len(curve) <= 4000


def test_waveform_marks_clamp_and_nan(trace):
    wav = trace.wav.clone() * 0.1
    wav[2400:2410], wav[4800:4900], wav[7200] = 0.99, torch.nan, -torch.inf
    ax = rendered(plots.waveform(changed(trace, hift_wav=wav)))
    clamped, bad = line(ax, "clamped"), line(ax, "NaN or Inf")
    assert clamped.get_label().endswith("10 samples") and bad.get_label().endswith("101 samples")
    assert clamped.get_xdata() == pytest.approx(0.1, abs=2e-3)
    assert set(clamped.get_ydata()) == {float(np.float32(0.99))}
    assert bad.get_xdata().min() == pytest.approx(0.2, abs=1e-3) and bad.get_xdata().max() == pytest.approx(
        0.3, abs=1e-3
    )
    quiet = plots.waveform(trace)
    assert len(quiet.get_lines()) == 1
    rendered(plots.waveform(changed(trace, hift_wav=torch.full((9000,), torch.nan))))


@pytest.mark.slow
def test_waveform_shades_findings(trace):
    table = pd.DataFrame(
        {"kind": ["click", "buzz", "buzz"], "start": [0.1, 0.2, 0.3], "end": [0.1, 0.25, 0.4]}
    )
    for findings in (table, SimpleNamespace(table=table), SimpleNamespace(to_frame=lambda: table)):
        ax = rendered(plots.waveform(trace, findings=findings))
        shades = {one.get_label(): one for one in ax.collections}
        assert list(shades) == ["buzz (2)", "click (1)"]
        spans = [path.vertices[:, 0] for path in shades["buzz (2)"].get_paths()]
        assert [x.min() for x in spans] == pytest.approx([0.2, 0.3])
        assert [x.max() for x in spans] == pytest.approx([0.25, 0.4])
        assert len({one.get_hatch() for one in ax.collections}) == 2
    assert not plots.waveform(trace, findings=table[:0]).collections
    for wrong in (table.drop(columns="end"), [1, 2]):
        with pytest.raises(WorkbenchError, match="expected a table with kind, start and end"):
            plots.waveform(trace, findings=wrong)


@pytest.mark.slow
def test_spectrogram_of_a_sine_has_its_level_and_frequency(trace):
    n = torch.arange(24000)
    sine = 0.5 * torch.sin(2 * torch.pi * 3000 / 24000 * n)
    ax = rendered(plots.spectrogram(changed(trace, hift_wav=sine)))
    level = image(ax)
    assert level.shape[0] == 513 and int(level[:, 40].argmax()) == 128  # of 1024 at 24 kHz: 3 kHz
    assert level.max() == pytest.approx(-6.02, abs=0.01)
    sine[12000] = torch.inf
    assert 0 < image(rendered(plots.spectrogram(changed(trace, hift_wav=sine)))).mask.any(0).sum() < 10
    rendered(plots.spectrogram(changed(trace, hift_wav=torch.zeros(3))))


def test_f0_leaves_gaps_and_marks_impossible_values(trace):
    f0 = torch.full((20,), 200.0)
    f0[5:8], f0[10], f0[12], f0[13] = 3.0, 1e5, torch.nan, torch.inf
    ax = rendered(plots.f0(changed(trace, hift_f0=f0), reference=trace))
    mine = line(ax, "f0, candidate")
    voiced = [k for k in range(20) if k not in (5, 6, 7, 10, 12, 13)]
    assert np.flatnonzero(np.isfinite(mine.get_ydata())).tolist() == voiced
    assert set(mine.get_ydata()[voiced]) == {200.0} and mine.get_xdata()[0] == 0.01
    assert "1 of 20 frames,\nup to 100,000 Hz" in line(ax, "above 1000 Hz, candidate:").get_label()
    assert line(ax, "above 1000 Hz, candidate:").get_xdata() == pytest.approx(10.5 / 50)
    assert line(ax, "NaN or Inf, candidate:").get_xdata() == pytest.approx([12.5 / 50, 13.5 / 50])
    assert ax.get_ylim()[1] < 1200
    other = line(ax, "f0, reference").get_ydata()
    expected = trace["hift/f0"].numpy()
    assert (
        np.array_equal(other[expected > 10], expected[expected > 10])
        and np.isnan(other[expected <= 10]).all()
    )
    rendered(plots.f0(changed(trace, hift_f0=torch.zeros(8))))


def test_tokens_draws_ids_entropy_and_stop_margin(trace):
    ids = trace["lm/drawn_token"].clone()
    ids[3:6], ids[8] = 203, ids[7]
    axes = rendered(plots.tokens(changed(trace, lm_drawn_token=ids), silent=(203, 230)))
    points = {one.get_label().partition(":")[0]: one for one in axes[0].get_lines()}
    assert points["silent"].get_ydata().tolist() == ids[np.isin(ids, (203, 230))].tolist()
    assert 8.5 / 25 in points["same as before"].get_xdata()
    assert sum(len(one.get_ydata()) for one in points.values()) == len(ids)
    assert len({one.get_marker() for one in points.values()}) == 3
    (runs,) = [one for one in axes[0].collections if one.get_label().startswith("silence, runs")]
    assert runs.get_paths()[0].vertices[:, 0].max() >= 6 / 25
    assert np.array_equal(axes[1].get_lines()[0].get_ydata(), trace["lm/entropy"].double())
    logp = trace["lm/logp"].double()
    assert np.array_equal(axes[2].get_lines()[0].get_ydata(), logp[:, :243].amax(1) - logp[:, 243:].amax(1))


def test_tokens_says_which_fields_are_missing(trace):
    few = wb.Trace({"lm/speech_token": trace["lm/speech_token"]}, {})
    axes = rendered(plots.tokens(few))
    assert "lm/entropy was not recorded" in texts(axes[1])[0] and "lm/logp" in texts(axes[2])[0]
    entropy = wb.Trace(dict(few) | {"lm/entropy.stats": trace.statistics("lm/entropy")}, {})
    assert plots.tokens(entropy)[1].get_lines()[0].get_ydata() == pytest.approx(trace["lm/entropy"].numpy())
    dropped = plots.tokens(changed(trace, lm_speech_token=trace["lm/speech_token"][:-2]))
    assert "2 silent draws were dropped" in dropped[0].get_title("left")
    with pytest.raises(WorkbenchError, match="100 ids; expected 200 stop ids"):
        plots.tokens(changed(trace, lm_logp=trace["lm/logp"][:, :100]))
