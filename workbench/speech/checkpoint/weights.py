"""Weight files: read without running anything in them, names made one, shapes checked, hashed."""

import hashlib
import zipfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.errors import WorkbenchError, first_line

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EMBED, HEAD = "llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"  # one tensor, two names


def read_weights(path: Path) -> dict[str, Any]:
    """Read a `.pt` or `.safetensors` file, memory-mapped, without running anything in it.

    Raises
    ------
    WorkbenchError
        When it cannot be read, is cut short, or holds more than its size.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_zip(path)
        found = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except WorkbenchError:
        raise
    except (SafetensorError, OSError, zipfile.BadZipFile) as error:
        raise WorkbenchError(
            f"{path} cannot be read ({first_line(error)}); is it complete? Copy it again"
        ) from error
    except Exception as error:  # torch's unpickler answers damaged bytes with any kind of exception
        raise WorkbenchError(
            f"{path} holds no plain weights ({first_line(error)}); expected names with tensors, as "
            "torch.save writes a state_dict. Copy the file again, or save its state_dict alone"
        ) from error
    if not isinstance(found, dict):
        raise WorkbenchError(
            f"{path} holds a {type(found).__name__}; expected a state_dict: names with tensors"
        )
    return found


def _check_zip(path: Path) -> None:
    """Refuse what torch.save never writes and what would unpack to more than the file."""
    if not zipfile.is_zipfile(path):
        raise WorkbenchError(
            f"{path} is no zip archive, or is cut short; expected a file of torch.save (1.6 or later)"
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = [
        e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size
    ]
    if packed or sum(e.file_size for e in entries) > path.stat().st_size:
        raise WorkbenchError(
            f"{path} holds compressed or overlapping entries; expected them stored, as torch.save does"
        )


def normalised(stage: str, found: dict[Any, Any], path: Path) -> dict[str, Any]:
    """Rename what a file of a stage may hold to upstream's names at inference."""
    found = {str(key): value for key, value in found.items()}
    for name in ("epoch", "step"):  # what the trainer adds
        if isinstance(found.get(name), int):
            del found[name]
    if stage == "hift":
        found = _rename_hift(found, path)
    if stage == "lm":
        _tie(found)
    return found


def _rename_hift(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Drop the GAN trainer's prefix, and name weight norm as torch 2 does."""
    renamed: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("generator.", "")
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            if name.endswith(f".{old}"):
                name = f"{name.removesuffix(old)}parametrizations.weight.{new}"
        if name in renamed:
            raise WorkbenchError(f"{path}: {key} and another key both mean {name}; expected one of them")
        renamed[name] = value
    return renamed


def _tie(found: dict[str, Any]) -> None:
    """Make head and embedding one tensor where the file has one of them, or two equal ones."""
    embed, head = found.get(EMBED), found.get(HEAD)
    if embed is None and head is None:
        return
    if embed is None or head is None:
        found[EMBED] = found[HEAD] = head if embed is None else embed
    elif plain(embed) and plain(head) and embed.dtype == head.dtype and torch.equal(embed, head):
        found[HEAD] = embed


def fitted(found: dict[str, Any], expected: dict[str, tuple[int, ...]], path: Path) -> dict[str, Tensor]:
    """Return the tensors in the order of `expected`, or say which do not have its names and shapes."""
    wrong = [
        f"{key}: expected {shape} float16, bfloat16 or float32, found {_kind(found[key])}"
        for key, shape in expected.items()
        if key in found and not _fits(found[key], shape)
    ]
    extra = [
        f"{key[:120]}: expected nothing, found {_kind(found[key])}" for key in found if key not in expected
    ]
    missing = [
        f"{key}: expected {shape}, found nothing" for key, shape in expected.items() if key not in found
    ]
    if problems := [p for row in zip_longest(wrong, extra, missing) for p in row if p]:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "\n  ".join(problems[:5])
        raise WorkbenchError(
            f"{path} does not fit cosyvoice3.yaml: {len(wrong)} of another shape or type, "
            f"{len(extra)} unexpected, {len(missing)} missing:\n  {listed}{more}\n"
            f"Is it from the same checkpoint? `workbench inspect {path.parent}` lists what is there"
        )
    apart = {id(value): value.detach() for value in found.values()}  # tied ones stay one
    return {key: apart[id(found[key])] for key in expected}


def plain(value: Any) -> bool:
    """Whether it is a dense tensor with memory of its own for every value."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    return plain(value) and tuple(value.shape) == shape and value.dtype in DTYPES


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    dense = "" if plain(value) else ", not dense"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{dense}"


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        result[key] = (
            value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        )
        seen.add(place)
    return result


def hash_weights(weights: dict[str, dict[str, Tensor]]) -> str:
    """Hash names, types, shapes and values of every stage, whatever kind of file they came from."""
    digest = hashlib.sha256()
    for stage, key, value in _ordered(weights):
        digest.update(f"{stage}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def count_nonfinite(weights: dict[str, dict[str, Tensor]]) -> dict[str, int]:
    """Count the NaN and Inf of each stage."""
    counts = dict.fromkeys(weights, 0)
    for stage, _, value in _ordered(weights):
        counts[stage] += value.numel() - int(value.isfinite().sum())
    return counts


def _ordered(weights: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, str, Tensor]]:
    for stage in sorted(weights):
        for key in sorted(weights[stage]):
            yield stage, key, weights[stage][key]


def hash_file(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
