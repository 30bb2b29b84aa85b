"""`cosyvoice3.yaml`: reading HyperPyYAML without executing it, and reading and writing Config and Options."""

import contextlib
from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.profiles import examples
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.config_yaml import config_from_yaml, options_from_yaml
from workbench.speech.checkpoint.config_yaml_write import config_to_yaml, qwen_config
from workbench.speech.checkpoint.hyperyaml import Tagged, read
from workbench.speech.config import Config, DiTConfig, FlowConfig, HiFTConfig, LMConfig, MelConfig, Options

# The structure, tags and references of upstream's file; written for this test.
UPSTREAM = """
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.manual_seed [1986]
rate: 24000
width: 896
spk: 192
qwen_pretrain_path: ''
tokens_per_second: 25
ratio: 2
chunk_size: 25
left: -1
llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <width>
    llm_output_size: !ref <width>
    speech_token_size: 6561
    length_normalized_loss: True
    lsm_weight: 0
    mix_ratio: [5, 15]
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling {top_p: 0.8, top_k: 25, win_size: 10, tau_r: 0.1}
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: 80
    output_size: 80
    spk_embed_dim: !ref <spk>
    output_type: 'mel'
    vocab_size: 6561
    input_frame_rate: !ref <tokens_per_second>
    token_mel_ratio: !ref <ratio>
    pre_lookahead_len: 3
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        {in_channels: 80, channels: 1024, pre_lookahead_len: 3}
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: 240
        n_spks: 1
        cfm_params: !new:omegaconf.DictConfig
            content: {sigma_min: 1e-06, t_scheduler: 'cosine', inference_cfg_rate: 0.7}
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim: 1024
            depth: 22
            heads: 16
            dim_head: 64
            ff_mult: 2
            mel_dim: 80
            mu_dim: 80
            spk_dim: 80
            out_channels: 80
            static_chunk_size: !ref <chunk_size> * <ratio>
            num_decoding_left_chunks: !ref <left>
hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
    in_channels: 80
    base_channels: 512
    nb_harmonics: 8
    sampling_rate: !ref <rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    upsample_kernel_sizes: [16, 11, 7]
    istft_params: {n_fft: 16, hop_len: 4}
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    conv_pre_look_right: 4
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor
        {num_class: 1, in_channels: 80, cond_channels: 512}
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    {n_fft: 1920, num_mels: 80, sampling_rate: !ref <rate>, hop_size: 480, win_size: 1920, fmin: 0,
     fmax: null, center: False}
gan: !new:cosyvoice.hifigan.hifigan.HiFiGan
    generator: !ref <hift>
    mpd: !new:matcha.hifigan.models.MultiPeriodDiscriminator
pipeline: [
    !ref <feat_extractor>,
    !ref <hift>,
]
"""
QWEN = qwen_config(Config())
SMALL = Config(
    mel=MelConfig(16_000, 1024, 800, 320, 40, 20.0, 7_600.0),
    lm=LMConfig(64, 200, (3, 9), 32, 1, 2, 1, 48, 96, 1e4, 1e-5, 1.5, 12.0),
    flow=FlowConfig(
        64, 40, 16, 2, 2, 24, 25, 100, DiTConfig(32, 1, 2, 8, 2, 40, 40, 40, 40, static_chunk_size=20)
    ),
    hift=HiFTConfig(
        40, 16, 2, 16_000, 0.2, 1e-6, 5.0, (8, 5), (16, 11), 16, 8, (3,), ((1, 3),), (7, 7), ((1,), (1,))
    ),
)


@pytest.fixture
def parse(tmp_path):
    def parse(text):
        path = tmp_path / "cosyvoice3.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read(path)

    return parse


def test_upstreams_file_gives_the_default_config(parse):
    tree = parse(UPSTREAM)
    assert config_from_yaml(tree, QWEN) == Config()
    assert tree["gan"].args["generator"] is tree["hift"]
    assert tree["pipeline"] == [tree["feat_extractor"], tree["hift"]]
    assert tree["__set_seed1"] == Tagged("apply", "random.seed", [1986])
    assert tree["gan"].args["mpd"] == Tagged("new", "matcha.hifigan.models.MultiPeriodDiscriminator", {})
    assert tree["flow"].args["decoder"].args["cfm_params"].args["content"]["sigma_min"] == 1e-6


@pytest.mark.parametrize("config", [Config(), SMALL, replace(SMALL, silent_tokens=())])
def test_written_yaml_reads_back(parse, config):
    silent = tuple(t for t in config.silent_tokens if t < config.lm.speech_token_size)
    config = replace(config, silent_tokens=silent)
    text = config_to_yaml(config)
    assert config_from_yaml(parse(text), qwen_config(config)) == config
    assert text.index("\nllm:") < text.index("\nflow:") < text.index("\nhift:")


def test_scripts_are_written_and_read_back(parse):
    config = replace(Config(), scripts=("latin", "han", 'a "b"\n\u00e9'))
    assert config_from_yaml(parse(config_to_yaml(config)), QWEN) == config
    with pytest.raises(WorkbenchError, match="scripts is 7"):
        config_from_yaml(parse(UPSTREAM + "scripts: 7\n"), QWEN)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("<a> * <b> + 1", 13),
        ("<a> // 5 - -<b>", 3),
        ("(<a> + <b>) / 4", 2.0),
        ("<d.x>", 3),
        ("<d[x]>", 3),
        ("<l[1]>", 8),
        ("<n.dim>", 5),
        ("<s>/model/<a>", "out/model/6"),
        ("<s>", "out"),
        ("<a>x", "6x"),
    ],
)
def test_references_are_resolved(parse, expression, expected):
    tree = parse(
        f"a: 6\nb: 2\nd: {{x: 3}}\nl: [7, 8]\nn: !new:k.K {{dim: 5}}\ns: out\nr: !ref {expression}\n"
    )
    assert tree["r"] == expected and type(tree["r"]) is type(expected)


def test_references_share_the_value_they_name(parse):
    tree = parse("a: {x: [1]}\nb: !ref <a>\nc: !ref <b.x>\nd: {y: !ref <c>}\ne: !ref <d>\nf: !ref <e.y>\n")
    assert tree["c"] is tree["a"]["x"] and tree["f"] is tree["c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !ref <b>\nb: !ref <a>", "leads back to itself"),
        ("a: {x: !ref <a>}", "leads back to itself"),
        ("a: 1\nb: !ref <c>", r"line 2: !ref <c>: nothing has the name 'c'"),
        ("a: 1\nb: !ref <a> / 0", "line 2.*division by zero"),
        ("a: 9\nb: !ref <a>" + "*<a>" * 30, "63 bits"),
        ("a: 9\nb: !ref <a> ** 2", "cannot be calculated"),
        ("a: [1]\nb: !ref <a> + 1", "mixes a list of 1"),
        ("a: !ref x", "names nothing"),
        ("a: 1\na: 2", "line 2: key 'a' is there twice"),
        ("1: 2", "not plain text"),
        ("? [a]\n: 2", "not plain text"),
        ("<<: {a: 1}", "not plain text"),
        ("a: !!python/object/apply:os.system [id]", "unknown tag"),
        ("a: !!binary aGk=", "unknown tag"),
        ("a: !include:other.yaml", "unknown tag"),
        ("a: !new:", "unknown tag|names no Python object"),
        ("a: !new:os;x [1]", "names no Python object"),
        ("a: !!int x", "not of type int"),
        ("a: !!bool x", "not of type bool"),
        ("a: 0x" + "f" * 40, "63 bits"),
        ("a: " + "9" * 5000, "not of type int"),
        ("a: [", "not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        (b"a: \xff", "not UTF-8"),
        ("", "holds None"),
        ("[1]", "a list of 1"),
        ("a: " + "[" * 5000, "too deeply|not valid"),
        ("a: " + "[" * 60 + "]" * 60, "50 levels"),
        ("a: &x [*x]", "50 levels"),
        ("a: [" + "1," * 30_000 + "]", "20000 values"),
        ("a: '" + "x" * 1_000_001 + "'", "larger than 1 MB"),
        ("".join(f"a{i}: !ref <a{i + 1}><a{i + 1}>\n" for i in range(30)) + "a30: xxxx", "characters"),
        ("".join(f"a{i}: !ref <a{i + 1}>\n" for i in range(3000)) + "a3000: 1", "too deeply"),
        (
            "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(30)),
            "20000 values",
        ),
    ],
)
def test_broken_files_are_refused(parse, text, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        parse(text)
    assert "cosyvoice3.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WorkbenchError, match="cannot be read"):
        read(tmp_path / "cosyvoice3.yaml")


@pytest.mark.parametrize("tag", ["!apply:os.system", "!new:os.system", "!!python/object/apply:os.system"])
def test_nothing_is_executed(parse, tmp_path, tag):
    text = f"evil: {tag} [touch {tmp_path}/run]\n{UPSTREAM}"
    if tag.startswith("!!"):
        with pytest.raises(WorkbenchError, match="unknown tag"):
            parse(text)
    else:
        assert config_from_yaml(parse(text), QWEN) == Config()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "llm.CosyVoice3LM",
            "llm.Qwen2LM",
            "found cosyvoice.llm.llm.Qwen2LM; this workbench opens CosyVoice3",
        ),
        ("dit.DiT", "unet.UNet", "it is DiT"),
        ("CausalHiFTGenerator", "HiFTGenerator", "it is CausalHiFTGenerator"),
        ("depth: 22", "depth: 0", "depth is 0; expected a whole number from 1"),
        ("depth: 22", "depth: true", "depth is True"),
        ("depth: 22", "depth: 1000000000", "depth is 1000000000"),
        ("depth: 22", "deep: 22", "no 'depth'"),
        ("depth: 22", "depth: 22\n            long_skip_connection: true", "long_skip_connection"),
        ("audio_limit: 0.99", "audio_limit: .nan", "audio_limit is nan"),
        ("[8, 5, 3]", "[8, 5]", "hop|samples per mel frame|entries"),
        ("[8, 5, 3]", "8", "upsample_rates is 8"),
        ("speech_token_size: 6561", "speech_token_size: 6560", "speech tokens"),
        ("width: 896", "width: 512", "hidden_size = 896"),
        ("rate: 24000\n", "rate: 22050\n", "mel frames per second"),
        ("mix_ratio: [5, 15]", "mix_ratio: [5]", "mix_ratio takes two"),
        ("dim_head: 64", "dim_head: 63", "even"),
        ("\nchunk_size: 25", "\nchunk_size: 25\nsilent_tokens: [1, 6561]", "silent_tokens"),
    ],
)
def test_other_models_and_wrong_numbers_are_refused(parse, old, new, message):
    assert old in UPSTREAM
    with pytest.raises(WorkbenchError, match=message):
        config_from_yaml(parse(UPSTREAM.replace(old, new, 1)), QWEN)


CHANGED = Options(
    n_timesteps=4, solver="heun", t_scheduler="linear", cfg_rate=0.0, temperature=1e-7, noise_seed=3,
    estimator="onnx", vocoder="onnx", compute="exact", token_temperature=0.7, repetition_penalty=1.3,
    lm_dtype="bfloat16", flow_dtype="float16", hift_dtype="float64", f0_dtype="float32",
    source_dtype="float64", head_dtype="float16", top_p=0.5, top_k=3, top_p_of="top_k",
    win_size=25, tau_r=0.2, seed=2**62, mask_stop_ids=True, silent_tokens_repeat=False,
    repetition_fallback="top_k", max_silent_run=None, max_tokens=500,
    stream_final_offline=False, speed=2, weights="lm=q4_k",
)  # fmt: skip


def test_upstreams_file_gives_the_default_options(parse):
    assert options_from_yaml(parse(UPSTREAM)) == Options()
    assert options_from_yaml(parse(config_to_yaml(Config()))) == Options()
    assert "workbench:" not in config_to_yaml(Config())


def test_options_are_written_and_read_back(parse):
    assert all(getattr(CHANGED, f.name) != f.default for f in fields(Options))
    tree = parse(config_to_yaml(SMALL, CHANGED))
    found = options_from_yaml(tree)
    assert found == CHANGED and type(found.speed) is float
    sampling = tree["llm"].args["sampling"].args
    assert (sampling["top_k"], sampling["tau_r"]) == (3, 0.2)
    assert tree["flow"].args["decoder"].args["cfm_params"].args["content"]["inference_cfg_rate"] == 0
    assert set(tree["workbench"]["options"]).isdisjoint(("top_p", "cfg_rate", "solver"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("top_k: 25, win_size: 10", "top_k: 7", Options(top_k=7)),
        ("ras_sampling {top_p: 0.8, top_k: 25, win_size: 10, tau_r: 0.1}", "ras_sampling", Options()),
        ("'cosine', inference_cfg_rate: 0.7", "linear, solver: midpoint, inference_cfg_rate: 1",
         Options(t_scheduler="linear", solver="midpoint", cfg_rate=1.0)),
        ("rate: 24000", "workbench: {options: {n_timesteps: 5}}\nrate: 24000", Options(n_timesteps=5)),
        ("top_k: 25", "top_k: 0", "cosyvoice3.yaml: top_k is 0; expected a whole number from 1"),
        ("top_k: 25", "top_k: 2.5", "top_k is 2.5; expected int"),
        ("top_k: 25", "topk: 25", "llm sampling has 'topk'; expected only top_p"),
        ("ras_sampling", "nucleus_sampling", "it is ras_sampling"),
        ("inference_cfg_rate: 0.7", "inference_cfg_rate: .nan", "cfg_rate is nan"),
        ("inference_cfg_rate: 0.7", "inference_cfg_rate: true", "cfg_rate is True; expected float"),
        ("inference_cfg_rate: 0.7", "solver: rk4", "solver is 'rk4'; expected one of euler"),
        ("rate: 24000", "workbench: {options: {steps: 5}}\nrate: 24000", "workbench options has 'steps'"),
        ("rate: 24000", "workbench: {options: {top_p: 1}}\nrate: 24000", "expected it in llm sampling"),
        ("rate: 24000", "workbench: {options: {seed: [1]}}\nrate: 24000", "seed is a list of 1"),
        ("rate: 24000", "workbench: {options: {max_tokens: true}}\nrate: 24000", r"expected int \| None"),
        ("rate: 24000", "workbench: {options: 3}\nrate: 24000", "workbench options holds 3"),
        ("rate: 24000", "workbench: {option: {}}\nrate: 24000", "workbench has 'option'"),
    ],
)  # fmt: skip
def test_options_are_read_from_their_places(parse, old, new, expected):
    assert old in UPSTREAM
    tree = parse(UPSTREAM.replace(old, new, 1))
    if isinstance(expected, Options):
        assert options_from_yaml(tree) == expected
        return
    with pytest.raises(WorkbenchError, match=expected):
        config_from_yaml(tree, QWEN)
        options_from_yaml(tree)


def test_wrong_numbers_in_the_qwen_config_are_refused(parse):
    tree = parse(UPSTREAM)
    for change in ({"num_attention_heads": 13}, {"hidden_size": "896"}, {"rope_scaling": {"factor": 2}}):
        with pytest.raises(WorkbenchError, match=r"config\.json"):
            config_from_yaml(tree, QWEN | change)
    moved = {k: v for k, v in QWEN.items() if k != "rope_theta"} | {"rope_parameters": {"rope_theta": 1e4}}
    assert config_from_yaml(tree, moved).lm.rope_theta == 1e4


def test_plain_yaml_agrees_with_the_written_numbers():
    loaded = yaml.load(config_to_yaml(SMALL).replace("!", "# !"), Loader=yaml.SafeLoader)
    assert loaded["sample_rate"] == 16_000


@settings(
    max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, len(UPSTREAM) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_bytes_only_raise_workbench_errors(tmp_path, changes):
    data = bytearray(UPSTREAM.encode())
    for place, byte in changes:
        data[place] = byte
    path = tmp_path / "cosyvoice3.yaml"
    path.write_bytes(data)
    with contextlib.suppress(WorkbenchError):
        tree = read(path)
        config_from_yaml(tree, QWEN)
        options_from_yaml(tree)


@pytest.mark.parametrize("escape", [r"\U00110000", r"\UFFFFFFFF"])
def test_an_escape_that_names_no_character_is_refused(tmp_path, escape):
    path = tmp_path / "cosyvoice3.yaml"
    path.write_text(f'rate: 24000\na: "{escape}"\n')
    with pytest.raises(WorkbenchError, match=r"line 2.*names no character"):
        read(path)


def test_a_reference_beside_many_digits_is_read_in_linear_time(tmp_path):
    path = tmp_path / "cosyvoice3.yaml"
    path.write_text(f"rate: 24000\na: !ref <rate>{'1' * 150}x\nb: !ref <rate> * 1.5e1\n")
    assert read(path) == {"rate": 24000, "a": f"24000{'1' * 150}x", "b": 360000.0}


def test_numbers_in_base_60_are_text(tmp_path):
    path = tmp_path / "cosyvoice3.yaml"
    long = ":".join("1" * 100_000)
    path.write_text(f"a: 1:30\nb: 1:1.5\nc: {long}\n")
    assert read(path) == {"a": "1:30", "b": "1:1.5", "c": long}
