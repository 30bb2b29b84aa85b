"""`Bisection`: the result of `bisect`, and how it shows itself."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from workbench.diagnose.bisect.snippet import mapping_text, plain_snippet, torch_snippet
from workbench.diagnose.bisect.stages import StageTaps
from workbench.diagnose.bisect.step_check import Check
from workbench.tables import table_html


class InputDifference(NamedTuple):
    """One input of a stage that differs from a right run's."""

    name: str
    step: int
    error: float  # relative L2; Inf where the shapes differ

    def __str__(self) -> str:
        size = "another shape" if self.error == float("inf") else f"relative L2 {self.error:.2g}"
        return f"{self.name} at step {self.step} ({size})"


class Bisection:
    """The result of `bisect`: the first place inside a stage that adds an error, and what to record next.

    Attributes
    ----------
    first : str
        The first place that adds an error: the name of a tap, or of an input of the stage that differs from
        a right run's. Empty where none was found.
    block : str
        The block that `first` lies in, such as "transformer_blocks.3". Empty where it cannot be told yet.
    part : str
        What is computed there, such as "attention: rotary, scores, mask". Empty where it cannot be told yet.
    others : list of str
        Later taps of the same step that add errors of their own.
    input_differences : list of InputDifference
        Inputs of the stage that differ from a right run's: such an error was made before the stage.
    next_taps : list of str
        Taps to record next. Empty where nothing more can be learnt.
    steps : list of int
        Steps to record them at.
    mapping : str
        TOML that `read_foreign` reads the taps with.
    snippet : str
        Python that records the taps of a PyTorch model.
    plain_snippet : str
        A line for each tap for a program without PyTorch.
    checked, unchecked : list of str
        Taps that were compared with our model; taps and inputs that were not, with the reason.

    Examples
    --------
    >>> found = wb.bisect(trace, trace, pipe)
    >>> found.first, found.next_taps
    ('', [])
    >>> print(found)
    flow: no error inside; all 10 steps give the velocity that follows from their inputs
    """

    def __init__(
        self,
        stage: StageTaps,
        checks: Sequence[Check],
        input_differences: Sequence[InputDifference],
        next_taps: Sequence[str],
        steps: Sequence[int],
        recorded: Sequence[str],
        unchecked: Sequence[str],
        remark: str,
    ) -> None:
        self.stage = stage.name
        self.checks = list(checks)
        self.input_differences = list(input_differences)
        self.next_taps = list(next_taps)
        self.steps = list(steps)
        self.remark = remark
        self.wrong = [check for check in checks if check.is_wrong]
        self.checked = [place(stage, check) for check in checks if not check.reason]
        self.unchecked = [f"{place(stage, check)}: {check.reason}" for check in checks if check.reason]
        self.unchecked += unchecked
        # One dump then holds everything: what was recorded already, and what to add.
        sources = [f"input.{name}" for name in stage.sources]
        order = [*sources, *(tap.name for tap in stage.taps)]
        names = [name for name in order if name in {*recorded, *next_taps, *sources} and name != "output"]
        if not next_taps:
            names = []
        self.mapping = mapping_text(stage, names) if names else ""
        self.snippet = torch_snippet(stage, names, self.steps) if names else ""
        self.plain_snippet = plain_snippet(stage, names, self.steps) if names else ""

    @property
    def first(self) -> str:
        """The first place that adds an error; empty where none was found."""
        if self.input_differences:
            return self.input_differences[0].name
        return self.wrong[0].tap.name if self.wrong else ""

    @property
    def block(self) -> str:
        """The first block that adds an error; empty where none was found or several may be it."""
        return self.wrong[0].blocks[0] if self.wrong and len(self.wrong[0].blocks) == 1 else ""

    @property
    def part(self) -> str:
        """The first part that adds an error; empty where none was found or several may be it."""
        return self.wrong[0].part if self.wrong else ""

    @property
    def others(self) -> list[str]:
        """Later taps of the same step that add errors of their own."""
        return [check.tap.name for check in self.wrong[1:] if check.step == self.wrong[0].step]

    @property
    def line(self) -> str:
        """The result in one line."""
        texts = []
        if self.input_differences:
            inputs = ", ".join(map(str, self.input_differences))
            texts.append(f"the difference begins before the {self.stage}, in what it is given: {inputs}")
        if self.wrong:
            texts.append(self._describe_first())
            blocks = dict.fromkeys(block for check in self.wrong[1:] for block in check.blocks)
            others = [block for block in blocks if block not in self.wrong[0].blocks]
            if others:
                texts.append(f"{', '.join(others)} add errors of their own")
        elif self.checked:
            texts.append(f"no error inside among {len(self.checked)} checked taps")
        texts.append(self.remark)
        if self.next_taps:
            steps = " and ".join(map(str, self.steps))
            texts.append(f"record {len(self.next_taps)} more taps at step {steps} (see snippet and mapping)")
        if self.unchecked:
            texts.append(f"not checked: {self.unchecked[0]}")
            if len(self.unchecked) > 1:
                texts[-1] += f", and {len(self.unchecked) - 1} more"
        return f"{self.stage}: " + "; ".join(text for text in texts if text)

    def _describe_first(self) -> str:
        check = self.wrong[0]
        where = " or ".join(check.blocks)
        size = f"adds {check.added:.2g}, rounding and storage explain {check.allowed:.2g}"
        if check.part:
            where += f", {check.part} ({check.tap.name})"
        note = f"; {check.note}" if check.note else ""
        return f"the first error is made in {where} at step {check.step}: {size}{note}"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each recorded tap.

        Returns
        -------
        DataFrame
            `step`, `tap`, `block`, `part`, `verdict` ("right", "adds an error" or "not checked"), `added`
            and `allowed` (relative L2 to what our model computes from the recorded taps before it, and what
            rounding and storage explain of it), `note`.
        """
        rows = []
        for check in self.checks:
            verdict = "not checked" if check.reason else "adds an error" if check.is_wrong else "right"
            row = {"step": check.step, "tap": check.tap.name, "block": check.tap.block}
            row |= {"part": "" if check.between else check.tap.part, "verdict": verdict, "added": check.added}
            rows.append(row | {"allowed": check.allowed, "note": check.reason or check.note})
        columns = ["step", "tap", "block", "part", "verdict", "added", "allowed", "note"]
        return pd.DataFrame(rows, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return {
            "line": self.line,
            "stage": self.stage,
            "first": self.first,
            "block": self.block,
            "part": self.part,
            "others": self.others,
            "input_differences": [str(difference) for difference in self.input_differences],
            "next_taps": self.next_taps,
            "steps": self.steps,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "rows": json.loads(self.to_frame().to_json(orient="records", double_precision=15)),
        }

    def files(self) -> dict[str, str]:
        """Return the files that record the next taps, by their names; empty where there are none."""
        if not self.next_taps:
            return {}
        return {
            "record_taps.py": self.snippet,
            "record_taps.rs": self.plain_snippet,
            "taps.toml": self.mapping,
        }

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = table_html(self.to_frame())
        parts = [f"<b>{escape(self.line)}</b>"]
        folded = {
            f"{len(self.checks)} taps": table,
            "record next, from PyTorch": _code(self.snippet),
            "record next, from another program": _code(self.plain_snippet),
            "mapping": _code(self.mapping),
            "not checked": "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in self.unchecked) + "</ul>",
        }
        for title, content in folded.items():
            if content not in ("", "<ul></ul>"):
                parts.append(f"<details><summary>{title}</summary>{content}</details>")
        return f"<div>{''.join(parts)}</div>"


def place(stage: StageTaps, check: Check) -> str:
    """Return the name of a tap at a step, such as "flow/0/proj_out"."""
    return f"{stage.name}/{check.step}/{check.tap.name}"


def _code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""
