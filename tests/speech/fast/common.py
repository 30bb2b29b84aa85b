"""What the tests of the fast paths share."""

import pytest
import torch

from workbench.speech.fast.cuda_graphs import CudaGraphPool
from workbench.speech.models.hift import HiFT
from workbench.speech.models.numerics import exact_float32

CPU_GRAPHS = CudaGraphPool(torch.device("cpu"), exact_float32)
SILENT_TOKENS = tuple(range(1, 40))
needs_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="the draws are one stream in torch's generator with MKL"
)


def assert_near(found, expected, tolerance):
    """Assert equal shapes, and values that differ by no more than `tolerance`."""
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance


def rebuilt_hift(model):
    """A vocoder of its own with the same weights, for `FastHiFT.consume`.

    Not a deep copy: torch keeps the weight norm of a layer in its class, which a copy shares with the original.
    """
    own = HiFT(model.config)
    own.load_state_dict(model.state_dict())
    own.eval().requires_grad_(False).f0_predictor.double()
    return own
