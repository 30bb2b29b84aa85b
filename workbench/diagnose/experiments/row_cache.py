"""Rows of a table of runs: made block by block, and kept in a folder under a hash of all they depend on."""

import functools
import hashlib
import inspect
import json
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from workbench.diagnose.experiments.cached_runs import CachedRuns, content_key
from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.speech.config import Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.recording import recorded_inputs
from workbench.trace.trace import Trace

Measure = Callable[[Trace, Trace | None], float]
Row = dict[str, float | str]  # a measure each, and `error`

FEWEST, MOST = 4, 16  # rows of a block: enough to share the reference, few enough to lose
MAX_FILE = 1_000_000


class Block(NamedTuple):
    """Variants of one utterance with one seed, so that they share stages and the reference.

    Parameters
    ----------
    utt : Utterance
    seed : int
    options : dict of str to Options
        Of each row, by the row's key.
    reference : Options or None
        Of the run that measures compare with.
    """

    utt: Utterance
    seed: int
    options: dict[str, Options]
    reference: Options | None

    def only(self, keys: list[str]) -> "Block":
        """Return the same block with some of its rows."""
        return self._replace(options={key: self.options[key] for key in keys})

    def split(self, most: int) -> list["Block"]:
        """Return blocks of at most so many rows."""
        keys = list(self.options)
        return [self.only(keys[i : i + most]) for i in range(0, len(keys), most)]


def rows_a_block(rows: int, workers: int) -> int:
    """Several blocks a worker for balance, each large enough to be worth its reference."""
    return min(max(rows // (4 * max(workers, 1)), FEWEST), MOST)


def block_rows(
    runs: CachedRuns,
    utt: Utterance,
    options: Mapping[str, Options],
    reference: Options | None,
    seed: int,
    measures: Mapping[str, Measure],
) -> Iterator[tuple[str, Row]]:
    """Make the runs of one block and measure them: a row a key of `options`.

    Runs that need not be eager are made in one batch. A run or a measure that fails has the reason in
    `error` and costs no other row.
    """
    every = [*options.values(), *([] if reference is None else [reference])]
    try:
        runs.together(utt, [chosen.but(seed=seed) for chosen in every])
    except WorkbenchError:  # met again below by the run that it belongs to
        pass
    except Exception as error:
        warnings.warn(f"{len(every)} runs could not be made together ({error}); one by one now", stacklevel=2)
    for key, chosen in options.items():
        try:
            trace = runs.run(utt, chosen.but(seed=seed))
            right = None if reference is None else runs.run(utt, reference.but(seed=seed))
            row = {name: _plain(measure(trace, right)) for name, measure in measures.items()}
        except WorkbenchError as error:
            yield key, error_row(measures, str(error))
        except Exception as error:  # a measure is anybody's code, and a GPU may be full
            yield key, error_row(measures, f"{type(error).__name__}: {error}")
        else:
            yield key, row | {"error": ""}


def error_row(measures: Mapping[str, Measure], reason: str) -> Row:
    """Return the row of a run that could not be made: NaN for every measure."""
    return dict.fromkeys(measures, float("nan")) | {"error": reason}


class KeptRows:
    """Rows in a folder, a small JSON file each, which is there whole or not at all.

    NaN and infinities are written as Python's json writes them, which strict JSON has no words for. Rows
    with an error are not kept: what was wrong may lie outside of all that the key covers, such as a file
    that was missing or a GPU that was full, and most errors are quick to make again.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing.
    measures : iterable of str
        Names that a row has to have.
    """

    def __init__(self, folder: Path | None, measures: Mapping[str, Measure]) -> None:
        self.folder, self.names = folder, list(measures)

    def get(self, key: str) -> Row | None:
        """Return a row; None where there is none, or none that can be read."""
        if self.folder is None:
            return None
        try:
            with self._path(key).open("rb") as file:
                found = json.loads(file.read(MAX_FILE))
        except (OSError, ValueError, RecursionError):  # spoiled: made again and written over
            return None
        if not isinstance(found, dict) or found.keys() != set(self.names) or not _numbers(found):
            return None
        return {name: found[name] for name in self.names} | {"error": ""}

    def put(self, key: str, row: Row) -> None:
        """Write a row that has no error and is of numbers."""
        found = {name: row[name] for name in self.names}
        if self.folder is None or row["error"] or not _numbers(found):
            return
        with atomic_write(self._path(key)) as draft:
            draft.write_text(json.dumps(found), encoding="utf-8")

    def finish(self, runs: CachedRuns, block: Block, measures: Mapping[str, Measure]) -> Iterator:
        """Give every row of a block with its key: those that are kept, and then those made now."""
        found = {key: row for key in block.options if (row := self.get(key)) is not None}
        yield from found.items()
        missing = block.only([key for key in block.options if key not in found])
        made = block_rows(runs, block.utt, missing.options, block.reference, block.seed, measures)
        for key, row in made:
            self.put(key, row)
            yield key, row

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.row.json"


def row_key(
    runs: CachedRuns, utt: Utterance, options: Options, reference: Options | None, measures: Mapping[str, str]
) -> str:
    """Return a hash of all that a row depends on but the code of the workbench and of torch.

    Parameters
    ----------
    runs : CachedRuns
        Gives the checkpoint, what is recorded, and the kind of device.
    utt : Utterance
        Its tensors.
    options, reference : Options
        With the seed.
    measures : mapping of str to str
        `measure_key` of each.
    """
    inputs, _ = recorded_inputs(utt)
    chosen = [None if o is None else [asdict(o), runs.estimator(o)] for o in (options, reference)]
    about = [runs.voice, runs.pipe.device.type, runs.save, utt.mode, utt.text, chosen, list(measures.items())]
    return content_key(about, inputs)


def measure_key(measure: Measure) -> str:
    """Return a hash of a function: its name, compiled code, defaults, the values it closes over, its module.

    The source of its whole module is covered, helpers included; of a function from a notebook or a script,
    which changes with every cell, the function alone. Not covered: what it calls elsewhere, and global
    values of a notebook. What has no source or cannot be pickled is another measure in every session.
    """
    try:
        return hashlib.sha256(json.dumps(_about(measure)).encode()).hexdigest()
    except (OSError, TypeError, AttributeError, pickle.PicklingError):
        return uuid.uuid4().hex


def _about(measure: Measure) -> list:
    if isinstance(measure, functools.partial):
        return [_about(measure.func), _held((measure.args, measure.keywords))]
    if not inspect.isfunction(measure):  # an object that can be called
        kind = type(measure)
        return [kind.__module__, kind.__qualname__, _around(kind) or inspect.getsource(kind), _held(measure)]
    cells = [cell.cell_contents for cell in measure.__closure__ or ()]
    values = [*cells, *(measure.__defaults__ or ()), *(measure.__kwdefaults__ or {}).values()]
    name, code = [measure.__module__, measure.__qualname__], _compiled(measure.__code__)
    return [*name, code, _around(measure), [_held(value) for value in values]]


def _compiled(code: CodeType) -> list:
    inside = [_compiled(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return [code.co_code.hex(), code.co_names, inside]


def _around(measure: object) -> str:
    """Return the source of the module; a notebook and a script have none to speak of."""
    module = inspect.getmodule(measure)
    return "" if module is None or module.__name__ == "__main__" else inspect.getsource(module)


def _held(value: object) -> list | str:
    return _about(value) if inspect.isfunction(value) else hashlib.sha256(pickle.dumps(value)).hexdigest()


def _plain(value: object) -> object:
    """Return what a numpy scalar or a tensor of one element holds."""
    return value.item() if hasattr(value, "item") else value


def _numbers(row: Mapping[str, object]) -> bool:
    return all(isinstance(value, int | float) for value in row.values())
