"""Speech tokens for sentences nobody has read: the longest stretches that somebody did read.

A few hours of speech hold too few sentences to teach an LM how English is spelled. Sentences cost
nothing, so the LM also sees rows whose tokens are put together from the corpus: stretch by stretch,
what the same speaker said between the same neighbours. The joints are rough and the melody is
nobody's, so the share of such rows falls while training goes on.

`python -m workbench.train.models.units SENTENCES.txt OUT.tsv` writes sentences with their phonemes.
"""

import argparse
import random
from bisect import bisect_left
from pathlib import Path

import torch
import torchaudio
from torch import Tensor

from workbench.train.corpus.corpus import Corpus, phonemise
from workbench.train.corpus.sentences import read_texts
from workbench.train.corpus.table import read_rows, write_rows

LONGEST = 7  # tokens, 280 ms; a longer segment holds a pause, which belongs to its sentence
EDGE = "|"  # neighbour of the first and last phoneme
BARRIER = "\0"  # in place of a phoneme that is not to be used
LAST = "\U0010ffff"  # sorts behind every phoneme
LONE = ((0, 1, 1), (1, 1, 0), (0, 1, 0))  # one phoneme, where both neighbours were never seen
REACH = 10  # phonemes a stretch is looked up by, both neighbours included


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
    """Stretches of the training utterances by their phonemes, one sorted list of suffixes a speaker.

    Parameters
    ----------
    corpus : Corpus
        Read with its `phones.tsv`.
    tokens : Path
        `tokens.pt` with the phonemes' ends.
    """

    def __init__(self, corpus: Corpus, tokens: Path) -> None:
        saved = torch.load(tokens, weights_only=True)
        self.tokens, offsets = saved["data"].tolist(), saved["offsets"].tolist()
        ends, ends_offsets = saved["ends"].tolist(), saved["ends_offsets"].tolist()
        phones, speakers = corpus.phones(), corpus.speaker_ids.tolist()
        self.said = [""] * len(corpus.speaker_names)
        # The first token of each letter of `said`.
        self.borders: list[list[int]] = [[] for _ in corpus.speaker_names]
        for i in corpus.train.tolist():
            first, at = offsets[i], ends_offsets[i]
            border = [first, first, *(first + end for end in ends[at : at + len(phones[i])])]
            spelt = [
                phone if b - a <= LONGEST else BARRIER
                for phone, a, b in zip(phones[i], border[1:-1], border[2:], strict=True)
            ]
            self.said[speakers[i]] += EDGE + "".join(spelt) + EDGE
            self.borders[speakers[i]] += border
        self.order = [sorted((said[k : k + REACH], k) for k in range(len(said))) for said in self.said]

    def say(self, phones: str, speaker: int) -> list[int]:
        """Return tokens that sound like these phonemes; none where a phoneme was never said."""
        said, tokens, p = EDGE + phones + EDGE, [], 1
        while p <= len(phones):
            longest = min(random.randint(2, REACH - 2), len(phones) + 1 - p)
            for left, n, right in (*((1, n, 1) for n in range(longest, 0, -1)), *LONE):
                place = self.find(said[p - left : p + n + right], speaker)
                if place is not None:
                    break
            else:
                return []
            first, last = (self.borders[speaker][place + left + k] for k in (0, n))
            tokens += self.tokens[first:last]
            p += n
        return tokens

    def find(self, phones: str, speaker: int) -> int | None:
        """Return one place, drawn at random, where the speaker said just this; none if nowhere."""
        order = self.order[speaker]
        low, high = bisect_left(order, (phones,)), bisect_left(order, (phones + LAST,))
        return order[random.randrange(low, high)][1] if low < high else None


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
