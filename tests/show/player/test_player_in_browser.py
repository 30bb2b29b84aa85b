"""The player in Chromium, without network: from a file, in an exported notebook, with a widget model."""

import io
import math
import re
import shutil
import subprocess
import zlib
from itertools import pairwise

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image

import workbench as wb
from tests.show.common import (
    LIGHT_AND_DARK,
    OUTPUT_SAMPLES,
    at,
    click,
    drag,
    found,
    is_playing,
    loop,
    play,
    position,
    ready,
    tone,
    two,
)
from workbench.show.player.page import MODULE

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_player_shows_the_duration_of_the_longest_trace(opened):
    page = opened(wb.player(tone(2.5), tone(1.0)))
    assert page.locator(".of").inner_text() == "/ 2.500 s"
    assert page.get_by_role("slider", name="Position").get_attribute("aria-valuemax") == "2.500"
    assert "peak −6.0 dBFS" in page.locator(".levels").inner_text()


def test_half_a_minute_loads_within_a_second(opened):
    page = opened(wb.player(tone(30.0), tone(30.0)))
    for _ in range(3):  # the machine may be busy
        page.reload()
        ready(page)
        took = page.evaluate(
            "performance.now() - performance.getEntriesByType('navigation')[0].responseStart"
        )
        if took < 1000:
            return
    pytest.fail(f"{took:.0f} ms")


def test_click_seeks_and_keeps_playing(opened):
    page = opened(two())
    click(page, 1.5)
    assert position(page) == pytest.approx(1.5, abs=0.01)
    play(page)
    page.wait_for_timeout(200)
    click(page, 3.0)
    page.wait_for_timeout(200)
    assert is_playing(page)
    assert position(page) > 3.05


def test_playback_stops_at_the_end_and_restarts_from_the_start(opened):
    page = opened(wb.player(tone(0.8)))
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert position(page) == 0.8
    play(page)
    assert position(page) < 0.8


def test_a_change_of_trace_has_no_gap(opened):
    page = opened(two())
    page.locator("canvas.overlay").focus()
    play(page)
    page.wait_for_timeout(900)
    starts, before = page.evaluate("window.starts"), position(page)
    page.keyboard.press("2")
    page.wait_for_timeout(400)
    assert page.evaluate("window.starts") == starts == 2
    assert is_playing(page)
    assert position(page) > before + 0.3
    heard = np.array(page.evaluate(OUTPUT_SAMPLES))
    loud = np.sqrt((heard[-28_800:].reshape(-1, 240) ** 2).mean(axis=1))  # of two periods each
    assert loud[:5] == pytest.approx(0.5 / math.sqrt(2), rel=0.02)
    assert loud[-5:] == pytest.approx(0.25 / math.sqrt(2), rel=0.02)
    assert loud.min() > 0.99 * loud[-1]
    assert ((loud > 1.02 * loud[-1]) & (loud < 0.98 * loud[0])).sum() <= 2


def test_matched_levels_are_heard_and_shown(opened):
    page = opened(two(match_levels=True))
    assert "gain −6.0 dB" in page.locator(".levels").inner_text()
    assert page.locator("[data-trace='0']").inner_text() == "A −6.0 dB · ten steps"
    click(page, 0.0)
    play(page)
    page.wait_for_timeout(600)
    assert np.abs(page.evaluate(OUTPUT_SAMPLES)[-4800:]).max() == pytest.approx(0.25, rel=0.02)


def test_drag_loops_and_repeats(opened):
    page = opened(two())
    drag(page, 1.0, 1.4)
    assert loop(page) == pytest.approx([1.0, 1.4], abs=0.02)
    play(page)
    seen = []  # within 1.1 s, of 0.4 s each
    for _ in range(12):
        page.wait_for_timeout(90)
        seen.append(position(page))
    assert all(0.97 < t < 1.43 for t in seen)
    assert sum(later < earlier for earlier, later in pairwise(seen)) >= 2
    page.keyboard.press("l")
    page.wait_for_timeout(700)
    assert loop(page) is None
    assert position(page) > 1.43
    page.keyboard.press("l")
    assert loop(page) == pytest.approx([1.0, 1.4], abs=0.02)
    page.keyboard.press("Escape")
    assert page.locator("[data-action=loop]").inner_text() == "loop"


def test_keys_move_loop_and_choose(opened):
    page = opened(two())
    page.locator("canvas.overlay").focus()
    for key, expected in (
        ("ArrowRight", 0.04),
        ("Shift+ArrowRight", 0.54),
        ("ArrowLeft", 0.5),
        ("End", 4.0),
        ("Home", 0.0),
    ):
        page.keyboard.press(key)
        assert position(page) == pytest.approx(expected)
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "[", "Shift+ArrowRight", "]"):
        page.keyboard.press(key)
    assert loop(page) == pytest.approx([1.0, 1.5])
    page.keyboard.press("2")
    assert page.locator("[data-trace='1']").get_attribute("aria-pressed") == "true"
    page.keyboard.press("9")
    assert page.locator("[data-trace='1']").get_attribute("aria-pressed") == "true"
    play(page)
    assert page.get_by_role("status").inner_text() == "playing"
    page.keyboard.press("Space")
    assert not is_playing(page)


def test_space_bar_presses_a_focused_button(opened):
    page = opened(two())
    page.locator("[data-trace='1']").focus()
    page.keyboard.press("Space")
    assert page.locator("[data-trace='1']").get_attribute("aria-pressed") == "true"
    assert not is_playing(page)


def test_blind_comparison_hides_the_trace_until_it_is_revealed(opened):
    page = opened(two(findings=[found(1.0), found(2.0)]))
    seen = set()
    for _ in range(20):
        page.locator("canvas.overlay").focus()
        page.keyboard.press("x")
        assert page.locator("[data-trace][aria-pressed=true]").count() == 0
        assert page.locator(".levels").inner_text() == "X: levels are hidden"
        assert not page.locator(".findings").is_visible()
        page.get_by_role("button", name="reveal").click()
        seen.add(page.get_by_role("status").inner_text())
    assert seen == {"X was A: ten steps", "X was B: one step"}


def test_jump_to_a_finding_loops_around_it(opened):
    page = opened(two(findings=[None, found(1.0, 2.0, 3.9)]))
    assert not page.locator(".findings").is_visible()
    page.locator("canvas.overlay").focus()
    page.keyboard.press("2")
    for key, ends in (("n", [0.7, 1.31]), ("n", [1.7, 2.31]), ("p", [0.7, 1.31]), ("p", [3.6, 4.0])):
        page.keyboard.press(key)
        assert loop(page) == pytest.approx(ends, abs=0.011)
        assert position(page) == pytest.approx(ends[0], abs=0.011)
    page.get_by_role("button", name="click 2.00 s (7)").click()
    assert loop(page) == pytest.approx([1.7, 2.31], abs=0.011)


def test_zoom_keeps_the_position_in_place(opened):
    page = opened(two())
    click(page, 2.0)
    for _ in range(3):
        page.keyboard.press("+")
    page.mouse.click(*at(page, 4.0))  # now the right edge of a view of half a second
    assert position(page) == pytest.approx(2.25, abs=0.01)
    page.keyboard.press("0")
    click(page, 1.0)
    assert position(page) == pytest.approx(1.0, abs=0.01)


def test_starting_one_player_pauses_the_others(opened):
    page = opened(two(), wb.player(tone(2.0)), wb.player(tone(2.0)))
    plays = page.get_by_role("button", name="Play")
    assert plays.count() == 3
    page.locator("[data-action=play]").nth(0).click()
    page.wait_for_timeout(200)
    page.locator("[data-action=play]").nth(2).click()
    page.wait_for_timeout(200)
    labels = [page.locator("[data-action=play]").nth(i).get_attribute("aria-label") for i in range(3)]
    assert labels == ["Play", "Play", "Pause"]


def test_hostile_names_are_shown_as_text(opened):
    trace = tone()
    trace.wav[0] = 3.0
    page = opened(wb.player(trace, tone(), names=[HOSTILE, "b"], findings=found(1.0).assign(kind=HOSTILE)))
    assert page.locator("[data-trace='0']").inner_text() == f"A · {HOSTILE}"
    assert HOSTILE in page.locator(".warnings").inner_text()
    assert page.locator("img").count() == 2  # the fallback's own


@LIGHT_AND_DARK
def test_player_is_accessible(opened, page):
    from axe_playwright_python.sync_playwright import Axe

    opened(two(findings=[found(1.0, 2.0), None]))
    page.locator("summary").click()
    click(page, 1.0)
    page.keyboard.press("n")
    for row in ("spectrogram", "difference"):
        page.locator(f"[data-row={row}]").click()
    page.keyboard.press("x")  # the controls of the blind test
    results = Axe().run(page).response
    assert [v["id"] for v in results["violations"] if v["impact"] in ("serious", "critical")] == []
    assert any(check["id"] == "color-contrast" for check in results["passes"])


def brightness(page):
    """Of the picture's corner, as it is seen."""
    corner = Image.open(io.BytesIO(page.locator("canvas.base").screenshot())).convert("L")
    return corner.getpixel((4, 40))


@LIGHT_AND_DARK
def test_colours_follow_the_page(opened, page, request):
    opened(two())
    dark = request.node.callspec.params["page"] == "dark"
    assert (brightness(page) < 60) == dark
    page.evaluate(
        "document.body.style.background = 'white'"
    )  # as JupyterLab's light theme, whatever the system
    page.wait_for_timeout(50)
    assert brightness(page) > 240
    page.evaluate("document.body.style.background = 'rgb(20 20 20)'")
    page.wait_for_timeout(50)
    assert brightness(page) < 60
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert brightness(page) > 240


def test_audio_and_image_remain_without_scripts(browser, tmp_path):
    (tmp_path / "a.html").write_text(f"<!doctype html>{two().static()}")
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    assert page.locator("audio[controls]").count() == 2
    assert page.locator("audio").first.is_visible() and page.locator("img").first.is_visible()
    context.close()


@pytest.mark.slow
@pytest.mark.process
def test_printing_from_the_shell_waits_until_the_player_is_drawn(browser, tmp_path):
    (tmp_path / "a.html").write_text(f"<!doctype html>{wb.player(*[tone(40.0)] * 4).static()}")
    command = [shutil.which("chromium") or shutil.which("google-chrome"), "--headless", "--no-sandbox"]
    command += ["--disable-gpu", f"--print-to-pdf={tmp_path / 'a.pdf'}", (tmp_path / "a.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    pdf = (tmp_path / "a.pdf").read_bytes()
    rectangles = 0
    for stream in re.findall(rb"/FlateDecode[^>]*>>\s*stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        rectangles += zlib.decompress(stream).count(b" re\n")
    assert rectangles > 500  # the waveform's; what stands there without scripts has a few


MODEL = """async ([code, data]) => {
  const { default: widget } = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  const values = { data, position: 1.25, loop: [], choice: 1, listening: [] }, acts = {};
  window.model = {
    saved: 0,
    get: (name) => values[name],
    set(name, value) {
      if (String(values[name]) === String(value)) return;
      values[name] = value;
      for (const act of acts[`change:${name}`] ?? []) act();
    },
    save_changes() { this.saved++; },
    on: (event, act) => (acts[event] ??= []).push(act),
    off: (event, act) => (acts[event] = acts[event].filter((other) => other !== act)),
    listening: () => Object.values(acts).flat().length,
  };
  window.leave = widget.render({ model: window.model, el: document.body });
}"""


def test_widget_state_follows_the_page_and_controls_it(page, tmp_path):
    (tmp_path / "a.html").write_text("<!doctype html><title>widget</title>")
    page.goto((tmp_path / "a.html").as_uri())
    page.evaluate(MODEL, [MODULE, two().data])
    ready(page)
    assert position(page) == 1.25
    assert page.locator("[data-trace='1']").get_attribute("aria-pressed") == "true"
    click(page, 2.0)
    drag(page, 1.0, 3.0)
    page.keyboard.press("1")
    got = page.evaluate("['position', 'loop', 'choice'].map((name) => model.get(name))")
    assert got[0] == pytest.approx(1.0, abs=0.01)
    assert got[1] == pytest.approx([1.0, 3.0], abs=0.01)
    assert got[2] == 0
    page.evaluate("model.set('loop', []), model.set('position', 3.5), model.set('choice', -1)")
    assert loop(page) is None
    assert position(page) == 3.5
    assert page.get_by_role("button", name="reveal").is_visible()
    saved = page.evaluate("model.saved")
    play(page)
    page.wait_for_timeout(300)
    assert 1 <= page.evaluate("model.saved") - saved <= 6
    page.get_by_label("Planned trials").select_option("5")
    for _ in range(5):
        page.locator("[data-answer='1']").click()
    (result,) = page.evaluate("model.get('listening')")
    assert [trial["answer"] for trial in result["trials"]] == ["B"] * 5
    assert wb.listening_test(result).planned == 5
    assert page.evaluate("leave(), model.listening()") == 0


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel client's own
def test_exported_notebook_plays(browser, page, tmp_path):
    code = """
import torch, workbench as wb
from workbench.trace.trace import Trace
trace = Trace({"hift/wav": 0.1 * torch.ones(24000)}, {"text": "mine"})
wb.player(trace, names=["hers"])"""
    cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("trace")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60).execute()
    text, _ = HTMLExporter().from_notebook_node(notebook)
    text = re.sub(
        r'<script[^>]* src="https:[^>]*>\s*</script>', "", text
    )  # RequireJS and MathJax, of the template
    (tmp_path / "notebook.html").write_text(text)
    page.goto((tmp_path / "notebook.html").as_uri())
    ready(page, 2)
    assert page.locator("[data-trace]").all_inner_texts() == ["A · hers", "A · mine"]
    page.get_by_role("button", name="Play").first.click()
    page.wait_for_timeout(400)
    assert position(page) > 0.1
