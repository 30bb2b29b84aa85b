"""Run our own model on tensors that another program recorded inside its model."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from workbench.diagnose.bisect.stages import INPUT, SOURCE, StageTaps, Values
from workbench.speech.models.numerics import exact_float32

# Takes the name of a tap and the value that our model has there; returns the value to go on with.
Exchange = Callable[[str, Tensor], Tensor]


@contextmanager
def exchanged(root: nn.Module, names: Sequence[str], exchange: Exchange) -> Iterator[None]:
    """Let `exchange` see, and replace, the value at each named tap while the block runs.

    Names of submodules that the model lacks are left out.
    """
    modules = dict(root.named_modules())
    handles = []

    def after(name: str) -> Callable:
        return lambda module, args, output: exchange(name, output)

    def before(name: str) -> Callable:
        return lambda module, args: (exchange(name, args[0]), *args[1:])

    for name in names:
        module = modules.get(name.removesuffix(INPUT))
        if module is not None and name.endswith(INPUT):
            handles.append(module.register_forward_pre_hook(before(name)))
        elif module is not None:
            handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
@exact_float32()
def recompute_taps(
    stage: StageTaps, model: nn.Module, recorded: Values, keep: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Compute every tap from the recorded taps nearest before it.

    Parameters
    ----------
    stage : StageTaps
    model : Module
        Our model of the stage, in any precision.
    recorded : mapping of str to Tensor
        Taps and sources of the other program. A source that was not recorded is zero, so that what is
        computed from it has no meaning.
    keep : collection of str, optional
        Taps to return: the recorded ones unless given. All taps of a large model would fill the memory.

    Returns
    -------
    dict of str to Tensor
        What our model has at these taps. It goes on with the recorded value where there is one, so that an
        error at one tap does not reach the next.
    """
    like = next(model.parameters())
    found: dict[str, Tensor] = {}
    kept = recorded if keep is None else keep

    def exchange(name: str, value: Tensor) -> Tensor:
        if name in kept:
            found[name] = value
        other = recorded.get(name)
        fitted = None if other is None else fit(other.to(like.device), value.shape)
        return value if fitted is None else fitted.to(value.dtype)

    values = {}
    for name, value in recorded.items():
        if name.startswith(SOURCE):
            values[name] = value.to(like) if value.is_floating_point() else value.to(like.device)
    with exchanged(stage.root(model), [tap.name for tap in stage.taps], exchange):
        output = stage.run(model, values)
    if "output" in kept:
        found["output"] = output
    return {name: value.cpu() for name, value in found.items()}


def fit(x: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a tensor in a shape that differs by axes of length 1 alone, or by a batch of 1; else None."""
    if [n for n in x.shape if n != 1] == [n for n in shape if n != 1]:
        return x.reshape(shape)
    if x.ndim == len(shape) and x.shape[0] == 1 and x.shape[1:] == shape[1:]:
        return x.expand(shape)
    return None
