"""Figures as data: the smaller of SVG and PNG, in ink for a white page and for a dark one."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

PNG_DPI = 120
WHITE, BLACK = "#ffffff", "#000000"
DARK, LIGHT = "#16191d", "#e4e8ec"  # ground and ink of a report's dark page
SWAPPED = {WHITE: DARK, BLACK: LIGHT}
COLORS = (  # of artists: type and names of its colours
    (Text, ("color",)),
    (Line2D, ("color", "markerfacecolor", "markeredgecolor")),
    (Patch, ("facecolor", "edgecolor")),
)


def figure_of(thing: object) -> Figure | None:
    """Return the figure of a figure, of Axes, or of an array of Axes; None for anything else."""
    if isinstance(thing, np.ndarray) and thing.size:
        thing = thing.flat[0]
    return (
        thing.get_figure(root=True)
        if isinstance(thing, Axes)
        else thing
        if isinstance(thing, Figure)
        else None
    )


def describe(figure: Figure) -> str:
    """Return the titles of a figure's panels, for those who cannot see it."""
    titles = [ax.get_title("left") or ax.get_title() or ax.get_ylabel() for ax in figure.axes]
    return "; ".join(title for title in titles if title) or "figure"


def smallest_image(figure: Figure, ground: str = WHITE) -> str:
    """Return a figure as a data address, SVG or PNG, whichever is smaller."""
    svg = io.BytesIO()
    png = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None}, facecolor=ground)
    figure.savefig(png, format="png", dpi=PNG_DPI, facecolor=ground)
    images = {"image/svg+xml": svg.getvalue(), "image/png": png.getvalue()}
    kind = min(images, key=lambda kind: len(images[kind]))
    return f"data:{kind};base64,{base64.b64encode(images[kind]).decode()}"


def page_image(figure: Figure) -> Markup:
    """Return a figure that follows the page, white or dark, and that a click or tap enlarges."""
    light = smallest_image(figure)
    with dark_ink(figure):
        dark = smallest_image(figure, DARK)
    html = Markup(
        '<figure><button class="enlarge" type="button" aria-label="Enlarge: {0}"><picture>'
        '<source media="screen and (prefers-color-scheme: dark)" srcset="{2}">'
        '<img class="figure" alt="{0}" src="{1}"></picture></button></figure>'
    )
    return html.format(describe(figure), light, dark)


@contextmanager
def dark_ink(figure: Figure) -> Iterator[None]:
    """Draw what is black in light ink and what is white in the colour of a dark page; images stay."""
    figure.draw_without_rendering()  # labels of ticks are made then
    before = []
    for artist in figure.findobj():
        for kind, names in COLORS:
            if isinstance(artist, kind):
                before += [(artist, name, getattr(artist, f"get_{name}")()) for name in names]
    try:
        for artist, name, color in before:
            swapped = SWAPPED.get(to_hex(color))
            if swapped and to_rgba(color)[3]:
                getattr(artist, f"set_{name}")((swapped, to_rgba(color)[3]))
        yield
    finally:
        for artist, name, color in before:
            getattr(artist, f"set_{name}")(color)
