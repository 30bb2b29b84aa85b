"""A small byte-level tokenizer."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = ["Eight months to Mars.", "the quick brown fox jumps over the lazy dog", "It's 你好 世界 и мир"]


def tiny_bpe(folder, size=300):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(CORPUS * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    raw.model.save(str(folder))
    return raw
