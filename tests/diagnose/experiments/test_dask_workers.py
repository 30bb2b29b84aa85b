"""Sweeps on real worker processes, some of which are really killed."""

import json
import math
import os
import signal
import uuid
from functools import partial

import dask
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.dask_workers import worker_device
from workbench.diagnose.experiments.experiment import Experiment
from workbench.diagnose.experiments.metric_key import metric_key
from workbench.diagnose.experiments.metrics import mel_l1, seconds, sound_db
from workbench.diagnose.experiments.row_cache import RowCache, group_size
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.process]

HERE = os.getpid()
METRICS = {"mel_l1": mel_l1, "sound_db": sound_db, "seconds": seconds}  # those that a clock is no part of
VARIANTS = {f"{n} steps": {"n_timesteps": n, "max_tokens": 8} for n in (2, 1, 3)}
PLACE = ["variant", "utterance", "seed"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As on the workers: with another number of threads sums are added up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client():
    # One second chance, so that dask's own is tested. LocalCluster looks at a lost worker again after a while
    # and closes it for good if it is down then: one that is killed twice may be, so it shall not look.
    config = {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "1h"}
    with (
        dask.config.set(config),
        LocalCluster(
            2, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(Checkpoint.load("data/voices/tiny"), progress=False)


@pytest.fixture(scope="module")
def utts(pipe):
    texts = {"hello": "Hello there.", "late": "It is late."}
    return {name: pipe.prepare(text, "data/prompts/kumo_0.flac") for name, text in texts.items()}


def experiment(pipe, utts, extra=None, seeds=(1, 2), **kwargs):
    return Experiment(pipe, utts, VARIANTS, "2 steps", METRICS | (extra or {}), seeds, **kwargs)


@pytest.fixture(scope="module")
def right(pipe, utts):
    return experiment(pipe, utts).run()


def counting(folder):
    """A measure that leaves a file every time it is called, in whatever process."""
    folder.mkdir(exist_ok=True)

    def counted(trace, reference):
        (folder / uuid.uuid4().hex).touch()
        return 1.0

    return {"counted": counted}, lambda: len(list(folder.iterdir()))


def same(table, right):
    pd.testing.assert_frame_equal(table[right.columns], right)


def test_workers_give_the_same_table(client, pipe, utts, right):
    assert len(right) == 12 and (right["error"] == "").all() and right["mel_l1"].gt(0).sum() == 8
    same(experiment(pipe, utts).run(client), right)


def test_a_lost_worker_costs_no_row(client, pipe, utts, right, tmp_path):
    marker = tmp_path / "killed"

    def kill_once(trace, reference):
        if os.getpid() != HERE and trace.attrs["options"]["n_timesteps"] == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    table = experiment(pipe, utts, {"kill": kill_once}).run(client)
    assert marker.exists()
    same(table, right)


@pytest.fixture
def no_second_chance(client):
    """Every worker takes seconds to start again."""

    def allow(n, dask_scheduler=None):
        dask_scheduler.allowed_failures = n

    client.run_on_scheduler(allow, 0)
    yield
    client.run_on_scheduler(allow, 1)


@pytest.mark.usefixtures("no_second_chance")
def test_a_run_that_always_kills_its_worker_is_one_row_with_an_error(client, pipe, utts, right):
    def kill(trace, reference):
        options = trace.attrs["options"]
        if (options["n_timesteps"], options["seed"]) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    utts = {"hello": utts["hello"]}
    table = experiment(pipe, utts, {"kill": kill}).run(client)
    bad = (table["variant"] == "1 steps") & (table["seed"] == 2)
    assert table.loc[bad, "error"].item().startswith("KilledWorker") and table.loc[bad, "mel_l1"].isna().all()
    expected = right[right["utterance"] == "hello"].reset_index(drop=True)
    same(table[~bad], expected[~bad])


def test_a_stopped_sweep_goes_on_where_it_was(pipe, utts, right, tmp_path):
    extra, count = counting(tmp_path / "seen")

    def stop(trace, reference):
        if count() == 5 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return 0.0

    kwargs = {"extra": {"stop": stop} | extra, "folder": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        experiment(pipe, utts, **kwargs).run()
    assert count() == 5
    same(experiment(pipe, utts, **kwargs).run(), right)
    assert count() == 12
    same(experiment(pipe, utts, **kwargs).run(), right)
    assert count() == 12


def test_rows_stream_in_and_outlive_a_stopped_sweep_on_workers(client, pipe, utts, right, tmp_path):
    extra, count = counting(tmp_path / "seen")
    kwargs = {"extra": extra, "folder": tmp_path / "kept"}
    rows = experiment(pipe, utts, **kwargs).rows(client)
    first = next(rows)
    assert set(PLACE) < first.keys()
    rows.close()
    same(experiment(pipe, utts, **kwargs).run(), right)
    done = count()
    assert 12 <= done <= 14  # two workers may have been in the midst of a row
    same(experiment(pipe, utts, **kwargs).run(client), right)
    assert count() == done


def test_a_spoiled_row_is_made_again(pipe, utts, right, tmp_path):
    extra, count = counting(tmp_path / "seen")
    kwargs = {"extra": extra, "folder": tmp_path / "kept"}
    experiment(pipe, utts, **kwargs).run()
    files = sorted((tmp_path / "kept").glob("*.row.json"))
    assert len(files) == 12 == count()
    files[0].write_bytes(files[0].read_bytes()[:9])
    files[1].write_text("[" * 100_000)
    files[2].write_text('{"mel_l1": 0.0}')
    files[3].write_text(files[3].read_text().replace("1.0", '"high"'))
    same(experiment(pipe, utts, **kwargs).run(), right)
    assert count() == 16
    assert not list((tmp_path / "kept").glob(".*"))


def test_equal_runs_under_two_names_are_made_once(client, pipe, utts, tmp_path):
    extra, count = counting(tmp_path)
    variants = {"a": {"n_timesteps": 1, "max_tokens": 8}, "b": {"n_timesteps": 1, "max_tokens": 8}}
    names = {"x": utts["hello"], "y": utts["hello"]}
    for where in (None, client):
        table = Experiment(pipe, names, variants, metrics=extra, seeds=(1,)).run(where)
        assert table[PLACE].values.tolist() == [["a", "x", 1], ["b", "x", 1], ["a", "y", 1], ["b", "y", 1]]
    assert count() == 2


def test_a_row_depends_on_everything_it_is_made_of(pipe, utts, tmp_path):
    def keys(**changes):
        given = {"pipe": pipe, "utts": {"u": utts["hello"]}, "variants": VARIANTS, "metrics": METRICS}
        return {key for _, key in Experiment(**given | {"reference": "2 steps"} | changes)._row_keys()}

    other = Checkpoint.load("data/voices/tiny")
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


def test_a_measure_is_known_by_its_code_and_what_it_holds():
    def made(n, k=1):
        return lambda trace, reference: n * k

    class Scaled:
        def __call__(self, trace, reference):
            return 1.0

    written = {n: compile(f"def f(trace, reference): return {n}", "cell", "exec") for n in (1, 2)}
    cells = [{"__name__": "__main__"} for _ in written]
    for code, cell in zip(written.values(), cells, strict=True):
        exec(code, cell)
    keys = [made(1), made(2), made(1, 2), made(made(1)), made(made(2)), partial(made, 1), partial(made, 2)]
    keys += [seconds, sound_db, lambda t, r: 1, lambda t, r: 2, *(cell["f"] for cell in cells)]
    assert len({metric_key(m) for m in keys}) == len(keys)
    assert [metric_key(m) for m in keys] == [metric_key(m) for m in keys]
    assert metric_key(made(1)) == metric_key(made(1))
    assert metric_key(Scaled()) != metric_key(Scaled())  # cannot be pickled


def test_a_measure_that_fails_costs_its_own_row_only(client, pipe, utts, right, tmp_path):
    def fail(trace, reference):
        if trace.attrs["options"]["n_timesteps"] == 3:
            raise ZeroDivisionError("by design")
        return 0.0

    for where in (None, client):
        table = experiment(pipe, utts, {"fail": fail}, folder=tmp_path).run(where)
        bad = table["variant"] == "3 steps"
        assert (table.loc[bad, "error"] == "ZeroDivisionError: by design").all()
        same(table[~bad], right[~bad])
    assert len(list(tmp_path.glob("*.row.json"))) == 8  # errors are tried again


def test_kept_numbers_are_what_they_were(tmp_path):
    row = {"a": 0.1 + 0.2, "b": math.nan, "c": -math.inf, "d": 3, "error": ""}
    kept = RowCache(tmp_path, dict.fromkeys("abcd"))
    kept.put("key", row)
    assert repr(kept.get("key")) == repr(row)
    assert list(json.loads((tmp_path / "key.row.json").read_text())) == list("abcd")
    kept.put("lost", row | {"error": "lost"})
    assert kept.get("lost") is None is kept.get("nothing")


def test_numbers_of_numpy_and_torch_are_kept(pipe, utts, tmp_path):
    metrics = {"n": lambda t, r: np.float32(0.5), "t": lambda t, r: torch.tensor(2)}
    for _ in range(2):
        table = Experiment(pipe, utts, {"a": VARIANTS["1 steps"]}, metrics=metrics, folder=tmp_path).run()
        assert table["n"].tolist() == [0.5, 0.5] and table["t"].tolist() == [2, 2]


def test_a_checkpoint_that_was_changed_in_memory_travels(client, utts):
    voice = Checkpoint.load("data/voices/tiny")
    voice.weights["hift"]["conv_pre.bias"] = voice.weights["hift"]["conv_pre.bias"] + 0.01
    changed = Pipeline(voice, progress=False)
    table = experiment(changed, utts, seeds=(1,)).run()
    same(experiment(changed, utts, seeds=(1,)).run(client), table)
    original = Pipeline(Checkpoint.load("data/voices/tiny"), progress=False)
    assert (experiment(original, utts, seeds=(1,)).run()["sound_db"] != table["sound_db"]).any()


def test_nothing_stays_on_the_workers(client):
    plugins = client.run(lambda dask_worker: " ".join(dask_worker.plugins))
    assert len(plugins) == 2 and not any("workbench" in names for names in plugins.values())


def test_workers_share_the_gpus_they_see():
    assert worker_device("cpu", "3", 8) == "cpu"
    assert worker_device("cuda", "3", 1) == "cuda"
    assert [worker_device("cuda", name, 2) for name in ("0", "1", "SLURMCluster-0-3", "other")] == [
        "cuda:0",
        "cuda:1",
        "cuda:1",
        "cuda:0",
    ]


def test_blocks_are_of_bounded_size():
    assert [group_size(*n) for n in ((12, 2), (100, 2), (10_000, 8), (10_000, 0))] == [4, 12, 16, 16]


def test_estimators_are_told_apart_by_their_file(pipe, tmp_path):
    path, runs = tmp_path / "theirs.onnx", []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        runs.append(CachedRuns(pipe).estimator_hash(pipe.checkpoint.options.but(estimator=str(path))))
    assert len({None, *runs}) == 3
    assert CachedRuns(pipe).estimator_hash(pipe.checkpoint.options.but(estimator="nowhere.onnx")) is None
