"""Change single parts of our models: leave a block out, lose a bias, transpose a weight.

A change never touches a model that somebody uses. It makes a copy that shares every part with the original
but for the changed ones.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.diagnose.suspects.catalogue.patches import Patch
from workbench.speech.model_cache import ModelCache

Change = Callable[[nn.Module], nn.Module]


def changed_model(stage: str, change: Change) -> Patch:
    """Give every run a changed model of one stage, in any precision.

    Parameters
    ----------
    stage : {"lm", "flow", "hift"}
    change : callable
        Model -> changed copy.
    """
    changed = functools.lru_cache(maxsize=4)(change)  # one copy for each precision in use

    def eager(self: ModelCache, name: str, *args: str, original=ModelCache.eager, **named: Any) -> nn.Module:
        model = original(self, name, *args, **named)
        return changed(model) if name == stage else model

    return Patch(ModelCache, "eager", eager)


def replaced(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Return a model that shares everything with `model` but for the module at a dotted path."""
    name, _, rest = path.partition(".")
    copied = copy.copy(model)
    copied._modules = dict(model._modules)
    copied._modules[name] = replaced(model._modules[name], rest, new) if rest else new
    return copied


def with_tensor(model: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a model in which one weight or bias is changed; `path` is its dotted name."""
    owner, _, name = path.rpartition(".")
    module = copy.deepcopy(model.get_submodule(owner))
    with torch.no_grad():
        getattr(module, name).copy_(change(getattr(module, name)))
    return replaced(model, owner, module)


# The layers of a block whose results are added to its input, in the DiT and in Qwen2.
OUTPUT_LAYERS = ("attn.to_out.0", "ff.ff.2", "self_attn.o_proj", "mlp.down_proj")


def without_block(model: nn.Module, path: str) -> nn.Module:
    """Return a model in which one block adds nothing to its input.

    The block still runs, so that an LM's cache has as many positions as before.
    """
    block = copy.deepcopy(model.get_submodule(path))
    with torch.no_grad():
        for name, module in block.named_modules():
            if name in OUTPUT_LAYERS:
                for parameter in module.parameters():
                    parameter.zero_()
    return replaced(model, path, block)


def with_blocks_swapped(model: nn.Module, first: str, second: str) -> nn.Module:
    """Return a model with two blocks in each other's place."""
    a, b = model.get_submodule(first), model.get_submodule(second)
    return replaced(replaced(model, first, b), second, a)


def with_block_repeated(model: nn.Module, path: str, source: str) -> nn.Module:
    """Return a model in which one block has the weights of another."""
    return replaced(model, path, model.get_submodule(source))
