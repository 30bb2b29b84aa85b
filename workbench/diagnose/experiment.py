"""Many runs: variants x utterances x seeds -> one tidy table, nothing computed twice."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from workbench.diagnose.cached_runs import CachedRuns
from workbench.diagnose.run_measures import MEASURES
from workbench.errors import WorkbenchError
from workbench.speech.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import NOTHING, Save
from workbench.trace.trace import Trace

Measure = Callable[[Trace, Trace | None], float]


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
        `(trace, reference's trace or None) -> number`; see `workbench.diagnose.run_measures`.
    seeds : sequence of int
        Of the sampler.
    save, folder
        As in `CachedRuns`.

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

    def run(self) -> pd.DataFrame:
        """Return one row a run: `variant`, `utterance`, `seed`, a column a measure, and `error`.

        A run that cannot be made has the reason in `error`, and NaN for every measure.
        """
        places = [(v, u, s) for u in self.utts for s in self.seeds for v in self.options]
        bar = tqdm(places, "runs", unit=" run", delay=1.0, leave=False, disable=not self.runs.pipe.progress)
        return pd.DataFrame([self._row(*place) for place in bar])

    def _row(self, variant: str, utterance: str, seed: int) -> dict[str, Any]:
        row = {"variant": variant, "utterance": utterance, "seed": seed}
        try:
            trace = self.trace(variant, utterance, seed)
            right = None if self.reference is None else self.trace(self.reference, utterance, seed)
        except WorkbenchError as error:
            return row | dict.fromkeys(self.measures, float("nan")) | {"error": str(error)}
        return row | {name: measure(trace, right) for name, measure in self.measures.items()} | {"error": ""}
