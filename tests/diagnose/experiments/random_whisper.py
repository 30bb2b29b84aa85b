"""A Whisper of random weights in the files that faster-whisper reads: it says nonsense, by the real code."""

from pathlib import Path

import ctranslate2
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WIDTH, MELS, HEADS = 16, 80, 2
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"),
    *("<|nospeech|>", "<|notimestamps|>"),
    *(f"<|{0.02 * i:.2f}|>" for i in range(1501)),
)


def write_random_whisper(folder: Path) -> Path:
    """Write model.bin, config.json, vocabulary.json and tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))

    spec = ctranslate2.specs.WhisperSpec(1, HEADS, 1, HEADS)
    rng = np.random.default_rng(0)

    def values(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    def linear(layer, size, width):
        layer.weight, layer.bias = values(size, width), values(size)

    def norm(layer):
        layer.gamma, layer.beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def attention(layer, sizes):
        norm(layer.layer_norm)
        for part, size in zip(layer.linear, sizes, strict=True):
            linear(part, size, WIDTH)

    def feed_forward(layer):
        norm(layer.layer_norm)
        linear(layer.linear_0, 4 * WIDTH, WIDTH)
        linear(layer.linear_1, WIDTH, 4 * WIDTH)

    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = values(WIDTH, MELS, 3), values(WIDTH)
    encoder.conv2.weight, encoder.conv2.bias = values(WIDTH, WIDTH, 3), values(WIDTH)
    encoder.position_encodings.encodings = values(1500, WIDTH)
    decoder.embeddings.weight = values(len(vocab), WIDTH)
    decoder.position_encodings.encodings = values(448, WIDTH)
    linear(decoder.projection, len(vocab), WIDTH)
    for layer in (encoder.layer[0], decoder.layer[0]):
        attention(layer.self_attention, (3 * WIDTH, WIDTH))
        feed_forward(layer.ffn)
    attention(decoder.layer[0].attention, (WIDTH, 2 * WIDTH, WIDTH))
    norm(encoder.layer_norm)
    norm(decoder.layer_norm)
    spec.register_vocabulary(list(vocab))
    spec.config.alignment_heads = [(0, 0)]
    spec.config.suppress_ids = spec.config.suppress_ids_begin = spec.config.lang_ids = []
    folder.mkdir(parents=True, exist_ok=True)
    spec.validate()
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
