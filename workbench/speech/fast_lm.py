"""The LM with less work: a cache of fixed size, one graph a token, sampling on the device.

The host hears of tokens every `CHUNK` steps. Until then a row that has drawn a stop goes on computing, and
counts no longer.

Shape letters: `B` utterances, `S` positions a graph looks at, `D` width, `H` heads of keys, `G` queries each.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.fast_sampling import DeviceSampler
from workbench.speech.frontend import Utterance
from workbench.speech.graphs import Graph, Graphs, compiled
from workbench.speech.joined import join_rows
from workbench.speech.lm import LM, KVCache, Layer, LMStep, rotate_half

CHUNK = 8  # tokens between two looks at what was drawn
MOST_IDLE = 2**31  # bytes of the caches that are kept for the next run like theirs
# Options that may differ from row to row, and what stands for them where only the others count.
FREE = {"seed": 0, "top_p": 1.0, "tau_r": 1.0, "max_tokens": None, "max_silent_run": None}
LEAST_POSITIONS = 512  # a graph looks at this many or twice, four times, ... as many


class FastLM:
    """The steps of `LM`, for several utterances at once.

    Parameters
    ----------
    lm : LM
        Its weights are used where they are.
    silent_tokens : sequence of int
        Ids that sound like silence or breath.
    graphs : Graphs
    """

    def __init__(self, lm: LM, silent_tokens: Sequence[int], graphs: Graphs) -> None:
        self.lm, self.silent_tokens, self.graphs = lm, silent_tokens, graphs
        self.dtype, self.device = lm.llm_decoder.weight.dtype, lm.llm_decoder.weight.device
        ask, answer = (compiled(function, self.device, "rows") for function in (_ask, _answer))
        self.layers = [_Layer(layer, lm, ask, answer) for layer in lm.qwen.layers]
        self._idle: list[_Decoder] = []
        self._lock = Lock()

    def steps(self, utts: Sequence[Utterance], options: Sequence[Options]) -> Iterator[tuple[int, LMStep]]:
        """Decode until every row has drawn a stop or reached its length limit.

        Parameters
        ----------
        utts : sequence of Utterance
            On the LM's device.
        options : sequence of Options
            seed, top_p, tau_r and max_tokens may differ, other options of sampling may not.

        Yields
        ------
        row : int
        step : LMStep
            In order within a row.

        Raises
        ------
        WorkbenchError
            When log-probabilities are NaN.
        """
        lm = self.lm
        embedded = [
            lm.embed(torch.cat((u.prompt_text_token, u.text_token)), u.lm_prompt_token)[0] for u in utts
        ]
        limits = [lm.limits(len(u.text_token), o.max_tokens) for u, o in zip(utts, options, strict=True)]
        most = max(len(e) + longest for e, (_, longest) in zip(embedded, limits, strict=True)) + 1
        *_, positions = _doubling(most)
        rules = Options(**options[0].of_stage("lm") | FREE)
        decoder = self._decoder(len(utts), positions, rules)
        try:
            decoder.begin(embedded, limits, options)
            yield from decoder.decode()
        finally:
            self._put_back(decoder)

    def _decoder(self, *key: Any) -> "_Decoder":
        """One that is decoding for somebody else is left alone: its tensors hold that run."""
        with self._lock:
            for decoder in self._idle:
                if decoder.key == key:
                    self._idle.remove(decoder)
                    return decoder
        return _Decoder(self, *key)

    def _put_back(self, decoder: "_Decoder") -> None:
        with self._lock:
            self._idle.append(decoder)
            while len(self._idle) > 1 and sum(d.cache.nbytes for d in self._idle) > MOST_IDLE:
                self._idle.pop(0)


class _Decoder:
    """What one batch of utterances needs while it is decoded."""

    def __init__(self, fast: FastLM, n: int, positions: int, options: Options) -> None:
        lm, device = fast.lm, fast.device
        c = lm.config
        self.fast, self.n, self.positions = fast, n, positions
        self.key = (n, positions, options)

        def whole(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=device, dtype=torch.long)

        self.row, self.tick = torch.arange(n, device=device), whole(1)
        self.position, self.count, self.shortest, self.longest = (whole(n) for _ in range(4))
        self.done = torch.ones(n, device=device, dtype=torch.bool)
        self.spoiled = torch.zeros_like(self.done)
        wide = torch.promote_types(fast.dtype, torch.float32)
        self.logp = torch.zeros(n, c.n_ids, device=device, dtype=wide)
        self.drawn, self.seen = whole(CHUNK, n), self.logp.repeat(CHUNK, 1, 1)
        shape = (c.num_hidden_layers, 2, n, c.num_key_value_heads, positions, c.head_dim)
        self.cache = torch.zeros(shape, device=device, dtype=fast.dtype)
        self.cos, self.sin = lm.qwen.rope(0, positions, self.logp.to(fast.dtype))
        self.sampler = DeviceSampler(options, c, fast.silent_tokens, n, CHUNK, device)
        self._farthest = 0  # position that any row can have reached
        # Now, and not when a run outgrows one: capturing takes longer than many tokens.
        self._graphs = [fast.graphs.capture(partial(self._step, n)) for n in _doubling(positions)]

    def begin(
        self, embedded: Sequence[Tensor], limits: Sequence[tuple[int, int]], options: Sequence[Options]
    ) -> None:
        """Read the prompts (P, D) of all rows at once."""
        self.cache.zero_()  # of a run that overflowed: even what is not looked at must be finite
        lm, lengths = self.fast.lm, [len(e) for e in embedded]
        cache = KVCache(lm.config.num_hidden_layers)
        # What is padded comes after what is real: no real position sees it, and decoding writes over it.
        padded = torch.stack([F.pad(e, (0, 0, 0, max(lengths) - len(e))) for e in embedded])
        for fixed, values in (
            (self.position, lengths),
            (self.shortest, [low for low, _ in limits]),
            (self.longest, [high for _, high in limits]),
        ):
            fixed.copy_(torch.tensor(values))
        with self.fast.graphs.computing():
            hidden = lm.qwen(padded, cache)[self.row, self.position - 1]
            self.logp.copy_(lm.logp(hidden))
        for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
            self.cache[layer, 0, :, :, : max(lengths)] = keys
            self.cache[layer, 1, :, :, : max(lengths)] = values
        for state in (self.count, self.tick, self.spoiled):
            state.zero_()
        torch.ge(self.count, self.longest, out=self.done)
        self.sampler.begin(options)
        self._farthest = max(lengths)

    def decode(self) -> Iterator[tuple[int, LMStep]]:
        """Yield each row's steps."""
        counts = [0] * self.n
        done = self.done.tolist()
        while not all(done):
            self._farthest += CHUNK
            step = self._graph()
            for _ in range(CHUNK):
                step()
            place = self.sampler.choice.place
            told = torch.stack((place, self.spoiled.long(), self.done.long()))
            place, spoiled, done, *drawn = torch.cat((told, self.drawn)).tolist()
            if any(spoiled):
                raise WorkbenchError(
                    f"the LM's log-probabilities are NaN after token {min(counts)}; float16 overflows so. "
                    "Try lm_dtype='bfloat16' or 'float32'"
                )
            seen = self.seen.flatten(0, 1).clone().unbind()
            for tick, tokens in enumerate(drawn):
                for row, token in enumerate(tokens):
                    if token >= 0:
                        yield row, LMStep(counts[row], token, seen[tick * self.n + row])
                        counts[row] += 1
            self.sampler.refill(place)

    def _graph(self) -> Graph:
        lengths = _doubling(min(self._farthest, self.positions))
        return self._graphs[len(lengths) - 1]

    def _step(self, length: int) -> None:
        """Pick a token from what is known, then work out what follows it, looking at `length` positions."""
        alive = ~self.done
        token, used = self.sampler.pick(self.logp, self.count < self.shortest)
        going = alive & (token < self.fast.lm.config.speech_token_size)
        self.sampler.keep(token, used * alive, going)
        self.drawn.index_copy_(0, self.tick, torch.where(going, token, -1)[None])
        self.seen.index_copy_(0, self.tick, self.logp[None])
        self.spoiled |= alive & self.logp.isnan().any(1)
        self.tick.add_(1).remainder_(CHUNK)
        self.logp.copy_(self._next_logp(token, length))
        self.count += going
        self.position += going
        self.done |= ~going | (self.count >= self.longest)

    def _next_logp(self, token: Tensor, length: int) -> Tensor:
        lm = self.fast.lm
        x = lm.speech_embedding(token)
        turn = self.cos[self.position], self.sin[self.position]
        visible = torch.arange(length, device=x.device) <= self.position[:, None]
        hidden = torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf)
        hidden = hidden.repeat_interleave(lm.config.num_key_value_heads, dim=0)[:, None]  # (B H, 1, S)
        for layer, cache in zip(self.fast.layers, self.cache, strict=True):
            q, new = layer.ask(x, *turn)
            cache[:, self.row, :, self.position] = new
            k, v = (y[:, :, :length].flatten(0, 1) for y in cache)
            scores = torch.baddbmm(hidden, q.flatten(0, 1), k.mT, alpha=lm.config.head_dim**-0.5)
            x = layer.answer(x, torch.bmm(scores.softmax(-1), v).view(len(x), -1))
        return lm.logp(lm.qwen.norm(x))


def _doubling(positions: int) -> list[int]:
    """How many positions each graph looks at, until one sees so many."""
    lengths = [LEAST_POSITIONS]
    while lengths[-1] < positions:
        lengths.append(2 * lengths[-1])
    return lengths


class _Layer:
    """What one layer does with one position, before and after it has looked back."""

    def __init__(self, layer: Layer, lm: LM, ask: Callable, answer: Callable) -> None:
        attn, mlp, c = layer.self_attn, layer.mlp, lm.config
        self._ask, self._answer = ask, answer
        self.sizes = c.num_key_value_heads, c.head_dim
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = join_rows(attn.q_proj, attn.k_proj, attn.v_proj)
        self.gate_up, _ = join_rows(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = attn.o_proj.weight, mlp.down_proj.weight

    def ask(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> queries (B, H, G, head_dim); keys and values (B, 2, H, head_dim)."""
        norm = self.norms[0]
        return self._ask(x, cos, sin, norm.weight, norm.eps, *self.qkv, *self.sizes)

    def answer(self, x: Tensor, seen: Tensor) -> Tensor:
        """(B, D) and what was seen, (B, heads * head_dim) -> (B, D)."""
        norm = self.norms[1]
        return self._answer(x, seen, norm.weight, norm.eps, self.out, self.gate_up, self.down)


def _ask(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    n: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    y = F.linear(_rms_norm(x, norm, eps), weight, bias).unflatten(-1, (-1, dim))  # (B, heads + 2 H, dim)
    q, k, v = y.split((y.shape[1] - 2 * n, n, n), dim=1)
    turn = cos[:, None], sin[:, None]
    return rotate_half(q, *turn).unflatten(1, (n, -1)), torch.stack((rotate_half(k, *turn), v), dim=1)


def _answer(
    x: Tensor, seen: Tensor, norm: Tensor, eps: float, out: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    x = x + F.linear(seen, out)
    gate, up = F.linear(_rms_norm(x, norm, eps), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
