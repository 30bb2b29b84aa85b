"""Faults inside the flow's estimator, to measure `bisect` with: kinds with a random block, part or size.

Each function changes an estimator of its own and returns the tap where the error is made first.
"""

import random
from collections.abc import Callable, Mapping
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.speech.models import dit

# Linear layers and convolutions, with the first tap that their weights change.
BLOCK_PARTS = {
    "attn_norm.linear": "attn_norm.linear",
    "attn.to_q": "attn.to_q",
    "attn.to_k": "attn.to_k",
    "attn.to_v": "attn.to_v",
    "attn.to_out.0": "attn",
    "ff.ff.0.0": "ff.ff.0.0",
    "ff.ff.2": "ff",
}
OTHER_PARTS = {
    "time_embed.time_mlp.0": "time_embed",
    "time_embed.time_mlp.2": "time_embed",
    "input_embed.proj": "input_embed.proj",
    "input_embed.conv_pos_embed.conv1.0": "input_embed.conv_pos_embed.conv1",
    "input_embed.conv_pos_embed.conv2.0": "input_embed.conv_pos_embed",
    "norm_out.linear": "norm_out.linear",
    "proj_out": "proj_out",
}
ACTIVATIONS = (nn.GELU(), nn.SiLU(), nn.ReLU(), nn.LeakyReLU(0.1))


class Inside(NamedTuple):
    """Where a fault was made."""

    about: str
    tap: str  # where its error shows first; the block where no part of it is more wrong than another
    silent: str = ""  # the block that the faulty program does not call
    padded: bool = False  # the program computes more frames than it is given


Make = Callable[[dit.DiT, random.Random], Inside]


def _block(model: dit.DiT, draw: random.Random) -> tuple[str, dit.Block]:
    index = draw.randrange(len(model.transformer_blocks))
    return f"transformer_blocks.{index}", model.transformer_blocks[index]


def _part(model: dit.DiT, draw: random.Random, square: bool = False) -> tuple[str, str, nn.Module]:
    """Return a random layer: its name, the first tap it changes, and itself."""
    block, _ = _block(model, draw)
    parts = {f"{block}.{name}": f"{block}.{tap}" for name, tap in BLOCK_PARTS.items()} | OTHER_PARTS
    modules = {name: model.get_submodule(name) for name in parts}
    names = [name for name, module in modules.items() if not square or len(set(module.weight.shape[:2])) == 1]
    name = draw.choice(names)
    return name, parts[name], modules[name]


# ---- weights


@torch.no_grad()
def bias_missing(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw)
    module.bias.zero_()
    return Inside(f"no bias in {name}", tap)


@torch.no_grad()
def weight_transposed(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw, square=True)
    module.weight.copy_(module.weight.transpose(0, 1).clone())
    return Inside(f"{name} transposed", tap)


@torch.no_grad()
def weight_scaled(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw)
    factor = 1 + draw.choice((-1, 1)) * 10 ** draw.uniform(-2.5, -0.3)
    module.weight.mul_(factor)
    return Inside(f"{name} times {factor:.3f}", tap)


@torch.no_grad()
def weight_stale(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw)
    share = 10 ** draw.uniform(-2.5, -0.5)
    generator = torch.Generator().manual_seed(draw.randrange(1000))
    noise = torch.randn(module.weight.shape, generator=generator)
    module.weight.add_(share * module.weight.std() * noise)
    return Inside(f"{name} of an earlier checkpoint, {share:.3f} away", tap)


@torch.no_grad()
def row_missing(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw)
    row = draw.randrange(len(module.weight))
    module.weight[row].zero_()
    module.bias[row].zero_()
    return Inside(f"row {row} of {name} is zero", tap)


@torch.no_grad()
def weight_int8(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw)
    step = module.weight.abs().max() / 127
    module.weight.copy_((module.weight / step).round() * step)
    return Inside(f"{name} in int8", tap)


@torch.no_grad()
def weight_bfloat16(model: dit.DiT, draw: random.Random) -> Inside:
    name, tap, module = _part(model, draw)
    module.weight.copy_(module.weight.bfloat16().float())
    return Inside(f"{name} in bfloat16", tap)


# ---- blocks


def block_skipped(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    block.forward = lambda x, *rest: x
    silent = name if draw.random() < 0.5 else ""
    return Inside(f"{name} skipped", name, silent)


def blocks_swapped(model: dit.DiT, draw: random.Random) -> Inside:
    first, second = sorted(draw.sample(range(len(model.transformer_blocks)), 2))
    blocks = model.transformer_blocks
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return Inside(f"blocks {first} and {second} swapped", f"transformer_blocks.{first}")


def block_in_half(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    dtype = draw.choice((torch.bfloat16, torch.float16))
    block.to(dtype)
    forward = block.forward

    def in_half(x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        return forward(x.to(dtype), time.to(dtype), rope, mask).float()

    block.forward = in_half
    return Inside(f"{name} in {str(dtype).removeprefix('torch.')}", name)


def _replace_block(
    block: dit.Block,
    eps: float = dit.NORM_EPS,
    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    gates: tuple[bool, bool] = (True, True),
    residual: bool = True,
    norm_after: bool = False,
    in_parallel: bool = False,
) -> None:
    """Give a block another forward; the defaults are the right one."""

    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift

    def forward(self: dit.Block, x: Tensor, time: Tensor, rope: tuple, mask: Tensor | None) -> Tensor:
        chunks = self.attn_norm(time)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (chunks[i] for i in order)
        gate, gate_ff = gate if gates[0] else 1.0, gate_ff if gates[1] else 1.0
        if norm_after:
            h = x + gate * modulate(self.attn(x, rope, mask), shift, scale)
        else:
            h = (x if residual else 0) + gate * self.attn(modulate(x, shift, scale), rope, mask)
        return h + gate_ff * self.ff(modulate(x if in_parallel else h, shift_ff, scale_ff))

    block.forward = MethodType(forward, block)


def other_epsilon(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    eps = draw.choice((1e-2, 1e-3, 1e-4, 1e-5))
    _replace_block(block, eps=eps)
    return Inside(f"epsilon {eps} in {name}", f"{name}.attn.input")


def norm_after(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    _replace_block(block, norm_after=True)
    return Inside(f"norm behind attention in {name}", f"{name}.attn.input")


def gate_missing(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    of_attention = draw.random() < 0.5
    _replace_block(block, gates=(not of_attention, of_attention))
    return Inside(f"no gate in {name}", f"{name}.ff.input" if of_attention else name)


def residual_missing(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    _replace_block(block, residual=False)
    return Inside(f"no residual of attention in {name}", f"{name}.ff.input")


def feed_forward_in_parallel(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    _replace_block(block, in_parallel=True)
    return Inside(f"feed-forward beside attention in {name}", f"{name}.ff.input")


def modulation_order(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    order = draw.choice(((1, 0, 2, 4, 3, 5), (2, 0, 1, 5, 3, 4), (3, 4, 5, 0, 1, 2)))
    _replace_block(block, order=order)
    return Inside(f"modulation in the order {order} in {name}", f"{name}.attn.input")


# ---- attention


def _replace_attention(attention: dit.Attention, rotate: Callable, scale: float | None, causal: bool) -> None:
    def forward(self: dit.Attention, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q, k, v = rotate(self.to_q(x), *rope), rotate(self.to_k(x), *rope), self.to_v(x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)
        return self.to_out[0](y.transpose(1, 2).flatten(2))

    attention.forward = MethodType(forward, attention)


def rope_base(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    base = draw.choice((1_000.0, 20_000.0, 500_000.0, 1_000_000.0))

    def rotate(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        angle = torch.arange(len(cos))[:, None] * base ** -(torch.arange(half) / half)
        return dit.rotate_first_head(q, angle.cos(), angle.sin())

    _replace_attention(block.attn, rotate, None, False)
    return Inside(f"RoPE base {base:.0f} in {name}", f"{name}.attn.to_out.0.input")


def rope_pairs(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    way = draw.choice(("halves", "all heads", "none", "backwards"))

    def rotate(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if way == "none":
            return q
        if way == "backwards":
            return dit.rotate_first_head(q, cos, -sin)
        if way == "all heads":
            heads = q.unflatten(-1, (-1, 2 * cos.shape[-1]))
            return dit.rotate_first_head(heads, cos[:, None], sin[:, None]).flatten(-2)
        half = cos.shape[-1]
        a, b = q[..., :half], q[..., half : 2 * half]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, q[..., 2 * half :]), dim=-1)

    _replace_attention(block.attn, rotate, None, False)
    return Inside(f"RoPE {way} in {name}", f"{name}.attn.to_out.0.input")


def attention_scale(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    usual = model.config.dim_head**-0.5
    scale = draw.choice((1.0, model.config.dim**-0.5, usual * (1 + 10 ** draw.uniform(-2, 0))))
    _replace_attention(block.attn, dit.rotate_first_head, scale, False)
    return Inside(f"attention scale {scale:.3f} in {name}", f"{name}.attn.to_out.0.input")


def causal_attention(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    _replace_attention(block.attn, dit.rotate_first_head, None, True)
    return Inside(f"causal attention in {name}", f"{name}.attn.to_out.0.input")


def padding_without_mask(model: dit.DiT, draw: random.Random) -> Inside:
    n = draw.choice((1, 3, 8, 64))
    forward = model.forward

    def padded(x: Tensor, mask: Tensor | None, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor, *rest):
        x, mu, cond = (F.pad(y, (0, n)) for y in (x, mu, cond))
        return forward(x, mask, mu, t, spks, cond, *rest)[..., :-n]

    model.forward = padded
    return Inside(
        f"{n} frames of padding without a mask", "transformer_blocks.0.attn.to_out.0.input", "", True
    )


# ---- activations, inputs and the last layers


def feed_forward_activation(model: dit.DiT, draw: random.Random) -> Inside:
    name, block = _block(model, draw)
    block.ff.ff[0][1] = draw.choice(ACTIVATIONS)
    return Inside(f"{block.ff.ff[0][1]} in {name}", f"{name}.ff.ff.0")


def convolution_activation(model: dit.DiT, draw: random.Random) -> Inside:
    conv = draw.choice((1, 2))
    embed = model.input_embed.conv_pos_embed
    getattr(embed, f"conv{conv}")[1] = draw.choice(ACTIVATIONS)
    tap = "input_embed.conv_pos_embed" + (".conv1" if conv == 1 else "")
    return Inside(f"another activation behind convolution {conv}", tap)


def convolution_padding(model: dit.DiT, draw: random.Random) -> Inside:
    left = draw.choice((0, 15, 29))  # frames; 30 is right

    def forward(self: dit.ConvPosEmbed, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for conv in (self.conv1, self.conv2):
            x = conv(F.pad(x, (left, dit.CONV_POS_KERNEL - 1 - left)))
        return x.transpose(1, 2)

    embed = model.input_embed.conv_pos_embed
    embed.forward = MethodType(forward, embed)
    return Inside(f"{left} frames of padding on the left", "input_embed.conv_pos_embed.conv1")


def input_residual_missing(model: dit.DiT, draw: random.Random) -> Inside:
    def forward(self: dit.InputEmbed, x: Tensor, cond: Tensor, mu: Tensor, spks: Tensor) -> Tensor:
        spks = spks[:, None].expand(-1, x.shape[1], -1)
        return self.conv_pos_embed(self.proj(torch.cat((x, cond, mu, spks), dim=-1)))

    model.input_embed.forward = MethodType(forward, model.input_embed)
    return Inside("position embedding without the projection", "input_embed")


def input_order(model: dit.DiT, draw: random.Random) -> Inside:
    order = draw.choice(((0, 2, 1, 3), (2, 1, 0, 3), (0, 1, 3, 2)))

    def forward(self: dit.InputEmbed, x: Tensor, cond: Tensor, mu: Tensor, spks: Tensor) -> Tensor:
        given = (x, cond, mu, spks[:, None].expand(-1, x.shape[1], -1))
        h = self.proj(torch.cat([given[i] for i in order], dim=-1))
        return h + self.conv_pos_embed(h)

    model.input_embed.forward = MethodType(forward, model.input_embed)
    return Inside(f"inputs in the order {order}", "input_embed.proj.input")


def time_features(model: dit.DiT, draw: random.Random) -> Inside:
    scale, cos_first = draw.choice(((1000.0, True), (1.0, False), (999.0, False)))

    def forward(self: dit.TimeEmbed, t: Tensor) -> Tensor:
        i = torch.arange(dit.TIME_FEATURES // 2)
        angle = scale * t[:, None] * torch.exp(i * -(9.210340371976184 / (len(i) - 1)))  # ln 10,000
        parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
        return self.time_mlp(torch.cat(parts, dim=-1))

    model.time_embed.forward = MethodType(forward, model.time_embed)
    return Inside(f"time times {scale:.0f}, cosines first: {cos_first}", "time_embed.time_mlp.input")


def final_norm_order(model: dit.DiT, draw: random.Random) -> Inside:
    usual = model.norm_out.forward
    model.norm_out.forward = lambda time: usual(time)[::-1]
    return Inside("shift before scale in the final norm", "proj_out.input")


KINDS: Mapping[str, Make] = {
    make.__name__.replace("_", " "): make
    for make in (
        *(bias_missing, weight_transposed, weight_scaled, weight_stale, row_missing, weight_int8),
        *(weight_bfloat16, block_skipped, blocks_swapped, block_in_half, other_epsilon, norm_after),
        *(gate_missing, residual_missing, feed_forward_in_parallel, modulation_order, rope_base, rope_pairs),
        *(attention_scale, causal_attention, padding_without_mask, feed_forward_activation),
        *(convolution_activation, convolution_padding, input_residual_missing, input_order, time_features),
        final_norm_order,
    )
}
