"""Text to speech tokens: a Qwen2 decoder over text and speech ids.

`LM.steps` is the loop: a generator that yields every token. Shape letters: `B` batch, `L` positions,
`D` width, `H` heads. Facts: upstream `cosyvoice/llm/llm.py`; parameter names are upstream's, which
are transformers' Qwen2 under the prefix `llm.model.`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.speech.config import LMConfig

Sample = Callable[[Tensor, Sequence[int], bool], int]


class LMStep(NamedTuple):
    """One decoding step."""

    index: int
    token: int
    logp: Tensor  # (n_ids,) before masking


class KVCache:
    """Keys and values of the positions decoded so far, one pair a layer."""

    def __init__(self, n_layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers

    def __len__(self) -> int:
        return 0 if self.keys[0] is None else self.keys[0].shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, L, head_dim) and return all there is."""
        if self.keys[layer] is not None:
            k, v = torch.cat((self.keys[layer], k), 2), torch.cat((self.values[layer], v), 2)
        self.keys[layer], self.values[layer] = k, v
        return k, v


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped keys and values."""

    def __init__(self, c: LMConfig) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.groups = c.num_attention_heads // c.num_key_value_heads
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, layer: int) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate_half(q, *rope), rotate_half(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        k, v = (y.repeat_interleave(self.groups, dim=1) for y in (k, v))
        new, total = q.shape[2], k.shape[2]
        if new == total:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=new > 1)
        else:  # positions appended to a cache: each sees the cache and what came before it
            seen = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, first half against second half (not the DiT's interleaved pairs)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: LMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, c: LMConfig) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2(nn.Module):
    """The decoder stack; returns what follows the final norm."""

    def __init__(self, c: LMConfig) -> None:
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:  # (B, L, D) -> (B, L, D)
        past = 0 if cache is None else len(cache)
        rope = self.rope(past, past + x.shape[1], x)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, cache, i)
        return self.norm(x)

    def rope(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (L, head_dim / 2) of positions start..stop, in the type of `like`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        exponent = torch.arange(0, self.config.head_dim, 2, device=like.device, dtype=dtype)
        inv_freq = 1.0 / self.config.rope_theta ** (exponent / self.config.head_dim)
        angle = torch.arange(start, stop, device=like.device, dtype=dtype)[:, None] * inv_freq
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


class CausalLM(nn.Module):
    """Qwen2 with its text head: the head is tied to the embedding and unused for speech."""

    def __init__(self, c: LMConfig) -> None:
        super().__init__()
        self.model = Qwen2(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight


class Backbone(nn.Module):
    """Holds the language model under upstream's name."""

    def __init__(self, c: LMConfig) -> None:
        super().__init__()
        self.model = CausalLM(c)


class LM(nn.Module):
    """Speech-token language model.

    Parameters
    ----------
    config : LMConfig
        Sizes and special ids.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = Backbone(config)
        self.llm_decoder = nn.Linear(config.hidden_size, config.n_ids, bias=False)
        self.speech_embedding = nn.Embedding(config.n_ids, config.hidden_size)

    @property
    def qwen(self) -> Qwen2:
        """The decoder stack."""
        return self.llm.model.model

    def embed(self, text_token: Tensor, prompt_speech_token: Tensor) -> Tensor:
        """Embed `[sos] text [task] prompt_speech` as (1, L, D); `text_token` has the prompt's text first."""
        self._check(text_token, prompt_speech_token)
        sos, task = self._speech(self.config.sos), self._speech(self.config.task_id)
        text = self.qwen.embed_tokens(text_token)
        return torch.cat((sos, text, task, self.speech_embedding(prompt_speech_token)))[None]

    def decode(self, embedded: Tensor, cache: KVCache) -> Tensor:
        """Append (1, L, D) to the cache; log-probabilities (n_ids,) of what follows, in float32 at least."""
        return self.logp(self.qwen(embedded, cache)[0, -1])

    def logp(self, hidden: Tensor) -> Tensor:
        """Log-probabilities over speech ids, in float32 at least: (..., D) -> (..., n_ids)."""
        logits = self.llm_decoder(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def limits(self, n_text: int, max_tokens: int | None = None) -> tuple[int, int]:
        """Fewest and most speech tokens for so many text tokens, those of the prompt not counted."""
        c = self.config
        shortest, longest = int(c.min_token_text_ratio * n_text), int(c.max_token_text_ratio * n_text)
        return shortest, longest if max_tokens is None else min(longest, max_tokens)

    def steps(
        self,
        text_token: Tensor,
        prompt_text_token: Tensor,
        prompt_speech_token: Tensor,
        sample: Sample,
        max_tokens: int | None = None,
    ) -> Iterator[LMStep]:
        """Decode until a stop id is drawn or the length limit is reached.

        Parameters
        ----------
        text_token, prompt_text_token : Tensor (L,), (P,)
            The text to speak; the instruction and the prompt's transcript.
        prompt_speech_token : Tensor (S,)
            The prompt's speech tokens; may be empty.
        sample : callable (scores, history, too_early) -> int
            Usually a `Sampler`.
        max_tokens : int, optional
            Bound beside `max_token_text_ratio` times the text's length.

        Yields
        ------
        LMStep
            Stop ids are not yielded.
        """
        c = self.config
        shortest, longest = self.limits(len(text_token), max_tokens)
        cache = KVCache(c.num_hidden_layers)
        embedded = self.embed(torch.cat((prompt_text_token, text_token)), prompt_speech_token)
        history: list[int] = []
        for index in range(longest):
            logp = self.decode(embedded, cache)
            token = sample(logp, history, index < shortest)
            if token >= c.speech_token_size:
                return
            history.append(token)
            yield LMStep(index, token, logp)
            embedded = self._speech(token)[None]

    def steps_bistream(
        self,
        text_chunks: Iterable[Tensor],
        prompt_text_token: Tensor,
        prompt_speech_token: Tensor,
        sample: Sample,
        end_of_prompt: int,
    ) -> Iterator[LMStep]:
        """Decode while the text still arrives: 5 text tokens, then 15 speech tokens, in turns.

        Parameters
        ----------
        text_chunks : iterable of Tensor (L,)
            The text as it comes.
        prompt_text_token, prompt_speech_token, sample
            As in `steps`; the prompt text must contain `end_of_prompt`.
        end_of_prompt : int
            Id of `<|endofprompt|>`; everything up to it is given before the first turn.

        Yields
        ------
        LMStep
            Neither `fill`, which asks for more text and is forced at every turn's end, nor `eos`.
        """
        c = self.config
        n_text, n_speech = c.mix_ratio
        self._check(prompt_text_token, prompt_speech_token)
        marks = (prompt_text_token == end_of_prompt).nonzero()
        if not len(marks):
            raise WorkbenchError(
                "the prompt text has no <|endofprompt|>; streamed text needs one to start after"
            )
        head = int(marks[0]) + 1
        cache, history = KVCache(c.num_hidden_layers), []
        text = self.qwen.embed_tokens(prompt_text_token[head:])
        speech = self.speech_embedding(prompt_speech_token)
        pending = torch.cat((self._speech(c.sos), self.qwen.embed_tokens(prompt_text_token[:head])))
        next_fill = (len(prompt_speech_token) // n_speech + 1) * n_speech - len(prompt_speech_token)

        def turn(final: bool) -> Iterator[LMStep]:
            nonlocal pending, next_fill
            while True:
                logp = self.decode(pending[None], cache)
                forced = not final and len(history) == next_fill
                token = c.fill if forced else sample(logp, history, not final)
                if token == c.eos and final:
                    return
                if token == c.fill and not final:
                    next_fill = len(history) + n_speech + 1
                    history.append(token)
                    return
                if token >= c.speech_token_size:
                    raise WorkbenchError(f"the LM drew the reserved id {token} while the text was streaming")
                history.append(token)
                yield LMStep(len(history) - 1, token, logp)
                pending = self._speech(token)

        for chunk in text_chunks:
            self._check(chunk, prompt_speech_token)
            text = torch.cat((text, self.qwen.embed_tokens(chunk)))
            while len(speech) and len(text) >= n_text:
                pending = torch.cat((pending, text[:n_text], speech[:n_speech]))
                text, speech = text[n_text:], speech[n_speech:]
            if len(speech):
                continue
            if history:  # the last turn ended in fill; the input goes on with text alone
                if len(text) < n_text:
                    continue
                pending, text = text[:n_text], text[n_text:]
            yield from turn(final=False)
        # After a turn `pending` still holds the last token, already in the cache: upstream feeds it twice.
        pending = torch.cat((pending, text, self._speech(c.task_id)))
        yield from turn(final=True)

    def _check(self, text_token: Tensor, speech_token: Tensor) -> None:
        c = self.config
        for what, ids, size in (
            ("text", text_token, c.vocab_size),
            ("prompt speech", speech_token, c.speech_token_size),
        ):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                raise WorkbenchError(
                    f"{what} tokens {int(ids.min())}..{int(ids.max())} found; this LM knows 0..{size - 1}. "
                    "Were they made by the tokenizer of another checkpoint?"
                )

    def _speech(self, token: int) -> Tensor:  # (1, D)
        return self.speech_embedding.weight[token][None]
