"""Check a transcript, an instruction or a text: its length, and what looks like a control token."""

import html
import re
import unicodedata
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache

from workbench.speech.frontend.text import END_OF_PROMPT, special_tokens
from workbench.speech.frontend.text.normalise import token_pattern

SYSTEM_PROMPT = "You are a helpful assistant."

# The length of a text in letters. A letter of Latin script counts 1.
SYLLABLE_LETTERS = 3  # letters that an ideograph or a Hangul syllable counts as
KANA_LETTERS = 2  # letters that a kana counts as
DIGIT_LETTERS = 5  # letters that a digit counts as, because it is read as a word
SYLLABLE_SCRIPTS = ("CJK", "HANGUL")  # how the Unicode names of these begin
KANA_SCRIPTS = ("HIRAGANA", "KATAKANA")
USUAL_PACE = 14.0  # letters a second; readers of many languages are between 9 and 20
MIN_PACE, MAX_PACE = 6.0, 25.0  # letters a second; a recording beyond has a transcript that is not its own
SHORT_TEXT = 0.5  # of the transcript's characters; upstream warns of a text that is shorter

# Characters that are taken for those of control tokens: brackets and bars, and Cyrillic letters.
_LOOKALIKES = str.maketrans(
    "‹〈⟨＜›〉⟩＞｜∣│ǀ¦❘［【］】" + "аеорсухіјѕԁո", "<<<<>>>>||||||[[]]" + "aeopcyxijsdn"
)
_TAG = re.compile(r"[<\[] ?(\|?) ?(/? ?[^\W\d_][\w '-]{0,30}?) ?(\|?) ?[>\]]|\|([a-z_]{4,20})\|")
_MIN_NAME = 3  # letters in the name of a tag that is compared with control tokens: <b> is none of them
_INSTRUCTION = re.compile(
    r"^\W*(?:please\s+)?(?:speak|say|read|talk|whisper)\b.{0,60}\b(?:accent|angr\w+|calm\w*|dialect|emotion\w*|"
    r"excited\w*|fast\w*|happ\w+|loud\w*|quick\w*|quiet\w*|sad\w*|slow\w*|soft\w*|tone|voice|whisper\w*)\b|"
    r"^\W*请?(?:你)?(?:用|以|尽可能|非常).{1,16}(?:说|讲|表达|朗读|语气|语速|口音)",
    re.IGNORECASE | re.DOTALL,
)


def letters(text: str) -> float:
    """Return the length of a text in letters of Latin script; punctuation counts nothing.

    >>> letters("It is late."), letters("你好。")
    (8.0, 6.0)
    """
    total = 0.0
    for character in text:
        if character.isalnum():
            name = unicodedata.name(character, "")
            if character.isdigit():
                total += DIGIT_LETTERS
            elif name.startswith(SYLLABLE_SCRIPTS):
                total += SYLLABLE_LETTERS
            elif name.startswith(KANA_SCRIPTS):
                total += KANA_LETTERS
            else:
                total += 1
    return total


def spoken_letters(text: str) -> float:
    """Return the length in letters of what is spoken of a text: without an instruction and control tokens."""
    behind = text.rpartition(END_OF_PROMPT)[2]
    tokens = special_tokens()
    phonemes = set(tokens[tokens.index("[AA]") :])
    return letters(_tokens().sub(lambda match: "a" if match[0] in phonemes else " ", behind))


def pace_problem(text: str, speech_s: float) -> str | None:
    """Return a sentence for a transcript that cannot be said in so much speech, or would not fill it."""
    n_letters = spoken_letters(text)
    if not n_letters or speech_s <= 0:
        return None
    pace = n_letters / speech_s
    if MIN_PACE <= pace <= MAX_PACE:
        return None
    how = "far longer" if pace > MAX_PACE else "far shorter"
    result = (
        "the rest of it is spoken as well" if pace > MAX_PACE else "the text may be spoken too fast or cut"
    )
    return (
        f"the transcript is {how} than the recording: {n_letters:.0f} letters in {speech_s:.1f} s of speech, "
        f"{pace:.3g} a second (readers have {MIN_PACE:g} to {MAX_PACE:g}); with such a prompt {result}: give "
        "exactly the words of the recording"
    )


def transcript_problems(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) of what is wrong with a transcript whatever its recording."""
    before, mark, behind = text.rpartition(END_OF_PROMPT)
    if mark and not letters(behind):
        yield (
            "instruction",
            (
                f"nothing stands behind {END_OF_PROMPT} in the transcript, so that an instruction "
                f"({before.strip()!r:.60}) "
                "takes the place of the recording's words: write these behind it, or use the mode instruct"
            ),
        )
    elif not mark and text.startswith(SYSTEM_PROMPT.rstrip(".")):
        yield (
            "instruction",
            (
                f"the transcript begins with {SYSTEM_PROMPT!r} without {END_OF_PROMPT} behind it, so that it "
                "counts as "
                f"spoken: write {END_OF_PROMPT} between it and the recording's words, or leave it out"
            ),
        )
    elif _INSTRUCTION.match(behind):
        yield (
            "instruction",
            (
                f"the transcript reads like an instruction ({behind.strip()!r:.60}); expected the "
                "recording's words: give "
                "an instruction in the mode instruct"
            ),
        )
    yield from control_problems(text, "the transcript")


def instruction_problems(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) of what is wrong with an instruction."""
    behind = text.partition(END_OF_PROMPT)[2]
    if behind.strip():
        yield (
            "instruction",
            (
                f"{behind.strip()!r:.60} stands behind {END_OF_PROMPT} in the instruction, so that it counts "
                "as text "
                "before the one to speak: put it into the text, or leave it out"
            ),
        )
    yield from control_problems(text, "the instruction")


def text_problems(text: str, typed: str, transcript: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) of a segment of a text; `transcript` is what the LM continues, if anything."""
    if transcript and len(text) < SHORT_TEXT * len(transcript):
        yield (
            "short text",
            (
                f"the text has {len(text)} characters, less than half of the prompt's transcript "
                f"({len(transcript)}): "
                "upstream warns that it may be spoken badly; try a shorter prompt or a longer text"
            ),
        )
    if transcript and END_OF_PROMPT in typed:
        yield "control tokens", f"{END_OF_PROMPT} stands in the text as well as before it; expected it once"
    yield from control_problems(typed, "the text")


def control_problems(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) of what looks like a control token and is none, and of damaged characters."""
    bad = sorted({f"U+{ord(c):04X}" for c in text if c == "\ufffd" or (ord(c) < 32 and not c.isspace())})
    if bad:
        yield (
            "characters",
            (f"{where} holds {', '.join(bad)}, which no one can read: was it decoded from another encoding?"),
        )
    found = []
    for surface, name, has_bar in _tags(text):
        meant = _names().get(name) if len(name) >= _MIN_NAME else None
        if meant is None and not has_bar:
            continue
        close = [meant] if meant else [_names()[n] for n in get_close_matches(name, _names(), 1)]
        found.append(f"{surface!r}" + (f" (for {close[0]}?)" if close else ""))
    if found:
        yield (
            "control tokens",
            (
                f"{where} holds {', '.join(dict.fromkeys(found))}, which looks like a control token but is "
                "none: it is "
                "read as letters. Type the token exactly, or leave it out"
            ),
        )


def _tags(text: str) -> Iterator[tuple[str, str, bool]]:
    """Yield (as written, plain name, whether it has a bar) of tags in a text that are no control tokens."""
    rest = _tokens().sub(" ", text)
    plain = unicodedata.normalize("NFKC", html.unescape(rest))
    plain = "".join(c for c in plain if unicodedata.category(c) != "Cf").translate(_LOOKALIKES)
    for match in _TAG.finditer(" ".join(plain.split())):
        yield match[0], _plain_name(match[2] or match[4]), bool(match[1] or match[3])


def _plain_name(token: str) -> str:
    return "".join(c for c in token.casefold() if c.isalnum())


@cache
def _names() -> dict[str, str]:
    """Return plain name -> control token: {"endofprompt": "<|endofprompt|>", ...}."""
    return {_plain_name(token): token for token in reversed(special_tokens())}


@cache
def _tokens() -> re.Pattern[str]:
    return token_pattern(tuple(special_tokens()))
