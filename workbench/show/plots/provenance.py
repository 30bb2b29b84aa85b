"""Where a trace comes from, in one line: what stands under every figure of it."""

from dataclasses import asdict

from workbench.speech.config import Options
from workbench.trace.trace import Trace

HASH = 12  # digits of a weights hash that are shown
LONGEST = 60  # characters of one value: a file may hold any
ALWAYS = ("seed", "n_timesteps", "cfg_rate")


def provenance(trace: Trace) -> str:
    """Return where a trace comes from, in one line.

    Seed, steps and guidance always; other options, dtypes among them, where they are not upstream's; then the
    checkpoint and its hash, device and torch. Of a text log: file, source and lines.

    Parameters
    ----------
    trace : Trace
        Of any origin; what it does not say is left out.

    Returns
    -------
    str
        Parts are separated by a middle dot.
    """
    about = trace.attrs
    parts = _options(about.get("options", {}))
    if first := about.get("first_step"):
        parts.append(f"from step {first}")
    checkpoint = about.get("checkpoint", {})
    parts.append(f"{checkpoint.get('name', '')} {str(checkpoint.get('content_hash', ''))[:HASH]}".strip())
    parts.append(str(about.get("device", "")))
    versions = about.get("versions")
    parts.append(f"torch {versions.get('torch', '?')}" if isinstance(versions, dict) else "")
    parts += [str(about.get("source", "")), str(about.get("tag", ""))]
    if lines := about.get("lines"):
        parts.append(f"lines {lines[0]} to {lines[-1]}")
    return " · ".join(_short(part) for part in parts if part) or "it does not say where it comes from"


def _options(options: dict) -> list[str]:
    plain = asdict(Options())
    named = [f"{name} {options[name]}" for name in ALWAYS if name in options]
    others = [name for name in plain if name not in ALWAYS and name in options]
    return named + [f"{name} {options[name]}" for name in others if options[name] != plain[name]]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 1]}…"
