"""One position of the LM on a GPU, in five kernels a layer.

Written by hand because a single position waits for launches and for memory, not for arithmetic. cuBLAS and
torch's compiler need a dozen kernels for a layer and half of its time in the products of attention, whose
matrices have one row: 76 us in float32 on an H200, of which 15 are needed to read the weights.

The state between layers is float32. Rows of a batch are multiplied on tensor cores; float32 as three
products in TF32, which keeps its accuracy. Triton compiles this file; without a GPU it is not imported.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.cuda_graphs import side_by_side
from workbench.speech.fast.lm_torch import joined_layers
from workbench.speech.models.lm import LM

SPAN = 256  # positions that attention looks at together
FEW_OUTPUTS = 2048  # of so few, a program takes fewer, so that all of the GPU has something to do


class LayerKernels:
    """The decoder stack for one new position of each row; weights are used where they are.

    Parameters
    ----------
    lm : LM
        On a GPU, in float32 or bfloat16.
    precision : {"tf32x3", "tf32"}
        Of float32 products of several rows; "tf32x3" is as good as float32.
    """

    def __init__(self, lm: LM, precision: str) -> None:
        c = lm.config
        self.lm, self.precision = lm, precision
        self.heads = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.layers = joined_layers(lm)

    def prepare(self, rows: int) -> None:
        """Compile all kernels for a number of rows."""
        weight = self.lm.llm_decoder.weight
        (before, after, qkv, out, gate_up, down), device = self.layers[0], weight.device
        queries, keys, dim = self.heads
        position = torch.zeros(rows, device=device, dtype=torch.long)
        cache = torch.zeros(2, rows, keys, 16, dim, device=device, dtype=weight.dtype)
        turn = torch.zeros(1, dim // 2, device=device, dtype=weight.dtype)

        def some(width: int) -> Tensor:
            return torch.zeros(rows, width, device=device)

        wide, narrow = some(down.shape[1]), some(len(out))
        seen, asked = some(queries * dim), some((queries + 2 * keys) * dim)
        side_by_side(
            device,
            lambda: self._project(narrow, qkv[0], norm=before, bias=qkv[1]),
            lambda: attend(asked, cache, turn, turn, position, self.heads),
            lambda: self._project(seen, out, add=narrow),
            lambda: self._project(narrow, gate_up, norm=after, gated=True),
            lambda: self._project(wide, down, add=narrow),
            lambda: self._project(narrow, weight, norm=self.lm.qwen.norm),
        )

    def lengths(self, positions: int) -> list[int]:
        """One graph serves them all: the kernels look as far as a row has come."""
        return [positions]

    def logits(self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, _: int) -> Tensor:
        """Put a position into the cache and say what may follow; see `LayerSteps.logits`."""
        x = x.float()
        for (before, after, qkv, out, gate_up, down), kv in zip(self.layers, cache, strict=True):
            asked = self._project(x, qkv[0], norm=before, bias=qkv[1])
            x = self._project(attend(asked, kv, cos, sin, position, self.heads), out, add=x)
            x = self._project(self._project(x, gate_up, norm=after, gated=True), down, add=x)
        return self._project(x, self.lm.llm_decoder.weight, norm=self.lm.qwen.norm)

    def _project(self, x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
        return project(x, weight, precision=self.precision, **rest)


def project(
    x: Tensor,
    weight: Tensor,
    norm: torch.nn.Module | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    gated: bool = False,
    precision: str = "tf32x3",
) -> Tensor:
    """Multiply few rows with a matrix, in one kernel with what goes before and after.

    Parameters
    ----------
    x : Tensor (B, D)
        float32.
    weight : Tensor (O, D), or (2 O, D) if `gated`
    norm : RMSNorm, optional
        Applied to x before.
    bias : Tensor (O,), optional
    add : Tensor (B, O), optional
        Added afterwards.
    gated : bool
        The result is silu(first half) * second half.
    precision : {"tf32x3", "tf32"}

    Returns
    -------
    Tensor (B, O)
        float32.
    """
    rows, width = x.shape
    outputs = len(weight) // 2 if gated else len(weight)
    y = x.new_empty(rows, outputs)
    if rows == 1:
        kernel = _project_one
        tile = {"OUTS": 2 if outputs < FEW_OUTPUTS else 4, "INS": 1024, "num_warps": 4}
    else:
        kernel = _project_many
        padded = max(16, triton.next_power_of_2(rows))
        ins = (2048 if gated else 4096) // (padded * weight.element_size())  # what fits beside each other
        tile = {"ROWS": padded, "OUTS": 16, "PARTS": 4, "INS": ins}
        tile |= {"PRECISION": precision, "num_warps": 4, "num_stages": 3}
    kernel[(triton.cdiv(outputs, tile["OUTS"]),)](
        x,
        weight,
        None if norm is None else norm.weight,
        bias,
        add,
        y,
        rows,
        0.0 if norm is None else norm.eps,
        WIDTH=width,
        OUTPUTS=outputs,
        GATED=gated,
        **tile,
    )
    return y


def attend(
    asked: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, heads: tuple[int, int, int]
) -> Tensor:
    """Rotate a position's queries and keys, look back, and keep its keys and values.

    Parameters
    ----------
    asked : Tensor (B, (heads + 2 H) * head_dim)
        Queries, keys and values, float32.
    cache : Tensor (2, B, H, positions, head_dim)
        Keys and values; `position` is written, what comes before is read.
    cos, sin : Tensor (positions, head_dim / 2)
    position : Tensor (B,)
    heads : (int, int, int)
        Query heads, heads H of keys and values, head_dim, which must be a power of two.

    Returns
    -------
    Tensor (B, heads * head_dim)
        float32.
    """
    queries, keys, dim = heads
    y = asked.new_empty(len(asked), queries * dim)
    _attend[(len(asked), queries)](
        asked,
        cache,
        cos,
        sin,
        position,
        y,
        cache.stride(0),
        cache.shape[3],
        dim**-0.5,
        QUERIES=queries,
        KEYS=keys,
        DIM=dim,
        SPAN=SPAN,
        num_warps=8,
    )
    return y


@triton.jit
def _project_one(
    x_ptr,
    weight_ptr,
    norm_ptr,
    bias_ptr,
    add_ptr,
    y_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GATED: tl.constexpr,
    OUTS: tl.constexpr,
    INS: tl.constexpr,
):
    out = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    real = out < OUTPUTS
    total = tl.zeros((OUTS, INS), tl.float32)
    second = tl.zeros((OUTS, INS), tl.float32)
    squares = tl.zeros((INS,), tl.float32)
    for start in tl.static_range(0, WIDTH, INS):
        column = start + tl.arange(0, INS)
        inside = column < WIDTH
        here = real[:, None] & inside[None, :]
        at = weight_ptr + out[:, None] * WIDTH + column[None, :]
        weight = tl.load(at, mask=here, other=0.0).to(tl.float32)
        if GATED:
            other = tl.load(at + OUTPUTS * WIDTH, mask=here, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + column, mask=inside, other=0.0)
        if norm_ptr is not None:
            squares += x * x
            x *= tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
        total += weight * x[None, :]
        if GATED:
            second += other * x[None, :]
    y = tl.sum(total, 1)
    if GATED:
        up = tl.sum(second, 1)
    if norm_ptr is not None:
        # One number a row: the product is taken first, so that x is read once.
        size = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
        y *= size
        if GATED:
            up *= size
    if GATED:
        y = y * tl.sigmoid(y) * up
    if bias_ptr is not None:
        y += tl.load(bias_ptr + out, mask=real, other=0.0).to(tl.float32)
    if add_ptr is not None:
        y += tl.load(add_ptr + out, mask=real, other=0.0)
    tl.store(y_ptr + out, y, mask=real)


@triton.jit
def _project_many(
    x_ptr,
    weight_ptr,
    norm_ptr,
    bias_ptr,
    add_ptr,
    y_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    PARTS: tl.constexpr,
    INS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Each warp adds up a part of its own: one after the other, the sums would take longer than the memory.
    out = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    row, part = tl.arange(0, ROWS), tl.arange(0, PARTS)
    real, filled = out < OUTPUTS, row < rows
    total = tl.zeros((PARTS, ROWS, OUTS), tl.float32)
    second = tl.zeros((PARTS, ROWS, OUTS), tl.float32)
    squares = tl.zeros((PARTS, ROWS), tl.float32)
    for start in range(0, WIDTH, PARTS * INS):
        column = start + part[:, None] * INS + tl.arange(0, INS)[None, :]
        inside = column < WIDTH
        x_at = x_ptr + row[None, :, None] * WIDTH + column[:, None, :]
        x = tl.load(x_at, mask=filled[None, :, None] & inside[:, None, :], other=0.0)
        at = weight_ptr + out[None, None, :] * WIDTH + column[:, :, None]
        here = real[None, None, :] & inside[:, :, None]
        weight = tl.load(at, mask=here, other=0.0)
        if norm_ptr is not None:
            squares += tl.sum(x * x, 2)
            x *= tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)[:, None, :]
        x = x.to(weight.dtype)
        total = tl.dot(x, weight, total, input_precision=PRECISION)
        if GATED:
            other = tl.load(at + OUTPUTS * WIDTH, mask=here, other=0.0)
            second = tl.dot(x, other, second, input_precision=PRECISION)
    y, up = tl.sum(total, 0), tl.sum(second, 0)
    if norm_ptr is not None:
        size = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)[:, None]
        y *= size
        up *= size
    if GATED:
        y = y * tl.sigmoid(y) * up
    place = row[:, None] * OUTPUTS + out[None, :]
    both = filled[:, None] & real[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + out, mask=real, other=0.0).to(tl.float32)[None, :]
    if add_ptr is not None:
        y += tl.load(add_ptr + place, mask=both, other=0.0)
    tl.store(y_ptr + place, y, mask=both)


@triton.jit
def _attend(
    asked_ptr,
    cache_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    y_ptr,
    to_values,
    positions,
    scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    SPAN: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    kv = head // (QUERIES // KEYS)
    position = tl.load(position_ptr + row)
    HALF: tl.constexpr = DIM // 2
    half, whole = tl.arange(0, HALF), tl.arange(0, DIM)
    cos = tl.load(cos_ptr + position * HALF + half).to(tl.float32)
    sin = tl.load(sin_ptr + position * HALF + half).to(tl.float32)
    asked_ptr += row * (QUERIES + 2 * KEYS) * DIM
    q = asked_ptr + head * DIM + half
    k = asked_ptr + (QUERIES + kv) * DIM + half
    q1, q2, k1, k2 = tl.load(q), tl.load(q + HALF), tl.load(k), tl.load(k + HALF)
    q1, q2 = (q1 * cos - q2 * sin) * scale, (q2 * cos + q1 * sin) * scale
    k1, k2 = k1 * cos - k2 * sin, k2 * cos + k1 * sin
    value = tl.load(asked_ptr + (QUERIES + KEYS + kv) * DIM + whole)
    keys = cache_ptr + (row * KEYS + kv) * positions * DIM
    values = keys + to_values
    # A position sees itself first, then what came before, a span at a time.
    most = tl.sum(q1 * k1 + q2 * k2, 0)
    total, seen = tl.exp(most - most), value
    start = 0
    while start < position:
        at = start + tl.arange(0, SPAN)
        visible = (at < position)[:, None]
        past = keys + at[:, None] * DIM
        past1 = tl.load(past + half[None, :], mask=visible, other=0.0).to(tl.float32)
        past2 = tl.load(past + HALF + half[None, :], mask=visible, other=0.0).to(tl.float32)
        kept = tl.load(values + at[:, None] * DIM + whole[None, :], mask=visible, other=0.0).to(tl.float32)
        scores = tl.sum(past1 * q1[None, :] + past2 * q2[None, :], 1)
        scores = tl.where(at < position, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 0))
        weight, shrink = tl.exp(scores - higher), tl.exp(most - higher)
        seen = seen * shrink + tl.sum(weight[:, None] * kept, 0)
        total = total * shrink + tl.sum(weight, 0)
        most = higher
        start += SPAN
    tl.store(y_ptr + (row * QUERIES + head) * DIM + whole, seen / total)
    if head % (QUERIES // KEYS) == 0:
        kept_at = position * DIM
        tl.store(keys + kept_at + half, k1.to(cache_ptr.dtype.element_ty))
        tl.store(keys + kept_at + HALF + half, k2.to(cache_ptr.dtype.element_ty))
        tl.store(values + kept_at + whole, value.to(cache_ptr.dtype.element_ty))
