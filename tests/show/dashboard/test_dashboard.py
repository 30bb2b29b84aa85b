"""The dashboard opens anything, shows it in tabs that compute when they are opened, and runs again."""

import threading
from html import escape

import pytest
import torch

import workbench as wb
from tests.paths import ROOT
from workbench.diagnose.suspects.diagnosis import Diagnosis
from workbench.show.dashboard import dashboard as dashboard_module
from workbench.show.dashboard import tabs as tabs_module

KUMO = ROOT / "data" / "prompts" / "kumo_0.flac"
MAPPING = """[fields."flow/mel"]
name = "flow_mel.npy"
axes = ["mel", "target_frame"]
[fields."hift/wav"]
name = "hift_wav.npy"
axes = ["sample"]
"""
LOG = "[PY ODE] step 1: x min=-4.1, max=4.2\n[PY ODE] step 2: x min=-3.1, max=3.2\n"


def opened(dashboard, title):
    """The tab with this title, once it shows what it computed."""
    index = [tab.title for tab in dashboard.tabs].index(title)
    dashboard._shown.selected_index = index
    tab = dashboard.tabs[index]
    assert tab.background.wait(60)
    return tab


@pytest.fixture
def few_steps(pipe, recorded):
    """The same utterance with 2 steps of the ODE."""
    options = pipe.checkpoint.options.but(n_timesteps=2, seed=7)
    return pipe.replay(recorded, "flow", options, save=wb.EVERYTHING)


@pytest.fixture
def folder(tmp_path, recorded):
    """What a person drops: a sound, a log of two runs, and what cannot be opened."""
    (tmp_path / "kumo.flac").write_bytes(KUMO.read_bytes())
    (tmp_path / "server.log").write_text(LOG + "start\n" + LOG)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "note.txt").write_text("hello")
    return tmp_path


def test_an_empty_dashboard_says_what_to_do():
    dashboard = wb.Dashboard()
    for title in ("player", "findings", "trajectory", "comparison", "suspects"):
        assert "Nothing is open yet: drop" in opened(dashboard, title).static()
    assert "Open the voice" in opened(dashboard, "run again").static()


def test_what_cannot_be_opened_is_one_sentence_and_the_others_are_open(folder, recorded):
    dashboard = wb.Dashboard(
        recorded, folder / "broken.wav", folder / "missing.trace", 7, folder / "server.log"
    )
    names = [source.name for source in dashboard.sources]
    assert names == ["Eight months to Mars.", "server.log#1", "server.log#2"]
    assert len(dashboard.problems) == 3
    for problem in dashboard.problems:
        assert "\n" not in problem and "Traceback" not in problem
        assert problem.split()[0] in dashboard.static()


def test_a_drop_opens_all_it_can_and_names_no_temporary_folder(folder):
    dashboard = wb.Dashboard()
    said = dashboard._open_dropped(folder)
    assert [source.name for source in dashboard.sources] == ["kumo.flac", "server.log#1", "server.log#2"]
    assert said.startswith("opened kumo.flac, server.log#1") and "2 could not be opened" in said
    assert str(folder) not in dashboard.static() + opened(dashboard, "player").static()


def test_the_files_of_a_dump_dropped_without_their_folder_are_one_run(tmp_path, recorded):
    import numpy as np

    np.save(tmp_path / "flow_mel.npy", recorded["flow/mel"].numpy())
    np.save(tmp_path / "hift_wav.npy", recorded.wav.numpy())
    (tmp_path / "names.toml").write_text(MAPPING)
    dashboard = wb.Dashboard()
    dashboard._open_dropped(tmp_path)
    assert dashboard.problems == []
    (source,) = dashboard.sources
    assert source.kind == "dump" and torch.equal(source.trace.wav, recorded.wav)


def test_a_folder_of_runs_is_opened_with_the_mappings_beside_them(tmp_path, recorded):
    import numpy as np

    inner = tmp_path / "output"
    inner.mkdir()
    for stem in ("first", "second"):
        np.savez(inner / f"{stem}.npz", **{f"{stem}_mel": recorded["flow/mel"].numpy()})
        (inner / f"{stem}.toml").write_text(
            f'[fields."flow/mel"]\nname = "{stem}_mel"\naxes = ["mel", "target_frame"]\n'
        )
    dashboard = wb.Dashboard()
    dashboard._open_dropped(tmp_path)
    assert [source.name for source in dashboard.sources] == ["first.npz", "second.npz"]
    assert dashboard.problems == []


def test_a_folder_of_tensors_that_fit_no_mapping_is_one_sentence(tmp_path):
    import numpy as np

    inner = tmp_path / "dump"
    inner.mkdir()
    for name in ("a", "b", "hift_wav"):
        np.save(inner / f"{name}.npy", np.zeros(7, np.float32))
    dashboard = wb.Dashboard()
    dashboard._open_dropped(tmp_path)
    assert dashboard.sources == [] and len(dashboard.problems) == 1
    assert "dump" in dashboard.problems[0] and "mapping" in dashboard.problems[0]


def test_without_a_reference_or_a_voice_a_tab_says_what_to_do(recorded):
    dashboard = wb.Dashboard(recorded)
    assert "No reference yet: drop a second file" in opened(dashboard, "comparison").static()
    assert "No voice is open" in opened(dashboard, "suspects").static()


def test_a_log_has_no_sound_and_a_sound_names_no_fault(folder):
    dashboard = wb.Dashboard(folder / "server.log")
    assert "server.log#1 holds no sound" in opened(dashboard, "player").static()
    assert "<img" in opened(dashboard, "trajectory").static()
    assert "only its values were judged" in opened(dashboard, "findings").static()
    sound = wb.Dashboard(KUMO)
    assert "No fault can be named from a sound alone" in opened(sound, "suspects").static()
    assert "a sound has no steps" in opened(sound, "trajectory").static()


@pytest.mark.slow
def test_findings_have_their_causes_and_depend_on_who_made_the_sound(recorded):
    dashboard = wb.Dashboard((recorded.wav + 0.01, 24_000))
    tab = opened(dashboard, "findings")
    assert "nothing found" in tab.static() and "offset" in tab.static()
    tab.controls["made by"].value = "a model"
    assert tab.background.wait(30)
    assert "1 finding" in tab.static() and "<td" in tab.static()


@pytest.mark.slow
def test_tabs_show_what_the_plain_functions_say(recorded, few_steps):
    dashboard = wb.Dashboard(few_steps, recorded)
    assert wb.find_glitches(few_steps).line in opened(dashboard, "player").static()
    compared = wb.compare(recorded, few_steps)
    assert escape(compared.line) in opened(dashboard, "comparison").static()
    page = dashboard.static()
    for part in ("<h3>player</h3>", "<h3>comparison</h3>", "data:audio/flac", "n_timesteps: 10 and 2"):
        assert part in page
    assert "<h3>findings</h3>" not in page  # it was not opened


def test_suspects_are_those_of_the_run_beside_its_reference(recorded, few_steps, pipe, monkeypatch):
    given = []

    def find(reference, candidate, watched):
        given.append((reference, candidate, watched.checkpoint))
        return Diagnosis(checked=["flow/mel"], unchecked={"hift": "no result of it was recorded"})

    monkeypatch.setattr(tabs_module, "find_suspects", find)
    page = opened(wb.Dashboard(few_steps, recorded, pipe=pipe), "suspects").static()
    assert given == [(recorded, few_steps, pipe.checkpoint)]
    assert "1 results checked" in page and "not checked: hift" in page


@pytest.mark.slow
def test_a_tab_is_computed_once_and_again_for_another_choice(recorded, few_steps, monkeypatch):
    calls = []
    monkeypatch.setattr(tabs_module, "compare", lambda *pair: calls.append(pair[:2]) or wb.compare(*pair))
    dashboard = wb.Dashboard(few_steps, recorded)
    assert not calls
    for title in ("comparison", "player", "comparison"):
        opened(dashboard, title)
    assert calls == [(recorded, few_steps)]
    dashboard.choose(dashboard.sources[1], dashboard.sources[0])
    assert dashboard.tabs[3].background.wait(60)
    assert calls[1:] == [(few_steps, recorded)]


def test_a_result_that_comes_after_another_choice_is_not_shown(recorded, folder, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(pair, *others):
        begun.set()
        go_on.wait(10)
        raise wb.WorkbenchError("of the old choice")

    monkeypatch.setattr(tabs_module, "compare", slow)
    dashboard = wb.Dashboard(recorded, recorded)
    dashboard._shown.selected_index = 3
    assert begun.wait(10)
    dashboard.choose(dashboard.sources[0], None)
    go_on.set()
    assert dashboard.tabs[3].background.wait(10)
    assert "No reference yet" in dashboard.tabs[3].static() and "old choice" not in dashboard.static()


def test_a_cancelled_tab_offers_to_compute_again(recorded, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(pair, *others):
        begun.set()
        go_on.wait(10)
        return wb.compare(recorded, recorded)

    monkeypatch.setattr(tabs_module, "compare", slow)
    dashboard = wb.Dashboard(recorded, recorded)
    dashboard._shown.selected_index = 3
    assert begun.wait(10)
    tab = dashboard.tabs[3]
    tab.cancel.click()
    assert "cancelled" in tab.status.value and tab._again.layout.display == ""
    go_on.set()
    tab.background.wait(10)
    tab._again.click()
    tab.background.wait(10)
    assert "MATCH" in tab.static() and tab._again.layout.display == "none"


@pytest.mark.slow
def test_the_form_runs_again_with_the_changed_options_alone(recorded, pipe):
    dashboard = wb.Dashboard(recorded, pipe=pipe)
    form = opened(dashboard, "run again")
    assert form.form["text"].value == "Eight months to Mars." and form.form["seed"].value == 7
    form.form["n_timesteps"].value = 2
    form.go.click()
    assert form.background.wait(60)
    options = pipe.checkpoint.options.but(seed=7, n_timesteps=2)
    made, before = dashboard._choice_now()
    assert torch.equal(made.trace.wav, pipe.replay(recorded, "lm", options).wav)
    assert made.name == "run 1: n_timesteps=2" and before.trace is recorded
    assert "is now its reference" in form.static() and "It is not known" not in form.static()


@pytest.mark.slow
def test_another_text_is_spoken_anew_in_the_voice_of_the_run(recorded, utt, pipe):
    dashboard = wb.Dashboard(recorded, pipe=pipe)
    form = opened(dashboard, "run again")
    form.form["text"].value = "To Mars."
    form.go.click()
    assert form.background.wait(60)
    made, _ = dashboard._choice_now()
    again = pipe.synthesise(pipe.prepare("To Mars.", utt.prompt), seed=7)
    assert torch.equal(made.trace.wav, again.wav) and made.name == "run 1: other text"


def test_bad_input_of_the_form_is_one_sentence_and_stays_in_the_form(recorded, pipe):
    form = opened(wb.Dashboard(recorded, pipe=pipe), "run again")
    form.form["temperature"].value = -1.0
    form.go.click()
    assert form.background.wait(30)
    assert "temperature" in form.static() and form.form["temperature"].value == -1.0
    form.form["temperature"].value = 1.0
    form.form["prompt"].value = "missing.wav"
    form.go.click()
    assert form.background.wait(30)
    assert "missing.wav" in form.static() and form.form["prompt"].value == "missing.wav"


@pytest.mark.slow
def test_the_form_opens_a_voice_and_the_tabs_use_it():
    dashboard = wb.Dashboard()
    form = opened(dashboard, "run again")
    form.voice.value = "no such folder"
    form.go.click()
    assert form.background.wait(30) and "no such folder" in form.static() and dashboard.pipe is None
    form.voice.value = ""
    form.go.click()
    assert form.background.wait(60) and "Voice: tiny" in form.static() and dashboard.pipe is not None


def test_a_path_that_is_typed_is_opened(folder):
    dashboard = wb.Dashboard(folder=folder)
    dashboard.path.value = f"  {KUMO} "
    assert [source.name for source in dashboard.sources] == ["kumo_0.flac"] and dashboard.path.value == ""
    dashboard.path.value = str(folder / "missing.trace")
    assert "missing.trace" in dashboard.problems[0]


def test_names_are_unique_and_the_number_of_runs_is_bounded(monkeypatch):
    monkeypatch.setattr(dashboard_module, "MAX_SOURCES", 3)
    dashboard = wb.Dashboard(KUMO, KUMO, KUMO, KUMO)
    assert [source.name for source in dashboard.sources] == [
        "kumo_0.flac",
        "kumo_0.flac (2)",
        "kumo_0.flac (3)",
    ]
    assert "at most 3" in dashboard.problems[0]
    dashboard.close_all()
    assert dashboard.sources == [] and "Nothing is open" in dashboard.static()


def test_hostile_names_and_texts_are_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)>.flac"
    (tmp_path / name).write_bytes(KUMO.read_bytes())
    trace = wb.Trace({"hift/wav": torch.zeros(24_000)}, {"text": "<script>alert(2)</script>"})
    page = wb.Dashboard(tmp_path / name, trace, "<b>no</b>.wav").static()
    for text in ("<img src=x", "<script>alert", "<b>no"):
        assert text not in page
