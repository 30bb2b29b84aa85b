"""Make the rows of an experiment on the workers of a `dask.distributed.Client`.

A *sweep* is all runs of one experiment. Its groups of runs (see `row_cache.py`) are sent to the workers as
dask tasks. Each worker opens the checkpoint once per sweep and keeps it in a plugin. The scheduler sends the
plugin to workers that are added later, or that take the place of a lost one.
"""

import importlib
import re
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Lock

import torch
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed, get_worker

from workbench.diagnose.experiments.cached_runs import CachedRuns, hash_checkpoint
from workbench.diagnose.experiments.metrics import Metric
from workbench.diagnose.experiments.row_cache import MAX_GROUP, ResultRow, RowCache, RunGroup, error_row
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.config_yaml import YAML
from workbench.speech.config import STAGES
from workbench.speech.pipeline import Pipeline

# Groups that the scheduler holds at a time. Each contains an utterance of about 100 kB, so that the scheduler
# needs about 50 MB, and even a thousand workers soon find the next one.
MAX_SUBMITTED = 512


def remote_rows(
    client: Client, runs: CachedRuns, groups: list[RunGroup], metrics: Mapping[str, Metric]
) -> Iterator[tuple[str, ResultRow]]:
    """Make groups of rows on the workers of a client; yield each row with its key as it arrives.

    When a worker is lost, dask runs its tasks again elsewhere. A task that loses more workers than
    `distributed.scheduler.allowed-failures` allows is given up; so are the other tasks of those workers,
    although they may be harmless. The rows of such groups are therefore tried once more, one at a time, with
    nothing else running. A row that is given up again has the reason in `error`; so have rows that fail or
    are cancelled.

    While there is no worker, this function waits for one. A LocalCluster closes a worker for good if it is
    down `distributed.deploy.lost-worker-timeout` (15 s) after a loss. If runs kill their workers repeatedly,
    set this to hours; otherwise no worker may be left.

    Parameters
    ----------
    client : distributed.Client
        Its workers have this package installed and one thread each: a second thread would wait for the first.
    runs : CachedRuns
        Gives the checkpoint, the kind of device, the recorded fields and the folder.
    groups : list of RunGroup
    metrics : mapping of str to callable
    """
    plugin_name = f"workbench-{uuid.uuid4().hex}"
    client.register_plugin(SweepPlugin(client, runs, metrics), plugin_name)
    given_up: list[RunGroup] = []
    try:
        with closing(_finished_groups(client, plugin_name, groups)) as finished:
            for group, future in finished:
                try:
                    yield from future.result()
                except KilledWorker:
                    given_up.append(group)
                except Exception as error:
                    yield from _failed_rows(group, metrics, error)
        # Second attempt, row by row: a run that kills its worker now affects only its own row.
        for group in given_up:
            for single in group.split(1):
                try:
                    yield from _submit(client, plugin_name, single).result()
                except Exception as error:
                    yield from _failed_rows(single, metrics, error)
    finally:
        if client.status == "running":
            with suppress(OSError):  # raised for a worker that is gone, which has no plugin to remove
                client.unregister_worker_plugin(plugin_name)


@contextmanager
def imports_on_workers(client: Client, device_kind: str) -> Iterator[None]:
    """Let the workers import what their runs need while the block hashes the checkpoint: seconds for both.

    The block does not wait for them. A worker that has not begun when it ends imports later, with its first
    group.
    """
    begun = [
        client.submit(import_for_runs, device_kind, workers=[worker], key=f"import-{uuid.uuid4().hex}")
        for worker in client.nthreads()
    ]
    yield
    del begun  # dask forgets a task that nobody waits for


def import_for_runs(device_kind: str) -> None:
    """Import what runs on a device need, beside what this module needs, where a worker finds the function."""
    if device_kind == "cuda":
        importlib.import_module("torch._inductor.compile_fx")


def _finished_groups(
    client: Client, plugin_name: str, groups: list[RunGroup]
) -> Iterator[tuple[RunGroup, Future]]:
    """Submit groups and yield each when it is done. Closing the generator cancels the tasks under way."""
    waiting = deque(groups)
    running: dict[Future, RunGroup] = {}
    completed = as_completed(loop=client.loop)
    try:
        while waiting or running:
            while waiting and len(running) < MAX_SUBMITTED:
                group = waiting.popleft()
                future = _submit(client, plugin_name, group)
                running[future] = group
                completed.add(future)
            future = next(completed)
            yield running.pop(future), future
    finally:
        if client.status == "running":
            client.cancel(list(running))


def _submit(client: Client, plugin_name: str, group: RunGroup) -> Future:
    # The random key keeps dask from hashing the utterance, and no two groups share a result.
    return client.submit(make_group, plugin_name, group, key=f"make_group-{uuid.uuid4().hex}")


def _failed_rows(
    group: RunGroup, metrics: Mapping[str, Metric], error: Exception
) -> Iterator[tuple[str, ResultRow]]:
    reason = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
    for key in group.options:
        yield key, error_row(metrics, reason)


def make_group(plugin_name: str, group: RunGroup) -> list[tuple[str, ResultRow]]:
    """Make the rows of a group on the worker that runs this task."""
    return get_worker().plugins[plugin_name].rows(group)


class SweepPlugin(WorkerPlugin):
    """The parts of a sweep that all its groups share: checkpoint, metrics and settings.

    The plugin is pickled on the client's machine and sent to every worker. If the checkpoint is the same as
    in its folder, only the path is sent: each worker opens the folder and compares the hash. A checkpoint
    that was changed in memory, or whose folder some worker does not see, is sent with the plugin.

    Parameters
    ----------
    client : Client
        Its workers are asked whether they see the checkpoint's folder.
    runs : CachedRuns
    metrics : mapping of str to callable
    """

    def __init__(self, client: Client, runs: CachedRuns, metrics: Mapping[str, Metric]) -> None:
        self.checkpoint_hash = runs.checkpoint_hash
        self.device_kind = runs.pipe.device.type
        self.save = runs.save
        self.metrics = metrics
        self.folder = None if runs.folder is None else runs.folder.resolve()
        self.source = _checkpoint_source(client, runs)

    def setup(self, worker: Worker) -> None:
        """Choose the worker's device. The checkpoint is opened later, by the first group."""
        self.device = worker_device(self.device_kind, str(worker.name), torch.cuda.device_count())
        self.lock = Lock()
        self.runs: CachedRuns | None = None
        self.stopped = False

    def teardown(self, worker: Worker) -> None:
        """Stop a group that is being made after its current row: the sweep is over."""
        self.stopped = True

    def rows(self, group: RunGroup) -> list[tuple[str, ResultRow]]:
        """Make the rows of a group; only one group at a time, because a pipeline serves one thread."""
        with self.lock:
            if self.runs is None:
                self.runs = self._open_runs()
            made = []
            for key, row in RowCache(self.runs.folder, self.metrics).get_or_make(self.runs, group):
                if self.stopped:
                    break
                made.append((key, row))
            return made

    def _open_runs(self) -> CachedRuns:
        """Return the runs of this worker, with the checkpoint that the client has."""
        checkpoint = self.source if isinstance(self.source, Checkpoint) else Checkpoint.load(*self.source)
        if hash_checkpoint(checkpoint) != self.checkpoint_hash:
            raise WorkbenchError(
                f"{checkpoint.folder} on this worker holds another checkpoint than on the client's machine; "
                "copy the same files to every machine"
            )
        # A machine without the experiment's folder keeps nothing: the client writes the rows that arrive.
        folder = self.folder if self.folder is not None and self.folder.is_dir() else None
        pipe = Pipeline(checkpoint, self.device, progress=False)
        # Enough memory for one group: every stage of its runs and of the reference run.
        return CachedRuns(pipe, self.save, folder, max_stages=len(STAGES) * (MAX_GROUP + 1))


def worker_device(kind: str, worker_name: str, n_gpus: int) -> str:
    """Return the device of a worker, so that the workers of one machine share its GPUs evenly.

    LocalCluster and dask-jobqueue number the workers of a machine at the end of their names. That number,
    modulo the number of GPUs, chooses the GPU. With dask-cuda each worker sees only one GPU.

    >>> worker_device("cuda", "SLURMCluster-0-3", n_gpus=2)
    'cuda:1'
    """
    if kind != "cuda" or n_gpus < 2:
        return kind
    number = re.search(r"\d+$", worker_name)
    index = int(number[0]) % n_gpus if number else 0
    return f"cuda:{index}"


def _checkpoint_source(client: Client, runs: CachedRuns) -> Checkpoint | tuple[Path, str]:
    """Return the arguments for `Checkpoint.load` on a worker, or else the checkpoint itself."""
    checkpoint = runs.pipe.checkpoint
    if checkpoint.folder is None:  # made in memory
        return checkpoint
    folder = checkpoint.folder.resolve()
    lm = "rl" if checkpoint.origin["lm"].startswith("llm.rl") else "auto"  # the file that the LM came from

    sees_folder = client.run(_has_checkpoint, folder)  # worker address -> bool
    if not all(sees_folder.values()):
        return checkpoint
    try:
        unchanged = _are_equal(Checkpoint.load(folder, lm), checkpoint)
    except WorkbenchError:  # the folder was removed since the checkpoint was loaded
        return checkpoint
    return (folder, lm) if unchanged else checkpoint


def _are_equal(a: Checkpoint, b: Checkpoint) -> bool:
    """Return whether two checkpoints have the same bytes; much faster than two hashes of gigabytes.

    Equal values in another type of storage, and weights with NaN, count as different.
    """
    if a.config != b.config:
        return False
    pairs = [(a.weights[stage], b.weights[stage]) for stage in STAGES]
    pairs.append((a.noise.stored or {}, b.noise.stored or {}))
    for tensors, others in pairs:
        if tensors.keys() != others.keys():
            return False
        for name, tensor in tensors.items():
            other = others[name]
            if tensor.dtype != other.dtype or not torch.equal(tensor, other):
                return False
    return True


def _has_checkpoint(folder: Path) -> bool:
    return (folder / YAML).is_file()
