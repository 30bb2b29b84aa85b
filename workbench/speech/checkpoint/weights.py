"""Weight files: read without running code in them, checked and hashed."""

import hashlib
import zipfile
from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.files import check_regular
from workbench.speech.checkpoint.quantised import torchao_weights as torchao
from workbench.speech.checkpoint.quantised.gguf_weights import read_gguf
from workbench.speech.checkpoint.weight_names import EMBED, HEAD

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Packages whose objects trainers store beside the weights. Placeholders are read in their place.
SIDE_OBJECTS = frozenset(
    (
        *("numpy", "_codecs", "argparse", "collections", "datetime", "pathlib", "types", "enum", "typing"),
        *("omegaconf", "deepspeed", "lightning", "pytorch_lightning", "lightning_fabric", "transformers"),
    )
)
LEGACY_PT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save began with before 1.6
MAX_PROBLEMS = 5  # listed in an error message


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weight file, memory-mapped where it can be, without running code in it.

    Parameters
    ----------
    path : Path
        .safetensors, .gguf, or what torch.save wrote.

    Returns
    -------
    dict
        Names with tensors, with `Dequantised` where a tensor is quantised in the file, and with whatever
        plain values a trainer stored beside them.

    Raises
    ------
    WorkbenchError
        When it cannot be read, is cut short, or claims more bytes than it has.
    """
    if path.suffix == ".gguf":
        return read_gguf(path)[0]
    try:
        check_regular(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                header = file.metadata()
            return torchao.unflattened(load_file(path), header, path.name)
        if _is_legacy(path):
            # Before torch 1.6, one pickle after the other: read into memory, each storage as long as it says.
            found = torch.load(path, weights_only=True, map_location="cpu")
        else:
            _check_zip(path)
            found = _load_pickle(path)
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
    if isinstance(found, list | tuple) and any(isinstance(item, dict) for item in found):
        found = {str(i): item for i, item in enumerate(found)}  # such as (state_dict, epoch)
    if not isinstance(found, dict):
        raise WorkbenchError(
            f"{path} holds a {type(found).__name__}; expected a state_dict: names with tensors"
        )
    torchao.dequantise_torchao(found, path)
    return found


class ForeignObject:
    """Stands for an object of another package in a file; it holds nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _load_pickle(path: Path) -> Any:
    """Load what torch.save wrote: tensors, and placeholders for objects that trainers store beside them."""
    classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    replaced = {name: ForeignObject for name in classes}
    replaced |= {name: torchao.placeholder(name) for name in classes if name.split(".")[0] == torchao.PACKAGE}
    foreign = [name for name in classes if name.split(".")[0] not in (*SIDE_OBJECTS, torchao.PACKAGE)]
    if foreign:
        raise WorkbenchError(
            f"{path} holds no plain weights: it stores objects of {', '.join(sorted(foreign)[:3])}, and "
            "nothing but tensors is read. Where that class is at hand, save model.state_dict()"
        )
    with torch.serialization.safe_globals([(cls, name) for name, cls in replaced.items()]):
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def _is_legacy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LEGACY_PT)) == LEGACY_PT


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


def tie_embedding(found: dict[str, Any]) -> None:
    """Make head and embedding one tensor if the file has one of them or two equal ones."""
    embed, head = found.get(EMBED), found.get(HEAD)
    if embed is None and head is None:
        return
    if embed is None or head is None:
        found[EMBED] = found[HEAD] = head if embed is None else embed
    elif is_dense(embed) and is_dense(head) and embed.dtype == head.dtype and torch.equal(embed, head):
        found[HEAD] = embed


def select_weights(
    found: dict[str, Any], expected: dict[str, tuple[int, ...]], path: Path, notes: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors in the order of `expected`; `notes` says what was changed to find them.

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
            wrong.append(
                f"{key}: expected {shape} float16, bfloat16 or float32, found {describe(found[key])}"
            )
    extra = [
        f"{key[:120]}: expected nothing, found {describe(found[key])}" for key in found if key not in expected
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
            f"{''.join(f'{note}. ' for note in notes)}{_common_start(found, expected)}"
            f"Is it from the same checkpoint? `workbench inspect {path.parent}` lists what is there"
        )
    # Detach each tensor once, so that two names of one tensor stay two names of one tensor.
    detached = {id(value): value.detach() for value in found.values()}
    return {key: detached[id(found[key])] for key in expected}


def _common_start(found: Collection[str], expected: Collection[str]) -> str:
    """Return a sentence about the start that all names share and that is not expected; empty without one."""
    shared = []
    ends = (min(found, default="").split("."), max(found, default="").split("."))  # in the order of names
    for first, last in zip(*ends, strict=False):
        if first != last:
            break
        shared.append(first)
    start = ".".join(shared)
    if len(found) < 2 or not start or any(name.startswith(f"{start}.") for name in expected):
        return ""
    return f"All {len(found)} names begin with {start[:80]!r}. "


def is_dense(value: Any) -> bool:
    """Whether a value is a dense tensor with memory of its own for each element."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def narrowest(value: Tensor) -> Tensor:
    """Return a tensor of floats in the first of float16, bfloat16 and float32 that holds its values."""
    start = value.reshape(-1)[:4096]  # decides most cases at once
    for dtype in (torch.float16, torch.bfloat16):
        if _holds(dtype, start) and _holds(dtype, value):
            return value.to(dtype)
    return value.to(torch.float32)


def _holds(dtype: torch.dtype, value: Tensor) -> bool:
    return torch.allclose(value.to(dtype).to(value.dtype), value, rtol=0, atol=0, equal_nan=True)


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    return is_dense(value) and tuple(value.shape) == shape and value.dtype in DTYPES


def describe(value: Any) -> str:
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
    """Return the sha256 of names, shapes and values of all stages, whatever type the values are stored in."""
    digest = hashlib.sha256()
    for stage, key, stored in _ordered(weights):
        value = stored if stored.dtype == torch.float16 else narrowest(stored)
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
