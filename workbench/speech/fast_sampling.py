"""Repetition-aware sampling without leaving the device, for several utterances at once.

Same rules and, for the same log-probabilities, same tokens as `Sampler`: its generator is a stream of
exponential draws, of which every choice takes as many as it has candidates. The stream is drawn where it
always was, on the CPU, and the device keeps a window of it and a place in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import LMConfig, Options


class DeviceSampler:
    """Picks the next token of each row.

    Parameters
    ----------
    options : Options
        All but `seed` are the same for every row.
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
        self.options, self.config = options, config
        self.top_k = min(options.top_k, config.n_ids)
        self.second = self.top_k if options.repetition_fallback == "top_k" else config.n_ids
        self.picks = picks
        ids = torch.arange(config.n_ids, device=device)
        self.silent = torch.isin(ids, torch.tensor(sorted(silent_tokens), device=device, dtype=ids.dtype))
        size = config.speech_token_size
        self.stops = ids >= size if options.mask_stop_ids else ids == size
        self.order = config.n_ids - 1 - ids  # of equal probabilities the lower id comes first
        self.recent = torch.full((rows, options.win_size), -1, device=device)
        self.stream = torch.ones(rows, picks * (self.top_k + self.second), device=device)
        self.place = torch.zeros(rows, device=device, dtype=torch.long)
        self._places = torch.zeros(rows, dtype=torch.long)
        self._generators: list[torch.Generator] = []

    def begin(self, seeds: Sequence[int]) -> None:
        """Start anew, with a seed for each row."""
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.recent.fill_(-1)
        self._places.zero_()
        self.place.zero_()
        n = self.stream.shape[1]
        self.stream.copy_(torch.stack([_exponential(n, generator) for generator in self._generators]))

    def refill(self, places: Tensor) -> None:
        """Replace the draws that were used; `places` are the rows' `place`, on the CPU."""
        used = (places - self._places).tolist()
        drawn = torch.cat([_exponential(n, g) for n, g in zip(used, self._generators, strict=True)])
        row = torch.repeat_interleave(torch.tensor(used))
        where = torch.cat([torch.arange(n) + first for n, first in zip(used, self._places, strict=True)])
        where = row * self.stream.shape[1] + where % self.stream.shape[1]
        self.stream.view(-1)[where.to(self.stream.device)] = drawn.to(self.stream.device)
        self._places = places

    def pick(self, logp: Tensor, too_early: Tensor) -> tuple[Tensor, Tensor]:
        """Pick from log-probabilities (B, n_ids); `keep` makes it count.

        Returns
        -------
        token : Tensor (B,)
        used : Tensor (B,)
            Draws that the choice takes.
        """
        o = self.options
        scores = logp.float().masked_fill(too_early[:, None] & self.stops, -torch.inf)
        ids, probs, n = self._nucleus(scores, o.top_p)
        first = self._draw(ids, probs, n, self.place)
        count = (self.recent == first[:, None]).sum(1)
        repeated = count >= o.win_size * o.tau_r
        if not o.silent_tokens_repeat:
            repeated &= ~self.silent[first]
        scores = scores.scatter(1, first[:, None], -torch.inf)
        if o.repetition_fallback == "top_k":
            ids, probs, more = self._nucleus(scores, 1.0)
        else:
            ids, probs = None, scores.softmax(1)
            more = torch.full_like(n, self.config.n_ids)
        second = self._draw(ids, probs, more, self.place + n)
        return torch.where(repeated, second, first), n + more * repeated

    def keep(self, token: Tensor, used: Tensor, going: Tensor) -> None:
        """Move on by tokens (B,) where a row is `going`, by draws everywhere that it is not done."""
        self.place += used
        if self.recent.shape[1]:
            shifted = torch.cat((self.recent[:, 1:], token[:, None]), dim=1)
            self.recent.copy_(torch.where(going[:, None], shifted, self.recent))

    def _nucleus(self, scores: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
        """The `top_k` likeliest ids and probabilities (B, top_k); how many of them are candidates (B,)."""
        every = scores.softmax(1)
        # One whole number for probability and id sorts both: float32 bits of positive numbers are in order.
        key = (every.view(torch.int32).long() << 32) | self.order
        ids = self.config.n_ids - 1 - (key.topk(self.top_k, dim=1).values & 0xFFFF_FFFF)
        probs = every.gather(1, ids)
        before = F.pad(probs.cumsum(1)[:, :-1], (1, 0))
        return ids, probs, (before < top_p).sum(1).clamp(min=1)

    def _draw(self, ids: Tensor | None, probs: Tensor, n: Tensor, place: Tensor) -> Tensor:
        """The exponential race of `draw`, over the first n (B,) of probabilities (B, c)."""
        column = torch.arange(probs.shape[1], device=probs.device)
        q = self.stream.gather(1, (place[:, None] + column) % self.stream.shape[1])
        race = (probs / q).masked_fill(column >= n[:, None], -1.0)
        winner = race.argmax(1)
        return winner if ids is None else ids.gather(1, winner[:, None])[:, 0]


def _exponential(n: int, generator: torch.Generator) -> Tensor:
    return torch.empty(n).exponential_(1, generator=generator)
