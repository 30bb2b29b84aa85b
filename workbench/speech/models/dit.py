"""The velocity estimator of the flow: a diffusion transformer over mel frames.

Map, in the order of `DiT.forward`:

- `TimeEmbed`: ODE time -> a vector (B, D)
- `InputEmbed`: state, prompt mel, mu and speaker -> (B, T, D), plus `ConvPosEmbed`, causal convolutions
- `RotaryEmbed`, `rotate_first_head`: rotary position embedding, of the first head alone
- `attention_mask`: chunks when streaming, and padding
- `Block` x depth: `Modulation` gives shifts, scales and gates from the time; `Attention` and `FeedForward`
- `Modulation` and a linear layer: -> velocity (B, M, T)

Shape letters: `B` batch, `T` mel frames, `M` mel bins, `D` width, `H` heads. Facts: upstream
`cosyvoice/flow/DiT/{dit,modules}.py`; parameter names are upstream's. `diagnose.suspects` replaces functions
and methods here to simulate faults, so they are called through the module or the class.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.speech.config import DiTConfig

TIME_FEATURES = 256  # sines and cosines of the time
CONV_POS_KERNEL = 31  # frames
CONV_POS_GROUPS = 16
NORM_EPS = 1e-6  # of the layer norms


class TimeEmbed(nn.Module):
    """Turn the ODE time in [0, 1] into a vector that modulates every layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, D)
        half = TIME_FEATURES // 2
        # At least float32: the arguments reach 1000 rad, which half precision cannot resolve.
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        i = torch.arange(half, device=t.device, dtype=t.dtype)
        angle = 1000 * t[:, None] * torch.exp(i * -(math.log(10_000) / (half - 1)))
        features = torch.cat((angle.sin(), angle.cos()), dim=-1)
        return self.time_mlp(features.to(self.time_mlp[0].weight.dtype))


class ConvPosEmbed(nn.Module):
    """Convolutional position embedding: two grouped convolutions, causal."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name in ("conv1", "conv2"):
            conv = nn.Conv1d(dim, dim, CONV_POS_KERNEL, groups=CONV_POS_GROUPS)
            setattr(self, name, nn.Sequential(conv, nn.Mish()))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        x = x.transpose(1, 2)
        for conv in (self.conv1, self.conv2):
            x = conv(F.pad(x, (CONV_POS_KERNEL - 1, 0)))
        return x.transpose(1, 2)


class InputEmbed(nn.Module):
    """Project the state and its conditions; channels are in the order x, cond, mu, spks."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        channels = 2 * config.mel_dim + config.mu_dim + config.spk_dim
        self.proj = nn.Linear(channels, config.dim)
        self.conv_pos_embed = ConvPosEmbed(config.dim)

    def forward(self, x: Tensor, cond: Tensor, mu: Tensor, spks: Tensor) -> Tensor:
        spks = spks[:, None].expand(-1, x.shape[1], -1)  # (B, M) -> (B, T, M), the same for every frame
        h = self.proj(torch.cat((x, cond, mu, spks), dim=-1))
        return h + self.conv_pos_embed(h)


class RotaryEmbed(nn.Module):
    """Angles of the rotary position embedding, interleaved pairs."""

    def __init__(self, dim_head: int) -> None:
        super().__init__()
        inv_freq = 10_000.0 ** -(torch.arange(0, dim_head, 2).float() / dim_head)
        self.register_buffer("inv_freq", inv_freq)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:  # cos, sin: (T, dim_head / 2)
        # Angles reach `length` rad: never in half precision, whatever the stage computes in.
        dtype = torch.promote_types(self.inv_freq.dtype, torch.float32)
        position = torch.arange(length, device=self.inv_freq.device, dtype=dtype)
        angle = position[:, None] * self.inv_freq.to(dtype)
        return angle.cos(), angle.sin()


def rotate_first_head(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channels of head 0 and leave the other heads as they are.

    Upstream applies a 64-channel rotation before splitting the heads, so 15 of 16 heads carry no
    position at all. The weights were trained with it: rotating every head is wrong by about 1.8.
    """
    width = 2 * cos.shape[-1]
    even, odd = q[..., 0:width:2], q[..., 1:width:2]
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((rotated, q[..., width:]), dim=-1)


class Attention(nn.Module):
    """Self-attention over frames."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        inner = config.heads * config.dim_head
        self.heads = config.heads
        self.to_q = nn.Linear(config.dim, inner)
        self.to_k = nn.Linear(config.dim, inner)
        self.to_v = nn.Linear(config.dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, config.dim)])

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q = rotate_first_head(self.to_q(x), *rope)
        k = rotate_first_head(self.to_k(x), *rope)
        # (B, T, H dim_head) -> (B, H, T, dim_head)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, self.to_v(x)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None])
        y = self.to_out[0](y.transpose(1, 2).flatten(2))
        if mask is not None:  # padded frames get zeros; the last frame's row of the mask names the valid ones
            y = y.masked_fill(~mask[:, -1, :, None], 0.0)
        return y


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        project = nn.Sequential(nn.Linear(dim, dim * mult), nn.GELU(approximate="tanh"))
        self.ff = nn.Sequential(project, nn.Identity(), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Modulation(nn.Module):
    """Linear map from the time embedding to shifts, scales and gates, one row per sample."""

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.n = n
        self.linear = nn.Linear(dim, n * dim)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:  # n tensors (B, 1, D)
        return self.linear(F.silu(time))[:, None].chunk(self.n, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without own weights, then a shift and scale that come from the time."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and feed-forward, each modulated and gated by the time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn_norm = Modulation(config.dim, 6)
        self.attn = Attention(config)
        self.ff = FeedForward(config.dim, config.ff_mult)

    def forward(self, x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.attn_norm(time)
        x = x + gate_msa * self.attn(modulate(x, shift_msa, scale_msa), rope, mask)
        return x + gate_mlp * self.ff(modulate(x, shift_mlp, scale_mlp))


def attention_mask(
    mask: Tensor | None, length: int, chunk: int | None, device: torch.device
) -> Tensor | None:
    """Return which frame (row) may attend to which (column).

    Parameters
    ----------
    mask : Tensor (B, 1, T) or None
        Ones where a frame is real; None means all are.
    length : int
        T.
    chunk : int or None
        Streaming: frames attend to their own chunk of this many frames and to all before it. Chunks
        count from the start of the prompt.

    Returns
    -------
    Tensor (B or 1, T, T) of bool, or None where every frame may attend to every frame.
    """
    allowed = None if mask is None else mask.bool().expand(-1, length, -1)
    if chunk is not None:
        position = torch.arange(length, device=device)
        end_of_chunk = (position[:, None] // chunk + 1) * chunk
        in_chunks = position[None, :] < end_of_chunk  # (T, T)
        allowed = in_chunks[None] if allowed is None else allowed & in_chunks
    return allowed


class DiT(nn.Module):
    """Velocity of the mel at ODE time t, given its conditions.

    Parameters
    ----------
    config : DiTConfig
        Sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbed(config.dim)
        self.input_embed = InputEmbed(config)
        self.rotary_embed = RotaryEmbed(config.dim_head)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = Modulation(config.dim, 2)
        self.proj_out = nn.Linear(config.dim, config.out_channels)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        mu: Tensor,
        t: Tensor,
        spks: Tensor,
        cond: Tensor,
        streaming: bool = False,
    ) -> Tensor:
        """Estimate the velocity.

        Parameters
        ----------
        x, mu, cond : Tensor (B, 80, T)
            State, conditioning from the tokens, prompt mel (zero where there is none).
        mask : Tensor (B, 1, T) or None
            Ones where a frame is real; None means all.
        t : Tensor (B,)
            ODE time.
        spks : Tensor (B, 80)
            Projected speaker embedding.
        streaming : bool
            Chunked attention.

        Returns
        -------
        Tensor (B, 80, T), not multiplied by the mask.
        """
        length = x.shape[-1]
        time = self.time_embed(t.expand(x.shape[0]))
        h = self.input_embed(x.transpose(1, 2), cond.transpose(1, 2), mu.transpose(1, 2), spks)
        rope = self.rotary_embed(length)
        chunk = self.config.static_chunk_size if streaming else None
        allowed = attention_mask(mask, length, chunk, x.device)
        for block in self.transformer_blocks:
            h = block(h, time, rope, allowed)
        scale, shift = self.norm_out(time)  # scale first here, shift first inside the blocks
        return self.proj_out(modulate(h, shift, scale)).transpose(1, 2)
