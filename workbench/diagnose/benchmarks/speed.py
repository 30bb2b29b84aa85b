"""How fast a device runs the stages, measured in turns, beside what it could do at most.

`workbench bench` prints it. The times are of one run each, medians of several rounds; in every round the
ways of computing take turns, and "eager" comes twice, so that its two rows show the noise.
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

from workbench.diagnose.benchmarks.trace_overhead import now, utterance_of_size
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.config import COMPUTE, STAGES, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.models.numerics import exact_float32, fast_float32
from workbench.speech.pipeline import Pipeline

TURNS = (*COMPUTE, "eager again")
SWEEP = 16  # variants of one utterance
COPIED = 2**28  # bytes that measure the memory's pace
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices that measure the arithmetic's


@dataclass
class Speed:
    """What was measured, as tables.

    Attributes
    ----------
    about : dict
        Device, versions, sizes; `ceilings` in bytes and operations per second.
    first : DataFrame
        By way of computing: `seconds` of the very first run, and `gigabytes` of device memory at most.
    stages : DataFrame
        By way of computing, seconds of speech, batch and stage: `seconds`, `low` and `high` over the rounds;
        `ratio`, how many times less than eager in the same round; `share` of the ceiling that bounds it.
    runs : DataFrame
        The same for whole runs: `seconds` an utterance, `rtf`, `tokens_per_second`.
    sweep : DataFrame
        `variants` of one utterance that differ in guidance and noise, in times of one run of it.
    """

    about: dict[str, Any]
    first: pd.DataFrame
    stages: pd.DataFrame
    runs: pd.DataFrame
    sweep: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        tables = ("first", "stages", "runs", "sweep")
        return {"about": self.about} | {t: getattr(self, t).to_dict("records") for t in tables}

    def __str__(self) -> str:
        parts = [", ".join(f"{name}: {value}" for name, value in self.about.items())]
        for table in (self.first, self.stages, self.runs, self.sweep):
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
        Seconds of speech, for one utterance at a time.
    batches : sequence of int
        Utterances at a time, of the first length. Above 1 there is no eager run: it has no batches.
    rounds : int
        Rounds of turns; one more goes before each, to warm up.
    watch : callable (iterator, total) -> iterator
        May show a progress bar.
    """
    pipes = {way: Pipeline(checkpoint, device, progress=False) for way in COMPUTE}
    cases = [(seconds, 1) for seconds in lengths] + [(lengths[0], n) for n in batches if n > 1]
    utt, options = _speech(checkpoint, lengths[0])
    first = pd.DataFrame([_first(way, pipe, utt, options) for way, pipe in pipes.items()])
    most = ceilings(pipes["eager"].device)
    stages, runs, work = [], [], {}
    for seconds, n in watch(iter(cases), len(cases)):
        utt, options = _speech(checkpoint, seconds)
        if seconds not in work:
            work[seconds] = _work(pipes, utt, options)
        times = _in_turns(pipes, utt, options, n, rounds)
        stages += _stage_rows(times, seconds, n, work[seconds], most)
        runs += _run_rows(times, seconds, n, checkpoint.config.token_rate)
    utt, options = _speech(checkpoint, lengths[0])
    sweep = pd.DataFrame([_sweep(way, pipes[way], utt, options, rounds) for way in COMPUTE[1:]])
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
        "ceilings": most,
    }
    return Speed(about, first, pd.DataFrame(stages), pd.DataFrame(runs), sweep)


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure what the device can do at most: bytes per second, and operations per second by arithmetic."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"bytes": 2 * COPIED / _best(device, lambda: target.copy_(source))}
    side = SIDE[device.type]
    for name, dtype, arithmetic in (
        ("float32", torch.float32, exact_float32),
        ("tf32", torch.float32, fast_float32),
        ("bfloat16", torch.bfloat16, exact_float32),
    ):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with arithmetic():
            found[name] = 2 * side**3 / _best(device, lambda a=a, b=b: a @ b)
    return found


def _speech(checkpoint: Checkpoint, seconds: float) -> tuple[Utterance, Options]:
    """An utterance and options that give so many seconds: stops are masked until then."""
    tokens = round(seconds * checkpoint.config.token_rate)
    utt = utterance_of_size(checkpoint.config, text=(tokens + 1) // 2)
    return utt, checkpoint.options.but(mask_stop_ids=True, max_tokens=tokens)


def _first(way: str, pipe: Pipeline, utt: Utterance, options: Options) -> dict[str, Any]:
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


def _in_turns(
    pipes: dict[str, Pipeline], utt: Utterance, options: Options, n: int, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Return, by turn, the seconds of each stage and of the whole, one dict a round."""
    times: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for turn in TURNS if n == 1 else COMPUTE[1:]:
            way = turn.split()[0]
            rows = [options.but(compute=way, seed=seed) for seed in range(n)]
            start = now(pipes[way].device)
            [traces] = pipes[way].synthesise_many([utt], rows)
            whole = now(pipes[way].device) - start
            spent = {stage: sum(t.attrs["timings"][stage] for t in traces) for stage in STAGES}
            if number:
                times.setdefault(turn, []).append(spent | {"whole": whole})
    return times


def _work(pipes: dict[str, Pipeline], utt: Utterance, options: Options) -> dict[str, dict[str, float]]:
    """Bytes the LM reads, operations the flow and the vocoder do for one utterance; by way of computing."""
    pipe = pipes["eager"]
    run = pipe.synthesise(utt, options=options)
    token, mel = run["lm/speech_token"], run["flow/mel"][None]
    c = pipe.condition(utt, token, options)
    with FlopCounterMode(display=False) as flow:
        next(iter(pipe.flow_steps(c, options)))
    with FlopCounterMode(display=False) as hift:
        pipe.vocode(mel, options)
    lm = pipe.stage("lm", options.lm_dtype)
    read = [*lm.qwen.layers.parameters(), *lm.qwen.norm.parameters(), lm.llm_decoder.weight]
    weights = sum(p.numel() for p in read) * len(token)
    found = {}
    for way in COMPUTE:
        size = getattr(torch, options.but(compute=way).dtype_of("lm")).itemsize
        found[way] = {
            "lm": weights * size,
            "flow": flow.get_total_flops() * options.n_timesteps,
            "hift": hift.get_total_flops(),
        }
    return found


def _stage_rows(
    times: dict[str, list[dict[str, float]]],
    seconds: float,
    n: int,
    work: dict[str, dict[str, float]],
    most: dict[str, float],
) -> Iterator[dict[str, Any]]:
    for turn, rounds in times.items():
        way = turn.split()[0]
        bound = {"lm": "bytes", "flow": "float32", "hift": "float32"}
        if way == "fast":
            bound |= {"flow": "bfloat16", "hift": "tf32"}
        for stage in STAGES:
            spent = [one[stage] for one in rounds]
            # Weights are read once for a whole batch, operations are done for each row.
            pace = work[way][stage] * (1 if stage == "lm" else n) / median(spent)
            yield {
                "compute": turn,
                "speech_s": seconds,
                "batch": n,
                "stage": stage,
                "seconds": median(spent),
                "low": min(spent),
                "high": max(spent),
                "ratio": _ratio(times, turn, stage),
                "per_second": pace,
                "of": bound[stage],
                "share": pace / most[bound[stage]],
            }


def _run_rows(
    times: dict[str, list[dict[str, float]]], seconds: float, n: int, token_rate: int
) -> Iterator[dict[str, Any]]:
    for turn, rounds in times.items():
        whole = median(one["whole"] for one in rounds)
        yield {
            "compute": turn,
            "speech_s": seconds,
            "batch": n,
            "seconds": whole / n,
            "ratio": _ratio(times, turn, "whole"),
            "rtf": whole / n / seconds,
            "tokens_per_second": n * seconds * token_rate / median(one["lm"] for one in rounds),
        }


def _ratio(times: dict[str, list[dict[str, float]]], turn: str, what: str) -> float:
    """How many times less than eager, median over the rounds."""
    if "eager" not in times:
        return float("nan")
    return median(a[what] / b[what] for a, b in zip(times["eager"], times[turn], strict=True))


def _sweep(way: str, pipe: Pipeline, utt: Utterance, options: Options, rounds: int) -> dict[str, Any]:
    own = options.but(compute=way)
    variants = [own.but(cfg_rate=0.1 * i, noise_seed=i) for i in range(SWEEP)]
    alone, together = [], []
    for _ in range(rounds + 1):
        for seconds, asked in ((alone, variants[:1]), (together, variants)):
            start = now(pipe.device)
            pipe.synthesise_many([utt], asked)
            seconds.append(now(pipe.device) - start)
    times = median(b / a for a, b in zip(alone[1:], together[1:], strict=True))
    return {
        "compute": way,
        "variants": SWEEP,
        "one_run": median(alone[1:]),
        "sweep": median(together[1:]),
        "times": times,
    }


def _best(device: torch.device, work: Callable[[], object], rounds: int = 5, repeats: int = 5) -> float:
    """Seconds that some work takes when nothing disturbs it."""
    work()
    spent = []
    for _ in range(rounds):
        start = now(device)
        for _ in range(repeats):
            work()
        spent.append((now(device) - start) / repeats)
    return min(spent)
