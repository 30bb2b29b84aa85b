"""Recognise the form in which numbers were stored: half precision, 16-bit samples or printed digits.

Other programs seldom keep all bits of a float32 result. Numbers that were stored more coarsely differ from
the computed ones by up to one step of the form, and a diagnosis must not take that difference for a fault.
The numbers show the form themselves: all samples of a 16-bit file are multiples of 1/32768, for example.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace

MIN_GRID_VALUES = 32  # with so many values a form that was not used does not fit by chance
BLOCK_VALUES = 1 << 18  # that are looked at at once; bounds memory
FLOAT32_ERROR = 2.0**-23  # relative; twice the largest rounding error of one operation


class Storage(NamedTuple):
    """The form in which a tensor was stored."""

    name: str  # such as "float16", "16 bit", "4 decimals"
    # Values -> distances to the next number that the form can hold, float64.
    spacing_at: Callable[[Tensor], Tensor]
    error: float = 0.0  # relative, with which float32 holds the numbers of the form


def storage_of(x: Tensor) -> Storage | None:
    """Return the form in which a tensor was stored; None for full float32, ids, or too few values to tell.

    Parameters
    ----------
    x : Tensor
        Any shape. NaN, Inf and 0 show no form.
    """
    if not x.is_floating_point():
        return None
    values = _telling_values(x)
    fitting = []
    for min_count, forms in FAMILIES:
        if len(values) >= min_count:
            # Of a family the coarsest form counts: what has 2 decimals has 3 as well.
            found = next((form for form in forms if fits(values, form)), None)
            if found is not None:
                fitting.append(found)
    return _coarsest(fitting, values)


def _coarsest(forms: Iterable[Storage], values: Tensor) -> Storage | None:
    """Return the form that loses most digits of the values: of several that fit it is the one that was used.

    Quiet 16-bit samples, for example, are exact in float16 as well.
    """
    parts = values.split(BLOCK_VALUES)
    return max(
        forms, key=lambda form: sum(float(form.spacing_at(part).log().sum()) for part in parts), default=None
    )


def _telling_values(x: Tensor) -> Tensor:
    """Return the values (n,) that show a form, float64."""
    wide = x.detach().double().cpu().flatten()
    parts = [part.isfinite() & (part != 0) for part in wide.split(BLOCK_VALUES)]
    is_telling = torch.cat(parts)
    return wide if bool(is_telling.all()) else wide[is_telling]


def fits(values: Tensor, form: Storage) -> bool:
    """Whether all values (n,), none of them 0, can be held by a form, which float32 would hold more finely.

    Float32 values from 4 to 8 are multiples of 2**-21 themselves: that tells nothing of how they were stored.
    """
    # A few values rule most forms out, so that a large tensor is seldom searched as a whole.
    some = values[:MIN_GRID_VALUES]
    parts = values.split(BLOCK_VALUES)
    if not all(_are_whole(part / form.spacing_at(part), form.error) for part in (some, *parts)):
        return False
    coarser = sum(int((form.spacing_at(part) > _float32_spacing(part)).sum()) for part in parts)
    return coarser >= len(some)


def _are_whole(scaled: Tensor, relative_error: float) -> bool:
    """Whether scaled values are whole numbers, but for the rounding of the float32 values they came from."""
    error = (scaled - scaled.round()).abs()
    tolerance = scaled.abs() * relative_error
    # Beyond 0.05 every number would pass: float32 is too coarse to tell.
    return bool((tolerance < 0.05).all() and (error <= tolerance).all())


# ---- the forms


def _float_spacing(mantissa_bits: int, smallest: float, x: Tensor) -> Tensor:
    """Return the spacing of a floating-point type at values; `smallest` is its smallest number above 0."""
    exponent = x.double().abs().clamp(min=smallest).log2().floor()
    return (2.0 ** (exponent - mantissa_bits)).clamp(min=smallest)


def _float32_spacing(x: Tensor) -> Tensor:
    return _float_spacing(23, 2.0**-149, x)


def _constant_spacing(spacing: float, x: Tensor) -> Tensor:
    return torch.full_like(x, spacing, dtype=torch.float64)


def _digit_spacing(count: int, x: Tensor) -> Tensor:
    """Return the value of the last of `count` significant digits."""
    exponent = x.double().abs().clamp(min=1e-30).log10().floor()
    return 10.0 ** (exponent - count + 1)


def _grid(name: str, spacing: float, error: float = FLOAT32_ERROR) -> Storage:
    return Storage(name, functools.partial(_constant_spacing, spacing), error)


# (values that must have the form, forms from coarse to fine), for each family of forms. By chance one float32
# value in 8,192 is exact in float16 and one in ten has its last decimal right.
FAMILIES = (
    (8, [Storage("bfloat16", functools.partial(_float_spacing, 7, 2.0**-133))]),
    (8, [Storage("float16", functools.partial(_float_spacing, 10, 2.0**-24))]),
    # Integer samples divided by a power of two, as 32768. A float32 value below 1 has 24 bits itself.
    (32, [_grid(f"{bits + 1} bit", 2.0**-bits, error=0.0) for bits in range(24)]),
    # Integer samples divided by the largest of them.
    (32, [_grid(f"{bits} bit", 1 / (2 ** (bits - 1) - 1)) for bits in (8, 16)]),
    (32, [_grid(f"{count} decimals", 10.0**-count) for count in range(1, 7)]),
    (
        32,
        [
            Storage(f"{count} digits", functools.partial(_digit_spacing, count), FLOAT32_ERROR)
            for count in range(1, 7)
        ],
    ),
)


def coarse_fields(trace: Trace) -> dict[str, Storage]:
    """Return the form of every field that was not stored in full float32."""
    found, others = {}, []
    for name in trace:
        if name.endswith(SUFFIX) or not trace[name].is_floating_point():
            continue
        storage = storage_of(trace[name])
        if storage is not None:
            found[name] = storage
        else:
            others.append(name)
    # A field of a few values shows no form by itself, but it may have the one that the other fields have.
    forms = {storage.name: storage for storage in found.values()}
    for name in others:
        values = _telling_values(trace[name])
        if 0 < len(values) < MIN_GRID_VALUES:
            fitting = [form for form in forms.values() if fits(values, form)]
            if form := _coarsest(fitting, values):
                found[name] = form
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
    return Trace(dict(trace.data) | perturbed_values(trace.data, coarse, seed), trace.attrs)


def perturbed_values(
    values: Mapping[str, Tensor], coarse: Mapping[str, Storage], seed: int
) -> dict[str, Tensor]:
    """Return the coarse ones among named tensors, each perturbed."""
    generator = torch.Generator().manual_seed(seed)
    return {name: perturbed(values[name], storage, generator) for name, storage in coarse.items()}


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
