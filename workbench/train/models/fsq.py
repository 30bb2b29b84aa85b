"""Finite scalar quantisation, and the small network that turns a log-mel into its ids.

Encoder and heads are convolutions, so an id depends on a second around it and on nothing further
away, and a network that learnt from short sentences reads half a minute.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from workbench.errors import WorkbenchError
from workbench.train.export import export_onnx

LEVELS = (3,) * 5
RATIO = 4  # whisper frames per token


def to_ids(digits: torch.Tensor, levels: tuple[int, ...] = LEVELS) -> torch.Tensor:
    """Turn digits (..., D), each from 0 to its level - 1, into ids: `sum digit_i * base_i`."""
    return (digits.long() * _bases(levels, digits.device)).sum(-1)


def to_digits(ids: torch.Tensor, levels: tuple[int, ...] = LEVELS) -> torch.Tensor:
    """Turn ids (...) back into digits (..., D)."""
    bases = _bases(levels, ids.device)
    return ids.long()[..., None] // bases % torch.tensor(levels, device=ids.device)


def _bases(levels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device=device)


class Block(nn.Module):
    """ConvNeXt block: depthwise convolution, then a small MLP per frame, on a residual."""

    def __init__(self, width: int, kernel: int = 7, mult: int = 2, dropout: float = 0.0):
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, mult * width), nn.Linear(mult * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map (B, width, T) with mask (B, 1, T) to the same shape."""
        h = self.norm(self.mix(x * mask).transpose(1, 2))
        h = self.dropout(self.down(F.gelu(self.up(h))))
        return x + h.transpose(1, 2)


class Encoder(nn.Module):
    """Log-mel to quantised features and ids.

    Parameters
    ----------
    width : int
        Channels.
    depth : tuple of int
        Blocks at 50 Hz and at 25 Hz.
    levels : tuple of int
        Values each quantised dimension may take; odd, so that 0 is one of them.
    """

    def __init__(
        self,
        width: int = 192,
        depth: tuple[int, int] = (3, 5),
        levels: tuple[int, ...] = LEVELS,
        dropout: float = 0.0,
    ):
        super().__init__()
        if any(level % 2 == 0 for level in levels):
            raise WorkbenchError(f"levels are {levels}; expected odd numbers, such as (3, 3, 5)")
        self.levels = tuple(levels)
        self.stem = nn.ModuleList([nn.Conv1d(n, width, 3, stride=2, padding=1) for n in (128, width)])
        self.stages = nn.ModuleList(
            [nn.ModuleList([Block(width, dropout=dropout) for _ in range(n)]) for n in depth]
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, len(levels))
        self.register_buffer("reach", torch.tensor([(level - 1) / 2 for level in levels]), persistent=False)

    def forward(self, feats: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bound features before rounding.

        Parameters
        ----------
        feats : Tensor (B, 128, T)
            Whisper log-mel, 100 Hz.
        lengths : Tensor (B,)
            Real frames of each row.

        Returns
        -------
        (Tensor (B, L, D), Tensor (B, 1, L))
            Features within `+-(level - 1) / 2`, L = ceil(T / 4), and the mask of real tokens.
        """
        x, mask = feats, _mask(feats, lengths)
        for conv, blocks in zip(self.stem, self.stages, strict=True):
            x = F.gelu(conv(x * mask))
            lengths = (lengths + 1) // 2
            mask = _mask(x, lengths)
            for block in blocks:
                x = block(x, mask)
        h = self.project(self.norm(x.transpose(1, 2))).float()
        return torch.tanh(h) * self.reach, mask

    def ids(self, feats: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the ids (B, L), int32."""
        h, _ = self(feats, lengths)
        return to_ids(torch.round(h) + self.reach, self.levels).int()


def _mask(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None].to(x.dtype)


def quantise(h: torch.Tensor) -> torch.Tensor:
    """Round; gradients pass straight through."""
    return h + (torch.round(h) - h).detach()


class Spread(nn.Module):
    """Quantised features (B, L, D) to `out` channels at 50 Hz (B, 2 L, out)."""

    def __init__(self, dims: int, width: int, depth: int, out: int, dropout: float, n_speakers: int = 0):
        super().__init__()
        self.enter = nn.ConvTranspose1d(dims, width, 4, stride=2, padding=1)
        self.speaker = nn.Embedding(n_speakers, width) if n_speakers else None
        self.blocks = nn.ModuleList([Block(width, dropout=dropout) for _ in range(depth)])
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, out)

    def forward(
        self, q: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw frames from tokens, of a speaker where there is one."""
        x = self.enter(q.transpose(1, 2) * mask)
        if self.speaker is not None:
            x = x + self.speaker(speaker)[:, :, None]
        mask = mask.repeat_interleave(2, dim=2)
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(self.norm(x.transpose(1, 2)))


class Tokenizer(nn.Module):
    """Encoder with the two heads that teach it what to keep."""

    def __init__(self, n_phones: int, n_speakers: int, levels: tuple[int, ...] = LEVELS, dropout=0.1):
        super().__init__()
        self.encoder = Encoder(levels=levels, dropout=dropout)
        self.spell = Spread(len(levels), 192, 2, n_phones + 1, dropout)
        self.draw = Spread(len(levels), 256, 5, 80, 0.0, n_speakers)
        nn.init.constant_(self.draw.leave.bias, -5.0)

    def forward(self, feats: torch.Tensor, lengths: torch.Tensor, speaker: torch.Tensor, noise: float = 0.0):
        """Return (features before rounding, mask, phoneme logits, mel), the last two at 50 Hz.

        `noise` shakes the features before they are rounded, so that what must survive moves away from
        the thresholds and an id does not flip at every frame.
        """
        h, mask = self.encoder(feats, lengths)
        reach = self.encoder.reach
        q = quantise(h + noise * reach * torch.randn_like(h)) if noise else quantise(h)
        q = torch.maximum(torch.minimum(q, reach), -reach)
        return h, mask, self.spell(q, mask), self.draw(q, mask, speaker)


class _Ids(nn.Module):
    """What the ONNX file computes."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, feats: torch.Tensor, feats_length: torch.Tensor) -> torch.Tensor:
        return self.encoder.ids(feats, feats_length)


def export(encoder: Encoder, path: Path) -> None:
    """Write `speech_tokenizer_v3.onnx`: feats (1, 128, T), feats_length (1,) int32 -> indices (1, L)."""
    example = (torch.zeros(1, 128, 64), torch.tensor([64], dtype=torch.int32))
    export_onnx(_Ids(encoder), example, path, ["feats", "feats_length"], "indices", {"feats": 2})
