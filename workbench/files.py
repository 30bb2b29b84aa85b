"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import WorkbenchError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a draft beside `path`, which takes its place when the block ends without an error.

    The draft is made at once: before slow work begins it is known that there is a place for its result.

    Raises
    ------
    WorkbenchError
        When it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise WorkbenchError(f"{path} could not be written ({error}); is the folder writable?") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
