"""The vocoder with less work: folded weight norm, fused activations, fewer taps, graphs for each length.

All of it is causal but for its first layers, which look ahead into zeros at the end. So a mel may be padded
with zeros to one of few lengths and cut afterwards, and no sample changes. Only the excitation's spectrum
and the inverse STFT know where the sound ends; they run outside of the graphs, at the true length.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from workbench.speech.fast.cuda_graphs import Graphs, compiled, has_tf32
from workbench.speech.models.hift import (
    F0_LOOKAHEAD,
    CausalConv1d,
    HiFT,
    Snake,
    UpsamplingConv1d,
    Vocoded,
    check_mel,
)
from workbench.speech.models.numerics import convolved_by_product, exact_float32, fast_float32

BUCKET = 64  # mel frames: lengths are rounded up to this
MOST_GRAPHS = 8  # kept; those used longest ago go first


class FastHiFT:
    """`HiFT`, for several mels at once.

    Parameters
    ----------
    hift : HiFT
        Taken over: its weight norm is folded.
    noise : callable (samples) -> Tensor (1, at least so many, 9)
        Uniform excitation noise.
    graphs : Graphs
    """

    def __init__(self, hift: HiFT, noise: Callable[[int], Tensor], graphs: Graphs) -> None:
        _fold(hift)
        if _suits_tensor_cores(hift):
            with graphs.notice():
                _join(hift, products=1 if graphs.arithmetic is fast_float32 else 3)
        self.hift, self.graphs = hift, graphs
        self.device = hift.conv_post.bias.device
        self._draw, self._noise = noise, torch.zeros(1, 0, hift.config.nb_harmonics + 1, device=self.device)
        self._sound = lru_cache(MOST_GRAPHS)(partial(_Sound, self))
        self._lock = Lock()  # the graphs' tensors are shared by all who ask

    def __call__(
        self, mels: Sequence[Tensor], finalize: bool = True, head_dtype: torch.dtype | None = None
    ) -> list[Vocoded]:
        """Vocode; see `HiFT.forward`.

        Parameters
        ----------
        mels : sequence of Tensor (1, 80, T)
            Of any length.
        finalize, head_dtype
            As in `HiFT.forward`.
        """
        c, hift = self.hift.config, self.hift
        for mel in mels:
            check_mel(mel, c, finalize)
        longest = max(mel.shape[-1] for mel in mels)
        samples = longest * c.hop_length  # and not of the rounded length, which a stored noise may not reach
        longest = -(-longest // BUCKET) * BUCKET
        padded = torch.cat([F.pad(mel, (0, longest - mel.shape[-1])) for mel in mels])
        dtype = hift.conv_post.bias.dtype
        per_frame = math.prod(c.upsample_rates)
        with self._lock, self.graphs.computing(exact_float32):
            if samples > self._noise.shape[1]:
                self._noise = self._draw(samples).to(self.device)
            sound = self._sound(len(mels), longest)
            f0s, sources = (y.clone() for y in sound.excite(padded, self._noise))
            rows = []
            for mel, f0, source in zip(mels, f0s, sources, strict=True):
                frames = mel.shape[-1] if finalize else mel.shape[-1] - F0_LOOKAHEAD
                rows.append((f0[None, :frames], source[None, :, : frames * c.hop_length]))
            spectra = [hift.stft(source.to(dtype)) for _, source in rows]
            if not finalize:
                spectra = [y[..., : -c.conv_pre_look_right * per_frame] for y in spectra]
            full = longest * per_frame + 1
            trunks = sound.trunk(torch.cat([F.pad(y, (0, full - y.shape[-1])) for y in spectra]))
            made = []
            for (f0, source), spectrum, x in zip(rows, spectra, trunks, strict=True):
                x = x[None, :, : spectrum.shape[-1]].to(head_dtype or dtype)
                made.append(Vocoded(f0, source, *hift.head(x, finalize)))
        return made


class _Sound:
    """Excitation and trunk for a number of mels of one length, as two graphs."""

    def __init__(self, fast: FastHiFT, n: int, frames: int) -> None:
        hift, device = fast.hift, fast.device
        c, dtype = hift.config, hift.conv_post.bias.dtype
        self.hift = hift
        self.noise = torch.zeros(1, frames * c.hop_length, c.nb_harmonics + 1, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        self.mel = torch.zeros(n, c.in_channels, frames, device=device, dtype=wide)
        length = frames * math.prod(c.upsample_rates) + 1
        self.spectrum = torch.zeros(n, c.istft_n_fft + 2, length, device=device, dtype=dtype)
        # TF32 is for the trunk alone: little else costs anything.
        self._excite = fast.graphs.capture(self._excited, exact_float32)
        self._upsample = fast.graphs.capture(self._upsampled)

    def excite(self, mel: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Mel (B, 80, S) to f0 (B, S) and source (B, 1, 480 S); overwritten by the next call."""
        n = min(noise.shape[1], self.noise.shape[1])
        self.noise[:, :n] = noise[:, :n]
        self.mel.copy_(mel)
        return self._excite()

    def trunk(self, spectrum: Tensor) -> Tensor:
        """The trunk's output (B, 18, 120 S + 1) for the mel that was excited last."""
        self.spectrum.copy_(spectrum)
        return self._upsample()

    def _excited(self) -> tuple[Tensor, Tensor]:
        f0 = self.hift.f0_predictor(self.mel.to(self.hift.f0_predictor.classifier.weight.dtype))
        return f0, self.hift.m_source(f0.to(self.hift.m_source.l_linear.weight.dtype), self.noise)

    def _upsampled(self) -> Tensor:
        return self.hift.trunk(self.mel.to(self.spectrum.dtype), self.spectrum)


class _FusedSnake(nn.Module):
    """`Snake` as one kernel, its division done beforehand."""

    def __init__(self, snake: Snake) -> None:
        super().__init__()
        self.alpha = snake.alpha.detach()[None, :, None]
        self.inverse = 1 / (self.alpha + 1e-9)
        self.fused = compiled(_snake, self.alpha.device, "all")

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x, self.alpha, self.inverse)


def _snake(x: Tensor, alpha: Tensor, inverse: Tensor) -> Tensor:
    return torch.addcmul(x, torch.sin(x * alpha).square(), inverse)


class _ProductConv1d(nn.Module):
    """`CausalConv1d` without dilation as one matrix product.

    In float64 cuBLAS multiplies on tensor cores, and cuDNN does not convolve on them.
    """

    def __init__(self, conv: CausalConv1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight.detach(), conv.bias.detach()
        self.pad = (conv.reach, 0) if conv.side == "left" else (0, conv.reach)

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        """Convolve; `padded` says that x already carries its context."""
        return convolved_by_product(x if padded else F.pad(x, self.pad), self.weight, self.bias)


class _PhasedConv1d(nn.Module):
    """`UpsamplingConv1d` at the rate of its input, with `rate` times the channels.

    Taps that meet one and the same value are summed beforehand: of 16, 11 and 7 taps 3 are left.
    """

    def __init__(self, conv: UpsamplingConv1d) -> None:
        super().__init__()
        weight, rate = conv.weight.detach(), conv.rate
        n_out, n_in, kernel = weight.shape
        self.rate, self.past = rate, -(-(kernel - 1) // rate)
        summed = weight.new_zeros(n_out, rate, n_in, self.past + 1, dtype=torch.float64)
        for phase in range(rate):
            for k in range(kernel):
                summed[:, phase, :, self.past + (phase + k - kernel + 1) // rate] += weight[..., k]
        self.weight = summed.flatten(0, 1).to(weight.dtype)
        self.bias = conv.bias.detach().repeat_interleave(rate)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(F.pad(x, (self.past, 0)), self.weight, self.bias)
        return y.unflatten(1, (-1, self.rate)).transpose(2, 3).flatten(2)


def _fold(hift: HiFT) -> None:
    """Let convolutions hold their weights, fuse the activations, take the other shapes of convolutions."""
    for module in list(hift.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        for name, child in module.named_children():
            if isinstance(child, Snake):
                setattr(module, name, _FusedSnake(child))
    net = hift.f0_predictor.condnet
    for i, layer in enumerate(net):
        if isinstance(layer, CausalConv1d):
            net[i] = _ProductConv1d(layer)
    for i, up in enumerate(hift.ups):
        hift.ups[i] = _PhasedConv1d(up)


def _suits_tensor_cores(hift: HiFT) -> bool:
    """Whether the residual blocks are computed by our own kernel and not by cuDNN."""
    weight = hift.conv_post.weight
    return weight.dtype == torch.float32 and has_tf32(weight.device)


def _join(hift: HiFT, products: int) -> None:
    """Put the kernel into the residual blocks that it has channels for."""
    from workbench.speech.fast.kernels.conv import LEAST_CHANNELS, JoinedBlock, prepare  # it needs Triton

    fitting = [
        (blocks, i, block)
        for blocks in (hift.source_resblocks, hift.resblocks)
        for i, block in enumerate(blocks)
        if block.convs1[0].in_channels % LEAST_CHANNELS == 0
    ]
    prepare({b.convs1[0].in_channels for *_, b in fitting}, products, hift.conv_post.weight.device)
    for blocks, i, block in fitting:
        blocks[i] = JoinedBlock(block, products)
