"""Repetition-aware sampling without leaving the device, for several utterances at once.

Same rules and, for the same log-probabilities, same tokens as `Sampler`: its generator is a stream of
exponential draws, of which every choice takes as many as it has candidates. The stream is drawn where it
always was, on the CPU, and the device keeps a window of it and a place in it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import LMConfig, Options
from workbench.speech.fast.cuda_graphs import compiled, sent

MANY = 200_000  # draws; they take 4 ms


class Choice(NamedTuple):
    """What one token is picked by; tensors stay where they are while a run lasts."""

    stops: Tensor  # (n_ids,) bool, masked while it is too early
    silent: Tensor  # (n_ids,) bool, ids that never count as repeated
    order: Tensor  # (n_ids,) of equal probabilities the lower id comes first
    top_p: Tensor  # (B,) float32
    repeats: Tensor  # (B,) float64, how many within the window are too many
    recent: Tensor  # (B, win_size) latest tokens, -1 where there is none yet
    stream: Tensor  # (B, window) draws, round and round
    place: Tensor  # (B,) of the next draw, counted from the start


class DeviceSampler:
    """Picks the next token of each row.

    Parameters
    ----------
    options : Options
        top_k, win_size, what repeats and what then, and what stops are the same for every row.
    config : LMConfig
        Which ids stop.
    silent_tokens : sequence of int
        Ids that sound like silence or breath.
    rows : int
    picks : int
        Tokens picked between two calls of `refill`.
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
        self.again = self.top_k if options.repetition_fallback == "top_k" else None
        ids = torch.arange(config.n_ids, device=device)
        size = config.speech_token_size
        free = () if options.silent_tokens_repeat else sorted(silent_tokens)
        window = picks * (self.top_k + (self.again or config.n_ids))
        self.choice = Choice(
            stops=ids >= size if options.mask_stop_ids else ids == size,
            silent=torch.isin(ids, torch.tensor(free, device=device, dtype=ids.dtype)),
            order=config.n_ids - 1 - ids,
            top_p=torch.ones(rows, device=device),
            repeats=torch.ones(rows, device=device, dtype=torch.float64),
            recent=torch.full((rows, options.win_size), -1, device=device),
            stream=torch.ones(rows, window, device=device),
            place=torch.zeros(rows, device=device, dtype=torch.long),
        )
        self._choose = compiled(_choose, device, "rows")
        self._places = [0] * rows
        self._generators: list[torch.Generator] = []
        self._pool = ThreadPoolExecutor(8)

    def begin(self, options: Sequence[Options]) -> None:
        """Start anew, with the seed, top_p and tau_r of each row."""
        c = self.choice
        self._generators = [torch.Generator().manual_seed(o.seed) for o in options]
        c.top_p.copy_(torch.tensor([o.top_p for o in options]))
        c.repeats.copy_(torch.tensor([o.win_size * o.tau_r for o in options], dtype=torch.float64))
        c.recent.fill_(-1)
        c.place.zero_()
        self._places = [0] * len(options)
        drawn = torch.empty(c.stream.shape)
        self._draw(list(drawn))
        c.stream.copy_(drawn)

    def refill(self, places: Sequence[int]) -> None:
        """Replace the draws that were used; `places` are the rows' `place`."""
        stream = self.choice.stream
        used = [new - old for new, old in zip(places, self._places, strict=True)]
        drawn = torch.empty(sum(used), pin_memory=stream.is_cuda)
        self._draw(list(drawn.split(used)))
        drawn = drawn.to(stream.device, non_blocking=True)
        count = sent([used, self._places], self.choice.place)
        row = torch.repeat_interleave(count[0], output_size=sum(used))
        first = count[1] - count[0].cumsum(0) + count[0]
        column = (torch.arange(sum(used), device=stream.device) + first[row]) % stream.shape[1]
        stream[row, column] = drawn
        self._places = list(places)

    def pick(self, logp: Tensor, too_early: Tensor) -> tuple[Tensor, Tensor]:
        """Pick from log-probabilities (B, n_ids); `keep`, to be compiled with the rest, makes it count.

        Returns
        -------
        token : Tensor (B,)
        used : Tensor (B,)
            Draws that the choice takes.
        """
        return self._choose(logp, too_early, *self.choice, self.top_k, self.again)

    def _draw(self, rows: Sequence[Tensor]) -> None:
        """Fill each row from its generator; side by side they go faster if they are many."""
        if sum(map(len, rows)) < MANY:
            list(map(_exponential, rows, self._generators))
        else:
            list(self._pool.map(_exponential, rows, self._generators))


def _choose(
    logp: Tensor,
    too_early: Tensor,
    stops: Tensor,
    silent: Tensor,
    order: Tensor,
    top_p: Tensor,
    repeats: Tensor,
    recent: Tensor,
    stream: Tensor,
    place: Tensor,
    top_k: int,
    again: int | None,
) -> tuple[Tensor, Tensor]:
    """Draw from the nucleus; where that repeats, mask it and draw again from `again` ids, or from all."""
    scores = logp.float().masked_fill(too_early[:, None] & stops, -torch.inf)
    ids, probs, n = _nucleus(scores, order, top_p, top_k)
    first = ids.gather(1, _race(probs, n, stream, place))
    repeated = ((recent == first).sum(1) >= repeats) & ~silent[first[:, 0]]
    scores = scores.scatter(1, first, -torch.inf)
    if again is None:
        more = torch.full_like(n, scores.shape[1])
        second = _race(scores.softmax(1), more, stream, place + n)
    else:
        ids, probs, more = _nucleus(scores, order, torch.ones_like(top_p), again)
        second = ids.gather(1, _race(probs, more, stream, place + n))
    return torch.where(repeated, second[:, 0], first[:, 0]), n + more * repeated


def keep(token: Tensor, used: Tensor, going: Tensor, place: Tensor, recent: Tensor) -> None:
    """Move `Choice.place` on by the draws used; keep tokens (B,) in `Choice.recent` where a row is going."""
    place += used
    if recent.shape[1]:
        shifted = torch.cat((recent[:, 1:], token[:, None]), dim=1)
        recent.copy_(torch.where(going[:, None], shifted, recent))


def _nucleus(scores: Tensor, order: Tensor, top_p: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `top_k` likeliest ids and probabilities (B, top_k); how many of them are candidates (B,)."""
    every = scores.softmax(1)
    # One whole number for probability and id sorts both: float32 bits of positive numbers are in order.
    key = (every.view(torch.int32).long() << 32) | order
    ids = len(order) - 1 - (key.topk(top_k, dim=1).values & 0xFFFF_FFFF)
    probs = every.gather(1, ids)
    before = F.pad(probs.cumsum(1)[:, :-1], (1, 0))
    return ids, probs, (before < top_p[:, None]).sum(1).clamp(min=1)


def _race(probs: Tensor, n: Tensor, stream: Tensor, place: Tensor) -> Tensor:
    """The exponential race of `draw`, over the first n (B,) of probabilities (B, c): (B, 1)."""
    column = torch.arange(probs.shape[1], device=probs.device)
    q = stream.gather(1, (place[:, None] + column) % stream.shape[1])
    race = (probs / q).masked_fill(column >= n[:, None], -1.0)
    return race.argmax(1, keepdim=True)


def _exponential(row: Tensor, generator: torch.Generator) -> None:
    row.exponential_(1, generator=generator)
