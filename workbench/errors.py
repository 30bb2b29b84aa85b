"""The one exception root: what was found, what was expected, what to try."""


class WorkbenchError(Exception):
    """Something the person in front of the workbench can act on.

    The message names what was found, what was expected and what to try.
    """
