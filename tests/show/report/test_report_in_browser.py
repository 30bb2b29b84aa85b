"""A saved report in Chromium, without network: accessible, and usable by keyboard."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import workbench as wb
from tests.show.common import LIGHT_AND_DARK, found, ready, tone, two


def table():
    wide = pd.DataFrame({f"a long name of column {i}": [i / 7] * 3 for i in range(16)})
    return wide.set_axis(["one", "two", "three"])


@pytest.fixture
def report(page, tmp_path):
    """A saved report with one of everything."""
    report = wb.Report("The glitch", "One step instead of ten.\nSee below.")
    report.add("Two *sentences*.\n\nAnother.", "Words", "A remark.").add(table(), "Numbers")
    report.add(wb.plots.mel(tone()), "Picture").add(two(findings=[found(1.0), None]), "Sound")
    report.add(tone(), "Trace").add([1, 2], "Anything")
    page.goto(report.save(tmp_path / "report.html").as_uri())
    ready(page)
    plt.close()
    return page


@LIGHT_AND_DARK
def test_report_is_accessible(report):
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(report).response
    assert [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in results["violations"]] == []
    assert {"color-contrast", "image-alt"} <= {check["id"] for check in results["passes"]}


FOCUSED = """() => {
  let at = document.activeElement;
  while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  return at === document.body ? null : `${at.localName} ${at.getAttribute("aria-label") ?? at.innerText}`;
}"""


def test_keyboard_reaches_everything_in_a_report(report):
    seen = []
    for _ in range(80):
        report.keyboard.press("Tab")
        at = report.evaluate(FOCUSED)
        if at is None:
            break
        seen.append(at)
    for one in (
        "a Numbers",
        "button Copy Sound as text",
        "div table",
        "canvas Position in seconds",
        "summary Keys",
    ):
        assert one in seen
    for one in ("button Play", "button A · ten steps", "button click 1.00 s (7)", "button X, blind test"):
        assert one in seen
    assert len(seen) < 80
    report.locator("a", has_text="Numbers").press("Enter")
    assert report.evaluate("location.hash") == "#numbers"
    report.locator(".wide").first.press("ArrowRight")
    report.wait_for_timeout(400)
    assert report.locator(".wide").first.evaluate("table => table.scrollLeft") > 0
    report.locator("[data-copy]").first.press("Enter")
    assert report.locator("[data-copy]").first.inner_text() == "copied"


def test_a_figure_is_enlarged_by_a_click_and_shrinks_again(report):
    small = report.locator("button.enlarge img").bounding_box()["width"]
    report.set_viewport_size({"width": 390, "height": 800})
    report.locator("button.enlarge").click()
    enlarged = report.locator("dialog img")
    assert enlarged.bounding_box()["width"] > max(small, 1000)
    enlarged.click()
    assert report.locator("dialog[open]").count() == 0


def test_paper_has_no_folds_and_the_screen_gets_them_back(report):
    report.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<details><summary>s</summary>x</details>')"
    )
    report.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert report.locator("body > details[open]").count() == 1
    report.evaluate("dispatchEvent(new Event('afterprint'))")
    assert report.locator("body > details[open]").count() == 0


def test_on_a_phone_the_verdict_comes_before_the_contents(report):
    report.set_viewport_size({"width": 390, "height": 800})
    top = [report.locator(one).first.bounding_box()["y"] for one in (".lead", "nav", "section")]
    assert top == sorted(top)
    assert report.evaluate("document.documentElement.scrollWidth") <= 390
