"""What the kernel of a page runs that `app.serve` serves."""

from collections.abc import Sequence

from IPython.display import display
from ipywidgets import VBox

from workbench.errors import WorkbenchError
from workbench.show.dashboard.dashboard import Dashboard
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.pipeline import Pipeline


def show(things: Sequence[str], voice: str | None, device: str, folder: str | None) -> None:
    """Show a dashboard in the page; the arguments are those of `serve`."""
    pipe = None
    problems = []
    if voice is not None:
        try:
            pipe = Pipeline(Checkpoint.load(voice), device, progress=False)
        except WorkbenchError as error:
            problems.append(f"the voice cannot be opened: {error}")
    dashboard = Dashboard(*things, pipe=pipe, folder=folder)
    dashboard.tell(problems)
    display(VBox([dashboard]))  # a box, since a page needs no static twin
