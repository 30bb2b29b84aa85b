"""Repetition-aware sampling against upstream's draws, and the guards beside it."""

import json
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paths import ASSETS
from tests.profiles import examples
from workbench.errors import WorkbenchError
from workbench.speech.config import SILENT_TOKENS, LMConfig, Options
from workbench.speech.models.sampling import Sampler, draw, nucleus, nucleus_in_top_k, shorten_silences

GOLDEN = json.loads((ASSETS / "ras_sampling.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
RUNS = [(case["name"], i) for case in GOLDEN["cases"] for i in range(len(case["runs"]))]
CONFIG = LMConfig(speech_token_size=729)
seeded = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="the stored draws come from torch's generator with MKL"
)


def scores_of(case):
    return torch.tensor([-torch.inf if s is None else s for s in case["scores"]])


def peaked(*hot, n=CONFIG.n_ids, height=40.0):
    scores = torch.zeros(n)
    scores[list(hot)] = height
    return scores


# Against upstream


def test_all_runs_are_there():
    assert len(RUNS) == 138


@pytest.mark.parametrize("name", CASES)
def test_nucleus_is_upstreams(name):
    case = CASES[name]
    ids, probs = nucleus(scores_of(case), case["params"]["top_p"], case["params"]["top_k"])
    assert ids.tolist() == case["nucleus_candidates"]
    torch.testing.assert_close(probs, torch.tensor(case["nucleus_probs"]), atol=1e-6, rtol=0)


@seeded
@pytest.mark.parametrize(("name", "i"), RUNS)
def test_repetition_aware_sampling_is_upstreams(name, i):
    case, run = CASES[name], CASES[name]["runs"][i]
    ids, probs = nucleus(scores_of(case), case["params"]["top_p"], case["params"]["top_k"])
    pick = int(ids[draw(probs, torch.Generator().manual_seed(run["seed"]))])
    assert pick == run["nucleus_pick"]
    scores = scores_of(case)
    sampler = Sampler(Options(seed=run["seed"], **case["params"]), CONFIG)
    assert sampler.repetition_aware(scores, case["history"]) == run["chosen"]
    masked = ((scores == -torch.inf) & (scores_of(case) != -torch.inf)).nonzero().flatten().tolist()
    assert masked == run["mutated_to_neg_inf"]
    assert bool(masked) == run["repetition_branch"]


@pytest.mark.parametrize(("name", "i"), RUNS)
def test_branch_follows_from_the_pick(name, i):
    case, run = CASES[name], CASES[name]["runs"][i]
    win, tau = case["params"]["win_size"], case["params"]["tau_r"]
    repeats = case["history"][-win:].count(run["nucleus_pick"])
    assert run["repetition_branch"] == (repeats >= win * tau)


@seeded
@pytest.mark.parametrize("seed", range(20))
def test_draw_is_multinomial(seed):
    probs = torch.rand(30, generator=torch.Generator().manual_seed(100 + seed))
    one, two = (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(5):
        assert draw(probs, one) == int(probs.multinomial(1, replacement=True, generator=two))


@pytest.mark.parametrize("row", GOLDEN["sampling_ids"], ids=str)
def test_ignoring_the_end_masks_sos_alone(row):
    scores = torch.zeros(CONFIG.n_ids)
    scores[5], scores[row["hot"]] = 5.0, 10.0
    likeliest = Options(top_k=1)
    assert Sampler(likeliest, CONFIG)(scores, [], row["ignore_eos"]) == row["chosen"]
    masked = Sampler(likeliest.but(mask_stop_ids=True), CONFIG)(scores, [], row["ignore_eos"])
    assert masked == (5 if row["ignore_eos"] else row["hot"])


@pytest.mark.parametrize("stop", [729, 730, 731, 732, 800, 928])
def test_mask_stop_ids_masks_every_one(stop):
    options, scores = Options(top_k=1, mask_stop_ids=True), peaked(stop)
    scores[7] = 1.0
    assert Sampler(options, CONFIG)(scores, [], too_early=True) == 7
    assert Sampler(options, CONFIG)(scores, [], too_early=False) == stop


def test_mask_holds_in_the_second_draw():
    scores = peaked(7, height=30.0)
    scores[CONFIG.speech_token_size :] = 29.0
    for seed in range(30):
        sampler = Sampler(Options(seed=seed, top_p=0.1, mask_stop_ids=True), CONFIG)
        assert sampler(scores, [7], too_early=True) < CONFIG.speech_token_size
        assert Sampler(Options(seed=seed, top_p=0.1), CONFIG)(scores, [7], too_early=True) != 7


# The nucleus


def scores_strategy(least=1, most=60):
    return st.lists(st.floats(-20, 20, width=32), min_size=least, max_size=most).map(torch.tensor)


@given(scores_strategy(), st.floats(0, 1), st.integers(1, 30))
@settings(max_examples=examples(200), deadline=None)
def test_nucleus_is_as_short_as_it_may_be(scores, top_p, top_k):
    ids, probs = nucleus(scores, top_p, top_k)
    everything = scores.softmax(0)
    assert 1 <= len(ids) <= top_k
    assert torch.equal(probs, everything[ids])
    assert (probs.diff() <= 0).all()
    if len(ids) < len(scores):
        rest = everything.clone()
        rest[ids] = 0
        assert rest.max() <= probs[-1]
    if len(ids) > 1:
        assert float(probs[:-1].sum()) < top_p + 1e-5
    if len(ids) < min(top_k, len(scores)):
        assert float(probs.sum()) > top_p - 1e-5


@pytest.mark.parametrize("seed", range(50))
def test_nucleus_is_the_loop_upstream_writes(seed):
    scores = 3 * torch.randn(80, generator=torch.Generator().manual_seed(seed))
    probs, order = scores.softmax(0).sort(descending=True, stable=True)
    taken, total = [], 0.0
    for p, i in zip(probs, order, strict=True):
        if total >= 0.8 or len(taken) >= 25:
            break
        total += p
        taken.append(int(i))
    assert nucleus(scores, 0.8, 25)[0].tolist() == taken


def test_entry_that_crosses_top_p_is_in():
    scores = torch.tensor([0.5, 0.4, 0.1]).log()
    assert nucleus(scores, 0.8, 25)[0].tolist() == [0, 1]
    assert nucleus(scores, 0.45, 25)[0].tolist() == [0]
    assert nucleus(scores, 0.0, 25)[0].tolist() == [0]
    assert nucleus(scores, 1.0, 2)[0].tolist() == [0, 1]


def drawn_by_running_sum(scores, top_p, top_k, u):
    """What TensorRT-LLM's loop takes for a random number `u` in (0, 1]."""
    probs, ids = scores.softmax(0).sort(descending=True, stable=True)
    left = u * top_p * float(probs[:top_k].sum())
    for rank in range(top_k):
        left -= float(probs[rank])
        if left <= 0:
            break
    return int(ids[rank])


@pytest.mark.parametrize(("top_p", "top_k"), [(0.95, 50), (0.5, 4), (1.0, 3), (0.01, 5), (0.0, 5), (0.9, 1)])
def test_the_nucleus_in_the_top_k_is_a_draw_below_a_share_of_their_sum(top_p, top_k):
    scores = 2 * torch.randn(80, generator=torch.Generator().manual_seed(3))
    ids, probs = nucleus_in_top_k(scores, top_p, top_k)
    grid = [(i + 0.5) / 20_000 for i in range(20_000)]
    drawn = torch.tensor([drawn_by_running_sum(scores, top_p, top_k, u) for u in grid])
    expected = torch.bincount(drawn, minlength=80) / len(grid)
    found = torch.zeros(80).index_put((ids,), probs / probs.sum() if probs.sum() else torch.ones(1))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_the_preset_of_the_server_takes_its_nucleus_from_the_top_k():
    scores = torch.cat((torch.tensor([0.3, 0.2, 0.1]), torch.full((40,), 0.01))).log()
    seeds = range(60)
    within = {
        Sampler(Options(top_k=3, top_p=0.5, top_p_of="top_k", seed=s), CONFIG)(scores, []) for s in seeds
    }
    of_all = {Sampler(Options(top_k=3, top_p=0.5, seed=s), CONFIG)(scores, []) for s in seeds}
    assert (within, of_all) == ({0}, {0, 1})
    assert Options().preset("trtllm-serve").top_p_of == "top_k"


def test_equal_scores_keep_the_order_of_their_ids():
    assert nucleus(torch.zeros(CONFIG.n_ids), 0.8, 25)[0].tolist() == list(range(25))
    scores = torch.zeros(CONFIG.n_ids)
    scores[::3] = 1.0
    assert nucleus(scores, 0.8, 25)[0].tolist() == list(range(0, 75, 3))


def test_draw_follows_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.1, 0.0, 0.3, 0.2])  # not renormalised; zero is never drawn
    counts = torch.bincount(torch.tensor([draw(probs, generator) for _ in range(6000)]), minlength=4)
    assert counts[1] == 0
    torch.testing.assert_close(counts / 6000, probs / probs.sum(), atol=0.03, rtol=0)


# The sampler


def test_scores_are_not_modified():
    scores = peaked(7)
    before = scores.clone()
    Sampler(Options(), CONFIG)(scores, [7], too_early=True)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_scores_of_other_precisions(dtype):
    scores = peaked(7).to(dtype)
    before = scores.clone()
    assert Sampler(Options(), CONFIG)(scores, []) == 7
    Sampler(Options(), CONFIG)(scores, [7], too_early=True)
    assert torch.equal(scores, before)


def test_a_seed_gives_the_same_tokens_whatever_else_draws():
    scores = torch.randn(CONFIG.n_ids, generator=torch.Generator().manual_seed(3))

    def run(seed, disturb=False):
        sampler, history = Sampler(Options(seed=seed), CONFIG), []
        for _ in range(20):
            if disturb:
                torch.rand(3)
            history.append(sampler(scores, history))
        return history

    assert run(1) == run(1, disturb=True)
    assert run(1) != run(2)


def test_one_repetition_draws_again():
    scores = peaked(7)
    assert Sampler(Options(), CONFIG)(scores, []) == 7
    assert all(Sampler(Options(seed=seed), CONFIG)(scores, [7]) != 7 for seed in range(20))


@pytest.mark.parametrize(
    ("win_size", "tau_r", "allowed"), [(10, 0.1, 0), (10, 0.25, 2), (10, 0.3, 2), (4, 1.0, 3)]
)
def test_repeats_allowed(win_size, tau_r, allowed):
    options, scores = Options(win_size=win_size, tau_r=tau_r), peaked(7)
    assert Sampler(options, CONFIG)(scores, [7] * allowed) == 7
    assert Sampler(options, CONFIG)(scores, [7] * (allowed + 1)) != 7


def test_window_ends():
    options, scores = Options(win_size=3), peaked(7)
    options = options.but(tau_r=1 / 3)
    assert Sampler(options, CONFIG)(scores, [7, 1, 2]) != 7
    assert Sampler(options, CONFIG)(scores, [7, 1, 2, 3]) == 7


# The guards


def test_silent_tokens_do_not_count_as_repetition():
    scores, history = peaked(28), [28] * 10
    guarded = Options(silent_tokens_repeat=False)
    assert Sampler(guarded, CONFIG, SILENT_TOKENS)(scores, history) == 28
    assert Sampler(Options(), CONFIG, SILENT_TOKENS)(scores, history) != 28
    assert Sampler(guarded, CONFIG)(scores, history) != 28  # 28 is not silent without the list
    assert Sampler(guarded, CONFIG, SILENT_TOKENS)(peaked(7), [7]) != 7  # others still repeat


def test_second_draw_stays_within_the_top_k():
    top_k, scores = 5, torch.linspace(3, 0, CONFIG.n_ids)
    scores[0] = 30.0
    full, guarded = (
        {
            Sampler(Options(seed=seed, top_k=top_k, repetition_fallback=fallback), CONFIG)(scores, [0])
            for seed in range(200)
        }
        for fallback in ("full", "top_k")
    )
    assert guarded == set(range(1, 1 + top_k))
    assert max(full) > 1 + top_k


@given(scores_strategy(least=8), st.integers(1, 6), st.integers(0, 2**31), st.data())
@settings(max_examples=examples(150), deadline=None)
def test_second_draw_stays_within_the_top_k_of_any_scores(scores, top_k, seed, data):
    history = list(range(len(scores)))
    config = LMConfig(speech_token_size=len(scores))
    options = Options(seed=seed, top_k=top_k, repetition_fallback="top_k", win_size=len(scores), tau_r=0.01)
    masked = scores.clone()
    token = Sampler(options, config).repetition_aware(masked, history)
    assert (masked == -torch.inf).sum() == 1  # everything repeats
    assert token in masked.topk(len(masked)).indices.tolist()
    assert masked[token] >= masked.topk(top_k).values[-1] - 1e-6
    assert masked[token] > -torch.inf


def test_unknown_fallback():
    with pytest.raises(WorkbenchError, match="repetition_fallback"):
        Options(repetition_fallback="none")


def runs_of(tokens, silent):
    """(is silent, length) of each run."""
    return [(is_silent, len(list(run))) for is_silent, run in groupby(tokens, lambda t: t in silent)]


@given(st.lists(st.sampled_from([1, 2, 28, 100, 200])), st.integers(0, 6))
@settings(max_examples=examples(300), deadline=None)
def test_silences_are_shortened_and_nothing_else(tokens, max_run):
    silent = {1, 2, 28}
    kept = list(shorten_silences(iter(tokens), silent, max_run))
    assert [t for t in kept if t not in silent] == [t for t in tokens if t not in silent]
    expected = []
    for is_silent, run in groupby(tokens, lambda t: t in silent):
        expected += list(run)[: max_run if is_silent else None]
    assert kept == expected
    assert all(length <= max_run for is_silent, length in runs_of(kept, silent) if is_silent)
    assert list(shorten_silences(kept, silent, max_run)) == kept


@given(st.lists(st.integers(0, 30)))
def test_silences_are_left_alone_when_asked(tokens):
    assert list(shorten_silences(tokens, SILENT_TOKENS, None)) == tokens
    assert list(shorten_silences(tokens, (), 0)) == tokens


def test_silences_of_different_tokens_are_one():
    tokens = [1, 2, 28, 29, 55, 248, 494, 9, 1]
    assert list(shorten_silences(tokens, SILENT_TOKENS, Options().max_silent_run)) == [1, 2, 28, 29, 55, 9, 1]


def test_silences_pass_as_they_come():
    given_out = []

    def source():
        for token in (5, 1, 1):
            given_out.append(token)
            yield token

    kept = shorten_silences(source(), SILENT_TOKENS, 5)
    assert next(kept) == 5 and given_out == [5]


@pytest.mark.parametrize("scores", [torch.full((8,), float("nan")), torch.tensor([0.0, float("nan"), 1.0])])
def test_nan_is_not_token_zero(scores):
    with pytest.raises(WorkbenchError, match="NaN at token 2"):
        Sampler(Options(), LMConfig(speech_token_size=2))(scores, [1, 1])


@pytest.mark.parametrize("top_p", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("n", [3, 10, 25, 50, 100])
def test_ties_at_the_edge_are_counted_as_upstream_does(n, top_p):
    """Upstream adds float32 one by one; where equal scores meet top_p, another order keeps another id."""
    ids, probs = nucleus(torch.zeros(n), top_p, n)
    total, expected = torch.zeros(()), 0
    while bool(total < top_p) and expected < n:
        total, expected = total + probs[0], expected + 1
    assert len(ids) == expected


# As servers sample


def given_to_the_draw(sampler, scores, history):
    """The scores that a sampler draws from, after its penalty and temperature."""
    seen = []
    sampler.repetition_aware = lambda scores, history: seen.append(scores) or 0
    sampler(scores, history)
    return seen[0]


def test_the_penalty_weakens_tokens_of_the_prompt_and_of_the_speech():
    logits = torch.tensor([2.0, -2.0, 1.0, 4.0, -1.0, 0.5])
    sampler = Sampler(Options().preset("trtllm-serve"), CONFIG, prompt_token=[3, 3])
    found = given_to_the_draw(sampler, logits, [0, 1, 1])
    expected = torch.tensor([2 / 1.1, -2 * 1.1, 1.0, 4 / 1.1, -1.0, 0.5]) / 0.8
    torch.testing.assert_close(found, expected)
    assert logits.tolist() == [2.0, -2.0, 1.0, 4.0, -1.0, 0.5]


def test_a_temperature_alone_leaves_the_order_and_sharpens():
    found = given_to_the_draw(Sampler(Options(token_temperature=0.5), CONFIG), torch.tensor([1.0, 2.0]), [0])
    assert found.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(("name", "top_k"), [("vllm", 25), ("trtllm-serve", 50)])
def test_presets_draw_repeated_tokens_again(name, top_k):
    options = Options().preset(name)
    sampler = Sampler(options, CONFIG)
    assert {sampler(peaked(5), [5] * 30) for _ in range(20)} == {5}
    flat = peaked(*range(100), height=4.0)
    assert len(nucleus(flat, options.top_p, options.top_k)[0]) == top_k


def test_vllm_forbids_every_stop_id_at_first():
    stop = CONFIG.speech_token_size + 7
    sampler = Sampler(Options().preset("vllm"), CONFIG)
    assert sampler(peaked(3, stop), [], too_early=True) == 3
    assert Sampler(Options().preset("trtllm-serve"), CONFIG)(peaked(stop), [], too_early=True) == stop


def test_unknown_presets_and_impossible_values_are_refused():
    with pytest.raises(WorkbenchError, match="preset is 'vlm'; expected one of vllm, trtllm-serve"):
        Options().preset("vlm")
    for wrong in ({"token_temperature": 0}, {"repetition_penalty": -1}):
        with pytest.raises(WorkbenchError, match="expected a number from"):
            Options(**wrong)


def test_a_penalty_is_given_logits_of_the_same_model(pipe, utt, monkeypatch):
    given = []
    original = Sampler.__call__

    def watched(self, scores, history, too_early=False):
        given.append(scores)
        return original(self, scores, history, too_early)

    monkeypatch.setattr(Sampler, "__call__", watched)
    options = pipe.checkpoint.options.preset("trtllm-serve").but(max_tokens=4)
    run = pipe.synthesise(utt, options=options, save="lm/logp", stop_after="lm")
    torch.testing.assert_close(torch.stack(given[:4]).log_softmax(-1), run["lm/logp"])
    assert given[0].logsumexp(-1).abs() > 0.1
    fast = pipe.synthesise(utt, options=options.but(compute="exact"), stop_after="lm")
    assert torch.equal(fast["lm/speech_token"], run["lm/speech_token"])
