"""Which parts may run in half precision: how near they come to its limits, and what flipping one does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.diagnose.compare.transitions import transitions
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.frontend.audio import log_mel
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING, taps
from workbench.trace.trace import Trace

LARGEST = {name: torch.finfo(getattr(torch, name)).max for name in ("float16", "bfloat16", "float32")}
DB = 20 / torch.tensor(10.0).log().item()  # of a natural logarithm
AUDIBLE = 1.0  # dB, rms over the log-mel of the waveform: what a part may change
SURE = 0.01  # nat, mean over draws: how far the LM's distribution may move
# What an option flips. The order is that of the run; `f0`, `source` and `head` are parts of the vocoder.
PARTS = {
    "lm": "lm_dtype",
    "flow": "flow_dtype",
    "vocoder": "hift_dtype",
    "f0": "f0_dtype",
    "source": "source_dtype",
    "head": "head_dtype",
}
# Of the vocoder: the type of these decides what is computed around them, and two have an option of their own.
OPTIONAL = ("f0_predictor", "m_source", "conv_post")
EXACT = dict.fromkeys(PARTS.values(), "float64")
SINGLE = dict.fromkeys(PARTS.values(), "float32")


@dataclass(frozen=True)
class PrecisionMap:
    """What `bisect_precision` found.

    Attributes
    ----------
    dtype : str
        The half precision in question.
    rows : DataFrame
        A row per part that was flipped alone: `part`, `change` and `limit` (dB of the waveform's log-mel, or
        nat of the LM's distribution), `single` (the same with that part in float32: what is there anyway),
        `nonfinite`, `safe`.
    kept : tuple of str
        Parts that are safe together.
    together : float
        dB that all of `kept` change the waveform's log-mel by, at once.
    """

    dtype: str
    rows: pd.DataFrame
    kept: tuple[str, ...]
    together: float

    @property
    def recommended(self) -> dict[str, str]:
        """Options by name: half precision where it is safe together, else what upstream runs there."""
        plain = Options()
        return {
            option: self.dtype if part in self.kept else getattr(plain, option)
            for part, option in PARTS.items()
        }

    @property
    def line(self) -> str:
        """The answer in one line."""
        stages = self.rows[self.rows["part"].isin(PARTS)]
        bad = list(stages.loc[~stages["safe"], "part"])
        crowded = [part for part in stages["part"] if part not in (*self.kept, *bad)]
        inside = self.rows[~self.rows["part"].isin(PARTS) & ~self.rows["safe"]]
        parts = [
            f"{self.dtype} is safe for {', '.join(self.kept) or 'nothing'} ({self.together:.2g} dB together)"
        ]
        parts += [f"for {', '.join(crowded)} alone, but not beside them"] if crowded else []
        parts += [f"not for {', '.join(bad)}"] if bad else []
        parts += [f"what breaks inside: {', '.join(inside['part'].head(4))}"] if len(inside) else []
        return "; ".join(parts)

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        table = self.rows.to_html(float_format="{:.3g}".format, na_rep="", border=0, index=False)
        return f"<div><b>{escape(self.line)}</b>{table}</div>"


def headroom(pipe: Pipeline, trace: Trace, dtype: str = "float16") -> pd.DataFrame:
    """Return how often the largest value of every module could double before `dtype` overflows.

    Parameters
    ----------
    pipe : Pipeline
    trace : Trace
        A run with `in/*` and `lm/speech_token`; flow and vocoder are run again from there.
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    DataFrame
        A row per module, step and branch: `stage`, `module`, `step` and `branch` ("cond" or "uncond") of the
        flow, `max_abs`, `doublings`; below 0 it overflows, NaN has no room.

    Raises
    ------
    WorkbenchError
        When the trace lacks the inputs.
    """
    if dtype not in LARGEST:
        raise WorkbenchError(f"dtype is {dtype!r}; expected one of {', '.join(LARGEST)}")
    options = _options(pipe, trace).but(solver="euler")
    flow = pipe.stage("flow", options.flow_dtype).decoder.estimator
    hift = pipe.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
    with taps(flow, "*", keep=_peaks) as asked, taps(hift, "*", keep=_peaks) as sounded:
        pipe.replay(trace, "flow", options)
    rows = [
        ("flow", module, step, branch, float(peak))
        for module, calls in asked.items()
        for step, peaks in enumerate(calls)
        for branch, peak in zip(("cond", "uncond"), peaks, strict=False)
    ]
    rows += [
        ("hift", module, None, None, float(calls[0][0]))
        for module, calls in sounded.items()
        if calls and "parametrizations" not in module  # those yield weights
    ]
    frame = pd.DataFrame(rows, columns=["stage", "module", "step", "branch", "max_abs"])
    frame["step"] = frame["step"].astype("Int64")
    frame["doublings"] = (LARGEST[dtype] / torch.tensor(frame["max_abs"].to_numpy())).log2().numpy()
    return frame


def bisect_precision(
    pipe: Pipeline, utt: Utterance, dtype: str = "float16", options: Options | None = None
) -> PrecisionMap:
    """Find out by trying which parts may run in half precision.

    Everything runs in float64 once. Then one part at a time runs in `dtype`, all others in float64, from the
    same tokens, and the waveform is measured. In stages that change too much every block is flipped alone. At
    last all that are safe run together; while that changes too much, the one that changed most stays wide.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
    dtype : {"float16", "bfloat16"}
    options : Options, optional
        The checkpoint's own by default.

    Returns
    -------
    PrecisionMap
    """
    if dtype not in ("float16", "bfloat16"):
        raise WorkbenchError(f"dtype is {dtype!r}; expected float16 or bfloat16")
    exact = pipe.options(options).but(**EXACT)
    right = pipe.synthesise(utt, options=exact, save=("lm/logp", "lm/drawn_token"))
    rows = []
    for part, option in PARTS.items():
        change, single = (
            _change(pipe, right, part, exact.but(**{option: name})) for name in (dtype, SINGLE[option])
        )
        rows.append(_row(part, change, single))
        if not rows[-1]["safe"] and part in ("flow", "vocoder"):
            rows += [
                _row(f"{part}/{name}", _inside(pipe, right, part, module, dtype, exact), None)
                for name, module in _blocks(pipe, part, exact)
            ]
    table = pd.DataFrame(rows)
    return PrecisionMap(dtype, table, *_together(pipe, right, table, dtype, exact))


def repeatable(pipe: Pipeline, utt: Utterance, options: Options | None = None) -> dict[str, float]:
    """Run three times: largest difference of the waveforms of two silent runs, and of a recorded one.

    Returns
    -------
    dict
        `determinism` and `observer`; 0 is bit for bit, infinite where the lengths differ.
    """
    first, second = (pipe.synthesise(utt, options=options).wav for _ in range(2))
    watched = pipe.synthesise(utt, options=options, save=EVERYTHING).wav

    def apart(wav: Tensor) -> float:
        return float((wav - first).abs().max()) if wav.shape == first.shape else float("inf")

    return {"determinism": apart(second), "observer": apart(watched)}


# ---- one part flipped


def _change(pipe: Pipeline, right: Trace, part: str, options: Options) -> tuple[float, int]:
    """How far a run with these options is from the right one, and how many values are no numbers."""
    if part == "lm":
        return _moved(pipe, right, options)
    try:
        return _apart(pipe, right, pipe.replay(right, "flow" if part == "flow" else "hift", options))
    except WorkbenchError:  # a mel of NaN
        return float("inf"), right["flow/mel"].numel()


def _together(
    pipe: Pipeline, right: Trace, rows: pd.DataFrame, dtype: str, exact: Options
) -> tuple[tuple[str, ...], float]:
    """The parts that may be narrow at once, in the order of the run, and what they change."""
    safe = rows[rows["safe"] & rows["part"].isin(PARTS)].sort_values("change")
    words, heard = (list(safe.loc[(safe["part"] == "lm") == which, "part"]) for which in (True, False))
    change = 0.0
    while heard:
        options = exact.but(**{PARTS[part]: dtype for part in heard})
        change, bad = _apart(pipe, right, pipe.replay(right, "flow", options))
        if change <= AUDIBLE and not bad:
            break
        heard.pop()
        change = 0.0
    return tuple(part for part in PARTS if part in (*words, *heard)), change


def _moved(pipe: Pipeline, right: Trace, options: Options) -> tuple[float, int]:
    """Mean Kullback-Leibler divergence of the next token, along the tokens that were drawn."""
    step = next(step for step in transitions(right) if step.fields == ("lm/logp",))
    (logp,) = step.work(pipe, right, options)
    exact, logp = right["lm/logp"].double(), logp.cpu().double()
    apart = (exact.exp() * (exact - logp)).sum(-1).mean()
    bad = int(logp.isnan().sum())
    return (float("inf") if bad else float(apart)), bad


def _apart(pipe: Pipeline, right: Trace, other: Trace) -> tuple[float, int]:
    bad = int((~other.wav.isfinite()).sum())
    mels = [log_mel(trace.wav.float().nan_to_num(), pipe.config.mel) for trace in (right, other)]
    return DB * float((mels[0] - mels[1]).square().mean().sqrt()), bad


def _row(part: str, change: tuple[float, int], single: tuple[float, int] | None) -> dict[str, Any]:
    limit = SURE if part == "lm" else AUDIBLE
    return {
        "part": part,
        "change": change[0],
        "limit": limit,
        "single": single[0] if single else float("nan"),
        "nonfinite": change[1],
        "safe": change[0] <= limit and not change[1],
    }


def _blocks(pipe: Pipeline, part: str, options: Options) -> Iterator[tuple[str, nn.Module]]:
    """What a stage consists of, one level inside its lists."""
    if part == "flow":
        root = pipe.stage("flow", options.flow_dtype).decoder.estimator
    else:
        root = pipe.stage("hift", options.hift_dtype, options.f0_dtype, options.source_dtype)
    for name, child in root.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{inner}", module) for inner, module in child.named_children())
        elif name not in OPTIONAL and any(True for _ in child.parameters()):
            yield name, child


def _inside(
    pipe: Pipeline, right: Trace, part: str, module: nn.Module, dtype: str, options: Options
) -> tuple[float, int]:
    with narrowed(module, getattr(torch, dtype)):
        return _change(pipe, right, part, options)


@contextmanager
def narrowed(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let one module compute in `dtype` while the block lasts; what goes in and out keeps its own type."""
    kept = {name: value.detach().clone() for name, value in module.state_dict().items()}
    wide = next(module.parameters()).dtype

    def before(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        return _cast(args, dtype), _cast(dict(kwargs), dtype)

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        return _cast(output, wide)

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    module.to(dtype)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.to(wide)
        module.load_state_dict(kept)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _peaks(value: Tensor) -> Tensor:
    """Largest magnitude of each row of the batch; NaN stays NaN."""
    return value.detach().abs().flatten(1).amax(1) if value.ndim > 1 else value.detach().abs()


def _options(pipe: Pipeline, trace: Trace) -> Options:
    """A run's options, layer by layer: what is looked into must be called."""
    return pipe.checkpoint.options.but(**trace.attrs.get("options", {})).but(compute="eager")
