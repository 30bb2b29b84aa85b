"""Find the parts of the model that may run in half precision.

`bisect_precision` runs one part at a time in half precision and measures what that changes in the result;
formats of quantised weights are tried in `quantisation`. `headroom.py` says why a part overflows.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.diagnose.experiments.judges import Judge
from workbench.diagnose.quantisation.bisect import FormatMap, bisect_format
from workbench.diagnose.quantisation.measure import (
    MAX_LM_CHANGE,
    MAX_SOUND_CHANGE,
    as_utterances,
    eager_model,
    largest,
    lm_logp,
    mean_kl,
)
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.frontend.audio import log_mel
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.tables import table_html
from workbench.trace.record import EVERYTHING
from workbench.trace.trace import Trace

HALF_DTYPES = ("float16", "bfloat16")
DB_PER_NEPER = 20 / torch.tensor(10.0).log().item()  # decibels per unit of a natural-log amplitude: 8.69

# Part -> the option with its dtype, in the order of the run. The last three are parts of the vocoder.
PARTS = {
    "lm": "lm_dtype",
    "flow": "flow_dtype",
    "vocoder": "hift_dtype",
    "f0": "f0_dtype",
    "source": "source_dtype",
    "head": "head_dtype",
}
ALL_FLOAT64 = dict.fromkeys(PARTS.values(), "float64")
ALL_FLOAT32 = dict.fromkeys(PARTS.values(), "float32")
# Modules of the vocoder that are not run alone in half precision: other code takes its dtype from them, and
# the first two have an option of their own.
SKIPPED_MODULES = ("f0_predictor", "m_source", "conv_post")


class Change(NamedTuple):
    """What a lower precision changes in the result."""

    size: float  # dB of the waveform's log-mel, for the LM nat of its distribution; infinite for a failed run
    nonfinite: int  # number of NaN and Inf


@dataclass(frozen=True)
class PrecisionMap:
    """The result of `bisect_precision`.

    Attributes
    ----------
    dtype : str
        The half precision that was tried.
    rows : DataFrame
        One row for each part that ran alone in `dtype`: `part`; `change` and its `limit` (dB of the
        waveform's log-mel, for the LM nat of its distribution); `single`, the change with that part in
        float32, for comparison; `nonfinite`; `safe`.
    safe_parts : tuple of str
        Parts that may run in `dtype` all at once.
    combined_change : float
        What they change then in the waveform's log-mel, in dB.
    """

    dtype: str
    rows: pd.DataFrame
    safe_parts: tuple[str, ...]
    combined_change: float

    @property
    def recommended(self) -> dict[str, str]:
        """Dtype options by name: `dtype` for the safe parts, upstream's dtype for all others."""
        default = Options()
        recommended = {}
        for part, option in PARTS.items():
            recommended[option] = self.dtype if part in self.safe_parts else getattr(default, option)
        return recommended

    @property
    def line(self) -> str:
        """The answer in one line."""
        is_part = self.rows["part"].isin(PARTS)
        parts = self.rows[is_part]
        unsafe = list(parts.loc[~parts["safe"], "part"])
        only_alone = [part for part in parts["part"] if part not in (*self.safe_parts, *unsafe)]
        unsafe_modules = self.rows[~is_part & ~self.rows["safe"]]
        safe = ", ".join(self.safe_parts) or "nothing"
        texts = [f"{self.dtype} is safe for {safe} ({self.combined_change:.2g} dB together)"]
        if only_alone:
            texts.append(f"for {', '.join(only_alone)} alone, but not beside them")
        if unsafe:
            texts.append(f"not for {', '.join(unsafe)}")
        if len(unsafe_modules):
            texts.append(f"what breaks inside: {', '.join(unsafe_modules['part'].head(4))}")
        return "; ".join(texts)

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = table_html(self.rows)
        return f"<div><b>{escape(self.line)}</b>{table}</div>"


def bisect_precision(
    pipe: Pipeline,
    utts: Utterance | Sequence[Utterance],
    format: str = "float16",
    options: Options | None = None,
    seeds: Sequence[int] | None = None,
    judge: Judge | str | os.PathLike | None = None,
) -> "PrecisionMap | FormatMap":
    """Find out by trying which parts may run in half precision, or have quantised weights.

    1. Every utterance runs once for each seed: the references. For half precision these run in float64.
    2. Each part runs in `format` alone, from the same tokens. If it changes the result too much, each of its
       blocks runs in `format` alone as well (of half precision those of flow and vocoder), and of quantised
       weights each layer of a block that does.
    3. All safe parts run in `format` together. While that changes the sound too much, the part that changed
       most is left out.

    Parameters
    ----------
    pipe : Pipeline
    utts : Utterance or sequence of Utterance
        The worst counts. More make the answer hold for more texts.
    format : str
        "float16" or "bfloat16": the arithmetic and the weights of a part. Or a format of quantised weights,
        such as "q4_k" or "int4:group=128"; `wb.formats()` lists them.
    options : Options, optional
        The checkpoint's own by default.
    seeds : sequence of int, optional
        That of the options by default.
    judge : callable, str or path, optional
        Of quantised weights: recogniser that hears `safe_parts` together, as in `recommend`.

    Returns
    -------
    PrecisionMap or FormatMap
        With `rows`, `line` and `recommended`.

    Raises
    ------
    WorkbenchError
        When there is no such format, or no utterance, or the judge cannot judge.

    Examples
    --------
    >>> short = pipe.options(None).but(n_timesteps=1, max_tokens=4, seed=7)
    >>> found = wb.bisect_precision(pipe, utt, "bfloat16", short)
    >>> sorted(found.recommended)
    ['f0_dtype', 'flow_dtype', 'head_dtype', 'hift_dtype', 'lm_dtype', 'source_dtype']
    >>> found = wb.bisect_precision(pipe, utt, "q8_0", short)
    >>> pipe.options(None).but(weights=found.recommended).weights.startswith("lm=q8_0")
    True
    """
    options = pipe.options(options)
    utts, seeds = as_utterances(utts), list(seeds or [options.seed])
    if format not in HALF_DTYPES:
        return bisect_format(pipe, utts, format, options, seeds, judge)
    if judge is not None:
        raise WorkbenchError(f"a judge hears quantised weights, such as q8_0, and {format} is half precision")
    float64 = options.but(**ALL_FLOAT64)
    kept = ("lm/logp", "lm/drawn_token")
    references = [pipe.synthesise(utt, options=float64.but(seed=s), save=kept) for utt in utts for s in seeds]
    rows = []
    for part, option in PARTS.items():
        if part == "flow":
            of_flow = _replays(pipe, references, "flow", float64.but(**{option: format}))
            change = _sound_change(pipe, references, of_flow)
        else:
            change = _change(pipe, references, part, float64.but(**{option: format}))
        single = _change(pipe, references, part, float64.but(**{option: ALL_FLOAT32[option]}))
        row = _row(part, change, single)
        rows.append(row)
        if not row["safe"] and part in ("flow", "vocoder"):
            for name, module in _blocks(pipe, part, float64):
                with module_in_dtype(module, getattr(torch, format)):
                    change = _change(pipe, references, part, float64)
                rows.append(_row(f"{part}/{name}", change, None))
    table = pd.DataFrame(rows)
    safe_parts, combined_change = _safe_together(pipe, references, of_flow, table, format, float64)
    return PrecisionMap(format, table, safe_parts, combined_change)


def repeatable(
    pipe: Pipeline, utt: Utterance, options: Options | None = None, first: Trace | None = None
) -> dict[str, float]:
    """Run three times, and return the largest differences between the waveforms; `first` is run already.

    Returns
    -------
    dict
        `determinism` of two runs that record nothing, `observer` of one that records everything; 0 means
        equal to the last bit, infinite means of different lengths.
    """
    if first is None:
        first = pipe.synthesise(utt, options=options)
    second = pipe.synthesise(utt, options=options).wav
    recorded = pipe.synthesise(utt, options=options, save=EVERYTHING).wav

    def largest_difference(wav: Tensor) -> float:
        return float((wav - first.wav).abs().max()) if wav.shape == first.wav.shape else float("inf")

    return {"determinism": largest_difference(second), "observer": largest_difference(recorded)}


# ---- measuring a change


def _change(pipe: Pipeline, references: Sequence[Trace], part: str, options: Options) -> Change:
    """Run one part with other options on the references' own inputs; return the largest change."""
    if part == "lm":
        return _largest([_lm_change(pipe, reference, options) for reference in references])
    start = "flow" if part == "flow" else "hift"
    return _sound_change(pipe, references, _replays(pipe, references, start, options))


def _replays(pipe: Pipeline, references: Sequence[Trace], start: str, options: Options) -> list[Trace | None]:
    """Run the references again from a stage on; None where the flow made a mel of NaN."""
    runs: list[Trace | None] = []
    for reference in references:
        try:
            runs.append(pipe.replay(reference, start, options))
        except WorkbenchError:
            runs.append(None)
    return runs


def _sound_change(pipe: Pipeline, references: Sequence[Trace], runs: Sequence[Trace | None]) -> Change:
    """Return the largest change of the sound."""
    changes = []
    for reference, run in zip(references, runs, strict=True):
        if run is None:
            changes.append(Change(float("inf"), reference["flow/mel"].numel()))
        else:
            changes.append(_mel_change(pipe, reference, run))
    return _largest(changes)


def _largest(changes: Sequence[Change]) -> Change:
    size = largest(change.size for change in changes)
    return Change(size, sum(change.nonfinite for change in changes))


def _lm_change(pipe: Pipeline, reference: Trace, options: Options) -> Change:
    """Return the mean Kullback-Leibler divergence of the next token, along the reference's tokens."""
    logp = lm_logp(pipe, reference, options)
    nonfinite = int(logp.isnan().sum())  # log-probabilities of -Inf are right
    return Change(float("inf") if nonfinite else mean_kl(reference["lm/logp"].double(), logp), nonfinite)


def _mel_change(pipe: Pipeline, reference: Trace, other: Trace) -> Change:
    """Return the rms difference of the log-mels of two waveforms in dB."""
    nonfinite = int((~other.wav.isfinite()).sum())
    reference_mel, other_mel = (
        log_mel(trace.wav.float().nan_to_num(), pipe.config.mel) for trace in (reference, other)
    )
    rms = float((reference_mel - other_mel).square().mean().sqrt())
    return Change(DB_PER_NEPER * rms, nonfinite)


def _row(part: str, change: Change, single: Change | None) -> dict[str, Any]:
    limit = MAX_LM_CHANGE if part == "lm" else MAX_SOUND_CHANGE
    return {
        "part": part,
        "change": change.size,
        "limit": limit,
        "single": single.size if single else float("nan"),
        "nonfinite": change.nonfinite,
        "safe": change.size <= limit and not change.nonfinite,
    }


def _safe_together(
    pipe: Pipeline,
    references: Sequence[Trace],
    of_flow: Sequence[Trace | None],
    rows: pd.DataFrame,
    dtype: str,
    float64: Options,
) -> tuple[tuple[str, ...], float]:
    """Return the parts that may be in `dtype` at once, in the order of the run, and their change in dB.

    `of_flow` are the runs with the flow alone in `dtype`, whose mels are these parts' as well.
    """
    safe = rows[rows["safe"] & rows["part"].isin(PARTS)].sort_values("change")
    # The LM changes tokens and not the waveform of given tokens, so it does not add to the others.
    lm_parts = [part for part in safe["part"] if part == "lm"]
    audio_parts = [part for part in safe["part"] if part != "lm"]
    combined_change = 0.0
    while audio_parts:
        options = float64.but(**{PARTS[part]: dtype for part in audio_parts})
        given = of_flow if "flow" in audio_parts else references
        change = _sound_change(pipe, references, _replays(pipe, given, "hift", options))
        if change.size <= MAX_SOUND_CHANGE and not change.nonfinite:
            combined_change = change.size
            break
        audio_parts.pop()  # the one that changes most
    return tuple(part for part in PARTS if part in (*lm_parts, *audio_parts)), combined_change


# ---- one module in half precision


def _blocks(pipe: Pipeline, part: str, options: Options) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of the blocks of a stage; lists of modules are opened."""
    if part == "flow":
        root = eager_model(pipe, "flow", options).decoder.estimator
    else:
        root = eager_model(pipe, "hift", options)
    for name, child in root.named_children():
        if isinstance(child, nn.ModuleList):
            for inner_name, module in child.named_children():
                yield f"{name}.{inner_name}", module
        elif name not in SKIPPED_MODULES and any(True for _ in child.parameters()):
            yield name, child


@contextmanager
def module_in_dtype(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let one module compute in `dtype` until the block ends; its inputs and outputs keep their dtype."""
    saved = {name: value.detach().clone() for name, value in module.state_dict().items()}
    original_dtype = next(module.parameters()).dtype

    def cast_inputs(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        return _cast(args, dtype), _cast(dict(kwargs), dtype)

    def cast_output(module: nn.Module, args: tuple, output: Any) -> Any:
        return _cast(output, original_dtype)

    hooks = [
        module.register_forward_pre_hook(cast_inputs, with_kwargs=True),
        module.register_forward_hook(cast_output),
    ]
    module.to(dtype)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.to(original_dtype)
        module.load_state_dict(saved)  # the cast to `dtype` has rounded the weights


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast all floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value
