"""Every notebook runs from top to bottom, is stored without outputs and has short cells."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_clean(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(len(cell.source.splitlines()) <= 25 for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel client's own
def test_runs(path):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in said)
    drawing = [
        c for c in notebook.cells if c.cell_type == "code" and ("wb.plots." in c.source or "plt." in c.source)
    ]
    assert drawing and all(any(map(is_picture, cell.outputs)) for cell in drawing)
    assert any("data:audio/wav" in output.get("data", {}).get("text/html", "") for output in said)


def is_picture(output: nbformat.NotebookNode) -> bool:
    return "image/png" in output.get("data", {})
