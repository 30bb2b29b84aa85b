"""Measure what formats of weights gain the LM, which reads all its weights for every token.

`workbench bench formats` prints it. The products are those of one token, in the kernels that torch itself has
for a format. In every round the formats take turns, so that all see the same machine.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.diagnose.benchmarks.trace_overhead import now
from workbench.speech.config import LMConfig
from workbench.speech.config.formats import parse_format
from workbench.speech.fast.cuda_graphs import CudaGraph, CudaGraphPool
from workbench.speech.models.numerics import exact_float32
from workbench.speech.models.quantise.codes import codes_of
from workbench.speech.models.quantise.quantise import quantise

BASE = "bfloat16"  # what the others are compared with
REPEATS = {"cuda": 20, "cpu": 1}  # tokens of a turn
INNER_TILES = 8  # how torch's int4 kernel for GPUs lays out weights; 8 fits all widths of the LM


class Kernel(NamedTuple):
    """A kernel of torch, and what it reads beside the input."""

    name: str
    multiply: Callable[..., Tensor]  # (x, *stored) -> result
    stored: tuple[Tensor, ...]  # weights and scales


def measure_format_speed(
    config: LMConfig,
    device: str = "cpu",
    rounds: int = 5,
    watch: Callable[[Iterator, int], Iterator] = lambda steps, n: steps,
) -> pd.DataFrame:
    """Time the products of one token in each format that torch has a kernel for on this device.

    Parameters
    ----------
    config : LMConfig
        Sizes; the weights are random.
    device : str
    rounds : int
        One more goes before, to warm up.
    watch : callable (iterator, total) -> iterator
        May show a progress bar.

    Returns
    -------
    DataFrame
        One row a format. `format`; `kernel` of torch; `megabytes` of weights and scales that a token reads;
        `ms` of its products; `error`, the largest of a product against its dequantised weights in float32,
        relative to the largest value; `bytes_ratio` and `time_ratio`, those of bfloat16 over these. `note`
        says why there is no figure.
    """
    place = torch.device(device)
    torch.manual_seed(0)
    pool = CudaGraphPool(place, exact_float32)
    rows: dict[str, dict] = {}
    runs: dict[str, CudaGraph] = {}
    kept: list[_TokenProducts] = []  # a graph reads the weights, and does not keep them
    for text, prepare in KERNELS.items():
        rows[text] = {"format": text, "note": ""}
        try:
            products = _token_products(config, place, text, prepare)
            kept.append(products)
            runs[text] = pool.capture(lambda products=products: [product() for product in products.calls])
            rows[text] |= {
                "kernel": products.kernel,
                "megabytes": products.n_bytes / 1e6,
                "error": products.error,
            }
        except (RuntimeError, NotImplementedError) as error:  # torch has no kernel for this device or size
            rows[text]["note"] = str(error).strip().split("\n", 1)[0][:200]

    seconds: dict[str, list[float]] = {text: [] for text in runs}
    turns = [(number, text) for number in range(rounds + 1) for text in runs]
    repeats = REPEATS[place.type]
    for number, text in watch(iter(turns), len(turns)):
        start = now(place)
        for _ in range(repeats):
            runs[text]()
        if number > 0:  # the first round warms up
            seconds[text].append((now(place) - start) / repeats)
    for text, durations in seconds.items():
        rows[text]["ms"] = 1000 * median(durations)
    table = pd.DataFrame(rows.values())
    base = table.set_index("format").loc[BASE]
    table["bytes_ratio"] = base["megabytes"] / table["megabytes"]
    table["time_ratio"] = base["ms"] / table["ms"]
    columns = ["format", "kernel", "megabytes", "ms", "bytes_ratio", "time_ratio", "error", "note"]
    return table[columns]


class _TokenProducts(NamedTuple):
    """The products of one token."""

    calls: list[Callable[[], Tensor]]
    kernel: str
    n_bytes: int
    error: float


def _token_products(
    config: LMConfig, device: torch.device, text: str, prepare: Callable[[Tensor, str], Kernel]
) -> _TokenProducts:
    """Return the products of one token, each with weights of its own, so that no cache holds them all."""
    width, head_dim, mlp = config.hidden_size, config.head_dim, config.intermediate_size
    heads = config.num_attention_heads * head_dim
    qkv = heads + 2 * config.num_key_value_heads * head_dim
    shapes = [(qkv, width), (width, heads), (2 * mlp, width), (width, mlp)]  # (outputs, inputs) of a layer
    calls: list[Callable[[], Tensor]] = []
    n_bytes, error, name = 0, 0.0, ""
    for outputs, inputs in shapes:
        right = 0.02 * torch.randn(outputs, inputs, device=device)
        x = torch.randn(1, inputs, device=device)
        kernel = prepare(right, text)
        name = kernel.name
        for _ in range(config.num_hidden_layers):
            stored = [tensor.clone() for tensor in kernel.stored]
            calls.append(partial(kernel.multiply, x, *stored))
            n_bytes += sum(tensor.nbytes for tensor in stored)
        found = calls[-1]().float()
        expected = x @ quantise(right.cpu(), text).values.to(device).T
        error = max(error, float((found - expected).abs().max() / expected.abs().max()))
    return _TokenProducts(calls, name, n_bytes, error)


# ---- kernels of torch: (weight, format) -> Kernel. Inputs and results are bfloat16, as on a server.


def _linear(weight: Tensor, text: str) -> Kernel:
    stored = weight.to(getattr(torch, text))
    return Kernel("linear", lambda x, stored: F.linear(x.to(stored.dtype), stored), (stored,))


def _int8(weight: Tensor, text: str) -> Kernel:
    found = codes_of(weight, parse_format(text))
    stored = found.codes.to(weight.device), found.scale.to(weight.device, torch.bfloat16)

    def multiply(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), codes, scale)

    return Kernel("_weight_int8pack_mm", multiply, stored)


def _int4(weight: Tensor, text: str) -> Kernel:
    found = codes_of(weight, parse_format(text))
    codes = (found.codes + 8).to(weight.device)  # torch's codes are 0 to 15, and stand for -8 to 7
    scale = found.scale.T.contiguous().to(weight.device, torch.bfloat16)  # (groups, outputs)
    scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), dim=-1)
    if weight.is_cuda:
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES)
        kernel = torch.ops.aten._weight_int4pack_mm
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        kernel = torch.ops.aten._weight_int4pack_mm_for_cpu

    def multiply(x: Tensor, packed: Tensor, scale_and_zero: Tensor) -> Tensor:
        return kernel(x.bfloat16(), packed, found.group, scale_and_zero)

    return Kernel("_weight_int4pack_mm", multiply, (packed, scale_and_zero))


def _fp8(weight: Tensor, text: str) -> Kernel:
    """Multiply in fp8: the inputs are rounded to fp8 as well."""
    found = codes_of(weight, parse_format(text))
    one = torch.ones((), device=weight.device)

    def multiply(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        x = x.to(codes.dtype)
        return torch._scaled_mm(x, codes.T, scale_a=one, scale_b=scale, out_dtype=torch.bfloat16)

    return Kernel("_scaled_mm", multiply, (found.codes.to(weight.device), found.scale.to(weight.device)))


KERNELS: dict[str, Callable[[Tensor, str], Kernel]] = {
    "float32": _linear,
    "float16": _linear,
    "bfloat16": _linear,
    "int8:channel": _int8,
    "int4:group=32": _int4,
    "int4:group=128": _int4,
    "fp8_e4m3:tensor": _fp8,
}
