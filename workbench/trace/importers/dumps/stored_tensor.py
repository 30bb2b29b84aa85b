"""A tensor in a file of another program, and the checks that all readers of such files share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, first_line
from workbench.trace.trace import FLOATS

MAX_BYTES = 4 << 30  # of one dump, 4 GiB: every step of the ODE for an hour of speech fits
# A compressed file can claim any size. Recordings of speech shrink to a half; zeros are what shrinks further.
MAX_EXPANSION = 50  # bytes of tensors for each byte of the file ...
FREE_BYTES = 64 << 20  # ... above so many bytes


class StoredTensor(NamedTuple):
    """One tensor of a dump, not yet read."""

    shape: tuple[int, ...] | None  # None where the file's header is broken; `read` then says how
    read: Callable[[], Tensor]
    aliases: tuple[str, ...] = ()  # other names that a mapping may use
    quantised: str = ""  # the type in the file, where reading turns it into float32
    nbytes: int = 0  # in the file, where it is known


def max_bytes(file_size: int) -> int:
    """Return how many bytes the tensors of a file may take in memory."""
    return min(MAX_BYTES, FREE_BYTES + MAX_EXPANSION * file_size)


def check_size(name: str, size: int, limit: int = MAX_BYTES) -> None:
    """Raise a WorkbenchError for a tensor of more bytes than a limit."""
    if size > limit:
        allowed = f"{limit >> 30} GiB" if limit == MAX_BYTES else f"{limit >> 20} MiB for a file of this size"
        raise WorkbenchError(f"{name} takes {size / 2**30:.1f} GiB; expected {allowed} at most")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error of reading a file into a WorkbenchError of one line.

    The readers of other formats raise whatever comes up for a broken file, so nothing narrower is caught.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except UnpicklingError as error:
        # torch names the class as "GLOBAL numpy.dtype was not an allowed global by default".
        named = str(error).partition("GLOBAL ")[2].split()
        what = f"objects such as {named[0]}" if named else "more than tensors"
        raise WorkbenchError(
            f"{path.name} holds {what} and was not opened; save plain tensors, no objects"
        ) from error
    except Exception as error:
        raise WorkbenchError(f"{path.name} cannot be read: {first_line(error)}") from error


def from_numpy(array: np.ndarray) -> Tensor:
    """Return an array of any byte order and strides as a tensor."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))


def plain_tensor(name: str, value: Tensor, limit: int) -> Tensor:
    """Return a dense tensor on the CPU, floats as they are and integers as int64.

    Raises
    ------
    WorkbenchError
        When the tensor is sparse, quantised, of complex or 8-bit floats, has no values, or takes more bytes
        than `limit`.
    """
    dtype = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        kind = "meta" if value.device.type == "meta" else "quantised" if value.is_quantized else "sparse"
        raise WorkbenchError(f"{name} is a {kind} tensor; expected a dense one: save it dense, as float32")
    is_float = value.dtype in FLOATS
    if not is_float and (value.is_floating_point() or value.is_complex()):
        raise WorkbenchError(f"{name} is {dtype}; expected float16, bfloat16, float32, float64 or integers")
    # An expanded tensor is small in the file and large when it is copied.
    check_size(name, value.numel() * (value.element_size() if is_float else 8), limit)
    return value.detach().cpu() if is_float else value.detach().cpu().long()
