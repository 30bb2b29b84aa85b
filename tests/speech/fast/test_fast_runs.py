"""Whole runs of the bundled voice computed "exact" and "fast", alone and in batches, against eager ones."""

import pytest
import torch

import workbench as wb
from tests.paths import ROOT
from tests.speech.fast.common import assert_near, needs_mkl
from workbench.speech import batch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_grad")]

PROMPT = ROOT / "data" / "prompts" / "kumo_0.flac"


@pytest.fixture(scope="module")
def utts(pipe):
    return [pipe.prepare(text, PROMPT) for text in ("Hello there.", "Eight months to Mars.")]


def assert_same_run(found, expected, mel=5e-5, wav=2e-2):
    """Assert that two traces hold the same fields, equal tokens, and near mels and waveforms."""
    assert list(found) == list(expected)
    assert torch.equal(found["lm/speech_token"], expected["lm/speech_token"])
    assert_near(found["flow/mel"], expected["flow/mel"], mel)
    assert_near(found["hift/f0"], expected["hift/f0"], 1e-2)
    assert_near(found.wav, expected.wav, wav)


@needs_mkl
def test_an_exact_run_equals_the_eager_one(pipe, utts):
    options = pipe.checkpoint.options.but(seed=7, n_timesteps=3)
    eager = pipe.synthesise(utts[0], options=options, save=wb.EVERYTHING)
    exact = options.but(compute="exact")
    found = pipe.synthesise(utts[0], options=exact, save=wb.EVERYTHING)
    assert_same_run(found, eager)
    for name in ("flow/x", "flow/velocity_cond", "flow/velocity_uncond", "flow/velocity"):
        assert_near(found[name], eager[name], 2e-4)
    assert_near(found["lm/logp"], eager["lm/logp"], 1e-4)
    assert torch.equal(pipe.synthesise(utts[0], options=exact).wav, found.wav)  # without recording
    for stage in ("lm", "flow", "flow/step/2", "hift"):
        assert torch.equal(pipe.replay(found, stage).wav, found.wav)


def test_fast_rounds_weights_but_not_the_state(pipe, utts):
    options = pipe.checkpoint.options.but(compute="fast", n_timesteps=1, max_tokens=4)
    found = pipe.synthesise(utts[0], options=options, save=wb.EVERYTHING)
    assert found["flow/mu"].dtype == torch.bfloat16  # what the flow is given
    assert found["flow/x"].dtype == torch.float32  # the state is not rounded from step to step
    assert options.dtype_of("lm") == options.dtype_of("flow") == "bfloat16"
    assert options.but(flow_dtype="float16").dtype_of("flow") == "float16"
    assert options.but(compute="exact").dtype_of("lm") == "float32"


@needs_mkl
def test_batched_runs_equal_single_ones(pipe, utts):
    own = pipe.checkpoint.options.but(compute="exact", seed=7, n_timesteps=2, max_tokens=12)
    variants = [
        own,
        own.but(cfg_rate=0.2),
        own.but(noise_seed=3, temperature=0.9),
        own.but(n_timesteps=2, solver="heun"),
        own.but(seed=8),
        own.but(compute="eager"),
    ]
    rows = pipe.synthesise_many(utts, variants, save=wb.EVERYTHING)
    assert [len(row) for row in rows] == [6, 6]
    for utt, row in zip(utts, rows, strict=True):
        for options, found in zip(variants, row, strict=True):
            eager = pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
            assert_same_run(found, eager)
            assert found.attrs["options"] == eager.attrs["options"] and found.attrs["text"] == utt.text
            assert found.attrs.keys() - {"rows"} == eager.attrs.keys()
    rows = [found.attrs["rows"] for found in rows[0]]
    # Two utterances: the LM reads two seeds of each; four variants share a grid; all that is exact sounds at once.
    assert rows[0] == {"lm": 4, "flow": 8, "hift": 10} and rows[3]["flow"] == 2
    assert rows[5] == {"lm": 1, "flow": 1, "hift": 1}


def test_rows_beyond_the_size_of_a_batch_go_into_the_next(pipe, utts, monkeypatch):
    monkeypatch.setattr(batch, "MAX_ROWS", 4)
    own = pipe.checkpoint.options.but(compute="exact", n_timesteps=1, max_tokens=4)
    variants = [own.but(cfg_rate=i / 4) for i in range(6)]
    [row] = pipe.synthesise_many(utts[:1], variants)
    assert [trace.attrs["rows"]["flow"] for trace in row] == [4] * 4 + [2] * 2
    assert len({trace.wav.numpy().tobytes() for trace in row}) == len(row)


def test_a_voice_conversion_keeps_its_source_tokens_in_a_batch(pipe):
    utt = pipe.convert(PROMPT.with_name("kumo_1.flac"), PROMPT)
    options = pipe.checkpoint.options.but(compute="exact", n_timesteps=1)
    text = pipe.prepare("Hello there.", PROMPT)
    [found], [spoken] = pipe.synthesise_many([utt, text], [options])
    assert torch.equal(found["lm/speech_token"], utt.source_token)
    assert_same_run(found, pipe.synthesise(utt, options=options))
    assert torch.equal(spoken["lm/speech_token"], pipe.synthesise(text, options=options)["lm/speech_token"])


def test_exact_streaming_equals_eager_streaming(pipe, utts):
    options = pipe.checkpoint.options.but(seed=7, n_timesteps=2)
    waves = [
        torch.cat([chunk.wav for chunk in wb.stream(pipe, utts[1], options.but(compute=way))])
        for way in ("eager", "exact")
    ]
    assert_near(waves[1], waves[0], 2e-2)


# Ownership: a fast path has models of its own


def weights_of(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_building_fast_paths_leaves_the_eager_models_as_they_are(voice, utts):
    """Neither their weights nor where these lie in memory may change, nor what the models compute."""
    pipe = wb.Pipeline(voice, progress=False)
    options = voice.options.but(seed=7, n_timesteps=2, max_tokens=10)
    before = pipe.synthesise(utts[0], options=options, save=wb.EVERYTHING)
    o = options
    models = {
        "lm": pipe.stage("lm", o.lm_dtype),
        "flow": pipe.stage("flow", o.flow_dtype),
        "hift": pipe.stage("hift", o.hift_dtype, o.f0_dtype, o.source_dtype),
    }
    modules = {stage: list(map(id, model.modules())) for stage, model in models.items()}
    places = {stage: [p.data_ptr() for p in model.parameters()] for stage, model in models.items()}
    weights = {stage: weights_of(model) for stage, model in models.items()}
    for compute in ("exact", "fast"):
        pipe.synthesise(utts[0], options=options.but(compute=compute))
    for stage, model in models.items():
        assert list(map(id, model.modules())) == modules[stage]
        assert [p.data_ptr() for p in model.parameters()] == places[stage]
        assert weights_of(model) == weights[stage]
    after = pipe.synthesise(utts[0], options=options, save=wb.EVERYTHING)
    assert all(torch.equal(after[name], before[name]) for name in before)
