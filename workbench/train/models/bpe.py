"""A small byte-level BPE in the file format of Qwen2's tokenizer.

`python -m workbench.train.models.bpe SENTENCES.txt OUT_DIR --vocab 512` writes vocab.json, merges.txt and
tokenizer_config.json. Few entries on purpose: the language model sees some forty thousand words in
all, and an entry that occurs ten times is not learnt.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from workbench.errors import WorkbenchError

# Qwen2's split: contractions, words with one leading sign, single digits, signs, blank lines, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _dress(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts: Iterable[str], out: str | Path, vocab: int = 512, min_count: int = 20) -> Tokenizer:
    """Learn merges and write them.

    Parameters
    ----------
    texts : iterable of str
        Sentences in their natural casing.
    out : Path
        Receives the three files.
    vocab : int
        Entries, the 256 bytes included, the specials not.
    min_count : int
        A pair seen less often is not merged.
    """
    if vocab < 256:
        raise WorkbenchError(f"vocab is {vocab}; expected at least the 256 bytes")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _dress(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=min_count,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    tokenizer.model.save(str(out))
    added = {
        str(size + i): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, name in enumerate(SPECIALS)
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIALS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[0],
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": SPECIALS[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load(out)


def load(path: str | Path, dropout: float | None = None) -> Tokenizer:
    """Read the three files back.

    Parameters
    ----------
    path : Path
        Their directory.
    dropout : float, optional
        Chance of leaving a merge out, drawn anew at every `encode`: one text is then spelt in many
        ways, which a model of little data needs.
    """
    path = Path(path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        if not (path / name).is_file():
            raise WorkbenchError(f"no {name} in {path}; run `python -m workbench.train.models.bpe` first")
    model = models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt"), dropout=dropout)
    tokenizer = _dress(Tokenizer(model))
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
    tokenizer.add_special_tokens([AddedToken(one["content"], normalized=False) for _, one in added])
    for number, one in added:
        if tokenizer.token_to_id(one["content"]) != int(number):
            raise WorkbenchError(
                f"{one['content']} is not {number}; vocab.json and tokenizer_config.json differ"
            )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of one text, nothing added in front or behind."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def main() -> None:
    """Train the text tokenizer on a file of sentences, one a line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--check", type=Path, help="sentences to count characters per token on")
    args = parser.parse_args()
    tokenizer = train(args.sentences.read_text(encoding="utf-8").splitlines(), args.out, args.vocab)
    print(f"{tokenizer.get_vocab_size(with_added_tokens=False)} entries", flush=True)
    if args.check:
        lines = args.check.read_text(encoding="utf-8").splitlines()
        count = sum(len(encode(tokenizer, line)) for line in lines)
        exact = all(tokenizer.decode(encode(tokenizer, line)) == line for line in lines)
        print(f"{sum(map(len, lines)) / count:.2f} characters per token, exact: {exact}", flush=True)


if __name__ == "__main__":
    main()
