"""What all widgets have in common: controls above, a view of the present state below, and a static twin."""

from collections.abc import Sequence
from html import escape
from typing import Any, Self

import ipywidgets
from IPython.display import DisplayHandle, display

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import close_figures
from workbench.show.report.render import render
from workbench.show.widgets.background import PAUSE, BackgroundTask, Bar

# JupyterLab's style of tables and text, which widgets.HTML lacks: its lines are as high as buttons.
# On a phone a figure keeps a size at which it can be read, and scrolls.
VIEW = """<style>.workbench-view {{ line-height: 1.4 }} .workbench-view table {{ margin: 0.5em 0 }}
@media (max-width: 600px) {{
  .workbench-view figure {{ overflow-x: auto }} .workbench-view img.figure {{ min-width: 44em }}
}}</style>
<div class="jp-RenderedHTMLCommon workbench-view">{}</div>"""


# The twin stands below the widget. It is hidden while the widget is drawn; where its model is gone, the
# message in its place is hidden, and in a page of nbconvert without its script the empty place. This is CSS
# alone, so that a saved notebook needs no kernel and no script.
TWIN = """<style>
.jp-OutputArea-child:has(.widget-vbox) + .jp-OutputArea-child:has(.workbench-twin),
.jp-OutputArea-child:not(:has(.widget-vbox)):has(+ .jp-OutputArea-child .workbench-twin)
{{ display: none }}
</style><div class="workbench-twin">{}</div>"""


class Panel(ipywidgets.VBox):
    """Controls and a view. The view is HTML, so it remains when the kernel is gone.

    A cell has two outputs: the widget, and its static twin, which a saved notebook shows without a kernel.
    The twin follows the view.

    A panel computes nothing itself: it calls a plain function and shows what that returns.

    Parameters
    ----------
    controls : sequence of Widget
    """

    def __init__(self, controls: Sequence[ipywidgets.Widget]) -> None:
        self._parts: list[str | Panel] = []  # of the view: HTML, and panels that have a view of their own
        self._owner: Panel | None = None  # the panel that shows this one
        self._twin: DisplayHandle | None = None  # the static twin in a cell
        self._view = ipywidgets.VBox()
        super().__init__([ipywidgets.Box(controls, layout={"flex_flow": "row wrap"}), self._view])

    def show(self, *things: Any) -> None:
        """Replace the view by these things, rendered as in a report; widgets among them stay live."""
        parts: list[str | Panel] = []
        children = []
        for thing in things:
            if isinstance(thing, Panel):
                thing._owner = self
                parts.append(thing)
                children.append(thing)
                continue
            html = str(render(thing).html)
            close_figures(thing)
            parts.append(html)
            is_live = isinstance(thing, ipywidgets.Widget)
            children.append(thing if is_live else ipywidgets.HTML(VIEW.format(html)))
        self._parts = parts
        self._view.children = children
        self._update_twin()

    def static(self) -> str:
        """Return the present view as HTML that needs no kernel."""
        parts = [part.static() if isinstance(part, Panel) else part for part in self._parts]
        return "<div>" + "\n".join(parts) + "</div>"

    def _update_twin(self) -> None:
        """Let a saved notebook show what is seen now, not what was seen when the cell ran."""
        outermost = self
        while outermost._owner is not None:
            outermost = outermost._owner
        if outermost._twin is not None:
            outermost._twin.update(outermost._twin_bundle(), raw=True)

    def _twin_bundle(self) -> dict[str, str]:
        return {"text/html": TWIN.format(self.static()), "text/plain": repr(self)}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        bundle, metadata = found if isinstance(found, tuple) else (found, {})
        return bundle | {"text/html": self.static()}, metadata

    def _ipython_display_(self) -> None:
        bundle, metadata = self._repr_mimebundle_()
        del bundle["text/html"]
        display(bundle, metadata=metadata, raw=True)
        self._twin = display(self._twin_bundle(), raw=True, display_id=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ComputePanel(Panel):
    """A panel whose view takes time to compute.

    It waits until the controls rest, shows the progress, and can be cancelled. A subclass has
    `compute(values, bar)`, which runs in a thread, and `draw(result)`.

    Parameters
    ----------
    controls : dict
        Name of each control -> the control; `compute` gets their values under the same names.
    """

    WAITING = "waiting"
    CANCELLED = "cancelled; the controls are again those of the view"

    def __init__(self, controls: dict[str, ipywidgets.Widget]) -> None:
        self.controls = controls
        self._drawn_values: dict[str, Any] = {}  # of the controls, for the present view
        self.progress = ipywidgets.FloatProgress(0.0, min=0.0, max=1.0, layout={"width": "300px"})
        self.status = ipywidgets.HTML()
        self.background = BackgroundTask(self._finish, self._fail, self._advance)
        # Both are used only while something runs.
        self.progress.layout.visibility = "hidden"
        self.cancel = ipywidgets.Button(
            description="cancel", icon="stop", disabled=True, layout={"width": "7em"}
        )
        self.cancel.on_click(lambda _: self._cancel())
        super().__init__(list(controls.values()))
        head, view = self.children
        self.children = [head, ipywidgets.HBox([self.progress, self.cancel, self.status]), view]
        for control in controls.values():
            control.observe(self._on_change, "value")

    def compute(self, values: dict[str, Any], bar: Bar) -> Any:
        """Return what `draw` shows; every loop has to go through `bar`, which counts and stops it."""
        raise NotImplementedError

    def draw(self, result: Any) -> None:
        """Show what `compute` returned."""
        raise NotImplementedError

    def restart(self, pause: float = PAUSE) -> None:
        """Compute again, in the background, with the present values of the controls."""
        values = self.values()
        self._set_status(self.WAITING)
        self._set_running(True)
        self.background.start(lambda bar: (values, self.compute(values, bar)), pause)

    def values(self) -> dict[str, Any]:
        """Return what the next view is computed from: the values of the controls."""
        return {name: control.value for name, control in self.controls.items()}

    def render_now(self) -> Self:
        """Compute and draw, and return when that is done: for the first view, and for tests."""
        self.restart(0.0)
        self.background.wait()
        return self

    def _finish(self, found: tuple[dict[str, Any], Any]) -> None:
        self._drawn_values, result = found
        self._set_running(False)
        self._set_status("")
        self.draw(result)

    def _fail(self, error: Exception) -> None:
        self._set_running(False)
        self._set_status(describe_error(error))

    def _advance(self, name: str, count: int, total: int | None) -> None:
        self.progress.value = count / total if total else 0.0
        self._set_status(f"{name} {count}" + (f" of {total}" if total else ""))

    def _cancel(self) -> None:
        has_ended = self.background.wait(0)
        if has_ended:
            return
        self.background.cancel()
        self._put_back()
        self._set_running(False)
        self._set_status(self.CANCELLED)

    def _put_back(self) -> None:
        """Let the controls state again what the view shows."""
        for name, control in self.controls.items():
            control.unobserve(self._on_change, "value")
            control.value = self._drawn_values.get(name, control.value)
            control.observe(self._on_change, "value")

    def _on_change(self, _: Any) -> None:
        self.restart()

    def _set_running(self, is_running: bool) -> None:
        self.progress.value = 0.0
        self.progress.layout.visibility = "visible" if is_running else "hidden"
        self.cancel.disabled = not is_running

    def _set_status(self, text: str) -> None:
        self.status.value = escape(text)


def describe_error(error: Exception) -> str:
    """Return an error as one sentence; one that is not ours begins with its type."""
    kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
    return f"{kind}{error}"
