"""English sentences to be read aloud: WordNet 3.0's examples and definitions, and templates of our own.

`python -m workbench.train.corpus.sentences OUT.txt --count 30000 --exclude FILE...` needs Debian's
wordnet-base.
Among the candidates, those with words seldom used so far are taken first, here and in the excluded files.

WordNet's licence wants its notice kept: see `workbench.train.corpus.wordnet`.
"""

import argparse
import heapq
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.train.corpus.table import read_rows
from workbench.train.corpus.templates import PHRASES, TEMPLATES, fill
from workbench.train.corpus.wordnet import definition, entries, examples, frequent_nouns, installed

SHARES = {"phrases": 0.01, "examples": 0.55, "definitions": 0.2, "templates": 0.24}
WORDS = range(3, 21)

_PLAIN = re.compile(r"(?:[A-Z][A-Za-z ,;:'-]*[a-z][.!?](?: |$))+(?<! )")
_ODD = re.compile(
    r"(?:^|\s)[-']|[-'](?:\s|$)|--|\s[,;:]|[,;:]\S"
    r"|(?!AI\b|TV\b|OK\b)[A-Z]{2}|(?!^A|I)\b[A-Z]\b|(?<!')\b[b-hj-z]\b(?!')"
)
_SHORT = re.compile(
    r"\b(?:mr|mrs|ms|dr|st|prof|gen|col|vs|eg|ie|etc|mt|viz|cf|jr|sr|lb|oz|ft|abbr)\b", re.IGNORECASE
)
_STOP = re.compile(  # stems, roughly: slurs, sex, drugs, gore, and what nobody wants to hear as a sample
    r"\b(?:nigg|negr|darky|jew|gyps|kike|spic\b|chink|coolie|wop\b|dago|squaw|redskin|savage|half-breed|mulatt"
    r"|retard|moron|imbecil|idiot|cretin|cripple|midget|spastic|fag|dyke|queer|homosex|lesbian|transves|pervert"
    r"|sex|rape|rapist|incest|whore|prostit|slut|bitch|bastard|harlot|brothel|porn|erotic|orgasm|orgy|genital"
    r"|penis|penile|vagin|vulva|testic|scrot|semen|sperm|breast|nipple|butt\b|buttock|anus|anal\b|rectal|feces"
    r"|fecal|excre|urin|piss|shit|turd|crap|fart|fuck|damn|tits?\b|cunt|cock\b|prick|masturb|copulat|naked|nude"
    r"|condom|hooker|molest|lust|aphrodis|pubic|suicid|murder|massacre|genocid|holocaust|nazi|hitler|terroris"
    r"|lynch|tortur|slave|heroin\b|cocaine|marijuana|drug|bullet|corpse|behead|aryan|white trash|whitey|honky"
    r"|menstru|gonorr|syphil|herpes|vomit|laid\b|screw|ass\b|asses\b|rump|bosom|virgin|seduc|fornic|sodom|vibrator)",
    re.IGNORECASE,
)


def key(text: str) -> tuple[str, ...]:
    """Return what two sentences that differ in case, punctuation and articles share."""
    words = re.sub(r"[^a-z0-9 ]", "", text.lower().replace("-", " ")).split()
    return tuple(word for word in words if word not in ("a", "an", "the"))


def usable(text: str) -> bool:
    """Tell whether a sentence is 3 to 20 plain words with a capital and a full stop, and decent."""
    words = text.lower().rstrip(".!?").split()
    if (
        len(words) not in WORDS
        or not _PLAIN.fullmatch(text)
        or _ODD.search(text)
        or _STOP.search(text)
        or _SHORT.search(text)
    ):
        return False
    return max(map(len, words)) <= 20


def candidates(wordnet: Path, count: int, rng: random.Random) -> dict[str, list[str]]:
    """Collect usable sentences of every kind in `SHARES`.

    Parameters
    ----------
    wordnet : Path
    count : int
        Templates are filled a little oftener than so many sentences in all need, each as often as
        every other: there the frequent words are wanted.
    rng : random.Random

    Returns
    -------
    dict of str to list of str
    """
    found = {kind: [] for kind in SHARES}
    common = set()
    for part, lexfile, word, gloss in entries(wordnet):
        common.add(word)
        found["examples"] += examples(gloss, rng)
        found["definitions"].append(definition(part, lexfile, word, gloss))
    nouns = frequent_nouns(wordnet, common)
    found["phrases"] = PHRASES.strip().splitlines()
    frames = TEMPLATES.strip().splitlines()
    fills = 1 + int(1.15 * SHARES["templates"] * count / len(frames))
    for template in frames:
        found["templates"] += [fill(template, nouns, rng) for _ in range(fills)]
    return {kind: list(filter(usable, texts)) for kind, texts in found.items()}


def choose(
    texts: Iterable[str],
    count: int,
    taken: set[tuple[str, ...]],
    seen: Counter[str],
    banned: set[tuple[str, ...]],
) -> list[str]:
    """Choose sentences, those with seldom words first.

    Parameters
    ----------
    texts : iterable of str
    count : int
        At most so many.
    taken : set
        Keys of sentences not to repeat; those chosen are added.
    seen : Counter
        How often each word was used; updated.
    banned : set
        Keys that must not even occur within a sentence.

    Returns
    -------
    list of str
    """

    def gain(text: str) -> float:
        words = key(text)
        return -sum(0.5 ** seen[word] for word in set(words)) / (len(words) + 3)

    queue = [(gain(text), text) for text in dict.fromkeys(texts)]
    heapq.heapify(queue)
    chosen = []
    while queue and len(chosen) < count:
        text = heapq.heappop(queue)[1]
        now = gain(text)
        if queue and now > queue[0][0]:  # words of it were taken meanwhile: back into the queue
            heapq.heappush(queue, (now, text))
            continue
        words = key(text)
        spans = (words[i:j] for i in range(len(words)) for j in range(i + 3, len(words) + 1))
        if words in taken or any(span in banned for span in spans):
            continue
        taken.add(words)
        seen.update(words)
        chosen.append(text)
    return chosen


def read_texts(path: Path) -> list[str]:
    """Read sentences, one a line, or the column `text` of a .tsv."""
    if not path.is_file():
        raise WorkbenchError(f"no {path.name} in {path.parent}; --exclude takes files of sentences")
    if path.suffix == ".tsv":
        return [row["text"] for row in read_rows(path)]
    with path.open(encoding="utf-8", newline="") as file:
        return [line.strip() for line in file if line.strip()]


def main() -> None:
    """Write sentences that none of the excluded files has."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=30000)
    parser.add_argument("--exclude", type=Path, nargs="*", default=[])
    parser.add_argument("--wordnet", type=Path, help="directory of data.noun; else where wordnet-base put it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    banned = {key(text) for path in args.exclude for text in read_texts(path)}
    seen = Counter(word for words in banned for word in words)
    taken, chosen = set(banned), []
    for kind, texts in candidates(args.wordnet or installed(), args.count, rng).items():
        new = choose(texts, round(SHARES[kind] * args.count), taken, seen, banned)
        print(f"{kind}: {len(new)} of {len(texts)}")
        chosen += new
    rng.shuffle(chosen)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(f"{text}\n" for text in chosen), encoding="utf-8")
    print(f"{len(chosen)} sentences, {len(seen)} different words with the excluded ones")


if __name__ == "__main__":
    main()
