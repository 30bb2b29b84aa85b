"""Every figure draws the numbers of the trace, names missing fields, and leaves no state behind in matplotlib."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.diagnose.suspects.suspects import Diagnosis
from workbench.errors import WorkbenchError
from workbench.trace.importers.logs import read_log
from workbench.trace.schema import STATS

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

plots = wb.plots
STEPS = 3
SIZES = {"trajectory": 4, "guidance_gap": 3, "tokens": 3}


@pytest.fixture(scope="module")
def trace(pipe, utt):
    options = pipe.checkpoint.options.but(n_timesteps=STEPS, max_tokens=12, seed=7)
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)


@pytest.fixture(scope="module")
def one_step(pipe, trace):
    return pipe.replay(
        trace, "flow", pipe.checkpoint.options.but(n_timesteps=1, flow_dtype="bfloat16"), wb.EVERYTHING
    )


@pytest.fixture
def log(tmp_path):
    lines = [f"[PY ODE] step {k}: x max={k}.5, dt=0.{k}\n" for k in (1, 2, 4)]
    (tmp_path / "run.log").write_text("".join(lines))
    return read_log(tmp_path / "run.log").runs[0]


@pytest.fixture(autouse=True)
def no_figures():
    plt.close("all")
    yield
    plt.close("all")


def changed(trace, attrs=(), **changes):
    """A copy with some fields changed; names have _ for the first /, None leaves a field out."""
    data = dict(trace) | {name.replace("_", "/", 1): value for name, value in changes.items()}
    return wb.Trace({k: v for k, v in data.items() if v is not None}, trace.attrs | dict(attrs))


def summary(trace):
    """The trace as a run with save=wb.SUMMARY records it."""
    names = [name for name in trace if name.startswith(("flow/", "hift/")) or name == "lm/entropy"]
    return wb.Trace({f"{name}.stats": trace.statistics(name) for name in names}, trace.attrs)


def line(ax, label):
    """The line with this label, or with a label that begins with it."""
    named = {one.get_label(): one for one in ax.get_lines()}
    if label in named:
        return named[label]
    (found,) = [one for name, one in named.items() if name.startswith(label)]
    return found


def image(ax):
    (found,) = ax.get_images()
    return np.ma.asarray(found.get_array())


def texts(ax):
    return [text.get_text() for text in ax.texts]


def rendered(axes):
    """Render the figure, so that errors of rendering fail here."""
    (axes[0] if isinstance(axes, np.ndarray) else axes).figure.canvas.draw()
    return axes


# ---- the ODE


@pytest.mark.slow
@pytest.mark.parametrize("stat", STATS[:-1])
@pytest.mark.parametrize("kept", [lambda trace: trace, summary])
def test_trajectory_draws_the_statistics_of_the_trace(trace, one_step, kept, stat):
    axes = plots.trajectory(kept(trace), reference=one_step, stat=stat)
    names = ("flow/x", "flow/velocity_cond", "flow/velocity_uncond", "flow/velocity")
    for ax, name in zip(axes, names, strict=True):
        for region, row in (("prompt", 0), ("target", 1)):
            mine, other = line(ax, region), line(ax, f"{region}, reference")
            column = STATS.index(stat)
            assert np.array_equal(mine.get_ydata(), trace.statistics(name)[:, row, column])
            assert np.array_equal(other.get_ydata(), one_step.statistics(name)[:, row, column])
            assert np.array_equal(mine.get_xdata(), np.arange(STEPS + (name == "flow/x")))
            assert (mine.get_linestyle(), other.get_linestyle()) == ("-", "--")
    assert len({(one.get_color(), one.get_marker()) for one in axes[0].get_lines()}) == 2


def test_trajectory_over_ode_time_and_all_frames(trace):
    axes = plots.trajectory(trace, region="whole", against="t")
    assert np.array_equal(line(axes[0], "whole").get_xdata(), trace["flow/t"])
    assert np.array_equal(line(axes[3], "whole").get_xdata(), trace["flow/t"][:-1])
    rms = trace["flow/x"][2].double().square().mean().sqrt()
    assert line(axes[0], "whole").get_ydata()[2] == pytest.approx(float(rms), rel=1e-6)


def test_trajectory_of_a_replay_begins_at_its_first_step(pipe, trace):
    tail = pipe.replay(trace, "flow/step/1", save=wb.EVERYTHING)
    axes = plots.trajectory(tail)
    assert line(axes[0], "target").get_xdata().tolist() == [1, 2, 3]
    assert "from step 1" in axes[0].figure._supxlabel.get_text()


def test_trajectory_of_a_text_log(trace, log):
    axes = rendered(plots.trajectory(log, reference=trace, stat="max"))
    assert np.array_equal(line(axes[0], "whole").get_ydata(), [np.nan, 1.5, 2.5, np.nan, 4.5], equal_nan=True)
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
        assert line(ax, "target").get_ydata() == pytest.approx(np.array(values), rel=1e-9)
        assert len(line(ax, "prompt, reference").get_ydata()) == 1
    with pytest.raises(
        WorkbenchError, match=r"velocity_uncond \(.*only statistics.*\); .* save=wb\.EVERYTHING"
    ):
        plots.guidance_gap(summary(trace))


# ---- the mel


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
    axes = rendered(plots.mel_steps(trace))
    assert len(axes) == STEPS + 1
    for k, ax in enumerate(axes):
        assert np.array_equal(image(ax), trace["flow/x"][k].double())
        assert ax.get_images()[0].get_clim() == (trace["flow/x"].min(), trace["flow/x"].max())
        assert ax.get_xlim()[0] == -trace.prompt_frames / 50 and len(ax.get_lines()) == 2
        assert f"knot {k}" in ax.get_title("left")
    (few,) = plots.mel_steps(trace, knots=[2])
    assert np.array_equal(image(few), trace["flow/x"][2].double())
    for wrong in ([], [STEPS + 1], [-1]):
        with pytest.raises(WorkbenchError, match="expected some of 0 to 3"):
            plots.mel_steps(trace, knots=wrong)


def test_mel_steps_of_many_knots(trace):
    x = trace["flow/x"][:1, :, :4].expand(65, -1, -1)
    assert len(plots.mel_steps(changed(trace, flow_x=x, flow_t=torch.linspace(0, 1, 65)))) == 12


# ---- sound


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
    mine = line(ax, "f0")
    voiced = [k for k in range(20) if k not in (5, 6, 7, 10, 12, 13)]
    assert np.flatnonzero(np.isfinite(mine.get_ydata())).tolist() == voiced
    assert set(mine.get_ydata()[voiced]) == {200.0} and mine.get_xdata()[0] == 0.01
    assert "1 of 20 frames,\nup to 100,000 Hz" in line(ax, "above 1000 Hz:").get_label()
    assert line(ax, "above 1000 Hz:").get_xdata() == pytest.approx(10.5 / 50)
    assert line(ax, "NaN or Inf:").get_xdata() == pytest.approx([12.5 / 50, 13.5 / 50])
    assert ax.get_ylim()[1] < 1200
    other = line(ax, "f0 of the reference").get_ydata()
    expected = trace["hift/f0"].numpy()
    assert (
        np.array_equal(other[expected > 10], expected[expected > 10])
        and np.isnan(other[expected <= 10]).all()
    )
    rendered(plots.f0(changed(trace, hift_f0=torch.zeros(8))))


# ---- tokens


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


# ---- diagnoses


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
    assert [text.get_text() for text in ax.get_yticklabels()] == ["flow: a", "flow: b", "flow: c", "hift: d"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "once"]
    assert shown[:2, :2].tolist() == [[5.0, 0.5], [9.0, 8.0]] and shown[2, 1] == 3
    assert shown.mask[2, 0] and shown.mask[0, 2] and shown[3, 2] == 9
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


def diagnosis(shares, explained_by=(), healthy=False):
    found = [SimpleNamespace(fault=SimpleNamespace(name=k), explained=v) for k, v in shares.items()]
    return Diagnosis(found, explained_by, sum(shares[name] for name in explained_by), healthy, "")


def test_suspects_draws_the_share_of_each():
    ax = rendered(plots.suspects(diagnosis({"rotary": 0.97, "grid": 0.3, "slope": -0.2}, ("rotary",))))
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())
    assert [bar.get_width() for bar in bars] == [0.97, 0.3, -0.2]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["rotary", "grid", "slope"]
    assert [bool(bar.get_hatch()) for bar in bars] == [True, False, False]
    assert line(ax, "enough").get_xdata()[0] == 0.5 and ax.get_ylim()[0] > ax.get_ylim()[1]
    clean = rendered(plots.suspects(diagnosis({}, healthy=True)))
    assert clean.get_title("left") == "nothing to explain" and "within rounding" in texts(clean)[0]


# ---- all of them

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
