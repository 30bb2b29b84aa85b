"""Pick the next token of each row on a GPU, in one Triton kernel.

In torch this takes a dozen kernels and 96 us on an H200, a fifth of what the LM takes for a token. The second
draw, which only a repeated token needs, must always be made there.

The kernel computes what `sampling.DeviceSampler.pick` and `decode_state.advance` do, and embeds the token.

Shape letters: `B` rows of the batch, `D` width.
"""

import triton
import triton.language as tl
from torch import Tensor

from workbench.speech.fast.decode_state import DecodeState, Record
from workbench.speech.fast.sampling import DeviceSampler


def next_token(
    embedding: Tensor, first_stop_id: int, state: DecodeState, sampler: DeviceSampler, record: Record
) -> Tensor:
    """Pick a token for each row, move on by one position, and embed the token.

    Parameters
    ----------
    embedding : Tensor (n_ids, D)
    first_stop_id : int
        This id and all above it stop a row.
    state : DecodeState
        Changed in place, except for `logp`, which must be float32.
    sampler : DeviceSampler
        Its state is changed in place.
    record : Record
        Overwritten.

    Returns
    -------
    Tensor (B, D), float32
    """
    rows, n_ids = state.logp.shape
    width = embedding.shape[1]
    inputs = sampler.state
    win_size = inputs.recent_tokens.shape[1]
    x = state.logp.new_empty(rows, width)
    _next_token[(rows,)](
        inputs.stop_ids,
        inputs.silent_ids,
        inputs.top_p,
        inputs.max_repeats,
        inputs.recent_tokens,
        inputs.draws,
        inputs.next_draw,
        state.position,
        state.cache_position,
        state.n_tokens,
        state.min_tokens,
        state.max_tokens,
        state.done,
        state.has_nan,
        state.logp,
        record.token,
        record.logp,
        embedding,
        x,
        inputs.draws.shape[1],  # n_draws
        first_stop_id,
        N_IDS=n_ids,
        BLOCK=triton.next_power_of_2(n_ids),
        TOP_K=sampler.top_k,
        FALLBACK_TOP_K=sampler.fallback_top_k or 0,
        WIN_SIZE=win_size,
        BLOCK_WIN=triton.next_power_of_2(max(1, win_size)),
        WIDTH=width,
        BLOCK_WIDTH=triton.next_power_of_2(width),
        num_warps=8,  # measured on an H200: 22 us for 25 candidates, with 4 warps 36 us, with 16 warps 21 us
    )
    return x


# The addresses in a record differ from token to token, so that some are multiples of 16 and others are not.
@triton.jit(do_not_specialize_on_alignment=["token_out_ptr", "logp_out_ptr"])
def _next_token(
    stop_ids_ptr,  # (N_IDS,) bool
    silent_ids_ptr,  # (N_IDS,) bool
    top_p_ptr,  # (B,) float32
    max_repeats_ptr,  # (B,) float64
    recent_ptr,  # (B, WIN_SIZE) int64
    draws_ptr,  # (B, n_draws) float32
    next_draw_ptr,  # (B,) int64
    position_ptr,  # (B,) int64, as all counts below
    cache_position_ptr,
    n_tokens_ptr,
    min_tokens_ptr,
    max_tokens_ptr,
    done_ptr,  # (B,) bool
    has_nan_ptr,  # (B,) bool
    logp_ptr,  # (B, N_IDS) float32
    token_out_ptr,  # (B,) int64
    logp_out_ptr,  # (B, N_IDS) float32
    embedding_ptr,  # (N_IDS, WIDTH)
    x_ptr,  # (B, WIDTH) float32
    n_draws,
    first_stop_id,
    N_IDS: tl.constexpr,
    BLOCK: tl.constexpr,  # N_IDS, padded
    TOP_K: tl.constexpr,
    FALLBACK_TOP_K: tl.constexpr,  # candidates of the second draw; 0: all ids
    WIN_SIZE: tl.constexpr,
    BLOCK_WIN: tl.constexpr,  # WIN_SIZE, padded
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,  # WIDTH, padded
):
    """Compute `next_token` for one row in each program."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK)
    id_mask = ids < N_IDS
    draws_ptr += row * n_draws
    logp = tl.load(logp_ptr + row * N_IDS + ids, mask=id_mask, other=float("-inf"))
    n_tokens = tl.load(n_tokens_ptr + row)
    next_draw = tl.load(next_draw_ptr + row)

    # First draw: from the nucleus.
    too_early = n_tokens < tl.load(min_tokens_ptr + row)
    is_stop = tl.load(stop_ids_ptr + ids, mask=id_mask, other=0) != 0
    scores = tl.where(too_early & is_stop, float("-inf"), logp)
    top_p = tl.load(top_p_ptr + row)
    token, used = _draw_from_nucleus(scores, top_p, draws_ptr, next_draw, n_draws, N_IDS, BLOCK, TOP_K)

    # Second draw, if the token is repeated: without it, from the likeliest ids or from all of them. It uses
    # the random numbers that follow those of the first draw.
    place = tl.arange(0, BLOCK_WIN)
    recent_ptrs = recent_ptr + row * WIN_SIZE + place
    recent = tl.load(recent_ptrs, mask=place < WIN_SIZE, other=-1)
    repeats = tl.sum((recent == token).to(tl.int32), 0).to(tl.float64)
    is_silent = tl.load(silent_ids_ptr + token) != 0
    if (repeats >= tl.load(max_repeats_ptr + row)) & (is_silent == 0):
        scores = tl.where(ids == token, float("-inf"), scores)
        if FALLBACK_TOP_K > 0:
            token, more = _draw_from_nucleus(
                scores, 1.0, draws_ptr, next_draw + used, n_draws, N_IDS, BLOCK, FALLBACK_TOP_K
            )
            used += more
        else:
            draw = tl.load(draws_ptr + (next_draw + used + ids) % n_draws, mask=id_mask, other=1.0)
            ratio = tl.where(id_mask, _softmax(scores) / draw, -1.0)
            token = tl.argmax(ratio, 0).to(tl.int64)
            used += N_IDS

    # Record the token and its log-probabilities.
    is_running = tl.load(done_ptr + row) == 0  # the row had not stopped before this token
    is_active = is_running & (token < first_stop_id)  # the token counts, as it is not a stop id
    tl.store(token_out_ptr + row, tl.where(is_active, token, -1))
    tl.store(logp_out_ptr + row * N_IDS + ids, logp, mask=id_mask)
    n_nan = tl.sum((logp != logp).to(tl.int32), 0)
    if is_running & (n_nan > 0):
        tl.store(has_nan_ptr + row, 1)

    # Move on by one position. A stopped row keeps its position: its later tokens are written to one place in
    # the cache.
    position = tl.load(position_ptr + row)
    tl.store(cache_position_ptr + row, position)
    tl.store(position_ptr + row, position + is_active.to(tl.int64))
    n_tokens += is_active.to(tl.int64)
    tl.store(n_tokens_ptr + row, n_tokens)
    if (is_active == 0) | (n_tokens >= tl.load(max_tokens_ptr + row)):
        tl.store(done_ptr + row, 1)
    # A stop id uses up random numbers too, but it does not enter the recent tokens.
    if is_running:
        tl.store(next_draw_ptr + row, next_draw + used)
    if is_active:
        later = tl.load(recent_ptrs + 1, mask=place < WIN_SIZE - 1, other=0)
        tl.debug_barrier()  # every thread has read its token before any thread overwrites one
        tl.store(recent_ptrs, tl.where(place == WIN_SIZE - 1, token, later), mask=place < WIN_SIZE)

    column = tl.arange(0, BLOCK_WIDTH)
    embedded = tl.load(embedding_ptr + token * WIDTH + column, mask=column < WIDTH, other=0.0)
    tl.store(x_ptr + row * WIDTH + column, embedded.to(tl.float32), mask=column < WIDTH)


@triton.jit
def _draw_from_nucleus(
    scores,  # (BLOCK,) float32
    top_p,
    draws_ptr,  # (n_draws,) the row's random numbers
    next_draw,
    n_draws,
    N_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """Return an id among the likeliest, and how many there were, each of which used a random number.

    An id is a candidate if those that are likelier sum to less than top_p; the likeliest id always is. The
    candidate with the highest ratio of probability to random number is drawn.
    """
    # Order the ids by one int64 key: the probability in the upper 32 bits, the reversed id in the lower, so
    # that of equal probabilities the lower id comes first. The bits of positive float32 numbers, read as an
    # integer, are in the order of the numbers. The sign, which only NaN can have, is cleared.
    ids = tl.arange(0, BLOCK)
    bits = (_softmax(scores).to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.int64)
    key = tl.where(ids < N_IDS, (bits << 32) | (N_IDS - 1 - ids), -1)

    # Sorting all keys would take twice as long. The n highest keys are in the n groups of ids whose highest
    # keys are the highest: sort these groups alone. BLOCK is less than 2 N_IDS, so none of them is padding.
    GROUP: tl.constexpr = 32
    BLOCK_TOP_K: tl.constexpr = triton.next_power_of_2(TOP_K)
    if BLOCK_TOP_K * GROUP <= BLOCK // 4:
        highest = tl.max(tl.reshape(key, (BLOCK // GROUP, GROUP)), 1)
        group = _id_of(tl.topk(highest, BLOCK_TOP_K), N_IDS) // GROUP
        ids = tl.reshape(group[:, None] * GROUP + tl.arange(0, GROUP)[None, :], (BLOCK_TOP_K * GROUP,))
        key = tl.gather(key, ids.to(tl.int32), 0)
    key = tl.topk(key, BLOCK_TOP_K)  # (BLOCK_TOP_K,) the likeliest id first

    # Find the candidates. The sum is in float64 as torch sums on a CPU, where `models.sampling` runs.
    place = tl.arange(0, BLOCK_TOP_K)
    prob = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    prob = tl.where(place < TOP_K, prob, 0.0)
    likelier = tl.cumsum(prob.to(tl.float64), 0) - prob  # sum of the likelier ids
    is_candidate = (place < TOP_K) & ((place == 0) | (likelier.to(tl.float32) < top_p))

    # Draw one of them.
    draw = tl.load(draws_ptr + (next_draw + place) % n_draws, mask=is_candidate, other=1.0)
    drawn = tl.argmax(tl.where(is_candidate, prob / draw, -1.0), 0)
    drawn_id = tl.sum(tl.where(place == drawn, _id_of(key, N_IDS), 0), 0)
    return drawn_id, tl.sum(is_candidate.to(tl.int32), 0)


@triton.jit
def _id_of(key, N_IDS: tl.constexpr):
    """Return the id in the lower half of a key."""
    return N_IDS - 1 - (key & 0xFFFFFFFF)


@triton.jit
def _softmax(scores):
    exp = tl.exp(scores - tl.max(scores, 0))
    return exp / tl.sum(exp, 0)
