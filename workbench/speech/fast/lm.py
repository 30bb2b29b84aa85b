"""The LM made fast: a cache of fixed size, one CUDA graph for a few tokens, sampling on the device.

How a batch is decoded:

1. `FastLM.steps` embeds the prompts and takes a `_BatchDecoder` that is idle, or makes one.
2. `PromptReader` reads all prompts at once and fills the key-value cache.
3. The device decodes a chunk of `CHUNK_TOKENS` tokens (`_BatchDecoder._decode_chunk`, a CUDA graph), sends it
   to the host and goes on with the next chunk. The host yields the tokens and draws new random numbers.
4. The device computes every row until all rows have stopped. Tokens of a row that has stopped do not count.

Shape letters: `B` rows of the batch, `U` different prompts among them, `P` positions of a prompt, `D` width,
`H` heads of keys and values.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.fast.cuda_graphs import AsyncCopy, CudaGraphPool, can_compile_tf32, to_device_async
from workbench.speech.fast.decode_state import DecodeState, Record
from workbench.speech.fast.lm_prompt import PromptReader
from workbench.speech.fast.lm_torch import FusedLayer, TorchDecodeStep, doubled_lengths, fuse_layers
from workbench.speech.fast.sampling import DeviceSampler
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models.lm import LM, LMStep

if TYPE_CHECKING:
    from workbench.speech.fast.kernels.lm import TritonDecodeStep

CHUNK_TOKENS = 4  # tokens decoded between two transfers to the host; rows stop only after a chunk
# Chunks queued on a GPU behind the one that the host waits for. They keep the GPU busy while the host draws
# random numbers, which takes a varying time.
CHUNKS_AHEAD = 2
PROMPT_BUCKET = 64  # positions; prompts are padded to a multiple, so that a few graphs serve all lengths
MAX_PROMPT_GRAPHS = 8  # graphs for reading prompts that are kept; the least recently used is dropped
MAX_IDLE_CACHE_BYTES = 2**31  # 2 GiB for the key-value caches of idle decoders, kept for later runs
# Options that may differ between the rows of a batch. A decoder serves rows with any values of these
# options. The key of an idle decoder therefore holds the defaults below in their place.
PER_ROW_OPTIONS = {"seed": 0, "top_p": 1.0, "tau_r": 1.0, "max_tokens": None, "max_silent_run": None}


class FastLM:
    """Decode several utterances at once; each gets the same tokens as from `LM.steps`.

    Make one with `FastLM.consume`.

    Parameters
    ----------
    lm : LM
    layers : list of FusedLayer
        What `fuse_layers` returned for the same LM.
    decode_step : TorchDecodeStep or TritonDecodeStep
        Made from the same LM.
    silent_tokens : sequence of int
        Ids that sound like silence or breath.
    graphs : CudaGraphPool
    """

    def __init__(
        self,
        lm: LM,
        layers: list[FusedLayer],
        decode_step: "TorchDecodeStep | TritonDecodeStep",
        silent_tokens: Sequence[int],
        graphs: CudaGraphPool,
    ) -> None:
        self.lm, self.decode_step, self.silent_tokens, self.graphs = lm, decode_step, silent_tokens, graphs
        self.dtype, self.device = lm.llm_decoder.weight.dtype, lm.llm_decoder.weight.device
        # (number of prompts, padded length) -> PromptReader
        self.prompt_reader = lru_cache(MAX_PROMPT_GRAPHS)(partial(PromptReader, lm, layers, graphs))
        self.lock = Lock()  # held while the prompt readers or the list of idle decoders are used
        self._idle: list[_BatchDecoder] = []

    @classmethod
    def consume(
        cls, lm: LM, silent_tokens: Sequence[int], graphs: CudaGraphPool, exact: bool = True
    ) -> "FastLM":
        """Build the fast path from an LM that nobody else uses.

        The LM's parameters become views of fused weights, so that no weight is stored twice.

        Parameters
        ----------
        lm : LM
        silent_tokens : sequence of int
            Ids that sound like silence or breath.
        graphs : CudaGraphPool
        exact : bool
            True: every result has the precision that it has in `LM`. False: a GPU may compute float32
            products in TF32, and hidden states may stay in float32 where the weights are bfloat16.
        """
        layers = fuse_layers(lm)
        if not _can_use_kernels(lm, exact):
            return cls(lm, layers, TorchDecodeStep(lm, layers), silent_tokens, graphs)
        from workbench.speech.fast.kernels.lm import TritonDecodeStep  # needs Triton

        decode_step = TritonDecodeStep(lm, layers, "tf32x3" if exact else "tf32")
        return cls(lm, layers, decode_step, silent_tokens, graphs)

    def steps(
        self,
        utts: Sequence[Utterance],
        options: Sequence[Options],
        wanted: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, LMStep]]:
        """Decode until every row has drawn a stop id or reached its length limit.

        Parameters
        ----------
        utts : sequence of Utterance
            One for each row, on the LM's device. An utterance given twice is read once.
        options : sequence of Options
            One for each row. Options of the LM other than `PER_ROW_OPTIONS` must be the same.
        wanted : callable () -> int, optional
            How many more steps of a row the caller takes before it turns to other work. Decoding does not run
            further ahead, since the GPU would do the other work only after it.

        Yields
        ------
        row : int
        step : LMStep
            The steps of one row come in order. Stop ids are not yielded.

        Raises
        ------
        WorkbenchError
            If log-probabilities are NaN.
        """
        # Embed each different utterance once.
        prompts: list[Tensor] = []  # (P, D) each
        prompt_of_utt: dict[int, int] = {}
        for utt in utts:
            if id(utt) not in prompt_of_utt:
                prompt_of_utt[id(utt)] = len(prompts)
                text = torch.cat((utt.prompt_text_token, utt.text_token))
                prompts.append(self.lm.embed(text, utt.lm_prompt_token)[0])
        prompt_of_row = [prompt_of_utt[id(utt)] for utt in utts]

        # The cache must hold the longest row: its prompt, its tokens, and the stop id after them.
        limits = []  # (fewest, most) tokens of each row
        positions = 0
        for utt, o, prompt_index in zip(utts, options, prompt_of_row, strict=True):
            min_tokens, max_tokens = self.lm.limits(len(utt.text_token), o.max_tokens)
            limits.append((min_tokens, max_tokens))
            positions = max(positions, len(prompts[prompt_index]) + max_tokens + 1)

        shared_options = Options(**{**options[0].of_stage("lm"), **PER_ROW_OPTIONS})
        cache_length = doubled_lengths(positions)[-1]  # rounded up to 512, 1024, 2048, ...
        decoder = self._take_decoder(len(utts), cache_length, shared_options)
        try:
            decoder.begin(prompts, prompt_of_row, limits, options)
            yield from decoder.decode(wanted)
        finally:
            self._put_back(decoder)

    def _take_decoder(self, rows: int, positions: int, options: Options) -> "_BatchDecoder":
        """Return an idle decoder of this size, or else a new one; a decoder in use cannot be shared."""
        with self.lock:
            for decoder in self._idle:
                if decoder.key == (rows, positions, options):
                    self._idle.remove(decoder)
                    return decoder
        return _BatchDecoder(self, rows, positions, options)

    def _put_back(self, decoder: "_BatchDecoder") -> None:
        """Keep a decoder for later runs; drop the oldest while the caches take too much memory."""
        with self.lock:
            self._idle.append(decoder)
            while len(self._idle) > 1 and sum(d.cache.nbytes for d in self._idle) > MAX_IDLE_CACHE_BYTES:
                self._idle.pop(0)


def _can_use_kernels(lm: LM, exact: bool) -> bool:
    """Return whether the Triton kernels can replace torch.

    The kernels keep the hidden states between the layers in float32. `LM` rounds these states to the type of
    its weights, so with half-precision weights the kernels are not exact. The kernels support float32 and
    bfloat16.
    """
    weight = lm.llm_decoder.weight
    is_accurate_enough = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not exact)
    head_dim_is_power_of_two = lm.config.head_dim.bit_count() == 1  # the attention kernel needs that
    return is_accurate_enough and can_compile_tf32(weight.device) and head_dim_is_power_of_two


class _BatchDecoder:
    """The cache, state, sampler and CUDA graphs of batches of one size. It decodes one batch at a time.

    Parameters
    ----------
    fast : FastLM
    rows : int
    positions : int
        Length of the cache, which holds prompt and tokens.
    options : Options
        The sampling options that all rows share.
    """

    def __init__(self, fast: FastLM, rows: int, positions: int, options: Options) -> None:
        lm, device, c = fast.lm, fast.device, fast.lm.config
        self.fast, self.positions = fast, positions
        self.key = (rows, positions, options)
        logp_dtype = torch.promote_types(fast.dtype, torch.float32)
        self.state = DecodeState.zeros(rows, c.n_ids, logp_dtype, device)
        # What `Record` holds, of each token of the current chunk.
        self._chunk_tokens = torch.zeros(CHUNK_TOKENS, rows, device=device, dtype=torch.long)
        self._chunk_logp = torch.zeros(CHUNK_TOKENS, rows, c.n_ids, device=device, dtype=logp_dtype)
        cache_shape = (c.num_hidden_layers, 2, rows, c.num_key_value_heads, positions, c.head_dim)
        self.cache = torch.zeros(cache_shape, device=device, dtype=fast.dtype)  # keys and values
        self.cos, self.sin = lm.qwen.rope(0, positions, like=self.cache)  # (positions, head_dim / 2) each
        self.chunks_ahead = CHUNKS_AHEAD if device.type == "cuda" else 0
        # The device may pick the tokens of all queued chunks before new random numbers reach it.
        picks_between_refills = (self.chunks_ahead + 1) * CHUNK_TOKENS
        self.sampler = DeviceSampler(options, c, fast.silent_tokens, rows, picks_between_refills, device)
        self._max_position = 0  # no row can be beyond this position of the cache
        self._tokens_left = 0  # tokens still to be queued for the row with the highest limit
        with fast.graphs.on_compile():
            fast.decode_step.compile_for(rows)
        # One graph for each number of cached positions that attention may read. All are captured now and not
        # when a run first needs them, since capturing a graph takes longer than decoding many tokens.
        self._graphs = {}
        for length in fast.decode_step.attention_lengths(positions):
            self._graphs[length] = fast.graphs.capture(partial(self._decode_chunk, length))

    def begin(
        self,
        prompts: Sequence[Tensor],
        prompt_of_row: Sequence[int],
        limits: Sequence[tuple[int, int]],
        options: Sequence[Options],
    ) -> None:
        """Read the prompts and set up the state of each row.

        Parameters
        ----------
        prompts : sequence of Tensor (P, D)
            The U different prompts, embedded.
        prompt_of_row : sequence of int
            Index of each row's prompt.
        limits : sequence of (int, int)
            Fewest and most tokens of each row.
        options : sequence of Options
            One for each row.
        """
        fast, state = self.fast, self.state
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        rows = []
        for prompt, (min_tokens, max_tokens) in zip(prompt_of_row, limits, strict=True):
            rows.append((prompt, lengths[prompt], min_tokens, max_tokens))

        self.sampler.begin(options)
        last_position = to_device_async([length - 1 for length in lengths], like=state.position)  # (U,)
        padded_length = math.ceil(longest / PROMPT_BUCKET) * PROMPT_BUCKET
        with fast.lock:
            # What follows is queued while the device reads the prompts.
            logp, prompt_cache = fast.prompt_reader(len(prompts), padded_length)(prompts, last_position)
            numbers = to_device_async(rows, like=state.position)  # (B, 4)
            prompt_index, position, row_min_tokens, row_max_tokens = numbers.unbind(1)
            state.logp.copy_(logp[prompt_index])
            # Clear the cache: the run before may have overflowed and left infinite values. Attention gives
            # weight 0 to masked positions, but 0 * inf is NaN.
            self.cache.zero_()
            # (layers, 2, U, H, padded length, head_dim) -> (layers, 2, B, H, longest, head_dim)
            self.cache[..., :longest, :] = prompt_cache[:, :, prompt_index, :, :longest]

        state.position.copy_(position)
        state.min_tokens.copy_(row_min_tokens)
        state.max_tokens.copy_(row_max_tokens)
        state.n_tokens.zero_()
        state.has_nan.zero_()
        torch.ge(state.n_tokens, state.max_tokens, out=state.done)  # a row may be limited to no token at all
        self._max_position = longest
        self._tokens_left = max(most for _, most in limits)

    def decode(self, wanted: Callable[[], int] | None) -> Iterator[tuple[int, LMStep]]:
        """Yield (row, step) of every token, a chunk at a time; see `FastLM.steps` for `wanted`."""
        counts = [0] * len(self.state.n_tokens)  # tokens of each row that were yielded
        queued = deque[tuple[AsyncCopy, Tensor]]()  # results of `_queue_chunk`, the oldest first
        next_draw = [0] * len(counts)  # random numbers that each row has used
        finished = self._tokens_left == 0
        while not finished:
            # Queue work for the device before waiting for its oldest chunk. The queue cannot be empty then:
            # while a row is unfinished, either tokens are left to queue or a queued chunk has its last token.
            while self._tokens_left > 0 and len(queued) <= self.chunks_ahead:
                if queued and wanted is not None and len(queued) * CHUNK_TOKENS >= wanted():
                    break
                self.sampler.refill(next_draw, (len(queued) + 1) * CHUNK_TOKENS)
                queued.append(self._queue_chunk())
            chunk, chunk_logp = queued.popleft()
            next_draw, has_nan, done, *chunk_tokens = chunk.tolist()  # lists of B numbers
            if any(has_nan):
                raise WorkbenchError(
                    f"the LM's log-probabilities are NaN after token {min(counts)}; float16 may have "
                    "overflowed. Try lm_dtype='bfloat16' or 'float32'"
                )
            for tokens, logp in zip(chunk_tokens, chunk_logp, strict=True):  # one token of each row
                for row, token in enumerate(tokens):
                    if token >= 0:  # -1 marks a token that does not count
                        yield row, LMStep(counts[row], token, logp[row])
                        counts[row] += 1
            finished = all(done)

    def _queue_chunk(self) -> tuple[AsyncCopy, Tensor]:
        """Let the device decode a chunk.

        Returns
        -------
        chunk : AsyncCopy (3 + CHUNK_TOKENS, B)
            `SamplerState.next_draw`, has_nan and done after the chunk, then its tokens.
        chunk_logp : Tensor (CHUNK_TOKENS, B, n_ids)
            Log-probabilities that the tokens were drawn from, on the device.
        """
        self._tokens_left -= CHUNK_TOKENS
        self._max_position = min(self._max_position + CHUNK_TOKENS, self.positions)
        length = min(length for length in self._graphs if length >= self._max_position)
        chunk = self._graphs[length]()
        return AsyncCopy(chunk), self._chunk_logp.clone()  # the next chunk overwrites it

    def _decode_chunk(self, length: int) -> Tensor:
        """Decode `CHUNK_TOKENS` tokens of each row, and return what `_queue_chunk` copies to the host.

        `length` is the number of cached positions that attention reads. The CUDA graphs record this method.
        """
        decode_step, state = self.fast.decode_step, self.state
        for record in map(Record, self._chunk_tokens, self._chunk_logp):
            # Pick a token, then compute the log-probabilities of the next one.
            x = decode_step.next_token(state, self.sampler, record)
            logits = decode_step.logits(x, self.cache, self.cos, self.sin, state.cache_position, length)
            torch.log_softmax(logits.to(state.logp.dtype), -1, out=state.logp)
        flags = (self.sampler.state.next_draw, state.has_nan.long(), state.done.long())
        return torch.cat((torch.stack(flags), self._chunk_tokens))
