"""The distances of exact and fast from eager are measured stage by stage, in the stated units."""

import math
from types import SimpleNamespace

import pytest
import torch

from workbench.diagnose.benchmarks import accuracy


@pytest.mark.slow
def test_deviation_of_exact_is_rounding(voice, pipe, utt):
    options = voice.options.but(n_timesteps=2, max_tokens=20)
    table = accuracy.deviation(pipe, [utt], options)
    exact, fast = table.itertuples()
    assert (exact.compute, fast.compute) == ("exact", "fast")
    assert exact.same_tokens == 1 and exact.mel_l1 < 1e-5 and exact.snr_db > 60
    assert fast.mel_l1 > 100 * exact.mel_l1
    medians = accuracy.medians(table)  # of one utterance: its own figures
    assert medians.drop(columns="compute").equals(table.drop(columns=["compute", "utterance"]))


def test_same_tokens_are_counted_up_to_the_first_that_differs():
    assert accuracy._same_share([1, 2, 3], [1, 2, 3]) == 1
    assert accuracy._same_share([1, 2, 3, 4], [1, 2]) == 0.5
    assert accuracy._same_share([1, 9], [1, 2, 3, 4]) == 0.25


def test_snr_is_in_decibel():
    right, found = (SimpleNamespace(wav=torch.full((100,), value)) for value in (1.0, 1.1))
    assert math.isclose(accuracy._snr(found, right), 20, abs_tol=1e-4)
