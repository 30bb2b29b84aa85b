"""Progress bars that are gone when the work is done: on the screen, and in a notebook's file."""

from typing import Any

from tqdm.auto import tqdm

EMPTY = {"text/html": "", "text/plain": ""}  # of a text alone, pages would show a blank line


class ProgressBar(tqdm):
    """A bar of tqdm whose output in a notebook becomes empty when it closes.

    The bar of tqdm hides its widget, but the output stays in the notebook's file. When the file is opened
    again, the widget is gone and JupyterLab shows "model not found" in its place.

    Examples
    --------
    >>> list(ProgressBar(range(3), "steps", leave=False, delay=1.0))
    [0, 1, 2]
    """

    _output: Any = None  # of IPython, for the bar that a notebook shows

    def display(self, *args: Any, **more: Any) -> None:
        """Show or hide the bar; tqdm calls this."""
        closes = more.get("close", False)
        if not closes and not getattr(self, "displayed", True) and more.get("check_delay", True):
            from IPython.display import display  # only a notebook gets here

            self._output = display(self.container, display_id=True)
            self.displayed = True
        super().display(*args, **more)
        if closes and self._output is not None:
            self._output.update(EMPTY, raw=True)
