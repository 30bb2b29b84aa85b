"""Traces for the tests of figures; each test begins and ends without open figures."""

import matplotlib
import pytest

import workbench as wb
from tests.show.plots.common import STEPS
from workbench.trace.importers.logs.logs import read_log

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(scope="session")
def trace(pipe, utt):
    options = pipe.checkpoint.options.but(n_timesteps=STEPS, max_tokens=12, seed=7)
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)


@pytest.fixture(scope="session")
def one_step(pipe, trace):
    return pipe.replay(
        trace, "flow", pipe.checkpoint.options.but(n_timesteps=1, flow_dtype="bfloat16"), wb.EVERYTHING
    )


@pytest.fixture
def log(tmp_path):
    lines = [f"[PY ODE] step {k}: x max={k}.5, dt=0.{k}\n" for k in (1, 2, 4)]
    (tmp_path / "run.log").write_text("".join(lines))
    return read_log(tmp_path / "run.log").runs[0]


@pytest.fixture(autouse=True)
def no_figures():
    plt.close("all")
    yield
    plt.close("all")
