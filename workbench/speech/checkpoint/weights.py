"""Weight files: read without running code in them, renamed to upstream's names, checked and hashed."""

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
EMBED = "llm.model.model.embed_tokens.weight"
HEAD = "llm.model.lm_head.weight"  # the same tensor as the embedding
TRAINER_KEYS = ("epoch", "step")  # numbers that the trainer adds to a state dict
MAX_PROBLEMS = 5  # listed in an error message


def read_weights(path: Path) -> dict[str, Any]:
    """Read a `.pt` or `.safetensors` file, memory-mapped, without running code in it.

    Raises
    ------
    WorkbenchError
        When it cannot be read, is cut short, or claims more bytes than it has.
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
    except Exception as error:  # torch's unpickler raises any kind of exception for damaged bytes
        raise WorkbenchError(
            f"{path} holds no plain weights ({first_line(error)}); expected names with tensors, as "
            "torch.save writes a state_dict. Copy the file again, or save the state_dict without objects"
        ) from error
    if not isinstance(found, dict):
        raise WorkbenchError(
            f"{path} holds a {type(found).__name__}; expected a state_dict: names with tensors"
        )
    return found


def _check_zip(path: Path) -> None:
    """Refuse archives that torch.save never writes, or that would unpack to more bytes than the file has."""
    if not zipfile.is_zipfile(path):
        raise WorkbenchError(
            f"{path} is no zip archive, or is cut short; expected a file that torch.save wrote (1.6 or later)"
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    compressed = [
        e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size
    ]
    if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WorkbenchError(
            f"{path} holds compressed or overlapping entries; expected them stored, as torch.save does"
        )


def with_upstream_names(stage: str, found: dict[Any, Any], path: Path) -> dict[str, Any]:
    """Return the content of a stage's file under the names that upstream uses at inference."""
    found = {str(key): value for key, value in found.items()}
    for name in TRAINER_KEYS:
        if isinstance(found.get(name), int):
            del found[name]
    if stage == "hift":
        found = _rename_hift(found, path)
    if stage == "lm":
        _tie_embedding(found)
    return found


def _rename_hift(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Drop the prefix of the GAN trainer, and name the parts of weight norm as torch 2 does."""
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


def _tie_embedding(found: dict[str, Any]) -> None:
    """Make head and embedding one tensor if the file has one of them or two equal ones."""
    embed, head = found.get(EMBED), found.get(HEAD)
    if embed is None and head is None:
        return
    if embed is None or head is None:
        found[EMBED] = found[HEAD] = head if embed is None else embed
    elif is_dense(embed) and is_dense(head) and embed.dtype == head.dtype and torch.equal(embed, head):
        found[HEAD] = embed


def select_weights(
    found: dict[str, Any], expected: dict[str, tuple[int, ...]], path: Path
) -> dict[str, Tensor]:
    """Return the tensors in the order of `expected`.

    Raises
    ------
    WorkbenchError
        When names, shapes or types are not those of `expected`; it lists the first differences.
    """
    wrong = []
    missing = []
    for key, shape in expected.items():
        if key not in found:
            missing.append(f"{key}: expected {shape}, found nothing")
        elif not _fits(found[key], shape):
            wrong.append(f"{key}: expected {shape} float16, bfloat16 or float32, found {_kind(found[key])}")
    extra = [
        f"{key[:120]}: expected nothing, found {_kind(found[key])}" for key in found if key not in expected
    ]

    # List problems of all three kinds, taking turns.
    turns = zip_longest(wrong, extra, missing)
    problems = [problem for turn in turns for problem in turn if problem]
    if problems:
        more = f"\n  and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        listed = "\n  ".join(problems[:MAX_PROBLEMS])
        raise WorkbenchError(
            f"{path} does not fit cosyvoice3.yaml: {len(wrong)} of another shape or type, "
            f"{len(extra)} unexpected, {len(missing)} missing:\n  {listed}{more}\n"
            f"Is it from the same checkpoint? `workbench inspect {path.parent}` lists what is there"
        )
    # Detach each tensor once, so that two names of one tensor stay two names of one tensor.
    detached = {id(value): value.detach() for value in found.values()}
    return {key: detached[id(found[key])] for key in expected}


def is_dense(value: Any) -> bool:
    """Whether a value is a dense tensor with memory of its own for each element."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    return is_dense(value) and tuple(value.shape) == shape and value.dtype in DTYPES


def _kind(value: Any) -> str:
    """Return shape and type for an error message."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    dense = "" if is_dense(value) else ", not dense"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{dense}"


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors of which no two share memory, as safetensors requires."""
    addresses: set[int] = set()
    result = {}
    for key, value in tensors.items():
        address = value.untyped_storage().data_ptr()
        is_shared = address in addresses
        result[key] = value.clone(memory_format=torch.contiguous_format) if is_shared else value.contiguous()
        addresses.add(address)
    return result


def hash_weights(weights: dict[str, dict[str, Tensor]]) -> str:
    """Return the sha256 of names, types, shapes and values of all stages."""
    digest = hashlib.sha256()
    for stage, key, value in _ordered(weights):
        digest.update(f"{stage}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def count_nonfinite(weights: dict[str, dict[str, Tensor]]) -> dict[str, int]:
    """Return the number of NaN and Inf of each stage."""
    counts = dict.fromkeys(weights, 0)
    for stage, _, value in _ordered(weights):
        counts[stage] += value.numel() - int(value.isfinite().sum())
    return counts


def _ordered(weights: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, str, Tensor]]:
    for stage in sorted(weights):
        for key in sorted(weights[stage]):
            yield stage, key, weights[stage][key]


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
