"""Figures as data: SVG, or PNG in place of a large SVG, in ink for a white page and for a dark one."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

SVG, PNG = "image/svg+xml", "image/png"
# Arguments of `Figure.savefig` by kind of image.
SAVE: dict[str, dict[str, Any]] = {
    SVG: {"format": "svg", "metadata": {"Date": None}},
    PNG: {"format": "png", "dpi": 120},
}
SMALL_SVG = 150_000  # bytes up to which no PNG is drawn for comparison: drawing takes longer than loading
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


def image_address(figure: Figure) -> str:
    """Return a figure as a data address: SVG, or PNG where the SVG is large and the PNG smaller."""
    with laid_out(figure):
        kind, data = _kind_and_image(figure)
    return _address(kind, data)


def _kind_and_image(figure: Figure) -> tuple[str, bytes]:
    svg = _image(figure, SVG, WHITE)
    if len(svg) <= SMALL_SVG:
        return SVG, svg
    png = _image(figure, PNG, WHITE)
    return (PNG, png) if len(png) < len(svg) else (SVG, svg)


def _image(figure: Figure, kind: str, ground: str) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, facecolor=ground, **SAVE[kind])
    return image.getvalue()


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def page_image(figure: Figure) -> Markup:
    """Return a figure that follows the page, white or dark, and that a click or tap enlarges."""
    with laid_out(figure):
        kind, image = _kind_and_image(figure)
        if kind == SVG:
            dark = _address(SVG, dark_svg(image))
        else:
            with dark_ink(figure):
                dark = _address(PNG, _image(figure, PNG, DARK))
    html = Markup(
        '<figure><button class="enlarge" type="button" aria-label="Enlarge: {0}"><picture>'
        '<source media="screen and (prefers-color-scheme: dark)" srcset="{2}">'
        '<img class="figure" alt="{0}" src="{1}"></picture></button></figure>'
    )
    return html.format(describe(figure), _address(kind, image), dark)


def dark_svg(image: bytes) -> bytes:
    """Return a drawing with light ink in place of black, and the colour of a dark page in place of white.

    matplotlib names every colour but black in fills, so that what has none is to inherit light ink. Drawing
    the figure again would take as long as the first time. Images stay; shapes that are black or white because
    of their data are recoloured as well.
    """
    head, root, rest = image.partition(b"<svg ")
    for color, swapped in SWAPPED.items():
        rest = rest.replace(color.encode(), swapped.encode())
    return head + root + f'fill="{LIGHT}" '.encode() + rest


@contextmanager
def laid_out(figure: Figure) -> Iterator[None]:
    """Arrange the panels of a figure once, instead of at each drawing, which takes as long as the drawing."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    # With no engine at all `savefig` draws once, where with the engine "none" it draws twice. None means none
    # only while the defaults do not ask for one.
    with rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


@contextmanager
def dark_ink(figure: Figure) -> Iterator[None]:
    """Draw what is black in light ink and what is white in the colour of a dark page; images stay.

    Labels of ticks are those of the last drawing.
    """
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
