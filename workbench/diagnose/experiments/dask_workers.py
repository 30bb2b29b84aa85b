"""Blocks of runs on the workers of a `dask.distributed.Client`, whatever machines it reaches.

Each worker opens the checkpoint once a sweep and keeps it: a plugin carries where it lies, and the scheduler
gives the plugin to workers that come later or take a lost one's place.
"""

import re
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from itertools import takewhile
from pathlib import Path
from threading import Lock

import torch
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed, get_worker

from workbench.diagnose.experiments.cached_runs import CachedRuns, voice_key
from workbench.diagnose.experiments.row_cache import MOST, Block, KeptRows, Measure, Row, error_row
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.config_yaml import YAML
from workbench.speech.config import STAGES
from workbench.speech.pipeline import Pipeline

AHEAD = 512  # blocks that the scheduler knows at a time: each holds an utterance of some 100 kB


def remote_rows(
    client: Client, runs: CachedRuns, blocks: list[Block], measures: Mapping[str, Measure]
) -> Iterator[tuple[str, Row]]:
    """Make blocks of rows where a client reaches, and give each row with its key as it arrives.

    A block whose worker is lost is made again elsewhere. When more workers were lost with it than
    `distributed.scheduler.allowed-failures` says, dask gives it up, with all that waited on those workers.
    So it is tried again row by row with nothing beside it. A row that is given up then has the reason in
    `error`, as have those that fail or were cancelled.

    While there is no worker, this waits for one. A LocalCluster closes a worker for good that is down
    `distributed.deploy.lost-worker-timeout` (15 s) after it was lost once; where runs kill theirs time and
    again, set that to hours, or none may be left.

    Parameters
    ----------
    client : distributed.Client
        Workers have this package installed. One thread a worker: a second would wait for the first.
    runs : CachedRuns
        Gives the checkpoint, the kind of device, what is recorded, and the folder.
    blocks : list of Block
    measures : mapping of str to callable
    """
    name = f"workbench-{uuid.uuid4().hex}"
    client.register_plugin(SweepPlugin(client, runs, measures), name)
    lost: list[Block] = []
    try:
        with closing(_completed(client, name, blocks)) as completed:
            for block, future in completed:
                try:
                    yield from future.result()
                except KilledWorker:
                    lost.append(block)
                except Exception as error:
                    yield from _given_up(block, measures, error)
        for block in lost:
            for alone in block.split(1):
                try:
                    yield from client.submit(make_block, name, alone, key=_task()).result()
                except Exception as error:
                    yield from _given_up(alone, measures, error)
    finally:
        if client.status == "running":
            with suppress(OSError):  # a worker that has gone has nothing to forget
                client.unregister_worker_plugin(name)


def _completed(client: Client, name: str, blocks: list[Block]) -> Iterator[tuple[Block, Future]]:
    """Give blocks as they are done; those under way are cancelled when nobody asks any more."""
    waiting, running = deque(blocks), {}
    done = as_completed(loop=client.loop)
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD:
                block = waiting.popleft()
                future = client.submit(make_block, name, block, key=_task())
                running[future] = block
                done.add(future)
            future = next(done)
            yield running.pop(future), future
    finally:
        if client.status == "running":
            client.cancel(list(running))


def _task() -> str:
    return f"make_block-{uuid.uuid4().hex}"  # a name, so that dask need not hash the utterance


def _given_up(block: Block, measures: Mapping[str, Measure], error: Exception) -> Iterator[tuple[str, Row]]:
    reason = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
    return ((key, error_row(measures, reason)) for key in block.options)


def make_block(name: str, block: Block) -> list[tuple[str, Row]]:
    """Make the rows of a block on the worker that this is called on; `name` is the plugin's."""
    return get_worker().plugins[name].rows(block)


class SweepPlugin(WorkerPlugin):
    """What all blocks of a sweep share, on every worker.

    A checkpoint that is still what its folder holds is opened from there, and has to have the same hash. One
    that was changed in memory, or whose folder a worker does not see, travels with the plugin, once a worker.

    Parameters
    ----------
    client : Client
        Whose workers are asked for the folder.
    runs : CachedRuns
    measures : mapping of str to callable
    """

    def __init__(self, client: Client, runs: CachedRuns, measures: Mapping[str, Measure]) -> None:
        self.voice, self.kind, self.save = runs.voice, runs.pipe.device.type, runs.save
        self.measures = measures
        self.folder = None if runs.folder is None else runs.folder.resolve()
        self.source = _source(client, runs)

    def setup(self, worker: Worker) -> None:
        """Note which device is this worker's; the checkpoint is opened by the first block."""
        self.device = device_of(self.kind, str(worker.name), torch.cuda.device_count())
        self.lock = Lock()
        self.runs: CachedRuns | None = None
        self.stopped = False

    def teardown(self, worker: Worker) -> None:
        """End a block that is under way after its current row: nobody waits for it any more."""
        self.stopped = True

    def rows(self, block: Block) -> list[tuple[str, Row]]:
        """Make the rows of a block, one block at a time: a pipeline is not made for two threads."""
        with self.lock:
            if self.runs is None:
                self.runs = self._opened()
            made = KeptRows(self.runs.folder, self.measures).finish(self.runs, block, self.measures)
            return list(takewhile(lambda _: not self.stopped, made))

    def _opened(self) -> CachedRuns:
        checkpoint = self.source if isinstance(self.source, Checkpoint) else _load(*self.source)
        if voice_key(checkpoint) != self.voice:
            raise WorkbenchError(
                f"{checkpoint.folder} on this worker holds another checkpoint than on the machine that asks; "
                "copy the same files to every machine"
            )
        # On another machine the folder may mean nothing; what is made there reaches the client's by itself.
        folder = self.folder if self.folder is not None and self.folder.is_dir() else None
        pipe = Pipeline(checkpoint, self.device, progress=False)
        return CachedRuns(pipe, self.save, folder, most=len(STAGES) * (MOST + 1))


def device_of(kind: str, worker: str, visible: int) -> str:
    """Return the device of a worker.

    Workers that see several GPUs take the one that the number at the end of their name says, counted round:
    LocalCluster and dask-jobqueue number the workers of a machine. With one GPU visible, as dask-cuda
    arranges it, there is nothing to choose.
    """
    if kind != "cuda" or visible < 2:
        return kind
    number = re.search(r"\d+$", worker)
    return f"cuda:{int(number[0]) % visible if number else 0}"


def _source(client: Client, runs: CachedRuns) -> Checkpoint | tuple[Path, str]:
    """Return the folder to load and which LM, or the checkpoint itself."""
    checkpoint = runs.pipe.checkpoint
    if checkpoint.folder is None:
        return checkpoint
    where = checkpoint.folder.resolve(), "rl" if checkpoint.origin["lm"].startswith("llm.rl") else "auto"
    if not all(client.run(_holds_checkpoint, where[0]).values()):
        return checkpoint
    try:
        return where if voice_key(_load(*where)) == runs.voice else checkpoint
    except WorkbenchError:  # gone since
        return checkpoint


def _load(folder: Path, lm: str) -> Checkpoint:
    return Checkpoint.load(folder, lm)


def _holds_checkpoint(folder: Path) -> bool:
    return (folder / YAML).is_file()
