"""The fast flow on the CPU, against upstream's parity file and against `Flow`."""

import copy
from itertools import pairwise

import pytest
import torch

from tests.speech.fast.common import CPU_GRAPHS, assert_near
from workbench.speech.config import Options
from workbench.speech.fast import dit as fast_dit
from workbench.speech.fast.flow import MASK_BUCKET, FastFlow

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(scope="module")
def fast_flow(flow_model):
    return FastFlow.consume(copy.deepcopy(flow_model), CPU_GRAPHS)


@pytest.fixture(scope="module")
def conditions(flow_model, flow_golden):
    """The parity file's condition, and one of only 7 tokens."""
    data = flow_golden.data
    with torch.no_grad():
        return [
            flow_model.condition(
                data["in.token"][0, :n_tokens],
                data["in.prompt_token"][0],
                data["in.prompt_feat"].transpose(1, 2),
                data["in.embedding"][0],
            )
            for n_tokens in (None, 7)
        ]


@pytest.fixture(scope="module")
def noises(conditions, flow_golden):
    """The noise of each condition."""
    return [flow_golden.data["rand_noise_first400"][..., : c.mu.shape[-1]] for c in conditions]


@pytest.mark.parametrize("case", ["offline_final", "streaming_final"])
def test_flow_equals_upstream(fast_flow, conditions, noises, flow_golden, case):
    c, noise = conditions[0], noises[0]
    streaming = case.startswith("streaming")
    steps = [step for [step] in fast_flow.steps([c], [noise], [Options()], streaming=streaming)]
    data = flow_golden.data
    assert_near(steps[-1].x_next[..., c.prompt_frames :], data[f"{case}.feat"], 2e-4)
    if case == "offline_final":
        assert_near(torch.cat([s.velocity.cond for s in steps]), data[f"{case}.v_cond"], 5e-4)
        assert_near(torch.cat([s.velocity.uncond for s in steps]), data[f"{case}.v_uncond"], 5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_any_length_and_guidance_solve_together(
    fast_flow, flow_model, conditions, noises, solver, streaming
):
    frames = [c.mu.shape[-1] for c in conditions]
    assert frames[0] % MASK_BUCKET and frames[0] != frames[1]
    options = [
        Options(n_timesteps=3, solver=solver, cfg_rate=rate, temperature=temperature)
        for rate, temperature in ((0.7, 1.0), (0.0, 0.5), (2.0, 1.0))
    ]
    rows = [0, 1, 0]
    batch = fast_flow.steps([conditions[i] for i in rows], [noises[i] for i in rows], options, streaming)
    steps_of_rows = list(zip(*batch, strict=True))
    assert len(steps_of_rows) == 3
    for i, o, found in zip(rows, options, steps_of_rows, strict=True):
        expected = flow_model.steps(conditions[i], noises[i], o, streaming)
        for a, b in zip(found, expected, strict=True):
            assert (a.index, a.t, a.dt, a.t_next) == (b.index, b.t, b.dt, b.t_next)
            for x, y in zip((a.x, *a.velocity, a.x_next), (b.x, *b.velocity, b.x_next), strict=True):
                assert_near(x, y, 3e-5)


def test_rows_of_one_length_need_no_mask(fast_flow, flow_model, conditions, noises, monkeypatch):
    """Such rows need no padding either, whatever their length."""
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(*args, attn_mask=None):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask)

    (c, other), (noise, shorter) = conditions, noises
    assert c.mu.shape[-1] % MASK_BUCKET
    options = [Options(n_timesteps=2, cfg_rate=rate) for rate in (0.7, 0.1)]
    expected = [list(flow_model.steps(c, noise, o)) for o in options]
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
        same = list(zip(*fast_flow.steps([c, c], [noise, noise], options), strict=True))
        assert masks and all(mask is None for mask in masks)
        masks.clear()
        mixed = list(zip(*fast_flow.steps([c, other], [noise, shorter], options), strict=True))
        assert masks and all(mask.shape[-1] % MASK_BUCKET == 0 for mask in masks)
    for found, right in ((same[0], expected[0]), (same[1], expected[1]), (mixed[0], expected[0])):
        for a, b in zip(found, right, strict=True):
            assert_near(a.x_next, b.x_next, 3e-5)


def test_flow_starts_at_any_knot(fast_flow, conditions, noises):
    c, noise = conditions[0], noises[0]
    full = [s for [s] in fast_flow.steps([c], [noise], [Options()])]
    late = [s for [s] in fast_flow.steps([c], [full[6].x], [Options()], start=6)]
    assert [s.index for s in late] == [6, 7, 8, 9] and torch.equal(late[-1].x_next, full[-1].x_next)


def test_yielded_steps_are_not_overwritten_by_later_ones(fast_flow, conditions, noises):
    steps, copies = [], []
    for [step] in fast_flow.steps(conditions[:1], noises[:1], [Options(n_timesteps=4)]):
        steps.append(step)
        copies.append([x.clone() for x in (step.x, *step.velocity, step.x_next)])
    for step, kept in zip(steps, copies, strict=True):
        found = (step.x, *step.velocity, step.x_next)
        assert all(torch.equal(x, y) for x, y in zip(found, kept, strict=True))
    assert all(torch.equal(a.x_next, b.x) for a, b in pairwise(steps))


def test_interleaved_solves_do_not_share_state(fast_flow, conditions, noises):
    options = [Options(n_timesteps=3, cfg_rate=rate) for rate in (0.1, 1.5)]
    alone = [[s.x_next for [s] in fast_flow.steps(conditions[:1], noises[:1], [o])] for o in options]
    loops = [fast_flow.steps(conditions[:1], noises[:1], [o]) for o in options]
    for step in range(3):
        for loop, expected in zip(loops, alone, strict=True):
            assert torch.equal(next(loop)[0].x_next, expected[step])


def test_flow_with_split_products_equals_upstream(flow_model, conditions, noises, flow_golden, monkeypatch):
    """The layout is that for tensor cores; a CPU computes its products in float32."""
    monkeypatch.setattr(fast_dit, "tf32x3_is_faster", lambda device, dtype: True)
    consumed = copy.deepcopy(flow_model)
    fast = FastFlow.consume(consumed, CPU_GRAPHS)
    steps = [s for [s] in fast.steps(conditions[:1], noises[:1], [Options()])]
    # The weights are in memory once: only split.
    assert not any(len(block.attn.to_q.weight) for block in consumed.decoder.estimator.transformer_blocks)
    data = flow_golden.data
    assert_near(torch.cat([s.velocity.cond for s in steps]), data["offline_final.v_cond"], 5e-4)
    assert_near(torch.cat([s.velocity.uncond for s in steps]), data["offline_final.v_uncond"], 5e-4)


def test_conditions_of_chunks_equal_those_of_the_flow(flow_model, fast_flow, flow_golden):
    """Chunks that are not the last share a graph; the next chunk must not change the one before."""
    data = flow_golden.data
    prompt = data["in.prompt_token"][0], data["in.prompt_feat"].transpose(1, 2), data["in.embedding"][0]
    token = data["in.token"][0]
    found, right = [], []
    for ids in (token, token.flip(0)):
        found.append(fast_flow.condition(ids, *prompt, finalize=False))
        right.append(flow_model.condition(ids, *prompt, finalize=False))
    for one, other in zip(found, right, strict=True):
        for name in ("mu", "spks", "cond"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert not torch.equal(found[0].mu, found[1].mu)
