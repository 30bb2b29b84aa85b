"""Recognise the form in which numbers were stored: half precision, 16-bit samples or printed digits.

Other programs seldom keep all bits of a float32 result. Numbers that were stored more coarsely differ from
the computed ones by up to one step of the form, and a diagnosis must not take that difference for a fault.
The numbers show the form themselves: all samples of a 16-bit file are multiples of 1/32768, for example.
"""

import functools
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
    # Values -> distances to the next number that the form can hold, float64.
    spacing_at: Callable[[Tensor], Tensor]


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
            return Storage(name, functools.partial(_half_spacing, mantissa_bits, 2.0**-min_exponent))
    if len(values) < MIN_GRID_VALUES:
        return None
    for find in (_binary_grid, _sample_grid, _decimals, _significant_digits):
        # A few values rule most forms out, so that a large tensor is seldom searched as a whole.
        if find(values[:MIN_GRID_VALUES]) and (found := find(values)):
            return found
    return None


def _half_spacing(mantissa_bits: int, smallest: float, x: Tensor) -> Tensor:
    """Return the spacing of a half precision at values; `smallest` is its smallest number above 0."""
    exponent = x.double().abs().clamp(min=smallest).log2().floor()
    return (2.0 ** (exponent - mantissa_bits)).clamp(min=smallest)


def _constant_spacing(spacing: float, x: Tensor) -> Tensor:
    return torch.full_like(x, spacing, dtype=torch.float64)


def _digit_spacing(count: int, x: Tensor) -> Tensor:
    """Return the value of the last of `count` significant digits."""
    exponent = x.double().abs().clamp(min=1e-30).log10().floor()
    return 10.0 ** (exponent - count + 1)


def _binary_grid(values: Tensor) -> Storage | None:
    """Recognise multiples of a power of two, as integer samples divided by 32768 are."""
    for bits in range(MAX_GRID_BITS + 1):
        scaled = values * 2.0**bits
        if torch.equal(scaled, scaled.round()):
            return Storage(f"{bits + 1} bit", functools.partial(_constant_spacing, 2.0**-bits))
    return None


def _sample_grid(values: Tensor) -> Storage | None:
    """Recognise integer samples that were divided by the largest of them, such as 32767."""
    for scale in SAMPLE_SCALES:
        if _are_whole(values * scale):
            bits = (scale + 1).bit_length()
            return Storage(f"{bits} bit", functools.partial(_constant_spacing, 1 / scale))
    return None


def _decimals(values: Tensor) -> Storage | None:
    """Recognise numbers printed with a fixed number of decimals."""
    for count in range(1, MAX_DIGITS):
        if _are_whole(values * 10.0**count):
            return Storage(f"{count} decimals", functools.partial(_constant_spacing, 10.0**-count))
    return None


def _significant_digits(values: Tensor) -> Storage | None:
    """Recognise numbers printed with a fixed number of significant digits."""
    for count in range(1, MAX_DIGITS):
        if _are_whole(values / _digit_spacing(count, values)):
            return Storage(f"{count} digits", functools.partial(_digit_spacing, count))
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
    return (x.double() + shift * storage.spacing_at(x)).to(torch.promote_types(x.dtype, torch.float32))


def perturbed_trace(trace: Trace, coarse: Mapping[str, Storage], seed: int) -> Trace:
    """Return a trace that would be stored as `trace`: every coarse field is perturbed."""
    generator = torch.Generator().manual_seed(seed)
    changed = {name: perturbed(trace[name], storage, generator) for name, storage in coarse.items()}
    return Trace(dict(trace.data) | changed, trace.attrs)


def beyond_storage(found: Tensor, expected: Tensor, storage: Storage | None) -> Tensor:
    """Return `expected` with that part of the difference to `found` which storing it does not explain.

    A program rounds to the nearest number that the form can hold, or cuts towards zero, or cuts downwards.
    Of the three the one counts that explains most.
    """
    if storage is None or found.shape != expected.shape:
        return found
    expected = expected.double()
    error, spacing = found.double() - expected, storage.spacing_at(found)
    nothing = torch.zeros_like(spacing)
    limits = (
        (-spacing / 2, spacing / 2),  # to the nearest
        (
            torch.where(expected > 0, -spacing, nothing),
            torch.where(expected > 0, nothing, spacing),
        ),  # to zero
        (-spacing, nothing),  # downwards
    )
    rests = [error - error.clamp(low, high) for low, high in limits]
    return expected + min(rests, key=lambda rest: float(rest.norm()))
