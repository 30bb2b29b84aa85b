"""`codes_of`: a weight as codes with scales, for formats that are `(codes - zero) * scale`.

These can be stored by anything that knows such a product, such as ONNX's DequantizeLinear.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.speech.config.formats import Format
from workbench.speech.models.quantise.ggml import quantise_blocks
from workbench.speech.models.quantise.scaled import fp8_codes, groups_of, integer_codes

ZERO_OF = {"q8_0": 0, "q4_0": 8}  # the code of a weight of 0: formats of ggml that have nothing but scales


class Codes(NamedTuple):
    """A quantised weight, which is `(codes - zero) * scale`.

    Attributes
    ----------
    codes : Tensor
        Of the weight's shape: int8, or an 8-bit float type.
    scale : Tensor
        float32. One number; one for each channel of axis 0; or of as many axes as the weight, with one for
        each group along `axis`.
    zero : Tensor or None
        int8, as many as scales.
    axis : int
        Along which there are several scales.
    group : int
        Weights that share a scale along `axis`; 0 for a channel or a tensor.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    axis: int
    group: int


def is_codes(used: Format) -> bool:
    """Whether a format is of this kind; a detail may make it another one."""
    if {"offset", "dynamic"} & set(used.details):
        return False
    return used.name in ZERO_OF or used.kind.family in ("integer", "fp8")


def codes_of(weight: Tensor, used: Format) -> Codes:
    """Return the codes that `quantise` dequantises.

    Parameters
    ----------
    weight : Tensor (out, in) or (out, in, kernel)
        float32.
    used : Format
        For which `is_codes` is True, and which this weight gets without a fallback.
    """
    weight = weight.detach().cpu().float()
    groups = groups_of(weight, used)
    zero = None
    if used.kind.family == "ggml":
        blocks = quantise_blocks(np.ascontiguousarray(groups.numpy()), used.name)
        codes = torch.from_numpy(blocks.codes) - ZERO_OF[used.name]
        scale = torch.from_numpy(blocks.scale.astype(np.float32))
    elif used.kind.family == "integer":
        bits = int(used.kind.bits)
        codes, scale, zero = integer_codes(groups, bits, used.details[1], "narrow" in used.details)
    else:
        codes, scale = fp8_codes(groups, used.name)
    if codes.element_size() > 1:
        codes = codes.to(torch.int8)
    if used.block:
        axis = 1 if math.prod(weight.shape[2:]) == 1 else weight.ndim - 1
        shape = [n // used.block if i == axis else n for i, n in enumerate(weight.shape)]
    else:
        axis, shape = 0, [scale.numel()] if used.details[0] == "channel" else []
    zero = None if zero is None else zero.to(torch.int8).reshape(shape)
    return Codes(codes.reshape(weight.shape), scale.reshape(shape), zero, axis, used.block)
