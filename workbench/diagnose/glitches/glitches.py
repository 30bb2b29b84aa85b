"""Find the places of a trace or a waveform that sound wrong.

`find_glitches` runs every detector of `detectors.py`. Each `Finding` says what is wrong, where, how surely,
and what usually causes it; it also leads to the mel frames, tokens and ODE states of its place.

Some findings are common in recordings of people: edges cut amid sound, an offset, hiss, hum, pauses. They are
defects where a model made the sound, and properties of the recording otherwise.
"""

import json
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from workbench.diagnose.glitches.analysis import Sound, Spot, as_sound
from workbench.diagnose.glitches.causes import explain
from workbench.diagnose.glitches.detectors import DETECTORS
from workbench.diagnose.open import open
from workbench.errors import WorkbenchError
from workbench.tables import folded, table_html
from workbench.trace.schema import FRAME_RATE, ODE_FIELDS, TOKEN_RATE
from workbench.trace.trace import Trace

CLEAN_SCORES = Path(__file__).with_name("clean_scores.json")  # written by `workbench bench glitches`
MERGE_S = 0.06  # seconds; spots of one kind this near to each other are one finding
# Added before a time is rounded down to a frame, because 0.58 * 50 is a little less than 29.
ROUNDING = 1e-6
# The other detectors measure speech, so that without speech their scores mean nothing.
KINDS_OF_A_WHOLE = ("stop cut", "length", "pace")  # not judged of a pass of a stream, which ends anywhere
KINDS_WITHOUT_SPEECH = ("not finite", "dead", "offset", "beyond", "f0", "mel", "length", "pace")
# A kind is left out where one of the kinds behind it is found at the same place, because that says it better.
SAID_BY = {
    "click": ("seam", "gap", "not finite", "beyond"),
    "clamped": ("beyond",),
    "noise floor": ("hiss",),
}
DEFECT, PROPERTY = "defect", "property"
SHOWN_COLUMNS = ["kind", "start", "end", "score", "threshold", "cause"]  # that a cell shows unfolded
UNITS = {"start": "s", "end": "s"}


class Finding(NamedTuple):
    """A place that sounds wrong.

    Attributes
    ----------
    kind : str
        A key of `DETECTORS`.
    start, end : float
        Seconds.
    score, threshold : float
        In the detector's unit. A finding has at least the threshold.
    percentile : float
        Share of clean utterances whose highest score of this kind is lower, 0 to 100. NaN where clean speech
        has no score of this kind.
    sample, frame, token : int
        The sample, mel frame and speech token at `start`, counted from the beginning of the target.
    cause : str
        What the run is known to have had that sounds so. Otherwise "not known", with what often sounds so
        and is not refuted by the trace. In brackets stands what was measured.
    severity : {"defect", "property"}
        A property is what recordings of people often have. It is a defect only in a sound that a model made.

    Examples
    --------
    >>> wav = trace.wav.clone()
    >>> wav[6000] += 0.9  # a click
    >>> click = wb.find_glitches(wav, trace.sample_rate)[0]
    >>> click.kind, round(click.start, 2), click.frame, click.token
    ('click', 0.25, 12, 6)
    >>> click.mel(trace).shape  # the mel frames there
    torch.Size([80, 1])
    >>> click.steps(trace)["flow/x"].shape  # the states of the ODE there: knots, mel bins, frames
    torch.Size([11, 80, 1])
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
    severity: str = DEFECT

    def mel(self, trace: Trace) -> Tensor:
        """Return the mel frames of this place, (M, T)."""
        return self._cut(trace, "flow/mel", "target_frame", FRAME_RATE)

    def tokens(self, trace: Trace) -> Tensor:
        """Return the speech tokens of this place, (L,)."""
        return self._cut(trace, "lm/speech_token", "token", TOKEN_RATE * _speed(trace))

    def steps(self, trace: Trace) -> dict[str, Tensor]:
        """Return the ODE at these frames: states (K, M, T) and velocities (K - 1, M, T), by field.

        Raises
        ------
        WorkbenchError
            When the trace has none of them: it was recorded without `save=EVERYTHING`.
        """
        names = [name for name in ODE_FIELDS if name in trace]
        if not names:
            raise WorkbenchError(
                f"the trace has none of {', '.join(ODE_FIELDS)}; record it with save=EVERYTHING"
            )
        # At another speed than 1 the ODE has other frames than the mel, which is stretched afterwards.
        rate = FRAME_RATE * _speed(trace)
        return {name: self._cut(trace, name, "frame", rate) for name in names}

    def _cut(self, trace: Trace, name: str, dim: str, rate: float) -> Tensor:
        """Return the entries of a field between `start` and `end`, at least one.

        Parameters
        ----------
        trace : Trace
        name : str
            The field.
        dim : str
            The field's dimension that is time.
        rate : float
            Entries per second.
        """
        if name not in trace:
            raise WorkbenchError(f"the trace has no {name}; it has {', '.join(trace) or 'nothing'}")
        # "frame" counts prompt and target; the place is a time in the target.
        region = "target" if dim == "frame" else None
        length = trace.select(name, region).shape[-1]
        first = min(math.floor(self.start * rate + ROUNDING), max(length - 1, 0))
        end = max(first + 1, math.ceil(self.end * rate - ROUNDING))
        return trace.select(name, region, **{dim: slice(first, end)})


class Findings:
    """The result of `find_glitches`: the defects in the order of time, and apart from them the properties.

    The length, the items and `table` are those of the defects.

    Attributes
    ----------
    table : DataFrame
        One row per defect; its columns are the attributes of `Finding`.
    properties : DataFrame
        The same for what recordings of people often have.
    seconds : float
        Length of the waveform.

    Examples
    --------
    >>> wav = trace.wav.clone()
    >>> wav[[6000, 12_000]] += 0.9  # two clicks
    >>> found = wb.find_glitches(wav, trace.sample_rate)
    >>> found
    2 findings in 1.20 s: 2 x click
    >>> [(finding.kind, round(finding.start, 2)) for finding in found]
    [('click', 0.25), ('click', 0.5)]
    >>> found.to_frame()[["kind", "sample", "threshold"]]
        kind  sample  threshold
    0  click    6001       10.5
    1  click   12001       10.5
    """

    def __init__(self, found: list[Finding], seconds: float, synthesised: bool | None = None) -> None:
        self._found = [finding for finding in found if finding.severity == DEFECT]
        self.seconds = seconds
        self.table = pd.DataFrame(self._found, columns=list(Finding._fields))
        others = [finding for finding in found if finding.severity == PROPERTY]
        self.properties = pd.DataFrame(others, columns=list(Finding._fields))
        self._synthesised = synthesised

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def __getitem__(self, index: int) -> Finding:
        return self._found[index]

    @property
    def line(self) -> str:
        """The result in one line."""
        line = f"nothing found in {self.seconds:.2f} s"
        if self._found:
            found = "1 finding" if len(self) == 1 else f"{len(self)} findings"
            line = f"{found} in {self.seconds:.2f} s: {_counts(self.table)}"
        if len(self.properties):
            line += f"; as a recording it has {_counts(self.properties)}"
            if self._synthesised is None:
                line += " (defects if a model made this sound)"
        return line

    def to_frame(self) -> pd.DataFrame:
        """Return a copy of `table`."""
        return self.table.copy()

    def assert_ok(self) -> None:
        """Raise a WorkbenchError with the result in one line if there is any defect."""
        if self._found:
            first = self._found[0]
            raise WorkbenchError(f"{self.line}; the first at {first.start:.3f} s: {first.cause}")

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        html = f"<b>{escape(self.line)}</b>"
        for title, table in (("", self.table), ("<p>Properties</p>", self.properties)):
            if len(table):
                html += title + table_html(table[SHOWN_COLUMNS], UNITS)
                html += folded("every number of them", table_html(table, UNITS))
        return f"<div>{html}</div>"


def find_glitches(
    source: Trace | str | os.PathLike | Tensor | np.ndarray,
    sample_rate: int | None = None,
    synthesised: bool | None = None,
) -> Findings:
    """Find everything that clean speech does not do.

    Parameters
    ----------
    source : Trace, path, Tensor (N,) or ndarray (N,)
        A path is that of a sound, trace or dump. Of a trace, recorded f0, mel, tokens, text and seams are
        judged as well. Seams are `attrs["seams"]`: the first sample of every chunk but the first. Of one
        pass of a stream (`attrs["streaming"]` without seams) length, pace and end are not judged.
    sample_rate : int, optional
        Hz; required for a bare waveform. Nothing is resampled.
    synthesised : bool, optional
        Whether a model made the sound. By default it did where a trace holds more than a waveform, and
        nobody knows otherwise. Unless it is true, what recordings of people often have is no defect.

    Returns
    -------
    Findings

    Raises
    ------
    WorkbenchError
        For a file that cannot be read, several channels, no samples, no sample rate, more than five minutes,
        or a trace without a waveform.

    Examples
    --------
    >>> wb.find_glitches(trace)
    nothing found in 1.20 s
    >>> wb.find_glitches(2 * trace.wav / trace.wav.abs().max(), trace.sample_rate)[0].cause[-22:]
    '... samples, up to 2)'
    >>> wb.find_glitches(trace.wav + 0.01, trace.sample_rate)
    nothing found in 1.20 s; as a recording it has offset (defects if a model made this sound)
    >>> wb.find_glitches(trace.wav + 0.01, trace.sample_rate, synthesised=True)
    1 finding in 1.20 s: offset
    """
    if isinstance(source, str | os.PathLike):
        source = open(source)
    sound = as_sound(source, sample_rate, synthesised)
    clean_scores = load_clean_scores()
    found = []
    for kind in DETECTORS:
        for spot in detect(kind, sound):
            found.append(_finding(sound, kind, spot, clean_scores.get(kind, [])))
    found = [finding for finding in found if not _is_said_by_another(finding, found)]
    found.sort(key=lambda finding: (finding.start, finding.kind))
    return Findings(found, sound.seconds, sound.synthesised)


@lru_cache(maxsize=1)
def load_clean_scores() -> dict[str, list[float]]:
    """Return by kind the highest score of every clean utterance, sorted; see `benchmark.py`."""
    return json.loads(CLEAN_SCORES.read_text(encoding="utf-8")) if CLEAN_SCORES.is_file() else {}


def detect(kind: str, sound: Sound) -> list[Spot]:
    """Return the spots of one detector that reach its threshold, with neighbours merged."""
    if kind not in KINDS_WITHOUT_SPEECH and not sound.active.any():
        return []
    if kind in KINDS_OF_A_WHOLE and _is_pass_of_stream(sound.trace):
        return []
    detector = DETECTORS[kind]
    return _merge([spot for spot in detector.find(sound) if spot.score >= detector.threshold])


def _is_pass_of_stream(trace: Trace) -> bool:
    """Return whether a trace is one pass of a stream, as upstream's hook writes; a whole has its seams."""
    return bool(trace.attrs.get("streaming")) and "seams" not in trace.attrs


def _merge(spots: list[Spot]) -> list[Spot]:
    """Merge spots that are near to each other and have the same subject; the highest score is kept."""
    merged: dict[str, list[Spot]] = {}  # by subject
    for spot in sorted(spots):
        row = merged.setdefault(spot.subject, [])
        if row and spot.start - row[-1].end <= MERGE_S:
            worst = max(row[-1], spot, key=lambda each: each.score)
            row[-1] = worst._replace(start=row[-1].start, end=max(row[-1].end, spot.end))
        else:
            row.append(spot)
    return [spot for row in merged.values() for spot in row]


def _is_said_by_another(finding: Finding, found: list[Finding]) -> bool:
    """Return whether a finding of a kind that says more overlaps this one; see `SAID_BY`."""
    better = SAID_BY.get(finding.kind, ())
    return any(
        other.kind in better and other.start <= finding.end + MERGE_S and other.end >= finding.start - MERGE_S
        for other in found
    )


def _counts(table: pd.DataFrame) -> str:
    """Return how many findings there are of each kind, in words."""
    counts = table["kind"].value_counts(sort=False)
    return ", ".join(f"{n} x {kind}" if n > 1 else str(kind) for kind, n in counts.items())


def _finding(sound: Sound, kind: str, spot: Spot, clean_scores: list[float]) -> Finding:
    """Return a spot as a finding, with its place in samples, frames and tokens."""
    detector = DETECTORS[kind]
    percentile = math.nan
    if clean_scores:
        percentile = 100 * float(np.mean(np.array(clean_scores) < spot.score))
    start = max(0.0, spot.start)
    end = min(max(spot.end, spot.start), sound.seconds)
    severity = PROPERTY if detector.in_recordings and not sound.synthesised else DEFECT
    cause = explain(detector.causes, sound.trace, detector.follows_mel)
    if severity == PROPERTY:
        doubt = f"; if a model made it: {cause}" if sound.synthesised is None else ""
        cause = detector.in_recordings + doubt
    return Finding(
        kind=kind,
        start=start,
        end=end,
        score=spot.score,
        threshold=detector.threshold,
        percentile=percentile,
        sample=int(start * sound.rate + 0.5),
        frame=int(start * FRAME_RATE + ROUNDING),
        token=int(start * TOKEN_RATE * _speed(sound.trace) + ROUNDING),
        cause=f"{cause} ({spot.note})" if spot.note else cause,
        severity=severity,
    )


def _speed(trace: Trace) -> float:
    """Return `Options.speed` of a trace: the seconds of tokens in one second of audio; 1 if not recorded."""
    speed = trace.attrs.get("options", {}).get("speed", 1.0)
    is_plausible = isinstance(speed, (int, float)) and 0 < speed < 100
    return float(speed) if is_plausible else 1.0
