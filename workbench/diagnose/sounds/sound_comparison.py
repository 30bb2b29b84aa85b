"""`SoundComparison`: the result of `compare_sounds`, and how it shows itself."""

import json
import math
from dataclasses import asdict
from html import escape
from typing import Any

import pandas as pd

from workbench.diagnose.glitches.glitches import Findings
from workbench.diagnose.sounds.alignment import Alignment
from workbench.diagnose.sounds.aspects import Aspect
from workbench.diagnose.sounds.causes import NEXT_STEP, POSSIBLE, UNKNOWABLE
from workbench.diagnose.sounds.measures import properties
from workbench.diagnose.sounds.sound_input import SoundInput
from workbench.errors import WorkbenchError
from workbench.tables import folded, table_html

# From good to bad; all speak of the sounds after delay, drift, polarity, gain and rate have been undone.
# MATCH           equal in every sample
# ROUNDING        as far apart as their storage rounds, such as a 16-bit and a float file
# ALIKE           a small difference (40 dB below the sound or less) and no aspect that differs
# DIVERGED        a difference that can be measured in at least one aspect
# NOT ALIGNED     no delay fits: another timing, or another utterance
# NOT COMPARABLE  silent, too short, or without finite samples
SOUND_VERDICTS = ("MATCH", "ROUNDING", "ALIKE", "DIVERGED", "NOT ALIGNED", "NOT COMPARABLE")
SAME = ("MATCH", "ROUNDING", "ALIKE")
ORDER = ("yes", "undone", "not measured", "no")  # of the rows of the table


class SoundComparison:
    """The result of `compare_sounds`: a verdict, every aspect, and the differences by time and by band.

    Attributes
    ----------
    verdict : str
        One of MATCH, ROUNDING, ALIKE, DIVERGED, NOT ALIGNED, NOT COMPARABLE.
    reason : str
        What the verdict rests on.
    aspects : list of Aspect
        Delay, drift, level, bandwidth and so on: whether they differ, and by how much.
    glitches : (Findings, Findings)
        Places that sound wrong, of the reference and of the candidate.
    alignment : Alignment or None
        How the sounds lie on each other; None where they were not aligned.
    snr_db : float
        Level of the reference over that of the difference after the alignment, dB; NaN where the waveforms do
        not lie on each other.
    bands, times : DataFrame
        The differences by frequency and in segments of 100 ms; empty where nothing was aligned.
    properties : DataFrame
        What each sound shows alone, a row for each property.

    Examples
    --------
    >>> late = wb.Trace({"hift/wav": trace.wav.roll(240)}, trace.attrs)
    >>> found = wb.compare_sounds(trace, late)
    >>> round(found.alignment.delay, 6)  # seconds
    0.01
    >>> found.ok, found.differing
    (True, ['delay'])
    """

    def __init__(
        self,
        reference: SoundInput,
        candidate: SoundInput,
        verdict: str,
        reason: str,
        aspects: list[Aspect],
        glitches: tuple[Findings, Findings],
        alignment: Alignment | None = None,
        rate: int = 0,
        snr_db: float = math.nan,
        bands: pd.DataFrame | None = None,
        times: pd.DataFrame | None = None,
    ) -> None:
        self.verdict, self.reason, self.aspects, self.glitches = verdict, reason, aspects, glitches
        self.alignment, self.rate, self.snr_db = alignment, rate, snr_db
        self.bands = pd.DataFrame() if bands is None else bands
        self.times = pd.DataFrame() if times is None else times
        self.names = reference.name, candidate.name
        self.traces = reference.trace, candidate.trace
        self.properties = pd.DataFrame(
            {"reference": properties(reference), "candidate": properties(candidate)}, dtype=object
        )
        self.unknown = UNKNOWABLE

    @property
    def ok(self) -> bool:
        """Whether the sounds are the same after the alignment, or alike."""
        return self.verdict in SAME

    @property
    def differing(self) -> list[str]:
        """Names of the aspects that differ, those that were undone first."""
        return [aspect.name for aspect in self.aspects if aspect.differs]

    def assert_ok(self) -> None:
        """Raise a WorkbenchError with the line unless `ok`."""
        if not self.ok:
            raise WorkbenchError(self.line)

    @property
    def line(self) -> str:
        """The verdict, what was undone, and what differs, in one line."""
        undone = []
        if self.alignment is not None:
            undone = [aspect for aspect in self.aspects if aspect.differs and aspect.is_undone]
        left = [aspect for aspect in self.aspects if aspect.differs and not aspect.is_undone]
        parts = []
        if left and self.alignment is not None:
            parts.append("different in " + ", ".join(aspect.name for aspect in left))
        elif self.ok:
            parts.append("the same sound" if self.verdict != "ALIKE" else "alike")
        if undone:
            parts.append("after undoing " + ", ".join(f"{each.name} ({each.text})" for each in undone))
        text = " ".join(parts)
        if self.reason:
            text = f"{text}; {self.reason}" if text else self.reason
        return f"{self.verdict}: {text}"

    @property
    def remarks(self) -> list[str]:
        """What to know beside the line: each difference and where it could come from, glitches, limits."""
        remarks = []
        for aspect in self.aspects:
            if aspect.differs:
                could = POSSIBLE[aspect.name]
                where = f"possible places: {could.places} ({could.reason})"
                remarks.append(f"{aspect.name}: {aspect.text}; {where}")
        if len(self.times) and not self.ok:
            worst = self.times.loc[self.times["spectrum_db"].idxmax()]
            place = f"{worst['start']:.1f} to {worst['end']:.1f} s"
            remarks.append(
                f"farthest apart at {place}: {worst['spectrum_db']:.1f} dB (rms over the spectrum)"
            )
        for who, found in zip(("reference", "candidate"), self.glitches, strict=True):
            if len(found) or len(found.properties):
                remarks.append(f"glitches of the {who}: {found.line}")
        unmeasured = [f"{aspect.name} ({aspect.text})" for aspect in self.aspects if aspect.differs is None]
        if unmeasured:
            remarks.append("not measured: " + "; ".join(unmeasured))
        if self.verdict != "MATCH":
            remarks.append("a sound alone cannot tell " + "; ".join(self.unknown))
            remarks.append(NEXT_STEP)
        return remarks

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each aspect, those that differ first.

        Returns
        -------
        DataFrame
            `aspect`, `differs` ("yes", "undone", "no", "not measured"), `found`, and where it differs
            `possible` (places that could make such a difference) and `why`.
        """
        rows = []
        for aspect in self.aspects:
            differs = "not measured" if aspect.differs is None else "yes" if aspect.differs else "no"
            if aspect.differs and aspect.is_undone:
                differs = "undone"
            could = POSSIBLE[aspect.name] if aspect.differs else None
            rows.append((aspect.name, differs, aspect.text, *(could or ("", ""))))
        rows.sort(key=lambda row: ORDER.index(row[1]))
        return pd.DataFrame(rows, columns=["aspect", "differs", "found", "possible", "why"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        alignment = None
        if self.alignment is not None:
            skipped = ("reference", "candidate")
            alignment = {k: v for k, v in vars(self.alignment).items() if k not in skipped}
        return {
            "verdict": self.verdict,
            "line": self.line,
            "names": list(self.names),
            "remarks": self.remarks,
            "aspects": [asdict(aspect) for aspect in self.aspects],
            "alignment": alignment,
            "snr_db": self.snr_db if math.isfinite(self.snr_db) else None,
            "bands": _records(self.bands),
            "times": _records(self.times),
            "properties": json.loads(self.properties.to_json(double_precision=6)),
            "glitches": [_records(found.to_frame()) for found in self.glitches],
            "unknown": list(self.unknown),
        }

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(text)}</li>" for text in self.remarks)
        parts = [f"<div><b>{escape(self.line)}</b><ul>{items}</ul>", table_html(self.to_frame())]
        tables = {
            "By frequency": self.bands,
            "By time": self.times,
            "Each sound alone": self.properties.rename_axis("property").reset_index(),
        }
        for title, table in tables.items():
            if len(table):
                parts.append(folded(title, table_html(table)))
        return "".join(parts) + "</div>"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records", double_precision=10))
