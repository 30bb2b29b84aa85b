"""Finished rows are kept in a folder under keys that depend on everything that a row depends on."""

import json
import math

import numpy as np
import pytest
import torch

from tests.diagnose.experiments.common import METRICS, VARIANTS, assert_same, counting, small_experiment
from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.experiment import Experiment
from workbench.diagnose.experiments.metrics import mel_l1, sound_db
from workbench.diagnose.experiments.row_cache import RowCache, group_size
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.pipeline import Pipeline
from workbench.trace.trace import Trace


@pytest.mark.slow
def test_a_stopped_experiment_computes_only_missing_rows(pipe, utts, right, tmp_path):
    extra, count = counting(tmp_path / "seen")

    def stop(trace, reference):
        if count() == 5 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return 0.0

    kwargs = {"extra": {"stop": stop} | extra, "folder": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        small_experiment(pipe, utts, **kwargs).run()
    assert count() == 5
    assert_same(small_experiment(pipe, utts, **kwargs).run(), right)
    assert count() == 12
    assert_same(small_experiment(pipe, utts, **kwargs).run(), right)
    assert count() == 12


@pytest.mark.slow
def test_damaged_row_files_are_computed_again(pipe, utts, right, tmp_path):
    extra, count = counting(tmp_path / "seen")
    kwargs = {"extra": extra, "folder": tmp_path / "kept"}
    small_experiment(pipe, utts, **kwargs).run()
    files = sorted((tmp_path / "kept").glob("*.row.json"))
    assert len(files) == 12 == count()
    files[0].write_bytes(files[0].read_bytes()[:9])
    files[1].write_text("[" * 100_000)
    files[2].write_text('{"mel_l1": 0.0}')
    files[3].write_text(files[3].read_text().replace("1.0", '"high"'))
    assert_same(small_experiment(pipe, utts, **kwargs).run(), right)
    assert count() == 16
    assert not list((tmp_path / "kept").glob(".*"))


@pytest.mark.slow
def test_results_that_are_valid_and_empty_are_computed_again(pipe, utts, tmp_path):
    options = pipe.checkpoint.options.but(max_tokens=8, n_timesteps=1)
    right = CachedRuns(pipe, folder=tmp_path).run(utts["hello"], options)
    for path in tmp_path.glob("*.trace"):
        Trace({}, {}).save(path)
    again = CachedRuns(pipe, folder=tmp_path).run(utts["hello"], options)
    assert torch.equal(again.wav, right.wav)
    assert all(len(Trace.load(path)) for path in tmp_path.glob("*.trace"))


def test_row_key_depends_on_all_inputs_of_a_row(pipe, utts, tmp_path):
    def keys(**changes):
        given = {"pipe": pipe, "utts": {"u": utts["hello"]}, "variants": VARIANTS, "metrics": METRICS}
        return {key for _, key in Experiment(**given | {"reference": "2 steps"} | changes)._row_keys()}

    other = Checkpoint.load()
    other.weights["hift"]["conv_pre.bias"] = other.weights["hift"]["conv_pre.bias"] + 1
    changed = [
        {"pipe": Pipeline(other, progress=False)},
        {"utts": {"u": utts["late"]}},
        {"variants": {name: {**o, "cfg_rate": 0.5} for name, o in VARIANTS.items()}},
        {"reference": "3 steps"},
        {"reference": None},
        {"seeds": (5,)},
        {"save": "flow/x"},
        {"metrics": {"mel_l1": sound_db}},
        {"metrics": {"other": mel_l1}},
    ]
    before = keys()
    assert keys() == before == keys(folder=tmp_path)
    assert len(before.union(*(keys(**change) for change in changed))) == 3 * (len(changed) + 1)


def test_row_files_keep_numbers_exactly(tmp_path):
    row = {"a": 0.1 + 0.2, "b": math.nan, "c": -math.inf, "d": 3, "error": ""}
    cache = RowCache(tmp_path, dict.fromkeys("abcd"))
    cache.put("key", row)
    assert repr(cache.get("key")) == repr(row)
    assert list(json.loads((tmp_path / "key.row.json").read_text())) == list("abcd")
    cache.put("lost", row | {"error": "lost"})
    assert cache.get("lost") is None is cache.get("nothing")


def test_metrics_may_return_numpy_and_torch_scalars(pipe, utts, tmp_path):
    metrics = {"n": lambda t, r: np.float32(0.5), "t": lambda t, r: torch.tensor(2)}
    for _ in range(2):
        table = Experiment(pipe, utts, {"a": VARIANTS["1 steps"]}, metrics=metrics, folder=tmp_path).run()
        assert table["n"].tolist() == [0.5, 0.5] and table["t"].tolist() == [2, 2]


def test_group_size_is_bounded():
    assert [group_size(*n) for n in ((12, 2), (100, 2), (10_000, 8), (10_000, 0))] == [4, 12, 16, 16]


@pytest.mark.parametrize("program", ["estimator", "vocoder"])
def test_programs_are_distinguished_by_their_file(pipe, tmp_path, program):
    path = tmp_path / "theirs.onnx"
    theirs = pipe.checkpoint.options.but(**{program: str(path)})
    hashes = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        hashes.append(CachedRuns(pipe).program_hash(theirs, program))
    assert len({None, *hashes}) == 3
    nowhere = pipe.checkpoint.options.but(**{program: "nowhere.onnx"})
    assert CachedRuns(pipe).program_hash(nowhere, program) is None
