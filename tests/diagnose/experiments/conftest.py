"""Small utterances, and the table of a small experiment that other runs of it must repeat."""

import pytest
import torch

from tests.diagnose.experiments.common import small_experiment
from workbench.diagnose.benchmarks.trace_overhead import utterance_of_size


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Compute with one thread, as the workers do: with more, sums are added up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def utts(pipe):
    """Two short random utterances: far cheaper than sentences with a prompt of some seconds."""
    return {
        "hello": utterance_of_size(pipe.config, text=4, prompt=10),
        "late": utterance_of_size(pipe.config, text=5, prompt=12),
    }


@pytest.fixture(scope="session")
def utt(utts):
    """One of them."""
    return utts["hello"]


@pytest.fixture(scope="session")
def right(pipe, utts):
    """The table of the small experiment, computed here and without a folder."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    table = small_experiment(pipe, utts).run()
    torch.set_num_threads(before)
    return table
