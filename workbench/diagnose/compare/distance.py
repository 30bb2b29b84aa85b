"""How far one tensor is from another, and which mistake that looks like."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.compare.transitions import entry
from workbench.trace.schema import RATES, SUFFIX
from workbench.trace.trace import Trace


def measure(x: Tensor, y: Tensor, prompt_frames: int | None = None) -> dict[str, Any]:
    """Return how far `y` is from `x`: norms, angle, signal to noise, worst place.

    Parameters
    ----------
    x, y : Tensor
        Reference and candidate, of one shape.
    prompt_frames : int, optional
        Where the target begins on the last axis, to split the error.
    """
    x, y = x.double(), y.double()
    bad = int((~y.isfinite()).sum())
    d = y - x
    nx, ny, nd = float(x.norm()), float(y.norm()), float(d.norm())
    cosine = float((x * y).sum()) / max(nx * ny, 1e-300)
    row = {
        "nonfinite": bad,
        "rel_l2": _share(nd, nx),
        "max_abs": float(d.abs().max()) if d.numel() else 0.0,
        "rms": nd / max(d.numel(), 1) ** 0.5,
        "snr_db": 20 * float(torch.tensor(nx / nd).log10()) if nd and nx else float("inf"),
        "cosine": cosine if nx and ny else float("nan"),
        "norm_ratio": ny / nx if nx else float("nan"),
        "worst": tuple(int(i) for i in torch.unravel_index(d.abs().nan_to_num(torch.inf).argmax(), d.shape))
        if d.numel()
        else (),
    }
    if prompt_frames is not None:
        for region, part in (("prompt", d[..., :prompt_frames]), ("target", d[..., prompt_frames:])):
            row[region] = float(part.square().mean().sqrt()) if part.numel() else 0.0
    return row


def where_is(dims: tuple[str, ...], place: tuple[int, ...], trace: Trace) -> tuple[str, float]:
    """Return a place in words, and when in the target's sound it is: seconds, NaN where it has no time.

    >>> where_is(("mel", "frame"), (3, 60), Trace({}, {"prompt_frames": 10}))
    ('mel 3, frame 60 (target)', 1.0)
    """
    words, seconds = [], float("nan")
    for dim, at in zip(dims, place, strict=True):
        word = f"{dim.replace('_', ' ')} {at}"
        if dim == "frame":
            word += " (target)" if at >= trace.prompt_frames else " (prompt)"
            at -= trace.prompt_frames
        words.append(word)
        rate = trace.sample_rate if dim == "sample" else RATES.get(dim)
        if rate and at >= 0:
            seconds = at / rate
    return ", ".join(words), seconds


def relative(x: Tensor, y: Tensor) -> float:
    """Return the relative L2 of `y` against `x`; of ids, the share that differs."""
    if not x.is_floating_point():
        return float((x != y).double().mean()) if x.numel() else 0.0
    x, y = x.double(), y.double()
    return _share(float((y - x).norm()), float(x.norm()))


def _share(error: float, whole: float) -> float:
    return error / whole if whole else (0.0 if error == 0 else float("inf"))


def place_name(field: str, index: int | None) -> str:
    """Such as flow/x[3]."""
    return field.removesuffix(SUFFIX) if index is None else f"{field}[{index}]"


def hints(reference: Trace, candidate: Trace, rows: pd.DataFrame) -> list[str]:
    """Shapes of mistakes that can be seen in the tensors themselves."""
    found = []
    for field, index in zip(rows["field"], rows["index"], strict=True):
        index = None if pd.isna(index) else int(index)
        if field not in reference or field not in candidate:
            continue
        if index is not None and index >= min(len(reference[field]), len(candidate[field])):
            continue
        x, y = entry(reference, field, index).double(), entry(candidate, field, index).double()
        if x.ndim == 2 and y.shape == x.T.shape and x.shape != y.shape and relative(x, y.T) < 0.1:
            found.append(f"{place_name(field, index)}: the candidate's axes are transposed")
        if x.shape != y.shape or not y.isfinite().all() or (error := relative(x, y)) < 1e-3:
            continue
        ratio = float(y.norm() / x.norm()) if x.norm() else 1.0
        if x.norm() and abs(ratio - 1) > 0.05 and relative(x * ratio, y) < 0.02:
            found.append(f"{place_name(field, index)}: the candidate's is {ratio:.3g} times the reference's")
        if x.ndim and x.shape[-1] > 2:
            for shift in (1, -1):
                a, b = (x[..., :-1], y[..., 1:]) if shift == 1 else (x[..., 1:], y[..., :-1])
                if relative(a, b) < 0.2 * error:
                    where = place_name(field, index)
                    found.append(f"{where}: the candidate's is shifted by {shift:+d} along its last axis")
    for name in ("flow/x", "flow/velocity_cond", "flow/velocity_uncond"):
        if name in candidate and len(candidate[name]) > 1:
            same = [
                k
                for k in range(1, len(candidate[name]))
                if torch.equal(candidate[name][k], candidate[name][k - 1])
            ]
            if same:
                found.append(
                    f"{name}: entry {same[0]} is the very one before it: was the same tensor dumped twice?"
                )
    return found
