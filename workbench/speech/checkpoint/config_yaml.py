"""Read `cosyvoice3.yaml`: the sizes of a checkpoint (`Config`) and its default options (`Options`).

Classes, names and numbers in the file are upstream's (`examples/libritts/cosyvoice3/conf/cosyvoice3.yaml`).
Numbers that are fixed in upstream's code, and for which its file has no key, may stand below a key
`workbench`. `hyperyaml.read` turns the file into the tree that is read here; `config_yaml_write` writes such
a file.

Reading checks each number. The upper bounds are far above the released model's numbers: they only keep a
damaged or hostile file from claiming all memory.
"""

from typing import Any, get_type_hints

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.hyperyaml import show
from workbench.speech.checkpoint.validate import Section, check_equal
from workbench.speech.config import (
    RELEASED,
    Config,
    DiTConfig,
    FlowConfig,
    HiFTConfig,
    LMConfig,
    MelConfig,
    Options,
)

YAML = "cosyvoice3.yaml"
# Options for which upstream has keys: in llm.sampling, and by upstream's key in the decoder's cfm_params.
SAMPLING = ("top_p", "top_k", "win_size", "tau_r")
CFM = {"inference_cfg_rate": "cfg_rate", "t_scheduler": "t_scheduler", "solver": "solver"}
OWN = {  # keys below `workbench`, and the part of `Config` that each belongs to
    "n_special": "lm",
    "min_token_text_ratio": "lm",
    "max_token_text_ratio": "lm",
    "noise_frames": "flow",
    "noise_samples": "hift",
}
OPTION_TYPES = get_type_hints(Options)
MAX_RATE = 400_000  # Hz


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
    own = root.section("workbench", {})
    own.allow_only((*OWN, "options"))
    mel = _mel(root.node("feat_extractor", "mel_spectrogram"))
    lm = _lm(root.node("llm", "CosyVoice3LM"), Section(qwen_config, "CosyVoice-BlankEN/config.json"), own)
    flow = _flow(root.node("flow", "CausalMaskedDiffWithDiT"), own)
    hift = _hift(root.node("hift", "CausalHiFTGenerator"), own)

    # The stages fit together.
    tokens = {"llm.speech_token_size": lm.speech_token_size, "flow.vocab_size": flow.vocab_size}
    check_equal("speech tokens", tokens)
    bins = {"feat_extractor": mel.n_mels, "flow": flow.output_size, "hift": hift.in_channels}
    check_equal("mel bins", bins)
    check_equal("sample rate", {"feat_extractor": mel.sample_rate, "hift": hift.sampling_rate})
    check_equal("samples per mel frame", {"feat_extractor": mel.hop_length, "hift": hift.hop_length})
    frame_rate = flow.input_frame_rate * flow.token_mel_ratio
    check_equal("mel frames per second", {"tokens": frame_rate, "feat_extractor": mel.frame_rate})

    optional: dict[str, Any] = {}
    if tree.get("silent_tokens") == []:
        optional["silent_tokens"] = ()
    elif "silent_tokens" in tree:
        highest = lm.speech_token_size - 1
        optional["silent_tokens"] = root.integers("silent_tokens", 0, highest, max_length=10_000)
    if "scripts" in tree:
        scripts = tree["scripts"]
        are_words = isinstance(scripts, list) and all(isinstance(word, str) for word in scripts)
        _check(are_words and len(scripts) <= 1000, f"scripts is {show(scripts)}; expected a list of words")
        optional["scripts"] = tuple(scripts)
    chunk_size = root.size("chunk_size", 10_000, RELEASED.chunk_size)
    return Config(mel, lm, flow, hift, chunk_size, **optional)


def options_from_yaml(tree: dict[str, Any]) -> Options:
    """Return the options of a run with this checkpoint where the caller sets none.

    `llm.sampling` and the decoder's `cfm_params` hold the options for which upstream has keys. Every other
    field of `Options` may stand in `workbench: {options: {...}}`.

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
    own = root.section("workbench", {}).section("options", {})
    own.allow_only(tuple(OPTION_TYPES))
    for name in own.args:
        if name in SAMPLING:
            raise WorkbenchError(f"{own.where}: {name} is found here; expected it in llm sampling")
        if name in CFM.values():
            raise WorkbenchError(f"{own.where}: {name} is found here; expected it in flow decoder cfm_params")

    found = dict(own.args)
    if "sampling" in llm.args:
        sampling = llm.node("sampling", "ras_sampling")
        sampling.allow_only(SAMPLING)
        found |= sampling.args
    if "cfm_params" in decoder.args:
        cfm = decoder.node("cfm_params", "DictConfig").section("content")
        found |= {option: cfm.args[key] for key, option in CFM.items() if key in cfm.args}
    for name, value in found.items():
        expected = OPTION_TYPES[name]
        is_bool = isinstance(value, bool)
        if expected is float and isinstance(value, int) and not is_bool:
            found[name] = float(value)
        elif not isinstance(value, expected) or (is_bool and expected is not bool):
            shown = getattr(expected, "__name__", expected)
            raise WorkbenchError(f"{YAML}: {name} is {show(value)}; expected {shown}")
    try:
        return Options(**found)
    except WorkbenchError as error:
        raise WorkbenchError(f"{YAML}: {str(error)[:300]}") from error


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise WorkbenchError(f"{YAML}: {message}")


def _mel(node: Section) -> MelConfig:
    fmax = None if node.args.get("fmax") is None else node.number("fmax", 1, 1e6)
    mel = MelConfig(
        sample_rate=node.size("sampling_rate", MAX_RATE),
        n_fft=node.size("n_fft"),
        win_length=node.size("win_size"),
        hop_length=node.size("hop_size"),
        n_mels=node.size("num_mels", 1024),
        fmin=node.number("fmin", 0, 1e6, RELEASED.mel.fmin),
        fmax=fmax,
    )
    _check(max(mel.hop_length, mel.win_length) <= mel.n_fft, "hop_size and win_size exceed n_fft")
    nyquist = mel.sample_rate / 2
    in_order = mel.fmin < (nyquist if fmax is None else fmax) <= nyquist
    _check(in_order, "feat_extractor: expected fmin < fmax <= half the sample rate")
    return mel


def _lm(node: Section, qwen: Section, own: Section) -> LMConfig:
    default = RELEASED.lm
    node.node("llm", "Qwen2Encoder")
    rope = qwen
    if isinstance(qwen.args.get("rope_parameters"), dict):  # transformers 5 writes rope_theta there
        rope = qwen.section("rope_parameters")
    scaling = qwen.args.get("rope_scaling")
    if scaling is not None:
        raise WorkbenchError(f"{qwen.where}: rope_scaling is {show(scaling)}; CosyVoice3 has none")
    lm = LMConfig(
        speech_token_size=node.size("speech_token_size", 2**20),
        n_special=own.integer("n_special", 4, 65_536, default.n_special),  # sos, eos, task and fill at least
        mix_ratio=node.integers("mix_ratio", default=default.mix_ratio),
        **qwen.sizes(hidden_size=65_536, num_hidden_layers=256, num_attention_heads=1024),
        **qwen.sizes(num_key_value_heads=1024, intermediate_size=2**20, vocab_size=2**22),
        rope_theta=rope.number("rope_theta", 1, 1e12, default.rope_theta),
        rms_norm_eps=qwen.number("rms_norm_eps", 0, 1, default.rms_norm_eps),
        min_token_text_ratio=own.number("min_token_text_ratio", 0, 1000, default.min_token_text_ratio),
        max_token_text_ratio=own.number("max_token_text_ratio", 0, 1000, default.max_token_text_ratio),
    )
    _check(len(lm.mix_ratio) == 2, "llm: mix_ratio takes two numbers, text and speech tokens")
    heads = lm.num_attention_heads
    groups = lm.num_key_value_heads
    if lm.hidden_size % (2 * heads) or heads % groups:
        raise WorkbenchError(
            f"{qwen.where}: hidden_size {lm.hidden_size}, {heads} heads, {groups} key-value heads; "
            "expected an even number of channels per head and heads in whole groups"
        )
    widths = {name: node.size(name, default=lm.hidden_size) for name in ("llm_input_size", "llm_output_size")}
    check_equal("width of the LM", widths | {"hidden_size": lm.hidden_size})
    return lm


def _flow(node: Section, own: Section) -> FlowConfig:
    lookahead = node.node("pre_lookahead_layer", "PreLookaheadLayer")
    estimator = node.node("decoder", "CausalConditionalCFM").node("estimator", "DiT")
    skips = estimator.args.get("long_skip_connection")
    _check(not skips, "flow: a DiT with long_skip_connection; this workbench has none")
    dit = DiTConfig(
        **estimator.sizes(dim=65_536, depth=256, heads=1024, dim_head=4096, ff_mult=64),
        **estimator.sizes(mel_dim=1024, mu_dim=1024, spk_dim=1024, out_channels=1024),
        static_chunk_size=estimator.size("static_chunk_size"),
        num_decoding_left_chunks=estimator.integer("num_decoding_left_chunks", -65_536, 65_536, -1),
    )
    flow = FlowConfig(
        **node.sizes(vocab_size=2**20, output_size=1024, spk_embed_dim=65_536, token_mel_ratio=64),
        **node.sizes(pre_lookahead_len=64, input_frame_rate=10_000),
        pre_lookahead_channels=lookahead.size("channels"),
        noise_frames=own.size("noise_frames", 200_000, RELEASED.flow.noise_frames),
        dit=dit,
    )
    groups = f"flow: the DiT's dim is {dit.dim}; its grouped convolutions expect a multiple of 16"
    _check(dit.dim % 16 == 0, groups)
    _check(dit.dim_head % 2 == 0, f"flow: dim_head is {dit.dim_head}; rotary pairs expect an even number")
    widths = {"input_size": node.size("input_size", 1024), "output_size": flow.output_size}
    widths |= {name: getattr(dit, name) for name in ("mel_dim", "mu_dim", "spk_dim", "out_channels")}
    check_equal("flow: mel bins", widths | {"look": lookahead.size("in_channels")})
    layer = lookahead.size("pre_lookahead_len", 64)
    check_equal("flow: look-ahead", {"flow": flow.pre_lookahead_len, "layer": layer})
    return flow


def _hift(node: Section, own: Section) -> HiFTConfig:
    default = RELEASED.hift
    f0 = node.node("f0_predictor", "CausalConvRNNF0Predictor")
    istft = node.section("istft_params")
    hift = HiFTConfig(
        **node.sizes(in_channels=1024, base_channels=65_536, sampling_rate=MAX_RATE),
        nb_harmonics=node.integer("nb_harmonics", 0, 256),
        nsf_alpha=node.number("nsf_alpha", 0, 100, default.nsf_alpha),
        nsf_sigma=node.number("nsf_sigma", 0, 100, default.nsf_sigma),
        nsf_voiced_threshold=node.number("nsf_voiced_threshold", 0, 1e5, default.nsf_voiced_threshold),
        upsample_rates=node.integers("upsample_rates", max_length=8),
        upsample_kernel_sizes=node.integers("upsample_kernel_sizes", max_length=8),
        istft_n_fft=istft.size("n_fft", 4096),
        istft_hop_len=istft.size("hop_len", 4096),
        resblock_kernel_sizes=node.integers("resblock_kernel_sizes"),
        resblock_dilation_sizes=node.integer_lists("resblock_dilation_sizes"),
        source_resblock_kernel_sizes=node.integers("source_resblock_kernel_sizes"),
        source_resblock_dilation_sizes=node.integer_lists("source_resblock_dilation_sizes"),
        lrelu_slope=node.number("lrelu_slope", 0, 1, default.lrelu_slope),
        audio_limit=node.number("audio_limit", 0, 100, default.audio_limit),
        conv_pre_look_right=node.integer("conv_pre_look_right", 0, 64, default.conv_pre_look_right),
        f0_cond_channels=f0.size("cond_channels"),
        noise_samples=own.size("noise_samples", 10**8, default.noise_samples),
    )
    n_stages = len(hift.upsample_rates)
    lengths = {
        "upsample_kernel_sizes": n_stages,
        "source_resblock_kernel_sizes": n_stages,
        "source_resblock_dilation_sizes": n_stages,
        "resblock_dilation_sizes": len(hift.resblock_kernel_sizes),
    }
    for name, length in lengths.items():
        found = len(getattr(hift, name))
        _check(found == length, f"hift: {name} has {found}, not {length} entries")
    can_halve = hift.base_channels % 2**n_stages == 0
    _check(can_halve, f"hift: base_channels {hift.base_channels} cannot halve {n_stages} times")
    n_fft = hift.istft_n_fft
    hop = hift.istft_hop_len
    fits = n_fft % 2 == 0 and hop <= n_fft
    _check(fits, f"hift: n_fft {n_fft}, hop_len {hop}; expected an even n_fft, and hop_len <= n_fft")
    f0.integer("num_class", 1, 1, 1)  # one number per frame: f0
    bins = {"in_channels": hift.in_channels, "f0_predictor": f0.size("in_channels", 1024)}
    check_equal("hift: mel bins", bins)
    return hift
