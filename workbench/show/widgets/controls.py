"""Sliders, menus and text fields in the style of the widgets."""

from collections.abc import Sequence

import ipywidgets

from workbench.errors import WorkbenchError

WIDE = {"width": "40em", "max_width": "100%"}
LABEL_STYLE = {"description_width": "8.5em"}  # room for the longest name of an option


def int_slider(name: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    """Return a slider of whole numbers that reports its value once it is released."""
    return ipywidgets.IntSlider(
        value, low, high, description=name, style=LABEL_STYLE, continuous_update=False
    )


def float_slider(name: str, value: float, low: float, high: float) -> ipywidgets.FloatSlider:
    """Return a slider in steps of 0.05 that reports its value once it is released."""
    return ipywidgets.FloatSlider(
        value, min=low, max=high, step=0.05, description=name, style=LABEL_STYLE, continuous_update=False
    )


def dropdown(name: str, options: Sequence[str], value: str) -> ipywidgets.Dropdown:
    """Return a menu of which one option is chosen."""
    return ipywidgets.Dropdown(options=list(options), value=value, description=name, style=LABEL_STYLE)


def checkbox(name: str, value: bool) -> ipywidgets.Checkbox:
    """Return a checkbox with its name in full."""
    return ipywidgets.Checkbox(value, description=name, style={"description_width": "initial"})


def optional_integer(name: str, placeholder: str, value: int | None = None) -> ipywidgets.Text:
    """Return a text field for a whole number or nothing; a slider cannot be empty."""
    text = "" if value is None else str(value)
    return ipywidgets.Text(
        text, placeholder=placeholder, description=name, style=LABEL_STYLE, continuous_update=False
    )


def text_field(name: str, placeholder: str) -> ipywidgets.Text:
    """Return a wide text field that reports its value once it is left or confirmed."""
    return ipywidgets.Text(
        placeholder=placeholder, description=name, style=LABEL_STYLE, layout=WIDE, continuous_update=False
    )


def parse_optional_integer(text: str, name: str) -> int | None:
    """Return the value of an `optional_integer`, None for an empty field."""
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise WorkbenchError(f"{name} is {text!r}; expected a whole number, or nothing") from None
