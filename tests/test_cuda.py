"""The same numbers on a GPU: parity fixtures, and the bundled voice against the CPU."""

import copy

import pytest
import torch

from workbench import Checkpoint, Options, Pipeline
from workbench.speech.flow import t_span

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("no_grad"),
]
CUDA = torch.device("cuda")


def near(found, expected, tolerance):
    assert (found.cpu().double() - expected.double()).abs().max() <= tolerance


def test_flow_equals_upstream(flow_model, flow_golden):
    flow, d = copy.deepcopy(flow_model).to(CUDA), flow_golden.data
    c = flow.condition(
        d["in.token"][0].to(CUDA),
        d["in.prompt_token"][0].to(CUDA),
        d["in.prompt_feat"].transpose(1, 2).to(CUDA),
        d["in.embedding"][0].to(CUDA),
    )
    near(c.mu, d["offline_final.mu"], 1e-5)
    noise = d["rand_noise_first400"][..., : c.mu.shape[-1]].to(CUDA)
    steps = list(flow.steps(c, noise))
    near(torch.cat([s.velocity.cond for s in steps]), d["offline_final.v_cond"], 5e-4)
    near(torch.cat([s.velocity.uncond for s in steps]), d["offline_final.v_uncond"], 5e-4)
    near(steps[-1].x_next, d["offline_final.feat_full"], 2e-4)
    near(t_span(10, "cosine"), d["offline_final.t_span"], 1e-6)


def test_vocoder_equals_upstream(hift_model, hift_golden):
    hift, d = copy.deepcopy(hift_model).to(CUDA), hift_golden.data
    mel, noise = d["in.mel"].to(CUDA), d["buf.sine_noise_f16"].float().to(CUDA)
    sound = hift(mel, noise)
    near(sound.f0, d["final.f0_float64"], 1e-3)
    near(sound.source, d["final.source"], 2e-3)
    near(sound.wav, d["final.wav"], 5e-3)
    near(hift(mel, noise, source=d["final.source"].to(CUDA)).wav, d["final.wav"], 5e-5)


def test_lm_equals_upstream(lm_model, lm_golden):
    lm, d = copy.deepcopy(lm_model).to(CUDA), lm_golden.data
    text, prompt_text = (
        torch.where(d[k][0] == 151_646, 511, d[k][0]).to(CUDA) for k in ("in.text", "in.prompt_text")
    )
    forced = iter(d["in.forced"].tolist())
    steps = lm.steps(
        text, prompt_text, d["in.prompt_speech_token"][0].to(CUDA), lambda *args: next(forced, lm.config.eos)
    )
    near(torch.stack([s.logp for s in steps]), d["teacher.logp"], 1e-4)


def test_voice_sounds_the_same():
    voice = Checkpoint.load("data/voices/tiny")
    cpu, gpu = (Pipeline(voice, device, progress=False) for device in ("cpu", "cuda"))
    utt = cpu.prepare("Eight months to Mars.", "data/prompts/kumo_0.flac")
    options = voice.options.but(seed=7)
    token = cpu.speech_token(utt, options)
    assert torch.equal(token, gpu.speech_token(utt, options))
    mel = cpu.mel(utt, token, options)
    near(gpu.mel(utt, token, options), mel, 5e-3)
    ours, theirs = cpu.vocode(mel, options), gpu.vocode(mel, options)
    near(theirs.f0, ours.f0, 1e-3)
    error = (theirs.wav.cpu() - ours.wav).square().mean().sqrt()
    assert error < 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs(dtype):
    voice = Checkpoint.load("data/voices/tiny")
    pipe = Pipeline(voice, "cuda", progress=False)
    utt = pipe.prepare("It is late.", "data/prompts/kumo_0.flac")
    options = Options(lm_dtype=dtype, flow_dtype=dtype, hift_dtype=dtype, max_tokens=20, n_timesteps=3)
    assert pipe.synthesise(utt, options=options).wav.isfinite().all()
