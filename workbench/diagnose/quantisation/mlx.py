"""The key `quantization` of an mlx-lm `config.json`: group size and bits of each module, or false.

mlx-lm and mlx-audio look a module's path up in this dict when they load weights, and else quantise what has
scales in the file. `group_size` and `bits` beside the paths are the defaults; mlx-audio also leaves out each
layer whose rows are no multiple of that group size.
"""

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.speech.config.formats import parse_format

STACK, MLX_STACK = "lm.llm.model.model.", "model."  # the decoder of Qwen2, here and in mlx-lm
LM = "lm."


def mlx_quantization(layers: pd.DataFrame) -> dict[str, object]:
    """Return what `config.json` has under "quantization" for the LM.

    Parameters
    ----------
    layers : DataFrame
        Of `workbench.layers`: `layer`, `format`.

    Raises
    ------
    WorkbenchError
        When a layer of the LM has a format that MLX does not have, or none has one of MLX.
    """
    modules: dict[str, object] = {}
    groups, bits = [], []
    for layer, name in zip(layers["layer"], layers["format"], strict=True):
        if not layer.startswith(LM):
            continue
        used = parse_format(name)
        if used.kind.family not in ("mlx", "float"):
            raise WorkbenchError(
                f"{layer} is in {name}, which MLX does not have; try formats=('float16', 'mlx8', 'mlx4')"
            )
        is_in_stack = layer.startswith(STACK)
        path = MLX_STACK + layer.removeprefix(STACK) if is_in_stack else layer.removeprefix(LM)
        modules[path] = False
        if used.kind.family == "mlx":
            modules[path] = {"group_size": used.block, "bits": int(used.kind.bits)}
            groups.append(used.block)
            bits.append(int(used.kind.bits))
    if not groups:
        raise WorkbenchError("no layer of the LM is in a format of MLX; try formats=('mlx8', 'mlx4')")
    # The smallest group divides all rows that a larger one divides.
    return {"group_size": min(groups), "bits": min(bits), "mode": "affine", **modules}
