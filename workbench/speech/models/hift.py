"""Mel to waveform: f0 -> harmonic source -> upsampling trunk -> inverse STFT.

Map, in the order of `HiFT.forward`; each part can be run alone and in its own precision:

- `F0Predictor`: mel -> f0 (B, T) in Hz, in float64 by default
- `Source`: f0 and noise -> the excitation (B, 1, N): nine sines where voiced, noise everywhere
- `HiFT.stft`: the excitation's spectrum (B, 18, N / 4 + 1)
- `HiFT.trunk`: mel and spectrum -> log-magnitude and phase; `UpsamplingConv1d`, `ResBlock`, `Snake`.
  `core_inputs` and `decode_core` are its halves: engines replace the second
- `HiFT.head`: magnitude, phase, inverse STFT -> waveform (B, N)
- `Vocoded`: everything that was made on the way

Shape letters: `B` batch, `T` mel frames, `N` = 480 T samples. Facts: upstream
`cosyvoice/hifigan/{generator,f0_predictor}.py`; parameter names are upstream's. `diagnose.suspects` replaces
functions and methods here to simulate faults, so they are called through the module or the class.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from workbench.errors import WorkbenchError
from workbench.speech.config import HiFTConfig
from workbench.speech.models.numerics import exact_float32

Core = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

F0_LOOKAHEAD = 3  # mel frames the f0 predictor sees to the right
F0_PAST = 8  # and to the left: four convolutions of 3
MIN_STREAM_FRAMES = 9  # mel frames; fewer give no sample while more mel is to come


class Vocoded(NamedTuple):
    """The waveform, and everything that the vocoder made on the way to it."""

    f0: Tensor  # (1, T) Hz
    source: Tensor  # (1, 1, N) excitation
    magnitude: Tensor  # (1, 9, 120 T + 1)
    phase: Tensor  # (1, 9, 120 T + 1) rad, within +-1
    wav: Tensor  # (1, N) within +-audio_limit


class CausalConv1d(nn.Conv1d):
    """Convolution with padding on one side only: "left", so that it sees the past, or "right", the future."""

    def __init__(self, n_in: int, n_out: int, kernel: int, dilation: int = 1, side: str = "left") -> None:
        super().__init__(n_in, n_out, kernel, dilation=dilation)
        self.reach = (kernel - 1) * dilation
        self.side = side

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        """Convolve; `padded` means that x includes its context already."""
        if not padded:
            x = F.pad(x, (self.reach, 0) if self.side == "left" else (0, self.reach))
        return super().forward(x)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # In half precision the sums are float32 anyway, and rounded at the end. Done by hand on a CPU, which
        # has no such convolution of its own on most machines: torch's stand-in takes 30 times as long.
        if x.device.type != "cpu" or x.dtype not in (torch.float16, torch.bfloat16):
            return super()._conv_forward(x, weight, bias)
        bias = None if bias is None else bias.float()
        return super()._conv_forward(x.float(), weight.float(), bias).to(x.dtype)


class UpsamplingConv1d(CausalConv1d):
    """Convolution of every value repeated `rate` times."""

    def __init__(self, n_in: int, n_out: int, kernel: int, rate: int) -> None:
        super().__init__(n_in, n_out, kernel)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (B, n_in, T) -> (B, n_out, rate T)
        return super().forward(x.repeat_interleave(self.rate, dim=-1))


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, one alpha a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[None, :, None]
        return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Three residual pairs of causal convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            return weight_norm(CausalConv1d(channels, channels, kernel, dilation))

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for act1, conv1, act2, conv2 in layers:
            x = x + conv2(act2(conv1(act1(x))))
        return x


class F0Predictor(nn.Module):
    """Predict the fundamental frequency from the mel; in float64 by default, as upstream."""

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        width = config.f0_cond_channels
        layers: list[nn.Module] = []
        for i in range(5):
            n_in, kernel, side = (
                (config.in_channels, F0_LOOKAHEAD + 1, "right") if i == 0 else (width, 3, "left")
            )
            layers += [weight_norm(CausalConv1d(n_in, width, kernel, side=side)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: Tensor, finalize: bool = True) -> Tensor:  # (B, 80, T) -> (B, T or T - 3) Hz
        h = self.condnet[0](mel, padded=not finalize)
        h = self.condnet[1:](h)
        return self.classifier(h.transpose(1, 2)).squeeze(-1).abs()


class Source(nn.Module):
    """Harmonic excitation: nine sines where voiced, noise everywhere."""

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.nb_harmonics + 1, 1)

    def forward(self, f0: Tensor, noise: Tensor, past_turns: Tensor | None = None) -> Tensor:
        """Make the excitation.

        Parameters
        ----------
        f0 : Tensor (B, T)
            Hz.
        noise : Tensor (1 or B, at least 480 T, 9)
            Uniform in [0, 1), so it has a mean: upstream draws torch.rand here, not randn.
        past_turns : Tensor (B, 9), optional
            `turns` of all frames before these, summed: the phase goes on from there. Float64.

        Returns
        -------
        Tensor (B, 1, 480 T)

        Notes
        -----
        The phase is a staircase, constant over each mel frame: upstream upsamples it by NEAREST.
        The random initial phase it adds to the first sample never reaches the output.
        """
        c = self.config
        hop = c.hop_length
        # float64 sums on every device: a CPU sums float32 this way, a GPU would not.
        cycles = turns(f0, c).cumsum(1, dtype=torch.float64)
        if past_turns is not None:
            cycles = cycles + past_turns[:, None]
        phase = cycles.to(f0.dtype) * 2 * math.pi * hop
        voiced = (f0 > c.nsf_voiced_threshold).to(f0.dtype)[..., None]
        sine = c.nsf_alpha * torch.sin(phase) * voiced
        level = voiced * c.nsf_sigma + (1 - voiced) * (c.nsf_alpha / 3)
        sine, level = (y.repeat_interleave(hop, dim=1) for y in (sine, level))
        excitation = sine + level * noise[:, : sine.shape[1]].to(sine)
        return torch.tanh(self.l_linear(excitation)).transpose(1, 2)


def turns(f0: Tensor, config: HiFTConfig) -> Tensor:
    """Return how far each sine turns in one sample: f0 (B, T) in Hz -> (B, T, 9), without whole turns."""
    harmonics = torch.arange(1, config.nb_harmonics + 2, device=f0.device, dtype=f0.dtype)
    return (f0[..., None] * harmonics / config.sampling_rate) % 1


class HiFT(nn.Module):
    """The vocoder.

    Parameters
    ----------
    config : HiFTConfig
        Sizes.
    """

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        self.config = c = config
        bins = c.istft_n_fft + 2  # real and imaginary parts of a one-sided spectrum
        widths = [c.base_channels // 2 ** (i + 1) for i in range(len(c.upsample_rates))]
        self.m_source = Source(c)
        self.conv_pre = weight_norm(
            CausalConv1d(c.in_channels, c.base_channels, c.conv_pre_look_right + 1, side="right")
        )
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            up = UpsamplingConv1d(2 * width, width, c.upsample_kernel_sizes[i], c.upsample_rates[i])
            self.ups.append(weight_norm(up))
            stride = math.prod(c.upsample_rates[i + 1 :])
            kernel = 1 if stride == 1 else 2 * stride
            self.source_downs.append(nn.Conv1d(bins, width, kernel, stride))
            self.source_resblocks.append(
                ResBlock(width, c.source_resblock_kernel_sizes[i], c.source_resblock_dilation_sizes[i])
            )
            for kernel, dilations in zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True):
                self.resblocks.append(ResBlock(width, kernel, dilations))
        self.conv_post = weight_norm(CausalConv1d(widths[-1], bins, 7))
        self.f0_predictor = F0Predictor(c)

    def trunk(self, mel: Tensor, spectrum: Tensor, finalize: bool = True) -> Tensor:
        """Upsample the mel and add the excitation's spectrum: -> log-magnitude and phase (B, 18, frames)."""
        return self.decode_core(*self.core_inputs(mel, spectrum, finalize))

    def core_inputs(self, mel: Tensor, spectrum: Tensor, finalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return the mel after the first convolution, and the spectrum of the frames that it belongs to."""
        c = self.config
        if finalize:
            return self.conv_pre(mel), spectrum
        spectrum = spectrum[..., : -c.conv_pre_look_right * math.prod(c.upsample_rates)]
        return self.conv_pre(mel, padded=True), spectrum

    def decode_core(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Upsample what the first convolution gave: -> log-magnitude and phase (B, 18, frames)."""
        c = self.config
        per_stage = len(c.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, c.lrelu_slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            down = self.source_downs[i]
            x = x + self.source_resblocks[i](down(F.pad(spectrum, (down.stride[0] - 1, 0))))
            blocks = self.resblocks[i * per_stage : (i + 1) * per_stage]
            x = sum(block(x) for block in blocks) / per_stage
        return self.conv_post(F.leaky_relu(x))  # the default slope 0.01 here, not lrelu_slope

    def head(self, x: Tensor, finalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return magnitude, phase and waveform (B, N) from the trunk's output."""
        log_magnitude, angle = x.chunk(2, dim=1)
        phase = torch.sin(angle)  # bounds the phase to +-1 rad; leaving it out changes the sound
        return self.wave(log_magnitude.exp(), phase, finalize)

    def wave(self, magnitude: Tensor, phase: Tensor, finalize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return magnitude, clipped, phase and waveform (B, N)."""
        c = self.config
        magnitude = magnitude.clamp(max=100.0)
        wav = self.istft(magnitude * phase.cos(), magnitude * phase.sin())
        if not finalize:
            wav = wav[..., : -c.hop_length]
        return magnitude, phase, wav.clamp(-c.audio_limit, c.audio_limit)

    def stft(self, source: Tensor) -> Tensor:
        """Return the spectrum, real parts and then imaginary: (B, 1, N) -> (B, 18, N / 4 + 1).

        In any precision, on any device.
        """
        n = self.config.istft_n_fft
        x = F.pad(source, (n // 2, n // 2), mode="reflect")
        return F.conv1d(x, _windowed_dft(n, x.dtype, x.device), stride=self.config.istft_hop_len)

    def istft(self, real: Tensor, imag: Tensor) -> Tensor:
        """Return the waveform of a spectrum: real and imaginary part (B, 9, F) each -> (B, 4 (F - 1)).

        One transposed convolution in place of torch.istft, which has no half precision on a CPU and cannot
        be captured in a CUDA graph. n_fft is 16, so the DFT matrix is small.
        """
        n, hop = self.config.istft_n_fft, self.config.istft_hop_len
        mirrored = torch.full((n // 2 + 1, 1, 1), 2.0 / n, device=real.device, dtype=real.dtype)
        mirrored[0] /= 2  # the bins at 0 and Nyquist have no mirror image
        mirrored[-1] /= 2
        basis = _windowed_dft(n, real.dtype, real.device) * torch.cat((mirrored, mirrored))
        wav = F.conv_transpose1d(torch.cat((real, imag), dim=1), basis, stride=hop)
        square = torch.hann_window(n, device=real.device, dtype=real.dtype).square()[None, None]
        weight_sum = F.conv_transpose1d(torch.ones_like(real[:1, :1]), square, stride=hop)
        inside = slice(n // 2, wav.shape[-1] - n // 2)
        return (wav[..., inside] / weight_sum[..., inside]).squeeze(1)

    @exact_float32()
    def forward(
        self,
        mel: Tensor,
        noise: Tensor,
        finalize: bool = True,
        source: Tensor | None = None,
        head_dtype: torch.dtype | None = None,
        core: Core | None = None,
        past_turns: Tensor | None = None,
    ) -> Vocoded:
        """Vocode in the precision each part's weights are in.

        Parameters
        ----------
        mel : Tensor (1, 80, T)
            Natural-log mel.
        noise : Tensor (1, at least 480 T, 9)
            Uniform excitation noise.
        finalize : bool
            False: more mel is to come, the last 8 frames are context; gives (T - 8) * 480 samples.
        source : Tensor (1, 1, N), optional
            Excitation to use instead of the one made from f0.
        head_dtype : torch.dtype, optional
            Precision of exp, sin and the inverse STFT, which have no weights; the trunk's by default.
        core : callable (x_pre, s_stft) -> magnitude, phase, optional
            Used instead of the model's own from the first convolution to exp and sin.
        past_turns : Tensor (1, 9), optional
            Given where the mel goes on from an earlier one: `turns` of all frames before its frame `F0_PAST`,
            summed. f0 is unknown before that frame, and 0; see `hift_window`.

        Raises
        ------
        WorkbenchError
            When the mel is empty, too short to stream or has NaN or Inf in it.
        """
        check_mel(mel, self.config, finalize)
        f0_dtype = self.f0_predictor.classifier.weight.dtype
        f0 = self.f0_predictor(mel.to(f0_dtype), finalize)
        if past_turns is not None:
            f0 = F.pad(f0[:, F0_PAST:], (F0_PAST, 0))
        if source is None:
            source_f0 = f0.to(self.m_source.l_linear.weight.dtype)
            past = () if past_turns is None else (past_turns,)
            source = self.m_source(source_f0, noise, *past)
        if not finalize:
            mel = mel[..., :-F0_LOOKAHEAD]
        dtype = self.conv_post.bias.dtype
        spectrum = self.stft(source.to(dtype))
        if core is None:
            x = self.trunk(mel.to(dtype), spectrum, finalize)
            magnitude, phase, wav = self.head(x.to(head_dtype or dtype), finalize)
        else:
            magnitude, phase = core(*self.core_inputs(mel.to(dtype), spectrum, finalize))
            magnitude, phase, wav = self.wave(magnitude, phase, finalize)
        return Vocoded(f0, source, magnitude, phase, wav)


def check_mel(mel: Tensor, config: HiFTConfig, finalize: bool) -> None:
    """Raise a WorkbenchError for a mel that the vocoder cannot take: shape, length, NaN or Inf."""
    if mel.ndim != 3 or mel.shape[1] != config.in_channels:
        raise WorkbenchError(
            f"a mel of shape {tuple(mel.shape)} found; expected (1, {config.in_channels}, frames)"
        )
    min_frames = 1 if finalize else MIN_STREAM_FRAMES
    if mel.shape[-1] < min_frames:
        raise WorkbenchError(f"{mel.shape[-1]} mel frames found; expected at least {min_frames}")
    bad = ~mel.isfinite()
    if bool(bad.any()):
        _, m, t = (int(i) for i in bad.nonzero()[0])
        raise WorkbenchError(
            f"{int(bad.sum())} of {mel.numel()} mel values are NaN or Inf, the first at bin {m}, frame {t}; "
            "look at the flow that made them (float16 overflows there first)"
        )


@lru_cache(maxsize=16)
def _windowed_dft(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the rows of a one-sided DFT times a periodic Hann window: (n + 2, 1, n), real then imaginary."""
    sample = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(n // 2 + 1, dtype=torch.float64)[:, None] * sample / n
    rows = torch.cat((angle.cos(), -angle.sin())) * torch.hann_window(n, dtype=torch.float64)
    return rows[:, None].to(device, dtype)
