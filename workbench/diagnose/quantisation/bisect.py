"""`bisect_format`: which parts, blocks and layers may be in one format, alone and all together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from workbench.diagnose.experiments.judges import Judge, judge_of
from workbench.diagnose.quantisation.heard import NOT_JUDGED, HeardChange, heard_change, judged_before
from workbench.diagnose.quantisation.measure import (
    MAX_F0_CHANGE,
    MAX_LM_CHANGE,
    MAX_SOUND_CHANGE,
    Change,
    References,
)
from workbench.diagnose.quantisation.units import Tree, largest_count, weights_of
from workbench.errors import WorkbenchError
from workbench.speech.config import STAGES, Options
from workbench.speech.config.formats import parse_format
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.tables import table_html


@dataclass(frozen=True)
class FormatMap:
    """The result of `bisect_precision` for a format of quantised weights.

    Attributes
    ----------
    format : str
    rows : DataFrame
        One row for each part, block or layer that was quantised alone: `part`; what it changes, see `Change`;
        `safe`. Blocks are tried where their stage is not safe, layers where their block is not.
    safe_parts : tuple of str
        What may have the format all at once.
    together : Change
        What they change then.
    runs : int
        How many runs were measured.
    heard : HeardChange, optional
        Words misheard and predicted quality with `safe_parts`, where a judge was given.
    """

    format: str
    rows: pd.DataFrame
    safe_parts: tuple[str, ...]
    together: Change
    runs: int
    heard: HeardChange | None = None

    @property
    def recommended(self) -> dict[str, str]:
        """Globs with formats, for `Options(weights=...)`."""
        return dict.fromkeys(self.safe_parts, self.format)

    @property
    def line(self) -> str:
        """The answer in one line."""
        rows = self.rows.set_index("part")["safe"]
        dropped = [part for part in rows.index[rows] if not self._is_covered(part)]
        blocked = rows.index[~rows]
        lowest = [part for part in blocked if not any(other.startswith(f"{part}.") for other in rows.index)]
        safe = ", ".join(self.safe_parts[:6]) or "nothing"
        more = f" and {len(self.safe_parts) - 6} more" if len(self.safe_parts) > 6 else ""
        changes = f"{self.together.sound_db:.2g} dB, {self.together.f0_hz:.2g} Hz, {self.together.kl:.2g} nat"
        texts = [f"{self.format} is safe for {safe}{more} ({changes} together; runs: {self.runs})"]
        if dropped:
            texts.append(f"for {', '.join(dropped[:4])} alone, but not beside them")
        if lowest:
            texts.append(f"not for {', '.join(lowest[:6])}" + (" and others" if len(lowest) > 6 else ""))
        return f"{'; '.join(texts)}. {self.heard.line if self.heard else NOT_JUDGED}"

    def _is_covered(self, part: str) -> bool:
        """Whether a part, or all that was tried inside of it, is among the safe ones."""
        return any(part == safe or part.startswith(f"{safe}.") for safe in self.safe_parts)

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        return f"<div><b>{escape(self.line)}</b>{table_html(self.rows)}</div>"


def bisect_format(
    pipe: Pipeline,
    utts: Utterance | Sequence[Utterance],
    name: str,
    options: Options | None = None,
    seeds: Sequence[int] = (0,),
    judge: Judge | str | os.PathLike | None = None,
) -> FormatMap:
    """Find out by trying which weights may have a format; see `bisect_precision`."""
    name = str(parse_format(name))
    if name == "float32":
        raise WorkbenchError("float32 is what changes nothing; expected float16, bfloat16 or such as q4_k")
    judge = None if judge is None else judge_of(judge)
    references = References(pipe, utts, pipe.options(options), seeds)
    before = None if judge is None else judged_before(references, judge)
    tree = Tree(references)
    rows, safe = [], []
    todo = list(STAGES)
    while todo:
        unit = todo.pop(0)
        change = references.change(weights_of([(unit, name)]))
        is_safe = change.within(MAX_SOUND_CHANGE, MAX_LM_CHANGE)
        rows.append({"part": unit, **change._asdict(), "safe": is_safe})
        if is_safe:
            safe.append((change, unit))
        else:
            todo = tree.parts(unit) + todo
    kept, together = _safe_together(references, safe, name)
    heard = None
    if judge is not None and kept:
        weights = weights_of((unit, name) for unit in kept)
        heard = heard_change(references, weights, judge, before)
    return FormatMap(name, pd.DataFrame(rows), kept, together, len(references.runs), heard)


def _safe_together(
    references: References, safe: list[tuple[Change, str]], name: str
) -> tuple[tuple[str, ...], Change]:
    """Return the most units that change little enough together, leaving out those that change most.

    With one unit more, a change is hardly ever smaller. All of them fit more often than not: tried first.
    """
    order = sorted(safe, key=lambda pair: _share_of_limits(pair[0]))
    measured = {0: Change()}

    def fits(count: int) -> bool:
        measured[count] = references.change(weights_of((unit, name) for _, unit in order[:count]))
        return measured[count].within(MAX_SOUND_CHANGE, MAX_LM_CHANGE)

    count = largest_count(len(order), len(order), fits)
    kept = {unit for _, unit in order[:count]}
    return tuple(unit for _, unit in safe if unit in kept), measured[count]


def _share_of_limits(change: Change) -> float:
    return change.sound_db / MAX_SOUND_CHANGE + change.kl / MAX_LM_CHANGE + change.f0_hz / MAX_F0_CHANGE
