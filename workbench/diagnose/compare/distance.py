"""Measure how far one tensor is from another, and recognise simple faults in the difference."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare.transitions import entry
from workbench.trace.schema import RATES, SUFFIX
from workbench.trace.trace import Trace

EPS = torch.finfo(torch.float32).eps  # relative: the smallest rounding error to reckon with
# What rounding explains is this many times the distance between a float32 and a float64 result: other
# kernels and another order of sums round differently, seldom by more than a few times.
ALLOWANCE = 10.0

# Thresholds of `hints`, all relative L2.
MIN_ERROR = 1e-3  # below it there is nothing to recognise
MAX_TRANSPOSED_ERROR = 0.1  # at most so much is left after transposing
MAX_SCALED_ERROR = 0.02  # at most so much is left after scaling
MIN_SCALE_CHANGE = 0.05  # a smaller change of the norm is not called a scale
SHIFT_GAIN = 0.2  # shifting must leave less than this share of the error


def measure(x: Tensor, y: Tensor, prompt_frames: int | None = None) -> dict[str, Any]:
    """Return how far `y` is from `x`: norms, angle, signal to noise, worst place.

    Parameters
    ----------
    x, y : Tensor
        Reference and candidate, of one shape.
    prompt_frames : int, optional
        Where the target begins on the last axis, to split the error.

    Returns
    -------
    dict
        `nonfinite`, `rel_l2`, `max_abs`, `rms`, `snr_db`, `cosine`, `norm_ratio`, `worst` (index of the
        largest error); with `prompt_frames` also `prompt` and `target` (rms error of each region).
    """
    x, y = x.double(), y.double()
    error = y - x
    x_norm, y_norm, error_norm = float(x.norm()), float(y.norm()), float(error.norm())
    cosine = float((x * y).sum()) / max(x_norm * y_norm, 1e-300)  # 1e-300: no division by zero
    worst = ()
    if error.numel():
        flat_index = error.abs().nan_to_num(torch.inf).argmax()
        worst = tuple(int(i) for i in torch.unravel_index(flat_index, error.shape))
    snr_db = float("inf")
    if error_norm and x_norm:
        snr_db = 20 * float(torch.tensor(x_norm / error_norm).log10())
    row = {
        "nonfinite": int((~y.isfinite()).sum()),
        "rel_l2": _ratio(error_norm, x_norm),
        "max_abs": float(error.abs().max()) if error.numel() else 0.0,
        "rms": error_norm / max(error.numel(), 1) ** 0.5,
        "snr_db": snr_db,
        "cosine": cosine if x_norm and y_norm else float("nan"),
        "norm_ratio": y_norm / x_norm if x_norm else float("nan"),
        "worst": worst,
    }
    if prompt_frames is not None:
        regions = {"prompt": error[..., :prompt_frames], "target": error[..., prompt_frames:]}
        for region, part in regions.items():
            row[region] = float(part.square().mean().sqrt()) if part.numel() else 0.0
    return row


def where_is(dims: tuple[str, ...], place: tuple[int, ...], trace: Trace) -> tuple[str, float]:
    """Return a place in words, and its time in the target's audio in seconds; NaN where it has no time.

    >>> where_is(("mel", "frame"), (3, 60), Trace({}, {"prompt_frames": 10}))
    ('mel 3, frame 60 (target)', 1.0)
    """
    words, seconds = [], float("nan")
    for dim, index in zip(dims, place, strict=True):
        word = f"{dim.replace('_', ' ')} {index}"
        if dim == "frame":
            word += " (target)" if index >= trace.prompt_frames else " (prompt)"
            index -= trace.prompt_frames
        words.append(word)
        rate = trace.sample_rate if dim == "sample" else RATES.get(dim)
        if rate and index >= 0:
            seconds = index / rate
    return ", ".join(words), seconds


def relative(x: Tensor, y: Tensor) -> float:
    """Return the relative L2 distance of `y` to `x`; for ids, the share that differs."""
    if not x.is_floating_point():
        return float((x != y).double().mean()) if x.numel() else 0.0
    x, y = x.double(), y.double()
    return _ratio(float((y - x).norm()), float(x.norm()))


def _ratio(error: float, size: float) -> float:
    if size:
        return error / size
    return 0.0 if error == 0 else float("inf")


def place_name(field: str, index: int | None) -> str:
    """Return the name of a place, such as "flow/x[3]"."""
    return field.removesuffix(SUFFIX) if index is None else f"{field}[{index}]"


def place_of(row: pd.Series) -> str:
    """Return the name of the place of a row with `field` and `index`."""
    return place_name(row["field"], None if pd.isna(row["index"]) else int(row["index"]))


def join_places(places: Iterable[str]) -> str:
    """Return places with the entries of each field joined.

    >>> join_places(["flow/mu", "flow/x[1]", "flow/x[2]", "flow/x[3]"])
    'flow/mu, flow/x[1..3]'
    """
    entries: dict[str, list[int]] = {}
    for place in places:
        name, _, rest = place.partition("[")
        numbers = entries.setdefault(name, [])
        if rest:
            numbers.append(int(rest.rstrip("]")))
    texts = []
    for name, numbers in entries.items():
        low, high = min(numbers, default=0), max(numbers, default=0)
        if not numbers:
            texts.append(name)
        elif len(numbers) > 1 and len(numbers) == high - low + 1:
            texts.append(f"{name}[{low}..{high}]")
        else:
            texts.append(f"{name}[{', '.join(map(str, sorted(numbers)))}]")
    return ", ".join(texts)


def hints(reference: Trace, candidate: Trace, rows: pd.DataFrame) -> list[str]:
    """Return a sentence for every simple fault that the tensors show: transposed, scaled, shifted, repeated.

    Parameters
    ----------
    reference, candidate : Trace
    rows : DataFrame
        Places to look at: columns `field` and `index`.
    """
    found = []
    for field, index in zip(rows["field"], rows["index"], strict=True):
        index = None if pd.isna(index) else int(index)
        if field not in reference or field not in candidate:
            continue
        if index is not None and index >= min(len(reference[field]), len(candidate[field])):
            continue
        x = entry(reference, field, index).double()
        y = entry(candidate, field, index).double()
        found += [f"{place_name(field, index)}: {text}" for text in _hints_of_pair(x, y)]
    for field in ("flow/x", "flow/velocity_cond", "flow/velocity_uncond"):
        found += _repeated_entry(candidate, field)
    return found


def _hints_of_pair(x: Tensor, y: Tensor) -> list[str]:
    """Return what the difference between two float64 tensors looks like."""
    if x.ndim == 2 and x.shape != y.shape and y.shape == x.T.shape:
        return ["the candidate's axes are transposed"] if relative(x, y.T) < MAX_TRANSPOSED_ERROR else []
    if not x.ndim or x.shape != y.shape or not y.isfinite().all():
        return []  # of a single number nothing can be recognised
    error = relative(x, y)
    if error < MIN_ERROR:
        return []
    found = []
    if x.norm():
        scale = float(y.norm() / x.norm())
        if abs(scale - 1) > MIN_SCALE_CHANGE and relative(x * scale, y) < MAX_SCALED_ERROR:
            found.append(f"the candidate's is {scale:.3g} times the reference's")
    if x.ndim and x.shape[-1] > 2:
        late = relative(x[..., :-1], y[..., 1:])
        early = relative(x[..., 1:], y[..., :-1])
        for shift, shifted_error in ((1, late), (-1, early)):
            if shifted_error < SHIFT_GAIN * error:
                found.append(f"the candidate's is shifted by {shift:+d} along its last axis")
    return found


def _repeated_entry(trace: Trace, field: str) -> list[str]:
    """Return a sentence about the first entry of a field that equals the one before it."""
    if field not in trace:
        return []
    entries = trace[field]
    for k in range(1, len(entries)):
        if torch.equal(entries[k], entries[k - 1]):
            return [f"{field}: entry {k} is the very one before it: was the same tensor dumped twice?"]
    return []
