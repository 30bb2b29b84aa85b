"""A trace or a waveform -> what is wrong with the sound, where, how surely, and why.

`find_glitches(trace)` runs every detector of `detectors.py`; each finding leads on to the mel frames,
tokens and ODE states of its place.
"""

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from workbench.diagnose.glitches.analysis import Sound, as_sound
from workbench.diagnose.glitches.detectors import DETECTORS
from workbench.diagnose.glitches.sample_detectors import Spot
from workbench.errors import WorkbenchError
from workbench.trace.schema import ODE_FIELDS
from workbench.trace.trace import Trace

CLEAN_SCORES = Path(__file__).with_name("clean_scores.json")  # `workbench bench glitches --out` makes it
JOIN_S = 0.06  # spots of one kind this near are one finding
FRAME_RATE, TOKEN_RATE = 50, 25  # a second
ANYHOW = (
    "not finite",
    "dead",
    "offset",
    "beyond",
    "f0",
    "mel",
    "length",
)  # what is still asked of a dead waveform


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes
    ----------
    kind : str
        A key of `DETECTORS`.
    start, end : float
        Seconds.
    score, threshold : float
        In the detector's unit; from the threshold on it is a finding.
    percentile : float
        Share of clean utterances whose highest score of this kind is lower, 0 to 100; NaN where no clean
        speech was measured.
    sample, frame, token : int
        Where `start` lies, counted from the beginning of the target.
    cause : str
        What typically causes it here, and what was seen.
    """

    kind: str
    start: float
    end: float
    score: float
    threshold: float
    percentile: float
    sample: int
    frame: int
    token: int
    cause: str

    def mel(self, trace: Trace) -> Tensor:
        """Return the mel frames of this place, (80, n)."""
        return self._part(trace, "flow/mel", "target_frame", FRAME_RATE)

    def tokens(self, trace: Trace) -> Tensor:
        """Return the speech tokens of this place, (n,)."""
        return self._part(trace, "lm/speech_token", "token", TOKEN_RATE * _speed(trace))

    def steps(self, trace: Trace) -> dict[str, Tensor]:
        """Return states (knots, 80, n) and velocities (steps, 80, n) of the ODE at these frames, by field.

        Raises
        ------
        WorkbenchError
            When the trace has none: it was recorded without `save=EVERYTHING`.
        """
        names = [name for name in ODE_FIELDS if name in trace]
        if not names:
            raise WorkbenchError(
                f"the trace has none of {', '.join(ODE_FIELDS)}; record it with save=EVERYTHING"
            )
        return {name: self._part(trace, name, "frame", FRAME_RATE * _speed(trace)) for name in names}

    def _part(self, trace: Trace, name: str, dim: str, rate: float) -> Tensor:
        if name not in trace:
            raise WorkbenchError(f"the trace has no {name}; it has {', '.join(trace) or 'nothing'}")
        region = "target" if dim == "frame" else None
        length = trace.select(name, region).shape[-1]
        first = min(math.floor(self.start * rate + 1e-6), max(length - 1, 0))
        last = max(first + 1, math.ceil(self.end * rate - 1e-6))
        return trace.select(name, region, **{dim: slice(first, last)})


class Findings:
    """What `find_glitches` found, in the order of time.

    Attributes
    ----------
    table : DataFrame
        One row a finding, its columns those of `Finding`.
    seconds : float
        Length of the waveform.
    """

    def __init__(self, found: list[Finding], seconds: float) -> None:
        self._found, self.seconds = found, seconds
        self.table = pd.DataFrame(found, columns=list(Finding._fields))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def __getitem__(self, index: int) -> Finding:
        return self._found[index]

    @property
    def line(self) -> str:
        """The result in one line."""
        if not self._found:
            return f"nothing found in {self.seconds:.2f} s"
        count = self.table["kind"].value_counts(sort=False)
        kinds = ", ".join(f"{n} x {kind}" if n > 1 else str(kind) for kind, n in count.items())
        return f"{len(self)} findings in {self.seconds:.2f} s: {kinds}"

    def to_frame(self) -> pd.DataFrame:
        """Return a copy of `table`."""
        return self.table.copy()

    def assert_ok(self) -> None:
        """Raise a WorkbenchError with the result in one line if anything was found."""
        if self._found:
            first = self._found[0]
            raise WorkbenchError(f"{self.line}; the first at {first.start:.3f} s: {first.cause}")

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = self.table.to_html(float_format="{:.4g}".format, na_rep="", border=0, index=False)
        return f"<div><b>{escape(self.line)}</b>{table if self._found else ''}</div>"


def find_glitches(source: Trace | Tensor | np.ndarray, sample_rate: int | None = None) -> Findings:
    """Look for everything that clean speech does not do.

    Parameters
    ----------
    source : Trace, or Tensor (N,), or ndarray (N,)
        With a trace f0, mel, tokens and seams are looked at as well, as far as they were recorded. Seams are
        `attrs["seams"]`, the first sample of every chunk but the first.
    sample_rate : int, optional
        Hz; needed beside a bare waveform. Nothing is resampled.

    Returns
    -------
    Findings

    Raises
    ------
    WorkbenchError
        For several channels, no samples, no sample rate, more than five minutes, or a trace without a
        waveform.
    """
    sound = as_sound(source, sample_rate)
    clean = clean_scores()
    found = [
        _finding(sound, kind, spot, clean.get(kind, []))
        for kind in DETECTORS
        for spot in found_by(kind, sound)
    ]
    return Findings(sorted(found, key=lambda f: (f.start, f.kind)), sound.seconds)


@lru_cache(maxsize=1)
def clean_scores() -> dict[str, list[float]]:
    """Highest score of every clean utterance by kind, sorted; see `calibrate.py`."""
    return json.loads(CLEAN_SCORES.read_text(encoding="utf-8")) if CLEAN_SCORES.is_file() else {}


def found_by(kind: str, sound: Sound) -> list[Spot]:
    """Return what one detector finds; nothing but what needs no speech, where there is none."""
    if kind not in ANYHOW and not sound.active.any():
        return []
    detector = DETECTORS[kind]
    return _joined([spot for spot in detector.find(sound) if spot.score >= detector.threshold])


def _joined(spots: list[Spot]) -> list[Spot]:
    """Make one of those that touch, with the score and the note of the worst."""
    done: list[Spot] = []
    for spot in sorted(spots):
        if done and spot.start - done[-1].end <= JOIN_S and spot.note == done[-1].note:
            worst = max(done[-1], spot, key=lambda s: s.score)
            done[-1] = worst._replace(start=done[-1].start, end=max(done[-1].end, spot.end))
        else:
            done.append(spot)
    return done


def _finding(sound: Sound, kind: str, spot: Spot, clean: list[float]) -> Finding:
    detector = DETECTORS[kind]
    percentile = 100 * float(np.mean(np.array(clean) < spot.score)) if len(clean) else math.nan
    cause = f"{detector.cause} ({spot.note})" if spot.note else detector.cause
    start, end = max(0.0, spot.start), min(max(spot.end, spot.start), sound.seconds)
    sample, frame = int(start * sound.rate + 0.5), int(start * FRAME_RATE + 1e-6)
    token = int(start * TOKEN_RATE * _speed(sound.trace) + 1e-6)
    return Finding(kind, start, end, spot.score, detector.threshold, percentile, sample, frame, token, cause)


def _speed(trace: Trace) -> float:
    """How many seconds of tokens one second of sound is."""
    speed = trace.attrs.get("options", {}).get("speed", 1.0)
    return float(speed) if isinstance(speed, (int, float)) and 0 < speed < 100 else 1.0
