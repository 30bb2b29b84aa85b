"""Read and check the attributes of a trace, which stand in its file as JSON."""

import json
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.trace.schema import SAMPLE_RATE, VERSION

KEY = "workbench_trace"  # the one entry of the file's metadata; it holds version and attributes as JSON
MIN_RATE, MAX_RATE = 100, 1_000_000  # Hz; a player of a file with another rate would take all memory
ATTRS = {  # attributes that other code relies on, and their types
    **dict.fromkeys(("prompt_frames", "first_step"), int),
    **dict.fromkeys(("text", "typed", "frontend", "mode", "tag", "source", "mapping", "device"), str),
    **dict.fromkeys(
        (
            *("options", "timings", "checkpoint", "prompt", "shapes", "half_units", "rows", "versions"),
            "quantised",
        ),
        dict,
    ),
    **dict.fromkeys(("notes", "warnings", "lines", "unmapped", "seams", "silent_tokens"), list),
    "sample_rate": (int, float),
}
ITEMS = {  # attributes with several values, and the types of these
    "timings": (int, float),
    **dict.fromkeys(("notes", "warnings", "unmapped", "quantised"), (str,)),
    **dict.fromkeys(("lines", "seams", "silent_tokens"), (int,)),
}


def read_attributes(text: str | None, path: Path) -> dict[str, Any]:
    """Return the attributes that a file's metadata hold, checked.

    Raises
    ------
    WorkbenchError
        When they are not what `Trace.save` writes.
    """
    if text is None:
        raise WorkbenchError(
            f"{path.name} is safetensors but no trace: its metadata lack {KEY!r}. A dump of another "
            "implementation needs a mapping: open it with read_foreign"
        )
    try:
        stored = json.loads(text)
        # Half of a surrogate pair, as in "\\ud800", cannot be written to any page: it becomes "?".
        encodable = json.dumps(stored, ensure_ascii=False).encode("utf-8", "replace")
        stored = json.loads(encodable)
        version, attrs = stored["version"], dict(stored["attrs"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WorkbenchError(
            f"{path.name}: the metadata {KEY!r} are not what Trace.save writes; record the trace again"
        ) from error
    if version != VERSION:
        raise WorkbenchError(
            f"{path.name} is a trace of schema version {version!r}; this workbench reads {VERSION}. "
            "Record it again, or open it with the workbench that wrote it"
        )
    for name, types in ATTRS.items():
        value = attrs.get(name)
        if name in attrs and not isinstance(value, types):
            expected = types if isinstance(types, tuple) else (types,)
            raise WorkbenchError(
                f"{path.name}: the attribute {name} is {value!r:.60}; expected "
                f"{' or '.join(kind.__name__ for kind in expected)}"
            )
    for name, types in ITEMS.items():
        items = attrs.get(name, ())
        for item in items.values() if isinstance(items, dict) else items:
            if isinstance(item, bool) or not isinstance(item, types):
                raise WorkbenchError(
                    f"{path.name}: the attribute {name} holds {item!r:.60}; expected "
                    f"{' or '.join(kind.__name__ for kind in types)}"
                )
    sample_rate = attrs.get("sample_rate", SAMPLE_RATE)
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise WorkbenchError(
            f"{path.name}: sample_rate is {sample_rate!r:.60}; expected {MIN_RATE} to {MAX_RATE:,} Hz"
        )
    prompt_frames = attrs.get("prompt_frames", 0)
    if not 0 <= prompt_frames < 2**31:
        raise WorkbenchError(
            f"{path.name}: prompt_frames is {prompt_frames!r:.60}; expected a number of frames from 0"
        )
    return attrs
