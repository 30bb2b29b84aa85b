"""Patches with a parameter: each gives our models one number, shift or size that some port has.

`kinds.py` says which values are tried.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.diagnose.suspects.catalogue import patches
from workbench.diagnose.suspects.catalogue.model_changes import with_tensor
from workbench.diagnose.suspects.catalogue.patches import Patch
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models import dit, flow, hift, lm


def estimator_rope(base: float) -> Patch:
    """Give the estimator's rotary positions another base."""

    def forward(self: dit.RotaryEmbed, length: int) -> tuple[Tensor, Tensor]:
        half = len(self.inv_freq)
        dtype = torch.promote_types(self.inv_freq.dtype, torch.float32)
        exponent = torch.arange(half, dtype=dtype, device=self.inv_freq.device) / half
        angle = torch.arange(length, dtype=dtype, device=exponent.device)[:, None] * base**-exponent
        return angle.cos(), angle.sin()

    return Patch(dit.RotaryEmbed, "forward", forward)


def attention_scale(module: object, factor: float) -> Patch:
    """Multiply the scale of attention, which is 1 / sqrt(width of a head)."""

    def attention(q: Tensor, k: Tensor, v: Tensor, **kwargs: object) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **kwargs | {"scale": factor * q.shape[-1] ** -0.5})

    return Patch(module, "F", patches.functional(scaled_dot_product_attention=attention))


def padded_estimator(multiple: float) -> Patch:
    """Pad the frames with zeros to a multiple, without a mask, and cut the padding off the velocity."""

    def forward(
        self: dit.DiT,
        x: Tensor,
        mask: Tensor | None,
        mu: Tensor,
        t: Tensor,
        spks: Tensor,
        cond: Tensor,
        streaming: bool = False,
        original=dit.DiT.forward,
    ) -> Tensor:
        length = x.shape[-1]
        extra = -length % int(multiple)
        x, mu, cond = (F.pad(y, (0, extra)) for y in (x, mu, cond))
        return original(self, x, None, mu, t, spks, cond, streaming)[..., :length]

    return Patch(dit.DiT, "forward", forward)


def scaled_condition(name: str, factor: float) -> Patch:
    """Multiply mu, cond or spks by a factor."""
    return patches.changed_condition(lambda c: c._replace(**{name: factor * getattr(c, name)}))


def guidance_rate(rate: float) -> Patch:
    """Guide with another rate."""
    return Patch(flow, "guide", lambda cond, uncond, given: cond + rate * (cond - uncond))


def sway_grid(sway: float) -> Patch:
    """Give the ODE the knots of sway sampling: 0 is an even grid, -1 the cosine grid of upstream."""

    def knots(n_timesteps: int, scheduler: str, dtype: torch.dtype = torch.float32) -> Tensor:
        u = torch.linspace(0, 1, n_timesteps + 1, dtype=dtype)
        return u + sway * (torch.cos(u * 0.5 * math.pi) - 1 + u)

    return Patch(flow, "t_span", knots)


def moved_grid(steps: float) -> Patch:
    """Move the ODE's knots along their grid by a number of steps, as by counting from 1."""

    def knots(n_timesteps: int, scheduler: str, dtype: torch.dtype = torch.float32) -> Tensor:
        u = ((torch.arange(n_timesteps + 1, dtype=dtype) + steps) / n_timesteps).clamp(0, 1)
        return 1 - torch.cos(u * 0.5 * math.pi) if scheduler == "cosine" else u

    return Patch(flow, "t_span", knots)


def time_of_other_step(steps: float) -> Patch:
    """Give the estimator the time that lies some steps further on the default grid."""

    def change(t: Tensor) -> Tensor:
        u = torch.arccos((1 - t).clamp(-1, 1)) / (0.5 * math.pi)  # the grid is t = 1 - cos(pi/2 u)
        return 1 - torch.cos((u + steps / Options.n_timesteps).clamp(0, 1) * 0.5 * math.pi)

    return changed_time(change)


def changed_time(change: Callable[[Tensor], Tensor]) -> Patch:
    """Change the time before the estimator embeds it."""

    def forward(self: dit.TimeEmbed, t: Tensor, original=dit.TimeEmbed.forward) -> Tensor:
        return original(self, change(t))

    return Patch(dit.TimeEmbed, "forward", forward)


def snake_with(epsilon: float, dtype: torch.dtype = torch.float32) -> Patch:
    """Give Snake another epsilon, or take the reciprocal of its alpha in a lower precision."""

    def forward(self: hift.Snake, x: Tensor) -> Tensor:
        alpha = self.alpha[None, :, None]
        reciprocal = (1 / (alpha.to(dtype) + epsilon)).to(x.dtype)
        return x + torch.sin(x * alpha).square() * reciprocal

    return Patch(hift.Snake, "forward", forward)


def source_late(late: float) -> Patch:
    """Shift the excitation by samples before its STFT."""

    def stft(self: hift.HiFT, source: Tensor, original=hift.HiFT.stft) -> Tensor:
        return original(self, moved(source, int(late)))

    return Patch(hift.HiFT, "stft", stft)


def wav_late(late: float) -> Patch:
    """Cut the inverse STFT's result a number of samples late."""
    return Patch(
        hift.HiFT, "istft", patches.change_result(hift.HiFT.istft, lambda wav: moved(wav, int(late)))
    )


def moved(x: Tensor, late: int) -> Tensor:
    """Shift the last axis by samples, zeros at the free end."""
    if late > 0:
        return F.pad(x, (late, 0))[..., : x.shape[-1]]
    return F.pad(x, (0, -late))[..., -x.shape[-1] :]


def fewer_harmonics(count: float) -> Patch:
    """Leave the highest harmonics out of the excitation."""

    def forward(self: hift.Source, f0: Tensor, noise: Tensor, *past, original=hift.Source.forward) -> Tensor:
        cut = with_tensor(self, "l_linear.weight", lambda w: w * (torch.arange(w.shape[1]) < count).to(w))
        return original(cut, f0, noise, *past)

    return Patch(hift.Source, "forward", forward)


def prompt_tokens_late(late: float) -> Callable[[Utterance], Utterance]:
    """Shift the prompt's tokens against its mel."""
    return lambda utt: replace(utt, flow_prompt_token=utt.flow_prompt_token.roll(int(late)))


def lm_tokens_shifted(by: float) -> Patch:
    """Look the speech tokens up in another row of the LM's embedding."""

    def embed(self: lm.LM, text_token: Tensor, prompt: Tensor, original=lm.LM.embed) -> Tensor:
        size = self.config.speech_token_size
        return original(self, text_token, (prompt + int(by)) % size)

    return Patch(lm.LM, "embed", embed)
