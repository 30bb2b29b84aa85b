"""The front end on tiny models: prompts, utterances in each mode, conversion, and unusable recordings."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.speech.frontend.tiny_bpe import tiny_bpe
from workbench.errors import WorkbenchError
from workbench.speech.config import Config
from workbench.speech.frontend.audio import log_mel, speaker_features, whisper_log_mel, write_wav
from workbench.speech.frontend.audio_input import check_recording
from workbench.speech.frontend.frontend import (
    Frontend,
    SpeakerEncoder,
    SpeechTokenizer,
    TextTokenizer,
)

SYSTEM = "You are a helpful assistant.<|endofprompt|>"
CONFIG = Config()


def save_model(path, nodes, inputs, output, constants):
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    result = helper.make_tensor_value_info(*output)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values, [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))


def save_speech_tokenizer(path):
    """A speech tokenizer that returns the loudest bin of every fourth frame."""
    nodes = [
        helper.make_node("Slice", ["feats", "start", "feats_length", "axis", "step"], ["some"]),
        helper.make_node("ArgMax", ["some"], ["tokens"], axis=1, keepdims=0),
    ]
    constants = {n: np.array([v], np.int32) for n, v in (("start", 0), ("axis", 2), ("step", 4))}
    inputs = [
        ("feats", TensorProto.FLOAT, [1, 128, "T"]),
        ("feats_length", TensorProto.INT32, [1]),
    ]
    save_model(path, nodes, inputs, ("tokens", TensorProto.INT64, None), constants)


def save_speaker_encoder(path, width=192):
    """A speaker encoder that multiplies the mean squares over time by a matrix."""
    nodes = [
        helper.make_node("Mul", ["input", "input"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["embedding"]),
    ]
    weight = np.random.default_rng(0).normal(size=(80, width)).astype(np.float32)
    inputs = [("input", TensorProto.FLOAT, [1, "T", 80])]
    save_model(path, nodes, inputs, ("embedding", TensorProto.FLOAT, [1, width]), {"weight": weight})
    return torch.from_numpy(weight)


def speech(seconds=2.0, rate=24_000):
    t = torch.arange(int(seconds * rate)) / rate
    return 0.3 * torch.sin(2 * torch.pi * (200 * t + 60 * torch.sin(3 * t)))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_speech_tokenizer(folder / "speech_tokenizer_v3.onnx")
    save_speaker_encoder(folder / "campplus.onnx")
    tiny_bpe(folder / "CosyVoice-BlankEN")
    write_wav(folder / "prompt.wav", speech(), 24_000)
    return folder


@pytest.fixture(scope="session")
def frontend(folder):
    return Frontend(
        TextTokenizer.load(folder / "CosyVoice-BlankEN"),
        SpeechTokenizer(folder / "speech_tokenizer_v3.onnx"),
        SpeakerEncoder(folder / "campplus.onnx"),
        CONFIG,
    )


@pytest.fixture(scope="session")
def prompt(frontend, folder):
    return frontend.prompt(folder / "prompt.wav", text="Hello there.")


def test_speech_tokenizer_is_given_whisper_features(frontend):
    wav = speech(1.0, 16_000)
    token = frontend.speech_tokenizer(wav)
    assert token.dtype == torch.long and token.shape == (25,)
    assert torch.equal(token, whisper_log_mel(wav)[0].argmax(dim=0)[::4])
    with pytest.raises(WorkbenchError, match="takes 30 s"):
        frontend.speech_tokenizer(torch.zeros(30 * 16_000 + 1))


def test_speaker_encoder_is_given_the_centred_filterbank(tmp_path):
    weight = save_speaker_encoder(tmp_path / "a.onnx")
    wav = speech(1.0, 16_000)
    found = SpeakerEncoder(tmp_path / "a.onnx", device="cuda")(wav)
    expected = speaker_features(wav)[0].square().mean(dim=0) @ weight
    assert found.shape == (192,)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_files_that_are_not_the_right_model_are_refused(tmp_path, folder):
    with pytest.raises(WorkbenchError, match=r"none\.onnx does not exist"):
        SpeechTokenizer(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(WorkbenchError, match=r"bad\.onnx is not a readable"):
        SpeakerEncoder(tmp_path / "bad.onnx")
    with pytest.raises(WorkbenchError, match="another model"):
        SpeechTokenizer(folder / "campplus.onnx")(speech(1.0, 16_000))


def test_prompt_has_two_frames_per_token(frontend, prompt):
    assert len(prompt.speech_token) == 50 and prompt.mel.shape == (1, 80, 100)
    assert prompt.spk_embedding.shape == (192,) and prompt.seconds == 2.0
    for n in (30_000, 30_001, 30_959, 31_440):
        odd = frontend.prompt(speech()[:n], sample_rate=24_000)
        assert odd.mel.shape[2] == 2 * len(odd.speech_token)
        assert torch.equal(odd.mel, log_mel(speech()[:n], CONFIG.mel)[:, :, : odd.mel.shape[2]])


def test_prompt_hash_is_of_the_samples(frontend):
    wav = speech()
    found = frontend.prompt(wav, sample_rate=24_000).sha256
    assert found == hashlib.sha256(wav.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_prompt_of_any_rate_and_stereo(frontend, rate):
    wav = speech(2.0, rate)
    prompt = frontend.prompt(torch.stack([wav, wav]), sample_rate=rate)
    assert prompt.mel.shape == (1, 80, 100) and prompt.seconds == 2.0


@pytest.mark.parametrize(
    ("wav", "rate", "message"),
    [
        (torch.zeros(0), 24_000, r"expected samples"),
        (torch.zeros(2, 3, 4), 24_000, r"shape \(2, 3, 4\)"),
        (torch.zeros(24_000), 24_000, "is silent"),
        (5e-4 * speech(), 24_000, "is silent"),
        (speech(0.49), 24_000, "lasts 0.49 s"),
        (speech(30.1), 24_000, "lasts 30.10 s"),
        (speech(1.0, 4_000), 4_000, "8000 Hz or more"),
        (speech(), None, "pass sample_rate"),
        (speech() * float("nan"), 24_000, "NaN"),
    ],
)
def test_unusable_recordings_are_refused(frontend, prompt, wav, rate, message):
    with pytest.raises(WorkbenchError, match=message):
        frontend.prompt(wav, sample_rate=rate)
    with pytest.raises(WorkbenchError, match=message.replace("prompt", "source")):
        frontend.conversion(wav, prompt, sample_rate=rate)


def test_errors_name_the_recording_file(frontend, tmp_path):
    write_wav(tmp_path / "short.wav", speech(0.2), 24_000)
    with pytest.raises(WorkbenchError, match=r"short\.wav lasts"):
        frontend.prompt(tmp_path / "short.wav")
    check_recording(speech(), 24_000)


def test_zero_shot_continues_the_prompt(frontend, prompt):
    u = frontend.utterance("Eight months to Mars", prompt)
    encode = frontend.tokenizer.encode
    assert u.text == "Eight months to Mars." and u.text_token.tolist() == encode(u.text)
    assert u.prompt_text_token.tolist() == encode(SYSTEM + "Hello there.")
    assert torch.equal(u.lm_prompt_token, prompt.speech_token)
    assert torch.equal(u.flow_prompt_token, prompt.speech_token)
    assert u.prompt_mel is prompt.mel and u.source_token is None and u.prompt is prompt


def test_cross_lingual_uses_the_voice_alone(frontend, prompt):
    u = frontend.utterance("Eight months.", replace(prompt, text=""), mode="cross-lingual")
    assert u.text == "Eight months."
    assert u.text_token.tolist() == frontend.tokenizer.encode(SYSTEM + "Eight months.")
    assert len(u.prompt_text_token) == len(u.lm_prompt_token) == 0
    assert torch.equal(u.flow_prompt_token, prompt.speech_token)
    own = frontend.utterance("Hm.<|endofprompt|>Eight 8", prompt, mode="cross-lingual")
    assert frontend.tokenizer.decode(own.text_token) == "Hm.<|endofprompt|>Eight 8"


@pytest.mark.parametrize(
    ("instruct", "read"),
    [
        ("Speak slowly.", "You are a helpful assistant. Speak slowly.<|endofprompt|>"),
        ("As upstream.<|endofprompt|>", "As upstream.<|endofprompt|>"),
    ],
)
def test_instruct_puts_the_instruction_before_the_text(frontend, prompt, instruct, read):
    u = frontend.utterance("Eight months.", prompt, mode="instruct", instruct=instruct)
    assert frontend.tokenizer.decode(u.prompt_text_token) == read
    assert u.text_token.tolist() == frontend.tokenizer.encode("Eight months.")
    assert len(u.lm_prompt_token) == 0 and len(u.flow_prompt_token) == 50


def test_every_mode_has_one_end_of_prompt(frontend, prompt):
    for mode in ("zero-shot", "cross-lingual", "instruct"):
        u = frontend.utterance("Hi.", prompt, mode=mode, instruct="Softly." if mode == "instruct" else None)
        both = torch.cat([u.prompt_text_token, u.text_token]).tolist()
        assert both.count(frontend.tokenizer.end_of_prompt) == 1


def test_conversion_uses_the_tokens_of_its_source(frontend, prompt):
    u = frontend.conversion(speech(3.0, 16_000), prompt, sample_rate=16_000)
    assert u.mode == "conversion" and u.source_token.shape == (75,)
    assert len(u.text_token) == len(u.prompt_text_token) == len(u.lm_prompt_token) == 0
    assert torch.equal(u.flow_prompt_token, prompt.speech_token)


def test_wrong_modes_and_missing_transcripts_are_refused(frontend, prompt):
    with pytest.raises(WorkbenchError, match="zero-shot, cross-lingual, instruct"):
        frontend.utterance("Hi.", prompt, mode="sing")
    with pytest.raises(WorkbenchError, match="cross-lingual"):
        frontend.utterance("Hi.", replace(prompt, text=""))
    with pytest.raises(WorkbenchError, match="instruct is None"):
        frontend.utterance("Hi.", prompt, mode="instruct")
    with pytest.raises(WorkbenchError, match="expected both or neither"):
        frontend.utterance("Hi.", prompt, instruct="Softly.")
    with pytest.raises(WorkbenchError, match="nothing to say"):
        frontend.utterances("😀", prompt)


def test_a_long_text_becomes_several_utterances(frontend, prompt):
    found = frontend.utterances("The quick brown fox jumps over the lazy dog. " * 20, prompt)
    assert len(found) > 1 and all(len(u.text_token) <= 80 for u in found)
    assert " ".join(u.text for u in found).count("dog.") == 20


def test_utterances_move_to_a_device_and_have_a_short_repr(frontend, prompt):
    u = frontend.utterance("Eight months.", prompt).to("meta")
    assert u.text_token.device.type == u.prompt.mel.device.type == "meta"
    assert repr(u) == f"Utterance('Eight months.', zero-shot, {len(u.text_token)} text tokens)"
    assert repr(prompt) == "Prompt(2.00 s, 50 tokens, 'Hello there.')"


def test_parts_of_different_checkpoints_are_refused(frontend, folder, prompt):
    small = replace(CONFIG, lm=replace(CONFIG.lm, vocab_size=100))
    parts = (frontend.tokenizer, frontend.speech_tokenizer, frontend.speaker_encoder)
    with pytest.raises(WorkbenchError, match="different checkpoints"):
        Frontend(*parts, small)
    few = Frontend(*parts, replace(CONFIG, flow=replace(CONFIG.flow, vocab_size=2)))
    with pytest.raises(WorkbenchError, match="another checkpoint"):
        few.prompt(folder / "prompt.wav")
    narrow = Frontend(*parts, replace(CONFIG, flow=replace(CONFIG.flow, spk_embed_dim=64)))
    with pytest.raises(WorkbenchError, match="expected 64"):
        narrow.prompt(folder / "prompt.wav")


@dataclass(frozen=True)
class LatinConfig(Config):
    scripts: tuple[str, ...] = ("LATIN",)


def test_text_in_a_script_that_the_voice_cannot_read_is_refused(frontend, prompt):
    latin = Frontend(frontend.tokenizer, frontend.speech_tokenizer, frontend.speaker_encoder, LatinConfig())
    assert latin.utterance("Hi.", prompt)
    with pytest.raises(WorkbenchError, match="CYRILLIC"):
        latin.utterance("Привет.", prompt)
