"""Parity on a GPU: eager and fast stages against upstream's parity files, and the bundled voice against the CPU."""

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from tests.speech.fast.common import rebuilt_hift
from workbench import EVERYTHING, Checkpoint, Options, Pipeline
from workbench.speech.fast.cuda_graphs import CudaGraphPool
from workbench.speech.fast.dit import _rotate
from workbench.speech.fast.flow import FastFlow
from workbench.speech.fast.hift import FastHiFT
from workbench.speech.fast.lm import FastLM
from workbench.speech.fast.lm_torch import TorchDecodeStep, fuse_layers
from workbench.speech.fast.tf32x3 import Tf32x3Linear, split_tf32, tf32x3_is_faster
from workbench.speech.models.flow import t_span
from workbench.speech.models.hift_window import Past
from workbench.speech.models.numerics import exact_float32, fast_float32
from workbench.speech.models.sampling import Sampler
from workbench.speech.streaming.state import StreamState
from workbench.speech.streaming.stream import stream, stream_many

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("no_grad"),
]
CUDA = torch.device("cuda")


@pytest.fixture
def graphs():
    return CudaGraphPool(CUDA, exact_float32)


def assert_near(found, expected, tolerance):
    assert (found.cpu().double() - expected.double()).abs().max() <= tolerance


def condition_of(flow, d):
    """The parity file's condition."""
    return flow.condition(
        d["in.token"][0].to(CUDA),
        d["in.prompt_token"][0].to(CUDA),
        d["in.prompt_feat"].transpose(1, 2).to(CUDA),
        d["in.embedding"][0].to(CUDA),
    )


def test_flow_equals_upstream(flow_model, flow_golden):
    flow, d = copy.deepcopy(flow_model).to(CUDA), flow_golden.data
    c = condition_of(flow, d)
    assert_near(c.mu, d["offline_final.mu"], 1e-5)
    noise = d["rand_noise_first400"][..., : c.mu.shape[-1]].to(CUDA)
    steps = list(flow.steps(c, noise))
    assert_near(torch.cat([s.velocity.cond for s in steps]), d["offline_final.v_cond"], 5e-4)
    assert_near(torch.cat([s.velocity.uncond for s in steps]), d["offline_final.v_uncond"], 5e-4)
    assert_near(steps[-1].x_next, d["offline_final.feat_full"], 2e-4)
    assert_near(t_span(10, "cosine"), d["offline_final.t_span"], 1e-6)


def test_vocoder_equals_upstream(hift_model, hift_golden):
    hift, d = copy.deepcopy(hift_model).to(CUDA), hift_golden.data
    mel, noise = d["in.mel"].to(CUDA), d["buf.sine_noise_f16"].float().to(CUDA)
    sound = hift(mel, noise)
    assert_near(sound.f0, d["final.f0_float64"], 1e-3)
    assert_near(sound.source, d["final.source"], 2e-3)
    assert_near(sound.wav, d["final.wav"], 5e-3)
    assert_near(hift(mel, noise, source=d["final.source"].to(CUDA)).wav, d["final.wav"], 5e-5)


def test_lm_equals_upstream(lm_model, lm_golden):
    lm, d = copy.deepcopy(lm_model).to(CUDA), lm_golden.data
    text, prompt_text = (
        torch.where(d[k][0] == 151_646, 511, d[k][0]).to(CUDA) for k in ("in.text", "in.prompt_text")
    )
    forced = iter(d["in.forced"].tolist())
    steps = lm.steps(
        text, prompt_text, d["in.prompt_speech_token"][0].to(CUDA), lambda *args: next(forced, lm.config.eos)
    )
    assert_near(torch.stack([s.logp for s in steps]), d["teacher.logp"], 1e-4)


def test_voice_gives_the_cpus_tokens_mel_and_waveform():
    voice = Checkpoint.load("data/voices/tiny")
    cpu, gpu = (Pipeline(voice, device, progress=False) for device in ("cpu", "cuda"))
    utt = cpu.prepare("Eight months to Mars.", "data/prompts/kumo_0.flac")
    options = voice.options.but(seed=7)
    token = cpu.speech_token(utt, options)
    assert torch.equal(token, gpu.speech_token(utt, options))
    mel = cpu.mel(utt, token, options)
    assert_near(gpu.mel(utt, token, options), mel, 5e-3)
    ours, theirs = cpu.vocode(mel, options), gpu.vocode(mel, options)
    assert_near(theirs.f0, ours.f0, 1e-3)
    error = (theirs.wav.cpu() - ours.wav).square().mean().sqrt()
    assert error < 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_finite_waveforms(dtype):
    voice = Checkpoint.load("data/voices/tiny")
    pipe = Pipeline(voice, "cuda", progress=False)
    utt = pipe.prepare("It is late.", "data/prompts/kumo_0.flac")
    options = Options(lm_dtype=dtype, flow_dtype=dtype, hift_dtype=dtype, max_tokens=20, n_timesteps=3)
    assert pipe.synthesise(utt, options=options).wav.isfinite().all()


# The fast paths, with CUDA graphs


def test_fast_flow_equals_upstream(flow_model, flow_golden, graphs):
    flow, d = copy.deepcopy(flow_model).to(CUDA), flow_golden.data
    c = condition_of(flow, d)
    fast, noise = FastFlow.consume(flow, graphs), d["rand_noise_first400"][..., : c.mu.shape[-1]].to(CUDA)
    for _ in range(2):  # captured, then replayed
        steps = [step for [step] in fast.steps([c], [noise], [Options()])]
        assert_near(torch.cat([s.velocity.cond for s in steps]), d["offline_final.v_cond"], 5e-4)
        assert_near(torch.cat([s.velocity.uncond for s in steps]), d["offline_final.v_uncond"], 5e-4)
        assert_near(steps[-1].x_next, d["offline_final.feat_full"], 2e-4)
    assert all(torch.equal(a.x_next, b.x) for a, b in pairwise(steps))


def test_a_new_length_compiles_nothing(flow_model, flow_golden, graphs):
    from torch._dynamo.utils import counters  # seconds to import

    flow, d = copy.deepcopy(flow_model).to(CUDA), flow_golden.data
    c = condition_of(flow, d)
    fast, noise = FastFlow.consume(flow, graphs), d["rand_noise_first400"][..., : c.mu.shape[-1]].to(CUDA)
    frames = c.mu.shape[-1]
    assert flow.config.dit.dim == 4 * 64  # as many rows as channels must not be taken for them
    compiled = []
    for n, cut in ((1, frames), (1, frames - 3), (2, 64)):
        shorter = c._replace(mu=c.mu[..., :cut], cond=c.cond[..., :cut])
        list(fast.steps([shorter] * n, [noise[..., :cut]] * n, [Options(n_timesteps=1)] * n))
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0] and len(set(compiled)) == 1


def test_split_products_are_as_accurate_as_float32():
    if not tf32x3_is_faster(CUDA, torch.float32):
        pytest.skip("float32's own products are as fast here")
    x, weight, bias = (torch.randn(*size, device=CUDA) for size in ((700, 1024), (512, 1024), (512,)))
    right = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    with exact_float32():
        found = Tf32x3Linear(weight, bias)(split_tf32(x))
    with fast_float32():
        rounded = torch.nn.functional.linear(x, weight, bias)
    off, rounded = ((y - right).abs().max() / right.abs().max() for y in (found, rounded))
    assert off < 5e-6 < 1e-4 < rounded


def test_attention_kernel_is_as_accurate_as_float32():
    if not tf32x3_is_faster(CUDA, torch.float32):
        pytest.skip("torch's own is as fast here")
    attention = pytest.importorskip("workbench.speech.fast.kernels.attention")
    qkv = torch.randn(2, 674, 3, 16, 64, device=CUDA)
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
    with exact_float32():
        low, high, again = attention.attend(qkv).chunk(3, dim=1)
    assert torch.equal(high, again)
    assert_near(low + high, right.cpu(), 1e-5 * right.abs().max().cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_kernel_in_half_precision_hides_frames(dtype):
    """In chunks, with a shorter second row; torch's own attention in float64 is right."""
    attention = pytest.importorskip("workbench.speech.fast.kernels.attention")
    length, chunk = 674, 50
    qkv = torch.randn(2, length, 3, 16, 64, device=CUDA).to(dtype)
    chunk_end = (torch.arange(length) // chunk + 1) * chunk
    n_visible = torch.tensor([[length], [333]]).minimum(chunk_end).int().to(CUDA)
    is_visible = torch.arange(length, device=CUDA) < n_visible[..., None]
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=is_visible[:, None])
    right = right.transpose(1, 2).flatten(2).flatten(0, 1)
    assert_near(attention.attend(qkv, n_visible), right.cpu(), 0.01 * right.abs().max().cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grouped_convolution_kernel_in_half_precision(dtype):
    """As the flow's embedding of positions uses it: 16 groups, frames before channels in memory."""
    kernel = pytest.importorskip("workbench.speech.fast.kernels.conv")
    conv = torch.nn.Conv1d(1024, 1024, 31, groups=16, device=CUDA, dtype=dtype)
    x = torch.randn(2, 300, 1024, device=CUDA).to(dtype).transpose(1, 2)
    found, _ = kernel.convolve(x, kernel.pack_conv(conv, products=3))
    right = copy.deepcopy(conv).double()(torch.nn.functional.pad(x.double(), (30, 0)))
    assert found.stride() == x.stride()
    assert_near(found, right.cpu(), 0.01 * right.abs().max().cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_kernel_equals_torchs(dtype):
    kernels = pytest.importorskip("workbench.speech.fast.kernels.flow")
    qkv = torch.randn(700, 3, 16, 64, device=CUDA).to(dtype)
    found, right = qkv.clone(), qkv.clone()
    cos, sin = torch.randn(2, 700, 1, 32, device=CUDA)
    kernels.rotate(found[:, :2, 0], cos, sin)
    _rotate(right[:, :2, 0], cos, sin)
    assert_near(found, right.cpu(), 1e-6 if dtype == torch.float32 else 0.04)  # one bit of bfloat16 below 16
    assert torch.equal(found[:, :, 1:], qkv[:, :, 1:])


def test_fast_vocoder_equals_upstream(hift_model, hift_golden, graphs):
    d = hift_golden.data
    noise = d["buf.sine_noise_f16"].float()
    fast = FastHiFT.consume(rebuilt_hift(hift_model).to(CUDA), lambda n: noise[:, :n], graphs)
    for _ in range(2):
        sound, shorter = fast([d["in.mel"].to(CUDA), d["in.mel"][..., :20].to(CUDA)])
        assert_near(sound.f0, d["final.f0_float64"], 1e-3)
        assert_near(sound.source, d["final.source"], 2e-3)
        assert_near(sound.wav, d["final.wav"], 5e-3)
        assert shorter.wav.shape[-1] == 20 * 480


def test_fast_lm_draws_the_eager_tokens(lm_model, lm_golden, graphs):
    lm, d = copy.deepcopy(lm_model).to(CUDA), lm_golden.data
    text, before = (
        torch.where(d[k][0] == 151_646, 511, d[k][0]).to(CUDA) for k in ("in.text", "in.prompt_text")
    )
    speech = d["in.prompt_speech_token"][0].to(CUDA)
    utt = SimpleNamespace(text_token=text, prompt_text_token=before, lm_prompt_token=speech)
    fast = FastLM.consume(copy.deepcopy(lm), (1, 2, 3), graphs)
    options = [Options(seed=seed, max_tokens=100) for seed in range(3)]
    for batch in (options[:1], options, options[:1]):
        rows = [[] for _ in batch]
        for row, step in fast.steps([utt] * len(batch), batch):
            rows[row].append(step)
        for o, found in zip(batch, rows, strict=True):
            right = list(lm.steps(text, before, speech, Sampler(o, lm.config, (1, 2, 3)), o.max_tokens))
            assert [s.token for s in found] == [s.token for s in right]
            assert_near(
                torch.stack([s.logp for s in found]), torch.stack([s.logp for s in right]).cpu(), 1e-4
            )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_triton_decode_step_equals_torchs(lm_model, rows, dtype, tolerance):
    kernels = pytest.importorskip("workbench.speech.fast.kernels.lm")
    lm = copy.deepcopy(lm_model).to(CUDA, dtype)
    c, positions = lm.config, 700
    layers = fuse_layers(lm)
    kernels, steps = kernels.TritonDecodeStep(lm, layers, "tf32x3"), TorchDecodeStep(lm, layers)
    shape = (c.num_hidden_layers, 2, rows, c.num_key_value_heads, positions, c.head_dim)
    ours = torch.randn(shape, device=CUDA, dtype=dtype)
    theirs, (cos, sin) = ours.clone(), lm.qwen.rope(0, positions, ours)
    position = torch.arange(rows, device=CUDA) * 37 + 90
    x = torch.randn(rows, c.hidden_size, device=CUDA, dtype=dtype)
    with exact_float32():
        found, right = (
            step.logits(inputs, cache, cos, sin, position, positions).float().cpu()
            for step, inputs, cache in ((kernels, x.float(), ours), (steps, x, theirs))
        )
    assert_near(found, right, tolerance * right.abs().max())
    assert_near(ours.float(), theirs.float().cpu(), tolerance * theirs.abs().max().cpu())


@pytest.fixture(scope="module")
def gpu():
    return Pipeline(Checkpoint.load("data/voices/tiny"), "cuda", progress=False)


@pytest.fixture(scope="module")
def utt(gpu):
    return gpu.prepare("Eight months to Mars.", "data/prompts/kumo_0.flac")


def test_an_exact_run_equals_the_eager_one_to_rounding(gpu, utt):
    own = gpu.checkpoint.options.but(seed=7)
    right = gpu.synthesise(utt, options=own, save=EVERYTHING)
    found = gpu.synthesise(utt, options=own.but(compute="exact"), save=EVERYTHING)
    assert list(found) == list(right)
    assert torch.equal(found["lm/speech_token"], right["lm/speech_token"])
    assert_near(found["flow/x"], right["flow/x"], 1e-4)
    assert_near(found["flow/mel"], right["flow/mel"], 1e-4)
    assert (found.wav - right.wav).square().mean().sqrt() < 1e-3


@pytest.mark.parametrize("compute", ["exact", "fast"])
def test_recording_and_replay_change_nothing(gpu, utt, compute):
    own = gpu.checkpoint.options.but(seed=7, compute=compute)
    silent = gpu.synthesise(utt, options=own)
    recorded = gpu.synthesise(utt, options=own, save=EVERYTHING)
    assert torch.equal(silent.wav, recorded.wav)
    for stage in ("lm", "flow", "flow/step/6", "hift"):
        assert torch.equal(gpu.replay(recorded, stage).wav, recorded.wav)


@pytest.mark.parametrize("compute", ["exact", "fast"])
def test_batched_runs_equal_single_ones(gpu, utt, compute):
    other = gpu.prepare("Hello there.", "data/prompts/kumo_1.flac")
    own = gpu.checkpoint.options.but(compute=compute)
    variants = [own, own.but(cfg_rate=0.2), own.but(seed=3, noise_seed=1), own.but(solver="heun")]
    tolerance = {"exact": 1e-4, "fast": 0.5}[compute]
    for one, row in zip((utt, other), gpu.synthesise_many([utt, other], variants), strict=True):
        for options, found in zip(variants, row, strict=True):
            right = gpu.synthesise(one, options=options)
            if compute == "fast" and not torch.equal(found["lm/speech_token"], right["lm/speech_token"]):
                continue  # bfloat16 rounds in another way in a batch; a draw on the edge may differ
            assert_near(found["flow/mel"], right["flow/mel"], tolerance)


@pytest.mark.parametrize("compute", ["eager", "exact", "fast"])
def test_streams_of_windows_equal_streams_that_vocode_all_mel(compute, monkeypatch):
    pipe = Pipeline(Checkpoint.load("data/voices/tiny"), "cuda", progress=False)
    utt = pipe.convert("data/prompts/kumo_1.flac", "data/prompts/kumo_0.flac")
    options = pipe.checkpoint.options.but(compute=compute, n_timesteps=2)
    alone = torch.cat([chunk.wav for chunk in stream(pipe, utt, options)])
    together = {0: [], 1: []}
    for index, chunk in stream_many(pipe, [utt, utt], options):
        together[index].append(chunk.wav)
    monkeypatch.setattr(Past, "at", lambda self, frame, f0, config: self)
    expected = torch.cat([chunk.wav for chunk in stream(pipe, utt, options)])
    for found in (alone, *map(torch.cat, together.values())):
        assert found.shape == expected.shape
        assert (found - expected).square().mean().sqrt() < 2e-3


def test_a_longer_stream_captures_no_new_vocoder(monkeypatch):
    pipe = Pipeline(Checkpoint.load("data/voices/tiny"), "cuda", progress=False)
    utt = pipe.convert("data/prompts/kumo_1.flac", "data/prompts/kumo_0.flac")
    options = pipe.checkpoint.options.but(compute="exact", n_timesteps=1)
    captured = []
    for token in (utt.source_token, utt.source_token.repeat(4)):
        list(stream(pipe, replace(utt, source_token=token), options, StreamState(25, max_hop=25)))
        captured.append(pipe.models.fast_hift(options)._vocoder_graphs.cache_info().misses)
    assert captured[0] == captured[1]
