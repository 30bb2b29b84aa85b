"""What a run keeps: `Save` says what, `Recorder` collects it, `taps` looks inside a module."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.trace.schema import FIELDS, LOOPS, STATS, SUFFIX, dims_of

# What the stages hand to each other: always kept, so that every stage can be run again.
ALWAYS_SAVED = ("in/*", "lm/speech_token", "flow/mel", "hift/f0", "hift/source", "hift/wav")


class Save(NamedTuple):
    """Which fields a run keeps, and of which it keeps statistics; globs of names in the schema."""

    fields: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()

    def keeps(self, name: str) -> bool:
        """Whether a field is kept whole."""
        return _matches(name, (*ALWAYS_SAVED, *self.fields))

    def sums_up(self, name: str) -> bool:
        """Whether statistics of a field are kept."""
        return _matches(name, self.stats)


NOTHING = Save()
SUMMARY = Save(stats=("lm/entropy", "flow/*", "hift/*"))
EVERYTHING = Save(fields=("*",))


def as_save(save: Save | str | Iterable[str]) -> Save:
    """Turn one or several globs into a `Save`; one that is given already is returned as it is.

    Raises
    ------
    WorkbenchError
        When a glob fits no field.
    """
    if isinstance(save, Save):
        return save
    globs = (save,) if isinstance(save, str) else tuple(save)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in FIELDS):
            raise WorkbenchError(
                f"save is {glob!r}, which fits no field; expected NOTHING, SUMMARY, EVERYTHING or globs of "
                f"{', '.join(FIELDS)}"
            )
    return Save(fields=globs)


class Recorder:
    """Collects fields while a run goes on; nothing leaves the device before `finish`.

    Parameters
    ----------
    save : Save
        What to keep.
    """

    def __init__(self, save: Save) -> None:
        self.save = save
        self._fields: dict[str, list[Tensor]] = {}
        self._stats: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        """Whether it pays to work a field out."""
        return self.save.keeps(name) or self.save.sums_up(name)

    def add(self, name: str, value: Tensor, prompt_frames: int = 0) -> None:
        """Note a field, or the next entry of one that grows by draw, knot or step.

        Parameters
        ----------
        name : str
            In the schema.
        value : Tensor
            Without batch dimension; an entry also without the one it grows along.
        prompt_frames : int
            Where the target begins, for fields with frames.
        """
        if self.save.keeps(name):
            self._fields.setdefault(name, []).append(value.detach())
        if self.save.sums_up(name):
            regions = "frame" in FIELDS[name].dims
            stats = by_region(value, prompt_frames) if regions else summarise(value)
            self._stats.setdefault(name, []).append(stats)

    def finish(self) -> dict[str, Tensor]:
        """Return what was kept, on the CPU and in causal order; all statistics come in one copy."""
        found = {name: _joined(name, values).cpu() for name, values in self._fields.items()}
        if self._stats:
            joined = {name: _joined(name, values) for name, values in self._stats.items()}
            flat = torch.cat([values.flatten() for values in joined.values()]).cpu()
            pieces = flat.split([values.numel() for values in joined.values()])
            for (name, values), piece in zip(joined.items(), pieces, strict=True):
                found[name + SUFFIX] = piece.view(values.shape)
        order = list(FIELDS)
        return dict(sorted(found.items(), key=lambda pair: order.index(pair[0].removesuffix(SUFFIX))))


def summarise(x: Tensor) -> Tensor:
    """Return the schema's `STATS` of all values, float64 (6,), on the device and without waiting for it.

    NaN and Inf are counted and left out of the others; those are NaN where no value is finite.
    """
    if not x.numel():
        return torch.tensor([torch.nan] * (len(STATS) - 1) + [0.0], dtype=torch.float64).to(x.device)
    finite = x.isfinite()
    wide = torch.where(finite, x, 0).to(torch.promote_types(x.dtype, torch.float32))
    n = finite.sum()
    low = torch.where(finite, wide, torch.inf).amin()
    high = torch.where(finite, wide, -torch.inf).amax()
    means = torch.stack([y.sum(dtype=torch.float64) for y in (wide, wide.abs(), wide.square())]) / n
    five = torch.stack([low.double(), high.double(), means[0], means[1], means[2].sqrt()])
    return torch.cat((torch.where(n > 0, five, torch.nan), (x.numel() - n).double()[None]))


def by_region(x: Tensor, prompt_frames: int) -> Tensor:
    """Return `STATS` of each of `REGIONS`, (3, 6); the last axis of `x` is frames."""
    return torch.stack([summarise(y) for y in (x[..., :prompt_frames], x[..., prompt_frames:], x)])


@contextmanager
def taps(
    module: nn.Module, *patterns: str, keep: Callable[[Tensor], Tensor] = torch.clone
) -> Iterator[Mapping[str, Sequence[Tensor]]]:
    """Look inside a module while the block lasts.

    Parameters
    ----------
    module : Module
        Such as `pipe.stage("flow", "float32").decoder.estimator`.
    *patterns : str
        Globs of submodule names, such as "transformer_blocks.*.attn".
    keep : callable Tensor -> Tensor
        What is kept of an output: a copy of it, or less.

    Yields
    ------
    mapping of str to list of Tensor
        What was kept of the outputs by name, one a call. Hooks are gone when the block is left.

    Raises
    ------
    WorkbenchError
        When no submodule has such a name.
    """
    chosen = {name: child for name, child in module.named_modules() if name and _matches(name, patterns)}
    if not chosen:
        some = [name for name, _ in module.named_modules() if name][:8]
        raise WorkbenchError(
            f"no submodule fits {', '.join(patterns) or 'an empty list'}; there are {', '.join(some)}, ..."
        )
    seen: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def listen(name: str):
        def hook(module, inputs, output) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                seen[name].append(keep(first.detach()))

        return hook

    handles = [child.register_forward_hook(listen(name)) for name, child in chosen.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _joined(name: str, values: list[Tensor]) -> Tensor:
    grows = (dims_of(name) or ("",))[0] in LOOPS
    return torch.stack(values) if grows else values[-1]


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
