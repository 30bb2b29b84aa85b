"""The parts of a model that are quantised together: a stage, its blocks, their layers."""

from collections.abc import Iterable

from workbench.diagnose.quantisation.measure import STAGES_IN_ORDER, References


class Tree:
    """All layers of a voice as a tree: stages, blocks, layers.

    A block is a layer of a list that repeats, such as one transformer block, or a layer outside of lists.
    """

    def __init__(self, references: References) -> None:
        self.layers = [name for stage in STAGES_IN_ORDER for name in references.layers(stage)]

    def blocks(self, stage: str | None = None) -> list[str]:
        """Return the blocks of a stage, or of all, in the order of the model."""
        names = [name for name in self.layers if stage is None or name.startswith(f"{stage}.")]
        return list(dict.fromkeys(block_of(name) for name in names))

    def parts(self, unit: str) -> list[str]:
        """Return the units one level below; none below a layer."""
        if unit in STAGES_IN_ORDER:
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
