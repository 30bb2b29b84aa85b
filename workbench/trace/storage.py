"""Recognise the form in which numbers were stored: half precision, 16-bit samples or printed digits.

Other programs seldom keep all bits of a float32 result. Numbers that were stored more coarsely differ from
the computed ones by up to one step of the form, and a diagnosis must not take that difference for a fault.
The numbers show the form themselves: all samples of a 16-bit file are multiples of 1/32768, for example.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace

# So many values other than 0 must have the form. By chance one float32 value in 8,192 is exact in float16 and
# one in ten has its last decimal right, so that fewer values would prove nothing.
MIN_HALF_VALUES = 8
MIN_GRID_VALUES = 32
HALF_FORMATS = (("bfloat16", torch.bfloat16, 7, 133), ("float16", torch.float16, 10, 24))
MAX_GRID_BITS = 23  # a float32 value below 1 has 24 bits, so that a finer grid is no restriction
# Largest whole numbers that a sample is divided by, where it is not a power of two.
SAMPLE_SCALES = (127, 32_767)
MAX_DIGITS = 7  # float32 holds no more
FLOAT32_ERROR = 2.0**-23  # relative; twice the largest rounding error of one operation


class Storage(NamedTuple):
    """The form in which a tensor was stored."""

    name: str  # such as "float16", "16 bit", "4 decimals"
    spacing: Tensor  # distance to the next number that the form can hold; of the tensor's shape, float64


def storage_of(x: Tensor) -> Storage | None:
    """Return the form in which a tensor was stored; None for full float32, ids, or too few values to tell.

    Parameters
    ----------
    x : Tensor
        Any shape. NaN, Inf and 0 show no form.
    """
    if not x.is_floating_point():
        return None
    wide = x.detach().double().cpu()
    values = wide[wide.isfinite() & (wide != 0)]
    if len(values) < MIN_HALF_VALUES:
        return None
    for name, dtype, mantissa_bits, min_exponent in HALF_FORMATS:
        some = values[:MIN_GRID_VALUES]
        if torch.equal(some.to(dtype).double(), some) and torch.equal(values.to(dtype).double(), values):
            exponent = wide.abs().clamp(min=2.0**-min_exponent).log2().floor()
            smallest = 2.0**-min_exponent
            return Storage(name, (2.0 ** (exponent - mantissa_bits)).clamp(min=smallest))
    if len(values) < MIN_GRID_VALUES:
        return None
    for find in (_binary_grid, _sample_grid, _decimals, _significant_digits):
        # A few values rule most forms out, so that a large tensor is seldom searched as a whole.
        if find(values[:MIN_GRID_VALUES]) and (found := find(values)):
            name, spacing_at = found
            return Storage(name, spacing_at(wide))
    return None


Found = tuple[str, Callable[[Tensor], Tensor]]  # name, and a function from values to spacings


def _binary_grid(values: Tensor) -> Found | None:
    """Recognise multiples of a power of two, as integer samples divided by 32768 are."""
    for bits in range(MAX_GRID_BITS + 1):
        scaled = values * 2.0**bits
        if torch.equal(scaled, scaled.round()):
            return f"{bits + 1} bit", lambda x: torch.full_like(x, 2.0**-bits)
    return None


def _sample_grid(values: Tensor) -> Found | None:
    """Recognise integer samples that were divided by the largest of them, such as 32767."""
    for scale in SAMPLE_SCALES:
        if _are_whole(values * scale):
            bits = (scale + 1).bit_length()
            return f"{bits} bit", lambda x, scale=scale: torch.full_like(x, 1 / scale)
    return None


def _decimals(values: Tensor) -> Found | None:
    """Recognise numbers printed with a fixed number of decimals."""
    for count in range(1, MAX_DIGITS):
        if _are_whole(values * 10.0**count):
            return f"{count} decimals", lambda x, count=count: torch.full_like(x, 10.0**-count)
    return None


def _significant_digits(values: Tensor) -> Found | None:
    """Recognise numbers printed with a fixed number of significant digits."""

    def spacing_at(x: Tensor, count: int) -> Tensor:
        exponent = x.abs().clamp(min=1e-30).log10().floor()
        return 10.0 ** (exponent - count + 1)

    for count in range(1, MAX_DIGITS):
        if _are_whole(values / spacing_at(values, count)):
            return f"{count} digits", lambda x, count=count: spacing_at(x, count)
    return None


def _are_whole(scaled: Tensor) -> bool:
    """Whether scaled values are whole numbers, but for the rounding of the float32 values they came from."""
    error = (scaled - scaled.round()).abs()
    tolerance = scaled.abs() * FLOAT32_ERROR
    # Beyond 0.05 every number would pass: float32 is too coarse to tell.
    return bool((tolerance < 0.05).all() and (error <= tolerance).all())


def coarse_fields(trace: Trace) -> dict[str, Storage]:
    """Return the form of every field that was not stored in full float32."""
    found = {}
    for name in trace:
        if not name.endswith(SUFFIX) and (storage := storage_of(trace[name])):
            found[name] = storage
    return found


def perturbed(x: Tensor, storage: Storage, generator: torch.Generator) -> Tensor:
    """Return values that would be stored as `x`, drawn at random.

    They lie within one spacing on either side. Rounding needs half of that; a program that cuts digits off
    instead needs all of it.
    """
    shift = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1  # -1 to 1
    return (x.double() + shift * storage.spacing).to(torch.promote_types(x.dtype, torch.float32))


def perturbed_trace(trace: Trace, coarse: Mapping[str, Storage], seed: int) -> Trace:
    """Return a trace that would be stored as `trace`: every coarse field is perturbed."""
    generator = torch.Generator().manual_seed(seed)
    changed = {name: perturbed(trace[name], storage, generator) for name, storage in coarse.items()}
    return Trace(dict(trace.data) | changed, trace.attrs)


def storage_error(x: Tensor, storage: Storage | None) -> float:
    """Return how much of a tensor its storage may have changed: relative L2, 0 for full float32."""
    if storage is None:
        return 0.0
    finite = x.isfinite()
    size = float(x[finite].double().norm())
    # Uniform over one spacing on either side: its root mean square is spacing / sqrt(3).
    return float(storage.spacing[finite].norm()) / 3**0.5 / size if size else 0.0
