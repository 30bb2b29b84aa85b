"""List the tensors in a folder of weights, which may be broken or not CosyVoice3 at all."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.speech.checkpoint.files import STEMS
from workbench.speech.checkpoint.hyperyaml import show
from workbench.speech.checkpoint.weights import hash_file, is_dense, read_weights

if TYPE_CHECKING:
    import pandas as pd


def inspect_folder(folder: str | Path, prefix: str = "") -> "pd.DataFrame":
    """List every tensor of every weight file in a folder.

    Parameters
    ----------
    folder : str or Path
        Any folder; it needs no configuration.
    prefix : str
        Keep rows whose `stage.key` starts with this, such as "flow.decoder".

    Returns
    -------
    pandas.DataFrame
        One row per tensor: file, stage, key, shape, dtype, MB, nan, inf, note. A file that cannot be read has
        one row, whose note is the reason. `attrs["sha256"]` has the hash of each file.
    """
    import pandas as pd

    folder = Path(folder)
    if not folder.is_dir():
        raise WorkbenchError(
            f"{folder} is not a folder; expected one with weight files (.pt, .safetensors, .onnx)"
        )
    stages = {f"{stem}{suffix}": stage for stage, stem in STEMS.items() for suffix in (".pt", ".safetensors")}
    stages |= {"llm.rl.pt": "lm", "llm.rl.safetensors": "lm"}
    rows: list[dict[str, Any]] = []
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".pt", ".safetensors", ".onnx") or not path.is_file():
            continue
        stage = stages.get(path.name, path.stem)
        try:
            hashes[path.name] = hash_file(path)
            entries = _onnx_entries(path) if path.suffix == ".onnx" else _flatten(read_weights(path))
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
        row |= {"nan": int(value.isnan().sum()), "inf": int(value.isinf().sum())}
    return row


def _onnx_entries(path: Path) -> Iterator[tuple[str, Any]]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise WorkbenchError(f"{path} is not an ONNX model ({first_line(error)}); copy it again") from error
    for tensor in graph.initializer:
        try:
            yield tensor.name, torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        except (ValueError, TypeError, OSError):  # external data, or a type torch does not know
            n = math.prod(tensor.dims)
            yield tensor.name, f"{n} values, {onnx.TensorProto.DataType.Name(tensor.data_type)}"
