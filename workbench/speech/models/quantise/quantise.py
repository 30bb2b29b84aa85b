"""`quantise`: a tensor as another number format would keep it; `formats`: all formats with their sizes."""

import math
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config.formats import FALLBACKS, FORMATS, Format, parse_format
from workbench.speech.models.quantise.ggml import quantise_ggml
from workbench.speech.models.quantise.scaled import (
    groups_of,
    quantise_fp8,
    quantise_integer,
    quantise_mlx,
    quantise_nf4,
)


class Quantised(NamedTuple):
    """A tensor after quantisation and dequantisation.

    Attributes
    ----------
    values : Tensor
        float32, of the tensor's shape.
    format : str
        What it was quantised to: the format that was asked for, or the one that takes its place.
    nbytes : int
        Bytes with scales, as stored.
    """

    values: Tensor
    format: str
    nbytes: int


def quantise(weight: Tensor, format: str | Format) -> Quantised:
    """Quantise and dequantise a weight.

    Where a row is no multiple of ggml's block, the format is replaced as llama-quantize does: q4_k by q5_0,
    q5_k by q5_1, q6_k by q8_0, and where 32 does not divide the row by float16. A format with groups whose
    size does not divide a row leaves the weight in float32, as libraries do that skip or refuse such a layer.
    So it is with a convolution whose kernel is longer than 1: its rows, for ggml and for groups, are the
    kernel. Its channels are those of the output (axis 0).

    Parameters
    ----------
    weight : Tensor (out, in) or (out, in, kernel)
        Floats.
    format : str
        Such as "q4_k", "int8:tensor" or "int4:group=128,asymmetric"; `wb.formats()` lists them.

    Returns
    -------
    Quantised
        `values`, float32; `format`, the one that was used; `nbytes`.

    Raises
    ------
    WorkbenchError
        When there is no such format, the weight is no matrix, or has NaN or values beyond the format's range.

    Examples
    --------
    >>> weight = voice.weights["lm"]["llm_decoder.weight"]
    >>> q4 = wb.quantise(weight, "q4_k")
    >>> q4.format, f"{8 * q4.nbytes / weight.numel()} bits a weight"
    ('q4_k', '4.5 bits a weight')
    >>> wb.quantise(weight[:, :96], "q4_k").format  # 256 does not divide 96
    'q5_0'
    """
    asked = format if isinstance(format, Format) else parse_format(format)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim < 2:
        is_tensor = isinstance(weight, Tensor)
        found = f"{tuple(weight.shape)} {weight.dtype}" if is_tensor else f"a {type(weight).__name__}"
        raise WorkbenchError(f"weight is {found}; expected a tensor of floats with 2 or more axes")
    original = weight.detach().cpu().float()
    if not bool(original.isfinite().all()):
        raise WorkbenchError(f"a weight {tuple(weight.shape)} has NaN or Inf, which {asked} cannot hold")
    used, nbytes = stored_as(tuple(original.shape), asked)
    values = _dequantised(original, used) if original.numel() else original
    if not bool(values.isfinite().all()):
        largest = float(original.abs().max())
        raise WorkbenchError(
            f"{used} cannot hold a weight of {largest:.3g}: its scales are float16; try a format with "
            "float32 scales, such as int8 or bfloat16"
        )
    return Quantised(values, str(used), nbytes)


def formats() -> pd.DataFrame:
    """Return the table of the formats of quantised weights.

    Returns
    -------
    DataFrame
        `format`; `bits` of a weight in a row that is a multiple of the block, with its share of the scales
        (those of a channel or tensor are left out); `block`, the weights that share a scale; `details`, what
        may follow the name behind a colon, the default first; `library`, whose numerics they are.

    Examples
    --------
    >>> float(wb.formats().set_index("format").loc["q4_k", "bits"])
    4.5
    """
    rows = []
    for name, kind in FORMATS.items():
        default = parse_format(name)
        shared = kind.scale_bits / default.block if default.block else 0.0
        details = "; ".join(" | ".join(choices) for choices in kind.details)
        block = default.block if default.block else default.details[0]
        rows.append((name, kind.bits + shared, block, details, kind.library))
    return pd.DataFrame(rows, columns=["format", "bits", "block", "details", "library"])


def stored_as(shape: tuple[int, ...], asked: Format) -> tuple[Format, int]:
    """Return the format that a weight of this shape gets, and its bytes with scales."""
    used = _used(shape, asked)
    kind, size = used.kind, math.prod(shape)
    if used.block:
        scales = -(-size // used.block)
    else:
        scales = shape[0] if used.details[0] == "channel" else 1
    scale_bits = kind.scale_bits
    if kind.family == "integer" and used.details[1] != "symmetric":
        scale_bits += 32 if used.details[1] == "offset" else kind.bits
    if kind.family == "mlx" and used.details[1] != "float32":
        scale_bits /= 2
    return used, -(-int(size * kind.bits + scales * scale_bits) // 8)


def _used(shape: tuple[int, ...], asked: Format) -> Format:
    """Return the format that a weight of this shape gets."""
    is_matrix = math.prod(shape[2:]) == 1  # so is a convolution with a kernel of 1
    columns = shape[1] if is_matrix else shape[-1]
    if asked.kind.family == "ggml":
        name = asked.name
        if columns % asked.block:
            name = FALLBACKS.get(name, "")
        is_kept = name and columns % FORMATS[name].block == 0
        return Format(name, asked.details) if is_kept else Format("float16")
    in_rows = asked.kind.family in ("integer", "mlx") and asked.block
    if (in_rows and columns % asked.block) or (asked.kind.family == "nf4" and not is_matrix):
        return Format("float32")
    return asked


def _dequantised(weight: Tensor, used: Format) -> Tensor:
    family, details = used.kind.family, used.details
    if family == "float":
        return weight.to(getattr(torch, used.name)).float()
    if family == "ggml":
        return torch.from_numpy(quantise_ggml(weight.numpy(), used.name))
    if family == "nf4":  # blocks run on from row to row; the last one may be shorter
        flat = weight.flatten()
        whole = len(flat) // used.block * used.block
        parts = [quantise_nf4(flat[:whole].reshape(-1, used.block)).flatten()]
        if whole < len(flat):
            parts.append(quantise_nf4(flat[whole:][None])[0])
        return torch.cat(parts).reshape(weight.shape)
    groups = groups_of(weight, used)
    if family == "integer":
        bits = int(used.kind.bits)
        values = quantise_integer(groups, bits, details[1], is_narrow="narrow" in details)
    elif family == "mlx":
        values = quantise_mlx(groups, int(used.kind.bits), getattr(torch, details[1]))
    else:
        values = quantise_fp8(groups, used.name)
    return values.reshape(weight.shape)
