"""The sound side of `compare`, `report` and `diagnose`: what they do when they are given sound files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.common import json_text, open_traces, table_text
from workbench.files import atomic_write

if TYPE_CHECKING:
    from workbench.show.report.report import Report
    from workbench.trace.trace import Trace

# The first verdict that fails, by --fail-on. A match that was delayed, scaled or inverted is no plain match.
FAILS_FROM = {"rounding": "ROUNDING", "missing": "ALIKE", "diverged": "DIVERGED"}
GLITCH_COLUMNS = ["kind", "start", "end", "score", "cause"]


def any_sound(paths: Sequence[str | None]) -> bool:
    """Return whether any of the paths is a sound file."""
    from workbench.diagnose.sounds.sound_input import is_sound_file

    return any(is_sound_file(path) for path in paths)


def compare_sound_files(
    reference: str,
    candidate: str,
    names: str | None,
    fail_on: str = "diverged",
    brief: bool = False,
    as_json: bool = False,
    out: str | None = None,
    mapping: Sequence[str] | None = None,
) -> int:
    """Compare two sounds, or the waveform of a trace with a sound, and print what differs."""
    from workbench.diagnose.sounds.compare_sounds import compare_sounds
    from workbench.diagnose.sounds.sound_comparison import SOUND_VERDICTS

    found = compare_sounds(*_open([reference, candidate], names, mapping))
    if as_json:
        print(json_text(found))
    else:
        for path in (reference, candidate):
            if not any_sound([path]):
                print(f"{path}: its waveform (hift/wav) alone is compared, because the other is a sound")
        print(found)
        for remark in found.remarks:
            print(f"- {remark}")
        if not brief:
            print(table_text(found.to_frame()[["aspect", "differs", "found"]]))
            if len(found.bands):
                print(table_text(found.bands))
    if out:
        with atomic_write(out) as draft:
            draft.write_text(json_text(found), encoding="utf-8")
    if fail_on == "never":
        return 0
    is_changed = fail_on == "rounding" and bool(found.differing)
    first = SOUND_VERDICTS.index(FAILS_FROM[fail_on])
    return int(is_changed or SOUND_VERDICTS.index(found.verdict) >= first)


def diagnose_sound(
    path: str, reference: str | None, names: str | None, mapping: Sequence[str] | None = None
) -> int:
    """Print what one sound shows; with a reference, compare them. No fault is named from a sound."""
    if reference is not None:
        return compare_sound_files(reference, path, names, fail_on="never", mapping=mapping)
    from workbench.diagnose.sounds.one_sound import examine_sound

    found = examine_sound(path)
    print(found)
    print(table_text(found.to_frame()))
    if len(found.glitches):
        print(table_text(found.glitches.to_frame()[GLITCH_COLUMNS], 4))
    for remark in found.remarks:
        print(f"- {remark}")
    return 0


def sound_file_report(
    paths: Sequence[str], names: str | None, mapping: Sequence[str] | None = None
) -> "Report":
    """Return a report of one sound or of two."""
    from workbench.show.report.sound_reports import one_sound_report, sound_report

    sources = _open(paths, names, mapping)
    if len(sources) == 1:
        return one_sound_report(sources[0])
    titles = [Path(path).name for path in paths]
    return sound_report(*sources, names=(titles[0], titles[1]))


def _open(paths: Sequence[str], names: str | None, mapping: Sequence[str] | None) -> "list[str | Trace]":
    """Return sound files as their paths, and open everything else as a trace, a dump or a log."""
    return [path if any_sound([path]) else open_traces([path], names, mapping)[0] for path in paths]
