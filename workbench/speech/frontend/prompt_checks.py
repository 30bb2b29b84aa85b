"""`check_prompt`: what may go wrong with a recording to clone and its transcript."""

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from workbench.errors import WorkbenchError, WorkbenchWarning
from workbench.files import read_text_file
from workbench.speech.frontend.audio_input import AudioSource, check_recording, open_audio
from workbench.speech.frontend.sound_checks import (
    SOUND_KINDS,
    SPEECH_KINDS,
    UNCHECKED_KINDS,
    SoundMeasures,
    measure,
    sound_problems,
)
from workbench.speech.frontend.transcript_checks import (
    instruction_problems,
    pace_problem,
    text_problems,
    transcript_problems,
)

if TYPE_CHECKING:
    import pandas as pd

TRANSCRIPT_KINDS = ("transcript length", "instruction", "control tokens", "characters")
REFUSED, WARNING, NOTE = "refused", "warning", "note"


class PromptFinding(NamedTuple):
    """Something about a prompt or a text that often makes the result sound wrong.

    Attributes
    ----------
    kind : str
        "clipping", "transcript length", ...
    severity : {"refused", "warning", "note"}
        Refused recordings cannot be prompts; a note is less than a warning.
    message : str
        What was measured, what is usual, and what to try.

    Examples
    --------
    >>> [finding] = wb.check_prompt(wb.data_path("prompts/kumo_0.flac"), "Hi.")
    >>> finding.kind
    'transcript length'
    """

    kind: str
    severity: str
    message: str


@dataclass(frozen=True, eq=False, repr=False)
class PromptCheck:
    """What `check_prompt` found, and what it looked for; iterates over the findings.

    Parameters
    ----------
    name : str
        The recording's path, or "prompt".
    findings : tuple of PromptFinding
    checked : tuple of str
        Kinds that were looked for.
    unchecked : dict of str to str
        What was not, with the reason.
    measures : dict of str to float
        The recording's figures, with the unit in each name.

    Examples
    --------
    >>> wb.check_prompt(wb.data_path("prompts/kumo_0.flac"))
    PromptCheck('...kumo_0.flac', nothing found; ... kinds checked, ... not)
    """

    name: str
    findings: tuple[PromptFinding, ...]
    checked: tuple[str, ...]
    unchecked: dict[str, str]
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found but notes."""
        return all(finding.severity == NOTE for finding in self.findings)

    def __iter__(self) -> Iterator[PromptFinding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __repr__(self) -> str:
        found = ", ".join(finding.kind for finding in self.findings) or "nothing found"
        counts = f"{len(self.checked)} kinds checked, {len(self.unchecked)} not"
        return f"PromptCheck({self.name!r}, {found}; {counts})"

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each finding."""
        import pandas as pd

        return pd.DataFrame(self.findings, columns=PromptFinding._fields)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "name": self.name,
            "findings": [finding._asdict() for finding in self.findings],
            "checked": list(self.checked),
            "unchecked": self.unchecked,
            "measures": self.measures,
        }

    def assert_ok(self) -> None:
        """Raise a WorkbenchError unless `ok`."""
        if not self.ok:
            raise WorkbenchError("; ".join(f"{found.kind}: {found.message}" for found in self.findings))

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(part)}</td>" for part in found) + "</tr>"
            for found in self.findings
        )
        not_checked = "".join(f"<li>{escape(k)}: {escape(why)}</li>" for k, why in self.unchecked.items())
        return (
            f"<div><b>{escape(repr(self))}</b><table>{rows}</table>"
            f"checked: {escape(', '.join(self.checked))}; not checked:<ul>{not_checked}</ul></div>"
        )


def check_prompt(
    source: AudioSource, text: str | None = None, sample_rate: float | None = None
) -> PromptCheck:
    """Check a recording to clone and its transcript, before anything is spoken.

    Parameters
    ----------
    source : path, array, or (array, rate)
        As for `Pipeline.prompt`.
    text : str, optional
        Its transcript; by default the content of the `.txt` of the same name, if there is one.
    sample_rate : float, optional
        Hz, of samples.

    Returns
    -------
    PromptCheck
        Its findings, what was checked and what was not. A recording that cannot be a prompt at all is a
        finding too, "refused".

    Raises
    ------
    WorkbenchError
        When the recording or the transcript cannot be read.

    Examples
    --------
    >>> found = wb.check_prompt(wb.data_path("prompts/kumo_0.flac"), "Please speak slowly.<|endofprompt|>")
    >>> [finding.kind for finding in found]
    ['instruction']
    """
    is_file = isinstance(source, str | os.PathLike)
    name = str(source) if is_file else "prompt"
    if text is None and is_file:
        text = read_transcript(source)
    found = open_audio(source, sample_rate, name)
    return check_samples(found.wav.float(), found.rate, text or "", name)


def check_samples(wav: Tensor, rate: int, text: str, name: str = "prompt") -> PromptCheck:
    """Check samples (N,) with their transcript; empty text is none."""
    findings = []
    unchecked = dict(UNCHECKED_KINDS)
    checked = [*TRANSCRIPT_KINDS[1:]] if text else []
    measures = None
    try:
        check_recording(wav, rate, name)
    except WorkbenchError as error:
        findings.append(PromptFinding("recording", REFUSED, str(error)))
        unchecked |= dict.fromkeys((*SOUND_KINDS, TRANSCRIPT_KINDS[0]), "the recording cannot be a prompt")
    else:
        measures = measure(wav.numpy(), rate)
        findings += [PromptFinding(kind, WARNING, message) for kind, message in sound_problems(measures)]
        found_no_speech = () if measures.is_speech else SPEECH_KINDS
        checked += [kind for kind in SOUND_KINDS if kind not in found_no_speech]
        unchecked |= dict.fromkeys(found_no_speech, "no speech was found")
    if not text:
        unchecked |= dict.fromkeys(TRANSCRIPT_KINDS, "no transcript")
        return PromptCheck(name, tuple(findings), tuple(checked), unchecked, _figures(measures))
    problems = list(transcript_problems(text))
    if measures is not None and measures.is_speech:
        checked.append(TRANSCRIPT_KINDS[0])
        problem = pace_problem(text, measures.speech_s)
        problems += [] if problem is None else [(TRANSCRIPT_KINDS[0], problem)]
    elif measures is not None:
        unchecked[TRANSCRIPT_KINDS[0]] = "no voice was found, so that the length of the speech is unknown"
    findings += [PromptFinding(kind, WARNING, message) for kind, message in problems]
    return PromptCheck(name, tuple(findings), tuple(checked), unchecked, _figures(measures))


def _figures(measures: SoundMeasures | None) -> dict[str, float]:
    return {} if measures is None else measures._asdict()


def text_findings(
    text: str, typed: str, transcript: str, mode: str, instruct: str | None = None
) -> tuple[PromptFinding, ...]:
    """Check a segment of a text as typed, and its instruction, beside the transcript of its prompt."""
    problems = list(text_problems(text, typed, transcript if mode == "zero-shot" else "")) if text else []
    if mode == "instruct":
        problems += instruction_problems(instruct or "")
    return tuple(
        PromptFinding(kind, NOTE if kind == "short text" else WARNING, message) for kind, message in problems
    )


def warn_of(findings: Iterable[PromptFinding], name: str = "") -> None:
    """Give a Python warning for each finding that is more than a note."""
    for finding in findings:
        if finding.severity != NOTE:
            prefix = f"{name}: " if name else ""
            warnings.warn(f"{prefix}{finding.message}", WorkbenchWarning, stacklevel=4)


def read_transcript(recording: str | os.PathLike) -> str | None:
    """Return the content of the `.txt` beside a recording; None if there is none."""
    path = Path(recording)
    # Not Path.is_file, which raises an OSError for a name that is too long.
    if not path.name or not os.path.isfile(path.with_suffix(".txt")):
        return None
    return read_text_file(path.with_suffix(".txt"))
