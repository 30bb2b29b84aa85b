"""Describe one sound: its properties, its glitches, and what could be asked next."""

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from workbench.diagnose.glitches.glitches import Findings, find_glitches
from workbench.diagnose.sounds.measures import properties
from workbench.diagnose.sounds.sound_input import SoundSource, check_length, open_sound
from workbench.tables import table_html
from workbench.trace.trace import Trace

NO_FAULT = (
    "No fault can be named from one sound: it has no stages, and nothing shows what it should have been. "
    "Levels, noise and bandwidth belong to the recording as much as to a model."
)
NEXT = (
    "Beside a right sound of the same utterance: workbench compare right.wav {name}",
    "Beside a right run, to find the stage: record a trace or a log of both (page 'Record your own "
    "implementation'), then workbench compare right.trace theirs.trace",
)


@dataclass(frozen=True, eq=False)
class OneSound:
    """What one sound shows alone.

    Attributes
    ----------
    name : str
    properties : dict
        See `measures.properties`.
    glitches : Findings
    trace : Trace
        The sound, for players and figures.
    """

    name: str
    properties: dict[str, Any]
    glitches: Findings
    trace: Trace

    @property
    def line(self) -> str:
        """Length, rate and findings in one line."""
        return f"{self.name}: {self.properties['rate']} Hz, {self.glitches.line}"

    @property
    def remarks(self) -> list[str]:
        """What cannot be told, and what could be asked next."""
        return [NO_FAULT, *(text.format(name=self.name) for text in NEXT)]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each property: `property`, `value`."""
        return pd.DataFrame(
            [(key, rounded(value)) for key, value in self.properties.items()], columns=["property", "value"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; NaN becomes None."""
        numbers = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in self.properties.items()
        }
        findings = self.glitches.to_frame().astype(object)
        findings = findings.where(findings.notna(), None)
        return {
            "name": self.name,
            "properties": numbers,
            "glitches": findings.to_dict("records"),
            "remarks": self.remarks,
        }

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(text)}</li>" for text in self.remarks)
        table = table_html(self.to_frame())
        return f"<div><b>{escape(self.line)}</b><ul>{items}</ul>{table}</div>"


def examine_sound(source: SoundSource, sample_rate: int | None = None) -> OneSound:
    """Describe one sound.

    Parameters
    ----------
    source : path, Trace, Tensor (N,) or ndarray (N,)
    sample_rate : int, optional
        Hz, of bare samples.

    Returns
    -------
    OneSound

    Raises
    ------
    WorkbenchError
        When a file cannot be read, or has no samples or more than five minutes.
    """
    sound = open_sound(source, sample_rate)
    check_length(sound)
    glitches = find_glitches(sound.trace)
    return OneSound(sound.name, properties(sound), glitches, sound.trace)


def rounded(value: object) -> str:
    """Return a number with the digits that it means; text as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
