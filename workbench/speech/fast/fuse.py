"""Combine linear layers that read the same input into one, without a second copy of their weights."""

import torch
from torch import Tensor, nn


def fuse_linear(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Stack the weights of linear layers that read the same input; one product then computes all of them.

    The layers must belong to the caller: their parameters become views of the returned tensors. So they go
    on working, and the weights are in memory once.

    Parameters
    ----------
    *layers : Linear
        All with a bias, or all without.

    Returns
    -------
    weight : Tensor (sum of outputs, inputs)
    bias : Tensor (sum of outputs,) or None
    """
    weight = _stack([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else _stack([layer.bias for layer in layers])
    return weight, bias


def _stack(parameters: list[nn.Parameter]) -> Tensor:
    """Concatenate parameters along the first dimension, and make each a view of the result."""
    stacked = torch.cat([parameter.data for parameter in parameters])
    start = 0
    for parameter in parameters:
        stop = start + len(parameter)
        parameter.data = stacked[start:stop]
        start = stop
    return stacked
