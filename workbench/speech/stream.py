"""Streaming: the main path in chunks, so that sound begins while the LM still decodes.

`StreamState` holds all state. Three habits of upstream's driver (`cosyvoice/cli/model.py`) are choices here:

- The hop grows 25, 50, 100 tokens within an utterance. Upstream keeps the grown hop on the model, so
  that the next utterance is chunked differently from the first. Here every utterance starts afresh;
  to hear upstream's second utterance, start it with `StreamState(hop=last_chunk.state.hop)`.
- The last chunk is computed without the chunk mask, so its frames come from another flow pass than
  the ones before it. `Options(stream_final_offline=False)` keeps the mask on.
- Every chunk runs the flow over all tokens so far and the vocoder over all mel so far; there is no
  cross-fade.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import note_inputs, provenance
from workbench.trace.record import NOTHING, Recorder
from workbench.trace.trace import Trace

GROWTH = 2  # each hop is this many times the one before
MAX_GROWTH = 4  # and at most this many times the first


@dataclass(frozen=True, eq=False)
class StreamState:
    """How far a stream has come.

    Parameters
    ----------
    hop : int
        Tokens that the next chunk waits for, beside the look-ahead.
    token_offset : int
        Tokens already rendered.
    mel : Tensor (1, 80, T) or None
        All mel so far.
    speech_offset : int
        Samples already yielded.

    Examples
    --------
    >>> wb.StreamState(hop=50).token_offset
    0
    """

    hop: int
    token_offset: int = 0
    mel: Tensor | None = None
    speech_offset: int = 0


class Chunk(NamedTuple):
    """One piece of sound."""

    wav: Tensor  # (N,) new samples
    n_token: int  # tokens that went into the flow, the prompt's not counted
    state: StreamState  # after this chunk
    final: bool
    token: tuple[int, ...] = ()  # all speech tokens so far, of which the flow was given the first `n_token`


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
    options = pipe.options(options)
    first_hop = pipe.config.chunk_size
    state = state or StreamState(hop=first_hop)
    lookahead = pipe.config.flow.pre_lookahead_len
    prompt = len(utt.flow_prompt_token)
    # The prompt and the first chunk together fill whole chunks of the mask.
    pad = math.ceil(prompt / state.hop) * state.hop - prompt
    token: list[int] = []
    for new in pipe.tokens(utt, options):
        token.append(new)
        this_hop = state.hop + (pad if state.token_offset == 0 else 0)
        while len(token) - state.token_offset >= this_hop + lookahead:
            n = state.token_offset + this_hop + lookahead
            state, wav = _render(pipe, utt, token[:n], options, state, final=False)
            grown = min(MAX_GROWTH * first_hop, GROWTH * state.hop)
            state = replace(state, token_offset=state.token_offset + this_hop, hop=grown)
            yield Chunk(wav, n, state, False, tuple(token))
            this_hop = state.hop
    state, wav = _render(pipe, utt, token, options, state, final=True)
    yield Chunk(wav, len(token), replace(state, token_offset=len(token)), True, tuple(token))


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


def _render(
    pipe: Pipeline, utt: Utterance, token: list[int], options: Options, state: StreamState, final: bool
) -> tuple[StreamState, Tensor]:
    """Run flow and vocoder over everything so far; return the new state and the new samples."""
    streaming = not (final and options.stream_final_offline)
    ids = torch.tensor(token, dtype=torch.long)
    mel = pipe.mel(utt, ids, options, finalize=final, streaming=streaming)
    mel = mel[..., state.token_offset * pipe.config.flow.token_mel_ratio :]
    if state.mel is not None:
        mel = torch.cat((state.mel, mel), dim=-1)
    wav = pipe.vocode(mel, options, finalize=final).wav[0, state.speech_offset :].cpu()
    return replace(state, mel=mel, speech_offset=state.speech_offset + len(wav)), wav
