"""The one exception root, and the one warning: what was found, what was expected, what to try."""

import re


class WorkbenchError(Exception):
    """An error that the caller can mend; the root of all that public functions raise for bad input.

    The message names what was found, what was expected and what to try.

    Examples
    --------
    >>> try:
    ...     wb.Options(n_timesteps=0)
    ... except wb.WorkbenchError as error:
    ...     print(error)
    n_timesteps is 0...
    """

    def __str__(self) -> str:
        """Return the message without halves of characters, which a file may hold and no terminal can show."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class WorkbenchWarning(UserWarning):
    """Something that may make a result wrong but does not stop the work, such as a clipped prompt.

    Examples
    --------
    >>> issubclass(wb.WorkbenchWarning, UserWarning)
    True
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, 160 characters at most; torch adds pages and colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return (plain.strip().splitlines() or [type(error).__name__])[0][:160]
