"""`layers`: the layers of a checkpoint that have a matrix, and how weights would be stored."""

import os
from collections.abc import Mapping
from functools import lru_cache

import pandas as pd

from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.stage_files import MODELS, on_meta
from workbench.speech.config import Config
from workbench.speech.config.formats import check_globs, format_of, parse_format, rules_of, rules_text
from workbench.speech.models.quantise.modules import LAYERS, layers_of, shape_of
from workbench.speech.models.quantise.quantise import stored_as


def layers(
    checkpoint: Checkpoint, weights: str | Mapping[str, str] | os.PathLike | None = None
) -> pd.DataFrame:
    """Return the table of all layers whose weights `Options(weights=...)` can quantise.

    Parameters
    ----------
    checkpoint : Checkpoint
    weights : str, mapping of str to str, or Path, optional
        As in `Options`.

    Returns
    -------
    DataFrame
        `layer`, its dotted name; `kind`; `shape`; `asked`, the format of the last rule that matches, and
        "float32" without one; `format`, the one that is used, see `quantise`; `nbytes` in it, with scales.

    Raises
    ------
    WorkbenchError
        When a glob matches no layer, or there is no such format.

    Examples
    --------
    >>> table = wb.layers(voice, {"lm": "q4_k"})
    >>> lm = table[table["layer"].str.startswith("lm.")]
    >>> sorted(lm["format"].unique())  # 256 does not divide the 576 columns of some
    ['q4_k', 'q5_0']
    >>> bool(lm["nbytes"].sum() < table["nbytes"].sum() / 10)
    True
    """
    return _table(checkpoint.config, rules_text(weights))


def _table(config: Config, weights: str | None) -> pd.DataFrame:
    rules, shapes = rules_of(weights), _shapes(config)
    check_globs(rules, shapes)
    rows = []
    for name, (kind, shape) in shapes.items():
        asked = format_of(rules, name) or parse_format("float32")
        used, nbytes = stored_as(shape, asked)
        rows.append((name, kind, shape, str(asked), str(used), nbytes))
    return pd.DataFrame(rows, columns=["layer", "kind", "shape", "asked", "format", "nbytes"])


def check_weights(checkpoint: Checkpoint, weights: str | None) -> None:
    """Raise a WorkbenchError for a glob of `Options.weights` that matches no layer."""
    check_globs(rules_of(weights), _shapes(checkpoint.config))


def quantised(checkpoint: Checkpoint, weights: str | None) -> dict[str, str]:
    """Return a sentence for each stage with quantised weights: how many layers have which format.

    Raises
    ------
    WorkbenchError
        When a glob matches no layer.
    """
    return {} if weights is None else dict(_said(checkpoint.config, weights))


@lru_cache(maxsize=64)  # asked of every run
def _said(config: Config, weights: str) -> dict[str, str]:
    table = _table(config, weights)
    said = {}
    for stage in MODELS:
        rows = table[table["layer"].str.startswith(f"{stage}.")]
        counts = rows.groupby(["asked", "format"], sort=False).size()
        if list(counts.index) == [("float32", "float32")]:
            continue
        parts = []
        for (asked, used), count in counts.items():
            parts.append(f"{count} {used}" + (f" in place of {asked}" if used != asked else ""))
        said[stage] = f"{', '.join(parts)}: {rows['nbytes'].sum() / 1e6:.2f} MB"
    return said


@lru_cache(maxsize=16)
def _shapes(config: Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return kind and shape of each layer by its name; callers do not change the dict."""
    found = {}
    for stage in MODELS:
        for name, layer in layers_of(on_meta(stage, config), stage).items():
            kind = next(cls.__name__ for cls in LAYERS if isinstance(layer, cls))
            found[name] = (kind, shape_of(layer))
    return found
