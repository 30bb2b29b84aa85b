"""One decoding step of the LM on a GPU, in five Triton kernels a layer.

With a single position a GPU waits for launches and for memory, not for arithmetic. In float32 on an H200,
cuBLAS and torch's compiler take 76 us for one layer, in a dozen kernels. Reading the layer's weights takes
only 15 of the 76 us. Half of the 76 us goes into attention: its matrix products have a single row, and
general kernels are made for many rows. The five kernels here are

    RMS norm + QKV projection  (`project`)
    rotary embedding + attention + cache update  (`attend`)
    output projection + residual  (`project`)
    RMS norm + gate and up projections + SwiGLU  (`project`)
    down projection + residual  (`project`)

The hidden state between the layers (the residual stream) is float32.

Even so, the kernels of a token would spend half of their time at their ends, where each waits for the last
program of the one before and then for memory. On GPUs that can (Hopper and later), a kernel therefore starts
early: CUDA calls that a programmatic dependent launch. It says at its start that the next kernel may start,
requests the weights that it needs, and waits only then (`gdc_wait`) until the kernel before it is finished
and what that wrote can be read. So the weights of up to two kernels are on their way while a third computes.
Nothing that a kernel of this token writes may be read before `gdc_wait`, nor may anything be written.

Shape letters: `B` rows of the batch, `D` width, `H` heads of keys and values, `S` shares of attention.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from workbench.speech.fast.capability import can_start_early
from workbench.speech.fast.cuda_graphs import compile_in_parallel
from workbench.speech.fast.decode_state import DecodeState, Record
from workbench.speech.fast.kernels.next_token import next_token
from workbench.speech.fast.kernels.projection import project
from workbench.speech.fast.lm_torch import FusedLayer
from workbench.speech.fast.sampling import DeviceSampler
from workbench.speech.models.lm import LM

# The positions of a single row are divided among several programs a head; the heads of several rows are
# programs enough.
SHARES = 8  # programs a head for a single row
SHARE_BLOCK = 128  # cached positions that each of them loads at a time
CACHE_BLOCK = {torch.bfloat16: 128, torch.float32: 256}  # that a program of several rows loads at a time


class HeadSizes(NamedTuple):
    """The sizes of the attention heads."""

    n_heads: int  # heads of queries
    n_kv_heads: int  # heads of keys and values, H
    head_dim: int  # width of a head, a power of two


class TritonDecodeStep:
    """Run the decoder stack for one new position of each row.

    Parameters
    ----------
    lm : LM
        On a GPU, in float32 or bfloat16.
    layers : list of FusedLayer
        What `fuse_layers` returned for the same LM.
    precision : {"tf32x3", "tf32"}
        Precision of float32 matrix products for batches of more than one row, see `project`; "tf32x3" is
        as accurate as float32.
    """

    def __init__(self, lm: LM, layers: list[FusedLayer], precision: str) -> None:
        c = lm.config
        self.lm, self.layers, self.precision = lm, layers, precision
        self.heads = HeadSizes(c.num_attention_heads, c.num_key_value_heads, c.head_dim)
        self.eps = c.rms_norm_eps
        self.early = can_start_early(lm.llm_decoder.weight.device)

    def compile_for(self, rows: int) -> None:
        """Compile all kernels for a number of rows, by calling each once on zeros."""
        layer, head_weight = self.layers[0], self.lm.llm_decoder.weight
        device, dtype = head_weight.device, head_weight.dtype
        n_heads, n_kv_heads, head_dim = self.heads

        def zeros(width: int) -> Tensor:
            return torch.zeros(rows, width, device=device)

        state = zeros(self.lm.config.hidden_size)
        gated = zeros(layer.down_weight.shape[1]).to(torch.float32 if rows == 1 else dtype)
        qkv = zeros((n_heads + 2 * n_kv_heads) * head_dim)
        position = torch.zeros(rows, device=device, dtype=torch.long)
        # Triton compiles a separate version of a kernel for sizes that are multiples of 16. Those of a real
        # cache and of its shares are.
        cache = torch.zeros(2, rows, n_kv_heads, 16 * SHARES, head_dim, device=device, dtype=dtype)
        rope = torch.zeros(1, head_dim // 2, device=device, dtype=dtype)
        shares = SHARES if rows == 1 else rows
        attn_out = torch.zeros(shares, n_heads * head_dim, device=device)
        log_weight = torch.zeros(shares, n_heads, device=device) if rows == 1 else None
        attention = {"norm": layer.attention_norm, "bias": layer.qkv_bias}
        mlp = {"norm": layer.mlp_norm, "gated": True}
        early = self.early
        compile_in_parallel(
            device,
            lambda: self._project(state, layer.qkv_weight, **attention),  # of the first layer
            lambda: self._project(state, layer.qkv_weight, **attention, early=early),
            lambda: attend(qkv, cache, rope, rope, position, self.heads, early),
            lambda: self._project(attn_out, layer.out_weight, add=state, log_weight=log_weight, early=early),
            lambda: self._project(state, layer.gate_up_weight, **mlp, early=early),
            lambda: self._project(gated, layer.down_weight, add=state, early=early),
            lambda: self._project(state, head_weight, norm=self.lm.qwen.norm.weight, early=early),
        )

    def next_token(self, state: DecodeState, sampler: DeviceSampler, record: Record) -> Tensor:
        """Compute `TorchDecodeStep.next_token`, in float32."""
        first_stop_id = self.lm.config.speech_token_size
        return next_token(self.lm.speech_embedding.weight, first_stop_id, state, sampler, record)

    def attention_lengths(self, positions: int) -> list[int]:
        """Return the lengths of the cache for which `FastLM` captures a graph.

        One graph is enough: the attention kernel reads only the positions that a row has filled.
        """
        return [positions]

    def logits(
        self, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, position: Tensor, length: int
    ) -> Tensor:
        """Write the new position's keys and values into the cache, and return the next token's logits.

        Parameters
        ----------
        x : Tensor (B, D), float32
            Embedded tokens.
        cache : Tensor (layers, 2, B, H, positions, head_dim)
            Keys and values; written at `position`.
        cos, sin : Tensor (positions, head_dim / 2)
            Factors of the rotary embedding.
        position : Tensor (B,)
            Index of each row's new position.
        length : int
            Unused; `TorchDecodeStep.logits` needs it.

        Returns
        -------
        Tensor (B, n_ids), float32
        """
        early = False  # the kernel before the first one is torch's, and not made for that
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            qkv = self._project(
                x, layer.qkv_weight, norm=layer.attention_norm, bias=layer.qkv_bias, early=early
            )
            early = self.early
            attn_out, log_weight = attend(qkv, layer_cache, cos, sin, position, self.heads, early)
            x = self._project(attn_out, layer.out_weight, add=x, log_weight=log_weight, early=early)
            gated = self._project(x, layer.gate_up_weight, norm=layer.mlp_norm, gated=True, early=early)
            x = self._project(gated, layer.down_weight, add=x, early=early)
        head, norm = self.lm.llm_decoder.weight, self.lm.qwen.norm.weight
        return self._project(x, head, norm=norm, early=early)

    def _project(self, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return project(x, weight, eps=self.eps, precision=self.precision, **options)


def attend(
    qkv: Tensor,
    cache: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    heads: HeadSizes,
    early: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Apply the rotary embedding, attend to past and new position, and write the new one into the cache.

    The positions of a single row are divided into S spans; each is attended to as if there were no others.
    Attention to all positions is then an average of these S shares.

    Parameters
    ----------
    qkv : Tensor (B, (query heads + 2 H) * head_dim), float32
        Queries, keys and values of the new position.
    cache : Tensor (2, B, H, positions, head_dim)
        Keys and values. Positions before `position` are read, `position` is written.
    cos, sin : Tensor (positions, head_dim / 2)
        Factors of the rotary embedding.
    position : Tensor (B,)
        Index of each row's new position. No kernel after the last one that did not start early writes it.
    heads : HeadSizes
    early : bool
        Let the kernel start while the one before it still runs: see the module.

    Returns
    -------
    attn_out : Tensor (B, query heads * head_dim), float32; for a single row (S, query heads * head_dim)
    log_weight : Tensor (S, query heads), float32, or None
        For a single row: logarithm of the weight of each share in the average.
    """
    n_heads, n_kv_heads, head_dim = heads
    batch = len(qkv)
    shares = SHARES if batch == 1 else 1
    block = SHARE_BLOCK if batch == 1 else CACHE_BLOCK[cache.dtype]
    attn_out = qkv.new_empty(batch * shares, n_heads * head_dim)
    log_weight = qkv.new_empty(shares, n_heads) if batch == 1 else None
    positions = cache.shape[3]
    _attend[(batch, n_heads, shares)](
        qkv,
        cache,
        cos,
        sin,
        position,
        attn_out,
        log_weight,
        cache.stride(0),  # values_offset
        positions,
        triton.cdiv(positions, shares),  # span
        head_dim**-0.5,  # scale
        HEADS=n_heads,
        KV_HEADS=n_kv_heads,
        DIM=head_dim,
        EARLY=early,
        BLOCK=block,
        num_warps=max(1, block // 32),
        launch_pdl=early,
    )
    return attn_out, log_weight


@triton.jit
def _attend(
    qkv_ptr,  # (B, (HEADS + 2 KV_HEADS) DIM) float32
    cache_ptr,  # (2, B, KV_HEADS, positions, DIM)
    cos_ptr,  # (positions, DIM / 2)
    sin_ptr,  # (positions, DIM / 2)
    position_ptr,  # (B,) int64, each row's new position
    out_ptr,  # (B, shares, HEADS DIM) float32
    log_weight_ptr,  # (B, shares, HEADS) float32, or None
    values_offset,  # distance from the keys to the values in the cache, in elements
    positions,  # length of the cache
    span,  # cached positions of one share
    scale,  # DIM ** -0.5
    HEADS: tl.constexpr,  # heads of queries
    KV_HEADS: tl.constexpr,  # heads of keys and values
    DIM: tl.constexpr,  # width of a head
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,  # cached positions loaded at a time
):
    """Compute `attend` for one row, query head and share in each program, with a running softmax."""
    if EARLY:
        gdc_launch_dependents()
    row, head, share, shares = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    kv_head = head // (HEADS // KV_HEADS)  # the head of keys and values that this query head uses
    position = tl.load(position_ptr + row)

    # The rotary embedding rotates each element of a head's first half together with one of the second half,
    # so the halves are separate vectors: q1, q2, k1, k2.
    HALF: tl.constexpr = DIM // 2
    half_index, dim_index = tl.arange(0, HALF), tl.arange(0, DIM)
    cos = tl.load(cos_ptr + position * HALF + half_index).to(tl.float32)
    sin = tl.load(sin_ptr + position * HALF + half_index).to(tl.float32)

    # Request the first block of cached keys (in halves) and values, (BLOCK, HALF) and (BLOCK, DIM). Earlier
    # tokens wrote them, so they may be read before `gdc_wait`.
    cached_keys = cache_ptr + (row * KV_HEADS + kv_head) * positions * DIM
    cached_values = cached_keys + values_offset
    start = share * span
    end = tl.minimum(start + span, position)
    past_k1, past_k2, past_v = _load_block(cached_keys, cached_values, start, end, DIM, BLOCK)

    # From here on read what the kernel before this one wrote: the new position's query, key and value. The
    # query is multiplied by the scale of the scores.
    if EARLY:
        gdc_wait()
    qkv_ptr += row * (HEADS + 2 * KV_HEADS) * DIM
    q_ptrs = qkv_ptr + head * DIM + half_index
    k_ptrs = qkv_ptr + (HEADS + kv_head) * DIM + half_index
    q1, q2 = tl.load(q_ptrs), tl.load(q_ptrs + HALF)
    k1, k2 = tl.load(k_ptrs), tl.load(k_ptrs + HALF)
    v = tl.load(qkv_ptr + (HEADS + KV_HEADS + kv_head) * DIM + dim_index)
    q1, q2 = (q1 * cos - q2 * sin) * scale, (q2 * cos + q1 * sin) * scale
    k1, k2 = k1 * cos - k2 * sin, k2 * cos + k1 * sin

    # Start the softmax. `max_score` is the highest score so far, `weight_sum` is the sum of the weights
    # exp(score - max_score), and `attn_out` is the sum of the values times these weights; it is divided by
    # `weight_sum` at the end. The new position belongs to the first share; the others start empty.
    new_score = tl.sum(q1 * k1 + q2 * k2, 0)
    is_first = share == 0
    max_score = tl.where(is_first, new_score, float("-inf"))
    # 1; NaN where the score is not finite, so that the error shows in the logits
    weight_sum = tl.where(is_first, tl.exp(new_score - new_score), 0.0)
    attn_out = tl.where(is_first, v, 0.0)
    while start < end:
        # Compute the scores (BLOCK,) and update the softmax. If the highest score has risen, the sums so far
        # are scaled down.
        scores = tl.sum(past_k1.to(tl.float32) * q1[None, :] + past_k2.to(tl.float32) * q2[None, :], 1)
        scores = tl.where(start + tl.arange(0, BLOCK) < end, scores, float("-inf"))
        new_max = tl.maximum(max_score, tl.max(scores, 0))
        weights, shrink = tl.exp(scores - new_max), tl.exp(max_score - new_max)
        attn_out = attn_out * shrink + tl.sum(weights[:, None] * past_v.to(tl.float32), 0)
        weight_sum = weight_sum * shrink + tl.sum(weights, 0)
        max_score = new_max

        # Load the next block, if there is one.
        start += BLOCK
        past_k1, past_k2, past_v = _load_block(cached_keys, cached_values, start, end, DIM, BLOCK)

    # A share without positions has a `max_score` and so a `log_weight` of minus infinity.
    weight_sum = tl.where(weight_sum == 0, 1.0, weight_sum)
    out_row = (row * shares + share) * HEADS + head
    if log_weight_ptr is not None:
        tl.store(log_weight_ptr + out_row, max_score + tl.log(weight_sum))
    tl.store(out_ptr + out_row * DIM + dim_index, attn_out / weight_sum)

    # Write the new key and value into the cache. Of the query heads that share them, the first one does it.
    if is_first & (head % (HEADS // KV_HEADS) == 0):
        new_offset = position * DIM
        tl.store(cached_keys + new_offset + half_index, k1.to(cache_ptr.dtype.element_ty))
        tl.store(cached_keys + new_offset + HALF + half_index, k2.to(cache_ptr.dtype.element_ty))
        tl.store(cached_values + new_offset + dim_index, v.to(cache_ptr.dtype.element_ty))


@triton.jit
def _load_block(cached_keys, cached_values, start, end, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Load the keys, in halves, and the values of up to BLOCK positions before `end`; 0 for the others."""
    HALF: tl.constexpr = DIM // 2
    half_index, dim_index = tl.arange(0, HALF)[None, :], tl.arange(0, DIM)[None, :]
    past = start + tl.arange(0, BLOCK)
    mask = (past < end)[:, None]
    k_ptrs = cached_keys + past[:, None] * DIM + half_index
    k1 = tl.load(k_ptrs, mask=mask, other=0.0)
    k2 = tl.load(k_ptrs + HALF, mask=mask, other=0.0)
    v = tl.load(cached_values + past[:, None] * DIM + dim_index, mask=mask, other=0.0)
    return k1, k2, v
