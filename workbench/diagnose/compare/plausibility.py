"""What cannot be speech, whatever it is compared with."""

import math
from collections.abc import Callable

from torch import Tensor

from workbench.trace.schema import STATS, SUFFIX
from workbench.trace.trace import Trace, combine_stats, whole_region

HIGHEST_F0 = 1000.0  # Hz; screams reach it, speech stays below half
LOUDEST_MEL, QUIETEST_MEAN = 4.0, -3.0  # natural-log mel of speech: about 2 at most, -6 on average
PINNED = 1e-3  # share of samples at the waveform's own limit
FULL_SCALE = 0.9
SILENT_RMS = 1e-4
OFFSET = 0.02
LOOSE = 0.02  # of the largest value: what rounding to few digits does to statistics


def implausible(trace: Trace) -> list[str]:
    """Return a sentence for everything in a trace that no speech looks like; none if all is well."""
    found = []
    for name, value in trace.items():
        if name.endswith(SUFFIX):
            found += _statistics(name.removesuffix(SUFFIX), combine_stats(name, value))
            found += _of_several(name.removesuffix(SUFFIX), whole_region(name, value))
        elif bad := int((~value.isfinite()).sum()):
            found.append(f"{name} has {bad} NaN or Inf among {value.numel()} values")
        elif name in CHECKS and value.numel():
            found += CHECKS[name](value.double())
    return found


def _f0(f0: Tensor) -> list[str]:
    highest, count = float(f0.max()), int((f0 > HIGHEST_F0).sum())
    if not count:
        return []
    return [
        f"hift/f0 reaches {highest:,.0f} Hz and is above {HIGHEST_F0:,.0f} Hz in {count} of {len(f0)} "
        "frames: no voice is; look at the mel the vocoder was given, and at the precision of its f0 predictor"
    ]


def _mel(mel: Tensor) -> list[str]:
    mean, highest = float(mel.mean()), float(mel.max())
    if mean <= QUIETEST_MEAN and highest <= LOUDEST_MEL:
        return []
    return [
        f"flow/mel has mean {mean:.2f} and maximum {highest:.2f}: the natural-log mel of speech is near "
        "-6 and 2; is it in log10, normalised, or an ODE that ran away?"
    ]


def _wav(wav: Tensor) -> list[str]:
    found = []
    limit = float(wav.abs().max())
    pinned = float((wav.abs() >= limit * (1 - 1e-6)).double().mean())
    if limit > FULL_SCALE and pinned > PINNED:
        found.append(
            f"hift/wav is pinned to +-{limit:.2f} in {100 * pinned:.1f} % of its samples: it was clamped"
        )
    if float(wav.square().mean().sqrt()) < SILENT_RMS:
        found.append(f"hift/wav is silent: its largest sample is {limit:.2g}")
    if abs(offset := float(wav.mean())) > OFFSET:
        found.append(f"hift/wav has a DC offset of {offset:.3f}")
    return found


def _statistics(name: str, stats: Tensor) -> list[str]:
    """What statistics alone show; those that are missing are NaN, and nothing follows from them."""
    _, high, mean, _, _, bad = stats.tolist()
    found = [f"{name} has {bad:.0f} NaN or Inf, as the run itself says"] if bad > 0 else []
    if name == "hift/f0" and high > HIGHEST_F0:
        found.append(f"hift/f0 reaches {high:,.0f} Hz: no voice does; look at the mel the vocoder was given")
    if name == "flow/mel" and (mean > QUIETEST_MEAN or high > LOUDEST_MEL):
        found.append(
            f"flow/mel has mean {mean:.2f} and maximum {high:.2f}: the natural-log mel of speech is near "
            "-6 and 2"
        )
    if name == "hift/wav" and abs(mean) > OFFSET:
        found.append(f"hift/wav has a DC offset of {mean:.3f}")
    return found


def _of_several(name: str, stats: Tensor) -> list[str]:
    """Statistics of one knot, step or draw that no tensor has all at once; the first of them."""
    for k, row in enumerate(stats.reshape(-1, len(STATS)).tolist()):
        low, high, mean, mean_abs, rms, _ = row
        largest = max(abs(low), abs(high)) if low == low and high == high else math.nan
        room = LOOSE * largest
        if low - mean > room or mean - high > room or mean_abs - largest > room or mean_abs - rms > room:
            values = ", ".join(f"{what} {x:.4g}" for what, x in zip(STATS, row, strict=True) if x == x)
            where = name if stats.ndim == 1 else f"{name}[{k}]"
            return [f"{where}: {values} cannot be of one tensor; are they of several, or of several runs?"]
    return []


CHECKS: dict[str, Callable[[Tensor], list[str]]] = {"flow/mel": _mel, "hift/f0": _f0, "hift/wav": _wav}
