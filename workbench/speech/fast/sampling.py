"""Repetition-aware sampling on the device, for several utterances at once.

The rules are those of `models.sampling.Sampler`, and equal log-probabilities give the same tokens. `Sampler`
draws exponential random numbers from a generator on the CPU, one for each candidate of a choice. Here the CPU
draws the same numbers in advance and copies them to the device, into a ring buffer for each row. The device
counts how many of them it has used.

Shape letters: `B` rows of the batch, `C` candidates of a choice.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import LMConfig, Options
from workbench.speech.fast.cuda_graphs import compiled, to_device_async

# Threads draw at least this many random numbers, which takes 4 ms without threads. For fewer numbers, threads
# cost more time than they save.
MIN_PARALLEL_DRAWS = 200_000
DRAW_THREADS = 8  # each thread draws for one row at a time


class SamplerState(NamedTuple):
    """The inputs of a choice. The tensors keep their addresses for the sampler's life, for CUDA graphs."""

    stop_ids: Tensor  # (n_ids,) bool, ids that are masked while it is too early to stop
    silent_ids: Tensor  # (n_ids,) bool, ids that never count as repeated
    reversed_ids: Tensor  # (n_ids,) n_ids - 1, ..., 1, 0: of equal probabilities, the lower id sorts first
    top_p: Tensor  # (B,) float32
    max_repeats: Tensor  # (B,) float64, a token counts as repeated if it is in the window this often
    recent_tokens: Tensor  # (B, win_size) the window: the latest tokens, or -1 before there are any
    draws: Tensor  # (B, buffer) exponential random numbers, a ring buffer
    next_draw: Tensor  # (B,) index of the next number to use, counted from the start of the run


class DeviceSampler:
    """Pick the next token of each row.

    Parameters
    ----------
    options : Options
        top_k, win_size, silent_tokens_repeat, repetition_fallback and mask_stop_ids, the same for every row.
    config : LMConfig
        Says which ids stop a row.
    silent_tokens : sequence of int
        Ids that sound like silence or breath.
    rows : int
    picks : int
        The most that `refill` is asked for.
    device : torch.device
    """

    def __init__(
        self,
        options: Options,
        config: LMConfig,
        silent_tokens: Sequence[int],
        rows: int,
        picks: int,
        device: torch.device,
    ) -> None:
        self.top_k = min(options.top_k, config.n_ids)
        # Candidates of the second choice, after a repetition: as many as in the first, or all ids (None).
        self.fallback_top_k = self.top_k if options.repetition_fallback == "top_k" else None
        self._draws_per_pick = self.top_k + (self.fallback_top_k or config.n_ids)
        # The buffer holds what the picks may use, and some to spare, so that few calls of `refill` must draw.
        self._draws_of_picks = picks * self._draws_per_pick
        length = self._draws_of_picks * 3 // 2

        ids = torch.arange(config.n_ids, device=device)
        first_special = config.speech_token_size  # sos; eos and the other ids that stop follow it
        never_repeated = () if options.silent_tokens_repeat else sorted(silent_tokens)
        self.state = SamplerState(
            # Without `mask_stop_ids` only sos is masked, as upstream does; see `Sampler._mask_stops`.
            stop_ids=ids >= first_special if options.mask_stop_ids else ids == first_special,
            silent_ids=torch.isin(ids, torch.tensor(never_repeated, device=device, dtype=ids.dtype)),
            reversed_ids=config.n_ids - 1 - ids,
            top_p=torch.ones(rows, device=device),
            max_repeats=torch.ones(rows, device=device, dtype=torch.float64),
            recent_tokens=torch.full((rows, options.win_size), -1, device=device),
            draws=torch.ones(rows, length, device=device),
            next_draw=torch.zeros(rows, device=device, dtype=torch.long),
        )
        self._choose = compiled(_choose, device, "rows")
        self._drawn = [0] * rows  # random numbers that were drawn for each row
        self._generators: list[torch.Generator] = []
        self._threads = ThreadPoolExecutor(DRAW_THREADS)
        self._first_draws: Future[Tensor] | None = None  # what `begin` began to draw

    def begin(self, options: Sequence[Options]) -> None:
        """Start a run with the seed, top_p and tau_r of each row.

        A thread draws the random numbers for the first picks, until `refill` asks for them.
        """
        if self._first_draws is not None:  # of a run that ended before its first pick
            wait([self._first_draws])
        self._generators = [torch.Generator().manual_seed(o.seed) for o in options]
        # `_draw` may wait for other threads of the pool; there is one such call at a time, so they are free.
        self._first_draws = self._threads.submit(self._draw, [self._draws_of_picks] * len(options))
        state = self.state
        numbers = [[o.top_p for o in options], [o.win_size * o.tau_r for o in options]]
        top_p, max_repeats = to_device_async(numbers, like=state.max_repeats)  # (B,) each
        state.top_p.copy_(top_p)
        state.max_repeats.copy_(max_repeats)
        state.recent_tokens.fill_(-1)
        state.next_draw.zero_()
        self._drawn = [0] * len(options)

    def refill(self, next_draw: Sequence[int], picks: int) -> None:
        """Draw random numbers if there are not enough for more picks; they replace those that were used.

        Parameters
        ----------
        next_draw : sequence of int
            Values of `SamplerState.next_draw`, which the host learns a little later than the device.
        picks : int
            The picks that follow these.
        """
        ring = self.state.draws
        if self._first_draws is not None:
            first, self._first_draws = self._first_draws, None
            draws = first.result().to(ring.device, non_blocking=True)
            ring[:, : self._draws_of_picks] = draws.view(len(ring), -1)
            self._drawn = [self._draws_of_picks] * len(ring)
        needed = [used + picks * self._draws_per_pick for used in next_draw]
        if all(most <= drawn for most, drawn in zip(needed, self._drawn, strict=True)):
            return
        # Fill the whole buffer, so that it lasts for more picks.
        full = [used + ring.shape[1] for used in next_draw]
        counts = [most - drawn for most, drawn in zip(full, self._drawn, strict=True)]
        draws = self._draw(counts).to(ring.device, non_blocking=True)
        total = len(draws)

        # `draws` holds the rows one after the other. Find the row of each number, and its place in the ring:
        # the first number of a row goes where the last refill of that row ended.
        count, drawn = to_device_async([counts, self._drawn], self.state.next_draw)  # (B,) each
        row = torch.repeat_interleave(count, output_size=total)  # (total,)
        offset = count.cumsum(0) - count  # (B,) where each row begins in `draws`
        place = torch.arange(total, device=ring.device) - offset[row] + drawn[row]
        ring[row, place % ring.shape[1]] = draws
        self._drawn = [old + new for old, new in zip(self._drawn, counts, strict=True)]

    def pick(self, logp: Tensor, too_early: Tensor) -> tuple[Tensor, Tensor]:
        """Pick a token for each row. The state does not change until `record_pick` is called.

        Parameters
        ----------
        logp : Tensor (B, n_ids)
            Log-probabilities.
        too_early : Tensor (B,) bool
            Whether the row is too short to stop.

        Returns
        -------
        token : Tensor (B,)
        draws_used : Tensor (B,)
            How many random numbers the choice uses.
        """
        return self._choose(logp, too_early, self.state, self.top_k, self.fallback_top_k)

    def _draw(self, counts: Sequence[int]) -> Tensor:
        """Draw so many numbers from each row's generator: (sum of counts,), one row after the other."""
        # Pinned memory, so that a copy to the device does not wait.
        draws = torch.empty(sum(counts), pin_memory=self.state.draws.is_cuda)
        rows = draws.split(list(counts))
        if len(draws) < MIN_PARALLEL_DRAWS:
            list(map(_fill_exponential, rows, self._generators))
        else:
            list(self._threads.map(_fill_exponential, rows, self._generators))
        return draws


def record_pick(token: Tensor, draws_used: Tensor, active: Tensor, state: SamplerState) -> None:
    """Update the sampler's state after a pick. Apart from `pick`, so that it is compiled with its caller.

    Parameters
    ----------
    token, draws_used : Tensor (B,)
        From `DeviceSampler.pick`; draws_used is 0 where the row had stopped before.
    active : Tensor (B,) bool
        Rows whose token counts.
    state : SamplerState
        Changed in place.
    """
    state.next_draw.add_(draws_used)
    if state.recent_tokens.shape[1]:  # win_size 0 means that no token is remembered
        shifted = torch.cat((state.recent_tokens[:, 1:], token[:, None]), dim=1)
        state.recent_tokens.copy_(torch.where(active[:, None], shifted, state.recent_tokens))


def _choose(
    logp: Tensor, too_early: Tensor, state: SamplerState, top_k: int, fallback_top_k: int | None
) -> tuple[Tensor, Tensor]:
    """Draw from the nucleus. If the token is repeated, mask it and draw again; see `DeviceSampler.pick`.

    A CUDA graph cannot branch on values, so both draws are always made, and `where` takes one of them.
    """
    scores = logp.float().masked_fill(too_early[:, None] & state.stop_ids, -torch.inf)

    # First draw: from the nucleus.
    ids, probs, n_first = _nucleus(scores, state.reversed_ids, state.top_p, top_k)
    first = ids.gather(1, _exponential_race(probs, n_first, state.draws, state.next_draw))  # (B, 1)
    repeats = (state.recent_tokens == first).sum(1)
    is_repeated = (repeats >= state.max_repeats) & ~state.silent_ids[first[:, 0]]

    # Second draw: without the first token, from the `fallback_top_k` likeliest ids or from all ids. It uses
    # the random numbers that follow those of the first draw.
    scores = scores.scatter(1, first, -torch.inf)
    next_draw = state.next_draw + n_first
    if fallback_top_k is None:
        n_second = torch.full_like(n_first, scores.shape[1])
        second = _exponential_race(scores.softmax(1), n_second, state.draws, next_draw)
    else:
        no_limit = torch.ones_like(state.top_p)
        ids, probs, n_second = _nucleus(scores, state.reversed_ids, no_limit, fallback_top_k)
        second = ids.gather(1, _exponential_race(probs, n_second, state.draws, next_draw))

    token = torch.where(is_repeated, second[:, 0], first[:, 0])
    return token, n_first + n_second * is_repeated


def _nucleus(
    scores: Tensor, reversed_ids: Tensor, top_p: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `top_k` likeliest ids, their probabilities, and how many of them are candidates.

    Shapes: (B, top_k), (B, top_k) and (B,).
    """
    all_probs = scores.softmax(1)  # (B, n_ids)
    # `topk` does not say how it orders equal values. So sort by one int64 key: the probability in the upper
    # 32 bits, the reversed id in the lower. The bits of positive float32 numbers, read as an integer, are in
    # the order of the numbers.
    key = (all_probs.view(torch.int32).long() << 32) | reversed_ids
    top_keys = key.topk(top_k, dim=1).values
    ids = len(reversed_ids) - 1 - (top_keys & 0xFFFF_FFFF)
    probs = all_probs.gather(1, ids)
    # An id is a candidate if those before it sum to less than top_p; the first id always is.
    sum_before = F.pad(probs.cumsum(1)[:, :-1], (1, 0))
    n_candidates = (sum_before < top_p[:, None]).sum(1).clamp(min=1)
    return ids, probs, n_candidates


def _exponential_race(probs: Tensor, n_candidates: Tensor, draws: Tensor, next_draw: Tensor) -> Tensor:
    """Draw an index in proportion to its probability, as `models.sampling.draw` does.

    Parameters
    ----------
    probs : Tensor (B, C)
    n_candidates : Tensor (B,)
        How many of a row's probabilities take part, counted from the first.
    draws : Tensor (B, buffer)
    next_draw : Tensor (B,)

    Returns
    -------
    Tensor (B, 1)
    """
    column = torch.arange(probs.shape[1], device=probs.device)
    q = draws.gather(1, (next_draw[:, None] + column) % draws.shape[1])  # (B, C)
    race = (probs / q).masked_fill(column >= n_candidates[:, None], -1.0)  # below all ratios
    return race.argmax(1, keepdim=True)


def _fill_exponential(row: Tensor, generator: torch.Generator) -> None:
    row.exponential_(1, generator=generator)
