"""The widgets in JupyterLab itself: a server, a kernel and a browser."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from tests.paths import ROOT
from tests.show.common import page_that_stays

pytestmark = [pytest.mark.slow, pytest.mark.process]

LAB = f"""import workbench as wb
pipe = wb.Pipeline(wb.Checkpoint.load("{ROOT}/data/voices/tiny"))
utt = pipe.prepare("Hello.", "{ROOT}/data/prompts/kumo_0.flac")
lab = wb.widgets.ode_explorer(pipe, utt, seed=7)
lab"""
DASHBOARD = f"""import workbench as wb
wb.Dashboard("{ROOT}/data/prompts/kumo_0.flac")"""
CELLS = (LAB, "wb.player(lab.result.trace)", "wb.plots.mel(lab.result.trace);", "print('all' + ' ran')")
PICTURES = "(images) => images.map((image) => image.src)"


@pytest.fixture
def address(tmp_path, request):
    """A JupyterLab server with settings and files of its own; its notebook has `CELLS`, or those of the test."""
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(source) for source in getattr(request, "param", CELLS)]
    (tmp_path / "files").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), tmp_path / "files" / "small.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    folders = {f"JUPYTER_{name}": str(tmp_path / name) for name in own}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name) for name in ("SETTINGS", "WORKSPACES")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path / 'files'}"]
    command += [f"--IdentityProvider.token={token}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    env = os.environ | folders | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=tmp_path)
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}").close()
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/lab/tree/small.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(30)


def end_kernels(address):
    """End every kernel of the server."""
    server, _, token = address.replace("/lab/tree/small.ipynb", "").partition("?token=")
    key = {"Authorization": f"token {token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{server}/api/sessions", headers=key)) as answer:
        sessions = [session["id"] for session in json.load(answer)]
    assert sessions
    for each in sessions:
        request = urllib.request.Request(f"{server}/api/sessions/{each}", headers=key, method="DELETE")
        urllib.request.urlopen(request).close()


def run_all(page, address):
    """Open the notebook and run it."""
    page.goto(address)
    page.get_by_text("(ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text("all ran", exact=True).wait_for()


@pytest.fixture
def lab(browser, address):
    """The notebook after Run All, all of it in view; a request elsewhere or a complaint fails the test."""
    host = address.partition("/lab")[0]
    with page_that_stays(browser, f"{host}/", 1300, 4000) as page:
        run_all(page, address)
        yield page


def test_widgets_respond_in_jupyterlab(lab):
    """All widgets in one test, because the server takes long to start."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    explorer, sound, figure = (lab.locator(".jp-Notebook .jp-CodeCell").nth(i) for i in range(3))
    status = explorer.locator(".widget-html").first
    slider = {
        name: explorer.locator(f".widget-slider:has-text('{name}')") for name in ("n_timesteps", "knot")
    }
    handle = {name: found.locator(".noUi-handle") for name, found in slider.items()}
    pictures = explorer.locator(".jupyter-widgets img.figure")
    expect(figure.locator("img")).to_have_count(1)  # its own, and none of the panel's
    expect(pictures).to_have_count(2)
    right = explorer.bounding_box()["x"] + explorer.bounding_box()["width"]
    for picture in pictures.all():
        assert picture.bounding_box()["x"] + picture.bounding_box()["width"] <= right
    assert explorer.get_by_role("button", name="cancel").is_disabled()
    first, trajectory = pictures.evaluate_all(PICTURES)

    handle["knot"].press("ArrowRight")  # looked up, not computed
    expect(pictures.first).not_to_have_attribute("src", first)
    assert pictures.evaluate_all(PICTURES)[1] == trajectory

    handle["n_timesteps"].press("ArrowLeft")
    expect(status).to_contain_text("flow")
    expect(status).to_be_empty()
    expect(pictures.nth(1)).not_to_have_attribute("src", trajectory)

    for _ in range(20):  # of 54 steps that it could take
        handle["n_timesteps"].press("ArrowRight")
    expect(status).to_contain_text("flow")
    explorer.get_by_role("button", name="cancel").click()
    expect(status).to_have_text("cancelled; the controls are again those of the view")

    for cell in (explorer, sound):
        cell.get_by_role("button", name="Play").click()
        expect(cell.locator(".time b").locator("visible=true")).not_to_have_text("0.000")

    expect(lab.locator(".workbench-twin")).to_be_hidden()
    for own in (".workbench-view", "[data-player]"):
        found = Axe().run(lab, context=own).response
        assert found["passes"]
        assert [v["id"] for v in found["violations"] if v["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("address", [(DASHBOARD, "print('all' + ' ran')")], indirect=True)
def test_a_notebook_that_is_reopened_without_its_kernel_shows_what_was_seen_last(browser, address):
    from playwright.sync_api import expect

    page = browser.new_page()
    page.set_default_timeout(60_000)
    run_all(page, address)
    page.locator("canvas.base[aria-label]").first.wait_for()
    page.get_by_role("tab", name="findings").click()
    expect(page.locator(".jupyter-widgets").get_by_text("kumo_0.flac: nothing found").last).to_be_visible(
        timeout=60_000
    )
    expect(page.locator(".workbench-twin")).to_be_hidden()
    expect(page.locator(".workbench-twin h3")).to_have_text(["player", "findings"])
    with page.expect_response(lambda it: it.request.method == "PUT" and "small.ipynb" in it.url) as saved:
        page.get_by_role("button", name="Save and create checkpoint").click()
    assert saved.value.ok
    page.close()

    end_kernels(address)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    twin = page.locator(".workbench-twin")
    expect(twin).to_be_visible(timeout=60_000)
    expect(twin.locator("h3")).to_have_text(["player", "findings"])
    expect(twin.get_by_text("kumo_0.flac: nothing found").first).to_be_visible()
    expect(twin.locator("audio")).to_have_count(1)
    expect(page.get_by_text("Error displaying widget")).to_be_hidden()
    page.get_by_text("(ipykernel) | Idle").wait_for()  # JupyterLab starts another one, which knows nothing
    page.close()
    end_kernels(address)
