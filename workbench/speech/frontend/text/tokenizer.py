"""Text to ids: Qwen2's byte-level BPE with CosyVoice3's special tokens."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from workbench.errors import WorkbenchError, first_line
from workbench.files import check_regular

END_OF_PROMPT = "<|endofprompt|>"  # between instruction and text
_BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pre-tokenisation, as published in its tokenizer.json.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special_tokens() -> list[str]:
    """Return CosyVoice3's own special tokens, in the order of their ids."""
    return (
        files("workbench.speech.frontend.text").joinpath("special_tokens.txt").read_text("utf-8").splitlines()
    )


class TextTokenizer:
    """Qwen2's byte-level BPE with CosyVoice3's special tokens after its vocabulary.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Qwen2's; the special tokens are added to it.
    """

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
            Holds `vocab.json` and `merges.txt`, or `tokenizer.json`.

        Raises
        ------
        WorkbenchError
            When a file is missing or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        vocab = folder / "vocab.json"
        merges = folder / "merges.txt"
        complete = folder / "tokenizer.json"
        if vocab.is_file() and merges.is_file():
            return cls(_qwen2(vocab, merges, folder / "tokenizer_config.json"))
        if not complete.is_file():
            missing = " and ".join(f.name for f in (vocab, merges) if not f.is_file())
            raise WorkbenchError(
                f"{folder} has no {missing} and no tokenizer.json; expected a Qwen2 tokenizer: "
                "point at the checkpoint's CosyVoice-BlankEN folder"
            )
        with _refused(f"{complete} is not a readable tokenizer; copy it again"):
            return cls(Tokenizer.from_file(str(complete)))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; a special token in it becomes one id."""
        with _refused(f"{text!r:.80} cannot be encoded; expected Unicode text and a whole tokenizer"):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that were added to the vocabulary, such as `[breath]`; each is one id wherever it stands."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    @property
    def end_of_prompt(self) -> int:
        """Id of `<|endofprompt|>`, which every input of the LM contains."""
        return self._tokenizer.token_to_id(END_OF_PROMPT)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        return f"TextTokenizer({len(self)} ids)"


@contextmanager
def _refused(message: str) -> Iterator[None]:
    """Raise a WorkbenchError for whatever the library raises, a panic of its Rust code included."""
    try:
        yield
    except Exception as error:  # it raises bare Exception
        raise WorkbenchError(f"{message} ({first_line(error)})") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # such as KeyboardInterrupt
            raise
        raise WorkbenchError(f"{message} ({first_line(error)})") from None


def _json(path: Path) -> dict:
    try:
        check_regular(path)
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkbenchError(f"{path} is not readable JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise WorkbenchError(f"{path} holds a {type(found).__name__}; expected a JSON object")
    return found


def _qwen2(vocab: Path, merges: Path, config: Path) -> Tokenizer:
    """Build Qwen2's tokenizer from its vocabulary, merges and, if there is one, `tokenizer_config.json`."""
    _json(vocab)  # for an error that names the file
    with _refused(f"{merges} does not fit {vocab.name}; copy both again"):
        tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Tokens that the config adds must get the ids that it states.
    added = _json(config).get("added_tokens_decoder", {}) if config.is_file() else {}
    try:
        named = sorted((int(i), "" + token["content"]) for i, token in added.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WorkbenchError(f"{config}: added_tokens_decoder is not id -> token; copy it again") from None
    for expected, token in named:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        found = tokenizer.token_to_id(token)
        if found != expected:
            raise WorkbenchError(
                f"{token} got id {found}, but {config} says {expected}; {vocab.name} is not its vocabulary"
            )
    return tokenizer
