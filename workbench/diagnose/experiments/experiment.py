"""Run variants x utterances x seeds and gather one tidy table; nothing is computed twice."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.metric_key import metric_key
from workbench.diagnose.experiments.metrics import METRICS, Metric
from workbench.diagnose.experiments.row_cache import (
    MAX_GROUP,
    ResultRow,
    RowCache,
    RunGroup,
    group_size,
    row_key,
)
from workbench.errors import WorkbenchError
from workbench.files import check_writable
from workbench.progress import ProgressBar
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.tables import table_html
from workbench.trace.record import NOTHING, Save
from workbench.trace.trace import Trace

if TYPE_CHECKING:
    from distributed import Client


class RunName(NamedTuple):
    """The name of one run of an experiment."""

    variant: str
    utterance: str
    seed: int


class Experiment:
    """Every variant of every utterance with every seed, measured.

    Parameters
    ----------
    pipe : Pipeline
    utts : mapping of str to Utterance
        The utterances by name.
    variants : mapping of str to mapping
        By name, the options that differ from the checkpoint's own: `{"one step": {"n_timesteps": 1}}`.
    reference : str, optional
        Name of the variant that the others are compared with, for the same utterance and seed.
    metrics : mapping of str to callable
        By column, functions of a trace and of the reference's trace (or None) that return a number; see
        `workbench.diagnose.experiments.metrics`.
    seeds : sequence of int
        Seeds of the sampler.
    save, folder
        As in `CachedRuns`. Finished rows are kept in the folder too, so that an experiment that was stopped
        computes only the missing rows. A row is found by a hash of the checkpoint (weights, sizes, noise), of
        the utterance's tensors, of the options of its variant and of the reference, with the seed, of the
        kind of device, of the recorded fields, and of the metrics with their code (`metric_key` says which
        code). The code of the workbench and of torch is not part of the hash: use another folder after
        changing that. Rows with an error are not kept.

    Raises
    ------
    WorkbenchError
        Before anything runs: when the reference is not a variant, or an option is unknown or out of range.

    Examples
    --------
    >>> variants = {f"{n} steps": {"n_timesteps": n, "max_tokens": 8} for n in (2, 1)}
    >>> experiment = wb.Experiment(pipe, {"mars": utt}, variants, reference="2 steps")
    >>> experiment
    Experiment of 2 variants x 1 utterance x 1 seed, compared with '2 steps'
    >>> table = experiment.run()
    >>> table[["variant", "utterance", "seed", "error"]]
       variant utterance  seed error
    0  2 steps      mars     0
    1  1 steps      mars     0
    >>> table["mel_l1"].tolist()[0], bool(table["mel_l1"][1] > 0.05)  # log-mel difference from the reference
    (0.0, True)
    """

    def __init__(
        self,
        pipe: Pipeline,
        utts: Mapping[str, Utterance],
        variants: Mapping[str, Mapping[str, Any]],
        reference: str | None = None,
        metrics: Mapping[str, Metric] = METRICS,
        seeds: Sequence[int] = (0,),
        save: Save | str | Iterable[str] = NOTHING,
        folder: str | os.PathLike | None = None,
    ) -> None:
        if reference is not None and reference not in variants:
            raise WorkbenchError(f"reference is {reference!r}; expected one of {', '.join(variants)}")
        own = pipe.checkpoint.options
        self.options = {name: own.but(**changes) for name, changes in variants.items()}
        self.variants = variants
        self.utts = utts
        self.reference = reference
        self.metrics = metrics
        self.seeds = seeds
        # `run` has one bar for all runs, so the loops within a run show none.
        self.runs = CachedRuns(pipe.watched(lambda steps, *_: steps), save, folder)

    def __repr__(self) -> str:
        counts = {"variant": len(self.options), "utterance": len(self.utts), "seed": len(self.seeds)}
        size = " x ".join(f"{n} {word}" + "s" * (n != 1) for word, n in counts.items())
        compared = "" if self.reference is None else f", compared with {self.reference!r}"
        return f"Experiment of {size}{compared}"

    def _repr_html_(self) -> str:
        """The size of the experiment, and the changed options of each variant."""
        changes = {name: pd.Series(dict(options), dtype=object) for name, options in self.variants.items()}
        table = table_html(pd.DataFrame(changes).T)
        return f"<div><b>{escape(repr(self))}</b>{table}</div>"

    def trace(self, variant: str, utterance: str, seed: int | None = None) -> Trace:
        """Return one of the runs, from the cache or computed now; `seed` is the first one by default."""
        seed = self.seeds[0] if seed is None else seed
        return self.runs.run(self.utts[utterance], self.options[variant].but(seed=seed))

    def run(self, client: "Client | None" = None) -> pd.DataFrame:
        """Return a table with one row per run: `variant`, `utterance`, `seed`, each metric, and `error`.

        If a run or a metric fails, `error` has the reason and every metric is NaN.

        Parameters
        ----------
        client : distributed.Client, optional
            Compute on its workers in place of this process; see `dask_workers.py`. The table is the same
            except for rounding, where workers have another number of threads or another GPU.
        """
        names = self._run_names()
        found: dict[RunName, ResultRow] = {}
        hide_bar = not self.runs.pipe.progress
        with closing(self.rows(client)) as rows:
            # The bar appears after one second, so that short experiments show none.
            for row in ProgressBar(
                rows, "runs", len(names), leave=False, unit=" run", delay=1.0, disable=hide_bar
            ):
                found[RunName(row["variant"], row["utterance"], row["seed"])] = row
        return pd.DataFrame([found[name] for name in names])

    def rows(self, client: "Client | None" = None) -> Iterator[ResultRow]:
        """Yield the rows of the table as they are finished, in any order; rows from the folder come first."""
        # Runs with equal settings have equal keys, whatever their names. Each key is computed once.
        names: dict[str, list[RunName]] = {}
        with self._imports_on_workers(client):
            for name, key in self._row_keys():
                names.setdefault(key, []).append(name)
        first_names = {key: same[0] for key, same in names.items()}
        for key, row in self._rows_by_key(client, first_names):
            for name in names[key]:
                yield name._asdict() | row

    def _imports_on_workers(self, client: "Client | None") -> AbstractContextManager:
        if client is None:
            return nullcontext()
        # Imported here because dask takes half a second to import, and most experiments do not need it.
        from workbench.diagnose.experiments.dask_workers import imports_on_workers

        return imports_on_workers(client, self.runs.pipe.device.type)

    def _run_names(self) -> list[RunName]:
        """Return the names of all runs in the order of the table."""
        return [
            RunName(variant, utterance, seed)
            for utterance in self.utts
            for seed in self.seeds
            for variant in self.options
        ]

    def _row_keys(self) -> Iterator[tuple[RunName, str]]:
        """Yield the name of every run with the key of its row."""
        metric_keys = {name: metric_key(metric) for name, metric in self.metrics.items()}
        for name in self._run_names():
            options = self.options[name.variant].but(seed=name.seed)
            reference = None
            if self.reference is not None:
                reference = self.options[self.reference].but(seed=name.seed)
            yield name, row_key(self.runs, self.utts[name.utterance], options, reference, metric_keys)

    def _rows_by_key(
        self, client: "Client | None", names: Mapping[str, RunName]
    ) -> Iterator[tuple[str, ResultRow]]:
        """Yield each row with its key: rows from the folder first, then those that are computed now."""
        if self.runs.folder is not None:
            check_writable(self.runs.folder / "row.json")
        cache = RowCache(self.runs.folder, self.metrics)
        missing = dict(names)
        for key in names:
            row = cache.get(key)
            if row is not None:
                del missing[key]
                yield key, row
        if not missing:
            return

        groups = self._groups(missing)
        if client is None:
            for group in groups:
                for part in group.split(MAX_GROUP):
                    yield from cache.get_or_make(self.runs, part)
            return
        from workbench.diagnose.experiments.dask_workers import remote_rows  # slow to import

        max_rows = group_size(len(missing), len(client.nthreads()))
        parts = [part for group in groups for part in group.split(max_rows)]
        for key, row in remote_rows(client, self.runs, parts, self.metrics):
            cache.put(key, row)
            yield key, row

    def _groups(self, names: Mapping[str, RunName]) -> list[RunGroup]:
        """Return one group for every utterance and seed, so that its variants share stages."""
        reference = None if self.reference is None else self.options[self.reference]
        groups: dict[tuple[str, int], RunGroup] = {}
        for key, name in names.items():
            place = (name.utterance, name.seed)
            if place not in groups:
                groups[place] = RunGroup(self.utts[name.utterance], name.seed, {}, reference)
            groups[place].options[key] = self.options[name.variant]
        return list(groups.values())
