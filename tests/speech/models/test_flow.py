"""The flow against upstream's parity file: conditions, steps, solvers, precisions, invalid input, known faults."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.models import flow as module
from workbench.speech.models.flow import t_span

pytestmark = pytest.mark.usefixtures("no_grad")

ATOL = 2e-4  # mel
V_ATOL = 5e-4  # velocity
# offline or streaming, all tokens or with the last three as context alone
CASES = {"offline_final": (False, True), "streaming_partial": (True, False), "streaming_final": (True, True)}


def close(found, golden, atol=ATOL):
    torch.testing.assert_close(found, golden, atol=atol, rtol=0)


def condition(model, data, finalize=True, n_tokens=None, **changed):
    args = {
        "token": data["in.token"][0, :n_tokens],
        "prompt_token": data["in.prompt_token"][0],
        "prompt_mel": data["in.prompt_feat"].transpose(1, 2),
        "spk_embedding": data["in.embedding"][0],
    }
    return model.condition(**(args | changed), finalize=finalize)


def solve(model, c, noise, options=Options(), streaming=False):
    return list(model.steps(c, noise[:, :, : c.mu.shape[-1]], options, streaming))


@pytest.fixture(scope="module")
def runs(flow_model, flow_golden):
    data, made = flow_golden.data, {}
    with torch.no_grad():
        for name, (streaming, finalize) in CASES.items():
            c = condition(flow_model, data, finalize)
            made[name] = c, solve(flow_model, c, data["rand_noise_first400"], streaming=streaming)
    return made


# Against upstream


@pytest.mark.parametrize("name", ["offline_final", "streaming_partial"])
def test_mu_equals_upstream(runs, flow_golden, name):
    close(runs[name][0].mu, flow_golden.data[f"{name}.mu"])


def test_estimator_is_given_the_condition_and_zeros(flow_model, flow_golden, runs):
    given = []
    estimator = flow_model.decoder.estimator
    handle = estimator.register_forward_hook(lambda m, args, out: given.append(args))
    try:
        c = runs["offline_final"][0]
        flow_model.velocity(
            flow_golden.data["rand_noise_first400"][:, :, :74], torch.tensor(0.5), c, 0.7, False
        )
    finally:
        handle.remove()
    x, mask, mu, t, spks, cond, streaming = given[0]
    close(spks, flow_golden.data["offline_final.spks_in"], atol=1e-5)
    close(cond, flow_golden.data["offline_final.cond_in"], atol=0)
    close(mu[:1], flow_golden.data["offline_final.mu"])
    assert torch.equal(x[0], x[1]) and mask is None and t.tolist() == [0.5, 0.5] and not streaming
    for y in (mu, spks, cond):  # the unconditional row
        assert not y[1].any()
    close(c.spks, flow_golden.data["offline_final.spks_in"][:1], atol=1e-5)
    close(c.cond, flow_golden.data["offline_final.cond_in"][:1], atol=0)
    assert c.prompt_frames == 26


def test_initial_state_is_the_noise_from_its_first_column(runs, flow_golden):
    data = flow_golden.data
    for name in CASES:
        x = runs[name][1][0].x
        assert torch.equal(x, data["rand_noise_first400"][:, :, : x.shape[-1]])
    assert torch.equal(runs["offline_final"][1][0].x[0], data["offline_final.x"][0])


def test_times_equal_upstream(runs, flow_golden):
    steps = runs["offline_final"][1]
    close(
        torch.stack([s.t for s in steps])[:, None].expand(-1, 2),
        flow_golden.data["offline_final.t"],
        atol=1e-6,
    )
    close(t_span(10, "cosine"), flow_golden.data["offline_final.t_span"], atol=1e-6)
    assert [s.index for s in steps] == list(range(10))


def test_every_offline_step_equals_upstream(runs, flow_golden):
    steps, data = runs["offline_final"][1], flow_golden.data
    close(torch.cat([s.x for s in steps]), data["offline_final.x"])
    close(torch.cat([s.velocity.cond for s in steps]), data["offline_final.v_cond"], V_ATOL)
    close(torch.cat([s.velocity.uncond for s in steps]), data["offline_final.v_uncond"], V_ATOL)


@pytest.mark.parametrize("step", [0, 9])
def test_streaming_steps_equal_upstream(runs, flow_golden, step):
    found, data = runs["streaming_partial"][1][step], flow_golden.data
    close(found.x[0], data[f"streaming_partial.step{step}.x"])
    close(found.velocity.cond[0], data[f"streaming_partial.step{step}.v_cond"], V_ATOL)
    close(found.velocity.uncond[0], data[f"streaming_partial.step{step}.v_uncond"], V_ATOL)


@pytest.mark.parametrize("name", CASES)
def test_mel_equals_upstream(runs, flow_golden, name):
    c, steps = runs[name]
    mel = steps[-1].x_next
    close(mel[:, :, c.prompt_frames :], flow_golden.data[f"{name}.feat"])
    if f"{name}.feat_full" in flow_golden.data:
        close(mel, flow_golden.data[f"{name}.feat_full"])


def test_each_step_starts_where_the_last_ended(runs):
    _, steps = runs["offline_final"]
    for before, after in pairwise(steps):
        assert torch.equal(before.x_next, after.x)
        assert torch.equal(before.t + before.dt, after.t)
    for s in steps:
        close(s.x_next, s.x + s.dt * s.velocity.guided, atol=0)
        close(s.velocity.guided, s.velocity.cond + 0.7 * (s.velocity.cond - s.velocity.uncond), atol=1e-5)


# Streaming


def test_offline_and_streaming_differ(runs):
    offline, streaming = (runs[name][1][-1].x_next for name in ("offline_final", "streaming_final"))
    assert (offline - streaming).abs().max() > 0.1


def test_frames_common_to_partial_and_final_have_the_same_mu(runs):
    partial, final = runs["streaming_partial"][0].mu, runs["streaming_final"][0].mu
    assert final.shape[-1] - partial.shape[-1] == 2 * 3
    close(partial, final[:, :, : partial.shape[-1]], atol=1e-6)


@pytest.mark.slow
def test_chunk_aligned_prefixes_reproduce_the_full_mel(flow_model, flow_golden, e2e_golden):
    data, noise = e2e_golden.data, flow_golden.data["rand_noise_first400"]
    prompt = data["in.prompt_token"].shape[1]

    def mel(n_tokens, finalize):
        c = condition(flow_model, data, finalize, n_tokens)
        return solve(flow_model, c, noise, streaming=True)[-1].x_next

    full = mel(None, True)
    lookahead = flow_model.config.pre_lookahead_len
    for emitted in (25 - prompt, 50 - prompt):  # prompt + emitted fills chunks of 25 tokens
        part = mel(emitted + lookahead, False)
        assert part.shape[-1] == 2 * (prompt + emitted)
        close(part, full[:, :, : part.shape[-1]], atol=2e-5)
    part = mel(38 - prompt + lookahead, False)  # half a chunk: its second half is of another pass
    close(part[:, :, :50], full[:, :, :50], atol=2e-5)
    assert (part[:, :, 50:] - full[:, :, 50:76]).abs().max() > 0.1


# Options


def test_cfg_rate_zero_is_the_conditional_branch(flow_model, flow_golden):
    c = condition(flow_model, flow_golden.data)
    steps = solve(
        flow_model, c, flow_golden.data["rand_noise_first400"], Options(n_timesteps=2, cfg_rate=0.0)
    )
    for s in steps:
        assert torch.equal(s.velocity.guided, s.velocity.cond)
        assert not torch.equal(s.velocity.cond, s.velocity.uncond)


def test_temperature_scales_the_noise(flow_model, flow_golden):
    c, noise = condition(flow_model, flow_golden.data), flow_golden.data["rand_noise_first400"]
    for temperature in (0.0, 0.5):
        x = next(flow_model.steps(c, noise[:, :, :74], Options(temperature=temperature))).x
        close(x, noise[:, :, :74] * temperature, atol=0)


def test_noise_is_not_changed(flow_model, flow_golden):
    c = condition(flow_model, flow_golden.data)
    noise = flow_golden.data["rand_noise_first400"][:, :, :74].clone()
    list(flow_model.steps(c, noise, Options(n_timesteps=2)))
    assert torch.equal(noise, flow_golden.data["rand_noise_first400"][:, :, :74])


# Precision


def test_float64_stays_near_float32(flow_model, flow_golden, runs):
    model, data = copy.deepcopy(flow_model).double(), flow_golden.data
    c = condition(model, data)
    steps = solve(model, c, data["rand_noise_first400"])
    assert c.mu.dtype == steps[-1].x_next.dtype == steps[0].t.dtype == torch.float64
    for one, two in zip(runs["offline_final"][1], steps, strict=True):
        close(two.x_next.float(), one.x_next, atol=1e-4)
    close(steps[-1].x_next[:, :, c.prompt_frames :].float(), data["offline_final.feat"])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
def test_half_precision_is_finite_and_near(flow_model, flow_golden, runs, dtype, error):
    model = copy.deepcopy(flow_model).to(dtype)
    steps = solve(model, condition(model, flow_golden.data), flow_golden.data["rand_noise_first400"])
    mel, golden = steps[-1].x_next, runs["offline_final"][1][-1].x_next
    assert mel.dtype == dtype and steps[0].t.dtype == torch.float32
    assert mel.isfinite().all()
    assert (mel.float() - golden).square().mean().sqrt() < error * golden.square().mean().sqrt()


# Invalid conditions


def test_negative_tokens_count_as_zero(flow_model, flow_golden):
    token = flow_golden.data["in.token"][0].clone()
    token[:2] = torch.tensor([-1, -7])
    zeroed = token.clamp(min=0)
    a, b = (condition(flow_model, flow_golden.data, token=t).mu for t in (token, zeroed))
    assert torch.equal(a, b)


@pytest.mark.parametrize("where", ["token", "prompt_token"])
def test_token_outside_the_vocabulary(flow_model, flow_golden, where):
    with pytest.raises(WorkbenchError, match=r"6561 found.*below 6561"):
        condition(flow_model, flow_golden.data, **{where: torch.tensor([3, 6561])})
    condition(flow_model, flow_golden.data, token=torch.tensor([3, 6560]))


@pytest.mark.parametrize(("n", "finalize"), [(0, True), (0, False), (3, False)])
def test_nothing_to_render_raises(flow_model, flow_golden, n, finalize):
    none, token = torch.zeros(0, dtype=torch.long), torch.arange(n)
    mel = torch.zeros(1, 80, 0)
    with pytest.raises(WorkbenchError, match="at least one"):
        condition(flow_model, flow_golden.data, finalize, token=token, prompt_token=none, prompt_mel=mel)


@pytest.mark.parametrize("finalize", [True, False])
def test_one_token_without_prompt_renders(flow_model, flow_golden, finalize):
    none = torch.zeros(0, dtype=torch.long)
    token = torch.arange(1 if finalize else 4)
    mel = torch.zeros(1, 80, 0)
    c = condition(flow_model, flow_golden.data, finalize, token=token, prompt_token=none, prompt_mel=mel)
    assert c.mu.shape == (1, 80, 2) and c.prompt_frames == 0 and not c.cond.any()
    assert solve(flow_model, c, torch.zeros(1, 80, 2))[-1].x_next.isfinite().all()


@pytest.mark.parametrize("frames", [74, 75, 200])
def test_prompt_longer_than_the_tokens_raises(flow_model, flow_golden, frames):
    with pytest.raises(WorkbenchError, match=rf"{frames} mel frames and the tokens make 74"):
        condition(flow_model, flow_golden.data, prompt_mel=torch.zeros(1, 80, frames))
    assert condition(flow_model, flow_golden.data, prompt_mel=torch.zeros(1, 80, 73)).prompt_frames == 73


# Deliberate faults: see test_dit.py


def pre_lookahead_slope(m, model):
    m.setattr(module.F, "leaky_relu", lambda x: torch.where(x > 0, x, 0.1 * x))


FAULTS = {
    "flow cfg rate 0": (None, Options(cfg_rate=0.0)),
    "flow linear t schedule": (None, Options(t_scheduler="linear")),
    "flow speaker embedding not L2 normalised": (
        lambda m, model: m.setattr(module.F, "normalize", lambda x, dim: x),
        Options(),
    ),
    "flow pre-lookahead leaky slope 0.1": (pre_lookahead_slope, Options()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_show(flow_model, flow_golden, sensitivity, monkeypatch, name):
    fault, options = FAULTS[name]
    if fault:
        fault(monkeypatch, flow_model)
    c = condition(flow_model, flow_golden.data)
    mel = solve(flow_model, c, flow_golden.data["rand_noise_first400"], options)[-1].x_next[
        :, :, c.prompt_frames :
    ]
    by = float((mel - flow_golden.data["offline_final.feat"]).abs().max())
    assert by > 2 * ATOL
    assert by == pytest.approx(sensitivity[name], rel=0.05)


def test_shifted_noise_shows(flow_model, flow_golden):
    c = condition(flow_model, flow_golden.data)
    shifted = flow_golden.data["rand_noise_first400"][:, :, 1:]  # counted from the wrong frame
    mel = solve(flow_model, c, shifted)[-1].x_next
    assert (mel - flow_golden.data["offline_final.feat_full"]).abs().max() > 1


def test_slope_of_the_pre_lookahead_is_pytorchs_default(flow_model):
    layer = flow_model.pre_lookahead_layer
    x = torch.randn(1, 5, 80, generator=torch.Generator().manual_seed(0))
    h = F.leaky_relu(layer.conv1(F.pad(x.transpose(1, 2), (0, 3))), 0.01)
    close(layer(x, True), layer.conv2(F.pad(h, (2, 0))).transpose(1, 2) + x, atol=1e-6)
