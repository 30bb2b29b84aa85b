"""`recommend`: a format for each block of a voice, under a size or under a limit of what is heard."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

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
from workbench.diagnose.quantisation.mlx import mlx_quantization
from workbench.diagnose.quantisation.units import block_of, largest_count, weights_of
from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.speech.checkpoint.quantised.layers import layers
from workbench.speech.config import Options
from workbench.speech.config.formats import parse_format
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.tables import table_html

KEPT = "float32"  # what a block has that no step concerns
BASE = "float16"  # what sizes are compared with
FORMATS = ("float16", "q8_0", "int8", "q6_k", "q5_k", "q4_k", "q4_0")  # tried unless others are asked for
SIZE = re.compile(r"([\d.]+)\s*(k|m|g|ki|mi|gi)?b", re.IGNORECASE)
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
QWEN_LAYER = re.compile(r"lm\.llm\.model\.model\.layers\.(\d+)")


class _Step(NamedTuple):
    """One step of the way from large to small: a block that gets a smaller format."""

    block: str
    format: str
    nbytes: int  # of the whole voice after the step
    sound_db: float  # predicted, of all blocks together
    kl: float


@dataclass(frozen=True)
class Recommendation:
    """The result of `recommend`.

    Attributes
    ----------
    weights : dict of str to str
        Block -> format, for `Options(weights=...)`; blocks that are not named stay in float32.
    nbytes, base_nbytes : int
        Bytes of all matrices with these formats, and with float16 in all. Norms and biases are not counted.
    change : Change
        Measured with all formats together.
    sensitivity : DataFrame
        Of each block alone in each format: `block`, `format`, `nbytes`, and the parts of `Change`.
    curve : DataFrame
        The way from large to small, one block a row: `block`, `format`, `nbytes`, `sound_db`, `kl`, predicted
        from the blocks alone, and `measured_db` where the whole was measured.
    runs : int
        How many runs were measured.
    layers : DataFrame
        The format of each layer, see `workbench.layers`.
    heard : HeardChange, optional
        Words misheard and predicted quality before and after, where a judge was given: `heard.table()`.

    Examples
    --------
    >>> import pandas as pd
    >>> short = pipe.options(None).but(n_timesteps=1, max_tokens=4, seed=7)
    >>> known = pd.read_csv(wb.data_path("accuracy/quantise.csv"))  # the bundled voice's
    >>> found = wb.recommend(pipe, utt, max_db=1.0, options=short, sensitivity=known)
    >>> found.weights["lm.llm_decoder"]
    'q5_k'
    """

    weights: dict[str, str]
    nbytes: int
    base_nbytes: int
    change: Change
    sensitivity: pd.DataFrame
    curve: pd.DataFrame
    runs: int
    layers: pd.DataFrame
    heard: HeardChange | None = None

    @property
    def line(self) -> str:
        """The answer in one line."""
        counts: dict[str, int] = {}
        for block in self.sensitivity["block"].unique():
            name = self.weights.get(block, KEPT)
            counts[name] = counts.get(name, 0) + 1
        kinds = ", ".join(f"{count} in {name}" for name, count in counts.items())
        change = self.change
        return (
            f"{self.nbytes / 1e6:.1f} MB, {self.nbytes / self.base_nbytes:.0%} of float16: {kinds}. "
            f"The sound changes by {change.sound_db:.2g} dB, f0 by {change.f0_hz:.2g} Hz, the next token by "
            f"{change.kl:.2g} nat (runs: {self.runs}). An LM that waits for its weights is "
            f"{self.speed_up:.2g} times as fast. {self.heard.line if self.heard else NOT_JUDGED}"
        )

    @property
    def speed_up(self) -> float:
        """The LM's bytes in float16 over those here, tables of embeddings not counted: at most that much."""
        rows = self.sensitivity
        rows = rows[rows["block"].str.startswith("lm.") & ~rows["block"].str.contains("embed")]
        nbytes = 0
        for block, group in rows.groupby("block"):
            nbytes += int(group.loc[group["format"] == self.weights.get(block, KEPT), "nbytes"].iloc[0])
        in_base = int(rows.loc[rows["format"] == KEPT, "nbytes"].sum()) / 2
        return in_base / max(nbytes, 1)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the formats as TOML, which `Options(weights=Path(...))` and `--weights` read.

        Raises
        ------
        WorkbenchError
            When the file cannot be written.
        """
        write_weights(self.weights, self.line, path)
        return Path(path)

    def llama_tensor_types(self) -> list[str]:
        """Return the formats of the LM's transformer blocks as arguments of `llama-quantize`.

        Raises
        ------
        WorkbenchError
            When a block has a format that ggml does not have.
        """
        arguments = []
        for block, name in self.weights.items():
            match = QWEN_LAYER.fullmatch(block)
            if match is None:
                continue
            if parse_format(name).kind.family not in ("ggml", "float"):
                raise WorkbenchError(
                    f"{block} is in {name}, which ggml does not have; try formats=('q8_0', 'q4_k')"
                )
            arguments += ["--tensor-type", rf"blk\.{match.group(1)}\.={name}"]
        return arguments

    def mlx_quantization(self) -> dict[str, object]:
        """Return the key "quantization" of an mlx-lm `config.json`, for the LM.

        By module of mlx-lm's Qwen2, such as "model.layers.0.self_attn.q_proj": group size and bits, or False;
        speech embedding and head have upstream's names. A predicate for `mlx_lm.convert` is
        `lambda path, module: quantization.get(path, False)`.

        Raises
        ------
        WorkbenchError
            When a layer has a format that MLX does not have, or none has one of MLX.
        """
        return mlx_quantization(self.layers)

    def save_mlx(self, path: str | os.PathLike) -> Path:
        """Write `mlx_quantization()` as JSON, `{"quantization": ...}`, to be merged into a `config.json`.

        Raises
        ------
        WorkbenchError
            As `mlx_quantization`, or when the file cannot be written.
        """
        text = json.dumps({"quantization": self.mlx_quantization()}, indent=2)
        with atomic_write(path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        shown = pd.DataFrame(self.weights.items(), columns=["block", "format"])
        return f"<div><b>{escape(self.line)}</b>{table_html(shown)}</div>"


def write_weights(weights: Mapping[str, str], comment: str, path: str | os.PathLike) -> None:
    """Write globs with formats as TOML, below a comment."""
    lines = [f"# {comment}", *(f'"{glob}" = "{name}"' for glob, name in weights.items())]
    with atomic_write(path) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")


def recommend(
    pipe: Pipeline,
    utts: Utterance | Sequence[Utterance],
    budget: str | int | None = None,
    max_db: float | None = None,
    *,
    max_kl: float = MAX_LM_CHANGE,
    formats: Sequence[str] = FORMATS,
    options: Options | None = None,
    seeds: Sequence[int] = (0,),
    sensitivity: pd.DataFrame | None = None,
    judge: Judge | str | os.PathLike | None = None,
) -> Recommendation:
    """Choose a format for each block: the smallest voice within a limit, or the least changed within a size.

    1. Each block runs in each format alone, from the tokens of runs with the weights as they are.
    2. From float32 on, again and again the block is made smaller whose change costs least per byte. Squares
       of decibels add up, and so do divergences, if changes are small and independent.
    3. What was chosen is measured as a whole. With `max_db` the last point of the way that holds both limits
       is searched by halving.

    Parameters
    ----------
    pipe : Pipeline
    utts : Utterance or sequence of Utterance
        More texts make the answer hold for more texts.
    budget : str or int, optional
        Bytes of all matrices, such as "200 MB", or "50%" of float16. Either this or `max_db`.
    max_db : float, optional
        Largest RMS difference of the sounds' log-mels [dB], with the excitation held; `max_kl` and 1 Hz of f0
        then hold too.
    max_kl : float
        Largest mean divergence of the next token's distribution [nat].
    formats : sequence of str
        Formats to choose from.
    options : Options, optional
        The checkpoint's own by default.
    seeds : sequence of int
    sensitivity : DataFrame, optional
        That of an earlier `Recommendation` for the same voice and formats: step 1 is left out.
    judge : callable, str or path, optional
        Recogniser that hears the runs before and after, as in `wb.metrics.wer`; DNSMOS then judges them too
        where it is installed. It says what the choice costs, and does not choose.

    Returns
    -------
    Recommendation

    Raises
    ------
    WorkbenchError
        When both or none of `budget` and `max_db` are given, or no choice is small enough; before anything
        else is measured, when the judge cannot judge.

    Examples
    --------
    >>> import pandas as pd
    >>> short = pipe.options(None).but(n_timesteps=1, max_tokens=4, seed=7)
    >>> known = pd.read_csv(wb.data_path("accuracy/quantise.csv"))  # the bundled voice's
    >>> found = wb.recommend(pipe, utt, budget="60%", options=short, sensitivity=known)
    >>> found.nbytes <= 0.6 * found.base_nbytes
    True
    """
    if (budget is None) == (max_db is None):
        raise WorkbenchError("expected one of budget, such as '200 MB' or '50%', and max_db, such as 1.0")
    formats = [str(parse_format(name)) for name in formats]
    base_nbytes = sum(_sizes(pipe, BASE).values())
    limit = None if budget is None else _bytes(budget, base_nbytes)
    if sensitivity is not None:
        sensitivity = _checked(sensitivity, pipe, formats)
    judge = None if judge is None else judge_of(judge)
    references = References(pipe, utts, pipe.options(options), seeds)
    before = None if judge is None else judged_before(references, judge)
    if sensitivity is None:
        sensitivity = _sensitivity(references, formats)
    curve = _way(sensitivity, max_db or MAX_SOUND_CHANGE, max_kl)
    measured = {0: Change()}

    def measure(count: int) -> Change:
        if count not in measured:
            measured[count] = references.change(weights_of(_formats_after(curve, count).items()))
        return measured[count]

    if limit is not None:
        fitting = [count for count, step in enumerate(curve, 1) if step.nbytes <= limit]
        if not fitting:
            smallest = curve[-1].nbytes
            raise WorkbenchError(
                f"the budget is {limit / 1e6:.1f} MB, and {smallest / 1e6:.1f} MB is the least with "
                f"{', '.join(formats)}; allow more bytes or smaller formats"
            )
        chosen = fitting[0]
    else:
        half = (len(curve) + 1) // 2
        chosen = largest_count(len(curve), half, lambda count: measure(count).within(max_db, max_kl))
    change = measure(chosen)
    table = pd.DataFrame(curve)
    table["measured_db"] = [
        measured[count].sound_db if count in measured else float("nan") for count in range(1, len(curve) + 1)
    ]
    weights = _formats_after(curve, chosen)
    nbytes = curve[chosen - 1].nbytes if chosen else 2 * base_nbytes
    heard = None
    if judge is not None and weights:
        heard = heard_change(references, weights_of(weights.items()), judge, before)
    runs, of_layers = len(references.runs), layers(pipe.checkpoint, weights or KEPT)
    return Recommendation(weights, nbytes, base_nbytes, change, sensitivity, table, runs, of_layers, heard)


def _sensitivity(references: References, formats: Sequence[str]) -> pd.DataFrame:
    """Measure each block alone in each format."""
    sizes = {name: _sizes(references.pipe, name) for name in (KEPT, *formats)}
    rows = []
    for block in references.pipe.bar(iter(sizes[KEPT]), "blocks", " block", len(sizes[KEPT])):
        for name in sizes:
            change = Change() if name == KEPT else references.change(weights_of([(block, name)]))
            rows.append({"block": block, "format": name, "nbytes": sizes[name][block], **change._asdict()})
    return pd.DataFrame(rows)


def _checked(sensitivity: pd.DataFrame, pipe: Pipeline, formats: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a given table that concern `formats`; raise where it is of another voice."""
    columns = {"block", "format", "nbytes", *Change._fields}
    missing = columns - set(sensitivity.columns)
    if missing:
        raise WorkbenchError(
            f"sensitivity lacks {', '.join(sorted(missing))}; expected the table of a Recommendation"
        )
    rows = sensitivity[sensitivity["format"].isin((KEPT, *formats))]
    for name in (KEPT, *formats):
        found = rows[rows["format"] == name].set_index("block")["nbytes"].to_dict()
        if found != _sizes(pipe, name):
            raise WorkbenchError(
                f"sensitivity does not hold the blocks of this voice in {name}; expected the table of a "
                "Recommendation for this voice and these formats"
            )
    return rows.reset_index(drop=True)


def _sizes(pipe: Pipeline, name: str) -> dict[str, int]:
    """Return bytes by block in one format."""
    table = layers(pipe.checkpoint, name)
    return table.groupby(table["layer"].map(block_of), sort=False)["nbytes"].sum().astype(int).to_dict()


class _Choice(NamedTuple):
    """A block in one format."""

    block: str
    format: str
    nbytes: int
    sound_db: float
    kl: float
    cost: float  # 1 for a change as large as a limit


def _way(sensitivity: pd.DataFrame, max_db: float, max_kl: float) -> list[_Step]:
    """Return the steps from large to small, the cheapest per byte first."""
    now: dict[str, _Choice] = {}  # what each block has
    choices: list[_Choice] = []
    for row in sensitivity.itertuples():
        cost = (row.sound_db / max_db) ** 2 + row.kl / max_kl + (row.f0_hz / MAX_F0_CHANGE) ** 2
        choice = _Choice(row.block, row.format, int(row.nbytes), row.sound_db, row.kl, cost)
        if choice.format == KEPT:
            now[choice.block] = choice
        elif math.isfinite(cost):
            choices.append(choice)
    steps = []
    while True:
        choices = [choice for choice in choices if choice.nbytes < now[choice.block].nbytes]
        if not choices:
            return steps
        best = min(choices, key=lambda choice: _price(choice, now[choice.block]))
        now[best.block] = best
        nbytes = sum(each.nbytes for each in now.values())
        sound_db = math.sqrt(sum(each.sound_db**2 for each in now.values()))
        steps.append(_Step(best.block, best.format, nbytes, sound_db, sum(each.kl for each in now.values())))


def _price(choice: _Choice, now: _Choice) -> float:
    """Return what a byte costs that is saved by a choice."""
    return (choice.cost - now.cost) / (now.nbytes - choice.nbytes)


def _formats_after(curve: Sequence[_Step], count: int) -> dict[str, str]:
    """Return block -> format after some steps; later steps replace earlier ones of a block."""
    return {step.block: step.format for step in curve[:count]}


def _bytes(budget: str | int, base_nbytes: int) -> float:
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    text = str(budget).strip()
    percent = re.fullmatch(r"([\d.]+)\s*%", text)
    size = SIZE.fullmatch(text)
    try:
        if percent:
            return float(percent[1]) / 100 * base_nbytes
        if size:
            return float(size[1]) * UNITS[(size[2] or "").lower()]
    except ValueError:
        pass
    raise WorkbenchError(f"budget is {budget!r:.40}; expected bytes, or text such as '200 MB' or '50%'")
