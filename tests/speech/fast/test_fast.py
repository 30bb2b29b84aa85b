"""Computing "exact": the eager stages' numbers, to rounding; and many runs at once."""

import copy
import dataclasses
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.paths import ASSETS
from workbench.errors import WorkbenchError
from workbench.speech import batch
from workbench.speech.config import Options
from workbench.speech.fast import flow as fast_flow_module
from workbench.speech.fast.cuda_graphs import Graphs
from workbench.speech.fast.flow import BUCKET, FastFlow
from workbench.speech.fast.fuse import join_rows
from workbench.speech.fast.hift import FastHiFT, _PhasedConv1d, _ProductConv1d
from workbench.speech.fast.lm import CHUNK, FastLM
from workbench.speech.fast.lm_torch import LEAST_POSITIONS
from workbench.speech.fast.sampling import DeviceSampler
from workbench.speech.fast.tf32x3 import SplitLinear, split, splitting_pays
from workbench.speech.models.hift import CausalConv1d, HiFT, UpsamplingConv1d
from workbench.speech.models.numerics import ProductConv1d, exact_float32, fast_float32
from workbench.speech.models.sampling import Sampler

pytestmark = pytest.mark.usefixtures("no_grad")

GRAPHS = Graphs(torch.device("cpu"), exact_float32)
SILENT = tuple(range(1, 40))
seeded = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="the draws are one stream in torch's generator with MKL"
)


def near(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance


# The flow


@pytest.fixture(scope="module")
def fast_flow(flow_model):
    return FastFlow(flow_model, GRAPHS)


@pytest.fixture(scope="module")
def told(flow_model, flow_golden):
    """The fixture's condition and noise, and a shorter one's."""
    data = flow_golden.data
    with torch.no_grad():
        cs = [
            flow_model.condition(
                data["in.token"][0, :n],
                data["in.prompt_token"][0],
                data["in.prompt_feat"].transpose(1, 2),
                data["in.embedding"][0],
            )
            for n in (None, 7)
        ]
    return cs, [data["rand_noise_first400"][..., : c.mu.shape[-1]] for c in cs]


@pytest.mark.parametrize("case", ["offline_final", "streaming_final"])
def test_flow_is_upstreams(fast_flow, told, flow_golden, case):
    (c, _), (noise, _) = told
    steps = [s for [s] in fast_flow.steps([c], [noise], [Options()], streaming=case.startswith("streaming"))]
    data = flow_golden.data
    near(steps[-1].x_next[..., c.prompt_frames :], data[f"{case}.feat"], 2e-4)
    if case == "offline_final":
        near(torch.cat([s.velocity.cond for s in steps]), data[f"{case}.v_cond"], 5e-4)
        near(torch.cat([s.velocity.uncond for s in steps]), data[f"{case}.v_uncond"], 5e-4)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_any_length_and_guidance_solve_together(fast_flow, flow_model, told, solver, streaming):
    cs, noise = told
    assert cs[0].mu.shape[-1] % BUCKET and cs[0].mu.shape[-1] != cs[1].mu.shape[-1]
    options = [
        Options(n_timesteps=3, solver=solver, cfg_rate=rate, temperature=heat)
        for rate, heat in ((0.7, 1.0), (0.0, 0.5), (2.0, 1.0))
    ]
    rows = [0, 1, 0]
    batch = fast_flow.steps([cs[i] for i in rows], [noise[i] for i in rows], options, streaming)
    batch = list(zip(*batch, strict=True))
    assert len(batch) == 3
    for i, o, found in zip(rows, options, batch, strict=True):
        for a, b in zip(found, flow_model.steps(cs[i], noise[i], o, streaming), strict=True):
            assert (a.index, a.t, a.dt, a.t_next) == (b.index, b.t, b.dt, b.t_next)
            for x, y in zip((a.x, *a.velocity, a.x_next), (b.x, *b.velocity, b.x_next), strict=True):
                near(x, y, 3e-5)


def test_rows_of_one_length_need_no_mask(fast_flow, flow_model, told, monkeypatch):
    """Nor frames that are no multiple of anything."""
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(*args, attn_mask=None):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask)

    (c, other), (noise, shorter) = told
    assert c.mu.shape[-1] % BUCKET
    options = [Options(n_timesteps=2, cfg_rate=rate) for rate in (0.7, 0.1)]
    right = [list(flow_model.steps(c, noise, o)) for o in options]
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        alike = list(zip(*fast_flow.steps([c, c], [noise, noise], options), strict=True))
        assert masks and all(mask is None for mask in masks)
        masks.clear()
        mixed = list(zip(*fast_flow.steps([c, other], [noise, shorter], options), strict=True))
        assert masks and all(mask.shape[-1] % BUCKET == 0 for mask in masks)
    for found, expected in ((alike[0], right[0]), (alike[1], right[1]), (mixed[0], right[0])):
        for a, b in zip(found, expected, strict=True):
            near(a.x_next, b.x_next, 3e-5)


def test_flow_starts_where_it_is_told(fast_flow, flow_model, told):
    (c, _), (noise, _) = told
    whole = [s for [s] in fast_flow.steps([c], [noise], [Options()])]
    late = [s for [s] in fast_flow.steps([c], [whole[6].x], [Options()], start=6)]
    assert [s.index for s in late] == [6, 7, 8, 9] and torch.equal(late[-1].x_next, whole[-1].x_next)


def test_steps_stay_when_the_next_are_taken(fast_flow, told):
    """A graph's tensors are written over; what was handed out must not be."""
    (c, _), (noise, _) = told
    steps, copies = [], []
    for [step] in fast_flow.steps([c], [noise], [Options(n_timesteps=4)]):
        steps.append(step)
        copies.append([x.clone() for x in (step.x, *step.velocity, step.x_next)])
    for step, kept in zip(steps, copies, strict=True):
        found = (step.x, *step.velocity, step.x_next)
        assert all(torch.equal(x, y) for x, y in zip(found, kept, strict=True))
    assert all(torch.equal(a.x_next, b.x) for a, b in pairwise(steps))


def test_two_who_solve_in_turns_do_not_meet(fast_flow, told):
    (c, _), (noise, _) = told
    options = [Options(n_timesteps=3, cfg_rate=rate) for rate in (0.1, 1.5)]
    alone = [[s.x_next for [s] in fast_flow.steps([c], [noise], [o])] for o in options]
    loops = [fast_flow.steps([c], [noise], [o]) for o in options]
    for step in range(3):
        for loop, right in zip(loops, alone, strict=True):
            assert torch.equal(next(loop)[0].x_next, right[step])


def test_flow_of_split_products_is_upstreams(flow_model, told, flow_golden, monkeypatch):
    """Laid out for tensor cores; here the products are float32's."""
    monkeypatch.setattr(fast_flow_module, "splitting_pays", lambda device, dtype: True)
    (c, _), (noise, _) = told
    taken = copy.deepcopy(flow_model)
    steps = [s for [s] in FastFlow(taken, GRAPHS).steps([c], [noise], [Options()])]
    assert not any(len(block.attn.to_q.weight) for block in taken.decoder.estimator.transformer_blocks)
    near(torch.cat([s.velocity.cond for s in steps]), flow_golden.data["offline_final.v_cond"], 5e-4)
    near(torch.cat([s.velocity.uncond for s in steps]), flow_golden.data["offline_final.v_uncond"], 5e-4)


# The vocoder


@pytest.fixture(scope="module")
def fast_hift(hift_model, hift_golden):
    own = HiFT(hift_model.config)
    own.load_state_dict(hift_model.state_dict())
    own.eval().requires_grad_(False).f0_predictor.double()
    noise = hift_golden.data["buf.sine_noise_f16"].float()
    return FastHiFT(own, lambda n: noise[:, :n], GRAPHS)


def test_vocoder_is_upstreams(fast_hift, hift_golden):
    data = hift_golden.data
    [sound] = fast_hift([data["in.mel"]])
    near(sound.f0, data["final.f0_float64"], 1e-3)
    near(sound.source, data["final.source"], 2e-3)
    near(sound.wav, data["final.wav"], 5e-3)


@pytest.mark.parametrize("finalize", [True, False])
def test_mels_of_any_length_sound_together(fast_hift, hift_model, hift_golden, finalize):
    mel, noise = hift_golden.data["in.mel"], hift_golden.data["buf.sine_noise_f16"].float()
    mels = [mel, mel[..., :9], mel[..., 3:33]]
    for given, found in zip(mels, fast_hift(mels, finalize), strict=True):
        right = hift_model(given, noise, finalize)
        for name, tolerance in zip(right._fields, (1e-9, 1e-6, 1e-3, 1e-4, 2e-5), strict=True):
            near(getattr(found, name), getattr(right, name), tolerance)


@pytest.mark.parametrize(("kernel", "rate"), [(16, 8), (11, 5), (7, 3), (5, 1), (3, 4)])
def test_upsampling_by_phases(kernel, rate):
    conv = UpsamplingConv1d(6, 4, kernel, rate).double()
    x = torch.randn(2, 6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(kernel))
    near(_PhasedConv1d(conv)(x), conv(x), 1e-12)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_convolution_as_a_product(side, padded):
    conv = CausalConv1d(6, 4, 3, side=side).double()
    x = torch.randn(2, 6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near(_ProductConv1d(conv)(x, padded), conv(x, padded), 1e-12)


def test_vocoder_refuses_what_the_eager_one_does(fast_hift):
    with pytest.raises(WorkbenchError, match="NaN"):
        fast_hift([torch.zeros(1, 80, 20), torch.full((1, 80, 20), torch.nan)])


# The LM


@pytest.fixture(scope="module")
def fast_lm(lm_model):
    return FastLM(lm_model, SILENT, GRAPHS)


@pytest.fixture(scope="module")
def said(lm_golden):
    """Utterances of three lengths, as far as the LM reads them."""
    data = lm_golden.data
    text, before = (
        torch.where(data[k][0] == 151_646, 511, data[k][0]) for k in ("in.text", "in.prompt_text")
    )
    speech = data["in.prompt_speech_token"][0]
    read = ((text, before, speech), (text[:-1], before, speech[:5]), (text, before[:3], speech[:0]))
    names = ("text_token", "prompt_text_token", "lm_prompt_token")
    return [SimpleNamespace(**dict(zip(names, parts, strict=True))) for parts in read]


def eager(lm, utt, o):
    sampler = Sampler(o, lm.config, SILENT)
    inputs = (utt.text_token, utt.prompt_text_token, utt.lm_prompt_token)
    return list(lm.steps(*inputs, sampler, o.max_tokens))


def together(lm, utts, options):
    rows = [[] for _ in utts]
    for row, step in lm.steps(utts, options):
        rows[row].append(step)
    return rows


RULES = {
    "upstream's": {},
    "top_k": {"repetition_fallback": "top_k", "tau_r": 0.05},
    "no window": {"win_size": 0, "max_tokens": 40},
    "long window, silences repeat": {"win_size": 30, "silent_tokens_repeat": False},
    "stops masked": {"mask_stop_ids": True, "max_tokens": 2 * CHUNK},
    "the likeliest alone": {"top_k": 1, "tau_r": 2.0, "max_tokens": 11},
}


@seeded
@pytest.mark.parametrize("rule", RULES)
def test_a_seed_draws_the_same_tokens(fast_lm, lm_model, said, rule):
    options = [Options(**({"max_tokens": 90} | RULES[rule])).but(seed=seed) for seed in (3, 4, 5)]
    options[1] = options[1].but(max_tokens=7)
    for utt, o, found in zip(said, options, together(fast_lm, said, options), strict=True):
        right = eager(lm_model, utt, o)
        assert [(s.index, s.token) for s in found] == [(s.index, s.token) for s in right]
        near(torch.stack([s.logp for s in found]), torch.stack([s.logp for s in right]), 1e-4)


@seeded
def test_more_positions_than_the_first_graph_sees(fast_lm, lm_model, said):
    """The cache is looked at in powers of two; a run that outgrows one goes on in the next."""
    utt, o = said[0], Options(max_tokens=LEAST_POSITIONS + 20, seed=1, mask_stop_ids=True)
    long = SimpleNamespace(**(vars(utt) | {"text_token": utt.text_token.repeat(40)}))
    [found] = together(fast_lm, [long], [o])
    assert [s.token for s in found] == [s.token for s in eager(lm_model, long, o)]
    assert len(found) > LEAST_POSITIONS


@seeded
def test_a_decoder_is_not_shared_while_it_decodes(fast_lm, lm_model, said):
    options = [Options(seed=seed, max_tokens=40) for seed in (1, 2)]
    loops = [fast_lm.steps(said[:1], [o]) for o in options]
    found = [[], []]
    for _ in range(20):
        for loop, tokens in zip(loops, found, strict=True):
            tokens.append(next(loop)[1].token)
    for o, tokens in zip(options, found, strict=True):
        assert tokens == [s.token for s in eager(lm_model, said[0], o)][:20]


def test_nan_is_said(lm_model, said):
    broken = type(lm_model)(lm_model.config)
    broken.load_state_dict(lm_model.state_dict())
    broken.llm_decoder.weight.data[5] = torch.nan
    with pytest.raises(WorkbenchError, match="NaN"):
        together(FastLM(broken.eval(), SILENT, GRAPHS), said[:1], [Options()])


GOLDEN = json.loads((ASSETS / "ras_sampling.json").read_text())


@seeded
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_device_sampling_is_upstreams(case):
    scores = torch.tensor([-torch.inf if s is None else s for s in case["scores"]])
    config = dataclasses.replace(wb.Config().lm, speech_token_size=len(scores) - 200)
    runs, params = case["runs"], case["params"]
    sampler = DeviceSampler(Options(**params), config, (), len(runs), 1, torch.device("cpu"))
    sampler.begin([Options(**params).but(seed=run["seed"]) for run in runs])
    history = torch.tensor(case["history"][-params["win_size"] :], dtype=torch.long)
    recent = sampler.choice.recent
    recent[:, recent.shape[1] - len(history) :] = history
    token, _ = sampler.pick(
        scores.log_softmax(0).repeat(len(runs), 1), torch.zeros(len(runs), dtype=torch.bool)
    )
    assert token.tolist() == [run["chosen"] for run in runs]


# Whole runs


@pytest.fixture(scope="module")
def utts(pipe):
    return [
        pipe.prepare(text, "data/prompts/kumo_0.flac") for text in ("Hello there.", "Eight months to Mars.")
    ]


def alike(found, right, mel=5e-5, wav=2e-2):
    assert list(found) == list(right)
    assert torch.equal(found["lm/speech_token"], right["lm/speech_token"])
    near(found["flow/mel"], right["flow/mel"], mel)
    near(found["hift/f0"], right["hift/f0"], 1e-2)
    near(found.wav, right.wav, wav)


@seeded
def test_a_run_is_the_eager_one(pipe, utts):
    options = pipe.checkpoint.options.but(seed=7, n_timesteps=4)
    right = pipe.synthesise(utts[1], options=options, save=wb.EVERYTHING)
    exact = options.but(compute="exact")
    found = pipe.synthesise(utts[1], options=exact, save=wb.EVERYTHING)
    alike(found, right)
    for name in ("flow/x", "flow/velocity_cond", "flow/velocity_uncond", "flow/velocity"):
        near(found[name], right[name], 2e-4)
    near(found["lm/logp"], right["lm/logp"], 1e-4)
    assert torch.equal(pipe.synthesise(utts[1], options=exact).wav, found.wav)  # recorded or not
    for stage in ("lm", "flow", "flow/step/2", "hift"):
        assert torch.equal(pipe.replay(found, stage).wav, found.wav)


def test_fast_says_what_it_rounds(pipe, utts):
    options = pipe.checkpoint.options.but(compute="fast", n_timesteps=2, max_tokens=12)
    found = pipe.synthesise(utts[0], options=options, save=wb.EVERYTHING)
    assert found["flow/mu"].dtype == torch.bfloat16  # what the flow is given
    assert found["flow/x"].dtype == torch.float32  # the state is not rounded from step to step
    assert options.dtype_of("lm") == options.dtype_of("flow") == "bfloat16"
    assert options.but(flow_dtype="float16").dtype_of("flow") == "float16"
    assert options.but(compute="exact").dtype_of("lm") == "float32"


@seeded
def test_many_runs_are_the_single_ones(pipe, utts):
    own = pipe.checkpoint.options.but(compute="exact", seed=7, n_timesteps=3, max_tokens=30)
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
            right = pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
            alike(found, right)
            assert found.attrs["options"] == right.attrs["options"] and found.attrs["text"] == utt.text
            assert found.attrs.keys() - {"rows"} == right.attrs.keys()
    rows = [found.attrs["rows"] for found in rows[0]]
    # Two utterances: the LM reads two seeds of each; four variants share a grid; all that is exact sounds at once.
    assert rows[0] == {"lm": 4, "flow": 8, "hift": 10} and rows[3]["flow"] == 2
    assert rows[5] == {"lm": 1, "flow": 1, "hift": 1}


def test_more_rows_than_a_batch_holds(pipe, utts, monkeypatch):
    monkeypatch.setattr(batch, "MAX_ROWS", 4)
    own = pipe.checkpoint.options.but(compute="exact", n_timesteps=1, max_tokens=4)
    variants = [own.but(cfg_rate=i / 4) for i in range(6)]
    [row] = pipe.synthesise_many(utts[:1], variants)
    assert [trace.attrs["rows"]["flow"] for trace in row] == [4] * 4 + [2] * 2
    assert len({trace.wav.numpy().tobytes() for trace in row}) == len(row)


def test_a_conversion_brings_its_tokens(pipe):
    utt = pipe.convert("data/prompts/kumo_1.flac", "data/prompts/kumo_0.flac")
    options = pipe.checkpoint.options.but(compute="exact", n_timesteps=1)
    text = pipe.prepare("Hello there.", "data/prompts/kumo_0.flac")
    [found], [spoken] = pipe.synthesise_many([utt, text], [options])
    assert torch.equal(found["lm/speech_token"], utt.source_token)
    alike(found, pipe.synthesise(utt, options=options))
    assert torch.equal(spoken["lm/speech_token"], pipe.synthesise(text, options=options)["lm/speech_token"])


def test_streaming_computes_exact_too(pipe, utts):
    options = pipe.checkpoint.options.but(seed=7, n_timesteps=2)
    waves = [
        torch.cat([chunk.wav for chunk in wb.stream(pipe, utts[1], options.but(compute=way))])
        for way in ("eager", "exact")
    ]
    near(waves[1], waves[0], 2e-2)


# What they stand on


def test_joined_layers_go_on_working():
    layers = [torch.nn.Linear(5, n) for n in (3, 2, 4)]
    x = torch.randn(6, 5)
    before = [layer(x) for layer in layers]
    weight, bias = join_rows(*layers)
    assert torch.equal(torch.cat([layer(x) for layer in layers], dim=1), torch.cat(before, dim=1))
    near(torch.nn.functional.linear(x, weight, bias), torch.cat(before, dim=1), 1e-6)
    assert layers[1].weight.data_ptr() == weight[3].data_ptr()  # no second copy


def test_a_convolution_is_a_product():
    conv, x = ProductConv1d(5, 7, 4).double(), torch.randn(2, 5, 9, dtype=torch.float64)
    near(conv(x), torch.nn.functional.conv1d(x, conv.weight, conv.bias), 1e-12)


def test_split_products_are_float32s():
    x, weight, bias = torch.randn(9, 64), torch.randn(33, 64), torch.randn(33)
    x[0], x[1] = 1e30, 1e-30
    parts, linear = split(x), SplitLinear(weight, bias)
    low, high, again = parts.chunk(3, dim=1)
    assert torch.equal(low + high, x) and torch.equal(high, again)
    for part in (parts, linear.weight):  # eleven bits, and what is left of 24
        assert all((significant <= 13).all() for significant in map(bits, part.chunk(3, dim=1)))
    assert bits(high).max() == 11
    right = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    size = x.abs().double() @ weight.abs().double().T + bias.abs()
    assert ((linear(parts).double() - right).abs() / size).max() < 1e-6


def bits(x):
    """Significant bits of each number's mantissa."""
    whole = (x.double().frexp().mantissa * 2**24).long()
    return 24 - torch.stack([whole % 2**n == 0 for n in range(25)]).sum(0) + 1


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_split_products_hide_no_overflow(value):
    x = torch.randn(2, 8)
    x[1, 3] = value
    found = SplitLinear(torch.randn(5, 8), torch.zeros(5))(split(x))
    assert found[0].isfinite().all() and not found[1].isfinite().any()


def test_splitting_pays_on_some_gpus_alone(monkeypatch):
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert splitting_pays(gpu, torch.float32)
    assert not any(splitting_pays(gpu, dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16))
    assert not splitting_pays(torch.device("cpu"), torch.float32)
    capability = (8, 9)  # a consumer's: its TF32 is no faster than its float32
    assert not splitting_pays(gpu, torch.float32)


def test_a_graph_without_a_gpu_is_a_call():
    x = torch.zeros(3)
    graph = GRAPHS.capture(lambda: x.add_(1))
    assert x.sum() == 0 and graph().sum() == 3 and graph().sum() == 6


def test_arithmetic_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with fast_float32():
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        with exact_float32():
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
