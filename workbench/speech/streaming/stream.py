"""Streaming: the main path in chunks, so that sound begins while the LM still decodes.

`StreamState` holds all state. Three habits of upstream's driver (`cosyvoice/cli/model.py`) are choices here:

- The hop grows 25, 50, 100 tokens within an utterance. Upstream keeps the grown hop on the model, so
  that the next utterance is chunked differently from the first. Here every utterance starts afresh;
  to hear upstream's second utterance, start it with `StreamState(hop=last_chunk.state.hop)`.
- The last chunk is computed without the chunk mask, so its frames come from another flow pass than
  the ones before it. `Options(stream_final_offline=False)` keeps the mask on.
- Every chunk runs the flow over all tokens so far; there is no cross-fade.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from workbench.speech.config import LM, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.frontend.utterance import on_device
from workbench.speech.models.lm import LMStep
from workbench.speech.models.sampling import shorten_silences
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import note_inputs, provenance
from workbench.speech.streaming.render import Due, render
from workbench.speech.streaming.state import Chunk, StreamState
from workbench.trace.record import NOTHING, Recorder
from workbench.trace.trace import Trace

GROWTH = 2  # each hop is this many times the one before
MAX_GROWTH = 4  # and at most this many times the first


def stream(
    pipe: Pipeline, utt: Utterance, options: Options | None = None, state: StreamState | None = None
) -> Iterator[Chunk]:
    """Speak an utterance chunk by chunk while the LM still decodes.

    Parameters
    ----------
    pipe : Pipeline
    utt : Utterance
        From `pipe.prepare` or `pipe.convert`; prepared from an iterator, its text is read meanwhile.
    options : Options, optional
        The checkpoint's own by default. `speed` is for offline runs alone.
    state : StreamState, optional
        Where to start; a fresh one by default.

    Yields
    ------
    Chunk
        Their `wav`, put one after another, are the whole utterance.

    Examples
    --------
    >>> chunks = list(wb.stream(pipe, utt, options=voice.options.but(n_timesteps=1)))
    >>> chunks[-1].final
    True
    """
    for _, chunk in stream_many(pipe, [utt], options, state):
        yield chunk


def stream_many(
    pipe: Pipeline,
    utts: Sequence[Utterance],
    options: Options | None = None,
    state: StreamState | None = None,
) -> Iterator[tuple[int, Chunk]]:
    """Speak several utterances at a time, chunk by chunk, one batch a stage.

    The utterances take turns, token by token. Chunks that are due at the same time share a pass of the flow
    and one of the vocoder. With `compute="eager"`, and for text that arrives as a stream, each runs alone; a
    text that has not arrived yet holds up the others.

    Parameters
    ----------
    pipe : Pipeline
    utts : sequence of Utterance
    options, state
        As in `stream`, for all of them.

    Yields
    ------
    index : int
        Of the utterance.
    chunk : Chunk
        As `stream` yields it for this utterance alone, up to rounding.

    Examples
    --------
    >>> short = voice.options.but(n_timesteps=1, max_tokens=30)
    >>> [(index, chunk.final) for index, chunk in wb.stream_many(pipe, [utt, utt], options=short)]
    [(0, False), (1, False), (0, True), (1, True)]
    """
    options = pipe.options(options)
    state = state or StreamState(hop=pipe.config.chunk_size)
    running: dict[int, _Stream] = {}

    def wanted() -> int:  # before the flow has work for any stream
        return min(one.wanted() for one in running.values())

    utts = on_device(utts, pipe.device)
    for index, (utt, tokens) in enumerate(zip(utts, _tokens(pipe, utts, options, wanted), strict=True)):
        running[index] = _Stream(pipe, utt, tokens, state)
    try:
        while running:
            due = [index for index, one in running.items() if one.wait()]
            ended = [index for index, one in running.items() if one.ended]
            for indices, final in ((due, False), (ended, True)):
                chunks = [running[index].due(final) for index in indices]
                rendered = render(pipe, chunks, options, final)
                for index, (new_state, wav) in zip(indices, rendered, strict=True):
                    yield index, running[index].chunk(new_state, wav, final)
            for index in ended:
                del running[index]
    finally:
        # The streams hold the LM's loop, which holds `wanted`, which holds the streams. Without them, the
        # loop of a stream that is stopped early ends at once, and its decoder serves the next stream.
        running.clear()


def streamed(
    pipe: Pipeline, utt: Utterance, options: Options | None = None, state: StreamState | None = None
) -> Trace:
    """Stream an utterance to its end and return it as a trace.

    Parameters
    ----------
    pipe, utt, options, state
        As in `stream`.

    Returns
    -------
    Trace
        `in/*`, `lm/speech_token`, `flow/mel`, `hift/wav`: `Pipeline.replay` makes the run again, offline.
        `attrs["seams"]` is the first sample of every chunk but the first.

    Examples
    --------
    >>> streamed = wb.streamed(pipe, utt, options=voice.options.but(n_timesteps=1))
    >>> streamed.attrs["seams"]  # two chunks meet here
    [22080]
    """
    options = pipe.options(options)
    chunks = list(stream(pipe, utt, options, state))
    record = Recorder(NOTHING)
    about = note_inputs(record, utt) | provenance(pipe, options, record.save)
    record.add("lm/speech_token", torch.tensor(chunks[-1].token, dtype=torch.long))
    record.add("flow/mel", chunks[-1].state.mel[0])
    record.add("hift/wav", torch.cat([chunk.wav for chunk in chunks]))
    ends = list(accumulate(len(chunk.wav) for chunk in chunks))
    is_one_offline_pass = len(chunks) == 1 and options.stream_final_offline
    return Trace(record.finish(), about | {"seams": ends[:-1], "streaming": not is_one_offline_pass})


class _Stream:
    """One utterance on its way: its tokens so far, and which of them the next chunk waits for."""

    def __init__(self, pipe: Pipeline, utt: Utterance, tokens: Iterator[int], state: StreamState) -> None:
        self.utt, self.tokens, self.state = utt, tokens, state
        self.token: list[int] = []
        self.ended = False
        self.lookahead = pipe.config.flow.pre_lookahead_len
        self.max_hop = state.max_hop or MAX_GROWTH * pipe.config.chunk_size
        prompt = len(utt.flow_prompt_token)
        # The prompt and the first chunk together fill whole chunks of the mask.
        self.pad = math.ceil(prompt / state.hop) * state.hop - prompt

    def wait(self) -> bool:
        """Take one more token; return whether a chunk is due."""
        new = next(self.tokens, None)
        if new is None:
            self.ended = True
            return False
        self.token.append(new)
        return self.wanted() <= 0

    def wanted(self) -> int:
        """Return how many tokens the next chunk still waits for."""
        return self._chunk_end() + self.lookahead - len(self.token)

    def due(self, final: bool) -> Due:
        """Return what the next chunk is made of."""
        token = self.token if final else self.token[: self._chunk_end() + self.lookahead]
        return Due(self.utt, token, self.state)

    def chunk(self, rendered: StreamState, wav: torch.Tensor, final: bool) -> Chunk:
        """Return the chunk that was rendered, and wait for the next."""
        n_token = len(self.due(final).token)
        if final:
            self.state = replace(rendered, token_offset=n_token)
        else:
            grown = min(self.max_hop, GROWTH * rendered.hop)
            self.state = replace(rendered, token_offset=self._chunk_end(), hop=grown)
        return Chunk(wav, n_token, self.state, final, tuple(self.token))

    def _chunk_end(self) -> int:
        """Return how many tokens are rendered after the next chunk that is not the last."""
        return self.state.token_offset + self.state.hop + (self.pad if self.state.token_offset == 0 else 0)


def _tokens(
    pipe: Pipeline, utts: Sequence[Utterance], options: Options, wanted: Callable[[], int]
) -> list[Iterator[int]]:
    """Return the tokens of each utterance; where the LM can, it draws them in one batch.

    `wanted` is that of `StageRunner.lm_batch`.
    """
    together = [i for i, utt in enumerate(utts) if utt.source_token is None and utt.text_stream is None]
    if options.eager(LM) or len(together) < 2:
        return [pipe.tokens(utt, options, wanted) for utt in utts]
    steps = pipe.lm_batch([utts[i] for i in together], [options] * len(together), wanted)
    draws = _Draws(steps, len(together))
    tokens = []
    for i, utt in enumerate(utts):
        if i not in together:
            tokens.append(pipe.tokens(utt, options, wanted))
            continue
        drawn = draws.of_row(together.index(i))
        tokens.append(shorten_silences(drawn, pipe.config.silent_tokens, options.max_silent_run))
    return tokens


class _Draws:
    """The draws of one batch of the LM, for readers of single rows."""

    def __init__(self, steps: Iterator[tuple[int, LMStep]], rows: int) -> None:
        self.steps = steps
        self.unread: list[deque[int]] = [deque() for _ in range(rows)]
        self.newest = -1  # number of the newest draw of any row
        self.exhausted = False

    def of_row(self, row: int) -> Iterator[int]:
        """Yield the tokens of a row."""
        number = 0
        while True:
            while not self.unread[row]:
                # Running rows draw in turns: a row has ended if another is beyond its next token.
                if self.exhausted or self.newest > number:
                    return
                drawn = next(self.steps, None)
                if drawn is None:
                    self.exhausted = True
                else:
                    self.unread[drawn[0]].append(drawn[1].token)
                    self.newest = max(self.newest, drawn[1].index)
            yield self.unread[row].popleft()
            number += 1
