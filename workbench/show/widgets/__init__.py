"""Interactive widgets: labs that run again what their controls change, and browsers for what is there."""

from workbench.show.widgets.widgets import *  # noqa: F403
