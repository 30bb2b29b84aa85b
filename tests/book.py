"""The book's sources in a folder of their own, where each notebook is executed once for all tests."""

import os
import shutil
from pathlib import Path

import nbclient
import nbformat

from tests.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class Book:
    """A copy of `notebooks/`, beside links to what its pages refer to.

    Parameters
    ----------
    folder : Path
        An empty folder. What the notebooks write is written below it, not into the checkout.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("workbench", "data", "CHANGELOG.md"):
            (folder / name).symlink_to(ROOT / name)
        self.pages = folder / "notebooks"
        shutil.copytree(
            ROOT / "notebooks", self.pages, ignore=shutil.ignore_patterns("output", "__pycache__")
        )
        self.done: set[str] = set()

    def executed(self, name: str) -> Path:
        """Return the copy of a notebook after "Run all"; a second call runs nothing."""
        path = self.pages / f"{name}.ipynb"
        if name not in self.done:
            notebook = nbformat.read(path, as_version=4)
            client = nbclient.NotebookClient(
                notebook, timeout=600, resources={"metadata": {"path": self.pages}}
            )
            client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})  # this checkout, whatever is installed
            nbformat.write(notebook, path)
            self.done.add(name)
        return path
