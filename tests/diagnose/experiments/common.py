"""A small experiment of 3 variants x 2 utterances x 2 seeds, and checks of its table."""

import uuid

import pandas as pd

from workbench.diagnose.experiments.experiment import Experiment
from workbench.diagnose.experiments.metrics import mel_l1, seconds, sound_db

# Stop tokens are masked, so that every run has as many tokens as it may.
SHORT = {"max_tokens": 8, "mask_stop_ids": True}
VARIANTS = {f"{n} steps": SHORT | {"n_timesteps": n} for n in (2, 1, 3)}
METRICS = {"mel_l1": mel_l1, "sound_db": sound_db, "seconds": seconds}  # the same in every run, unlike times
NAMES = ["variant", "utterance", "seed"]


def small_experiment(pipe, utts, extra=None, seeds=(1, 2), **kwargs):
    return Experiment(pipe, utts, VARIANTS, "2 steps", METRICS | (extra or {}), seeds, **kwargs)


def counting(folder):
    """Return a metric that leaves a file for every call, in whatever process, and a function that counts them."""
    folder.mkdir(exist_ok=True)

    def counted(trace, reference):
        (folder / uuid.uuid4().hex).touch()
        return 1.0

    return {"counted": counted}, lambda: len(list(folder.iterdir()))


def assert_same(table, right):
    """Two tables are equal in the columns of the second."""
    pd.testing.assert_frame_equal(table[right.columns], right)
