"""Read the tensors of GGUF files with the library gguf, which need not be installed."""

import functools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.trace.importers.dumps.stored_tensor import StoredTensor, check_size, from_numpy, readable

LENGTH = struct.Struct("<Q")  # of a text
PLAIN = re.compile(r"[FI]\d+")  # types that are not quantised
MAX_READS = 300_000  # of the header: 40,000 tensors; bounds memory and time


def gguf_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a GGUF file; see `open_gguf`."""
    return open_gguf(path)[0]


def open_gguf(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Return the tensors of a GGUF file, and the numbers and texts of its header, without lists.

    Quantised tensors are read as float32, bfloat16 as it is; shapes are in row-major order.

    Raises
    ------
    WorkbenchError
        When the library gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise WorkbenchError(
            f"{path.name} is a GGUF file, which the library gguf reads: pip install gguf"
        ) from error

    class BoundedReader(gguf.GGUFReader):
        """A reader that ends at the end of the file, whatever lengths the header claims."""

        n_reads = 0

        def _get(self, offset, dtype, count=1, override_order=None):
            self.n_reads += 1
            if self.n_reads > MAX_READS:
                raise WorkbenchError(f"{path.name}: the header has more than {MAX_READS:,} entries")
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise WorkbenchError(f"{path.name} is truncated: its header claims more bytes than there are")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs, raw_type):
            """Step over lists such as a vocabulary, which would become an array for each word."""
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            item_type = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
            count = int(self._get(orig_offs + 4, np.uint64)[0])
            end = orig_offs + 12
            if item_type == gguf.GGUFValueType.STRING:
                content = memoryview(self.data)
                for _ in range(count):
                    end += 8 + LENGTH.unpack_from(content, end)[0]
            else:
                end += count * np.dtype(self.gguf_scalar_to_np[item_type]).itemsize
            self._get(end, np.uint8, 0)  # which refuses what lies behind the end of the file
            return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY, item_type]

    def read(tensor: gguf.ReaderTensor) -> Tensor:
        size = int(tensor.n_elements) * 4
        with readable(path):
            check_size(tensor.name, size)
            kind = tensor.tensor_type.name
            if PLAIN.fullmatch(kind):
                return from_numpy(np.array(tensor.data))
            if kind == "BF16":
                return torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16)
            try:
                return from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            except NotImplementedError as error:
                raise WorkbenchError(
                    f"{path.name}: {tensor.name} is in {kind}, which the library gguf does not dequantise; "
                    "take a file in Q8_0, Q6_K or Q4_K"
                ) from error

    with np.errstate(all="raise"):
        reader = BoundedReader(path)
    found = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        found[tensor.name] = StoredTensor(
            tuple(map(int, reversed(tensor.shape))),
            functools.partial(read, tensor),
            quantised="" if kind == "BF16" or PLAIN.fullmatch(kind) else kind,
            nbytes=int(tensor.n_bytes),
        )
    is_single = {name: field.types[:1] != [gguf.GGUFValueType.ARRAY] for name, field in reader.fields.items()}
    header = {name: field.contents() for name, field in reader.fields.items() if is_single[name]}
    return found, header
