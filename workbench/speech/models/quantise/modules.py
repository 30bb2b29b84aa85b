"""The layers of a model whose weights can be quantised, and a model with quantised weights."""

import functools

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workbench.errors import WorkbenchError
from workbench.speech.config.formats import Format, Rule, format_of
from workbench.speech.models.quantise.ggml import quantise_inputs
from workbench.speech.models.quantise.quantise import quantise, stored_as
from workbench.speech.models.quantise.scaled import quantise_integer

LAYERS = (nn.Linear, nn.Conv1d, nn.Embedding)  # norms and biases stay, as in every port


def layers_of(model: nn.Module, stage: str) -> dict[str, nn.Module]:
    """Return the layers of a stage's model that have a matrix, by dotted names that begin with the stage.

    Layers that share a weight count once, under the first name: a head that is tied to an embedding.
    """
    found: dict[str, nn.Module] = {}
    known: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            weight = module._parameters.get("weight")  # None where weight norm computes it
            if weight is None or id(weight) not in known:
                found[f"{stage}.{name}"] = module
                known.add(id(weight))
    return found


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, also where weight norm computes it."""
    if parametrize.is_parametrized(layer, "weight"):
        return tuple(layer.parametrizations.weight.original1.shape)
    return tuple(layer.weight.shape)


@torch.no_grad()
def quantise_layers(model: nn.Module, stage: str, rules: tuple[Rule, ...]) -> None:
    """Quantise the weights of a float32 model that nobody else uses.

    A weight norm stays: its two parts are set so that they give the quantised weight, but for rounding. With
    the detail "dynamic", linear layers quantise their inputs whenever they run.

    Raises
    ------
    WorkbenchError
        When a weight has NaN, or values that the format cannot hold.
    """
    for name, layer in layers_of(model, stage).items():
        asked = format_of(rules, name)
        if asked is None or asked.name == "float32":
            continue
        try:
            values = quantise(layer.weight, asked).values.to(layer.weight.device)
        except WorkbenchError as error:
            raise WorkbenchError(f"{name}: {error}") from error
        if parametrize.is_parametrized(layer, "weight"):
            _set_weight_norm(layer.parametrizations.weight, values)
        else:
            layer.weight.copy_(values)
        if "dynamic" in asked.details and isinstance(layer, nn.Linear):
            used, _ = stored_as(tuple(layer.weight.shape), asked)
            layer.register_forward_pre_hook(functools.partial(_quantise_input, used))


def _quantise_input(used: Format, layer: nn.Module, args: tuple[Tensor]) -> Tensor:
    """Return the input (..., in) as the kernels of a format quantise it.

    torchao has int8 with one scale a token, ggml int8 in blocks as long as those of the weights; beside
    weights that ggml leaves in float16 the input is float16 too.
    """
    (x,) = args
    tokens = x.float().reshape(-1, x.shape[-1])
    if used.kind.family == "integer":
        tokens = quantise_integer(tokens, 8, "symmetric", is_narrow=False)
    elif used.kind.family == "float":
        tokens = tokens.half().float()
    else:
        tokens = torch.from_numpy(quantise_inputs(tokens.cpu().numpy(), used.block)).to(x.device)
    return tokens.reshape(x.shape).to(x.dtype)


def _set_weight_norm(parts: nn.Module, values: Tensor) -> None:
    norm = torch.norm_except_dim(values, 2, 0)
    parts.original0.copy_(norm)
    # A channel of zeros keeps its direction, because the weight is divided by its norm.
    parts.original1.copy_(torch.where(norm == 0, parts.original1, values))
