"""The line below a figure that says where its trace comes from."""

from dataclasses import asdict

from workbench.speech.config import Options
from workbench.trace.trace import Trace

HASH_DIGITS = 12  # of a weights hash that are shown
MAX_VALUE = 60  # characters of one part: a file may hold a value of any length
ALWAYS_SHOWN = ("seed", "n_timesteps", "cfg_rate")  # other options only where they are not upstream's


def provenance(trace: Trace) -> str:
    """Return where a trace comes from, in one line.

    The parts are: seed, steps and guidance; other options, dtypes among them, where they differ from
    upstream's; the checkpoint and its hash; device and torch version. Of a text log: file, source and lines.

    Parameters
    ----------
    trace : Trace
        Of any origin; parts that it does not state are left out.

    Returns
    -------
    str
        The parts, separated by a middle dot.

    Examples
    --------
    >>> wb.plots.provenance(trace).startswith("seed 7 · n_timesteps 10 · cfg_rate 0.7 · ")
    True
    """
    attrs = trace.attrs
    parts = _option_parts(attrs.get("options", {}))
    if attrs.get("first_step"):
        parts.append(f"from step {attrs['first_step']}")
    checkpoint = attrs.get("checkpoint", {})
    content_hash = str(checkpoint.get("content_hash", ""))[:HASH_DIGITS]
    parts.append(f"{checkpoint.get('name', '')} {content_hash}".strip())
    parts.append(str(attrs.get("device", "")))
    versions = attrs.get("versions")
    if isinstance(versions, dict):
        parts.append(f"torch {versions.get('torch', '?')}")
    parts.append(str(attrs.get("source", "")))
    parts.append(str(attrs.get("tag", "")))
    lines = attrs.get("lines")
    if lines:
        parts.append(f"lines {lines[0]} to {lines[-1]}")
    return " · ".join(_shorten(part) for part in parts if part) or "origin unknown"


def _option_parts(options: dict) -> list[str]:
    """Return the options that are worth a line, as "name value"."""
    defaults = asdict(Options())
    parts = [f"{name} {options[name]}" for name in ALWAYS_SHOWN if name in options]
    for name, default in defaults.items():
        if name in options and name not in ALWAYS_SHOWN and options[name] != default:
            parts.append(f"{name} {options[name]}")
    return parts


def _shorten(text: str) -> str:
    """Return a text on one line and of at most `MAX_VALUE` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_VALUE else f"{flat[: MAX_VALUE - 1]}…"
