"""Helpers of the tests of figures: change a trace, read a figure back."""

import numpy as np

import workbench as wb

STEPS = 3  # of the ODE in the traces of these tests


def changed(trace, attrs=(), **changes):
    """A copy with some fields changed; names have _ for the first /, None leaves a field out."""
    data = dict(trace) | {name.replace("_", "/", 1): value for name, value in changes.items()}
    return wb.Trace({k: v for k, v in data.items() if v is not None}, trace.attrs | dict(attrs))


def summary(trace):
    """The trace as a run with save=wb.SUMMARY records it."""
    names = [name for name in trace if name.startswith(("flow/", "hift/")) or name == "lm/entropy"]
    return wb.Trace({f"{name}.stats": trace.statistics(name) for name in names}, trace.attrs)


def line(ax, label):
    """The line with this label, or with a label that begins with it."""
    named = {one.get_label(): one for one in ax.get_lines()}
    if label in named:
        return named[label]
    (found,) = [one for name, one in named.items() if name.startswith(label)]
    return found


def image(ax):
    (found,) = ax.get_images()
    return np.ma.asarray(found.get_array())


def texts(ax):
    return [text.get_text() for text in ax.texts]


def rendered(axes):
    """Render the figure, so that errors of rendering fail here."""
    (axes[0] if isinstance(axes, np.ndarray) else axes).figure.canvas.draw()
    return axes
