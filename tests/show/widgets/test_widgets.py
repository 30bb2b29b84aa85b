"""Widgets hold no numbers: what they show is what the plain functions return, also without a kernel."""

import threading
import time

import matplotlib.pyplot as plt
import pytest
import torch

import workbench as wb
from workbench.diagnose.experiments.metrics import run_lengths
from workbench.show.widgets.background import Job
from workbench.show.widgets.widgets import (
    ComparisonBrowser,
    FilePicker,
    OdeExplorer,
    SamplingLab,
    TraceBrowser,
    VocoderLab,
    measured,
)


@pytest.fixture
def trace(recorded):
    return recorded


class Seen:
    """A job's ends, as a test looks at them."""

    def __init__(self):
        self.results, self.errors, self.steps = [], [], []
        self.job = Job(self.results.append, self.errors.append, lambda *step: self.steps.append(step))


def test_job_counts_steps_and_gives_its_result():
    seen = Seen()
    seen.job.start(lambda bar: sum(bar(range(4), "flow", " step", 4)), pause=0)
    assert seen.job.wait(5) and seen.results == [6]
    assert seen.steps == [("flow", k, 4) for k in (1, 2, 3, 4)]


def test_the_newest_job_stops_the_others():
    seen, begun, go_on = Seen(), threading.Event(), threading.Event()

    def slow(bar):
        for _ in bar(range(3), "old", "", 3):
            begun.set()
            go_on.wait(5)
        return "old"

    seen.job.start(slow, pause=0)
    assert begun.wait(5)
    seen.job.start(lambda bar: "skipped", pause=60)  # still waiting when the next one comes
    seen.job.start(lambda bar: "new", pause=0)
    go_on.set()
    assert seen.job.wait(5) and seen.results == ["new"] and not seen.errors


def test_cancel_and_errors_leave_no_result():
    seen, begun = Seen(), threading.Event()

    def endless(bar):
        for _ in bar(iter(int, 1), "LM", " token", None):
            begun.set()
            time.sleep(0.001)

    seen.job.start(endless, pause=0)
    assert begun.wait(5)
    seen.job.cancel()
    assert seen.job.wait(5) and not seen.results and not seen.errors
    seen.job.start(lambda bar: 1 / 0, pause=0)
    assert seen.job.wait(5) and isinstance(seen.errors[0], ZeroDivisionError)


@pytest.mark.slow
def test_ode_explorer_shows_the_run_that_its_controls_say(pipe, utt):
    lab = OdeExplorer(pipe, utt, seed=7).now()
    assert measured(lab.result).set_index("measure")["value"]["mel_l1"] == 0 and lab.status.value == ""
    lab.controls["n_timesteps"].value = 2
    lab.now()
    options = pipe.checkpoint.options.but(n_timesteps=2, seed=7)
    assert torch.equal(lab.result.trace.wav, pipe.synthesise(utt, options=options).wav)
    assert lab.step.max == 2 and lab.progress.value == 1
    before = lab.picture.static()
    lab.step.value = 2
    assert lab.picture.static() != before
    lab.controls["noise_seed"].value = "seven"
    lab.now()
    assert "noise_seed is &#x27;seven&#x27;" in lab.status.value
    assert not plt.get_fignums()


@pytest.mark.slow
def test_static_twin_has_pictures_tables_and_sound(pipe, trace):
    lab = VocoderLab(pipe, trace).now()
    assert torch.equal(lab.compute({}, lambda steps, *_: steps).trace.wav, trace.wav)
    page = lab.static()
    assert "data:image/" in page and "data:audio/wav" in page and "<table" in page
    bundle = lab._repr_mimebundle_()[0]
    assert bundle["text/html"] == page and "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.slow
def test_sampling_lab_draws_tokens_and_counts_runs(pipe, utt):
    lab = SamplingLab(pipe, utt).now()
    drawn = lab.compute({"seed": 7, "max_silent_run": ""}, lambda steps, *_: steps)
    assert torch.equal(
        drawn["lm/speech_token"],
        pipe.synthesise(
            utt, stop_after="lm", options=pipe.checkpoint.options.but(seed=7, max_silent_run=None)
        )["lm/speech_token"],
    )
    assert "<img" in lab.static()


def test_run_lengths():
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
    assert page.count("<img") >= 2 and "data:audio/wav" in page


def test_file_picker_lists_opens_and_says_what_is_wrong(trace, tmp_path):
    picker = FilePicker(tmp_path, opened=wb.Trace.load)
    assert picker.path is None and "nothing in" in picker.static()
    trace.save(tmp_path / "a" / "run.trace")
    picker.refresh()
    assert picker.path == tmp_path / "a" / "run.trace" and "hift/wav" in picker.static()
    (tmp_path / "a" / "run.trace").write_text("no trace")
    picker.look()
    assert "cannot be read" in picker.static()
    with pytest.raises(wb.WorkbenchError, match="no folder"):
        FilePicker(tmp_path / "b")


def test_what_a_thread_draws_is_on_nobodys_list(trace):
    drawn, seen = [], []
    for draw in (lambda: drawn.append(wb.plots.mel(trace)), lambda: seen.extend(plt.get_fignums())):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
    assert drawn and not seen
