"""What a `cosyvoice3.yaml` says: the tree that `hyperyaml.read` returns as `Config` and `Options`.

Classes, names and numbers are upstream's (`examples/libritts/cosyvoice3/conf/cosyvoice3.yaml`). What
upstream's code holds, and its file has no key for, may stand under a plain key `workbench`.
`template.py` writes such a file.
"""

from typing import Any, get_type_hints

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.hyperyaml import show
from workbench.speech.checkpoint.validate import Section, agree
from workbench.speech.config import Config, DiTConfig, FlowConfig, HiFTConfig, LMConfig, MelConfig, Options

YAML = "cosyvoice3.yaml"
SAMPLING = ("top_p", "top_k", "win_size", "tau_r")  # options in llm.sampling
CFM = {"inference_cfg_rate": "cfg_rate", "t_scheduler": "t_scheduler", "solver": "solver"}  # in cfm_params
OWN = {  # what upstream has no key for, and where it belongs
    "n_special": "lm",
    "min_token_text_ratio": "lm",
    "max_token_text_ratio": "lm",
    "noise_frames": "flow",
    "noise_samples": "hift",
}
_KINDS = get_type_hints(Options)


def config_from_yaml(tree: dict[str, Any], qwen_config: dict[str, Any]) -> Config:
    """Return the sizes that a checkpoint's weights depend on.

    Parameters
    ----------
    tree : dict
        From `hyperyaml.read`.
    qwen_config : dict
        `CosyVoice-BlankEN/config.json`.

    Raises
    ------
    WorkbenchError
        When a class is not CosyVoice3's, or a number is missing, out of range or contradicts another.
    """
    root = Section(tree, YAML)
    own = root.part("workbench", {})
    own.only((*OWN, "options"))
    mel = _mel(root.node("feat_extractor", "mel_spectrogram"))
    lm = _lm(root.node("llm", "CosyVoice3LM"), Section(qwen_config, "CosyVoice-BlankEN/config.json"), own)
    flow = _flow(root.node("flow", "CausalMaskedDiffWithDiT"), own)
    hift = _hift(root.node("hift", "CausalHiFTGenerator"), own)
    agree("speech tokens", llm__speech_token_size=lm.speech_token_size, flow__vocab_size=flow.vocab_size)
    agree("mel bins", feat_extractor=mel.n_mels, flow=flow.output_size, hift=hift.in_channels)
    agree("sample rate", feat_extractor=mel.sample_rate, hift=hift.sampling_rate)
    agree("samples per mel frame", feat_extractor=mel.hop_length, hift=hift.hop_length)
    rate = flow.input_frame_rate * flow.token_mel_ratio
    agree("mel frames per second", tokens=rate, feat_extractor=mel.frame_rate)
    more: dict[str, Any] = {}
    if "silent_tokens" in tree:
        empty = tree["silent_tokens"] == []
        top = lm.speech_token_size - 1
        more["silent_tokens"] = () if empty else root.sizes("silent_tokens", top, most=10_000, low=0)
    if "scripts" in tree:
        found = tree["scripts"]
        good = isinstance(found, list) and all(isinstance(s, str) for s in found) and len(found) <= 1000
        _check(good, f"scripts is {show(found)}; expected a list of words")
        more["scripts"] = tuple(found)
    return Config(mel, lm, flow, hift, root.size("chunk_size", 10_000, 25), **more)


def options_from_yaml(tree: dict[str, Any]) -> Options:
    """Return what a run with this checkpoint does when it is told nothing else.

    `llm.sampling` and the decoder's `cfm_params` hold what upstream has keys for. Every other field
    of `Options` may stand in `workbench: {options: {...}}`.

    Parameters
    ----------
    tree : dict
        From `hyperyaml.read`.

    Raises
    ------
    WorkbenchError
        When an option is unknown, of another type, out of range, or not where it belongs.
    """
    root = Section(tree, YAML)
    llm = root.node("llm", "CosyVoice3LM")
    decoder = root.node("flow", "CausalMaskedDiffWithDiT").node("decoder", "CausalConditionalCFM")
    own = root.part("workbench", {}).part("options", {})
    own.only(tuple(_KINDS))
    places = dict.fromkeys(SAMPLING, "llm sampling") | dict.fromkeys(CFM.values(), "flow decoder cfm_params")
    for name in own.args:
        if name in places:
            raise WorkbenchError(f"{own.where}: {name} is found here; expected it in {places[name]}")
    found = dict(own.args)
    if "sampling" in llm.args:
        sampling = llm.node("sampling", "ras_sampling")
        sampling.only(SAMPLING)
        found |= sampling.args
    if "cfm_params" in decoder.args:
        cfm = decoder.node("cfm_params", "DictConfig").part("content")
        found |= {option: cfm.args[key] for key, option in CFM.items() if key in cfm.args}
    for name, value in found.items():
        kind = _KINDS[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            found[name] = float(value)
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            expected = getattr(kind, "__name__", kind)
            raise WorkbenchError(f"{YAML}: {name} is {show(value)}; expected {expected}")
    try:
        return Options(**found)
    except WorkbenchError as error:
        raise WorkbenchError(f"{YAML}: {str(error)[:300]}") from error


def _check(good: bool, message: str) -> None:
    if not good:
        raise WorkbenchError(f"{YAML}: {message}")


def _mel(s: Section) -> MelConfig:
    fmax = None if s.args.get("fmax") is None else s.real("fmax", 1, 1e6)
    mel = MelConfig(
        sample_rate=s.size("sampling_rate", 400_000),
        n_fft=s.size("n_fft"),
        win_length=s.size("win_size"),
        hop_length=s.size("hop_size"),
        n_mels=s.size("num_mels", 1024),
        fmin=s.real("fmin", 0, 1e6, 0.0),
        fmax=fmax,
    )
    nyquist = mel.sample_rate / 2
    in_order = mel.fmin < (nyquist if fmax is None else fmax) <= nyquist
    _check(max(mel.hop_length, mel.win_length) <= mel.n_fft, "hop_size and win_size exceed n_fft")
    _check(in_order, "feat_extractor: expected fmin < fmax <= half the sample rate")
    return mel


def _lm(s: Section, qwen: Section, own: Section) -> LMConfig:
    s.node("llm", "Qwen2Encoder")
    rope = qwen
    if isinstance(qwen.args.get("rope_parameters"), dict):  # where transformers 5 writes it
        rope = qwen.part("rope_parameters")
    scaling = qwen.args.get("rope_scaling")
    if scaling is not None:
        raise WorkbenchError(f"{qwen.where}: rope_scaling is {show(scaling)}; CosyVoice3 has none")
    lm = LMConfig(
        speech_token_size=s.size("speech_token_size", 2**20),
        n_special=own.number("n_special", 4, 65_536, 200),
        mix_ratio=s.sizes("mix_ratio", default=(5, 15)),
        **qwen.each(hidden_size=65_536, num_hidden_layers=256, num_attention_heads=1024),
        **qwen.each(num_key_value_heads=1024, intermediate_size=2**20, vocab_size=2**22),
        rope_theta=rope.real("rope_theta", 1, 1e12, 1e6),
        rms_norm_eps=qwen.real("rms_norm_eps", 0, 1, 1e-6),
        min_token_text_ratio=own.real("min_token_text_ratio", 0, 1000, 2.0),
        max_token_text_ratio=own.real("max_token_text_ratio", 0, 1000, 20.0),
    )
    _check(len(lm.mix_ratio) == 2, "llm: mix_ratio takes two numbers, text and speech tokens")
    heads, groups = lm.num_attention_heads, lm.num_key_value_heads
    if lm.hidden_size % (2 * heads) or heads % groups:
        raise WorkbenchError(
            f"{qwen.where}: hidden_size {lm.hidden_size}, {heads} heads, {groups} key-value heads; "
            "expected an even number of channels per head and heads in whole groups"
        )
    sizes = {name: s.size(name, default=lm.hidden_size) for name in ("llm_input_size", "llm_output_size")}
    agree("width of the LM", **sizes, hidden_size=lm.hidden_size)
    return lm


def _flow(s: Section, own: Section) -> FlowConfig:
    look = s.node("pre_lookahead_layer", "PreLookaheadLayer")
    d = s.node("decoder", "CausalConditionalCFM").node("estimator", "DiT")
    skips = d.args.get("long_skip_connection")
    _check(not skips, "flow: a DiT with long_skip_connection; this workbench has none")
    dit = DiTConfig(
        **d.each(dim=65_536, depth=256, heads=1024, dim_head=4096, ff_mult=64),
        **d.each(mel_dim=1024, mu_dim=1024, spk_dim=1024, out_channels=1024, static_chunk_size=65_536),
        num_decoding_left_chunks=d.number("num_decoding_left_chunks", -65_536, 65_536, -1),
    )
    flow = FlowConfig(
        **s.each(vocab_size=2**20, output_size=1024, spk_embed_dim=65_536, token_mel_ratio=64),
        **s.each(pre_lookahead_len=64, input_frame_rate=10_000),
        pre_lookahead_channels=look.size("channels"),
        noise_frames=own.size("noise_frames", 200_000, 15_000),
        dit=dit,
    )
    _check(
        dit.dim % 16 == 0,
        f"flow: the DiT's dim is {dit.dim}; its grouped convolutions expect a multiple of 16",
    )
    _check(dit.dim_head % 2 == 0, f"flow: dim_head is {dit.dim_head}; rotary pairs expect an even number")
    widths = {"input_size": s.size("input_size", 1024), "output_size": flow.output_size}
    widths |= {name: getattr(dit, name) for name in ("mel_dim", "mu_dim", "spk_dim", "out_channels")}
    agree("flow: mel bins", **widths, look=look.size("in_channels"))
    agree("flow: look-ahead", flow=flow.pre_lookahead_len, layer=look.size("pre_lookahead_len", 64))
    return flow


def _hift(s: Section, own: Section) -> HiFTConfig:
    f0, istft = s.node("f0_predictor", "CausalConvRNNF0Predictor"), s.part("istft_params")
    hift = HiFTConfig(
        **s.each(in_channels=1024, base_channels=65_536, sampling_rate=400_000),
        nb_harmonics=s.number("nb_harmonics", 0, 256),
        nsf_alpha=s.real("nsf_alpha", 0, 100, 0.1),
        nsf_sigma=s.real("nsf_sigma", 0, 100, 0.003),
        nsf_voiced_threshold=s.real("nsf_voiced_threshold", 0, 1e5, 10.0),
        upsample_rates=s.sizes("upsample_rates", most=8),
        upsample_kernel_sizes=s.sizes("upsample_kernel_sizes", most=8),
        istft_n_fft=istft.size("n_fft", 4096),
        istft_hop_len=istft.size("hop_len", 4096),
        resblock_kernel_sizes=s.sizes("resblock_kernel_sizes"),
        resblock_dilation_sizes=s.size_lists("resblock_dilation_sizes"),
        source_resblock_kernel_sizes=s.sizes("source_resblock_kernel_sizes"),
        source_resblock_dilation_sizes=s.size_lists("source_resblock_dilation_sizes"),
        lrelu_slope=s.real("lrelu_slope", 0, 1, 0.1),
        audio_limit=s.real("audio_limit", 0, 100, 0.99),
        conv_pre_look_right=s.number("conv_pre_look_right", 0, 64, 4),
        f0_cond_channels=f0.size("cond_channels"),
        noise_samples=own.size("noise_samples", 10**8, 7_200_000),
    )
    stages = len(hift.upsample_rates)
    for name, length in {
        "upsample_kernel_sizes": stages,
        "source_resblock_kernel_sizes": stages,
        "source_resblock_dilation_sizes": stages,
        "resblock_dilation_sizes": len(hift.resblock_kernel_sizes),
    }.items():
        found = len(getattr(hift, name))
        _check(found == length, f"hift: {name} has {found}, not {length} entries")
    halves = hift.base_channels % 2**stages == 0
    _check(halves, f"hift: base_channels {hift.base_channels} cannot halve {stages} times")
    n_fft, hop = hift.istft_n_fft, hift.istft_hop_len
    good = n_fft % 2 == 0 and hop <= n_fft
    _check(good, f"hift: n_fft {n_fft}, hop_len {hop}; expected even, and no longer hop")
    _check(f0.number("num_class", 1, 1, 1) == 1, "hift: num_class is not 1")
    agree("hift: mel bins", in_channels=hift.in_channels, f0_predictor=f0.size("in_channels", 1024))
    return hift
