"""The vocoder made fast: folded weight norm, fused activations, smaller convolutions, and CUDA graphs.

The vocoder is causal except for its first layers, which look a few frames ahead and see zeros after the end.
So a mel can be padded with zeros and the waveform cut afterwards without changing a sample, and a few padded
lengths serve all mels. Only the spectrum of the excitation and the inverse STFT depend on where the sound
ends. They run outside of the graphs, at the true length.

Shape letters: `B` mels, `T` frames of a mel, `S` frames after padding, `N` samples. `HiFT` explains the
parts: f0, source (the harmonic excitation), trunk, head.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from workbench.speech.fast.cuda_graphs import CudaGraphPool, can_compile_tf32, compiled
from workbench.speech.models.hift import (
    F0_LOOKAHEAD,
    F0_PAST,
    CausalConv1d,
    HiFT,
    Snake,
    UpsamplingConv1d,
    Vocoded,
    check_mel,
)
from workbench.speech.models.hift_window import Past
from workbench.speech.models.numerics import conv1d_by_matmul, exact_float32, fast_float32

BUCKET = 64  # mel frames: lengths are rounded up to a multiple of this, so that few graphs serve all lengths
MAX_GRAPHS = 8  # pairs of CUDA graphs kept; the least recently used is dropped


class FastHiFT:
    """Vocode several mels at once, with the waveform that `HiFT` gives each of them.

    Make one with `FastHiFT.consume`.

    Parameters
    ----------
    hift : HiFT
        With its layers replaced; see `consume`.
    noise : callable (samples) -> Tensor (1, `samples` or more, 9)
        Uniform excitation noise.
    graphs : CudaGraphPool
    """

    def __init__(self, hift: HiFT, noise: Callable[[int], Tensor], graphs: CudaGraphPool) -> None:
        self.hift, self.graphs = hift, graphs
        self.device = hift.conv_post.bias.device
        self._draw_noise = noise
        # The longest noise needed so far, (1, N, 9). A shorter noise is the beginning of it.
        self._noise = torch.zeros(1, 0, hift.config.nb_harmonics + 1, device=self.device)
        # (number of mels, padded frames, number of noises) -> _VocoderGraphs
        self._vocoder_graphs = lru_cache(MAX_GRAPHS)(partial(_VocoderGraphs, self))
        self._lock = Lock()  # held while graphs are used: all callers share their tensors

    @classmethod
    def consume(cls, hift: HiFT, noise: Callable[[int], Tensor], graphs: CudaGraphPool) -> "FastHiFT":
        """Build the fast path from a vocoder that nobody else uses; many of its layers are replaced.

        A deep copy of it must not be in use either: torch keeps the weight norm of a layer in the layer's
        class, which a copy shares.

        Parameters
        ----------
        hift : HiFT
        noise : callable (samples) -> Tensor (1, `samples` or more, 9)
            Uniform excitation noise.
        graphs : CudaGraphPool
        """
        _replace_layers(hift)
        if _can_use_conv_kernel(hift):
            with graphs.on_compile():
                _use_conv_kernel(hift, products=1 if graphs.arithmetic is fast_float32 else 3)
        return cls(hift, noise, graphs)

    def __call__(
        self,
        mels: Sequence[Tensor],
        finalize: bool = True,
        head_dtype: torch.dtype | None = None,
        pasts: Sequence[Past] | None = None,
    ) -> list[Vocoded]:
        """Vocode; see `HiFT.forward`.

        Parameters
        ----------
        mels : sequence of Tensor (1, 80, T)
            Of any length.
        finalize, head_dtype
            As in `HiFT.forward`.
        pasts : sequence of Past, optional
            What went before each mel; nothing by default.

        Returns
        -------
        list of Vocoded
            One for each mel.

        Raises
        ------
        WorkbenchError
            As in `HiFT.forward`.
        """
        c, hift = self.hift.config, self.hift
        for mel in mels:
            check_mel(mel, c, finalize)
        pasts = pasts or [Past()] * len(mels)
        longest = max(mel.shape[-1] for mel in mels)
        # The stored noise may be too short for the padded length.
        samples = (
            max(past.frame + mel.shape[-1] for past, mel in zip(pasts, mels, strict=True)) * c.hop_length
        )
        padded_frames = math.ceil(longest / BUCKET) * BUCKET
        padded_mels = torch.cat([F.pad(mel, (0, padded_frames - mel.shape[-1])) for mel in mels])
        dtype = hift.conv_post.bias.dtype
        stft_frames_per_mel_frame = math.prod(c.upsample_rates)
        padded_spectrum_length = padded_frames * stft_frames_per_mel_frame + 1

        # Outside of the graphs, float32 is exact. TF32 is for the trunk, which takes nearly all of the time.
        with self._lock, self.graphs.compute_mode(exact_float32):
            if samples > self._noise.shape[1]:
                more = self._draw_noise(samples)[:, self._noise.shape[1] :].to(self.device)
                self._noise = torch.cat((self._noise, more), dim=1)
            # Mels that begin at the same frame share their noise.
            starts = [past.frame * c.hop_length for past in pasts]
            noises = [self._noise[0, start:] for start in (starts if len(set(starts)) > 1 else starts[:1])]
            vocoder = self._vocoder_graphs(len(mels), padded_frames, len(noises))

            # First graph: f0 and source, then cut to the true length.
            padded_f0, padded_source = vocoder.excite(padded_mels, noises, pasts)
            padded_f0, padded_source = padded_f0.clone(), padded_source.clone()
            f0s, sources, spectra = [], [], []
            for i, mel in enumerate(mels):
                frames = mel.shape[-1] if finalize else mel.shape[-1] - F0_LOOKAHEAD
                f0s.append(padded_f0[i : i + 1, :frames])
                sources.append(padded_source[i : i + 1, :, : frames * c.hop_length])
            for source in sources:
                spectrum = hift.stft(source.to(dtype))
                if not finalize:  # as in `HiFT.trunk`
                    spectrum = spectrum[..., : -c.conv_pre_look_right * stft_frames_per_mel_frame]
                spectra.append(spectrum)

            # Second graph: the trunk, on spectra padded again.
            padded_spectra = [F.pad(y, (0, padded_spectrum_length - y.shape[-1])) for y in spectra]
            trunk_output = vocoder.trunk(torch.cat(padded_spectra))

            # The head, at the true length.
            vocoded = []
            for i, spectrum in enumerate(spectra):
                x = trunk_output[i : i + 1, :, : spectrum.shape[-1]].to(head_dtype or dtype)
                vocoded.append(Vocoded(f0s[i], sources[i], *hift.head(x, finalize)))
        return vocoded


class _VocoderGraphs:
    """Excitation and trunk for a number of mels of one padded length, as two CUDA graphs."""

    def __init__(self, fast: FastHiFT, mels: int, frames: int, noises: int = 1) -> None:
        hift, device = fast.hift, fast.device
        c, dtype = hift.config, hift.conv_post.bias.dtype
        self.hift = hift
        # Inputs at fixed addresses; `excite` and `trunk` copy their arguments here.
        sines = c.nb_harmonics + 1
        self.noise = torch.zeros(noises, frames * c.hop_length, sines, device=device)
        self.past_turns = torch.zeros(mels, sines, device=device, dtype=torch.float64)
        self.f0_known = torch.ones(mels, frames, device=device, dtype=torch.bool)
        mel_dtype = torch.promote_types(dtype, torch.float32)
        self.mel = torch.zeros(mels, c.in_channels, frames, device=device, dtype=mel_dtype)
        spectrum_length = frames * math.prod(c.upsample_rates) + 1
        self.spectrum = torch.zeros(mels, c.istft_n_fft + 2, spectrum_length, device=device, dtype=dtype)
        # The excitation costs little, so it stays exact, and only the trunk may use TF32.
        self._excite_graph = fast.graphs.capture(self._excite, exact_float32)
        self._trunk_graph = fast.graphs.capture(self._trunk)

    def excite(self, mel: Tensor, noises: Sequence[Tensor], pasts: Sequence[Past]) -> tuple[Tensor, Tensor]:
        """Return f0 (B, S) and source (B, 1, 480 S) for a mel (B, 80, S); the next call overwrites them.

        `noises` (samples, 9) are one for each mel, or one for all.
        """
        for row, noise in zip(self.noise, noises, strict=True):
            samples = min(len(noise), len(row))
            row[:samples] = noise[:samples]
        for i, past in enumerate(pasts):
            self.f0_known[i, :F0_PAST] = past.turns is None
            self.past_turns[i] = 0 if past.turns is None else past.turns[0]
        self.mel.copy_(mel)
        return self._excite_graph()

    def trunk(self, spectrum: Tensor) -> Tensor:
        """Return the trunk's output (B, 18, 120 S + 1) for the mel that `excite` was given last."""
        self.spectrum.copy_(spectrum)
        return self._trunk_graph()

    def _excite(self) -> tuple[Tensor, Tensor]:
        f0_predictor, source = self.hift.f0_predictor, self.hift.m_source
        f0 = f0_predictor(self.mel.to(f0_predictor.classifier.weight.dtype))
        f0 = f0 * self.f0_known  # unknown at the beginning of a mel that goes on from an earlier one
        return f0, source(f0.to(source.l_linear.weight.dtype), self.noise, self.past_turns)

    def _trunk(self) -> Tensor:
        return self.hift.trunk(self.mel.to(self.spectrum.dtype), self.spectrum)


class _FusedSnake(nn.Module):
    """`Snake` as one kernel; the reciprocal of alpha is computed once."""

    def __init__(self, snake: Snake) -> None:
        super().__init__()
        self.alpha = snake.alpha.detach()[None, :, None]
        self.inverse = 1 / (self.alpha + 1e-9)  # the epsilon of `Snake`
        self.compiled = compiled(_snake, self.alpha.device, "all")

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(x, self.alpha, self.inverse)


def _snake(x: Tensor, alpha: Tensor, inverse: Tensor) -> Tensor:
    return torch.addcmul(x, torch.sin(x * alpha).square(), inverse)


class _MatmulConv1d(nn.Module):
    """`CausalConv1d` without dilation, computed as one matrix product.

    For the f0 predictor in float64: cuBLAS multiplies float64 on tensor cores, cuDNN does not.
    """

    def __init__(self, conv: CausalConv1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight.detach(), conv.bias.detach()
        self.pad = (conv.reach, 0) if conv.side == "left" else (0, conv.reach)

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        """Convolve; `padded` means that x includes its context already."""
        return conv1d_by_matmul(x if padded else F.pad(x, self.pad), self.weight, self.bias)


class _PolyphaseConv1d(nn.Module):
    """`UpsamplingConv1d` computed at the rate of its input, with `rate` times the output channels.

    `UpsamplingConv1d` repeats every value `rate` times, so several taps meet the same value. Here these taps
    are summed beforehand, separately for each of the `rate` output samples (phases) that belong to an input
    value. This leaves 3 taps of the released layers' 16, 11 and 7.
    """

    def __init__(self, conv: UpsamplingConv1d) -> None:
        super().__init__()
        weight, self.rate = conv.weight.detach(), conv.rate
        n_out, n_in, kernel = weight.shape
        self.past = math.ceil((kernel - 1) / self.rate)  # input values before the current one
        summed = weight.new_zeros(n_out, self.rate, n_in, self.past + 1, dtype=torch.float64)
        for phase in range(self.rate):
            for tap in range(kernel):
                # Output sample `phase` reads the repeated input at phase + tap - (kernel - 1), where 0 is the
                # first copy of the current value.
                value = (phase + tap - (kernel - 1)) // self.rate  # 0 is the current one, -1 the one before
                summed[:, phase, :, self.past + value] += weight[..., tap]
        self.weight = summed.flatten(0, 1).to(weight.dtype)  # (n_out rate, n_in, past + 1)
        self.bias = conv.bias.detach().repeat_interleave(self.rate)

    def forward(self, x: Tensor) -> Tensor:  # (B, n_in, T) -> (B, n_out, rate T)
        y = F.conv1d(F.pad(x, (self.past, 0)), self.weight, self.bias)  # (B, n_out rate, T)
        return y.unflatten(1, (-1, self.rate)).transpose(2, 3).flatten(2)


def _replace_layers(hift: HiFT) -> None:
    """Fold weight norm, fuse the activations, and replace convolutions by cheaper ones, in place."""
    for module in list(hift.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")  # leaves the weight as a plain parameter
        for name, child in module.named_children():
            if isinstance(child, Snake):
                setattr(module, name, _FusedSnake(child))
    f0_layers = hift.f0_predictor.condnet
    for i, layer in enumerate(f0_layers):
        if isinstance(layer, CausalConv1d):
            f0_layers[i] = _MatmulConv1d(layer)
    for i, up in enumerate(hift.ups):
        hift.ups[i] = _PolyphaseConv1d(up)


def _can_use_conv_kernel(hift: HiFT) -> bool:
    """Return whether our own kernel can compute the residual blocks, in place of cuDNN."""
    weight = hift.conv_post.weight
    return weight.dtype == torch.float32 and can_compile_tf32(weight.device)


def _use_conv_kernel(hift: HiFT, products: int) -> None:
    """Replace the residual blocks whose number of channels our own kernel supports, in place.

    `products` is 1 or 3; see `FusedResBlock`.
    """
    from workbench.speech.fast.kernels.conv import MIN_CHANNELS, FusedResBlock, compile_for  # needs Triton

    supported: list[tuple[nn.ModuleList, int]] = []
    channels: set[int] = set()
    for blocks in (hift.source_resblocks, hift.resblocks):
        for i, block in enumerate(blocks):
            block_channels = block.convs1[0].in_channels
            if block_channels % MIN_CHANNELS == 0:
                supported.append((blocks, i))
                channels.add(block_channels)
    compile_for(channels, products, hift.conv_post.weight.device)
    for blocks, i in supported:
        blocks[i] = FusedResBlock(blocks[i], products)
