"""Flow and vocoder for the chunks that are due, one batch a stage.

A chunk's flow runs over all tokens so far. Its vocoder runs over the new mel and the frames before it that
new samples depend on: the samples are those that a pass over all mel would give, up to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.speech.batch import MAX_ROWS
from workbench.speech.config import FLOW, HIFT, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.frontend.given import given_tokens
from workbench.speech.models.hift_window import context_frames
from workbench.speech.pipeline import Pipeline
from workbench.speech.streaming.state import StreamState


class Due(NamedTuple):
    """What a chunk is made of."""

    utt: Utterance
    token: Sequence[int]  # all that go into the flow
    state: StreamState  # before the chunk


def render(
    pipe: Pipeline, chunks: Sequence[Due], options: Options, final: bool
) -> list[tuple[StreamState, Tensor]]:
    """Return each chunk's state, with the new mel and sound counted, and its new samples (N,) on the CPU.

    `final` chunks are the last of their streams.
    """
    mels = [mel for rows in _batches(chunks, options, FLOW) for mel in _new_mels(pipe, rows, options, final)]
    states = []
    for chunk, mel in zip(chunks, mels, strict=True):
        known = chunk.state.mel
        states.append(replace(chunk.state, mel=mel if known is None else torch.cat((known, mel), dim=-1)))
    return [
        done for rows in _batches(states, options, HIFT) for done in _new_sounds(pipe, rows, options, final)
    ]


def _batches(rows: Sequence, options: Options, stage: str) -> Iterator[Sequence]:
    """Split rows into batches; the eager models take one row at a time."""
    size = 1 if options.eager(stage) else MAX_ROWS
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _new_mels(pipe: Pipeline, chunks: Sequence[Due], options: Options, final: bool) -> list[Tensor]:
    """Run the flow over all tokens of each chunk, and cut off the mel that was made before."""
    streaming = not (final and options.stream_final_offline)
    conditions = []
    for chunk in chunks:
        token = given_tokens(torch.tensor(chunk.token, dtype=torch.long), pipe.config)
        conditions.append(pipe.condition(chunk.utt, token, options, finalize=final))
    solution = pipe.flow_batch(conditions, [options] * len(chunks), streaming)
    for steps in pipe.bar(solution, "flow", " step", options.n_timesteps):
        solved = [step.x_next for step in steps]
    mels = []
    for chunk, c, mel in zip(chunks, conditions, solved, strict=True):
        mel = pipe.target(mel, c.prompt_frames, 1.0 if streaming else options.speed)
        mels.append(mel[..., chunk.state.token_offset * pipe.config.flow.token_mel_ratio :])
    return mels


def _new_sounds(
    pipe: Pipeline, states: Sequence[StreamState], options: Options, final: bool
) -> list[tuple[StreamState, Tensor]]:
    """Run the vocoder over the end of each stream's mel, and cut off the samples that were yielded before."""
    c = pipe.config.hift
    mels = [state.mel[..., state.past.frame :] for state in states]
    sounds = pipe.vocode_batch(mels, options, final, [state.past for state in states])
    done = []
    for state, sound in zip(states, sounds, strict=True):
        wav = sound.wav[0, state.speech_offset - state.past.frame * c.hop_length :].cpu()
        speech_offset = state.speech_offset + len(wav)
        next_window = max(0, speech_offset // c.hop_length - context_frames(c))
        f0 = sound.f0.to(getattr(torch, options.source_dtype))
        past = state.past if final else state.past.at(next_window, f0, c)
        done.append((replace(state, speech_offset=speech_offset, past=past), wav))
    return done
