"""Faulty versions of functions of our models, each as some port had it.

`faults.py` says which fault uses which function, and why it is wrong. A faulty function takes the same
arguments as the right one; where it calls the right one, that is its argument `original`.
"""

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
    """A replacement for one attribute of a module or class."""

    owner: Any
    name: str
    value: Any


def functional(**replaced: Callable) -> SimpleNamespace:
    """Return torch.nn.functional with some functions replaced, to stand for `F` in one of our modules."""
    return SimpleNamespace(**(vars(F) | replaced))


def change_result(function: Callable, change: Callable) -> Callable:
    """Return the function with `change` applied to its result."""

    @functools.wraps(function)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return change(function(*args, **kwargs))

    return changed


def rope_with_base(theta: float) -> Callable:
    def rope(self: lm.Qwen2, start: int, stop: int, like: Tensor, original=lm.Qwen2.rope):
        return original(SimpleNamespace(config=replace(self.config, rope_theta=theta)), start, stop, like)

    return rope


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def norm_one_plus_weight(self: lm.RMSNorm, x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
    return ((1 + self.weight) * wide).to(x.dtype)


def task_id_last(self: lm.LM, text_token: Tensor, prompt_speech_token: Tensor) -> Tensor:
    c = self.config
    sos, task = self.embed_id(c.sos), self.embed_id(c.task_id)
    text = self.qwen.embed_tokens(text_token)
    return torch.cat((sos, text, self.speech_embedding(prompt_speech_token), task))[None]


def count_prompt_text(self: lm.LM, text, prompt_text, prompt, *others, original=lm.LM.steps):
    return original(self, torch.cat((prompt_text, text)), prompt_text[:0], prompt, *others)


def changed_condition(change: Callable[[flow.Condition], flow.Condition]) -> Patch:
    """Change the conditioning of the estimator: mu, speaker and the prompt's mel."""
    return Patch(flow.Flow, "condition", change_result(flow.Flow.condition, change))


def interpolate_mu(c: flow.Condition) -> flow.Condition:
    return c._replace(mu=F.interpolate(c.mu[..., ::2], size=c.mu.shape[-1], mode="linear"))


def tokens_plus_one(self: flow.Flow, token, prompt_token, *args, original=flow.Flow.condition, **kwargs):
    last = self.config.vocab_size - 1
    return original(self, (token + 1).clamp(max=last), (prompt_token + 1).clamp(max=last), *args, **kwargs)


def lookahead_to_left(self: flow.PreLookahead, x: Tensor, finalize: bool) -> Tensor:
    h = F.pad(x.transpose(1, 2), (self.lookahead, 0))
    h = F.leaky_relu(self.conv1(h))
    return self.conv2(F.pad(h, (2, 0))).transpose(1, 2) + x


def changed_noise(change: Callable[[Tensor, int], Tensor]) -> Patch:
    """Change the ODE's noise: `change` takes the stored noise (1, mel, frame) and the number of frames."""

    def noise(self: Pipeline, n_frames: int, options: Options | None = None) -> Tensor:
        return change(self.checkpoint.noise.ode(), n_frames).to(self.device)

    return Patch(Pipeline, "noise", noise)


def transpose_noise(noise: Tensor, n: int) -> Tensor:
    # (1, mel, frame): the same numbers in memory, read as (1, frame, mel)
    return noise.reshape(1, noise.shape[2], noise.shape[1]).transpose(1, 2)[..., :n]


def next_step_size(knots: Tensor, index: int, t: Tensor) -> Tensor:
    index = min(index + 1, len(knots) - 2)
    return knots[index + 1] - knots[index]


def unconditional_keeps(*kept: str) -> Patch:
    """Keep some conditions in the unconditional branch, where all should be zero."""

    def unconditional(c: flow.Condition, original: Callable = flow.unconditional) -> flow.Condition:
        return original(c)._replace(**{name: getattr(c, name) for name in kept})

    return Patch(flow, "unconditional", unconditional)


def swap_branches(v: flow.Velocity) -> flow.Velocity:
    guidance = v.guided - v.cond  # cfg_rate * (cond - uncond); it points the other way when they are swapped
    return flow.Velocity(v.uncond - guidance, v.uncond, v.cond)


def rotate_all_heads(q: Tensor, cos: Tensor, sin: Tensor, original=dit.rotate_first_head) -> Tensor:
    heads = q.unflatten(-1, (-1, 2 * cos.shape[-1]))  # (B, T, H, D)
    return original(heads, cos[:, None], sin[:, None]).flatten(-2)


def rotate_halves(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b = q[..., :half], q[..., half : 2 * half]
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, q[..., 2 * half :]), dim=-1)


def time_embed(scale: float = 1000.0, less: int = 1, cos_first: bool = False) -> Patch:
    """Embed the time with other constants; the defaults are the right ones.

    Frequencies fall from 1 to 1 / 10,000; their exponents are divided by half the width minus `less`.
    """

    def forward(self: dit.TimeEmbed, t: Tensor) -> Tensor:
        half = dit.TIME_FEATURES // 2
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        i = torch.arange(half, device=t.device, dtype=t.dtype)
        angle = scale * t[:, None] * torch.exp(i * -(math.log(10_000) / (half - less)))
        parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
        return self.time_mlp(torch.cat(parts, dim=-1).to(self.time_mlp[0].weight.dtype))

    return Patch(dit.TimeEmbed, "forward", forward)


def modulation_order(order: dict[int, tuple[int, ...]]) -> Patch:
    """Permute the parts of a modulation; `order` has a permutation for each number of parts."""

    def forward(self: dit.Modulation, time: Tensor, original=dit.Modulation.forward) -> tuple[Tensor, ...]:
        chunks = original(self, time)
        return tuple(chunks[i] for i in order.get(self.n, range(self.n)))

    return Patch(dit.Modulation, "forward", forward)


def exact_gelu(self: dit.FeedForward, x: Tensor) -> Tensor:
    return self.ff[2](F.gelu(self.ff[0][0](x)))


def pad_both_sides(self: dit.ConvPosEmbed, x: Tensor) -> Tensor:
    x = x.transpose(1, 2)  # (B, D, T)
    side = dit.CONV_POS_KERNEL // 2
    for conv in (self.conv1, self.conv2):
        x = conv(F.pad(x, (side, side)))
    return x.transpose(1, 2)


def chunked_mask(mask, length, chunk, device, original=dit.attention_mask) -> Tensor | None:
    return original(mask, length, 50, device)  # frames: a streamed chunk of 25 tokens


def mu_before_cond(self: dit.InputEmbed, x, cond, mu, spks, original=dit.InputEmbed.forward) -> Tensor:
    return original(self, x, mu, cond, spks)


def unscaled_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=1.0)


def cut_late(late: int | None) -> Patch:
    """Cut the prompt off `late` frames too late; None leaves the prompt in."""

    def target(self: Pipeline, mel: Tensor, prompt_frames: int, speed: float, original=Pipeline.target):
        return original(self, mel, 0 if late is None else prompt_frames + late, speed)

    return Patch(Pipeline, "target", target)


def redrawn_noise(draw: Callable[..., Tensor], seed: int) -> Patch:
    """Draw the excitation's noise anew, with torch.rand or torch.randn, instead of taking upstream's."""

    def forward(self: hift.Source, f0: Tensor, noise: Tensor, *past, original=hift.Source.forward) -> Tensor:
        drawn = draw(noise.shape, generator=torch.Generator().manual_seed(seed))
        return original(self, f0, drawn.to(noise), *past)

    return Patch(hift.Source, "forward", forward)


def centred_noise(
    self: hift.Source, f0: Tensor, noise: Tensor, *past, original=hift.Source.forward
) -> Tensor:
    return original(self, f0, noise - 0.5, *past)


def no_noise(self: hift.Source, f0: Tensor, noise: Tensor, *past, original=hift.Source.forward) -> Tensor:
    return original(self, f0, torch.zeros_like(noise), *past)


def smooth_phase(self: hift.Source, f0: Tensor, noise: Tensor, past_turns: Tensor | int = 0) -> Tensor:
    c = self.config
    harmonics = torch.arange(1, c.nb_harmonics + 2, device=f0.device, dtype=f0.dtype)
    f0_of_sample = f0.repeat_interleave(c.hop_length, dim=1)[..., None]  # (B, N, 1)
    cycles = (f0_of_sample * harmonics / c.sampling_rate).cumsum(1, dtype=torch.float64)
    cycles = (cycles + c.hop_length * past_turns) % 1
    voiced = (f0_of_sample > c.nsf_voiced_threshold).to(f0.dtype)
    sine = c.nsf_alpha * torch.sin(2 * math.pi * cycles.to(f0.dtype)) * voiced
    level = voiced * c.nsf_sigma + (1 - voiced) * (c.nsf_alpha / 3)
    excitation = sine + level * noise[:, : sine.shape[1]].to(sine)
    return torch.tanh(self.l_linear(excitation)).transpose(1, 2)


def source_config(original: Callable = hift.Source.forward, **config: float) -> Patch:
    def forward(self: hift.Source, f0: Tensor, noise: Tensor, *past) -> Tensor:
        return original(
            SimpleNamespace(config=replace(self.config, **config), l_linear=self.l_linear), f0, noise, *past
        )

    return Patch(hift.Source, "forward", forward)


def signed_f0(self: hift.F0Predictor, mel: Tensor, finalize: bool = True) -> Tensor:
    h = self.condnet[1:](self.condnet[0](mel, padded=not finalize))
    return self.classifier(h.transpose(1, 2)).squeeze(-1)


def pad_left(self: hift.CausalConv1d, x: Tensor, padded: bool = False) -> Tensor:
    x = x if padded else F.pad(x, (self.reach, 0))
    return torch.nn.Conv1d.forward(self, x)


def head(clip: bool, sine: bool) -> Patch:
    """Replace the vocoder's head by one that need not clip the magnitude or take the sine of the phase."""

    def forward(self: hift.HiFT, x: Tensor, finalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        log_magnitude, angle = x.chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=100.0) if clip else log_magnitude.exp()
        phase = torch.sin(angle) if sine else angle
        wav = self.istft(magnitude * phase.cos(), magnitude * phase.sin())
        wav = wav if finalize else wav[..., : -self.config.hop_length]
        return magnitude, phase, wav.clamp(-self.config.audio_limit, self.config.audio_limit)

    return Patch(hift.HiFT, "head", forward)


def without_window_sum(wav: Tensor) -> Tensor:
    """Undo the division of the inverse STFT by the sum of its squared windows.

    Squared Hann windows of 16 samples, 4 apart, add up to 1.5.
    """
    return 1.5 * wav


def symmetric_window(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    sample = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(n // 2 + 1, dtype=torch.float64)[:, None] * sample / n
    window = torch.hann_window(n, periodic=False, dtype=torch.float64)
    return (torch.cat((angle.cos(), -angle.sin())) * window)[:, None].to(device, dtype)


def pad_without_reflection(width: int) -> Callable:
    """Pad with zeros where the padding is `width` wide, so that only one call of `F.pad` is faulty."""

    def pad(x: Tensor, by: tuple[int, ...], mode: str = "constant") -> Tensor:
        return F.pad(x, by, mode="constant" if max(by) == width else mode)

    return pad


def snake_of_log(self: hift.Snake, x: Tensor) -> Tensor:
    alpha = self.alpha.exp()[None, :, None]
    return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


def leaky_relu_slope(slope: float, when_given: bool) -> Callable:
    """Use another slope in the calls that state one, or else in those that rely on the default 0.01."""

    def leaky_relu(x: Tensor, given: float | None = None) -> Tensor:
        if given is None:
            return F.leaky_relu(x, 0.01 if when_given else slope)
        return F.leaky_relu(x, slope if when_given else given)

    return leaky_relu


def changed_prompt_mel(change: Callable[[Tensor], Tensor]) -> Callable[[Utterance], Utterance]:
    """Return a function that changes the prompt's mel (1, mel, frame) of an utterance."""
    return lambda utt: replace(utt, prompt_mel=change(utt.prompt_mel))


def narrower_filters(mel: Tensor, fmax: float = 8000.0, full: float = 12_000.0) -> Tensor:
    """Approximate the log-mel of filters that end at `fmax`, from filters that end at `full` (both in Hz).

    Each new filter takes the value of the old ones at its centre, by linear interpolation.
    """
    centres, wanted = (mel_centres(mel.shape[1], fmax=f) for f in (full, fmax))
    at = torch.searchsorted(centres, wanted).clamp(1, len(centres) - 1)
    share = ((wanted - centres[at - 1]) / (centres[at] - centres[at - 1])).to(mel.dtype)[None, :, None]
    return mel[:, at - 1] * (1 - share) + mel[:, at] * share
