"""The time grid and the solvers of the flow, on ODEs with known solutions."""

import math

import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.speech.config import MAX_TIMESTEPS, SOLVERS, T_SCHEDULERS, Options
from workbench.speech.models import flow as module
from workbench.speech.models.flow import Condition, Velocity, t_span

pytestmark = pytest.mark.usefixtures("no_grad")


def close(found, golden, atol):
    torch.testing.assert_close(found, golden, atol=atol, rtol=0)


def solve(model, c, noise, options):
    return list(model.steps(c, noise[:, :, : c.mu.shape[-1]], options))


def test_cosine_grid():
    grid = t_span(10, "cosine", torch.float64)
    assert grid.tolist() == pytest.approx(
        [1 - math.cos(0.5 * math.pi * k / 10) for k in range(11)], abs=1e-15
    )
    widths = grid.diff()
    assert (widths.diff() > 0).all()
    assert float(widths[-1] / widths[0]) == pytest.approx(12.7, abs=0.1)


def test_linear_grid():
    assert t_span(4, "linear").tolist() == [0, 0.25, 0.5, 0.75, 1]


def toy_condition(frames=3, dtype=torch.float64):
    mu = torch.zeros(1, 80, frames, dtype=dtype)
    return Condition(mu, mu[:, :, 0], mu, 0)


def with_ode(model, monkeypatch, f):
    """Let the flow solve dx/dt = f(x, t) instead of asking its estimator."""
    times = []

    def velocity(x, t, c, cfg_rate, streaming, estimator):
        times.append(float(t))
        v = f(x, t)
        return Velocity(v, v, v)

    monkeypatch.setattr(model, "velocity", velocity)
    return times


@pytest.mark.parametrize("scheduler", T_SCHEDULERS)
@pytest.mark.parametrize("n", range(1, MAX_TIMESTEPS + 1))
def test_every_step_count_ends_at_one(flow_model, monkeypatch, n, scheduler):
    times = with_ode(flow_model, monkeypatch, lambda x, t: torch.ones_like(x))
    x0 = torch.randn(1, 80, 3, generator=torch.Generator().manual_seed(n))
    steps = solve(
        flow_model, toy_condition(dtype=torch.float32), x0, Options(n_timesteps=n, t_scheduler=scheduler)
    )
    assert len(steps) == len(times) == n
    assert float(steps[-1].t + steps[-1].dt) == pytest.approx(1, abs=1e-6)
    assert all(s.dt > 0 for s in steps)
    close(torch.stack([s.t for s in steps]), t_span(n, scheduler)[:-1], atol=1e-6)
    close(steps[-1].x_next, x0 + 1, atol=1e-5)


@pytest.mark.parametrize("n", [0, MAX_TIMESTEPS + 1, 2.5, True])
def test_step_counts_out_of_range_raise(n):
    with pytest.raises(WorkbenchError, match="n_timesteps"):
        Options(n_timesteps=n)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_second_order_solvers_are_exact_for_a_linear_velocity(flow_model, monkeypatch, solver):
    times = with_ode(flow_model, monkeypatch, lambda x, t: torch.full_like(x, 2) * t)
    x0 = torch.zeros(1, 80, 3)
    steps = solve(flow_model, toy_condition(), x0, Options(n_timesteps=3, solver=solver))
    assert float((steps[-1].x_next - 1).abs().max()) < 1e-12
    assert len(times) == 6
    t, dt = float(steps[1].t), float(steps[1].dt)
    assert times[2:4] == pytest.approx([t, t + dt / 2 if solver == "midpoint" else t + dt])


@pytest.mark.parametrize("scheduler", T_SCHEDULERS)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
@pytest.mark.parametrize(
    ("f", "solution"),
    [
        (lambda x, t: -2 * x, math.exp(-2)),
        (lambda x, t: x * torch.cos(t), math.exp(math.sin(1))),
        (lambda x, t: -x.square(), 0.5),
        (lambda x, t: t - x, 2 * math.exp(-1)),
    ],
    ids=["decay", "cosine", "square", "driven"],
)
def test_order_of_convergence(flow_model, monkeypatch, f, solution, solver, order, scheduler):
    with_ode(flow_model, monkeypatch, f)
    x0 = torch.ones(1, 80, 1)

    def error(n):
        options = Options(n_timesteps=n, solver=solver, t_scheduler=scheduler)
        return float((solve(flow_model, toy_condition(1), x0, options)[-1].x_next - solution).abs().max())

    assert math.log2(error(32) / error(64)) == pytest.approx(order, abs=0.15)


def test_solver_functions_average_all_three_velocities():
    def velocity_at(x, t):
        return Velocity(x + t, 2 * x, 3 * x)

    x, t, dt = torch.ones(1), torch.tensor(0.0), torch.tensor(0.5)
    assert set(module.SOLVERS) == set(SOLVERS)
    assert [float(v) for v in module.SOLVERS["euler"](velocity_at, x, t, dt)] == [1, 2, 3]
    assert [float(v) for v in module.SOLVERS["midpoint"](velocity_at, x, t, dt)] == [1.5, 2.5, 3.75]
    assert [float(v) for v in module.SOLVERS["heun"](velocity_at, x, t, dt)] == [1.5, 2.5, 3.75]


def test_a_caller_may_stop_early(flow_model, monkeypatch):
    times = with_ode(flow_model, monkeypatch, lambda x, t: x)
    next(flow_model.steps(toy_condition(), torch.ones(1, 80, 3)))
    assert len(times) == 1
