"""Widgets show what the plain functions return, in a kernel and as static HTML; their work runs in a thread."""

import threading
import time

import matplotlib.pyplot as plt
import pytest
import torch

import workbench as wb
from tests.paths import ROOT
from workbench.diagnose.experiments.metrics import run_lengths
from workbench.show.widgets import (
    ComparisonBrowser,
    FilePicker,
    OdeExplorer,
    SamplingLab,
    TraceBrowser,
    VocoderLab,
)
from workbench.show.widgets.background import BackgroundTask
from workbench.show.widgets.labs import metric_table


@pytest.fixture
def trace(recorded):
    return recorded


class Recorder:
    """A background task, and lists of what it reported."""

    def __init__(self):
        self.results, self.errors, self.steps = [], [], []
        self.task = BackgroundTask(
            self.results.append, self.errors.append, lambda *step: self.steps.append(step)
        )


def test_background_task_counts_steps_and_returns_its_result():
    recorder = Recorder()
    recorder.task.start(lambda bar: sum(bar(range(4), "flow", " step", 4)), pause=0)
    assert recorder.task.wait(5) and recorder.results == [6]
    assert recorder.steps == [("flow", k, 4) for k in (1, 2, 3, 4)]


def test_newest_work_replaces_older_work():
    recorder, begun, go_on = Recorder(), threading.Event(), threading.Event()

    def slow(bar):
        for _ in bar(range(3), "old", "", 3):
            begun.set()
            go_on.wait(5)
        return "old"

    recorder.task.start(slow, pause=0)
    assert begun.wait(5)
    recorder.task.start(lambda bar: "skipped", pause=60)  # still waiting when the next one comes
    recorder.task.start(lambda bar: "new", pause=0)
    go_on.set()
    assert recorder.task.wait(5) and recorder.results == ["new"] and not recorder.errors


def test_cancel_and_errors_leave_no_result():
    recorder, begun = Recorder(), threading.Event()

    def endless(bar):
        for _ in bar(iter(int, 1), "LM", " token", None):
            begun.set()
            time.sleep(0.001)

    recorder.task.start(endless, pause=0)
    assert begun.wait(5)
    recorder.task.cancel()
    assert recorder.task.wait(5) and not recorder.results and not recorder.errors
    recorder.task.start(lambda bar: 1 / 0, pause=0)
    assert recorder.task.wait(5) and isinstance(recorder.errors[0], ZeroDivisionError)


@pytest.mark.slow
def test_ode_explorer_shows_the_run_with_the_options_of_its_controls(pipe, utt):
    lab = OdeExplorer(pipe, utt, seed=7).render_now()
    assert metric_table(lab.result).set_index("metric")["value"]["mel_l1"] == 0 and lab.status.value == ""
    lab.controls["n_timesteps"].value = 2
    lab.render_now()
    options = pipe.checkpoint.options.but(n_timesteps=2, seed=7)
    assert torch.equal(lab.result.trace.wav, pipe.synthesise(utt, options=options).wav)
    assert lab.knot.max == 2 and lab.cancel.disabled
    before = lab.field_panel.static()
    lab.knot.value = 2
    assert lab.field_panel.static() != before
    lab.controls["noise_seed"].value = "seven"
    lab.render_now()
    assert "noise_seed is &#x27;seven&#x27;" in lab.status.value
    assert not plt.get_fignums()


@pytest.mark.slow
def test_static_twin_has_pictures_tables_and_sound(pipe, trace):
    lab = VocoderLab(pipe, trace).render_now()
    assert torch.equal(lab.compute({}, lambda steps, *_: steps).trace.wav, trace.wav)
    metrics = metric_table(lab.compute({"head_dtype": "float16"}, lambda steps, *_: steps)).set_index(
        "metric"
    )
    assert "flow_s" not in metrics.index  # the flow did not run
    assert metrics["value"].notna().all() and metrics["unit"]["sound_db"] == "dB"
    page = lab.static()
    assert "data:image/" in page and "data:audio/flac" in page and "<table" in page
    bundle = lab._repr_mimebundle_()[0]
    assert bundle["text/html"] == page and "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.slow
def test_sampling_lab_draws_tokens_and_counts_runs(pipe, utt):
    lab = SamplingLab(pipe, utt).render_now()
    drawn = lab.compute({"seed": 7, "max_silent_run": ""}, lambda steps, *_: steps)
    assert torch.equal(
        drawn["lm/speech_token"],
        pipe.synthesise(
            utt, stop_after="lm", options=pipe.checkpoint.options.but(seed=7, max_silent_run=None)
        )["lm/speech_token"],
    )
    assert "<img" in lab.static()


def test_run_lengths_lists_repeats_and_silences():
    trace = wb.Trace({"lm/drawn_token": torch.tensor([5, 5, 1, 2, 1, 9, 7, 7, 7])}, {})
    table = run_lengths(trace, silent=(1, 2))
    assert list(table.itertuples(index=False, name=None)) == [
        ("repeat", 0, 2, 0.0, 5),
        ("silent", 2, 3, 0.08, 1),
        ("repeat", 6, 3, 0.24, 7),
    ]


@pytest.mark.slow
def test_trace_browser_reaches_every_field(trace):
    browser = TraceBrowser(trace)
    for name in trace:
        browser.field.value = name
        assert name in browser.static() and "<img" in browser.static()
    browser.field.value = "flow/x"
    browser.index.value = 3
    assert "flow/x[3]" in browser.static()
    with pytest.raises(wb.WorkbenchError, match="no field"):
        TraceBrowser(wb.Trace({}, {}))


@pytest.mark.slow
def test_comparison_browser_opens_at_the_first_bad_row(pipe, utt, trace):
    other = pipe.replay(trace, "flow", pipe.checkpoint.options.but(cfg_rate=0.0), save=wb.EVERYTHING)
    compared = wb.compare(trace, other)
    browser = ComparisonBrowser(compared, trace, other)
    assert "DIVERGED" in browser.row.label and compared.rows["field"][browser.row.value].startswith("flow/")
    page = browser.static()
    assert "<img" in page and "data:audio/flac" in page
    browser.shown.value = "MATCH"
    assert browser.row.label.endswith("MATCH")


@pytest.mark.slow
def test_file_picker_lists_files_opens_them_and_shows_errors(trace, tmp_path):
    picker = FilePicker(tmp_path, open_file=wb.Trace.load)
    assert picker.path is None and "no file in" in picker.static()
    preview = FilePicker(ROOT / "data" / "prompts", "kumo_0.*")
    preview.choice.value = ROOT / "data" / "prompts" / "kumo_0.flac"
    for part in ("kumo_0.flac", "sound", "length [s]", "24000", "waveform"):
        assert part in preview.static()
    preview.choice.value = ROOT / "data" / "prompts" / "kumo_0.txt"
    assert "prints a statistic" in preview.static()
    trace.save(tmp_path / "a" / "run.trace")
    picker.refresh()
    assert picker.path == tmp_path / "a" / "run.trace" and "hift/wav" in picker.static()
    (tmp_path / "a" / "run.trace").write_text("no trace")
    picker.update()
    assert "cannot be read" in picker.static()
    with pytest.raises(wb.WorkbenchError, match="no folder"):
        FilePicker(tmp_path / "b")


def test_figures_from_threads_are_not_registered_with_pyplot(trace):
    drawn, seen = [], []
    for draw in (lambda: drawn.append(wb.plots.mel(trace)), lambda: seen.extend(plt.get_fignums())):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
    assert drawn and not seen
