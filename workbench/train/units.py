"""Speech tokens for sentences nobody has read: segments of read ones, chosen phoneme by phoneme.

A few hours of speech hold too few sentences to teach an LM how English is spelled. Sentences cost
nothing, so the LM also sees rows whose tokens are put together from the corpus: each phoneme takes a
segment that the same speaker said between the same neighbours. The joints are rough and the melody is
nobody's; the share of such rows falls to none before training ends.

`python -m workbench.train.units SENTENCES.txt OUT.tsv` writes sentences with their phonemes.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import torch
import torchaudio
from torch import Tensor

from workbench.train.corpus import Corpus, phonemise
from workbench.train.sentences import read_texts
from workbench.train.table import read_rows, write_rows

LONGEST = 7  # tokens, 280 ms; a longer segment holds a pause, which belongs to its sentence
EDGE = "|"  # neighbour of the first and last phoneme


def align(logp: Tensor, phones: Tensor, n_tokens: int) -> Tensor:
    """Return where each phoneme ends, in tokens.

    Parameters
    ----------
    logp : Tensor (2 n_tokens, classes)
        CTC log-probabilities at 50 Hz, class 0 blank.
    phones : Tensor (P,)
        Classes of the phonemes said.
    n_tokens : int
        Tokens of the utterance.

    Returns
    -------
    Tensor (P,) of int
        Not decreasing; the last is `n_tokens`.
    """
    repeats = int((phones[1:] == phones[:-1]).sum())
    if len(phones) + repeats > len(logp):  # CTC has no path: spread them evenly
        return (torch.arange(1, len(phones) + 1) * n_tokens / len(phones)).round().int()
    path, _ = torchaudio.functional.forced_align(logp[None].float().cpu(), phones[None].int().cpu(), blank=0)
    path = path[0]
    starts = ((path != 0) & (path != torch.cat((path.new_zeros(1), path[:-1])))).nonzero()[:, 0]
    # CTC marks a phoneme by a spike somewhere inside it; the border lies halfway between spikes.
    borders = torch.cat(((starts[1:] + starts[:-1] + 1) / 2 / 2, torch.tensor([float(n_tokens)])))
    return borders.round().int()


class Units:
    """Segments of the training utterances by phoneme and neighbours.

    Parameters
    ----------
    corpus : Corpus
        Read with its `phones.tsv`.
    tokens : Path
        `tokens.pt` with the phonemes' ends.
    """

    def __init__(self, corpus: Corpus, tokens: Path) -> None:
        saved = torch.load(tokens, weights_only=True)
        data, offsets = saved["data"].tolist(), saved["offsets"].tolist()
        ends, ends_offsets = saved["ends"].tolist(), saved["ends_offsets"].tolist()
        phones, speakers = corpus.phones(), corpus.speaker_ids.tolist()
        self.segments: dict[tuple, list[tuple[int, ...]]] = defaultdict(list)
        for i in corpus.train.tolist():
            said, at = EDGE + phones[i] + EDGE, 0
            for p in range(len(phones[i])):
                end = ends[ends_offsets[i] + p]
                segment = tuple(data[offsets[i] + at : offsets[i] + end])
                at = end
                if len(segment) <= LONGEST:
                    left, phone, right = said[p : p + 3]
                    for key in ((left, phone, right), (phone, right), (left, phone), (phone,)):
                        self.segments[(speakers[i], *key)].append(segment)

    def say(self, phones: str, speaker: int) -> list[int]:
        """Return tokens that sound like these phonemes; none where a phoneme was never said."""
        said, tokens = EDGE + phones + EDGE, []
        for p in range(len(phones)):
            left, phone, right = said[p : p + 3]
            for key in ((left, phone, right), (phone, right), (left, phone), (phone,)):
                found = self.segments.get((speaker, *key))
                if found:
                    tokens += random.choice(found)
                    break
            else:
                return []
        return tokens


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Read (text, phonemes) pairs."""
    return [(row["text"], row["phones"]) for row in read_rows(path)]


def main() -> None:
    """Write sentences with their phonemes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    texts = read_texts(args.sentences)
    write_rows(args.out, ("text", "phones"), zip(texts, phonemise(texts), strict=True))


if __name__ == "__main__":
    main()
