"""What every widget here is: controls above, a picture of the present state below, and a static twin."""

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from workbench.errors import WorkbenchError
from workbench.show.plots.axes import let_go
from workbench.show.report.report import shown
from workbench.show.widgets.background import Bar, Job

# JupyterLab's look of tables and text, which widgets.HTML lacks: its lines are as high as buttons.
SHOWN = """<style>.workbench-shown {{ line-height: 1.4 }} .workbench-shown table {{ margin: 0.5em 0 }}</style>
<div class="jp-RenderedHTMLCommon workbench-shown">{}</div>"""


class Panel(widgets.VBox):
    """Controls and a view; the view is HTML, so it stays when the kernel is gone.

    A panel computes nothing: it calls a plain function and shows what that returns.
    """

    def __init__(self, controls: Sequence[widgets.Widget]) -> None:
        self._parts: list[str] = []
        self._view = widgets.VBox()
        super().__init__([widgets.Box(controls, layout={"flex_flow": "row wrap"}), self._view])

    def show(self, *things: Any) -> None:
        """Put things in the view, as a report would; one that has a live twin is live."""
        looks = [shown(thing).html for thing in things]
        for thing in things:
            let_go(thing)
        self._parts = [str(look) for look in looks]
        self._view.children = [
            thing if isinstance(thing, widgets.Widget) else widgets.HTML(SHOWN.format(look))
            for thing, look in zip(things, looks, strict=True)
        ]

    def static(self) -> str:
        """Return what is seen now, as HTML that needs no kernel."""
        return "<div>" + "\n".join(self._parts) + "</div>"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        bundle, metadata = found if isinstance(found, tuple) else (found, {})
        return bundle | {"text/html": self.static()}, metadata

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Lab(Panel):
    """A panel whose view takes time: it waits for the controls to rest, shows progress, can be cancelled.

    A lab has `compute(values, bar)`, which runs in a thread, and `draw(result)`; `values` are those of the
    named controls.
    """

    def __init__(self, controls: dict[str, widgets.Widget]) -> None:
        self.controls = controls
        self.progress = widgets.FloatProgress(0.0, min=0.0, max=1.0, layout={"width": "300px"})
        self.cancel = widgets.Button(description="cancel", icon="stop", layout={"width": "7em"})
        self.status = widgets.HTML()
        self.job = Job(self._finish, self._fail, self._advance)
        self.cancel.on_click(lambda _: self._cancelled())
        super().__init__(list(controls.values()))
        head, view = self.children
        self.children = [head, widgets.HBox([self.progress, self.cancel, self.status]), view]
        for control in controls.values():
            control.observe(lambda _: self.restart(), "value")

    def compute(self, values: dict[str, Any], bar: Bar) -> Any:
        """Return what `draw` shows; every loop goes through `bar`."""
        raise NotImplementedError

    def draw(self, result: Any) -> None:
        """Show what `compute` returned."""
        raise NotImplementedError

    def restart(self, pause: float = 0.25) -> None:
        """Compute again with the controls as they are now."""
        values = {name: control.value for name, control in self.controls.items()}
        self._say("waiting")
        self.job.start(lambda bar: self.compute(values, bar), pause)

    def now(self) -> Any:
        """Compute and draw before going on; for the first view, and for tests."""
        self.restart(0.0)
        self.job.wait()
        return self

    def _finish(self, result: Any) -> None:
        self.progress.value = 1.0
        self._say("")
        self.draw(result)

    def _fail(self, error: Exception) -> None:
        kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
        self._say(f"{kind}{error}")

    def _advance(self, name: str, count: int, total: int | None) -> None:
        self.progress.value = count / total if total else 0.0
        self._say(f"{name} {count}" + (f" of {total}" if total else ""))

    def _cancelled(self) -> None:
        if self.job.wait(0):
            return
        self.job.cancel()
        self._say("cancelled; move a control to go on")

    def _say(self, text: str) -> None:
        self.status.value = escape(text)
