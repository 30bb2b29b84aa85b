"""What the tests of quantised weights share."""

import pytest


@pytest.fixture(scope="session")
def short(pipe):
    """Options of runs that take no time: one step, four tokens."""
    return pipe.options(None).but(n_timesteps=1, max_tokens=4, seed=7)
