"""Text to speech tokens: a Qwen2 decoder over text and speech ids.

Map, from the bottom up:

- `KVCache`: keys and values of the positions decoded so far
- `RMSNorm`, `Attention` (rotary, grouped keys and values), `MLP` (SwiGLU) -> `Layer` -> `Qwen2`
- `CausalLM`, `Backbone`: hold `Qwen2` under upstream's parameter names
- `LM.embed`: `[sos] text [task] prompt speech` -> (1, L, D)
- `LM.steps`: the loop, a generator that yields every token; `sampling.Sampler` picks them
- `lm_bistream`: the same loop for text that arrives as a stream

Shape letters: `B` batch, `L` positions, `D` width, `H` query heads, `K` heads of keys and values. Facts:
upstream `cosyvoice/llm/llm.py`; parameter names are upstream's, which are transformers' Qwen2 under the
prefix `llm.model.`. `diagnose.suspects` replaces functions and methods here to simulate faults, so they are
called through the module or the class.
"""

from collections.abc import Callable, Iterator, Sequence
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
        """Add a layer's new keys and values (B, K, L, head_dim); return those of all positions."""
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
        # Project, and split into heads: (B, L, D) -> q (B, H, L, head_dim), k and v (B, K, L, head_dim).
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate_half(q, *rope), rotate_half(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # L grows to all positions so far
        # Every head of keys and values serves `groups` neighbouring query heads: (B, K, ...) -> (B, H, ...).
        k, v = (y.repeat_interleave(self.groups, dim=1) for y in (k, v))
        new, total = q.shape[2], k.shape[2]
        if new == total:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=new > 1)
        else:  # positions appended to a cache: each attends to the cache and to what came before it
            attn_mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        y = y.transpose(1, 2).flatten(2)  # (B, H, L, head_dim) -> (B, L, H head_dim)
        return self.o_proj(y)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, first half against second half (not the DiT's interleaved pairs)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class MLP(nn.Module):
    """Feed-forward network with a gate: SwiGLU."""

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
    """The decoder stack, up to and including the final norm."""

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
        self.check_tokens(text_token, prompt_speech_token)
        sos, task = self.embed_id(self.config.sos), self.embed_id(self.config.task_id)
        text = self.qwen.embed_tokens(text_token)
        return torch.cat((sos, text, task, self.speech_embedding(prompt_speech_token)))[None]

    def decode(self, embedded: Tensor, cache: KVCache) -> Tensor:
        """Append (1, L, D) to the cache; return the log-probabilities (n_ids,) of the next id."""
        return self.logp(self.qwen(embedded, cache)[0, -1])

    def logp(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities over speech ids, in float32 at least: (..., D) -> (..., n_ids)."""
        return self.logits(hidden).log_softmax(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits over speech ids, in float32 at least: (..., D) -> (..., n_ids)."""
        logits = self.llm_decoder(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def limits(self, n_text: int, max_tokens: int | None = None) -> tuple[int, int]:
        """Return the fewest and the most speech tokens for `n_text` text tokens, both without the prompt."""
        c = self.config
        fewest, most = int(c.min_token_text_ratio * n_text), int(c.max_token_text_ratio * n_text)
        return fewest, most if max_tokens is None else min(most, max_tokens)

    def steps(
        self,
        text_token: Tensor,
        prompt_text_token: Tensor,
        prompt_speech_token: Tensor,
        sample: Sample,
        max_tokens: int | None = None,
        from_logits: bool = False,
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
            A lower limit than the `max_token_text_ratio` speech tokens for each text token.
        from_logits : bool
            Give `sample` logits in place of log-probabilities: a repetition penalty needs their signs.

        Yields
        ------
        LMStep
            Stop ids are not yielded.
        """
        c = self.config
        min_tokens, max_tokens = self.limits(len(text_token), max_tokens)
        cache = KVCache(c.num_hidden_layers)
        embedded = self.embed(torch.cat((prompt_text_token, text_token)), prompt_speech_token)
        history: list[int] = []
        for index in range(max_tokens):
            hidden = self.qwen(embedded, cache)[0, -1]
            logp = self.logp(hidden)
            token = sample(self.logits(hidden) if from_logits else logp, history, index < min_tokens)
            if token >= c.speech_token_size:
                return
            history.append(token)
            yield LMStep(index, token, logp)
            embedded = self.embed_id(token)[None]

    def check_tokens(self, text_token: Tensor, speech_token: Tensor) -> None:
        """Raise a WorkbenchError for ids outside of the vocabularies."""
        c = self.config
        for kind, ids, size in (
            ("text", text_token, c.vocab_size),
            ("prompt speech", speech_token, c.speech_token_size),
        ):
            lowest, highest = torch.stack(ids.aminmax()).tolist() if len(ids) else (0, 0)
            if lowest < 0 or highest >= size:
                raise WorkbenchError(
                    f"{kind} tokens {lowest}..{highest} found; this LM knows 0..{size - 1}. "
                    "Were they made by the tokenizer of another checkpoint?"
                )

    def embed_id(self, token: int) -> Tensor:  # (1, D)
        """Embed one speech id or special id."""
        table = self.speech_embedding
        # `full` fills the tensor on its device, where a copy from the host would wait for a GPU.
        return table(torch.full((1,), token, device=table.weight.device))
