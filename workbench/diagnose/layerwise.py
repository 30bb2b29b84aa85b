"""float64 with the weights of one layer at a time, for checks of large models on small machines.

A model in float64 takes twice the memory of the one in float32 beside it. Its weights are the same numbers
and need not be kept: each layer widens its own while it computes.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.speech.model_cache import ModelCache
from workbench.speech.pipeline import Pipeline

KEPT_BYTES = 200_000_000  # of weights in float64 that are kept as a whole, which computes a little faster


def layerwise(pipe: Pipeline) -> Pipeline:
    """Return a pipeline with the same models, whose large ones widen their layers one by one for float64.

    Its models in float64 give the same results, to the last bit. They are not for changes: their weights are
    those of the models in float32. Traces of its runs have no hash of the weights: it takes seconds, and no
    check reads it.

    Parameters
    ----------
    pipe : Pipeline

    Returns
    -------
    Pipeline
    """
    other = copy.copy(pipe)
    other.models = _LayerwiseCache(pipe.models)
    other.checkpoint = copy.copy(pipe.checkpoint)
    vars(other.checkpoint).setdefault("content_hash", "")
    return other


class _LayerwiseCache(ModelCache):
    """The models of another cache, except those in float64 that are large."""

    def __init__(self, cache: ModelCache) -> None:
        vars(self).update(vars(cache))  # what either builds serves both
        self._wide: dict[nn.Module, nn.Module] = {}  # by the model itself: a simulated fault has another

    def eager(self, name: str, dtype: str, *parts: str, weights: str | None = None) -> nn.Module:
        """Return a model as `ModelCache.eager` does."""
        if dtype != "float64" or parts:  # the vocoder, which has parts, is small
            return super().eager(name, dtype, *parts, weights=weights)
        narrow = super().eager(name, "float32", weights=weights)
        if 8 * sum(parameter.numel() for parameter in narrow.parameters()) <= KEPT_BYTES:
            return super().eager(name, dtype, weights=weights)
        if narrow not in self._wide:
            self._wide[narrow] = widened(narrow)
        return self._wide[narrow]


def widened(model: nn.Module) -> nn.Module:
    """Return a copy of a float32 model that computes in float64 and has no weights of its own.

    Parameters
    ----------
    model : nn.Module
        Not changed. Its layers read their weights nowhere but in their own forward pass.

    Returns
    -------
    nn.Module
        Between two passes its weights are NaN, in float64 and without memory, so that a result that is
        computed from them shows.
    """
    empty: dict[int, Any] = {}  # by the id of a parameter, which tied layers share
    for parameter in model.parameters():
        nan = torch.full((1,) * parameter.ndim, torch.nan, dtype=torch.float64, device=parameter.device)
        empty[id(parameter)] = nn.Parameter(nan.expand(parameter.shape), requires_grad=False)
    wide = copy.deepcopy(model, empty).double()  # buffers are few and small
    for narrow_layer, layer in zip(model.modules(), wide.modules(), strict=True):
        own = {name: value for name, value in narrow_layer._parameters.items() if value is not None}
        if own:
            _widen_in_forward(layer, own)
    return wide


def _widen_in_forward(layer: nn.Module, narrow: dict[str, nn.Parameter]) -> None:
    """Give a layer its weights in float64 whenever it computes, and take them away behind it."""
    empty = dict(layer._parameters)
    # What an embedding returns is widened in place of its table, the largest of the weights.
    is_table = isinstance(layer, nn.Embedding)

    def widen(layer: nn.Module, inputs: Sequence[Any]) -> None:
        for name, value in narrow.items():
            layer._parameters[name] = value if is_table else nn.Parameter(value.double(), requires_grad=False)

    def release(layer: nn.Module, inputs: Sequence[Any], output: Tensor | None) -> Tensor | None:
        layer._parameters.update(empty)
        return output.double() if is_table and output is not None else output

    layer.register_forward_pre_hook(widen)
    layer.register_forward_hook(release, always_call=True)
