"""Measure how soon a stream sounds, and whether it keeps ahead of who listens.

`workbench bench stream` prints it. In every round the ways of computing, the hops and the numbers of streams
take turns, so that all see the same machine. Times are medians over the rounds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pandas as pd

from workbench.diagnose.benchmarks.trace_overhead import now, utterance_of_length
from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import COMPUTE, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.streaming.state import StreamState
from workbench.speech.streaming.stream import stream_many

HOPS = ("growing", "fixed")
CASE = ["compute", "hop", "streams"]  # columns that tell what was measured
TIMES = ["begin_s", "audio_s", "ready_s", "took_s", "margin_s"]


def measure_stream(
    checkpoint: Checkpoint,
    device: str = "cpu",
    ways: Sequence[str] = COMPUTE,
    seconds: float = 10.0,
    streams: Sequence[int] = (1,),
    rounds: int = 3,
    watch: Callable[[Iterator, int], Iterator] = lambda steps, n: steps,
) -> Iterator[pd.DataFrame]:
    """Time every chunk, in turns. What was measured before a run is cut off can be kept.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : str
    ways : sequence of {"eager", "exact", "fast"}
    seconds : float
        Of speech.
    streams : sequence of int
        Streams at a time. They have the same length, and all begin at the same moment.
    rounds : int
        One more goes before, to warm up.
    watch : callable (iterator, total) -> iterator
        May show a progress bar.

    Yields
    ------
    DataFrame
        After each turn behind the first round, one row a chunk. `compute`, `hop` ("growing", or "fixed" at
        the checkpoint's `chunk_size`), `streams`, `chunk`; `begin_s`, the speech before it; `audio_s`, its
        speech; `ready_s` after the start of all; `took_s` since the chunk before; `margin_s`, how long before
        it is needed it is there, where sound is played from the first chunk on: below 0 the sound is
        interrupted. Of several streams, the slowest counts.

    Raises
    ------
    WorkbenchError
        When a number is not positive, or a way of computing is unknown.
    """
    _check(ways, seconds, streams, rounds)
    pipe = Pipeline(checkpoint, device, progress=False)
    utt, options = utterance_of_length(checkpoint, round(seconds * checkpoint.config.token_rate))
    cases = [(way, hop, n) for way in ways for hop in HOPS for n in streams]
    turns = [(number, case) for number in range(rounds + 1) for case in cases]
    for number, case in watch(iter(turns), len(turns)):
        way, hop, n = case
        if pipe.device.type == "cuda":  # other turns may have driven out the graphs of this one
            _time(pipe, utt, options.but(compute=way), hop, n)
        timed = _time(pipe, utt, options.but(compute=way), hop, n)
        if number > 0:  # the first round warms up
            names = dict(zip(CASE, case, strict=True))
            yield timed.assign(**names, chunk=range(1, len(timed) + 1))[[*CASE, "chunk", *TIMES]]


def medians(turns: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the medians over the rounds of what `measure_stream` yields, one row per case and chunk."""
    return pd.concat(turns).groupby([*CASE, "chunk"], sort=False).median().reset_index()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the main figures of a table of `medians`: one row per case.

    `first_s`: time to first sound; `slowest_s`: the longest wait for another chunk; `least_margin_s`, the
    smallest `margin_s`; `done_s`: all sound is there; `speech_s`, its length.
    """
    rows = []
    for case, part in table.groupby(CASE, sort=False):
        rows.append(
            dict(zip(CASE, case, strict=True))
            | {
                "first_s": part["ready_s"].iloc[0],
                "slowest_s": part["took_s"].iloc[1:].max(),
                "least_margin_s": part["margin_s"].min(),
                "done_s": part["ready_s"].iloc[-1],
                "speech_s": part["audio_s"].sum(),
            }
        )
    return pd.DataFrame(rows)


def _check(ways: Sequence[str], seconds: float, streams: Sequence[int], rounds: int) -> None:
    for way in ways:
        if way not in COMPUTE:
            raise WorkbenchError(f"compute is {way!r}; expected one of {', '.join(COMPUTE)}")
    for name, values in (("seconds", [seconds]), ("streams", streams), ("rounds", [rounds])):
        for value in values:
            if not value > 0:
                raise WorkbenchError(f"{name} is {value}; expected a number above 0")


def _time(pipe: Pipeline, utt: Utterance, options: Options, hop: str, n: int) -> pd.DataFrame:
    """Return the columns behind `chunk` for each chunk; of several streams the slowest counts."""
    size = pipe.config.chunk_size
    state = StreamState(size, max_hop=size if hop == "fixed" else None)
    rate = pipe.config.hift.sampling_rate
    chunks: list[list[tuple[float, float]]] = [[] for _ in range(n)]  # (audio_s, ready_s) by stream
    utts = [replace(utt) for _ in range(n)]  # each its own, so that nothing is shared between them
    start = now(pipe.device)
    for index, chunk in stream_many(pipe, utts, options, state):  # the samples are on the CPU
        chunks[index].append((len(chunk.wav) / rate, time.perf_counter() - start))
    tables = []
    for of_stream in chunks:
        table = pd.DataFrame(of_stream, columns=["audio_s", "ready_s"])
        table["begin_s"] = table["audio_s"].cumsum() - table["audio_s"]
        table["took_s"] = table["ready_s"].diff().fillna(table["ready_s"])
        table["margin_s"] = table["ready_s"].iloc[0] + table["begin_s"] - table["ready_s"]
        table.loc[0, "margin_s"] = float("nan")  # nothing plays before it
        tables.append(table)
    slowest = pd.concat(tables).groupby(level=0)
    columns = {"margin_s": "min", "begin_s": "max", "audio_s": "max", "ready_s": "max", "took_s": "max"}
    return slowest.agg(columns)
