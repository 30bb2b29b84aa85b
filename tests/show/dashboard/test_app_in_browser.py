"""`workbench app` in Chromium: files are really dropped, no request leaves the machine, and Ctrl-C ends it."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.paths import ROOT
from tests.show.common import SLOW, page_that_stays

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The process, and the address that it prints."""
    pytest.importorskip("voila")
    folder = tmp_path_factory.mktemp("app")
    env = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    env |= {f"JUPYTER_{name}": str(folder / name) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    command = [sys.executable, "-m", "workbench", "app", "--no-browser"]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=folder
        )
        try:
            address = re.search(r"http://127\.0\.0\.1:\S+", process.stdout.readline())[0]
            yield process, address
        finally:
            process.kill()
            process.wait(30)


@pytest.fixture
def page(browser, server):
    """The dashboard; a request to another address or an error in the console fails the test."""
    _, address = server
    with page_that_stays(browser, address.partition("?")[0], 1200, 1400) as page:
        page.goto(address)
        page.locator(".wb-drop").wait_for()
        yield page


def drop(page, *paths):
    """Drop files or folders, as the browser gets them from the desktop."""
    session = page.context.new_cdp_session(page)
    box = page.locator(".wb-drop").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})


def test_files_that_are_dropped_are_heard_judged_and_compared(page, recorded, tmp_path):
    """One test, since a page takes long to start."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    from workbench.speech.frontend.audio import write_wav

    wav = recorded.wav.clone()
    wav[6000] += 0.9  # a click
    write_wav(tmp_path / "click.wav", wav, recorded.sample_rate)
    recorded.save(tmp_path / "output" / "right.trace")  # a folder, and larger than one message may be
    (tmp_path / "broken.npz").write_bytes(b"PK")

    drop(page, tmp_path / "click.wav", tmp_path / "broken.npz")
    state = page.locator(".wb-drop-state")
    expect(state).to_have_text("opened click.wav; 1 could not be opened, see below", timeout=SLOW)
    expect(page.get_by_text("broken.npz")).to_be_visible(timeout=SLOW)
    page.locator("canvas.base[aria-label]").first.wait_for()
    expect(page.get_by_text("click.wav: 1 finding in")).to_be_visible(timeout=SLOW)
    page.get_by_role("tab", name="findings").click()
    expect(page.get_by_role("cell", name="click", exact=True)).to_be_visible(timeout=SLOW)
    page.get_by_role("tab", name="comparison").click()
    expect(page.get_by_text("No reference yet: drop a second file")).to_be_visible(timeout=SLOW)

    drop(page, tmp_path / "output")
    expect(state).to_have_text("opened right.trace", timeout=SLOW)
    expect(page.get_by_text("click.wav beside right.trace")).to_be_visible(timeout=SLOW)

    page.get_by_role("tab", name="player").click()
    page.locator("canvas.base[aria-label]:visible").first.wait_for()
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".time b").locator("visible=true")).not_to_have_text("0.000", timeout=SLOW)
    found = Axe().run(page, context=".workbench-dashboard").response
    assert found["passes"]
    assert [v["id"] for v in found["violations"] if v["impact"] in ("serious", "critical")] == []


def test_the_page_is_not_shown_without_its_secret_and_ctrl_c_ends_it(server):
    process, address = server
    without = urllib.request.urlopen(address.partition("?")[0]).read().decode()
    assert "kernelId" not in without
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert rest.splitlines()[-1] == "ended" and process.returncode == 0
