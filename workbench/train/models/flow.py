"""Train the flow: `python -m workbench.train.models.flow DATA_DIR TOKENS EMBEDDINGS OUT_DIR --minutes 12`.

Conditional flow matching (Lipman et al. 2023) from speech tokens, a speaker embedding and a prompt's
mel to the mel. Rows are filled with utterances of one speaker one after another, the first of them
the prompt, so that continuing a prompt is what is learned. A fifth of the rows see no condition at
all (classifier-free guidance), and half the batches see through the streaming mask.
"""

import argparse
import functools
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.speech.config import DiTConfig, FlowConfig
from workbench.speech.models.flow import Flow
from workbench.train.budget import Averaged, Captured, Run, warm_start
from workbench.train.corpus.corpus import Corpus

UNCONDITIONAL = 0.2  # share of rows without any condition
UNPROMPTED = 0.3  # share of rows without a prompt
DECAY = 0.1  # of the weights; with 0.01, and in bfloat16, attention ran away (see the voice's card)


def config(vocab_size: int) -> FlowConfig:
    """Sizes of the bundled voice's flow."""
    dit = DiTConfig(dim=256, depth=5, heads=4)
    return FlowConfig(vocab_size=vocab_size, pre_lookahead_channels=256, dit=dit)


class Batches:
    """What rows are cut from: tokens, mels and speaker embeddings of some utterances."""

    def __init__(self, corpus: Corpus, which: Tensor, tokens: Path, embeddings: Path, device: str) -> None:
        self.device = device
        mels, ids = corpus.mels(device), torch.load(tokens, weights_only=True)
        data, offsets = ids["data"].to(device).long(), ids["offsets"]
        self.vocab_size = math.prod(ids["levels"])
        self.embedding = torch.load(embeddings, weights_only=True)["data"].to(device)
        self.token, self.mel, self.owner = [], [], []  # one long stream a speaker
        speaker_ids = corpus.speaker_ids
        for speaker in range(len(corpus.speaker_names)):
            mine = [int(i) for i in which if int(speaker_ids[i]) == speaker]
            n = [int(mels.lengths[i]) // 2 for i in mine]
            self.token.append(
                [data[int(offsets[i]) : int(offsets[i]) + k] for i, k in zip(mine, n, strict=True)]
            )
            self.mel.append([mels[i][: 2 * k] for i, k in zip(mine, n, strict=True)])
            self.owner.append(torch.tensor(mine, dtype=torch.int64))
        weights = torch.tensor([float(sum(len(t) for t in ts)) for ts in self.token])
        self.weights = weights.sqrt()  # rare speakers a little more often than their share

    def shuffled(self, length: int) -> "Rows":
        """Put every speaker's utterances in a new order and cut the stream into rows."""
        return Rows(self, length)


class Rows:
    """One shuffle of the corpus; `draw` picks rows from it."""

    def __init__(self, batches: Batches, length: int) -> None:
        self.length, device = length, batches.device
        token, mel, speaker, boundary = [], [], [], []
        for s, utterances in enumerate(batches.token):
            order = torch.randperm(len(utterances)).tolist()
            token += [utterances[i] for i in order]
            mel += [batches.mel[s][i] for i in order]
            n = sum(len(u) for u in utterances)
            speaker.append(torch.full((n,), s, device=device))
            boundary.append(torch.tensor([n], device=device))
        self.token, self.mel, self.speaker = torch.cat(token), torch.cat(mel), torch.cat(speaker)
        same = self.speaker[:-length] == self.speaker[length:]
        starts = same.nonzero()[:, 0]
        weight = batches.weights.to(device)[self.speaker[starts]]
        count = torch.bincount(self.speaker[starts], minlength=len(batches.weights)).clamp(min=1)
        self.starts, self.weight = starts, weight / count[self.speaker[starts]]
        self.counts = torch.tensor([len(o) for o in batches.owner], device=device)
        self.owners = torch.nn.utils.rnn.pad_sequence(batches.owner, batch_first=True).to(device)
        self.embedding = batches.embedding

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens (n, L), mels (n, 80, 2 L) and speaker embeddings (n, 192)."""
        pick = self.starts[torch.multinomial(self.weight, n, replacement=True)]
        rows = pick[:, None] + torch.arange(self.length, device=pick.device)
        frames = 2 * pick[:, None] + torch.arange(2 * self.length, device=pick.device)
        speaker = self.speaker[pick]
        nth = (torch.rand(n, device=pick.device) * self.counts[speaker]).long()
        who = self.owners[speaker, nth]
        return self.token[rows], self.mel[frames].float().transpose(1, 2), self.embedding[who]


def loss_of(flow: Flow, token: Tensor, mel: Tensor, embedding: Tensor, streaming: bool) -> Tensor:
    """Squared error of the velocity on the straight path from noise to mel.

    Parameters
    ----------
    token, mel, embedding : Tensor (B, L), (B, 80, 2 L), (B, 192)
        A batch.
    streaming : bool
        Whether the estimator sees chunk by chunk.
    """
    batch, _, frames = mel.shape
    device = mel.device
    prompt = (torch.rand(batch, device=device) * 0.7 * frames / 2).long() * 2
    prompt = torch.where(torch.rand(batch, device=device) < UNPROMPTED, 0, prompt)
    inside = torch.arange(frames, device=device) < prompt[:, None]
    cond = mel * inside[:, None]
    h = flow.pre_lookahead_layer(flow.input_embedding(token), finalize=True)
    mu = h.repeat_interleave(2, dim=1).transpose(1, 2)
    spks = flow.spk_embed_affine_layer(F.normalize(embedding, dim=1))
    keep = (torch.rand(batch, device=device) >= UNCONDITIONAL).float()
    mu, spks, cond = mu * keep[:, None, None], spks * keep[:, None], cond * keep[:, None, None]
    u = (torch.rand(batch, device=device) + torch.arange(batch, device=device) / batch) % 1  # stratified
    t = 1 - torch.cos(u * 0.5 * math.pi)
    noise = torch.randn_like(mel)
    x = (1 - t)[:, None, None] * noise + t[:, None, None] * mel
    v = flow.decoder.estimator(x, None, mu, t, spks, cond, streaming)
    return (v - (mel - noise)).square().mean()


def train(args: argparse.Namespace) -> None:
    """Train until the budget is spent; `best.pt` holds the averaged weights where they did best."""
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    corpus = Corpus(args.data)
    batches = Batches(corpus, corpus.train, args.tokens, args.embeddings, device)
    held_back = Batches(corpus, corpus.valid, args.tokens, args.embeddings, device).shuffled(100).draw(64)
    flow = Flow(config(batches.vocab_size)).to(device)
    with torch.no_grad():  # start as the identity: gates, shifts, scales and the output at zero
        for name, p in flow.decoder.estimator.named_parameters():
            if "attn_norm" in name or "norm_out" in name or "proj_out" in name:
                p.zero_()
    warm_start(flow, args.init)
    averaged = Averaged(flow, 0.9995)
    on_gpu, rate = device == "cuda", torch.tensor(args.lr, device=device)
    opt = torch.optim.AdamW(
        flow.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=DECAY, capturable=on_gpu
    )
    run = Run(args.out, args.minutes, {"model": flow, "averaged": averaged, "opt": opt})
    for group in opt.param_groups:
        group["lr"] = rate

    @torch.no_grad()
    def validate() -> float:  # the same noise and times at every call
        with torch.random.fork_rng(devices=[device] if on_gpu else []):
            torch.manual_seed(1)
            loss = float(loss_of(averaged.model, *held_back, streaming=False))
        run.keep_best(loss, averaged.model)
        return loss

    if args.compile:
        flow.decoder.estimator.forward = torch.compile(flow.decoder.estimator.forward)
    sizes = {args.frames // 2: args.batch, args.frames: max(1, args.batch // 2)}  # tokens: rows
    rows = {length: batches.shuffled(length) for length in sizes}
    held = {length: rows[length].draw(n) for length, n in sizes.items()}  # where a graph reads its batch

    def descend(length: int, streaming: bool) -> dict[str, Tensor]:
        loss = loss_of(flow, *held[length], streaming=streaming)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0, foreach=True)
        opt.step()
        return {"loss": loss.detach()}

    steps = {
        (length, streaming): Captured(functools.partial(descend, length, streaming), on_gpu and args.graph)
        for length in sizes
        for streaming in (False, True)
    }
    more = True
    while more:
        if run.step % 500 == 499:
            rows = {length: batches.shuffled(length) for length in rows}
        short, long = sizes
        length = long if run.step % 4 == 3 else short
        for buffer, x in zip(held[length], rows[length].draw(sizes[length]), strict=True):
            buffer.copy_(x)
        rate.fill_(run.rate(args.lr))
        now = steps[length, (run.step // 4) % 2 == 1]()
        averaged.update(flow)
        more = run.tick(lambda now=now: {"loss": now["loss"].item(), "valid": validate()})


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--frames", type=int, default=400, help="mel frames a row; every fourth batch has twice"
    )
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graph", action="store_true", help="replay steps as CUDA graphs")
    parser.add_argument("--init", type=Path, help="exported weights to begin from")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
