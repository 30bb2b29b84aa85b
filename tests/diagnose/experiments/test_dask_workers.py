"""Experiments on real worker processes, some of which are really killed."""

import os
import signal

import dask
import pytest
from distributed import Client, LocalCluster

from tests.diagnose.experiments.common import NAMES, VARIANTS, assert_same, counting, small_experiment
from workbench.diagnose.experiments.dask_workers import worker_device
from workbench.diagnose.experiments.experiment import Experiment
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.pipeline import Pipeline

HERE = os.getpid()  # a metric that kills must not kill the tests
pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def client():
    """A cluster of two workers.

    A task may lose one worker and is then run again by dask. LocalCluster looks at a lost worker after a
    while and closes it for good if it is down then, as one that is killed twice may be; here it never looks.
    """
    config = {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "1h"}
    with (
        dask.config.set(config),
        LocalCluster(
            2, threads_per_worker=1, dashboard_address=":0", memory_limit=0, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_workers_give_the_same_table(client, pipe, utts, right):
    assert len(right) == 12 and (right["error"] == "").all() and right["mel_l1"].gt(0).sum() == 8
    assert_same(small_experiment(pipe, utts).run(client), right)


def test_no_row_is_lost_with_a_worker(client, pipe, utts, right, tmp_path):
    marker = tmp_path / "killed"

    def kill_once(trace, reference):
        if os.getpid() != HERE and trace.attrs["options"]["n_timesteps"] == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    table = small_experiment(pipe, utts, {"kill": kill_once}).run(client)
    assert marker.exists()
    assert_same(table, right)


@pytest.fixture
def no_second_chance(client):
    """dask gives a task up with the first worker that it loses, because each takes seconds to start again."""

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
    table = small_experiment(pipe, utts, {"kill": kill}).run(client)
    bad = (table["variant"] == "1 steps") & (table["seed"] == 2)
    assert table.loc[bad, "error"].item().startswith("KilledWorker") and table.loc[bad, "mel_l1"].isna().all()
    expected = right[right["utterance"] == "hello"].reset_index(drop=True)
    assert_same(table[~bad], expected[~bad])


def test_rows_arrive_one_by_one_and_outlive_a_stopped_sweep(client, pipe, utts, right, tmp_path):
    extra, count = counting(tmp_path / "seen")
    kwargs = {"extra": extra, "folder": tmp_path / "kept"}
    rows = small_experiment(pipe, utts, **kwargs).rows(client)
    first = next(rows)
    assert set(NAMES) < first.keys()
    rows.close()
    assert_same(small_experiment(pipe, utts, **kwargs).run(), right)
    done = count()
    assert 12 <= done <= 14  # each of the two workers may have been making a row
    assert_same(small_experiment(pipe, utts, **kwargs).run(client), right)
    assert count() == done


def test_equal_runs_under_two_names_are_computed_once(client, pipe, utts, tmp_path):
    extra, count = counting(tmp_path)
    variants = {"a": VARIANTS["1 steps"], "b": VARIANTS["1 steps"]}
    names = {"x": utts["hello"], "y": utts["hello"]}
    for where in (None, client):
        table = Experiment(pipe, names, variants, metrics=extra, seeds=(1,)).run(where)
        assert table[NAMES].values.tolist() == [["a", "x", 1], ["b", "x", 1], ["a", "y", 1], ["b", "y", 1]]
    assert count() == 2


def test_a_metric_that_fails_affects_only_its_own_row(client, pipe, utts, right, tmp_path):
    def fail(trace, reference):
        if trace.attrs["options"]["n_timesteps"] == 3:
            raise ZeroDivisionError("by design")
        return 0.0

    for where in (None, client):
        table = small_experiment(pipe, utts, {"fail": fail}, folder=tmp_path).run(where)
        bad = table["variant"] == "3 steps"
        assert (table.loc[bad, "error"] == "ZeroDivisionError: by design").all()
        assert_same(table[~bad], right[~bad])
    assert len(list(tmp_path.glob("*.row.json"))) == 8  # errors are tried again


def test_a_checkpoint_changed_in_memory_is_sent_to_the_workers(client, utts):
    voice = Checkpoint.load()
    voice.weights["hift"]["conv_pre.bias"] = voice.weights["hift"]["conv_pre.bias"] + 0.01
    changed = Pipeline(voice, progress=False)
    table = small_experiment(changed, utts, seeds=(1,)).run()
    assert_same(small_experiment(changed, utts, seeds=(1,)).run(client), table)
    original = Pipeline(Checkpoint.load(), progress=False)
    assert (small_experiment(original, utts, seeds=(1,)).run()["sound_db"] != table["sound_db"]).any()


def test_plugins_are_removed_from_the_workers(client):
    plugins = client.run(lambda dask_worker: " ".join(dask_worker.plugins))
    assert len(plugins) == 2 and not any("workbench" in names for names in plugins.values())


def test_workers_share_the_gpus_of_a_machine():
    assert worker_device("cpu", "3", 8) == "cpu"
    assert worker_device("cuda", "3", 1) == "cuda"
    assert [worker_device("cuda", name, 2) for name in ("0", "1", "SLURMCluster-0-3", "other")] == [
        "cuda:0",
        "cuda:1",
        "cuda:1",
        "cuda:0",
    ]
