"""What others call the weights of a stage: older torch, ports that shorten names, llama.cpp, CrispASR."""

import re
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

# CrispASR's names of flow and vocoder: what it puts in place of parts of upstream's, one after the other.
CRISPASR = {
    "flow": {
        "decoder.estimator.transformer_blocks.": "dit.blk.",
        "decoder.estimator.input_embed.proj.": "dit.in_proj.",
        "decoder.estimator.input_embed.conv_pos_embed.conv1.0.": "dit.conv_pos.c1.",
        "decoder.estimator.input_embed.conv_pos_embed.conv2.0.": "dit.conv_pos.c2.",
        "decoder.estimator.time_embed.time_mlp.": "dit.time_mlp.",
        "decoder.estimator.rotary_embed.inv_freq": "dit.rope_inv_freq",
        "decoder.estimator.norm_out.linear.": "dit.norm_out.",
        "decoder.estimator.proj_out.": "dit.proj_out.",
        "input_embedding.": "input_embd.",
        "pre_lookahead_layer.": "pre_la.",
        "spk_embed_affine_layer.": "spk_affine.",
        "attn_norm.linear.": "adaln.",
        "attn.to_out.0.": "attn.o.",
        "attn.to_": "attn.",
        "ff.ff.0.0.": "ffn.l1.",
        "ff.ff.2.": "ffn.l2.",
    },
    "hift": {
        "source_resblocks.": "src_resblk.",
        "convs1.": "c1.",
        "convs2.": "c2.",
        "activations1.": "a1.",
        "activations2.": "a2.",
        "f0_predictor.": "f0.",
    },
}
CONDNET = re.compile(r"(?<=condnet\.)\d+")  # counts convolutions and activations, there convolutions alone


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
    if stage in CRISPASR:
        for name in [*known.values()]:
            known[crispasr_name(stage, name)] = name
    return known


def crispasr_name(stage: str, name: str) -> str:
    """Return CrispASR's name of a weight of the flow or the vocoder, with weight norm multiplied out."""
    for ours, theirs in CRISPASR[stage].items():
        name = name.replace(ours, theirs)
    name = CONDNET.sub(lambda match: str(int(match[0]) // 2), name)
    for ours, theirs in ((".weight", ".w"), (".bias", ".b")):
        name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
    return f"cosyvoice3.{stage}.{name}"


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
