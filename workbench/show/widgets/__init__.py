from workbench.show.widgets.widgets import *  # noqa: F403
