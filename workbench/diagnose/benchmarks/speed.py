"""Measure how fast a device runs the stages, and how near that is to what the device can do.

`workbench bench speed` prints it. In every round the ways of computing take turns, so that all see the same
machine; "eager" comes twice, so that the difference of its two rows shows the noise. Times are medians over
the rounds.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from workbench.diagnose.benchmarks.trace_overhead import now, utterance_of_length
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import COMPUTE, FLOW, HIFT, LM, STAGES, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models.numerics import exact_float32, fast_float32
from workbench.speech.pipeline import Pipeline

AGAIN = "eager again"
TURNS = (*COMPUTE, AGAIN)  # the order in every round
BATCHED = COMPUTE[1:]  # eager runs one utterance at a time
TABLES = ("first", "stages", "runs", "sweep")

SWEEP_VARIANTS = 16  # variants of one utterance
SWEEP_CFG_STEP = 0.1  # the variants' guidance is 0, 0.1, 0.2 ...
COPY_BYTES = 2**28  # size of the copy that measures memory; far larger than any cache
# Side of the square matrices that measure arithmetic: large enough to keep all units of the device busy.
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
CEILING_ROUNDS, CEILING_REPEATS = 5, 5  # the best round counts; several repeats, so that the clock is exact

# The ceiling that bounds each stage: the LM reads all its weights for every token, the others compute.
CEILING_OF = {LM: "bytes", FLOW: "float32", HIFT: "float32"}
FAST_CEILING_OF = {LM: "bytes", FLOW: "bfloat16", HIFT: "tf32"}


@dataclass
class Speed:
    """The result of `measure_speed`, as tables.

    Attributes
    ----------
    about : dict
        Device, versions, sizes; `ceilings` in bytes and operations per second.
    first : DataFrame
        By way of computing: `seconds` of the very first run, and `gigabytes` of device memory at most.
    stages : DataFrame
        By way of computing, seconds of speech, batch and stage: `seconds`, `low` and `high` over the rounds;
        `ratio`, eager's seconds in the same round over these; `per_second`, bytes or operations; `share` of
        the ceiling `of`.
    runs : DataFrame
        The same for complete runs: `seconds` per utterance, `rtf`, `tokens_per_second`.
    sweep : DataFrame
        `variants` of one utterance that differ in guidance and noise: `times`, their seconds over those of
        one run.
    """

    about: dict[str, Any]
    first: pd.DataFrame
    stages: pd.DataFrame
    runs: pd.DataFrame
    sweep: pd.DataFrame

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Speed":
        """Return what `to_dict` made a dict of."""
        return cls(found["about"], *(pd.DataFrame(found[name]) for name in TABLES))

    def to_dict(self) -> dict[str, Any]:
        """Return everything in the form of JSON."""
        return {"about": self.about} | {name: getattr(self, name).to_dict("records") for name in TABLES}

    def summary(self) -> pd.DataFrame:
        """Return the main figures: one row per figure, one column per way of computing.

        The figures are of the first length of speech.
        """
        seconds = self.stages["speech_s"].iloc[0]
        rows = []
        one = self.stages[(self.stages["speech_s"] == seconds) & (self.stages["batch"] == 1)]
        for stage, part in one.groupby("stage", sort=False):
            rows.append({"figure": f"{stage}, {seconds:g} s of speech [s]"} | _by_way(part, "seconds"))
        for n, part in self.runs[self.runs["speech_s"] == seconds].groupby("batch"):
            what = "RTF, one utterance" if n == 1 else f"RTF per utterance, {n} at a time"
            rows.append({"figure": what} | _by_way(part, "rtf"))
        variants = self.sweep["variants"].iloc[0]
        what = f"{variants} variants of one utterance [times of one run]"
        rows.append({"figure": what} | _by_way(self.sweep, "times"))
        rows.append({"figure": "device memory, one utterance [GB]"} | _by_way(self.first, "gigabytes"))
        rows.append({"figure": "first run: kernels, graphs [s]"} | _by_way(self.first, "seconds"))
        return pd.DataFrame(rows, columns=["figure", *COMPUTE])

    def __str__(self) -> str:
        parts = [", ".join(f"{name}: {value}" for name, value in self.about.items())]
        for name in TABLES:
            table = getattr(self, name)
            parts.append(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
        return "\n\n".join(parts)


def measure_speed(
    checkpoint: Checkpoint,
    device: str = "cpu",
    lengths: Sequence[float] = (10.0,),
    batches: Sequence[int] = (1,),
    rounds: int = 5,
    watch: Callable[[Iterator, int], Iterator] = lambda steps, n: steps,
) -> Speed:
    """Time every way of computing.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : str
    lengths : sequence of float
        Seconds of speech of a single utterance.
    batches : sequence of int
        Utterances at a time, of the first length. For more than 1 there is no eager run.
    rounds : int
        One more round goes before each measurement, to warm up.
    watch : callable (iterator, total) -> iterator
        May show a progress bar.
    """
    pipes = {way: Pipeline(checkpoint, device, progress=False) for way in COMPUTE}
    utt, options = _speech(checkpoint, lengths[0])
    first = pd.DataFrame([_first_run(way, pipe, utt, options) for way, pipe in pipes.items()])
    device_ceilings = ceilings(pipes["eager"].device)

    cases = [(seconds, 1) for seconds in lengths]
    cases += [(lengths[0], n) for n in batches if n > 1]
    stage_rows: list[dict[str, Any]] = []
    run_rows: list[dict[str, Any]] = []
    work: dict[float, dict[str, dict[str, float]]] = {}  # by seconds of speech
    for seconds, n in watch(iter(cases), len(cases)):
        utt, options = _speech(checkpoint, seconds)
        if seconds not in work:
            work[seconds] = _work(pipes, utt, options)
        times = _time_in_turns(pipes, utt, options, n, rounds)
        stage_rows += _stage_rows(times, seconds, n, work[seconds], device_ceilings)
        run_rows += _run_rows(times, seconds, n, checkpoint.config.token_rate)

    utt, options = _speech(checkpoint, lengths[0])
    sweep = pd.DataFrame([_sweep(way, pipes[way], utt, options, rounds) for way in BATCHED])
    name = torch.cuda.get_device_name(pipes["eager"].device) if "cuda" in device else platform.machine()
    about = {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "checkpoint": checkpoint.name,
        "text_tokens": len(utt.text_token),
        "prompt_tokens": len(utt.flow_prompt_token),
        "n_timesteps": options.n_timesteps,
        "rounds": rounds,
        "ceilings": device_ceilings,
    }
    return Speed(about, first, pd.DataFrame(stage_rows), pd.DataFrame(run_rows), sweep)


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure what the device can do at most.

    Returns
    -------
    dict
        `bytes` per second of a copy; operations per second of matrix products in `float32`, `tf32` and
        `bfloat16`.
    """
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Each byte of a copy is read once and written once.
    found = {"bytes": 2 * COPY_BYTES / _best_seconds(device, lambda: target.copy_(source))}
    side = MATRIX_SIDE[device.type]
    for name, dtype, arithmetic in (
        ("float32", torch.float32, exact_float32),
        ("tf32", torch.float32, fast_float32),
        ("bfloat16", torch.bfloat16, exact_float32),
    ):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with arithmetic():
            seconds = _best_seconds(device, lambda a=a, b=b: a @ b)
        found[name] = 2 * side**3 / seconds  # a multiplication and an addition each
    return found


def _speech(checkpoint: Checkpoint, seconds: float) -> tuple[Utterance, Options]:
    """Return an utterance and options that give so many seconds of speech."""
    return utterance_of_length(checkpoint, round(seconds * checkpoint.config.token_rate))


def _first_run(way: str, pipe: Pipeline, utt: Utterance, options: Options) -> dict[str, Any]:
    """Time the first run, which builds models, kernels and graphs; on a GPU measure its memory as well."""
    on_gpu = pipe.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(pipe.device)
        torch.cuda.reset_peak_memory_stats(pipe.device)
    start = time.perf_counter()
    pipe.synthesise(utt, options=options.but(compute=way))
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(pipe.device) - before if on_gpu else float("nan")
    return {"compute": way, "seconds": seconds, "gigabytes": peak / 1e9}


def _time_in_turns(
    pipes: dict[str, Pipeline], utt: Utterance, options: Options, n: int, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Return by turn the seconds of each stage and of the complete batch ("all"), one dict per round."""
    times: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for turn in TURNS if n == 1 else BATCHED:
            way = _way_of(turn)
            batch = [options.but(compute=way, seed=seed) for seed in range(n)]
            start = now(pipes[way].device)
            [traces] = pipes[way].synthesise_many([utt], batch)
            seconds = {"all": now(pipes[way].device) - start}
            for stage in STAGES:
                seconds[stage] = sum(trace.attrs["timings"][stage] for trace in traces)
            if number > 0:  # the first round warms up
                times.setdefault(turn, []).append(seconds)
    return times


def _way_of(turn: str) -> str:
    return "eager" if turn == AGAIN else turn


def _work(pipes: dict[str, Pipeline], utt: Utterance, options: Options) -> dict[str, dict[str, float]]:
    """Return by way of computing what each stage does for one utterance.

    For the LM these are the bytes of weights that it reads, for flow and vocoder the operations.
    """
    pipe = pipes["eager"]
    run = pipe.synthesise(utt, options=options)
    token = run["lm/speech_token"]
    condition = pipe.condition(utt, token, options)
    with FlopCounterMode(display=False) as one_step:
        next(iter(pipe.flow_steps(condition, options)))
    with FlopCounterMode(display=False) as vocoder:
        pipe.vocode(run["flow/mel"][None], options)
    lm = pipe.stage(LM, options.lm_dtype)
    read = [*lm.qwen.layers.parameters(), *lm.qwen.norm.parameters(), lm.llm_decoder.weight]
    weights_read = sum(parameter.numel() for parameter in read) * len(token)  # all of them for every token
    work = {}
    for way in COMPUTE:
        dtype = getattr(torch, options.but(compute=way).dtype_of(LM))
        work[way] = {
            LM: weights_read * dtype.itemsize,
            FLOW: one_step.get_total_flops() * options.n_timesteps,
            HIFT: vocoder.get_total_flops(),
        }
    return work


def _stage_rows(
    times: dict[str, list[dict[str, float]]],
    seconds: float,
    n: int,
    work: dict[str, dict[str, float]],
    device_ceilings: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `Speed.stages` for one length of speech and one batch size."""
    for turn, rounds in times.items():
        way = _way_of(turn)
        bounds = FAST_CEILING_OF if way == "fast" else CEILING_OF
        for stage in STAGES:
            spent = [one[stage] for one in rounds]
            # Weights are read once for a whole batch; operations are done for every row of it.
            done = work[way][stage] * (1 if stage == LM else n)
            per_second = done / median(spent)
            yield {
                "compute": turn,
                "speech_s": seconds,
                "batch": n,
                "stage": stage,
                "seconds": median(spent),
                "low": min(spent),
                "high": max(spent),
                "ratio": _ratio(times, turn, stage),
                "per_second": per_second,
                "of": bounds[stage],
                "share": per_second / device_ceilings[bounds[stage]],
            }


def _run_rows(
    times: dict[str, list[dict[str, float]]], seconds: float, n: int, token_rate: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `Speed.runs` for one length of speech and one batch size."""
    for turn, rounds in times.items():
        spent = median(one["all"] for one in rounds)
        yield {
            "compute": turn,
            "speech_s": seconds,
            "batch": n,
            "seconds": spent / n,
            "ratio": _ratio(times, turn, "all"),
            "rtf": spent / n / seconds,
            "tokens_per_second": n * seconds * token_rate / median(one[LM] for one in rounds),
        }


def _ratio(times: dict[str, list[dict[str, float]]], turn: str, what: str) -> float:
    """Return eager's seconds over those of another turn in the same round, median over the rounds."""
    if "eager" not in times:
        return float("nan")
    pairs = zip(times["eager"], times[turn], strict=True)
    return median(eager[what] / other[what] for eager, other in pairs)


def _sweep(way: str, pipe: Pipeline, utt: Utterance, options: Options, rounds: int) -> dict[str, Any]:
    """Return the row of `Speed.sweep` of one way of computing: one run and many variants, in turns."""
    own = options.but(compute=way)
    variants = [own.but(cfg_rate=SWEEP_CFG_STEP * i, noise_seed=i) for i in range(SWEEP_VARIANTS)]
    one_run: list[float] = []
    all_variants: list[float] = []
    for number in range(rounds + 1):
        for seconds, batch in ((one_run, variants[:1]), (all_variants, variants)):
            start = now(pipe.device)
            pipe.synthesise_many([utt], batch)
            duration = now(pipe.device) - start
            if number > 0:  # the first round warms up
                seconds.append(duration)
    return {
        "compute": way,
        "variants": SWEEP_VARIANTS,
        "one_run": median(one_run),
        "sweep": median(all_variants),
        "times": median(many / one for one, many in zip(one_run, all_variants, strict=True)),
    }


def _best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds that some work takes when nothing disturbs it: those of the best round."""
    work()
    spent = []
    for _ in range(CEILING_ROUNDS):
        start = now(device)
        for _ in range(CEILING_REPEATS):
            work()
        spent.append((now(device) - start) / CEILING_REPEATS)
    return min(spent)


def _by_way(table: pd.DataFrame, column: str) -> dict[str, float]:
    """Return a column of a table as a dict by way of computing; "eager again" is left out."""
    rows = table[table["compute"].isin(COMPUTE)]
    return dict(zip(rows["compute"], rows[column], strict=True))
