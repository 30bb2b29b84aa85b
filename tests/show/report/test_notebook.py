"""`run_notebook`: a notebook as one page with its figures, tables and sound, without a kernel or a network."""

import re

import nbformat
import pytest

import workbench as wb
from workbench.cli import main
from workbench.show.report.notebook import FOLDER, notebook_path, run_notebook

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the kernel client's own
]

PARAMETERS = """seconds = 1.0
label = "mine"
count = 3  # of rows"""
SHOWN = """import math, ipywidgets, pandas as pd, torch, workbench as wb
from tqdm.auto import tqdm
from workbench.show.widgets.panel import Panel
from workbench.trace.trace import Trace
for _ in tqdm(range(3)): pass
wav = 0.1 * torch.sin(torch.arange(int(24000 * seconds)) / 20)
mel = torch.linspace(-11, 1, 80 * 50).reshape(80, 50)
trace = Trace({"flow/mel": mel, "hift/wav": wav}, {"text": label})
panel = Panel([ipywidgets.IntSlider()])
panel.show(wb.plots.mel(trace), pd.DataFrame({"row": range(count)}), wb.player(trace, names=["in a panel"]))
panel"""

HEARD = "from IPython.display import Audio\nAudio(trace.wav.numpy(), rate=24000, normalize=False)"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a notebook of these cells, the first of them its parameters; work in its folder."""

    def go(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), tmp_path / "small.ipynb")
        return tmp_path / "small.ipynb"

    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return go


def test_page_shows_everything_without_kernel_and_network(written, page, tmp_path):
    path = written(PARAMETERS, SHOWN, "wb.player(trace)", "wb.plots.waveform(trace);", HEARD)
    out = run_notebook(path, {"seconds": 0.5, "label": "hers"}, tmp_path / "a" / "small.html", False)
    assert [p.name for p in out.parent.iterdir()] == ["small.html"]
    from playwright.sync_api import expect

    page.goto(out.as_uri())
    page.locator("canvas.base[aria-label]").nth(1).wait_for()
    assert page.locator("[data-trace]").all_inner_texts() == ["A · in a panel", "A · hers"]
    assert page.locator(".of").all_inner_texts() == ["/ 0.500 s"] * 2
    page.get_by_role("button", name="Play").first.click()
    expect(page.locator(".time b").first).not_to_have_text(re.compile("^0.0"))
    expect(page.locator("audio:has(source)")).to_have_js_property("duration", 0.5)
    assert page.locator("tbody tr").count() == 3
    pictures = page.locator(".jp-OutputArea img:visible")
    assert pictures.count() == 2
    assert all(picture.evaluate("image => image.naturalWidth") > 100 for picture in pictures.all())
    text = page.locator("main").inner_text()
    assert "VBox" not in text and "HBox" not in text and "it/s" not in text  # neither widgets nor bars

    page.set_viewport_size({"width": 390, "height": 700})  # a phone: figures keep a readable size and scroll
    assert all(picture.evaluate("image => image.clientWidth") == 640 for picture in pictures.all())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_notebook_imports_modules_beside_it(written, tmp_path, monkeypatch):
    path = written(PARAMETERS, "from beside import answer\nprint(answer)")
    (tmp_path / "beside.py").write_text("answer = 6 * 7")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = run_notebook(path, {}, "small.html", progress=False)
    assert re.search(r"\b42\b", out.read_text())


def test_failing_cell_is_named_and_earlier_output_is_kept(written, tmp_path):
    path = written(PARAMETERS, "print('so far' + ' so good')", "# look\nwb = None\nwb.player()")
    with pytest.raises(
        wb.WorkbenchError, match=r"small.ipynb: cell \[3\], '# look': AttributeError: 'NoneType'"
    ):
        run_notebook(path, {}, tmp_path / "small.html", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.failed.html", "small.ipynb"]
    kept = (tmp_path / "small.failed.html").read_text()
    assert "so far so good" in kept and "AttributeError" in kept


def test_names_and_parameters_are_checked_before_anything_runs(written, tmp_path):
    path = written(PARAMETERS, "1 / 0")
    start = notebook_path("start-here")
    assert start == notebook_path("00-start-here.ipynb") == notebook_path(start)
    with pytest.raises(wb.WorkbenchError, match="no notebooks are called 'start'; there are 00-start-here"):
        notebook_path("start")
    with pytest.raises(wb.WorkbenchError, match="no parameter 'sek'; it has seconds, label, count"):
        run_notebook(path, {"sek": 1}, tmp_path / "small.html")
    with pytest.raises(wb.WorkbenchError, match="could not be written"):
        run_notebook(path, {}, path / "small.html")
    path.write_text("no notebook")
    with pytest.raises(wb.WorkbenchError, match="cannot be read as a notebook"):
        run_notebook(path, {}, tmp_path / "small.html")
    assert [p.name for p in tmp_path.iterdir()] == ["small.ipynb"]


def test_notebook_runs_from_the_shell(written, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(PARAMETERS, "print(seconds + count, label)")
    assert main(["notebook", "small.ipynb", "-p", "seconds=2.25", "-p", "label=a b"]) == 0
    said = capfd.readouterr()
    assert said.out.startswith("output/small.html: ") and "cell" in said.err
    assert "IPKernelApp" not in said.err  # the log of a kernel that was shut down as planned
    assert "5.25 a b" in (tmp_path / "output" / "small.html").read_text()
    assert main(["notebook", "small.ipynb", "-p", "text=x"]) == 2
    assert "it has seconds, label, count" in capfd.readouterr().err
