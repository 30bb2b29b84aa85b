"""The speaker encoder: Kaldi filter bank -> 192 numbers that tell one voice from another.

A small time-delay network with attentive statistics, taught to name the speaker of random crops by
the cosine to one direction each (additive margin). `python -m workbench.train.models.speaker DATA_DIR
OUT_DIR --minutes 2` trains, measures and writes `campplus.onnx` and `embeddings.pt`.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from workbench.train.corpus.corpus import Corpus
from workbench.train.export import export_onnx
from workbench.train.gpu_features import Features

DIMS = 192
MARGIN, SCALE = 0.2, 20.0


class SpeakerEncoder(nn.Module):
    """Filter bank to embedding.

    Parameters
    ----------
    width : int
        Channels of the time-delay layers.
    dims : int
        Size of the embedding.
    """

    def __init__(self, width: int = 128, dims: int = DIMS):
        super().__init__()
        shapes = [(80, 5, 1), (width, 3, 2), (width, 3, 3), (width, 3, 4)]
        self.layers = nn.ModuleList(
            [nn.Conv1d(n, width, k, dilation=d, padding=d * (k // 2)) for n, k, d in shapes]
        )
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in shapes])
        self.attend = nn.Sequential(nn.Conv1d(width, 32, 1), nn.Tanh(), nn.Conv1d(32, width, 1))
        self.pooled = nn.BatchNorm1d(2 * width)
        self.project = nn.Linear(2 * width, dims)

    def forward(self, fbank: torch.Tensor) -> torch.Tensor:
        """Embed one or more utterances.

        Parameters
        ----------
        fbank : Tensor (B, T, 80)
            Kaldi filter bank at 16 kHz minus its mean over time.

        Returns
        -------
        Tensor (B, 192)
        """
        x = fbank.transpose(1, 2)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            h = norm(F.relu(layer(x)))
            x = h if i == 0 else x + h
        weight = self.attend(x).softmax(dim=2)
        mean = (weight * x).sum(dim=2)
        spread = ((weight * x * x).sum(dim=2) - mean * mean).clamp(min=1e-5).sqrt()
        return self.project(self.pooled(torch.cat([mean, spread], dim=1)))


class Classifier(nn.Module):
    """Encoder and one direction per speaker."""

    def __init__(self, n_speakers: int):
        super().__init__()
        self.encoder = SpeakerEncoder()
        self.directions = nn.Parameter(torch.randn(n_speakers, DIMS) / math.sqrt(DIMS))

    def forward(self, fbank: torch.Tensor, truth: torch.Tensor | None = None) -> torch.Tensor:
        """Return scaled cosines (B, speakers); the true one is lowered by the margin while training."""
        cosine = F.normalize(self.encoder(fbank)) @ F.normalize(self.directions).T
        if truth is not None:
            cosine = cosine - MARGIN * F.one_hot(truth, cosine.shape[1])
        return SCALE * cosine


def crop(fbanks: Features, rows: torch.Tensor, frames: int, generator: torch.Generator) -> torch.Tensor:
    """Cut random pieces (B, frames, 80) with a little noise, mean over time removed."""
    room = (fbanks.lengths[rows] - frames).clamp(min=0)
    starts = (torch.rand(len(rows), generator=generator).to(room.device) * (room + 1)).long()
    pieces, lengths = fbanks.batch(rows, frames, starts)
    # Too short an utterance begins again: zeros would be silence of a loudness of their own.
    again = torch.arange(frames, device=pieces.device) % lengths[:, None]
    pieces = pieces.gather(1, again[..., None].expand_as(pieces))
    level = pieces.mean(dim=(1, 2), keepdim=True) + 3 * torch.randn(len(rows), 1, 1, device=pieces.device) - 7
    pieces = torch.logaddexp(pieces, level + 0.5 * torch.randn_like(pieces))
    return pieces - pieces.mean(dim=1, keepdim=True)


def train(
    corpus: Corpus, device: torch.device, minutes: float, seed: int, size: int = 64, lr: float = 2e-3
) -> Classifier:
    """Train for so many minutes and return the classifier."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    fbanks, truth = corpus.fbanks(device), corpus.speaker_ids.to(device)
    share = torch.bincount(corpus.speaker_ids[corpus.train]).float().rsqrt()[corpus.speaker_ids[corpus.train]]
    model = Classifier(len(corpus.speaker_names)).to(device)
    adam = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    begin, told, step = time.monotonic(), 0.0, 0
    while (spent := time.monotonic() - begin) < 60 * minutes:
        for group in adam.param_groups:
            group["lr"] = (
                lr * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * spent / (60 * minutes)))
            )
        rows = corpus.train[torch.multinomial(share, size, generator=generator)].to(device)
        frames = int(torch.randint(100, 400, (), generator=generator))
        loss = F.cross_entropy(model(crop(fbanks, rows, frames, generator), truth[rows]), truth[rows])
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        step += 1
        if spent - told > 10 or step == 1:
            told = spent
            print(f"{spent:6.0f} s step {step} loss {loss.item():.3f}", flush=True)
    return model.eval()


def export(encoder: SpeakerEncoder, path: Path) -> None:
    """Write `campplus.onnx`: input (1, T, 80) -> output (1, 192)."""
    export_onnx(encoder, (torch.zeros(1, 100, 80),), path, ["input"], "output", {"input": 1})


@torch.no_grad()
def embed(encoder: SpeakerEncoder, fbanks: Features) -> torch.Tensor:
    """Embed every utterance, whole, one at a time as the ONNX file will be asked to."""
    found = []
    for i in range(len(fbanks)):
        frames = fbanks[i].float()[None]
        found.append(encoder(frames - frames.mean(dim=1, keepdim=True)))
    return torch.cat(found)


def finish(corpus: Corpus, model: Classifier, device: torch.device, out: Path) -> dict[str, float]:
    """Round the weights as the ONNX file stores them, embed the corpus, measure and export."""
    out.mkdir(parents=True, exist_ok=True)
    encoder = copy.deepcopy(model.encoder).eval()
    with torch.no_grad():
        for weight in encoder.state_dict().values():
            if weight.is_floating_point():
                weight.copy_(weight.half())
    data = embed(encoder, corpus.fbanks(device)).cpu()
    truth = corpus.speaker_ids
    names = corpus.speaker_names
    centroids = torch.stack([data[corpus.train][truth[corpus.train] == i].mean(0) for i in range(len(names))])
    torch.save(
        {"data": data, "ids": corpus.ids, "centroids": centroids, "speakers": names}, out / "embeddings.pt"
    )
    torch.save({key: value.cpu() for key, value in model.state_dict().items()}, out / "state.pt")
    nearest = (F.normalize(data) @ F.normalize(centroids).T).argmax(1)
    right = (nearest == truth).float()
    result = {
        "valid_accuracy": right[corpus.valid].mean().item(),
        "train_accuracy": right[corpus.train].mean().item(),
        "mean_norm": data.norm(dim=1).mean().item(),
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    export(encoder.cpu(), out / "campplus.onnx")
    return result


def main() -> None:
    """Train the speaker encoder, measure it on the held-back utterances and export it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    corpus = Corpus(args.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = train(corpus, device, args.minutes, args.seed)
    print(finish(corpus, model, device, args.out), flush=True)


if __name__ == "__main__":
    main()
