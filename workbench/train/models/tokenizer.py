"""The speech tokenizer: whisper log-mel at 100 Hz -> one of 3**5 ids every 40 ms.

Supervised finite scalar quantisation, as in CosyVoice3 and much smaller: what survives the rounding
must let one head spell the phonemes (CTC) and another, told the speaker, draw the mel.

`python -m workbench.train.models.tokenizer DATA_DIR OUT_DIR --minutes 4` trains, measures and exports.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from workbench.errors import WorkbenchError
from workbench.train.budget import Averaged, Run
from workbench.train.corpus.corpus import Corpus
from workbench.train.gpu_features import Features
from workbench.train.models.fsq import RATIO, Encoder, Tokenizer, export
from workbench.train.models.units import align

# The LM has to predict every bit that is kept: phonemes first, as much of the mel as places them in
# time, ids that last, and just enough spread to keep the dimensions from collapsing.
CTC_WEIGHT, MEL_WEIGHT, SMOOTH_WEIGHT, SPREAD_WEIGHT = 1.0, 0.4, 0.1, 0.03
SHORTEST, LONGEST = 0.9, 1.1  # of an utterance's further versions
NOISE = 0.25  # of each dimension's reach


class Task:
    """The corpus on one device, its batches, losses and measurements."""

    def __init__(
        self,
        corpus: Corpus,
        device: torch.device,
        rows: torch.Tensor | None = None,
        alphabet: list[str] | None = None,
    ):
        self.corpus, self.device = corpus, device
        self.heard, self.mels = corpus.whisper_mels(device), corpus.mels(device)
        self.rows = corpus.train if rows is None else rows
        phones = corpus.phones()
        used = sorted(set("".join(phones)))
        self.alphabet = alphabet or used
        if not set(used) <= set(self.alphabet):
            unknown = "".join(sorted(set(used) - set(self.alphabet)))
            raise WorkbenchError(
                f"the model spells without {unknown!r}, which this corpus has; train it on both"
            )
        number = {phone: i + 1 for i, phone in enumerate(self.alphabet)}
        coded = [torch.tensor([number[p] for p in line], dtype=torch.uint8)[:, None] for line in phones]
        counts = torch.tensor([0] + [len(line) for line in coded])
        self.phones = Features(torch.cat(coded).to(device), counts.cumsum(0).to(device))
        self.speakers = corpus.speaker_ids.to(device)
        self.counts = self.heard.lengths.cpu()

    def model(self) -> Tokenizer:
        """Return a fresh model of the corpus's phonemes and speakers."""
        return Tokenizer(len(self.alphabet), len(self.corpus.speaker_names)).to(self.device)

    def batches(self, size: int, generator: torch.Generator):
        """Yield row numbers for ever, utterances of like length together."""
        while True:
            noisy = self.counts[self.rows] * (1 + 0.1 * torch.rand(len(self.rows), generator=generator))
            groups = self.rows[noisy.argsort()].split(size)
            for group in torch.randperm(len(groups), generator=generator).tolist():
                yield groups[group]

    def batch(self, rows: torch.Tensor, augment: bool) -> dict[str, torch.Tensor]:
        """Gather one batch; augmented, its level and its borders change and bands go missing."""
        width = -(-int(self.counts[rows].max()) // 32) * 32
        rows = rows.to(self.device)
        shift = torch.randint(0, 3 if augment else 1, rows.shape, device=self.device)
        feats, lengths = self.heard.batch(rows, width, 2 * shift)
        mel, frames = self.mels.batch(rows, width // 2, shift)
        phones, n_phones = self.phones.batch(rows)
        if augment:
            feats = _augment(feats)
        return {
            "feats": feats.transpose(1, 2), "lengths": lengths, "mel": mel, "frames": frames,
            "phones": phones[..., 0].long(), "n_phones": n_phones, "speaker": self.speakers[rows],
        }  # fmt: skip

    def losses(
        self, model: Tokenizer, batch: dict[str, torch.Tensor], noise: float = 0.0
    ) -> dict[str, torch.Tensor]:
        """Return the training losses and the logits."""
        h, mask, logits, mel = model(batch["feats"], batch["lengths"], batch["speaker"], noise)
        n_tokens = mask.float().sum(dim=(1, 2)).long()
        logp = logits.float().log_softmax(-1)
        ctc = F.ctc_loss(
            logp.transpose(0, 1), batch["phones"], 2 * n_tokens, batch["n_phones"], zero_infinity=True
        )
        real = torch.arange(mel.shape[1], device=self.device) < batch["frames"][:, None]
        l1 = (mel.float() - batch["mel"]).abs().mean(-1)[real].mean()
        scaled, both = h / model.encoder.reach, mask[:, 0, 1:] * mask[:, 0, :-1]
        smooth = ((scaled[:, 1:] - scaled[:, :-1]).abs().mean(-1) * both).sum() / both.sum()
        used = scaled[mask[:, 0] > 0]
        centred = used - used.mean(0)
        want = 0.45 * torch.eye(used.shape[1], device=self.device)
        spread = (centred.T @ centred / len(used) - want).square().sum() + used.mean(0).square().sum()
        total = CTC_WEIGHT * ctc + MEL_WEIGHT * l1 + SMOOTH_WEIGHT * smooth + SPREAD_WEIGHT * spread
        parts = {"total": total, "ctc": ctc, "mel": l1, "smooth": smooth, "spread": spread}
        return parts | {"logp": logp, "tokens": n_tokens}

    @torch.no_grad()
    def measure(self, model: Tokenizer, rows: torch.Tensor) -> dict[str, float]:
        """Measure phoneme error rate (greedy CTC) and mel L1 (natural log units) on some rows."""
        model.eval()
        batch = self.batch(rows, augment=False)
        found = self.losses(model, batch)
        wrong = total = 0
        for i, path in enumerate(found["logp"].argmax(-1).cpu()):
            path = path[: 2 * int(found["tokens"][i])].unique_consecutive()
            truth = batch["phones"][i, : batch["n_phones"][i]].tolist()
            wrong += _edits(path[path > 0].tolist(), truth)
            total += len(truth)
        return {"phone_error_rate": wrong / total, "mel_l1": found["mel"].item()}

    @torch.no_grad()
    def tokens(self, encoder: Encoder, stretch: float | None = None, size: int = 64) -> Features:
        """Return the ids of every utterance, (tokens,) int16.

        Parameters
        ----------
        encoder : Encoder
            Of the trained tokenizer.
        stretch : float, optional
            Hear every utterance so many times longer, from up to 30 ms later, at another level: another
            version of the same sentence for the LM to learn from. None hears it as it is.
        size : int
            Utterances in a batch.
        """
        order = self.counts.argsort().split(size)
        found: list[torch.Tensor] = [torch.empty(0)] * len(self.counts)
        for rows in order:
            rows_here = rows.to(self.device)
            if stretch is None:
                feats, lengths = self.heard.batch(rows_here)
                lasting = -(-lengths // RATIO)
            else:
                shift = torch.randint(0, RATIO, rows_here.shape, device=self.device)
                feats, lengths = self.heard.batch(rows_here, starts=shift)
                feats = F.interpolate(_louder(feats).transpose(1, 2), scale_factor=stretch, mode="linear")
                feats, lengths = feats.transpose(1, 2), (lengths * stretch).long()
                lasting = lengths // RATIO
            ids = encoder.ids(feats.transpose(1, 2), lengths).short().cpu()
            for row, line, n in zip(rows.tolist(), ids, lasting.tolist(), strict=True):
                found[row] = line[:n]
        counts = torch.tensor([0] + [len(line) for line in found])
        return Features(torch.cat(found), counts.cumsum(0))

    @torch.no_grad()
    def ends(self, model: Tokenizer, tokens: Features, size: int = 64) -> Features:
        """Return where each phoneme of every utterance ends, in tokens, int16."""
        model.eval()
        found: list[torch.Tensor] = [torch.empty(0)] * len(self.counts)
        for rows in self.counts.argsort().split(size):
            batch = self.batch(rows, augment=False)
            logp = self.losses(model, batch)["logp"].cpu()
            for k, row in enumerate(rows.tolist()):
                phones, n = batch["phones"][k, : batch["n_phones"][k]].cpu(), int(tokens.lengths[row])
                found[row] = align(logp[k, : 2 * n], phones, n).short()
        counts = torch.tensor([0] + [len(line) for line in found])
        return Features(torch.cat(found), counts.cumsum(0))


def _augment(feats: torch.Tensor) -> torch.Tensor:
    """Change the level by up to 6 dB; hide one band and two moments of half the rows."""
    size, width, bins = feats.shape
    feats = _louder(feats)

    def draw(high: float) -> torch.Tensor:
        return torch.rand(size, 1, 1, device=feats.device) * high

    step, band = torch.arange(width, device=feats.device), torch.arange(bins, device=feats.device)
    hide = torch.zeros_like(feats, dtype=torch.bool)
    for axis, at, longest in ((bins, band, 24), (width, step[:, None], 10), (width, step[:, None], 10)):
        first, length = draw(axis), draw(longest)
        hide |= (at >= first) & (at < first + length)
    hide &= draw(1.0) < 0.5
    return torch.where(hide, feats.mean(dim=(1, 2), keepdim=True), feats)


def _louder(feats: torch.Tensor) -> torch.Tensor:
    """Change the level by up to 6 dB and add a little noise."""
    level = torch.rand(len(feats), 1, 1, device=feats.device) * 12.0 - 6.0
    return feats + level / 40 + 0.02 * torch.randn_like(feats)


def _edits(found: list[int], truth: list[int]) -> int:
    row = list(range(len(truth) + 1))
    for i, left in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(truth, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def perplexity(ids: torch.Tensor, n_ids: int) -> float:
    """Return how many ids are in even use, the exponential of their entropy in nats."""
    share = torch.bincount(ids.long(), minlength=n_ids).double() / len(ids)
    return float(torch.special.entr(share).sum().exp())


def train(task: Task, out: Path, minutes: float, seed: int, size: int = 96, lr: float = 1.5e-3) -> Tokenizer:
    """Train for so many minutes, going on from `out/state.pt` where there is one.

    Parameters
    ----------
    task : Task
        What to learn from.
    out : Path
        Receives `state.pt` and `loss.csv`.
    minutes : float
        Budget, earlier parts of the same run included.
    seed, size, lr
        Seed, utterances in a batch, highest learning rate.

    Returns
    -------
    Tokenizer
        The average of the weights over the last steps.
    """
    torch.manual_seed(seed)
    on_gpu = task.device.type == "cuda"
    out.mkdir(parents=True, exist_ok=True)
    (out / "alphabet.txt").write_text("".join(task.alphabet), encoding="utf-8")
    model = task.model()
    average = Averaged(model)
    adam = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.02, fused=on_gpu)
    run = Run(out, minutes, {"model": model, "average": average, "adam": adam}, save_every=60)
    batches = task.batches(size, torch.Generator().manual_seed(seed + run.step))
    while run.progress < 1:
        for group in adam.param_groups:
            group["lr"] = run.rate(lr, warmup=0.03)
        model.train()
        with torch.autocast(task.device.type, torch.bfloat16, enabled=on_gpu):
            loss = task.losses(model, task.batch(next(batches), augment=True), NOISE)
        adam.zero_grad(set_to_none=True)
        loss["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        adam.step()
        average.update(model)
        run.tick(lambda loss=loss: {name: loss[name].item() for name in ("ctc", "mel", "spread")})
    return average.model.eval()


def saved_alphabet(out: Path) -> list[str] | None:
    """Return the phonemes that the model in `out` was trained with; none before it is."""
    path = out / "alphabet.txt"
    return list(path.read_text(encoding="utf-8")) if path.is_file() else None


def restore(task: Task, out: Path) -> Tokenizer:
    """Return the averaged weights of `out/state.pt`."""
    if not (out / "state.pt").is_file():
        raise WorkbenchError(f"no state.pt in {out}; train first, without --export")
    average = Averaged(task.model())
    average.load_state_dict(torch.load(out / "state.pt", map_location="cpu", weights_only=True)["average"])
    return average.model.eval()


def finish(task: Task, model: Tokenizer, out: Path, versions: int = 0) -> dict[str, float]:
    """Measure, round the weights as the ONNX file stores them, export and tokenise the corpus."""
    torch.backends.cudnn.allow_tf32 = False
    result = task.measure(model, task.corpus.valid)
    encoder = copy.deepcopy(model.encoder).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(weight.half())
    tokens = task.tokens(encoder)
    ends = task.ends(model, tokens)
    saved = {"data": tokens.data, "offsets": tokens.offsets, "levels": list(encoder.levels)}
    saved |= {"ends": ends.data, "ends_offsets": ends.offsets}
    saved["versions"] = [
        {"data": heard.data, "offsets": heard.offsets}
        for stretch in torch.linspace(SHORTEST, LONGEST, versions).tolist()
        for heard in [task.tokens(encoder, stretch)]
    ]
    torch.save(saved, out / "tokens.pt")
    n_ids = math.prod(encoder.levels)
    result |= {"perplexity": perplexity(tokens.data, n_ids), "ids_used": len(tokens.data.unique())}
    result["repeats"] = (tokens.data[1:] == tokens.data[:-1]).float().mean().item()
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    export(encoder.cpu(), out / "speech_tokenizer_v3.onnx")
    return result


def main() -> None:
    """Train the speech tokenizer, measure it on the held-back utterances and export it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--only", type=int, help="train on so many utterances, to see it overfit")
    parser.add_argument("--versions", type=int, default=9, help="further versions of the corpus, for the LM")
    parser.add_argument("--export", action="store_true", help="only export what state.pt holds")
    args = parser.parse_args()
    corpus = Corpus(args.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = corpus.train[: args.only] if args.only else None
    task = Task(corpus, device, rows, saved_alphabet(args.out))
    if args.export:
        model = restore(task, args.out)
    else:
        model = train(task, args.out, args.minutes, args.seed, args.batch)
    if args.only:
        print("seen", task.measure(model, task.rows[:60]), flush=True)
    print(finish(task, model, args.out, args.versions), flush=True)


if __name__ == "__main__":
    main()
