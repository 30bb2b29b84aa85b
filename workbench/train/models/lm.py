"""Train the LM: `python -m workbench.train.models.lm DATA_DIR TOKENS BPE_DIR OUT_DIR --minutes 6`.

Rows are what inference will see: instruction, a prompt's transcript, a text, then the prompt's speech
tokens and the text's, of one speaker; a share of rows has no prompt, as cross-lingual and instruct
modes have none. A few hours of speech are little for a language model, so there is BPE dropout, a new
partner for every utterance in every epoch, versions of its tokens, dropout on each layer, noise on the
tokens fed back, and many sentences that are put together from segments (`units.py`).
"""

import argparse
import math
import multiprocessing
import random
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from workbench.speech.config import LMConfig
from workbench.speech.frontend.text import TextTokenizer
from workbench.speech.models.lm import LM
from workbench.train.budget import Averaged, Captured, Run, warm_start
from workbench.train.corpus.corpus import Corpus
from workbench.train.models.bpe import encode, load
from workbench.train.models.units import Units, read_sentences

INSTRUCTION = "You are a helpful assistant."
IGNORE = -100


def config(vocab_size: int, speech_token_size: int) -> LMConfig:
    """Sizes of the bundled voice's LM."""
    return LMConfig(
        speech_token_size=speech_token_size,
        hidden_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=576,
        vocab_size=vocab_size,
    )


class Batches:
    """Rows of text and speech ids, padded to a common length."""

    def __init__(
        self,
        corpus: Corpus,
        tokens: Path,
        bpe: Path,
        dropout: float,
        sentences: Path | None = None,
    ) -> None:
        ids = torch.load(tokens, weights_only=True)
        lengths = (corpus.mels("cpu").lengths // 2).tolist()
        self.speech = _lines(ids, lengths)
        self.versions = [self.speech, *(_lines(version) for version in ids["versions"])]
        self.speech_token_size = math.prod(ids["levels"])
        self.texts, self.speakers = corpus.texts, corpus.speaker_ids.tolist()
        self.train = corpus.train.tolist()
        self.valid = corpus.valid.tolist()
        self.tokenizers = {True: load(bpe, dropout=dropout), False: load(bpe, dropout=0.0)}
        # The one that inference loads knows the special tokens behind the BPE's own.
        known = TextTokenizer.load(bpe)
        self.vocab_size, self.end_of_prompt = len(known), known.end_of_prompt
        self.sentences = read_sentences(sentences) if sentences else []
        self.units = Units(corpus, tokens) if sentences else None
        # Partners of held-back utterances are held back too: a memorised prompt would flatter the loss.
        self.of_speaker: dict[bool, dict[int, list[int]]] = {True: {}, False: {}}
        for training, mine in ((True, self.train), (False, self.valid)):
            for i in mine:
                self.of_speaker[training].setdefault(self.speakers[i], []).append(i)

    def row(self, i: int, training: bool, before: int, invented: float) -> tuple[list[int], list[int]]:
        """Text ids and speech ids of utterance i, after so many others of its speaker.

        The transcripts meet as inference joins them: sentences of one prompt by a space, prompt and
        text without one. `invented` is the share of sentences nobody has read, see `Units`.
        """
        tokenizer = self.tokenizers[training]
        partners = [j for j in self.of_speaker[training][self.speakers[i]] if j != i]
        chosen = [*random.sample(partners, min(before, len(partners))), i]
        said = [
            self.invent(self.speakers[i])
            if random.random() < invented
            else (self.texts[j], random.choice(self.versions)[j] if training else self.speech[j])
            for j in chosen
        ]
        prompt = " ".join(text for text, _ in said[:-1])
        text = [*encode(tokenizer, INSTRUCTION), self.end_of_prompt]
        text += (encode(tokenizer, prompt) if prompt else []) + encode(tokenizer, said[-1][0])
        return text, [token for _, tokens in said for token in tokens]

    def invent(self, speaker: int) -> tuple[str, list[int]]:
        """A sentence nobody has read, with tokens put together from read ones."""
        while True:
            text, phones = random.choice(self.sentences)
            tokens = self.units.say(phones, speaker)
            if tokens:
                return text, tokens

    def batch(
        self,
        indices: list[int],
        training: bool,
        length: int,
        before: int | None = None,
        invented: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, whether each is speech, and targets, all (B, length).

        Parameters
        ----------
        before : int, optional
            Utterances in front of each; none: drawn from 0 to 6.
        invented : float
            Share of sentences put together from segments.
        """
        c = self.config
        ids = torch.zeros(len(indices), length, dtype=torch.long)
        is_speech = torch.ones(len(indices), length, dtype=torch.bool)
        target = torch.full((len(indices), length), IGNORE)
        for b, i in enumerate(indices):
            n_before = random.choices(range(7), (2, 3, 3, 3, 2, 2, 2))[0] if before is None else before
            text, speech = self.row(i, training, n_before, invented)
            while len(text) + len(speech) + 2 > length:
                n_before -= 1
                text, speech = self.row(i, training, n_before, invented)
            n, end = len(text) + 1, len(text) + 2 + len(speech)
            ids[b, :end] = torch.tensor([c.sos, *text, c.task_id, *speech])
            is_speech[b, 1:n] = False
            target[b, n:end] = torch.tensor([*speech, c.eos])
        return ids, is_speech, target

    config: LMConfig


def _lines(ids: dict[str, Tensor], lengths: list[int] | None = None) -> list[list[int]]:
    """Cut tokens into utterances, each of its own length or the one given."""
    data, offsets = ids["data"].tolist(), ids["offsets"].tolist()
    ends = offsets[1:] if lengths is None else [o + n for o, n in zip(offsets, lengths, strict=False)]
    return [data[start:end] for start, end in zip(offsets, ends, strict=False)]


class Draws(IterableDataset):
    """Training batches without end, drawn by the loader's workers: spelling and cutting take a CPU's time."""

    def __init__(self, batches: Batches, args: argparse.Namespace, invented: Synchronized) -> None:
        self.batches, self.args, self.invented = batches, args, invented

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = get_worker_info()
        random.seed(f"{self.args.seed} {worker.id if worker else 0}")
        order: list[int] = []
        while True:
            if len(order) < self.args.batch:
                order = random.sample(self.batches.train, len(self.batches.train))
            indices, order = order[: self.args.batch], order[self.args.batch :]
            yield self.batches.batch(indices, True, self.args.length, invented=self.invented.value)


def loss_of(lm: LM, ids: Tensor, is_speech: Tensor, target: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of the next speech token; `noise` is the share of inputs replaced."""
    c = lm.config
    if noise:
        swap = (torch.rand(ids.shape, device=ids.device) < noise) & is_speech & (ids < c.speech_token_size)
        ids = torch.where(swap, torch.randint_like(ids, c.speech_token_size), ids)
    text = lm.qwen.embed_tokens(torch.where(is_speech, 0, ids))
    speech = lm.speech_embedding(torch.where(is_speech, ids, 0))
    x = torch.where(is_speech[..., None], speech, text)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = lm.llm_decoder(lm.qwen(x))
    logits, wanted = logits.float().flatten(0, 1), target.flatten()
    seen = wanted != IGNORE
    accuracy = ((logits.argmax(-1) == wanted) & seen).sum() / seen.sum()
    return F.cross_entropy(logits, wanted, ignore_index=IGNORE, label_smoothing=0.05), accuracy


def train(args: argparse.Namespace) -> None:
    """Train until the budget is spent; `best.pt` holds the averaged weights where they did best."""
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = Batches(Corpus(args.data), args.tokens, args.bpe, args.bpe_dropout, args.sentences)
    batches.config = config(batches.vocab_size, batches.speech_token_size)
    lm = LM(batches.config).to(device)
    for p in lm.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.02)
    warm_start(lm, args.init)
    averaged = Averaged(lm, 0.998)
    decay = [p for p in lm.parameters() if p.ndim == 2]
    rest = [p for p in lm.parameters() if p.ndim != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    rate = torch.tensor(args.lr, device=device)
    opt = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), capturable=device == "cuda")
    run = Run(args.out, args.minutes, {"model": lm, "averaged": averaged, "opt": opt})
    for group in opt.param_groups:
        group["lr"] = rate
    lm.train()
    for layer in lm.qwen.layers:
        for part in (layer.self_attn, layer.mlp):
            part.register_forward_hook(lambda m, i, out: F.dropout(out, args.dropout, m.training))

    @torch.no_grad()
    def validate() -> dict[str, float]:
        state = random.getstate()
        random.seed(0)
        batch = [x.to(device) for x in batches.batch(batches.valid, False, args.length, before=2)]
        random.setstate(state)
        loss, accuracy = loss_of(averaged.model.eval(), *batch, noise=0.0)
        run.keep_best(float(loss), averaged.model)
        return {"valid": float(loss), "valid_acc": float(accuracy)}

    on_gpu = device == "cuda"
    first, last = args.invented
    invented = multiprocessing.Value("d", first if args.sentences else 0.0)
    drawn = DataLoader(
        Draws(batches, args, invented),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
        multiprocessing_context="fork" if args.workers else None,
    )
    held = [torch.zeros_like(x, device=device) for x in next(iter(Draws(batches, args, invented)))]

    def descend() -> dict[str, Tensor]:
        loss, accuracy = loss_of(lm, *held, noise=args.noise)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0, foreach=True)
        opt.step()
        return {"loss": loss.detach(), "acc": accuracy}

    step = Captured(descend, on_gpu and args.graph)
    for batch in drawn:
        for buffer, x in zip(held, batch, strict=True):
            buffer.copy_(x, non_blocking=True)
        rate.fill_(run.rate(args.lr))
        now = step()
        averaged.update(lm)
        if args.sentences:
            invented.value = first + (last - first) * run.progress
        if not run.tick(lambda now=now: {k: v.item() for k, v in now.items()} | validate(), every=15):
            break


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("bpe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=576)
    parser.add_argument("--sentences", type=Path, help="text and phonemes from workbench.train.models.units")
    parser.add_argument(
        "--invented", type=float, nargs=2, default=(0.8, 0.35), help="their share at the start and at the end"
    )
    parser.add_argument("--workers", type=int, default=4, help="processes that draw batches")
    parser.add_argument("--bpe-dropout", type=float, default=0.15)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--graph", action="store_true", help="replay steps as one CUDA graph")
    parser.add_argument("--init", type=Path, help="exported weights to begin from")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
