"""WordNet 3.0 as a source of sentences: examples, definitions, frequent nouns.

WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved. Its licence permits use,
copying, change and distribution for any purpose without fee, if this notice goes along; it comes
without warranty: https://wordnet.princeton.edu/license-and-commercial-use
"""

import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.train.corpus.templates import article

_NOUNS = {"animal": "05", "thing": "06", "body": "08", "food": "13", "person": "18", "plant": "20"}
_COUNTED = {"05", "06", "08", "13", "15", "17", "18", "20"}  # lexicographer files whose nouns take an article
_BARE = {"07", "12", "19", "22", "26", "27"}  # ... and do not
_STATES = re.compile(
    r"(?:not|capable|marked|characterized|made|covered|full|free|able|unable|used|located|situated|composed"
    r"|based|easily|highly|extremely|very|too|no|deeply|completely|quick|ready|hard|easy|likely|inclined) .*"
)
_DANGLING = re.compile(r".* (?:of|to|in|on|at|by|for|from|with|into|as|about|upon|or|and|the|an?|than)")
_PHRASE = re.compile(
    r"an? (?:(?!\w+ed\b|is\b|was\b|has\b|had\b|can\b|will\b|may\b)[a-z'-]+(?<![^s]s) ?){1,6}"
)
_FRAMES = (
    "It was {}.|This is {}.|There was {}.|They talked about {}.|I remember {}.|He described {}.|Is that {}?"
)
_Entry = tuple[str, str, str, str]  # part of speech, lexicographer file, word, gloss


def sentence(fragment: str) -> str:
    """Return a quoted example as a sentence: trimmed, with a capital and a full stop."""
    text = " ".join(fragment.replace("`", "'").split()).strip(" ,;:-")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def entries(wordnet: Path) -> Iterator[_Entry]:
    """Read WordNet's data files."""
    for part in ("noun", "verb", "adj", "adv"):
        path = wordnet / f"data.{part}"
        if not path.is_file():
            raise WorkbenchError(f"no {path.name} in {wordnet}; install wordnet-base, or give --wordnet")
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                head, gloss = line.split(" | ", 1)
                fields = head.split()
                words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
                proper = [word for word in words if word[0].isupper()]
                yield part, fields[1], max(proper, key=len) if proper else words[0], gloss.strip()


def examples(gloss: str, rng: random.Random) -> list[str]:
    """Return the quoted examples of a gloss as sentences; most phrases without a verb get one."""
    out = []
    for quoted in re.findall(r'"([^"]+)"', gloss):
        if _PHRASE.fullmatch(quoted) and rng.random() < 0.7:
            quoted = rng.choice(_FRAMES.split("|")).format(quoted)
        out.append(sentence(quoted))
    return out


def definition(part: str, lexfile: str, word: str, gloss: str) -> str:
    """Turn a gloss into a short sentence, or into nothing where none reads naturally.

    Parameters
    ----------
    part : str
        noun, verb, adj or adv.
    lexfile : str
        Number of WordNet's lexicographer file.
    word : str
    gloss : str

    Returns
    -------
    str
        For example "A gleaner is someone who picks up grain left in the field."
    """
    text = re.split(r'[;:"]', gloss)[0].strip()
    first = (text.split() or [""])[0]
    if (
        not text
        or "(" in text
        or _DANGLING.fullmatch(text)
        or not re.fullmatch(r"[A-Za-z' -]+", word)
        or "genus" in text
    ):
        return ""
    some = first in ("a", "an", "any", "one", "someone", "something")
    out = ""
    if part == "noun" and word[0].isupper():
        if lexfile == "18" and first[0].isupper():
            out = f"{word} was {article(first)} {text}"
        elif lexfile == "15" and first in ("a", "an", "the"):
            out = f"{word} is {text}"
    elif part == "noun" and not re.search(r"[^s]s$", word):
        if lexfile in _COUNTED and some:
            out = f"{article(word)} {word} is {text}"
        elif lexfile in _BARE and (some or first == "the") and (lexfile == "27" or " " not in word):
            out = f"{word} is {text}"
        elif first in ("the", "a", "an"):
            out = f"the {'term' if ' ' in word else 'word'} {word} means {text}"
    elif part == "verb" and first[0].islower() and first != "to":
        out = f"to {word} means to {text}"
    elif part == "adj" and _STATES.fullmatch(text) and word[0].islower():
        out = f"if something is {word}, it is {text}"
    return sentence(out)


def frequent_nouns(wordnet: Path, common: set[str]) -> dict[str, list[str]]:
    """Return the nouns of a template's slots: WordNet counted their first sense, and they are in `common`."""
    nouns = {slot: [] for slot in _NOUNS}
    for line in (wordnet / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        sense, number, _ = line.split()
        for slot, lexfile in _NOUNS.items():
            if number == "1" and (match := re.fullmatch(rf"([a-z]{{3,}}(?<!s))%1:{lexfile}:.*", sense)):
                nouns[slot] += [match[1]] if match[1] in common and len(match[1]) < 12 else []
    return nouns


def installed() -> Path:
    """Return the directory of data.noun as Debian's wordnet-base has it."""
    try:
        listed = subprocess.run(
            ["dpkg", "-L", "wordnet-base"], capture_output=True, text=True, check=True
        ).stdout
        return next(Path(line).parent for line in listed.splitlines() if line.endswith("/data.noun"))
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise WorkbenchError("wordnet-base is not installed; install it, or give --wordnet DIR") from error
