"""The one exception root: what was found, what was expected, what to try."""


class WorkbenchError(Exception):
    """Something the person in front of the workbench can act on.

    The message names what was found, what was expected and what to try.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, 160 characters at most; torch adds pages to some."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
