"""Run a notebook with other parameters and write its outputs as one HTML page."""

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

from workbench.errors import WorkbenchError, first_line
from workbench.files import atomic_write, shipped_folder

FOLDER = shipped_folder("notebooks")
TEMPLATE = Path(__file__).with_name("notebook.html.j2")
KERNEL = "python3"  # the running Python, also for a notebook that names another kernel
# A kernel logs an interrupt as an error, and jupyter_client interrupts each kernel before it shuts it down.
QUIET = "--IPKernelApp.log_level=CRITICAL"
LIVE_WIDGET = "application/vnd.jupyter.widget-view+json"  # MIME type of an output that needs a kernel


def run_notebook(
    name: str | os.PathLike,
    parameters: Mapping[str, object] | None = None,
    out: str | os.PathLike = "output/notebook.html",
    progress: bool = True,
) -> Path:
    """Run a notebook from top to bottom in a kernel of its own and write its outputs as a page.

    The kernel runs in the current folder, so that relative paths are those of the caller. The page makes no
    request; widgets are replaced by their static twins.

    Parameters
    ----------
    name : str or path
        A notebook of `notebooks/`, with or without its number and suffix, or the path of any notebook.
    parameters : mapping
        Values that JSON can hold, for names in the cell that is tagged `parameters`.
    out : path
        Where the page is written, in full or not at all.
    progress : bool
        Whether to count cells on stderr.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    WorkbenchError
        When there is no such notebook or parameter, the page cannot be written, or a cell fails. The outputs
        up to the failing cell are then kept in the folder of `out`, as `.failed.html`.
    """
    path = notebook_path(name)
    parameters = dict(parameters or {})
    out = Path(out)
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
                extra_arguments=[QUIET, _import_from(path.parent)],
            )
        except (PapermillExecutionError, DeadKernelError) as error:
            failed = out.with_name(f"{out.stem}.failed.html")
            with atomic_write(failed) as kept:
                kept.write_text(page(executed, path.stem), encoding="utf-8")
            raise WorkbenchError(f"{path.name}: {_reason(error)}; see {failed}") from None
        draft.write_text(page(executed, path.stem), encoding="utf-8")
    return out


def notebook_path(name: str | os.PathLike) -> Path:
    """Return the path of a notebook: `start-here`, `00-start-here` and a path of its own all work.

    Raises
    ------
    WorkbenchError
        When no notebook or more than one has this name; the error lists those that exist.
    """
    if Path(name).suffix == ".ipynb" and os.path.isfile(name):
        return Path(name)
    notebooks = sorted(FOLDER.glob("*.ipynb"))
    wanted = str(name).removesuffix(".ipynb")
    found = []
    for path in notebooks:
        without_number = re.sub(r"^\d+-", "", path.stem)
        if wanted in (path.stem, without_number):
            found.append(path)
    if len(found) != 1:
        raise WorkbenchError(
            f"{len(found) or 'no'} notebooks are called {wanted!r}; there are "
            f"{', '.join(path.stem for path in notebooks) or 'none'}, or give the path of an .ipynb"
        )
    return found[0]


def page(path: Path, title: str) -> str:
    """Return a notebook with its outputs as one page that makes no request."""
    notebook = _without_kernel(nbformat.read(path, as_version=4))
    exporter = HTMLExporter(template_file=str(TEMPLATE), embed_images=True)
    return exporter.from_notebook_node(notebook, {"metadata": {"name": title}})[0]


def _check(path: Path, parameters: Mapping[str, object]) -> None:
    """Raise a WorkbenchError when the notebook cannot be read or has no such parameter."""
    if "{" in str(path) or "}" in str(path):
        raise WorkbenchError(f"{path} has braces in its path, which papermill fills in; rename it")
    try:
        known = papermill.inspect_notebook(path)
    # Papermill and nbformat raise many types for a damaged file, such as AttributeError and RecursionError.
    except Exception as error:
        raise WorkbenchError(f"{path} cannot be read as a notebook ({first_line(error)})") from None
    for name in parameters:
        if name not in known:
            raise WorkbenchError(
                f"{path.name} has no parameter {name!r}; it has {', '.join(known) or 'no tagged cell'}"
            )


def _import_from(folder: Path) -> str:
    """Return the kernel's argument that lets a notebook import modules beside it, as it can in JupyterLab."""
    return f"--IPKernelApp.exec_lines=import sys; sys.path.append({str(folder.resolve())!r})"


def _reason(error: Exception) -> str:
    """Return which cell failed and why, on one line."""
    if isinstance(error, PapermillExecutionError):
        first = error.source.strip().partition("\n")[0]
        return f"cell [{error.exec_count}], {first!r}: {error.ename}: {' '.join(error.evalue.split())}"
    return f"the kernel ended ({error}); was there enough memory?"


def _without_kernel(notebook: NotebookNode) -> NotebookNode:
    """Keep the static twin of each widget, and remove widgets without one, such as progress bars."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" not in cell:
            continue  # a cell of text
        kept = []
        for output in cell.outputs:
            data = output.get("data", {})
            is_live = data.pop(LIVE_WIDGET, None) is not None
            if not is_live or "text/html" in data:
                kept.append(output)
        cell.outputs = kept
    return notebook
