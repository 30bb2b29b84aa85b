"""Record a run: `Save` states which fields to keep, `Recorder` collects them, `taps` records submodules."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.trace.schema import FIELDS, LOOPS, STATS, SUFFIX, dims_of

# Fields that one stage hands to the next. They are always kept, so that every stage can be run again.
ALWAYS_SAVED = ("in/*", "lm/speech_token", "flow/mel", "hift/f0", "hift/source", "hift/wav")


class Save(NamedTuple):
    """The fields that a run keeps, and those of which it keeps statistics.

    Parameters
    ----------
    fields : tuple of str
        Globs of names in `workbench.trace.schema.FIELDS`. What one stage hands to the next is always kept.
    stats : tuple of str
        Globs of the fields whose statistics are kept.

    Examples
    --------
    >>> velocities = wb.Save(fields=("flow/velocity*",), stats=("hift/*",))
    >>> velocities.keeps("flow/velocity_cond"), velocities.keeps("flow/x")
    (True, False)
    >>> wb.EVERYTHING.keeps("flow/x"), wb.NOTHING.keeps("flow/mel")
    (True, True)
    """

    fields: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()

    def keeps(self, name: str) -> bool:
        """Whether all values of a field are kept."""
        return _matches(name, (*ALWAYS_SAVED, *self.fields))

    def keeps_stats(self, name: str) -> bool:
        """Whether statistics of a field are kept."""
        return _matches(name, self.stats)


NOTHING = Save()
SUMMARY = Save(stats=("lm/entropy", "flow/*", "hift/*"))
EVERYTHING = Save(fields=("*",))


def as_save(save: Save | str | Iterable[str]) -> Save:
    """Return a `Save` for one or several globs of fields; a `Save` stays as it is.

    Raises
    ------
    WorkbenchError
        When a glob matches no field.
    """
    if isinstance(save, Save):
        return save
    globs = (save,) if isinstance(save, str) else tuple(save)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in FIELDS):
            raise WorkbenchError(
                f"save is {glob!r}, which matches no field; expected NOTHING, SUMMARY, EVERYTHING or "
                f"globs of {', '.join(FIELDS)}"
            )
    return Save(fields=globs)


class Recorder:
    """Collect fields during a run; nothing is copied from the device before `finish`.

    Parameters
    ----------
    save : Save
        Which fields to keep.
    """

    def __init__(self, save: Save) -> None:
        self.save = save
        self._fields: dict[str, list[Tensor]] = {}
        self._stats: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        """Whether a field or its statistics are kept, so that it has to be computed."""
        return self.save.keeps(name) or self.save.keeps_stats(name)

    def add(self, name: str, value: Tensor, prompt_frames: int = 0) -> None:
        """Add a field, or the next entry of a field that grows by draw, knot or step.

        Parameters
        ----------
        name : str
            A field of the schema.
        value : Tensor
            Without batch dimension; an entry also lacks the dimension that it grows along.
        prompt_frames : int
            Frames before the target, for fields with frames.
        """
        if self.save.keeps(name):
            self._fields.setdefault(name, []).append(value.detach())
        if self.save.keeps_stats(name):
            has_regions = "frame" in FIELDS[name].dims
            stats = summarise_regions(value, prompt_frames) if has_regions else summarise(value)
            self._stats.setdefault(name, []).append(stats)

    def finish(self) -> dict[str, Tensor]:
        """Return the fields and statistics that were kept, on the CPU and in causal order."""
        found = {name: _stack(name, values).cpu() for name, values in self._fields.items()}
        if self._stats:
            # Copy all statistics from the device at once: a copy of each would wait for the device each time.
            stacked = {name: _stack(name, values) for name, values in self._stats.items()}
            flat = torch.cat([values.flatten() for values in stacked.values()]).cpu()
            pieces = flat.split([values.numel() for values in stacked.values()])
            for (name, values), piece in zip(stacked.items(), pieces, strict=True):
                found[name + SUFFIX] = piece.view(values.shape)
        return in_causal_order(found)


def summarise(x: Tensor) -> Tensor:
    """Return the schema's `STATS` of all values, float64 (6,), on the device of `x`.

    NaN and Inf are counted and left out of the other statistics, which are NaN where no value is finite.
    """
    if not x.numel():
        return torch.tensor([torch.nan] * (len(STATS) - 1) + [0.0], dtype=torch.float64).to(x.device)
    finite = x.isfinite()
    n = finite.sum()  # stays a tensor: a Python number would wait for the device
    # Half precision is raised to float32, and sums are float64, so that nothing overflows.
    wide = torch.where(finite, x, 0).to(torch.promote_types(x.dtype, torch.float32))
    lowest = torch.where(finite, wide, torch.inf).amin()
    highest = torch.where(finite, wide, -torch.inf).amax()
    sums = torch.stack([y.sum(dtype=torch.float64) for y in (wide, wide.abs(), wide.square())])
    mean, mean_abs, mean_square = sums / n
    stats = torch.stack([lowest.double(), highest.double(), mean, mean_abs, mean_square.sqrt()])
    nonfinite = (x.numel() - n).double()
    return torch.cat((torch.where(n > 0, stats, torch.nan), nonfinite[None]))


def summarise_regions(x: Tensor, prompt_frames: int) -> Tensor:
    """Return `STATS` of each of `REGIONS`, (3, 6); the last axis of `x` is frames."""
    prompt = x[..., :prompt_frames]
    target = x[..., prompt_frames:]
    return torch.stack([summarise(prompt), summarise(target), summarise(x)])


def in_causal_order(data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same fields and statistics in the order of the schema."""
    order = list(FIELDS)
    return dict(sorted(data.items(), key=lambda pair: order.index(pair[0].removesuffix(SUFFIX))))


@contextmanager
def taps(
    module: nn.Module, *patterns: str, keep: Callable[[Tensor], Tensor] = torch.clone
) -> Iterator[Mapping[str, Sequence[Tensor]]]:
    """Record outputs of submodules while the block runs.

    Parameters
    ----------
    module : Module
        Such as `pipe.stage("flow", "float32").decoder.estimator`.
    *patterns : str
        Globs of submodule names, such as "transformer_blocks.*.attn".
    keep : callable Tensor -> Tensor
        Turns an output into what is kept: a copy of it, or less.

    Yields
    ------
    mapping of str to list of Tensor
        The kept outputs by name of the submodule, one per call. The hooks are removed when the block ends.

    Raises
    ------
    WorkbenchError
        When no submodule has such a name.

    Examples
    --------
    >>> import torch
    >>> estimator = voice.flow().decoder.estimator
    >>> length = 12  # frames
    >>> x = torch.zeros(2, 80, length)
    >>> with wb.taps(estimator, "transformer_blocks.0.attn") as outputs:
    ...     _ = estimator(x, None, x, torch.zeros(2), torch.zeros(2, 80), x)
    >>> [output.shape[:2] for output in outputs["transformer_blocks.0.attn"]]  # (batch, frame) of one call
    [torch.Size([2, 12])]
    """
    chosen = {name: child for name, child in module.named_modules() if name and _matches(name, patterns)}
    if not chosen:
        some = [name for name, _ in module.named_modules() if name][:8]
        raise WorkbenchError(
            f"no submodule matches {', '.join(patterns) or 'an empty list'}; there are {', '.join(some)}, ..."
        )
    outputs: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def recording(name: str):
        def hook(module, inputs, output) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                outputs[name].append(keep(first.detach()))

        return hook

    handles = [child.register_forward_hook(recording(name)) for name, child in chosen.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _stack(name: str, values: list[Tensor]) -> Tensor:
    """Stack the entries of a field that grows; of any other field return the last value that was added."""
    grows = (dims_of(name) or ("",))[0] in LOOPS
    return torch.stack(values) if grows else values[-1]


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
