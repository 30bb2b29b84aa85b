"""Make the rows of an experiment's table, group by group, and keep finished rows in a folder.

A row holds the metrics of one run. A group is a few variants of one utterance with one seed, which share
stages and the reference run. `RowCache` keeps each row in a file of its own; the file is named by `row_key`,
a hash of everything that the row depends on.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from workbench.diagnose.experiments.cached_runs import CachedRuns, content_key
from workbench.diagnose.experiments.metrics import Metric
from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.recording import recorded_inputs

ResultRow = dict[str, float | str]  # a number for each metric, and `error`: why there are none, or ""

# Rows in a group. With fewer than 4, each worker would compute the reference run too often. With more than
# 16, a batch needs much memory, and a worker that is lost takes much work with it.
MIN_GROUP, MAX_GROUP = 4, 16
GROUPS_PER_WORKER = 4  # so that workers that finish early find more to do
MAX_ROW_BYTES = 1_000_000  # a row's file has some hundred bytes; a damaged file must not fill the memory


class RunGroup(NamedTuple):
    """Variants of one utterance with one seed.

    Parameters
    ----------
    utt : Utterance
    seed : int
    options : dict of str to Options
        The variants, each under the key of its row.
    reference : Options or None
        Options of the run that the metrics compare with.
    """

    utt: Utterance
    seed: int
    options: dict[str, Options]
    reference: Options | None

    def only(self, keys: list[str]) -> "RunGroup":
        """Return the group with some of its rows."""
        return self._replace(options={key: self.options[key] for key in keys})

    def split(self, max_rows: int) -> list["RunGroup"]:
        """Return groups of at most `max_rows` rows."""
        keys = list(self.options)
        return [self.only(keys[i : i + max_rows]) for i in range(0, len(keys), max_rows)]


def group_size(n_rows: int, n_workers: int) -> int:
    """Return the number of rows in a group for which every worker gets several groups."""
    size = n_rows // (GROUPS_PER_WORKER * max(n_workers, 1))
    return min(max(size, MIN_GROUP), MAX_GROUP)


def make_rows(
    runs: CachedRuns, group: RunGroup, metrics: Mapping[str, Metric]
) -> Iterator[tuple[str, ResultRow]]:
    """Compute the runs of a group and measure them; yield each row with its key.

    Runs that need not be eager are computed in one batch. If a run or a metric fails, the row has the reason
    in `error`; the other rows are not affected.
    """
    seeded = {key: options.but(seed=group.seed) for key, options in group.options.items()}
    reference = None if group.reference is None else group.reference.but(seed=group.seed)

    # Fill the cache with one batch. If that fails, each run is computed alone below.
    batch = [*seeded.values()] if reference is None else [*seeded.values(), reference]
    try:
        runs.compute_batch(group.utt, batch)
    except WorkbenchError:
        pass  # one run cannot be computed: below, its own row gets the reason
    except Exception as error:
        # For example too little GPU memory for a batch, while single runs fit.
        message = f"{len(batch)} runs could not be computed in one batch ({error}); now one by one"
        warnings.warn(message, stacklevel=2)

    for key, options in seeded.items():
        try:
            trace = runs.run(group.utt, options)
            reference_trace = None if reference is None else runs.run(group.utt, reference)
            row: ResultRow = {}
            for name, metric in metrics.items():
                row[name] = _to_python(metric(trace, reference_trace))
            row["error"] = ""
        except WorkbenchError as error:
            row = error_row(metrics, str(error))
        except Exception as error:  # metrics are the caller's code and may raise anything
            row = error_row(metrics, f"{type(error).__name__}: {error}")
        yield key, row


def error_row(metrics: Mapping[str, Metric], reason: str) -> ResultRow:
    """Return the row of a failed run: NaN for every metric."""
    row: ResultRow = dict.fromkeys(metrics, float("nan"))
    row["error"] = reason
    return row


class RowCache:
    """Finished rows in a folder, one small JSON file for each row.

    NaN and infinities are written as `NaN` and `Infinity`, as Python's json does; strict JSON has no such
    values. Rows with an error are not kept. Their cause may be something that the key does not cover, such
    as a missing file or a full GPU, and a failed run is usually quick to try again.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing.
    metrics : mapping of str to callable
        Their names are the columns that a row must have.
    """

    def __init__(self, folder: Path | None, metrics: Mapping[str, Metric]) -> None:
        self.folder = folder
        self.metrics = metrics

    def get(self, key: str) -> ResultRow | None:
        """Return a row; None if it is missing or its file is damaged."""
        if self.folder is None:
            return None
        try:
            with self._path(key).open("rb") as file:
                found = json.loads(file.read(MAX_ROW_BYTES))
        except (
            OSError,
            ValueError,
            RecursionError,
        ):  # RecursionError: json meets "[[[[..." in a damaged file
            return None
        if not isinstance(found, dict) or found.keys() != set(self.metrics) or not _all_numbers(found):
            return None
        row: ResultRow = {name: found[name] for name in self.metrics}
        row["error"] = ""
        return row

    def put(self, key: str, row: ResultRow) -> None:
        """Write a row, unless it has an error or a metric that is not a number."""
        numbers = {name: row[name] for name in self.metrics}
        if self.folder is None or row["error"] or not _all_numbers(numbers):
            return
        with atomic_write(self._path(key)) as draft:
            draft.write_text(json.dumps(numbers), encoding="utf-8")

    def get_or_make(self, runs: CachedRuns, group: RunGroup) -> Iterator[tuple[str, ResultRow]]:
        """Yield every row of a group with its key: first those in the folder, then those computed now."""
        missing = []
        for key in group.options:
            row = self.get(key)
            if row is None:
                missing.append(key)
            else:
                yield key, row
        for key, row in make_rows(runs, group.only(missing), self.metrics):
            self.put(key, row)
            yield key, row

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.row.json"


def row_key(
    runs: CachedRuns,
    utt: Utterance,
    options: Options,
    reference: Options | None,
    metric_keys: Mapping[str, str],
) -> str:
    """Return a hash of everything that a row depends on, except the code of the workbench and of torch.

    Parameters
    ----------
    runs : CachedRuns
        Gives the checkpoint, the recorded fields and the kind of device.
    utt : Utterance
    options, reference : Options
        With the seed.
    metric_keys : mapping of str to str
        The `metric_key` of each metric, by its name.
    """
    inputs, _ = recorded_inputs(utt)
    chosen = []
    for each in (options, reference):
        programs = (
            [] if each is None else [runs.program_hash(each, name) for name in ("estimator", "vocoder")]
        )
        chosen.append(None if each is None else [asdict(each), *programs])
    # The kind of device ("cpu", "cuda") is enough here: the workers of a cluster may have several GPUs.
    settings = [runs.checkpoint_hash, runs.pipe.device.type, runs.save, utt.mode, utt.text]
    settings += [chosen, list(metric_keys.items())]
    return content_key(settings, inputs)


def _to_python(value: object) -> object:
    """Return a numpy scalar or a tensor of one element as a Python number; other values as they are."""
    return value.item() if hasattr(value, "item") else value


def _all_numbers(row: Mapping[str, object]) -> bool:
    return all(isinstance(value, int | float) for value in row.values())
