"""The LM with less work: a cache of fixed size, one graph a token, sampling on the device.

The host hears of tokens `CHUNK` at a time, while the device works on the next. Until it has heard, a row
that has drawn a stop goes on computing, and counts no longer.

Shape letters: `B` rows, `U` different prompts among them, `P` positions of a prompt, `D` width.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.fast.cuda_graphs import Graph, Graphs, OnItsWay, compiled, has_tf32, sent
from workbench.speech.fast.lm_torch import LayerSteps, doubling
from workbench.speech.fast.sampling import DeviceSampler, keep
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models.lm import LM, KVCache, LMStep

if TYPE_CHECKING:
    from workbench.speech.fast.kernels.lm import LayerKernels

CHUNK = 4  # tokens between two looks at what was drawn
AHEAD = 2  # chunks that a GPU is asked for before the host looks: it takes now more, now less time to draw
PROMPT = 64  # positions: prompts are padded to a multiple of this, so that few graphs read all of them
MOST_READERS = 8  # of those graphs
MOST_IDLE = 2**31  # bytes of the caches that are kept for the next run like theirs
# Options that may differ from row to row, and what stands for them where only the others count.
FREE = {"seed": 0, "top_p": 1.0, "tau_r": 1.0, "max_tokens": None, "max_silent_run": None}


class FastLM:
    """The steps of `LM`, for several utterances at once.

    Parameters
    ----------
    lm : LM
        Its weights are used where they are.
    silent_tokens : sequence of int
        Ids that sound like silence or breath.
    graphs : Graphs
    precise : bool
        Round where `LM` rounds; else bfloat16 weights meet float32 states, and float32 products may be TF32.
    """

    def __init__(self, lm: LM, silent_tokens: Sequence[int], graphs: Graphs, precise: bool = True) -> None:
        self.lm, self.silent_tokens, self.graphs = lm, silent_tokens, graphs
        self.dtype, self.device = lm.llm_decoder.weight.dtype, lm.llm_decoder.weight.device
        self.layers = _layers(lm, precise)
        self.move = compiled(_move, self.device, "rows")
        self.reader = lru_cache(MOST_READERS)(partial(_Reader, self))
        self._idle: list[_Decoder] = []
        self.lock = Lock()  # for what all runs share

    def steps(self, utts: Sequence[Utterance], options: Sequence[Options]) -> Iterator[tuple[int, LMStep]]:
        """Decode until every row has drawn a stop or reached its length limit.

        Parameters
        ----------
        utts : sequence of Utterance
            On the LM's device. One that stands there twice is read once.
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
        different = {id(u): u for u in utts}
        prompts = [
            lm.embed(torch.cat((u.prompt_text_token, u.text_token)), u.lm_prompt_token)[0]
            for u in different.values()
        ]
        whose = [list(different).index(id(u)) for u in utts]
        limits = [lm.limits(len(u.text_token), o.max_tokens) for u, o in zip(utts, options, strict=True)]
        most = max(len(prompts[i]) + longest for i, (_, longest) in zip(whose, limits, strict=True)) + 1
        rules = Options(**options[0].of_stage("lm") | FREE)
        decoder = self._decoder(len(utts), doubling(most)[-1], rules)
        try:
            decoder.begin(prompts, whose, limits, options)
            yield from decoder.decode()
        finally:
            self._put_back(decoder)

    def _decoder(self, *key: Any) -> "_Decoder":
        """One that is decoding for somebody else is left alone: its tensors hold that run."""
        with self.lock:
            for decoder in self._idle:
                if decoder.key == key:
                    self._idle.remove(decoder)
                    return decoder
        return _Decoder(self, *key)

    def _put_back(self, decoder: "_Decoder") -> None:
        with self.lock:
            self._idle.append(decoder)
            while len(self._idle) > 1 and sum(d.cache.nbytes for d in self._idle) > MOST_IDLE:
                self._idle.pop(0)


class _Reader:
    """Reads prompts of one padded length, as a graph: a thousand kernels, too short for the host to keep up.

    What is padded comes after what is real: no real position sees it, and decoding writes over it.
    """

    def __init__(self, fast: FastLM, n: int, length: int) -> None:
        self.lm = fast.lm
        self.x = torch.zeros(n, length, self.lm.config.hidden_size, device=fast.device, dtype=fast.dtype)
        self.row = torch.arange(n, device=fast.device)
        self.last = torch.zeros_like(self.row)
        self.graph = fast.graphs.capture(self._read)

    def __call__(self, prompts: Sequence[Tensor], last: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (U, n_ids) behind the last positions; keys and values, both overwritten next."""
        self.x.zero_()
        for x, prompt in zip(self.x, prompts, strict=True):
            x[: len(prompt)] = prompt
        self.last.copy_(last)
        return self.graph()

    def _read(self) -> tuple[Tensor, Tensor]:
        cache = KVCache(self.lm.config.num_hidden_layers)
        hidden = self.lm.qwen(self.x, cache)[self.row, self.last]
        kept = [torch.stack(pair) for pair in zip(cache.keys, cache.values, strict=True)]
        return self.lm.logp(hidden), torch.stack(kept)  # (layers, 2, U, H, P, head_dim)


class _Decoder:
    """What one batch of utterances needs while it is decoded."""

    def __init__(self, fast: FastLM, n: int, positions: int, options: Options) -> None:
        lm, device = fast.lm, fast.device
        c = lm.config
        self.fast, self.n, self.positions = fast, n, positions
        self.key = (n, positions, options)

        def whole(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=device, dtype=torch.long)

        self.position, self.count, self.shortest, self.longest = (whole(n) for _ in range(4))
        self.tick = whole(1)
        self.done = torch.ones(n, device=device, dtype=torch.bool)
        self.spoiled = torch.zeros_like(self.done)
        wide = torch.promote_types(fast.dtype, torch.float32)
        self.logp = torch.zeros(n, c.n_ids, device=device, dtype=wide)
        self.drawn, self.seen = whole(n, CHUNK), self.logp[:, None].repeat(1, CHUNK, 1)
        shape = (c.num_hidden_layers, 2, n, c.num_key_value_heads, positions, c.head_dim)
        self.cache = torch.zeros(shape, device=device, dtype=fast.dtype)
        self.cos, self.sin = lm.qwen.rope(0, positions, self.logp.to(fast.dtype))
        self.ahead = AHEAD if device.type == "cuda" else 0
        # The device may be so far ahead of the draws that it is sent.
        picks = (self.ahead + 1) * CHUNK
        self.sampler = DeviceSampler(options, c, fast.silent_tokens, n, picks, device)
        self._farthest = 0  # position that any row can have reached
        self._left = 0  # tokens that a row may still draw
        with fast.graphs.notice():
            fast.layers.prepare(n)
        # Now, and not when a run outgrows one: capturing takes longer than many tokens.
        self._graphs = {
            length: fast.graphs.capture(partial(self._step, length))
            for length in fast.layers.lengths(positions)
        }

    def begin(
        self,
        prompts: Sequence[Tensor],
        whose: Sequence[int],
        limits: Sequence[tuple[int, int]],
        options: Sequence[Options],
    ) -> None:
        """Read the prompts (P, D), all at once; row i goes on from prompt whose[i]."""
        lengths, fast = [len(p) for p in prompts], self.fast
        last, row = sent([n - 1 for n in lengths], self.position), sent(whose, self.position)
        self.position.copy_((last + 1)[row])
        self.shortest.copy_(sent([low for low, _ in limits], self.shortest))
        self.longest.copy_(sent([high for _, high in limits], self.longest))
        self.cache.zero_()  # of a run that overflowed: even what is not looked at must be finite
        with fast.lock:
            logp, read = fast.reader(len(prompts), -(-max(lengths) // PROMPT) * PROMPT)(prompts, last)
            self.logp.copy_(logp[row])
            self.cache[..., : max(lengths), :] = read[:, :, row, :, : max(lengths)]
        for state in (self.count, self.tick, self.spoiled):
            state.zero_()
        torch.ge(self.count, self.longest, out=self.done)
        self.sampler.begin(options)
        self._farthest, self._left = max(lengths), max(high for _, high in limits)

    def decode(self) -> Iterator[tuple[int, LMStep]]:
        """Yield each row's steps."""
        counts = [0] * self.n
        over, coming = all(self.done.tolist()), deque[tuple[OnItsWay, Tensor]]()
        while not over:
            while self._left > 0 and len(coming) <= self.ahead:
                coming.append(self._chunk())
            told, seen = coming.popleft()
            place, spoiled, done, *drawn = told.tolist()
            if any(spoiled):
                raise WorkbenchError(
                    f"the LM's log-probabilities are NaN after token {min(counts)}; float16 overflows so. "
                    "Try lm_dtype='bfloat16' or 'float32'"
                )
            for tick, tokens in enumerate(drawn):
                for row, (token, logp) in enumerate(zip(tokens, seen[tick].unbind(), strict=True)):
                    if token >= 0:
                        yield row, LMStep(counts[row], token, logp)
                        counts[row] += 1
            over = all(done)
            self.sampler.refill(place)

    def _chunk(self) -> tuple[OnItsWay, Tensor]:
        """Let the device draw tokens; what the host wants to know of them, and their log-probabilities."""
        self._left -= CHUNK
        self._farthest = min(self._farthest + CHUNK, self.positions)
        step = self._graph()
        for _ in range(CHUNK):
            step()
        state = torch.stack((self.sampler.choice.place, self.spoiled.long(), self.done.long()))
        return OnItsWay(torch.cat((state, self.drawn.T))), self.seen.transpose(0, 1).clone()

    def _graph(self) -> Graph:
        return self._graphs[min(length for length in self._graphs if length >= self._farthest)]

    def _step(self, length: int) -> None:
        """Pick a token from what is known, then work out what follows it, looking at `length` positions."""
        fast, lm = self.fast, self.fast.lm
        token, used = self.sampler.pick(self.logp, self.count < self.shortest)
        x = lm.speech_embedding.weight[token]  # an embedding layer takes 10 us for this
        logits = fast.layers.logits(x, self.cache, self.cos, self.sin, self.position, length)
        fast.move(
            token,
            used,
            lm.config.speech_token_size,
            self.logp,
            self.done,
            self.spoiled,
            self.drawn,
            self.seen,
            self.tick,
            self.count,
            self.position,
            self.longest,
            self.sampler.choice.place,
            self.sampler.choice.recent,
        )
        torch.log_softmax(logits.to(self.logp.dtype), -1, out=self.logp)


def _layers(lm: LM, precise: bool) -> "LayerSteps | LayerKernels":
    """What goes through the layers; on a GPU the kernels, unless they would round in another way."""
    weight = lm.llm_decoder.weight
    alike = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not precise)
    if alike and has_tf32(weight.device) and lm.config.head_dim.bit_count() == 1:
        from workbench.speech.fast.kernels.lm import LayerKernels  # it needs Triton, which only GPUs have

        return LayerKernels(lm, "tf32x3" if precise else "tf32")
    return LayerSteps(lm)


def _move(
    token: Tensor,
    used: Tensor,
    stops_from: int,
    logp: Tensor,
    done: Tensor,
    spoiled: Tensor,
    drawn: Tensor,
    seen: Tensor,
    tick: Tensor,
    count: Tensor,
    position: Tensor,
    longest: Tensor,
    place: Tensor,
    recent: Tensor,
) -> None:
    """Keep a token and what it was picked from, and go on."""
    alive = ~done
    going = alive & (token < stops_from)
    drawn.index_copy_(1, tick, torch.where(going, token, -1)[:, None])
    seen.index_copy_(1, tick, logp[:, None])
    spoiled |= alive & logp.isnan().any(1)
    tick.add_(1).remainder_(drawn.shape[1])
    count += going
    position += going
    done |= ~going | (count >= longest)
    keep(token, used * alive, going, place, recent)
