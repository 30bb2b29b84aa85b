"""The LM against upstream's parity file: steps, cache, precisions, invalid ids, and known faults."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.speech.models.common import forced, tokens_of
from workbench.errors import WorkbenchError
from workbench.speech.config import LMConfig, Options
from workbench.speech.models import lm as module
from workbench.speech.models.lm import LM, KVCache
from workbench.speech.models.sampling import Sampler

pytestmark = pytest.mark.usefixtures("no_grad")

ATOL = 1e-4
seeded = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="the stored draws come from torch's generator with MKL"
)


def close(found, golden, atol=ATOL):
    torch.testing.assert_close(found, golden, atol=atol, rtol=0)


def with_ratios(model, shortest, longest):
    other = copy.copy(model)
    other.config = replace(model.config, min_token_text_ratio=shortest, max_token_text_ratio=longest)
    return other


# Against upstream


def test_special_ids_are_upstreams(lm_golden, lm_config):
    stated = lm_golden.info["config"]
    assert (lm_config.sos, lm_config.eos, lm_config.task_id, lm_config.fill) == tuple(
        stated[name] for name in ("sos", "eos", "task_id", "fill")
    )
    assert LMConfig().n_ids == 6761 and LMConfig().head_dim == 64


def test_input_equals_upstream(lm_model, lm_golden, text, prompt_text, prompt_speech):
    speech = torch.cat((prompt_speech, lm_golden.data["in.forced"][:-1]))
    close(lm_model.embed(torch.cat((prompt_text, text)), speech), lm_golden.data["lm_input"], 0)


def test_hidden_states_and_logits_of_the_full_forward(lm_model, lm_golden):
    hidden = lm_model.qwen(lm_golden.data["lm_input"])
    close(hidden, lm_golden.data["hidden_last"])
    golden = lm_golden.data["teacher.logp"]
    close(lm_model.logp(hidden)[0, -len(golden) :], golden)


def test_teacher_forced_steps(lm_model, lm_golden, text, prompt_text, prompt_speech):
    given = lm_golden.data["in.forced"].tolist()
    steps = list(lm_model.steps(text, prompt_text, prompt_speech, forced(given, lm_model.config.eos)))
    assert tokens_of(steps) == given
    assert [s.index for s in steps] == list(range(12))
    close(torch.stack([s.logp for s in steps]), lm_golden.data["teacher.logp"])


def test_teacher_forced_steps_without_prompt(lm_model, lm_golden, text, prompt_text):
    given, none = lm_golden.data["in.forced"].tolist(), torch.zeros(0, dtype=torch.int32)
    steps = list(lm_model.steps(torch.cat((prompt_text, text)), none, none, forced(given, 999)))
    close(torch.stack([s.logp for s in steps])[:4], lm_golden.data["teacher_noprompt.logp"])


def test_greedy_tokens_are_upstreams(lm_model, lm_golden, text, prompt_text, prompt_speech):
    calls = []

    def likeliest(scores, history, too_early):
        scores = scores.clone()
        if too_early:
            scores[lm_model.config.sos] = -torch.inf
        calls.append(too_early)
        return int(scores.argmax())

    found = tokens_of(lm_model.steps(text, prompt_text, prompt_speech, likeliest))
    stated = lm_golden.info["results"]["greedy"]
    assert found == lm_golden.data["greedy.tokens"].tolist() == stated["tokens"]
    assert len(calls) == stated["steps"] and all(calls)  # it stopped before the shortest length


RATIOS = {"ras": (2, 20), "ras_min0": (0, 6), "ras_short": (1, 3)}


@seeded
@pytest.mark.parametrize("name", RATIOS)
def test_sampled_tokens_are_upstreams(lm_model, lm_config, lm_golden, text, prompt_text, prompt_speech, name):
    stated = lm_golden.info["results"][name]
    shortest, longest = RATIOS[name]
    assert (stated["min_len"], stated["max_len"]) == (shortest * len(text), longest * len(text))
    early = []
    sampler = Sampler(Options(seed=stated["seed"]), lm_config)

    def sample(scores, history, too_early):
        early.append(too_early)
        return sampler(scores, history, too_early)

    model = with_ratios(lm_model, shortest, longest)
    found = tokens_of(model.steps(text, prompt_text, prompt_speech, sample))
    assert found == lm_golden.data[f"{name}.tokens"].tolist() == stated["tokens"]
    assert len(early) == stated["steps"]
    assert sum(early) == stated["min_len"] and early == sorted(early, reverse=True)


@seeded
def test_speech_may_end_before_the_shortest_length(
    lm_model, lm_config, lm_golden, text, prompt_text, prompt_speech
):
    stated = lm_golden.info["results"]["ras_early_stop"]

    def run(**changed):
        sampler = Sampler(Options(seed=stated["seed"], **changed), lm_config)
        return tokens_of(lm_model.steps(text, prompt_text, prompt_speech, sampler))

    assert run() == stated["tokens"]
    assert len(run()) < stated["min_len"]
    assert len(run(mask_stop_ids=True)) >= stated["min_len"]


@seeded
def test_max_tokens_is_a_second_limit(lm_model, lm_config, lm_golden, text, prompt_text, prompt_speech):
    stated = lm_golden.info["results"]["ras"]

    def run(max_tokens, model=lm_model):
        sampler = Sampler(Options(seed=stated["seed"]), lm_config)
        return tokens_of(model.steps(text, prompt_text, prompt_speech, sampler, max_tokens))

    assert run(27) == stated["tokens"][:27]
    assert run(0) == []
    assert run(10_000) == stated["tokens"]
    assert len(run(50, with_ratios(lm_model, 1, 3))) == 27  # the nearer bound counts


# The cache


def test_cached_decoding_is_the_full_forward(lm_model, lm_golden):
    embedded = lm_golden.data["lm_input"]
    full = lm_model.qwen(embedded)
    cache, found = KVCache(lm_model.config.num_hidden_layers), []
    assert len(cache) == 0
    for start, stop in ((0, 11), (11, 12), (12, 17), (17, 18), (18, 35)):
        found.append(lm_model.qwen(embedded[:, start:stop], cache))
        assert len(cache) == stop
    close(torch.cat(found, dim=1), full, 2e-5)


def test_decoding_one_position_at_a_time_is_the_full_forward(lm_model, lm_golden):
    embedded = lm_golden.data["lm_input"]
    cache = KVCache(lm_model.config.num_hidden_layers)
    found = torch.stack([lm_model.decode(embedded[:, i : i + 1], cache) for i in range(embedded.shape[1])])
    close(found, lm_model.logp(lm_model.qwen(embedded))[0], 2e-5)


def test_attention_is_causal(lm_model, lm_golden):
    embedded = lm_golden.data["lm_input"].clone()
    before = lm_model.qwen(embedded)[:, :20]
    embedded[:, 20:] = 1.0
    close(lm_model.qwen(embedded)[:, :20], before, 1e-6)


def test_runs_share_nothing(lm_model, lm_golden, text, prompt_text, prompt_speech):
    given = lm_golden.data["in.forced"].tolist()
    one, two = (lm_model.steps(text, prompt_text, prompt_speech, forced(given, 999)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.logp, b.logp)


# Precision


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-4), (torch.float16, 0.1), (torch.bfloat16, 0.8)]
)
def test_other_precisions_stay_near_float32(
    lm_model, lm_golden, text, prompt_text, prompt_speech, dtype, atol
):
    model = copy.deepcopy(lm_model).to(dtype)
    given = lm_golden.data["in.forced"].tolist()
    logp = torch.stack([s.logp for s in model.steps(text, prompt_text, prompt_speech, forced(given, 999))])
    assert logp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(logp.float(), lm_golden.data["teacher.logp"], atol)
    close(logp.double().exp().sum(-1), torch.ones(12, dtype=torch.float64), 1e-5)


# Weights and wrong input


def test_head_is_tied(lm_model):
    assert lm_model.llm.model.lm_head.weight is lm_model.qwen.embed_tokens.weight
    assert copy.deepcopy(lm_model).llm.model.lm_head.weight is not lm_model.qwen.embed_tokens.weight


def test_default_sizes_are_the_released_ones():
    with torch.device("meta"):
        model = LM(LMConfig())
    assert len(model.state_dict()) == 293
    assert sum(p.numel() for p in model.parameters()) == 506_148_480


def test_text_token_outside_the_vocabulary(lm_model, prompt_speech):
    with pytest.raises(WorkbenchError, match=r"text tokens 3\.\.512 found.*0\.\.511"):
        lm_model.embed(torch.tensor([3, 512]), prompt_speech)


@pytest.mark.parametrize("token", [729, 5000])
def test_prompt_token_outside_the_codebook(lm_model, text, token):
    with pytest.raises(WorkbenchError, match=rf"prompt speech tokens 0\.\.{token} found.*0\.\.728"):
        lm_model.embed(text, torch.tensor([0, token]))


def test_negative_ids_raise(lm_model, text, prompt_speech):
    with pytest.raises(WorkbenchError, match=r"text tokens -1\.\.3 found"):
        lm_model.embed(torch.tensor([3, -1]), prompt_speech)
    with pytest.raises(WorkbenchError, match=r"prompt speech tokens -2\.\.0 found"):
        lm_model.embed(text, torch.tensor([0, -2]))


def test_empty_text_gives_no_tokens(lm_model):
    none = torch.zeros(0, dtype=torch.long)
    assert list(lm_model.steps(none, none, none, forced([1], 730))) == []
    assert lm_model.embed(none, none).shape == (1, 2, 128)


@pytest.mark.parametrize("stop", [729, 730, 731, 732, 928])
def test_every_id_above_the_codebook_stops(lm_model, text, prompt_text, prompt_speech, stop):
    assert tokens_of(lm_model.steps(text, prompt_text, prompt_speech, forced([5, 6, stop, 7], 7))) == [5, 6]


# Deliberate faults move the output


def interleaved_rope(m, model):
    def rotate(x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    m.setattr(module, "rotate_half", rotate)


def positions_from_zero(m, model):
    right = module.Qwen2.rope
    m.setattr(module.Qwen2, "rope", lambda self, start, stop, like: right(self, 0, stop - start, like))


def no_final_norm(m, model):
    m.setattr(model.qwen.norm, "forward", lambda x: x)


def theta(m, model):
    model.qwen.config = replace(model.qwen.config, rope_theta=1e4)


def heads_tiled(m, model):
    m.setattr(
        torch.Tensor,
        "repeat_interleave",
        lambda x, n, dim: x.repeat(*(n if i == dim else 1 for i in range(x.ndim))),
    )


@pytest.mark.parametrize("fault", [interleaved_rope, positions_from_zero, no_final_norm, theta, heads_tiled])
def test_faults_show(lm_model, lm_golden, text, prompt_text, prompt_speech, fault):
    model, given = copy.deepcopy(lm_model), lm_golden.data["in.forced"].tolist()
    with pytest.MonkeyPatch.context() as m:
        fault(m, model)
        logp = torch.stack(
            [s.logp for s in model.steps(text, prompt_text, prompt_speech, forced(given, 999))]
        )
    assert float((logp - lm_golden.data["teacher.logp"]).abs().max()) > 10 * ATOL
