"""What others call the weights of a stage: older torch, ports that shorten names, llama.cpp."""

from collections.abc import Collection, Iterator

EMBED = "llm.model.model.embed_tokens.weight"
HEAD = "llm.model.lm_head.weight"  # the same tensor as the embedding
ROTARY = "decoder.estimator.rotary_embed.inv_freq"  # computed from the size of a head
G, V = ".parametrizations.weight.original0", ".parametrizations.weight.original1"  # weight norm in torch 2
QWEN = "llm.model.model."  # the decoder stack; servers and ports leave it out
# llama.cpp's names of Qwen2, with speech embedding and head as CosyVoice ports add them.
LLAMA_TOP = {
    "token_embd.weight": EMBED,
    "output.weight": HEAD,
    "output_norm.weight": "llm.model.model.norm.weight",
    "cosyvoice3.speech_embd.weight": "speech_embedding.weight",
    "speech_embd.weight": "speech_embedding.weight",
    "cosyvoice3.speech_lm_head.weight": "llm_decoder.weight",
    "speech_lm_head.weight": "llm_decoder.weight",
}
LLAMA_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def aliases(stage: str, expected: Collection[str]) -> dict[str, str]:
    """Return upstream's name for each name that a file may use, upstream's own among them.

    A weight with weight norm multiplied out has no name upstream; it stands for itself.
    """
    known = {name: name for name in expected}
    if stage == "hift":
        for g_name, v_name, folded_name in weight_norms(expected):
            stem = folded_name.removesuffix("weight")
            known |= {f"{stem}weight_g": g_name, f"{stem}weight_v": v_name, folded_name: folded_name}
    if stage == "lm":
        for name in expected:
            if name.startswith(QWEN):
                inner = name.removeprefix(QWEN)
                known |= {inner: name, f"model.{inner}": name}
        known["lm_head.weight"] = HEAD
        known |= {theirs: name for theirs, name in LLAMA_TOP.items() if name in expected}
        n_layers = 1 + max(int(name.split(".")[4]) for name in expected if name.startswith(f"{QWEN}layers."))
        for layer in range(n_layers):
            for theirs, name in LLAMA_LAYER.items():
                for part in ("weight", "bias"):
                    ours = f"{QWEN}layers.{layer}.{name}.{part}"
                    if ours in expected:
                        known[f"blk.{layer}.{theirs}.{part}"] = ours
    return known


def weight_norms(expected: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the names of norm, direction and product of each weight with weight norm."""
    for name in expected:
        if name.endswith(G):
            stem = name.removesuffix(G)
            yield name, f"{stem}{V}", f"{stem}.weight"


def missing(expected: Collection[str], found: Collection[str]) -> list[str]:
    """Return the expected names that are neither found nor follow from what is."""
    follows = {ROTARY}
    if EMBED in found or HEAD in found:
        follows |= {EMBED, HEAD}
    for g_name, v_name, folded_name in weight_norms(expected):
        if folded_name in found:
            follows |= {g_name, v_name}
    return [name for name in expected if name not in found and name not in follows]
