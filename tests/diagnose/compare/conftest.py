"""A run that the modules compare with others; each says of how many steps of the ODE in its `STEPS`."""

import pytest

import workbench as wb


@pytest.fixture(scope="module")
def options(pipe, request):
    return pipe.checkpoint.options.but(n_timesteps=request.module.STEPS, max_tokens=12, seed=7)


@pytest.fixture(scope="module")
def trace(pipe, utt, options):
    return pipe.synthesise(utt, options=options, save=wb.EVERYTHING)
