"""Text: words for numbers and symbols, segments of a length the LM reads well, and token ids."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from workbench.errors import WorkbenchError

END_OF_PROMPT = "<|endofprompt|>"
_BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pre-tokenisation, as published in its tokenizer.json.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Where a segment may end, best place first; the last resort is between any two characters.
_BOUNDARIES = (
    re.compile(r"[.!?;:…।؟]+[\"'”’)\]]*\s+|[。！？；：]+[”’」』）]*\s*"),
    re.compile(r"[,،—–]\s+|[，、]\s*"),
    re.compile(r"\s+"),
    re.compile(r"(?s:.)"),
)
_CLOSING = "\"'”’»」』）)]}> "
_SAID_SYMBOLS = "°©®™"  # symbols the normaliser has words for
_CHUNK = 400  # characters normalised at once


def special_tokens() -> list[str]:
    """CosyVoice3's own special tokens in the order of their ids."""
    return files("workbench.speech.frontend").joinpath("special_tokens.txt").read_text("utf-8").splitlines()


class TextTokenizer:
    """Qwen2's byte-level BPE with CosyVoice3's special tokens after it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        for token in (*_BASE_SPECIALS, *special_tokens()):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TextTokenizer":
        """Read a tokenizer folder, such as a checkpoint's `CosyVoice-BlankEN`.

        Parameters
        ----------
        folder : path
            Holds `vocab.json` and `merges.txt`, or else `tokenizer.json`.
        """
        folder = Path(folder)
        vocab, merges, whole = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
        if vocab.is_file() and merges.is_file():
            return cls(_qwen2(vocab, merges, folder / "tokenizer_config.json"))
        if not whole.is_file():
            missing = " and ".join(f.name for f in (vocab, merges) if not f.is_file())
            raise WorkbenchError(
                f"{folder} has no {missing} and no tokenizer.json; expected a Qwen2 tokenizer: "
                "point at the checkpoint's CosyVoice-BlankEN folder"
            )
        try:
            return cls(Tokenizer.from_file(str(whole)))
        except Exception as error:  # tokenizers raises bare Exception
            raise WorkbenchError(f"{whole} is not a readable tokenizer ({error}); copy it again") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written in it become their one id."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError):
            raise WorkbenchError(f"{text!r:.80} cannot be encoded; expected Unicode text") from None

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    @property
    def end_of_prompt(self) -> int:
        """Id of `<|endofprompt|>`, which every input of the LM has to hold."""
        return self._tokenizer.token_to_id(END_OF_PROMPT)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        return f"TextTokenizer({len(self)} ids)"


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{path} is not readable JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise WorkbenchError(f"{path} holds a {type(found).__name__}; expected a JSON object")
    return found


def _qwen2(vocab: Path, merges: Path, config: Path) -> Tokenizer:
    _json(vocab)  # a message that names the file
    try:
        tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # tokenizers raises bare Exception
        raise WorkbenchError(f"{merges} does not fit {vocab.name} ({error}); copy both again") from None
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = _json(config).get("added_tokens_decoder", {}) if config.is_file() else {}
    try:
        named = sorted((int(i), token["content"]) for i, token in added.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WorkbenchError(f"{config}: added_tokens_decoder is not id -> token; copy it again") from None
    for expected, token in named:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        if (found := tokenizer.token_to_id(token)) != expected:
            raise WorkbenchError(
                f"{token} got id {found}, but {config} says {expected}; {vocab.name} is not its vocabulary"
            )
    return tokenizer


def is_verbatim(text: str) -> bool:
    """Whether a text holds control tokens (`<|...|>`), and so is neither normalised nor split."""
    return "<|" in text and "|>" in text


def normalise(text: str) -> str:
    """Bring a text into the form it is read in.

    NFC, single spaces, numbers and common symbols in words (English and Chinese, by WeText as
    upstream does; other languages keep their digits), emoji and other unspeakable signs dropped,
    a full stop at the end if it has none. Text with control tokens (`<|...|>`) is left as it is.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Raises
    ------
    WorkbenchError
        If there is nothing to say in it.
    """
    if is_verbatim(text):
        _speakable(re.sub(r"<\|.*?\|>", "", text), text)
        return text
    clean = _drop_unspeakable(unicodedata.normalize("NFC", text), keep=_SAID_SYMBOLS)
    language = _language(clean)
    if language == "en":
        clean = clean.translate(str.maketrans("‘’“”", "''\"\""))
    if language:
        chunks = _pack(clean, lambda piece: len(piece.strip()) <= _CHUNK)
        clean = " ".join(_in_words(chunk.strip(), language) for chunk in chunks if chunk.strip())
    clean = _drop_unspeakable(clean)
    if language == "zh":
        clean = re.sub(r"(?<=[\u3400-\u9fff，。！？；：、]) +(?=[\u3400-\u9fff])", "", clean)
    _speakable(clean, text)
    body = clean.rstrip(_CLOSING)
    if body[-1] in ".!?…。！？।؟":
        return clean
    return clean.rstrip(",;:-–—，；：、،/ ") + ("。" if language == "zh" else ".")


def _speakable(clean: str, text: str) -> None:
    if not _has_words(clean):
        raise WorkbenchError(f"{text!r:.80} has nothing to say; expected at least one letter or number")


def _has_words(text: str) -> bool:
    return any(unicodedata.category(c)[0] in "LN" for c in text)


def _drop_unspeakable(text: str, keep: str = "") -> str:
    def says(c: str) -> bool:
        if c in keep or c.isspace():
            return True
        category = unicodedata.category(c)
        variation = "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"
        # C*: controls, surrogates, unassigned; So, Me: emoji and keycaps; Sk: skin tones, `^`
        return c != "\\" and category[0] != "C" and category not in ("So", "Me") and not variation

    skin_tones = re.sub("[\U0001f3fb-\U0001f3ff]", "", text)
    return " ".join("".join(c for c in skin_tones if says(c)).split())


def _script(char: str) -> str:
    folded = unicodedata.normalize("NFKC", char)
    return unicodedata.name(folded[0], "UNKNOWN").split()[0].split("-")[0]


def _scripts(text: str) -> Counter[str]:
    letters = (c for c in text if unicodedata.category(c) in ("Ll", "Lu", "Lt", "Lo"))
    return Counter(_script(c) for c in letters)


def _language(text: str) -> str | None:
    found = _scripts(text)
    if found["CJK"] and not found["HIRAGANA"] and not found["KATAKANA"] and not found["HANGUL"]:
        return "zh"
    return "en" if not found or found.most_common(1)[0][0] == "LATIN" else None


@cache
def _wetext(language: str) -> Callable[[str], str]:
    from wetext import Normalizer  # loads 45 MB of grammars

    return Normalizer(lang=language, operator="tn", remove_erhua=False).normalize


def _in_words(text: str, language: str) -> str:
    """WeText, closing in on the word that its grammar refuses."""
    try:
        return _wetext(language)(text).replace("\\", "")  # it escapes quotes
    except Exception:  # its grammars fail with assertions and parse errors on odd symbols
        parts = text.split(" ")
        if len(parts) == 1:
            parts = re.findall(r"\d[\d.,]*\d|\d|[^\W\d_]+|.", text)
        if len(parts) < 2:
            return text
        half = len(parts) // 2
        joint = " " if " " in text else ""
        halves = (joint.join(parts[:half]), joint.join(parts[half:]))
        return " ".join(_in_words(part, language) for part in halves if part)


def check_scripts(text: str, scripts: tuple[str, ...]) -> None:
    """Refuse a text with letters that a voice was not trained to read.

    Parameters
    ----------
    text : str
    scripts : tuple of str
        Unicode script names as in `unicodedata.name`, such as LATIN or CJK; empty allows all.
    """
    if not scripts:
        return
    for word in re.sub(r"<\|.*?\|>", " ", text).split():
        for script in _scripts(word):
            if script not in scripts:
                raise WorkbenchError(
                    f"{word!r:.40} is written in {script}; this voice reads {', '.join(scripts)}: "
                    "write the text in that script, or load a voice trained for it"
                )


def split(
    text: str,
    tokenizer: TextTokenizer,
    token_max_n: int = 80,
    token_min_n: int = 60,
    merge_len: int = 20,
) -> list[str]:
    """Cut a text into segments the LM reads in one go.

    Cuts at sentence ends; inside a sentence at commas, spaces or anywhere only where it is too
    long or would leave the segment before it short. The defaults are upstream's.

    Parameters
    ----------
    text : str
        Normalised.
    tokenizer : TextTokenizer
        Its tokens are what is counted.
    token_max_n : int
        No segment has more tokens.
    token_min_n : int
        A segment with fewer is topped up with clauses of the next sentence.
    merge_len : int
        A last segment with fewer takes clauses over from the one before it.

    Returns
    -------
    list of str
        Every letter and digit, in order; a segment of punctuation alone is dropped.
    """
    if is_verbatim(text):
        return [text]

    def count(piece: str) -> int:
        return len(tokenizer.encode(piece.strip()))

    pieces = _pack(text, lambda p: count(p) <= token_max_n, lambda p: count(p) >= token_min_n)
    pieces = [piece for piece in pieces if _has_words(piece)]
    if len(pieces) > 1 and count(pieces[-1]) < merge_len:
        pieces[-2:] = _even_out(pieces[-2], pieces[-1], count, merge_len)
    return [piece.strip() for piece in pieces]


def _even_out(last: str, tail: str, count: Callable[[str], int], merge_len: int) -> list[str]:
    both = last + tail
    limit = count(both) - merge_len
    pieces = _pack(both, lambda p: count(p) <= limit)
    # Never move a cut from a pause into the middle of a sentence.
    good = len(pieces) == 2 and (_at_pause(pieces[0]) or not _at_pause(last))
    return pieces if good else [last, tail]


def _at_pause(piece: str) -> bool:
    return not piece.rstrip()[-1:].isalnum()


def _pack(
    text: str, fits: Callable[[str], bool], enough: Callable[[str], bool] = lambda piece: True
) -> list[str]:
    pieces = [""]

    def add(text: str, level: int) -> None:
        cuts = [m.end() for m in _BOUNDARIES[level].finditer(text)]
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = text[start:end]
            inside = level + 1 < len(_BOUNDARIES)
            if fits(pieces[-1] + piece):
                pieces[-1] += piece
            elif inside and (not fits(piece) or (level == 0 and not enough(pieces[-1]))):
                add(piece, level + 1)
            elif pieces[-1]:
                pieces.append(piece)
            else:
                pieces[-1] = piece

    add(text, 0)
    return pieces
