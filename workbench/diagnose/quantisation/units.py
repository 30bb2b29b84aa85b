"""The parts of a model that are quantised together: a stage, its blocks, their layers."""

from collections.abc import Callable, Iterable

from workbench.diagnose.quantisation.measure import References
from workbench.speech.config import STAGES


class Tree:
    """All layers of a voice as a tree: stages, blocks, layers.

    A block is a layer of a list that repeats, such as one transformer block, or a layer outside of lists.
    """

    def __init__(self, references: References) -> None:
        self.layers = [name for stage in STAGES for name in references.layers(stage)]

    def blocks(self, stage: str | None = None) -> list[str]:
        """Return the blocks of a stage, or of all, in the order of the model."""
        names = [name for name in self.layers if stage is None or name.startswith(f"{stage}.")]
        return list(dict.fromkeys(block_of(name) for name in names))

    def parts(self, unit: str) -> list[str]:
        """Return the units one level below; none below a layer."""
        if unit in STAGES:
            return self.blocks(unit)
        return [name for name in self.layers if name.startswith(f"{unit}.")]


def block_of(layer: str) -> str:
    """Return the block that holds a layer: its name up to the first number.

    >>> block_of("flow.decoder.estimator.transformer_blocks.3.attn.to_q")
    'flow.decoder.estimator.transformer_blocks.3'
    >>> block_of("lm.llm_decoder")
    'lm.llm_decoder'
    """
    parts = layer.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return layer


def weights_of(formats: Iterable[tuple[str, str]]) -> str:
    """Return rules as `Options.weights` has them, from pairs of a unit and its format."""
    return ";".join(f"{unit}={name}" for unit, name in formats)


def largest_count(n: int, first: int, fits: Callable[[int], bool]) -> int:
    """Return the largest count from 0, which fits, to `n` that fits; `first` is tried first, then by halving.

    What is larger than a count that does not fit is taken not to fit.

    >>> largest_count(10, 10, lambda count: count <= 3)
    3
    """
    low, high, count = 0, n, first
    while low < high:
        if fits(count):
            low = count
        else:
            high = count - 1
        count = (low + high + 1) // 2
    return low
