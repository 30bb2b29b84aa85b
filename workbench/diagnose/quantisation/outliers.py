"""`outliers`: layers with weights or inputs that are far larger than the others, which share their scale."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.diagnose.quantisation.measure import eager_model, lm_logp
from workbench.errors import WorkbenchError
from workbench.speech.config import FLOW, STAGES
from workbench.speech.models.quantise.modules import layers_of
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace

NEEDED = ("in/text_token", "lm/drawn_token", "lm/speech_token")


def outliers(pipe: Pipeline, trace: Trace) -> pd.DataFrame:
    """Return how far the largest weight, input and channel of each layer stand out.

    A format keeps one scale for a tensor, a channel or a group. One large value among small ones takes the
    digits of all that share its scale. A normal distribution of 10,000 values has a peak of about 4 times its
    RMS.

    Parameters
    ----------
    pipe : Pipeline
    trace : Trace
        A run with its draws (`save=("lm/drawn_token",)` is enough): all layers see its inputs again.

    Returns
    -------
    DataFrame
        One row for each layer, in the order of the model: `layer`; `weight_peak`, the largest weight over
        the RMS of all; `weight_channel`, the RMS of the largest output channel over the median channel's;
        `input_peak`, the largest input over the RMS of all; `input_channel`, the largest input of the largest
        channel over the median channel's, and `channel`, its number. NaN for layers without such inputs,
        such as tables of embeddings.

    Raises
    ------
    WorkbenchError
        When the trace lacks its inputs or draws.

    Examples
    --------
    >>> table = wb.outliers(pipe, trace)
    >>> int(table["input_peak"].notna().sum()) > 100
    True
    """
    missing = [name for name in NEEDED if name not in trace]
    if missing:
        raise WorkbenchError(f"the trace lacks {', '.join(missing)}; save 'lm/drawn_token' when it is made")
    options = pipe.checkpoint.options.but(**trace.attrs.get("options", {})).but(compute="eager", weights=None)
    layers: dict[str, nn.Module] = {}
    for stage in STAGES:
        layers |= layers_of(eager_model(pipe, stage, options), stage)
    with _watched(layers) as seen:
        lm_logp(pipe, trace, options)
        pipe.replay(trace, FLOW, options)
    rows = []
    for name, layer in layers.items():
        weight = layer.weight.detach().double().flatten(1)  # (out, in)
        rms = weight.square().mean(1).sqrt()  # of each output channel
        row = {
            "layer": name,
            "weight_peak": float(weight.abs().max() / weight.square().mean().sqrt()),
            "weight_channel": float(rms.max() / rms.median()),
        }
        if name in seen:
            peak, squares, count = seen[name]
            row |= {
                "input_peak": float(peak.max() / (squares / count).sqrt()),
                "input_channel": float(peak.max() / peak.median()),
                "channel": int(peak.argmax()),
            }
        rows.append(row)
    return pd.DataFrame(rows).astype({"channel": "Int64"})


@contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor, int]]]:
    """Collect of each layer's inputs the peak of every channel, the sum of squares, and their number."""
    seen: dict[str, tuple[Tensor, Tensor, int]] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double()
            axis = 1 if isinstance(layer, nn.Conv1d) else -1  # of the channels
            channels = x.movedim(axis, 0).flatten(1)  # (channels, everything else)
            peak, squares = channels.abs().amax(1), channels.square().sum()
            if name in seen:
                before, sum_before, count = seen[name]
                peak, squares = torch.maximum(peak, before), squares + sum_before
            else:
                count = 0
            seen[name] = (peak, squares, count + channels.numel())

        return layer.register_forward_pre_hook(look)

    handles = [watch(name, layer) for name, layer in layers.items() if not isinstance(layer, nn.Embedding)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
