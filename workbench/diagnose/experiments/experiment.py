"""Many runs: variants x utterances x seeds -> one tidy table, nothing computed twice."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from workbench.diagnose.experiments.cached_runs import CachedRuns
from workbench.diagnose.experiments.metrics import MEASURES
from workbench.diagnose.experiments.row_cache import (
    MOST,
    Block,
    KeptRows,
    Measure,
    Row,
    measure_key,
    row_key,
    rows_a_block,
)
from workbench.errors import WorkbenchError
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import NOTHING, Save
from workbench.trace.trace import Trace

if TYPE_CHECKING:
    from distributed import Client

Place = tuple[str, str, int]  # variant, utterance, seed


class Experiment:
    """Every variant of every utterance with every seed, measured.

    Parameters
    ----------
    pipe : Pipeline
    utts : mapping of str to Utterance
    variants : mapping of str to mapping
        Options that differ from the checkpoint's own: `{"one step": {"n_timesteps": 1}}`.
    reference : str, optional
        The variant that measures compare with, of the same utterance and seed.
    measures : mapping of str to callable
        `(trace, reference's trace or None) -> number`; see `workbench.diagnose.experiments.metrics`.
    seeds : sequence of int
        Of the sampler.
    save, folder
        As in `CachedRuns`. The folder keeps finished rows as well, so that a sweep that was stopped goes on
        with those that are missing. A row is known by a hash of the checkpoint (weights, sizes, noise), the
        utterance's tensors, its own and the reference's options with the seed, the kind of device, what is
        recorded, and the measures with their code (`measure_key` says how far). The code of the workbench and
        of torch is not in it: take another folder after changing that. Rows with an error are tried again.

    Raises
    ------
    WorkbenchError
        When the reference is no variant, or an option is unknown or out of range; before anything runs.
    """

    def __init__(
        self,
        pipe: Pipeline,
        utts: Mapping[str, Utterance],
        variants: Mapping[str, Mapping[str, Any]],
        reference: str | None = None,
        measures: Mapping[str, Measure] = MEASURES,
        seeds: Sequence[int] = (0,),
        save: Save | str | Iterable[str] = NOTHING,
        folder: str | os.PathLike | None = None,
    ) -> None:
        if reference is not None and reference not in variants:
            raise WorkbenchError(f"reference is {reference!r}; expected one of {', '.join(variants)}")
        own = pipe.checkpoint.options
        self.options = {name: own.but(**changes) for name, changes in variants.items()}
        self.utts, self.reference, self.measures, self.seeds = utts, reference, measures, seeds
        self.runs = CachedRuns(pipe, save, folder)

    def trace(self, variant: str, utterance: str, seed: int | None = None) -> Trace:
        """Return one of the runs, made now if it was not before."""
        seed = self.seeds[0] if seed is None else seed
        return self.runs.run(self.utts[utterance], self.options[variant].but(seed=seed))

    def run(self, client: "Client | None" = None) -> pd.DataFrame:
        """Return one row a run: `variant`, `utterance`, `seed`, a column a measure, and `error`.

        A run or a measure that fails has the reason in `error`, and NaN for every measure.

        Parameters
        ----------
        client : distributed.Client, optional
            Runs on its workers in place of here; see `dask_workers`. The table is the same, but
            for rounding where workers compute with another number of threads or another GPU.
        """
        places = self._places()
        look = {"unit": " run", "delay": 1.0, "leave": False, "disable": not self.runs.pipe.progress}
        with closing(self.rows(client)) as rows:
            bar = tqdm(rows, "runs", len(places), **look)
            found = {(row["variant"], row["utterance"], row["seed"]): row for row in bar}
        return pd.DataFrame([found[place] for place in places])

    def rows(self, client: "Client | None" = None) -> Iterator[Row]:
        """Give the rows as they come, in any order: first those that the folder keeps."""
        places: dict[str, list[Place]] = {}
        for place, key in self._keys():
            places.setdefault(key, []).append(place)
        for key, row in self._made(client, {key: same[0] for key, same in places.items()}):
            for place in places[key]:
                yield dict(zip(("variant", "utterance", "seed"), place, strict=True)) | row

    def _places(self) -> list[Place]:
        return [(v, u, s) for u in self.utts for s in self.seeds for v in self.options]

    def _keys(self) -> Iterator[tuple[Place, str]]:
        measures = {name: measure_key(measure) for name, measure in self.measures.items()}
        for variant, utterance, seed in self._places():
            options = self.options[variant].but(seed=seed)
            reference = None if self.reference is None else self.options[self.reference].but(seed=seed)
            key = row_key(self.runs, self.utts[utterance], options, reference, measures)
            yield (variant, utterance, seed), key

    def _made(self, client: "Client | None", places: dict[str, Place]) -> Iterator[tuple[str, Row]]:
        if self.runs.folder is not None:
            self.runs.folder.mkdir(parents=True, exist_ok=True)
        kept = KeptRows(self.runs.folder, self.measures)
        missing = dict(places)
        for key in places:
            row = kept.get(key)
            if row is not None:
                del missing[key]
                yield key, row
        blocks = self._blocks(missing)
        if client is None:
            for part in (part for block in blocks for part in block.split(MOST)):
                yield from kept.finish(self.runs, part, self.measures)
        elif blocks:
            from workbench.diagnose.experiments.dask_workers import (
                remote_rows,  # half a second for what few runs need
            )

            most = rows_a_block(len(missing), len(client.nthreads()))
            parts = [part for block in blocks for part in block.split(most)]
            for key, row in remote_rows(client, self.runs, parts, self.measures):
                kept.put(key, row)
                yield key, row

    def _blocks(self, places: dict[str, Place]) -> list[Block]:
        """One block for every utterance and seed."""
        reference = None if self.reference is None else self.options[self.reference]
        blocks: dict[tuple[str, int], Block] = {}
        for key, (variant, utterance, seed) in places.items():
            new = Block(self.utts[utterance], seed, {}, reference)
            blocks.setdefault((utterance, seed), new).options[key] = self.options[variant]
        return list(blocks.values())
