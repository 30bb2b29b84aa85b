"""Wrong versions of functions of ours, each as some port had it; `faults.py` says which and why."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import Options
from workbench.speech.frontend.audio import mel_centres
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models import dit, flow, hift, lm
from workbench.speech.pipeline import Pipeline


class Patch(NamedTuple):
    """What is swapped: an attribute of a module or class."""

    owner: Any
    name: str
    value: Any


def functional(**wrong: Callable) -> SimpleNamespace:
    """torch.nn.functional as one of our modules would see it, with some functions swapped."""
    return SimpleNamespace(**(vars(F) | wrong))


def after(function: Callable, change: Callable) -> Callable:
    """The function, with a change to what it returns."""

    @functools.wraps(function)
    def wrong(*args: Any, **kwargs: Any) -> Any:
        return change(function(*args, **kwargs))

    return wrong


def rope(theta: float) -> Callable:
    def rope(self: lm.Qwen2, start: int, stop: int, like: Tensor, right=lm.Qwen2.rope):
        return right(SimpleNamespace(config=replace(self.config, rope_theta=theta)), start, stop, like)

    return rope


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def norm_of_one_plus(self: lm.RMSNorm, x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
    return ((1 + self.weight) * wide).to(x.dtype)


def task_last(self: lm.LM, text_token: Tensor, prompt_speech_token: Tensor) -> Tensor:
    c = self.config
    sos, task = (self.speech_embedding.weight[i][None] for i in (c.sos, c.task_id))
    text = self.qwen.embed_tokens(text_token)
    return torch.cat((sos, text, self.speech_embedding(prompt_speech_token), task))[None]


def count_the_prompt(self: lm.LM, text, prompt_text, prompt, sample, max_tokens=None, right=lm.LM.steps):
    return right(self, torch.cat((prompt_text, text)), prompt_text[:0], prompt, sample, max_tokens)


def condition(change: Callable[[flow.Condition], flow.Condition]) -> Patch:
    """Change what the estimator is told."""
    return Patch(flow.Flow, "condition", after(flow.Flow.condition, change))


def interpolate(c: flow.Condition) -> flow.Condition:
    return c._replace(mu=F.interpolate(c.mu[..., ::2], size=c.mu.shape[-1], mode="linear"))


def next_id(self: flow.Flow, token, prompt_token, *args, right=flow.Flow.condition, **kwargs):
    last = self.config.vocab_size - 1
    return right(self, (token + 1).clamp(max=last), (prompt_token + 1).clamp(max=last), *args, **kwargs)


def look_back(self: flow.PreLookahead, x: Tensor, finalize: bool) -> Tensor:
    h = F.pad(x.transpose(1, 2), (self.lookahead, 0))
    h = F.leaky_relu(self.conv1(h))
    return self.conv2(F.pad(h, (2, 0))).transpose(1, 2) + x


def noise(change: Callable[[Tensor, int], Tensor]) -> Patch:
    def noise(self: Pipeline, n_frames: int, options: Options | None = None) -> Tensor:
        return change(self.checkpoint.noise.ode(), n_frames).to(self.device)

    return Patch(Pipeline, "noise", noise)


def transposed(noise: Tensor, n: int) -> Tensor:
    return noise.reshape(1, noise.shape[2], noise.shape[1]).transpose(1, 2)[..., :n]


def next_step_size(knots: Tensor, index: int, t: Tensor) -> Tensor:
    index = min(index + 1, len(knots) - 2)
    return knots[index + 1] - knots[index]


def unguided(*kept: str) -> Patch:
    """Leave some conditions in the half that is told nothing."""

    def unconditional(c: flow.Condition, right: Callable = flow.unconditional) -> flow.Condition:
        return right(c)._replace(**{name: getattr(c, name) for name in kept})

    return Patch(flow, "unconditional", unconditional)


def swap_halves(v: flow.Velocity) -> flow.Velocity:
    return flow.Velocity(v.guided, v.uncond, v.cond)


def rotate_heads(q: Tensor, cos: Tensor, sin: Tensor, right=dit.rotate_first_head) -> Tensor:
    heads = q.unflatten(-1, (-1, 2 * cos.shape[-1]))
    return right(heads, cos[:, None], sin[:, None]).flatten(-2)


def rotate_halves(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b = q[..., :half], q[..., half : 2 * half]
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, q[..., 2 * half :]), dim=-1)


def time_embed(scale: float = 1000.0, less: int = 1, cos_first: bool = False) -> Patch:
    def forward(self: dit.TimeEmbed, t: Tensor) -> Tensor:
        half = dit.TIME_FEATURES // 2
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        i = torch.arange(half, device=t.device, dtype=t.dtype)
        angle = scale * t[:, None] * torch.exp(i * -(math.log(10_000) / (half - less)))
        parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
        return self.time_mlp(torch.cat(parts, dim=-1).to(self.time_mlp[0].weight.dtype))

    return Patch(dit.TimeEmbed, "forward", forward)


def modulation(order: dict[int, tuple[int, ...]]) -> Patch:
    def forward(self: dit.Modulation, time: Tensor, right=dit.Modulation.forward) -> tuple[Tensor, ...]:
        chunks = right(self, time)
        return tuple(chunks[i] for i in order.get(self.n, range(self.n)))

    return Patch(dit.Modulation, "forward", forward)


def exact_gelu(self: dit.FeedForward, x: Tensor) -> Tensor:
    return self.ff[2](F.gelu(self.ff[0][0](x)))


def look_both_ways(self: dit.ConvPosEmbed, x: Tensor) -> Tensor:
    x, side = x.transpose(1, 2), dit.CONV_POS_KERNEL // 2
    for conv in (self.conv1, self.conv2):
        x = conv(F.pad(x, (side, side)))
    return x.transpose(1, 2)


def chunked(mask, length, chunk, device, right=dit.attention_mask) -> Tensor | None:
    return right(mask, length, 50, device)


def other_order(self: dit.InputEmbed, x, cond, mu, spks, right=dit.InputEmbed.forward) -> Tensor:
    return right(self, x, mu, cond, spks)


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=1.0)


def cut(late: int | None) -> Patch:
    """Cut the prompt off so many frames late; None leaves it on."""

    def target(self: Pipeline, mel: Tensor, prompt_frames: int, speed: float, right=Pipeline.target):
        return right(self, mel, 0 if late is None else prompt_frames + late, speed)

    return Patch(Pipeline, "target", target)


def gaussian(self: hift.Source, f0: Tensor, noise: Tensor, right=hift.Source.forward) -> Tensor:
    return right(self, f0, math.sqrt(2) * torch.erfinv((2 * noise - 1).clamp(-1 + 1e-6, 1 - 1e-6)))


def centred(self: hift.Source, f0: Tensor, noise: Tensor, right=hift.Source.forward) -> Tensor:
    return right(self, f0, noise - 0.5)


def silent(self: hift.Source, f0: Tensor, noise: Tensor, right=hift.Source.forward) -> Tensor:
    return right(self, f0, torch.zeros_like(noise))


def smooth_phase(self: hift.Source, f0: Tensor, noise: Tensor) -> Tensor:
    c = self.config
    harmonics = torch.arange(1, c.nb_harmonics + 2, device=f0.device, dtype=f0.dtype)
    every = f0.repeat_interleave(c.hop_length, dim=1)[..., None]
    turns = (every * harmonics / c.sampling_rate).cumsum(1, dtype=torch.float64) % 1
    voiced = (every > c.nsf_voiced_threshold).to(f0.dtype)
    sine = c.nsf_alpha * torch.sin(2 * math.pi * turns.to(f0.dtype)) * voiced
    level = voiced * c.nsf_sigma + (1 - voiced) * (c.nsf_alpha / 3)
    excitation = sine + level * noise[:, : sine.shape[1]].to(sine)
    return torch.tanh(self.l_linear(excitation)).transpose(1, 2)


def source(right: Callable = hift.Source.forward, **config: float) -> Patch:
    def forward(self: hift.Source, f0: Tensor, noise: Tensor) -> Tensor:
        return right(
            SimpleNamespace(config=replace(self.config, **config), l_linear=self.l_linear), f0, noise
        )

    return Patch(hift.Source, "forward", forward)


def signed_f0(self: hift.F0Predictor, mel: Tensor, finalize: bool = True) -> Tensor:
    h = self.condnet[1:](self.condnet[0](mel, padded=not finalize))
    return self.classifier(h.transpose(1, 2)).squeeze(-1)


def look_left(self: hift.CausalConv1d, x: Tensor, padded: bool = False) -> Tensor:
    x = x if padded else F.pad(x, (self.reach, 0))
    return torch.nn.Conv1d.forward(self, x)


def head(clip: bool, sine: bool) -> Patch:
    """The vocoder's head without the clip of the magnitude, or without the sine around the phase."""

    def forward(self: hift.HiFT, x: Tensor, finalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        log_magnitude, angle = x.chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=100.0) if clip else log_magnitude.exp()
        phase = torch.sin(angle) if sine else angle
        wav = self.istft(magnitude * phase.cos(), magnitude * phase.sin())
        wav = wav if finalize else wav[..., : -self.config.hop_length]
        return magnitude, phase, wav.clamp(-self.config.audio_limit, self.config.audio_limit)

    return Patch(hift.HiFT, "head", forward)


def undivided(wav: Tensor) -> Tensor:
    """Squared Hann windows of 16 samples, 4 apart, add up to 1.5: what an ISTFT divides by."""
    return 1.5 * wav


def symmetric_window(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    sample = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(n // 2 + 1, dtype=torch.float64)[:, None] * sample / n
    window = torch.hann_window(n, periodic=False, dtype=torch.float64)
    return (torch.cat((angle.cos(), -angle.sin())) * window)[:, None].to(device, dtype)


def pad_without_reflection(width: int) -> Callable:
    def pad(x: Tensor, by: tuple[int, ...], mode: str = "constant") -> Tensor:
        return F.pad(x, by, mode="constant" if max(by) == width else mode)

    return pad


def snake_of_log(self: hift.Snake, x: Tensor) -> Tensor:
    alpha = self.alpha.exp()[None, :, None]
    return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


def leaky(slope: float, when_given: bool) -> Callable:
    def leaky_relu(x: Tensor, given: float | None = None) -> Tensor:
        if given is None:
            return F.leaky_relu(x, 0.01 if when_given else slope)
        return F.leaky_relu(x, slope if when_given else given)

    return leaky_relu


def mel(change: Callable[[Tensor], Tensor]) -> Callable[[Utterance], Utterance]:
    return lambda utt: replace(utt, prompt_mel=change(utt.prompt_mel))


def narrower(mel: Tensor, fmax: float = 8000.0, full: float = 12_000.0) -> Tensor:
    """Log-mel as filters up to `fmax` would see it, from filters up to `full`: near, not exact."""
    centres, wanted = (mel_centres(mel.shape[1], fmax=f) for f in (full, fmax))
    at = torch.searchsorted(centres, wanted).clamp(1, len(centres) - 1)
    share = ((wanted - centres[at - 1]) / (centres[at] - centres[at - 1])).to(mel.dtype)[None, :, None]
    return mel[:, at - 1] * (1 - share) + mel[:, at] * share
