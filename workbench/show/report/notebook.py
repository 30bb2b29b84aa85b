"""Run a notebook with other parameters and keep what it showed as one HTML file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from workbench.errors import WorkbenchError
from workbench.files import atomic_write, shipped_folder

FOLDER = shipped_folder("notebooks")
TEMPLATE = Path(__file__).with_name("notebook.html.j2")
KERNEL = "python3"  # this Python, whatever the notebook was written with
LIVE = "application/vnd.jupyter.widget-view+json"


def run_notebook(
    name: str | os.PathLike,
    parameters: Mapping[str, object] | None = None,
    out: str | os.PathLike = "output/notebook.html",
    progress: bool = True,
) -> Path:
    """Run a notebook from top to bottom in a kernel of its own and write what it showed.

    The kernel runs in the present folder, so that relative paths mean what they mean to the caller. The page
    makes no request; a widget is there as its static twin.

    Parameters
    ----------
    name : str or path
        Of a notebook in `notebooks/`, with or without its number and suffix; or the path of any other.
    parameters : mapping
        Values for names in the cell that is tagged `parameters`: what JSON can hold.
    out : path
        The page. It appears whole or not at all.
    progress : bool
        Count cells on stderr.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    WorkbenchError
        Where there is no such notebook or parameter, nothing can be written, or a cell fails; what was shown
        up to there is then kept beside `out`, as `.failed.html`.
    """
    path, parameters, out = notebook_path(name), dict(parameters or {}), Path(out)
    _check(path, parameters)
    with atomic_write(out) as draft, TemporaryDirectory() as folder:
        executed = Path(folder) / "executed.ipynb"
        try:
            papermill.execute_notebook(
                path,
                executed,
                parameters,
                kernel_name=KERNEL,
                progress_bar=progress,
                extra_arguments=[_import_from(path.parent)],
            )
        except (PapermillExecutionError, DeadKernelError) as error:
            failed = out.with_name(f"{out.stem}.failed.html")
            with atomic_write(failed) as kept:
                kept.write_text(page(executed, path.stem), encoding="utf-8")
            raise WorkbenchError(f"{path.name}: {_reason(error)}; see {failed}") from None
        draft.write_text(page(executed, path.stem), encoding="utf-8")
    return out


def notebook_path(name: str | os.PathLike) -> Path:
    """Return the notebook that a name means.

    Raises
    ------
    WorkbenchError
        Where there is none, or more than one; it lists those that there are.
    """
    if Path(name).suffix == ".ipynb" and Path(name).is_file():
        return Path(name)
    there = sorted(FOLDER.glob("*.ipynb"))
    wanted = str(name).removesuffix(".ipynb")
    found = [path for path in there if wanted in (path.stem, re.sub(r"^\d+-", "", path.stem))]
    if len(found) != 1:
        raise WorkbenchError(
            f"{len(found) or 'no'} notebooks are called {wanted!r}; there are "
            f"{', '.join(path.stem for path in there) or 'none'}, or give the path of an .ipynb"
        )
    return found[0]


def page(path: Path, title: str) -> str:
    """Return a notebook with its outputs as one page that makes no request."""
    notebook = _without_kernel(nbformat.read(path, as_version=4))
    exporter = HTMLExporter(template_file=str(TEMPLATE), embed_images=True)
    return exporter.from_notebook_node(notebook, {"metadata": {"name": title}})[0]


def _check(path: Path, parameters: Mapping[str, object]) -> None:
    try:
        known = papermill.inspect_notebook(path)
    except (ValueError, nbformat.ValidationError, OSError) as error:
        raise WorkbenchError(f"{path} cannot be read as a notebook ({error})") from None
    for name in parameters:
        if name not in known:
            raise WorkbenchError(
                f"{path.name} has no parameter {name!r}; it has {', '.join(known) or 'no tagged cell'}"
            )


def _import_from(folder: Path) -> str:
    """Return the kernel's argument that lets a notebook import modules beside it, as it can in JupyterLab."""
    return f"--IPKernelApp.exec_lines=import sys; sys.path.append({str(folder.resolve())!r})"


def _reason(error: Exception) -> str:
    if isinstance(error, PapermillExecutionError):
        first = error.source.strip().partition("\n")[0]
        return f"cell [{error.exec_count}], {first!r}: {error.ename}: {' '.join(error.evalue.split())}"
    return f"the kernel ended ({error}); was there enough memory?"


def _without_kernel(notebook: NotebookNode) -> NotebookNode:
    """Leave of a widget its static twin; a progress bar has none and goes."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        cell_outputs = [o for o in outputs if LIVE not in o.get("data", {}) or "text/html" in o.data]
        for output in cell_outputs:
            output.get("data", {}).pop(LIVE, None)
        if outputs:
            cell.outputs = cell_outputs
    return notebook
