"""The player as an editor of sound, in Chromium: samples, rows, lanes, blind test, speed, files, paper, links."""

import io
import math
import re
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image
from scipy.stats import binomtest

import workbench as wb
from tests.show.common import (
    LEFT,
    OUTPUT_SAMPLES,
    RIGHT,
    click,
    drag,
    is_playing,
    loop,
    play,
    position,
    tone,
    two,
)
from workbench.trace.trace import Trace

RULER = 18  # pixels above the first row


def picture(page, index=0):
    """The base canvas as (height, width, 4)."""
    png = page.locator("canvas.base").nth(index).evaluate("(canvas) => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(b64decode(png.split(",")[1])))).astype(int)


def only(page, row):
    """Show a single row."""
    for button in page.locator("[data-row]:visible").all():
        if (button.get_attribute("aria-pressed") == "true") != (button.get_attribute("data-row") == row):
            button.click()


def drawing(page):
    """What screen readers say of the picture."""
    return page.locator("canvas.base").first.get_attribute("aria-label")


def sample(page):
    """Number and value of the sample at the position, as the foot says."""
    page.mouse.move(0, 0)
    number, value = re.search(r"sample (\d+): (\S+)", page.locator(".pointer").inner_text()).groups()
    return int(number), float(value.replace("−", "-"))


def three(**more):
    return wb.player(tone(1.0), tone(1.0, hz=300.0), tone(1.0, hz=400.0), names=["a", "b", "c"], **more)


# ---- zoom


def test_zoom_reaches_single_samples_and_draws_each_as_a_point(opened):
    wav = torch.zeros(48_000)
    wav[24_003] = 0.5  # a click of one sample
    page = opened(wb.player(Trace({"hift/wav": wav}, {})))
    only(page, "wave")
    page.locator("canvas.overlay").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    for _ in range(14):
        page.keyboard.press("+")
    assert position(page) == 1.0
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert sample(page) == (24_003, 0.5)
    drawn = picture(page)
    span = drawn.shape[1] - LEFT - RIGHT
    blue = (drawn[:, :, 2] > drawn[:, :, 0] + 60) & (drawn[:, :, 3] > 0)
    y = RULER + round(44 - 0.5 * 43)
    peak = np.flatnonzero(blue[y - 3, LEFT:-RIGHT])  # above the line: the head of the point alone
    assert 1 <= len(peak) <= 7
    rows = np.flatnonzero(blue[RULER : RULER + 88, LEFT + peak.mean().round().astype(int)])
    assert len(rows) > 20  # its stem
    points = blue[RULER + 46, LEFT:-RIGHT]  # below the line of zeros: points only
    runs = np.flatnonzero(np.diff(points.astype(int)) == 1)
    assert 8 <= len(runs) <= 12
    assert np.diff(runs).min() == pytest.approx(span / 12, abs=3)


def test_keys_wheel_rulers_and_overview_scroll(opened):
    page = opened(two())
    click(page, 1.0)
    page.keyboard.press("+")
    page.keyboard.press("+")  # one second, from 0.75
    page.keyboard.press("PageDown")
    click(page, 0.0)  # now the left edge
    assert position(page) == pytest.approx(1.65, abs=0.01)
    box = page.locator("canvas.overlay").bounding_box()
    span = box["width"] - LEFT - RIGHT
    page.mouse.move(box["x"] + LEFT + span / 2, box["y"] + 9)  # the ruler
    page.mouse.down()
    page.mouse.move(box["x"] + LEFT, box["y"] + 9, steps=4)  # half a view to the left
    page.mouse.up()
    click(page, 0.0)
    assert position(page) == pytest.approx(2.15, abs=0.01)
    assert loop(page) is None
    page.keyboard.down("Shift")
    page.mouse.wheel(0, span / 2)
    page.keyboard.up("Shift")
    page.wait_for_timeout(100)
    click(page, 0.0)
    assert position(page) == pytest.approx(2.65, abs=0.01)
    page.mouse.click(box["x"] + LEFT + span / 4, box["y"] + box["height"] - 20)  # the overview at 1 s
    click(page, 0.0)
    assert position(page) == pytest.approx(0.5, abs=0.01)


def test_a_short_region_can_be_measured_and_shown_but_is_no_loop(opened):
    page = opened(two())
    drag(page, 1.0, 1.019)
    assert loop(page) is None
    assert re.search("region (18|19|20)", page.locator(".pointer").inner_text())
    page.keyboard.press("z")
    click(page, 2.0)  # the middle
    assert position(page) == pytest.approx(1.0095, abs=0.001)


# ---- rows


@pytest.mark.parametrize("worker", ["allowed", "forbidden"])
def test_spectrogram_shows_a_tone_at_its_frequency(opened, page, worker):
    if worker == "forbidden":
        page.add_init_script("window.Worker = class { constructor() { throw new Error('forbidden'); } };")
    opened(wb.player(tone(hz=3000.0)))
    only(page, "spectrogram")
    page.wait_for_timeout(800)
    lane = picture(page)[RULER : RULER + 124, LEFT + 100 : -RIGHT - 100, :3].sum(axis=2).mean(axis=1)
    assert lane.argmax() == pytest.approx(124 * (1 - 3000 / 12_000), abs=3)
    assert page.get_by_label("Window of the spectrogram").is_visible()
    page.get_by_label("Window of the spectrogram").select_option("256")
    page.wait_for_timeout(800)
    wide = picture(page)[RULER : RULER + 124, LEFT + 100 : -RIGHT - 100, :3].sum(axis=2).mean(axis=1)
    assert (wide > wide.max() * 0.7).sum() > (lane > lane.max() * 0.7).sum()  # a short window blurs frequency


def test_difference_undoes_delay_and_polarity_and_says_what_is_left(opened):
    noise = torch.randn(24_000, generator=torch.Generator().manual_seed(0)) * 0.1
    late = torch.cat([torch.zeros(37), -noise])
    other = torch.randn(24_000, generator=torch.Generator().manual_seed(1)) * 0.1
    traces = [Trace({"hift/wav": wav}, {}) for wav in (noise, late, other, noise.clone())]
    page = opened(wb.player(*traces, names=list("abcd")))
    only(page, "difference")
    page.locator("canvas.overlay").focus()
    expected = {
        "1": "A is the reference",
        "2": "delay of 37 samples (1.54 ms) undone, opposite polarity undone, correlation −1.0000",
        "3": "not aligned (correlation",
        "4": "D − A: no sample differs",
    }
    for key, words in expected.items():
        page.keyboard.press(key)
        page.wait_for_timeout(400)
        assert words in drawing(page)
    page.get_by_label("Reference of the difference").select_option("B")
    page.wait_for_timeout(400)
    assert "D − B" in drawing(page)


def test_findings_that_overlap_lie_in_lanes_of_their_own(opened):
    rows = [
        ("mel", 0.0, 4.0, 1.0),
        ("smear", 0.5, 3.0, 1.0),
        ("click", 1.0, 1.5, 1.0),
        ("click", 1.2, 1.6, 2.0),
    ]
    page = opened(wb.player(tone(), findings=pd.DataFrame(rows, columns=["kind", "start", "end", "score"])))
    only(page, "findings")
    drawn = picture(page)
    x = LEFT + round(1.3 / 4 * (drawn.shape[1] - LEFT - RIGHT))  # where all four are
    colours = [tuple(drawn[RULER + 9 * lane + 4, x]) for lane in range(4)]
    assert len(set(colours[:3])) == 3
    assert colours[2] == colours[3]  # both are clicks
    assert (255, 255, 255, 255) not in colours


def test_stack_shows_all_traces_at_once(opened):
    page = opened(two())
    page.locator("canvas.overlay").focus()
    single = page.locator("canvas.base").bounding_box()["height"]
    page.keyboard.press("s")
    assert page.locator("canvas.base").bounding_box()["height"] > 1.3 * single
    assert page.locator("[data-action=stack]").get_attribute("aria-pressed") == "true"
    click(page, 1.0)
    assert position(page) == pytest.approx(1.0, abs=0.01)


# ---- the blind test


def test_x_is_each_of_three_traces(opened):
    page = opened(three())
    seen = set()
    for _ in range(40):
        page.locator("canvas.overlay").focus()
        page.keyboard.press("x")
        page.get_by_role("button", name="reveal").click()
        seen.add(page.get_by_role("status").inner_text())
    assert seen == {"X was A: a", "X was B: b", "X was C: c"}


def test_abx_over_three_traces_counts_trials_and_is_saved(opened, tmp_path):
    page = opened(three())
    page.locator("canvas.overlay").focus()
    page.keyboard.press("x")
    page.get_by_label("Planned trials").select_option("5")
    for trial in range(5):
        assert f"Trial {trial + 1} of 5: X is one of A, B, C" in page.locator(".question").inner_text()
        assert not page.locator(".outcome").is_visible()  # nothing tells right from wrong before the end
        page.keyboard.press("2")  # hear B beside X: the trial goes on
        page.locator("[data-action=blind]").first.click()
        page.locator("[data-answer='1']").click()
    said = page.locator(".result").inner_text()
    right = int(re.search(r"(\d) of 5 right", said)[1])
    p = binomtest(right, 5, 1 / 3, alternative="greater").pvalue
    assert float(re.search(r"p = ([\d.e-]+?)\. ", said)[1]) == pytest.approx(p, abs=0.001)
    with page.expect_download() as download:
        page.locator("[data-action=saveTest]").click()
    download.value.save_as(tmp_path / "listening-test.json")
    result = wb.listening_test(tmp_path / "listening-test.json")
    assert (result.right, len(result.trials), result.planned) == (right, 5, 5)
    assert result.p == pytest.approx(p)
    assert result.candidates == {"A": "a", "B": "b", "C": "c"}
    assert {answer for _, answer in result.trials} == {"B"}
    assert "of 5 right" in wb.Report("Heard?").add(result).html()


def test_a_pair_of_three_traces_makes_an_abx_test(opened):
    page = opened(three())
    page.locator("canvas.overlay").focus()
    page.keyboard.press("x")
    page.get_by_label("Candidates").select_option("A, C")
    assert page.locator("[data-answer]").all_inner_texts() == ["A", "C"]
    page.locator("canvas.overlay").focus()
    for _ in range(3):
        page.keyboard.press("Shift+Digit3")
    page.locator("[data-action=endTest]").click()
    said = page.locator(".result").inner_text()
    assert "of 3 right" in said and "Ended after 3 of 10 planned trials" in said


def test_unequal_loudness_is_told_before_it_gives_x_away(opened):
    page = opened(two())
    page.locator("canvas.overlay").focus()
    page.keyboard.press("x")
    assert "Loudness differs by 6.0 LU" in page.locator(".caution").inner_text()


# ---- speed, volume, files


def test_a_slower_speed_keeps_the_pitch_and_a_change_of_trace_has_no_gap(opened):
    page = opened(wb.player(tone(3.0), tone(3.0, level=0.25)))
    page.get_by_label("Speed").select_option("0.5")
    page.locator("canvas.overlay").focus()
    play(page)
    page.wait_for_timeout(300)
    before = position(page)
    page.wait_for_timeout(1000)
    assert position(page) - before == pytest.approx(0.5, abs=0.2)
    page.keyboard.press("2")
    page.wait_for_timeout(300)
    heard = np.array(page.evaluate(OUTPUT_SAMPLES))[-24_000:]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert spectrum.argmax() * 24_000 / len(heard) == pytest.approx(200, abs=3)
    loud = np.sqrt((heard.reshape(-1, 480) ** 2).mean(axis=1))  # of four periods each
    assert loud.min() > 0.8 * 0.25 / math.sqrt(2)  # no gap
    assert is_playing(page)


def test_volume_turns_the_output_down(opened):
    page = opened(two())
    page.get_by_label("Volume").fill("0.5")
    page.locator("canvas.overlay").focus()
    play(page)
    page.wait_for_timeout(600)
    assert np.abs(page.evaluate(OUTPUT_SAMPLES)[-4800:]).max() == pytest.approx(0.125, rel=0.03)


def test_sound_and_region_are_saved_with_the_samples_that_were_given(opened, tmp_path):
    page = opened(two())
    expected = (0.5 * torch.sin(2 * math.pi * 200 * torch.arange(96_000) / 24_000) * 32_767).round().numpy()
    drag(page, 1.0, 1.5)
    start, end = loop(page)
    for action, first, last in (("save", 0, 96_000), ("savePart", round(start * 24e3), round(end * 24e3))):
        with page.expect_download() as download:
            page.locator(f"[data-action={action}]").click()
        assert download.value.suggested_filename.startswith("A-ten-steps")
        download.value.save_as(tmp_path / "saved.wav")
        samples, rate = soundfile.read(tmp_path / "saved.wav", dtype="int16")
        assert rate == 24_000
        assert len(samples) == pytest.approx(last - first, abs=300)  # the button rounds to 10 ms
        if action == "save":
            assert np.abs(samples - expected).max() <= 1


# ---- paper and links


def is_blank(pixels):
    """Whether rows of a waveform or mel are missing: next to nothing but the ground."""
    dark = (pixels[..., :3].sum(axis=-1) < 600).mean()
    return dark < 0.05


def test_a_print_of_the_page_holds_the_picture(opened, page):
    other = tone()
    other["flow/mel"].neg_()  # a file holds equal pictures once
    opened(wb.player(tone(), other))
    pdf = page.pdf()  # of another width than the screen
    images = re.findall(rb"/Subtype /Image\s/Width (\d+)\s/Height (\d+)", pdf)
    assert (
        images.count((b"200", b"80")) == 2
    )  # the mels, which are 200 frames of 80 bins: paper shows both traces


def test_a_change_of_width_for_paper_does_not_empty_the_picture(opened, page):
    opened(two())
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(200)
    assert not is_blank(picture(page))
    assert picture(page).shape[1] == 2160
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1000, "height": 700})
    page.wait_for_timeout(200)
    assert picture(page).shape[1] == page.locator("canvas.base").bounding_box()["width"]


def test_players_of_one_trace_move_together_and_others_do_not(opened):
    trace = tone()
    page = opened(wb.player(trace), wb.player(tone(hz=300.0), trace), wb.player(tone(hz=100.0)))
    page.evaluate("window.told = []; document.addEventListener('workbench-view', (e) => told.push(e.detail))")
    click(page, 1.0)
    places = [float(text) for text in page.locator(".time b").all_inner_texts()]
    assert places == pytest.approx([1.0, 1.0, 0.0], abs=0.01)
    told = page.evaluate("told.map(({ trace, position, view }) => [trace, position, view])")
    assert len(told) == 1  # no echo
    assert told[0][0] == wb.player(trace).data["traces"][0]["id"]
    page.locator("[data-action=link]").nth(1).click()  # unlinked
    click(page, 2.0)
    places = [float(text) for text in page.locator(".time b").all_inner_texts()]
    assert places == pytest.approx([2.0, 1.0, 0.0], abs=0.01)
    detail = {"trace": told[0][0], "position": 3.0, "view": [2.5, 3.5]}
    page.evaluate("(detail) => document.dispatchEvent(new CustomEvent('workbench-view', { detail }))", detail)
    assert position(page) == pytest.approx(3.0)
    click(page, 0.0)
    assert position(page) == pytest.approx(2.5, abs=0.01)


def test_nothing_tells_x_to_linked_players(opened):
    trace = tone()
    page = opened(wb.player(trace, tone(hz=300.0)), wb.player(trace))
    page.evaluate("window.told = 0; document.addEventListener('workbench-view', () => told++)")
    page.locator("canvas.overlay").first.focus()
    page.keyboard.press("x")
    click(page, 1.0)
    assert page.evaluate("told") == 0


def test_a_phone_shows_the_player_without_sideways_scrolling(opened, page):
    page.set_viewport_size({"width": 390, "height": 844})
    opened(three())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
