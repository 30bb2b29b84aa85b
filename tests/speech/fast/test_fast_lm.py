"""The fast LM on the CPU against `LM`, and its sampler against upstream's parity file."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.paths import ASSETS
from tests.speech.fast.common import CPU_GRAPHS, SILENT_TOKENS, assert_near, needs_mkl
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.fast.lm import CHUNK_TOKENS, FastLM
from workbench.speech.fast.lm_torch import MIN_POSITIONS
from workbench.speech.fast.sampling import DeviceSampler
from workbench.speech.models.sampling import Sampler

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(scope="module")
def fast_lm(lm_model):
    return FastLM.consume(copy.deepcopy(lm_model), SILENT_TOKENS, CPU_GRAPHS)


@pytest.fixture(scope="module")
def utts(lm_golden):
    """Stand-ins for utterances of three lengths, with the fields that the LM reads."""
    data = lm_golden.data
    text, prompt_text = (
        torch.where(data[k][0] == 151_646, 511, data[k][0]) for k in ("in.text", "in.prompt_text")
    )
    speech = data["in.prompt_speech_token"][0]
    return [
        SimpleNamespace(text_token=text, prompt_text_token=prompt_text, lm_prompt_token=speech),
        SimpleNamespace(text_token=text[:-1], prompt_text_token=prompt_text, lm_prompt_token=speech[:5]),
        SimpleNamespace(text_token=text, prompt_text_token=prompt_text[:3], lm_prompt_token=speech[:0]),
    ]


def eager_steps(lm, utt, o):
    sampler = Sampler(o, lm.config, SILENT_TOKENS)
    inputs = (utt.text_token, utt.prompt_text_token, utt.lm_prompt_token)
    return list(lm.steps(*inputs, sampler, o.max_tokens))


def steps_of_rows(fast_lm, utts, options):
    rows = [[] for _ in utts]
    for row, step in fast_lm.steps(utts, options):
        rows[row].append(step)
    return rows


RULES = {
    "upstream's": {},
    "top_k": {"repetition_fallback": "top_k", "tau_r": 0.05},
    "no window": {"win_size": 0, "max_tokens": 40},
    "long window, silences repeat": {"win_size": 30, "silent_tokens_repeat": False},
    "stops masked": {"mask_stop_ids": True, "max_tokens": 2 * CHUNK_TOKENS},
    "the likeliest alone": {"top_k": 1, "tau_r": 2.0, "max_tokens": 11},
}


@needs_mkl
@pytest.mark.parametrize("rule", RULES)
def test_a_seed_draws_the_eager_tokens(fast_lm, lm_model, utts, rule):
    options = [Options(**({"max_tokens": 90} | RULES[rule])).but(seed=seed) for seed in (3, 4, 5)]
    options[1] = options[1].but(max_tokens=7)
    for utt, o, found in zip(utts, options, steps_of_rows(fast_lm, utts, options), strict=True):
        expected = eager_steps(lm_model, utt, o)
        assert [(s.index, s.token) for s in found] == [(s.index, s.token) for s in expected]
        assert_near(torch.stack([s.logp for s in found]), torch.stack([s.logp for s in expected]), 1e-4)


@needs_mkl
@pytest.mark.slow
def test_a_run_may_outgrow_its_first_graph(fast_lm, lm_model, utts):
    """Attention reads a power of two of positions; a run that has more goes on in the next graph."""
    o = Options(max_tokens=MIN_POSITIONS + 20, seed=1, mask_stop_ids=True)
    long = SimpleNamespace(**(vars(utts[0]) | {"text_token": utts[0].text_token.repeat(40)}))
    [found] = steps_of_rows(fast_lm, [long], [o])
    assert [s.token for s in found] == [s.token for s in eager_steps(lm_model, long, o)]
    assert len(found) > MIN_POSITIONS


@needs_mkl
def test_interleaved_runs_do_not_share_a_decoder(fast_lm, lm_model, utts):
    options = [Options(seed=seed, max_tokens=40) for seed in (1, 2)]
    loops = [fast_lm.steps(utts[:1], [o]) for o in options]
    found = [[], []]
    for _ in range(20):
        for loop, tokens in zip(loops, found, strict=True):
            tokens.append(next(loop)[1].token)
    for o, tokens in zip(options, found, strict=True):
        assert tokens == [s.token for s in eager_steps(lm_model, utts[0], o)][:20]


def test_nan_raises(lm_model, utts):
    broken = copy.deepcopy(lm_model)
    broken.llm_decoder.weight.data[5] = torch.nan
    with pytest.raises(WorkbenchError, match="NaN"):
        steps_of_rows(FastLM.consume(broken, SILENT_TOKENS, CPU_GRAPHS), utts[:1], [Options()])


GOLDEN = json.loads((ASSETS / "ras_sampling.json").read_text())


@needs_mkl
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_device_sampler_equals_upstream(case):
    scores = torch.tensor([-torch.inf if s is None else s for s in case["scores"]])
    config = dataclasses.replace(wb.Config().lm, speech_token_size=len(scores) - 200)
    runs, params = case["runs"], case["params"]
    sampler = DeviceSampler(Options(**params), config, (), len(runs), 1, torch.device("cpu"))
    sampler.begin([Options(**params).but(seed=run["seed"]) for run in runs])
    sampler.refill([0] * len(runs), 1)
    history = torch.tensor(case["history"][-params["win_size"] :], dtype=torch.long)
    recent = sampler.state.recent_tokens
    recent[:, recent.shape[1] - len(history) :] = history
    logp = scores.log_softmax(0).repeat(len(runs), 1)
    token, _ = sampler.pick(logp, torch.zeros(len(runs), dtype=torch.bool))
    assert token.tolist() == [run["chosen"] for run in runs]
