"""Write `Config` and `Options` as files that upstream can load; `config_yaml` reads them back.

They are `cosyvoice3.yaml` and the `config.json` of the Qwen2 folder.
"""

from dataclasses import fields
from typing import Any

import yaml

from workbench.speech.checkpoint.config_yaml import CFM, OPTION_TYPES, OWN, SAMPLING
from workbench.speech.config import RELEASED, Config, Options

QWEN_SIZES = (  # fields of `LMConfig` that stand in Qwen2's config.json, not in cosyvoice3.yaml
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size", "rope_theta", "rms_norm_eps"),
)


def qwen_config(config: Config) -> dict[str, Any]:
    """Return the `config.json` of the Qwen2 folder that belongs to a configuration."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        **{name: getattr(config.lm, name) for name in QWEN_SIZES},
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }


def config_to_yaml(config: Config, options: Options = Options()) -> str:
    """Return the text of a `cosyvoice3.yaml` that upstream can load for inference.

    The order llm, flow, hift is upstream's: its noise depends on it.
    """
    mel = config.mel
    lm = config.lm
    flow = config.flow
    dit = flow.dit
    hift = config.hift
    top = {"silent_tokens": config.silent_tokens}
    if config.scripts:
        top["scripts"] = config.scripts
    own = _own_values(config, options)
    if own:
        top["workbench"] = own
    sampling = {name: getattr(options, name) for name in SAMPLING}
    cfm = {key: getattr(options, option) for key, option in CFM.items()}
    hift_values = {
        f.name: getattr(hift, f.name)
        for f in fields(hift)
        if f.name not in ("f0_cond_channels", "noise_samples", "istft_n_fft", "istft_hop_len")
    }
    f0 = {"num_class": 1, "in_channels": hift.in_channels, "cond_channels": hift.f0_cond_channels}
    return f"""\
# Written by workbench. Upstream's structure; only what inference reads.
sample_rate: {mel.sample_rate}
token_frame_rate: {flow.input_frame_rate}
token_mel_ratio: {flow.token_mel_ratio}
chunk_size: {config.chunk_size}  # tokens
qwen_pretrain_path: ''
{_block(0, top)}

llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: {lm.hidden_size}
    llm_output_size: {lm.hidden_size}
    speech_token_size: {lm.speech_token_size}
    length_normalized_loss: True
    lsm_weight: 0
    mix_ratio: {_text(lm.mix_ratio)}
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
{_block(8, sampling)}

flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: {flow.output_size}
    output_size: {flow.output_size}
    spk_embed_dim: {flow.spk_embed_dim}
    output_type: 'mel'
    vocab_size: {flow.vocab_size}
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: {flow.pre_lookahead_len}
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        in_channels: {flow.output_size}
        channels: {flow.pre_lookahead_channels}
        pre_lookahead_len: {flow.pre_lookahead_len}
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: {3 * flow.output_size}
        n_spks: 1
        spk_emb_dim: {dit.spk_dim}
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1.0e-06
                training_cfg_rate: 0.2
{_block(16, cfm)}
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
{_block(12, {f.name: getattr(dit, f.name) for f in fields(dit)})}

hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
{_block(4, hift_values)}
    istft_params:
        n_fft: {hift.istft_n_fft}
        hop_len: {hift.istft_hop_len}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor
{_block(8, f0)}

feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: {mel.n_fft}
    num_mels: {mel.n_mels}
    sampling_rate: !ref <sample_rate>
    hop_size: {mel.hop_length}
    win_size: {mel.win_length}
    fmin: {_text(mel.fmin)}
    fmax: {_text(mel.fmax)}
    center: False

get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
    version: cosyvoice3
allowed_special: 'all'
"""


def _own_values(config: Config, options: Options) -> dict[str, Any]:
    """Return what stands below the key `workbench`: values that differ from the released model's."""
    own: dict[str, Any] = {}
    for name, part in OWN.items():
        value = getattr(getattr(config, part), name)
        if value != getattr(getattr(RELEASED, part), name):
            own[name] = value
    changed = {}
    for name in OPTION_TYPES:
        value = getattr(options, name)
        has_upstream_key = name in SAMPLING or name in CFM.values()
        if not has_upstream_key and value != getattr(Options(), name):
            changed[name] = value
    if changed:
        own["options"] = changed
    return own


def _block(indent: int, values: dict[str, Any]) -> str:
    """Return a YAML mapping, one line per name."""
    return "\n".join(f"{' ' * indent}{name}: {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    """Return a YAML value on one line."""
    if isinstance(value, float):
        # YAML 1.1 reads "1e-07" as text: it wants "1.0e-07".
        mantissa, e, exponent = repr(float(value)).partition("e")
        if not e:
            return mantissa
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+03d}"
    if isinstance(value, tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=10**9).split("\n")[0]
    return "null" if value is None else repr(value)
