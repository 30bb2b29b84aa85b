"""Train the vocoder: `python -m workbench.train.models.hift DATA_DIR OUT_DIR --minutes 20`.

Mel of real speech in, real speech out: multi-resolution log-mel distance, period and spectrogram
discriminators with feature matching, and an f0 target for the predictor. HiFT's own excitation is
constant over each 20 ms frame, so the trunk learns the fine structure of the voice from the mel.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from workbench.speech.config import HiFTConfig
from workbench.speech.models.hift import HiFT
from workbench.train.budget import Averaged, Captured, Run, warm_start
from workbench.train.corpus.corpus import Corpus

CONFIG = HiFTConfig(base_channels=256, f0_cond_channels=192)
CONTEXT = 8  # mel frames of right context a streamed vocoder call leaves without samples
LIMIT = 0.95  # louder training crops are scaled down to this, below audio_limit


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded at one period (HiFi-GAN, Kong et al. 2020)."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        sizes = (1, width, 4 * width, 8 * width, 16 * width)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in pairwise(sizes)
        )
        self.convs.append(weight_norm(nn.Conv2d(sizes[-1], sizes[-1], (5, 1), 1, (2, 0))))
        self.post = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, x: Tensor) -> list[Tensor]:  # (B, N)
        x = F.pad(x, (0, -x.shape[-1] % self.period)).unflatten(-1, (-1, self.period))[:, None]
        return _features(x.contiguous(memory_format=torch.channels_last), self.convs, self.post)


class SpectrumDiscriminator(nn.Module):
    """Judges a magnitude spectrogram at one resolution (UnivNet, Jang et al. 2021)."""

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        strides = (1, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            weight_norm(
                nn.Conv2d(width if i else 1, width, (3, 9 if i < 4 else 3), (1, s), (1, 4 if i < 4 else 1))
            )
            for i, s in enumerate(strides)
        )
        self.post = weight_norm(nn.Conv2d(width, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        spectrum = torch.stft(x.float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        image = spectrum.abs().transpose(1, 2)[:, None].contiguous(memory_format=torch.channels_last)
        return _features(image, self.convs, self.post)


def _features(x: Tensor, convs: nn.ModuleList, post: nn.Module) -> list[Tensor]:
    out = []
    for conv in convs:
        x = F.leaky_relu(conv(x), 0.1)
        out.append(x)
    return [*out, post(x)]


class Discriminators(nn.Module):
    """All judges; each gives its feature maps, the verdict last."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.judges = nn.ModuleList(PeriodDiscriminator(p, width) for p in (2, 3, 5, 7, 11))
        self.judges.extend(SpectrumDiscriminator(n, width) for n in (512, 1024, 2048))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        return [judge(x) for judge in self.judges]


class MelDistance(nn.Module):
    """Mean absolute log-mel difference over several window lengths."""

    def __init__(self, sample_rate: int, windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)) -> None:
        super().__init__()
        self.windows = windows
        for n in windows:
            mels = torchaudio.functional.melscale_fbanks(
                n // 2 + 1,
                0.0,
                sample_rate / 2,
                max(8, n // 16),
                sample_rate,
                norm="slaney",
                mel_scale="slaney",
            )
            self.register_buffer(f"mels{n}", mels, persistent=False)
            self.register_buffer(f"window{n}", torch.hann_window(n), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def log_mel(wav: Tensor, n: int) -> Tensor:
            s = torch.stft(wav, n, n // 4, window=self.get_buffer(f"window{n}"), return_complex=True)
            magnitude = torch.sqrt(torch.view_as_real(s).square().sum(-1) + 1e-9)
            return (magnitude.transpose(1, 2) @ self.get_buffer(f"mels{n}")).clamp(min=1e-5).log()

        return sum((log_mel(x, n) - log_mel(y, n)).abs().mean() for n in self.windows) / len(self.windows)


def estimate_f0(wav: Tensor, config: HiFTConfig, low: float = 65.0, high: float = 420.0) -> Tensor:
    """Fundamental frequency of clean speech by normalised autocorrelation.

    Parameters
    ----------
    wav : Tensor (B, N)
        Frame t is centred on sample 480 t + 240, as the mel's is.

    Returns
    -------
    Tensor (B, N // 480) in Hz, 0 where unvoiced.
    """
    hop, rate = config.hop_length, config.sampling_rate
    width, longest, shortest = 2048, int(rate / low), int(rate / high)
    pad = (width - hop) // 2
    frames = F.pad(wav, (pad, pad + hop)).unfold(-1, width, hop)[:, : wav.shape[-1] // hop]
    frames = frames - frames.mean(-1, keepdim=True)
    power = torch.fft.rfft(frames, 2 * width).abs().square()
    corr = torch.fft.irfft(power)[..., : longest + 2]
    square = frames.square().cumsum(-1)
    lags = torch.arange(longest + 2, device=wav.device)
    head, tail = (
        square[..., width - 1 - lags],
        square[..., -1:] - square[..., lags] + frames.square()[..., :1],
    )
    ratio = corr / (head * tail).clamp(min=1e-8).sqrt()
    region = ratio[..., shortest : longest + 1]
    # The shortest lag nearly as good as the best: the best alone falls an octave low too often.
    best = region.amax(-1, keepdim=True)
    peak = (region > ratio[..., shortest - 1 : longest]) & (region >= ratio[..., shortest + 1 :])
    lag = shortest + (peak & (region > 0.9 * best)).float().argmax(-1)
    left, mid, right = (ratio.gather(-1, (lag + d)[..., None])[..., 0] for d in (-1, 0, 1))
    offset = 0.5 * (left - right) / (left - 2 * mid + right).clamp(max=-1e-6)
    loud = frames.square().mean(-1) > 1e-5
    f0 = rate / (lag + offset.clamp(-0.5, 0.5))
    return torch.where((best[..., 0] > 0.55) & loud, f0, 0.0)


class Batches:
    """Random crops on the device: mel with context, the samples it stands for, f0 targets."""

    def __init__(self, corpus: Corpus, device: str, batch: int, frames: int) -> None:
        self.frames, self.device, hop = frames, device, CONFIG.hop_length
        mels = corpus.mels(device)
        self.mel = mels.data
        wav, f0 = [], []
        for i in range(len(corpus)):  # the waveform trimmed to whole frames, so that frame t is sample 480 t
            n = int(mels.lengths[i])
            x = torch.from_numpy(corpus.wav(i)[: n * hop]).to(device)
            wav.append((F.pad(x, (0, n * hop - len(x))) * 32767).to(torch.int16))
        self.wav = torch.cat(wav)
        for chunk in self.wav.split(4000 * hop):
            f0.append(estimate_f0(chunk[None].float() / 32767, CONFIG)[0])
        self.f0 = torch.cat(f0)
        usable = [int(i) for i in corpus.train if int(mels.lengths[i]) > frames + CONTEXT]
        starts = [
            torch.arange(int(mels.offsets[i]), int(mels.offsets[i + 1]) - frames - CONTEXT) for i in usable
        ]
        self.starts = torch.cat(starts).to(device)
        self.x = torch.zeros(batch, 80, frames + CONTEXT, device=device)
        self.y = torch.zeros(batch, frames * hop, device=device)
        self.target_f0 = torch.zeros(batch, frames + CONTEXT, device=device)
        self.noise = torch.zeros(1, (frames + CONTEXT) * hop, CONFIG.nb_harmonics + 1, device=device)

    def fill(self) -> None:
        """Draw the next batch into the buffers."""
        at = self.starts[torch.randint(len(self.starts), (len(self.x),), device=self.device)]
        span = torch.arange(self.frames + CONTEXT, device=self.device)
        rows = at[:, None] + span
        self.x.copy_(self.mel[rows].transpose(1, 2))
        self.target_f0.copy_(self.f0[rows])
        hop = CONFIG.hop_length
        samples = at[:, None] * hop + torch.arange(self.frames * hop, device=self.device)
        self.y.copy_(self.wav[samples].float() / 32767)
        self.noise.uniform_()


def vocode(model: HiFT, mel: Tensor, noise: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Run the vocoder for training: waveform (B, N) before the limit, and f0 (B, T + 5)."""
    f0 = model.f0_predictor(mel, finalize=False)
    spectrum = model.stft(model.m_source(f0.detach(), noise))
    with torch.autocast(mel.device.type, precision, enabled=precision != torch.float32):
        x = model.trunk(mel[..., : f0.shape[-1]], spectrum, finalize=False)
    log_magnitude, angle = x.float().chunk(2, dim=1)
    # The limit goes before exp here: behind an overflow its gradient would be 0 * inf.
    magnitude, phase = log_magnitude.clamp(max=math.log(100.0)).exp(), angle.sin()
    wav = model.istft(magnitude * phase.cos(), magnitude * phase.sin())
    return wav[..., : -model.config.hop_length], f0


def train(data: Path, out: Path, args: argparse.Namespace) -> None:
    """Train until the budget is spent; the averaged weights are in `state.pt` under "averaged"."""
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    precision = {"bfloat16": torch.bfloat16, "float32": torch.float32}[args.precision]
    batches = Batches(Corpus(data), device, args.batch, args.frames)
    model = HiFT(CONFIG).to(device)
    judges = Discriminators(args.width).to(device, memory_format=torch.channels_last)
    warm_start(model, args.init)
    distance = MelDistance(CONFIG.sampling_rate).to(device)
    averaged = Averaged(model, 0.999)
    on_gpu = device == "cuda"
    rates = {name: torch.tensor(args.lr, device=device) for name in ("g", "d")}
    opt_g, opt_d = (
        torch.optim.AdamW(m.parameters(), lr=rates[k], betas=(0.8, 0.99), capturable=on_gpu, fused=on_gpu)
        for k, m in (("g", model), ("d", judges))
    )
    run = Run(
        out, args.minutes, {"model": model, "judges": judges, "averaged": averaged, "g": opt_g, "d": opt_d}
    )
    for opt, name in ((opt_g, "g"), (opt_d, "d")):
        for group in opt.param_groups:
            group["lr"] = rates[name]
    if args.compile:
        model.trunk = torch.compile(model.trunk)

    def generate() -> tuple[Tensor, Tensor]:
        wav, f0 = vocode(model, batches.x, batches.noise, precision)
        return wav, (f0 - batches.target_f0[:, : f0.shape[1]]).abs().mean()

    def judge(wav: Tensor) -> list[list[Tensor]]:
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == "bfloat16"):
            return judges(wav)

    def descend(loss: Tensor, opt: torch.optim.Optimizer, params: list[Tensor]) -> None:
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 10.0, foreach=True)
        opt.step()

    params_g, params_d = list(model.parameters()), list(judges.parameters())

    def imitate() -> dict[str, Tensor]:
        wav, f0_error = generate()
        mel = distance(wav, batches.y)
        descend(15 * mel + 0.01 * f0_error, opt_g, params_g)
        return {"mel": mel.detach(), "f0_hz": f0_error.detach()}

    def compete() -> dict[str, Tensor]:
        wav, f0_error = generate()
        real, fake = judge(batches.y), judge(wav.detach())
        pairs = zip(real, fake, strict=True)
        loss_d = sum((r[-1].float() - 1).square().mean() + f[-1].float().square().mean() for r, f in pairs)
        descend(loss_d, opt_d, params_d)
        with torch.no_grad():
            real = judge(batches.y)
        judges.requires_grad_(False)
        fake = judge(wav)
        judges.requires_grad_(True)
        fool = sum((f[-1].float() - 1).square().mean() for f in fake)
        match = sum(
            (a.float() - b.float()).abs().mean()
            for r, f in zip(real, fake, strict=True)
            for a, b in zip(r[:-1], f[:-1], strict=True)
        )
        mel = distance(wav, batches.y)
        descend(15 * mel + fool + 2 * match + 0.01 * f0_error, opt_g, params_g)
        parts = {"mel": mel, "f0_hz": f0_error, "d": loss_d, "fool": fool, "match": match}
        return {k: v.detach() for k, v in parts.items()}

    step = {k: Captured(f, on_gpu and args.graph) for k, f in (("imitate", imitate), ("compete", compete))}
    more = True
    while more:
        batches.fill()
        for rate in rates.values():
            rate.fill_(run.rate(args.lr))
        losses = step["imitate" if run.progress < args.imitate else "compete"]()
        averaged.update(model)
        more = run.tick(lambda losses=losses: {k: float(v) for k, v in losses.items()})


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--frames", type=int, default=40, help="mel frames a crop")
    parser.add_argument("--width", type=int, default=32, help="channels of the discriminators' first layers")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--imitate", type=float, default=0.08, help="share of the time before the judges join"
    )
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--init", type=Path, help="exported weights to begin from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.data, args.out, args)


if __name__ == "__main__":
    main()
