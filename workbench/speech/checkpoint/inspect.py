"""List the tensors in a file or folder of weights, which may be broken or not CosyVoice3 at all."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files import about_address
from workbench.speech.checkpoint.files import RL, STEMS, SUFFIXES
from workbench.speech.checkpoint.hyperyaml import show
from workbench.speech.checkpoint.quantised.dequantised import Dequantised
from workbench.speech.checkpoint.quantised.onnx_weights import onnx_entries
from workbench.speech.checkpoint.weights import hash_file, is_dense, read_weights

if TYPE_CHECKING:
    import pandas as pd

MAX_FLOAT16 = 65504.0
MIN_FLOAT16 = 2.0**-24  # smaller values round to zero or to this
MIN_NORMAL_FLOAT16 = 2.0**-14  # smaller values have fewer digits
NORMS = ("original0", "weight_g")  # last part of the name of a norm in weight norm
DIRECTIONS = ("original1", "weight_v")  # last part of the name of a direction in weight norm


def inspect_folder(folder: str | Path, prefix: str = "") -> "pd.DataFrame":
    """List every tensor of a weight file, or of every one in a folder.

    Parameters
    ----------
    folder : str or Path
        Any folder, which needs no configuration, or a single file.
    prefix : str
        Keep rows whose `stage.key` starts with this, such as "flow.decoder".

    Returns
    -------
    pandas.DataFrame
        One row per tensor: file, stage, key, shape, dtype, MB, nan, inf, note. A note tells what breaks ports
        that compute in float16. A quantised tensor has its format as dtype, the shape and the values after
        dequantisation, and the MB of the file. A file that cannot be read has one row, whose note is the
        reason.
        `attrs["sha256"]` has the hash of each file.

    Raises
    ------
    WorkbenchError
        When it does not exist, or holds no weight files.
    """
    import pandas as pd

    folder = Path(folder)
    is_file = os.path.isfile(folder)  # Path.is_file raises an OSError for a name that is too long
    if not is_file and not os.path.isdir(folder):
        raise WorkbenchError(
            f"{folder} is neither a file nor a folder; expected weights (.pt, .safetensors, .gguf, .onnx)"
            f"{about_address(folder)}"
        )
    stages = {f"{stem}{suffix}": stage for stage, stem in STEMS.items() for suffix in SUFFIXES}
    stages |= {f"{RL}{suffix}": "lm" for suffix in SUFFIXES}
    rows: list[dict[str, Any]] = []
    hashes = {}
    candidates = [folder] if is_file else sorted(folder.iterdir())
    paths = [p for p in candidates if p.suffix in (*SUFFIXES, ".onnx") and p.is_file()]
    if not paths:
        kinds = ", ".join((*SUFFIXES, ".onnx"))
        raise WorkbenchError(
            f"{folder} holds no tensors: no file of {kinds}; expected a checkpoint folder, or such a file"
        )
    for path in paths:
        stage = stages.get(path.name, path.stem)
        try:
            hashes[path.name] = hash_file(path)
            entries = onnx_entries(path) if path.suffix == ".onnx" else _flatten(read_weights(path))
            found = [_describe(k, value) for k, value in entries if f"{stage}.{k}".startswith(prefix)]
        except (WorkbenchError, OSError) as error:
            found = [{"key": "", "note": str(error)}]
        rows += [{"file": path.name, "stage": stage} | row for row in found]
    columns = ["file", "stage", "key", "shape", "dtype", "MB", "nan", "inf", "note"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["MB"] = frame["MB"].fillna(0.0).astype(float)
    for name in ("nan", "inf"):
        frame[name] = frame[name].fillna(0).astype(int)
    for name in ("shape", "dtype", "note"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "")
    frame.attrs["sha256"] = hashes
    return frame


def _flatten(found: dict[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, dict) and depth < 8:
            yield from _flatten(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _describe(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Dequantised):
        return _describe(key, value.values) | {"dtype": value.format, "MB": value.nbytes / 1e6}
    if not isinstance(value, Tensor):
        return {"key": key, "dtype": type(value).__name__, "note": show(value)}
    row: dict[str, Any] = {
        "key": key,
        "shape": tuple(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "MB": value.numel() * value.element_size() / 1e6,
    }
    if not is_dense(value):
        return row | {"note": "not dense: values not counted"}
    if value.is_floating_point():
        value = value.float() if value.element_size() == 1 else value  # torch does not look into 8-bit floats
        row |= {"nan": int(value.isnan().sum()), "inf": int(value.isinf().sum())}
        row["note"] = _float16_note(key, value)
    return row


def _float16_note(key: str, value: Tensor) -> str:
    """Say which values a port cannot use in float16; empty where it can use all of them."""
    value = value.detach()
    if value.dtype != torch.float16:
        size = value.abs().nan_to_num(0, posinf=0)
        n_large = int((size > MAX_FLOAT16).sum())
        if n_large:
            return (
                f"{n_large} of {value.numel()} values leave float16: the largest is {float(size.max()):.3g}"
            )
    name = key.split(".")[-1]
    if name not in ("alpha", *NORMS, *DIRECTIONS):
        return ""
    wide = value.double()
    finite = wide[wide.isfinite()].abs()
    if name == "alpha":  # of a Snake, which divides by it
        n_small = int((finite < 1 / MAX_FLOAT16).sum())
        if n_small:
            return (
                f"1 / alpha leaves float16 in {n_small} of {value.numel()} channels: the smallest alpha is "
                f"{float(finite.min()):.2g}; clamp 1 / alpha, or keep the activation in float32"
            )
    if name in DIRECTIONS and value.ndim > 1:  # of weight norm, which divides by its norm
        norms = wide.flatten(1).norm(dim=1)
        n_outside = int(((norms.square() < MIN_FLOAT16) | (norms.square() > MAX_FLOAT16)).sum())
        if n_outside:
            return (
                f"the squared norm leaves float16 in {n_outside} of {len(norms)} filters: norms from "
                f"{float(norms.min()):.2g} to {float(norms.max()):.2g}; multiply weight norm out in float32"
            )
    if name in NORMS and bool((finite < MIN_NORMAL_FLOAT16).any()):
        n_small = int((finite < MIN_NORMAL_FLOAT16).sum())
        return f"{n_small} of {value.numel()} norms are near zero: the smallest is {float(finite.min()):.2g}"
    return ""
