"""Several linear layers as one, without a second copy of their weights."""

import torch
from torch import Tensor, nn


def join_rows(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Lay the weights of layers that read the same input one below the other.

    The layers go on working: their weights become parts of what is returned.

    Returns
    -------
    weight : Tensor (sum of outputs, inputs)
    bias : Tensor (sum of outputs,) or None
    """
    weight = _joined([layer.weight for layer in layers])
    return weight, None if layers[0].bias is None else _joined([layer.bias for layer in layers])


def _joined(parts: list[nn.Parameter]) -> Tensor:
    whole = torch.cat([part.data for part in parts])
    for part, rows in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = rows
    return whole
