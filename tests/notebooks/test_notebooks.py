"""Every notebook runs from top to bottom, is stored without outputs, has short cells and leads on to others."""

import re

import nbformat
import pytest

from tests.book import NOTEBOOKS
from workbench.show.report.notebook import page as export

# Notebooks use the public face, `wb`, alone, and find what they need without paths of their own.
INNER = ("from workbench", "import workbench.", "sys.path", "os.environ", "__file__")
NUMBERED = [path for path in NOTEBOOKS if path.stem[0] == "0"]
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_clean(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(len(cell.source.splitlines()) <= 25 for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not [cell.source for cell in code if any(words in cell.source for words in INNER)]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_notebook_begins_with_the_case_and_the_bundled_voice_and_ends_with_links(path):
    cells = nbformat.read(path, as_version=4).cells
    first, parameters, last = cells[0].source, cells[1].source, cells[-1].source
    assert first.startswith("# ") and "the case" in first.lower()
    assert "checkpoint = None  # bundled" in parameters
    assert "wb.Checkpoint.load(checkpoint)" in "".join(cell.source for cell in cells)
    assert "## Where to go on" in last and LINK.search(last)
    for link in [
        link for cell in cells if cell.cell_type == "markdown" for link in LINK.findall(cell.source)
    ]:
        assert (path.parent / link).is_file(), link


def test_each_widget_is_used_in_a_notebook():
    code = "".join(path.read_text(encoding="utf-8") for path in NUMBERED)
    used = {"ode_explorer", "VocoderLab", "sampling_lab", "TraceBrowser", "ComparisonBrowser", "FilePicker"}
    assert {name for name in used if f"wb.widgets.{name}(" not in code} == set()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request, book):
    """A notebook after "Run all", on disk."""
    return book.executed(request.param.stem)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel client's own
def test_notebook_runs_and_shows_figures_and_sound(executed):
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any('class="dataframe"' in output.get("data", {}).get("text/html", "") for output in outputs)
    drawing = [c for c in cells if c.cell_type == "code" and ("wb.plots." in c.source or "plt." in c.source)]
    assert drawing and all(any(map(is_picture, cell.outputs)) for cell in drawing)
    assert any("data:audio/" in output.get("data", {}).get("text/html", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exported_notebook_shows_the_same_without_a_kernel(executed, page, tmp_path):
    out = tmp_path / f"{executed.stem}.html"
    out.write_text(export(executed, executed.stem), encoding="utf-8")
    page.goto(out.as_uri())
    page.locator("audio, canvas.base[aria-label]").first.wait_for(state="attached")
    cells = nbformat.read(executed, as_version=4).cells
    drawn = sum(is_picture(output) for cell in cells for output in cell.get("outputs", []))
    pictures = page.locator(".jp-OutputArea img:visible")
    assert pictures.count() >= drawn > 0
    assert all(picture.evaluate("image => image.naturalWidth") > 100 for picture in pictures.all())


def is_picture(output: nbformat.NotebookNode) -> bool:
    return "image/png" in output.get("data", {})
