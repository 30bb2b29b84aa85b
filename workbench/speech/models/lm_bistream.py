"""Speech tokens for text that arrives as a stream.

Text and speech alternate in turns of `mix_ratio` ids: 5 text tokens, 15 speech tokens, 5 text tokens, and so
on. At the end of a turn the LM draws `fill`, which asks for more text. After the last text follow `task_id`
and the rest of the speech. Facts: upstream `cosyvoice/llm/llm.py`, `inference_bistream`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.models.lm import LM, KVCache, LMStep, Sample

MIN_FILL_PROBABILITY = 0.01  # of an LM that was trained on streamed text, at the end of a turn


@dataclass
class _State:
    """What one turn leaves to the next."""

    cache: KVCache
    pending: Tensor  # (L, D) embedded ids that the LM has not read yet
    next_fill: int  # length of the history at which `fill` is forced
    on_fill: Callable[[float], None] | None
    n_spoken: int = 0  # ids of speech drawn so far
    history: list[int] = field(default_factory=list)  # ids drawn so far, with `fill`


def steps_bistream(
    lm: LM,
    text_chunks: Iterable[Tensor],
    prompt_text_token: Tensor,
    prompt_speech_token: Tensor,
    sample: Sample,
    end_of_prompt: int,
    max_tokens: int | None = None,
    on_fill: Callable[[float], None] | None = None,
) -> Iterator[LMStep]:
    """Decode while the text still arrives.

    Parameters
    ----------
    lm : LM
    text_chunks : iterable of Tensor (L,)
        The text as it comes.
    prompt_text_token, prompt_speech_token, sample
        As in `LM.steps`; the prompt text must contain `end_of_prompt`.
    end_of_prompt : int
        Id of `<|endofprompt|>`; everything up to it is given before the first turn.
    max_tokens : int, optional
        A lower limit than the `max_token_text_ratio` speech tokens for each text token; upstream has none.
    on_fill : callable float -> None, optional
        Is told the log-probability that the LM gives `fill` wherever that is forced.

    Yields
    ------
    LMStep
        Neither `fill`, which is forced at the end of every turn, nor `eos`.

    Raises
    ------
    WorkbenchError
        When the prompt has no `<|endofprompt|>`, an id is outside the vocabulary, or a reserved id is drawn.
    """
    c = lm.config
    n_text, n_speech = c.mix_ratio
    lm.check_tokens(prompt_text_token, prompt_speech_token)
    marks = (prompt_text_token == end_of_prompt).nonzero()
    if not len(marks):
        raise WorkbenchError("the prompt text has no <|endofprompt|>; streamed text needs one to start after")

    head = int(marks[0]) + 1
    text = lm.qwen.embed_tokens(
        prompt_text_token[head:]
    )  # text to read, of the prompt and then of the chunks
    speech = lm.speech_embedding(prompt_speech_token)  # the prompt's speech to read
    # The prompt's speech may end within a turn; the first `fill` completes that turn.
    turns_of_prompt = len(prompt_speech_token) // n_speech + 1
    state = _State(
        cache=KVCache(c.num_hidden_layers),
        pending=torch.cat((lm.embed_id(c.sos), lm.qwen.embed_tokens(prompt_text_token[:head]))),
        next_fill=turns_of_prompt * n_speech - len(prompt_speech_token),
        on_fill=on_fill,
    )
    n_read = 0  # text tokens of the chunks
    for chunk in text_chunks:
        lm.check_tokens(chunk, prompt_speech_token)
        n_read += len(chunk)
        text = torch.cat((text, lm.qwen.embed_tokens(chunk)))

        # First the prompt: text and speech in turns, until its speech is used up.
        while len(speech) and len(text) >= n_text:
            state.pending = torch.cat((state.pending, text[:n_text], speech[:n_speech]))
            text, speech = text[n_text:], speech[n_speech:]
        if len(speech):
            continue

        # After a turn that ended in `fill`, the input goes on with text alone.
        if state.history:
            if len(text) < n_text:
                continue
            state.pending, text = text[:n_text], text[n_text:]
        yield from _turn(lm, state, sample, max_tokens, is_last=False)

    # `pending` still holds the last token of the turn, which the cache has already: upstream feeds it twice.
    state.pending = torch.cat((state.pending, text, lm.embed_id(c.task_id)))
    _, most = lm.limits(n_read, max_tokens)
    yield from _turn(lm, state, sample, most, is_last=True)


def _turn(lm: LM, state: _State, sample: Sample, most: int | None, is_last: bool) -> Iterator[LMStep]:
    """Decode until `fill`, or until `eos` in the last turn, or `most` ids in all; `state` is changed."""
    c = lm.config
    while most is None or state.n_spoken < most:
        logp = lm.decode(state.pending[None], state.cache)
        if not is_last and len(state.history) == state.next_fill:
            token = c.fill
            if state.on_fill is not None:
                state.on_fill(float(logp[c.fill]))
        else:
            token = sample(logp, state.history, not is_last)
        if token == c.eos and is_last:
            return
        if token == c.fill and not is_last:
            state.next_fill = len(state.history) + c.mix_ratio[1] + 1
            state.history.append(token)
            return
        if token >= c.speech_token_size:
            raise WorkbenchError(
                f"the LM drew the reserved id {token} while the text was streaming, as a voice does that was "
                "not trained on streamed text; give the text in one piece"
            )
        state.history.append(token)
        state.n_spoken += 1
        yield LMStep(len(state.history) - 1, token, logp)
        state.pending = lm.embed_id(token)


def check_reads_streams(fill_logp: float) -> None:
    """Raise a WorkbenchError where an LM does not expect that a turn of a streamed text ends.

    Training on streamed text puts the id `fill` behind each turn, always after the same number of tokens.
    """
    probability = math.exp(fill_logp)
    if probability < MIN_FILL_PROBABILITY:
        raise WorkbenchError(
            "this voice was not trained on text that arrives as a stream: at the end of a turn its LM gives "
            f"the id that asks for more text a probability of {probability:.1e}, and {MIN_FILL_PROBABILITY} "
            "is the least expected of a trained one. Give the text in one piece"
        )
