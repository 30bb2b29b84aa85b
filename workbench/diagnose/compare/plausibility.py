"""Find what cannot be right in a single trace, without comparing it with another.

`implausible` finds values that no speech has; `inconsistent_lengths` finds fields of different runs.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from workbench.speech.config import RELEASED
from workbench.trace.schema import LM_INPUTS, STATS, SUFFIX, dims_of
from workbench.trace.trace import Trace, combine_stats, whole_region

MAX_F0 = 1000.0  # Hz; screams reach it, speech stays below half
MAX_MEL = 4.0  # natural log; speech reaches about 2
MAX_MEAN_MEL = -3.0  # natural log; the average of speech is about -6
MAX_CLAMPED = 1e-3  # share of samples that may stand at the waveform's own limit
MIN_CLAMP_LEVEL = 0.9  # of full scale; a lower limit is not taken for clamping
MIN_RMS = 1e-4  # of full scale, -80 dB: silence
MAX_OFFSET = 0.02  # of full scale: DC offset
PRINT_TOLERANCE = 0.02  # of the largest value: printing few digits moves a statistic by less

FRAMES_PER_TOKEN = RELEASED.flow.token_mel_ratio
SAMPLES_PER_FRAME = RELEASED.hift.hop_length
SAMPLES_PER_COLUMN = RELEASED.hift.istft_hop_len  # between two columns of the vocoder's spectrum


# ---- values


def implausible(trace: Trace) -> list[str]:
    """Return a sentence for everything in a trace that cannot be speech.

    Parameters
    ----------
    trace : Trace
        Fields, statistics, or both. Only what is there is checked.

    Returns
    -------
    list of str
        Empty where nothing is wrong.

    Examples
    --------
    >>> wb.implausible(trace)
    []
    >>> wb.implausible(wb.Trace({"hift/wav": trace.wav + 0.1}, trace.attrs))
    ['hift/wav has a DC offset of 0.100']
    """
    found = []
    for name, value in trace.items():
        if name.endswith(SUFFIX):
            field = name.removesuffix(SUFFIX)
            found += _check_statistics(field, combine_stats(name, value))
            found += _check_consistency(field, whole_region(name, value))
            continue
        nonfinite = int((~value.isfinite()).sum())
        if nonfinite:
            found.append(f"{name} has {nonfinite} NaN or Inf among {value.numel()} values")
        elif name in CHECKS and value.numel():
            found += CHECKS[name](value.double())
    return found


def _check_f0(f0: Tensor) -> list[str]:
    highest, count = float(f0.max()), int((f0 > MAX_F0).sum())
    if not count:
        return []
    return [
        f"hift/f0 reaches {highest:,.0f} Hz and is above {MAX_F0:,.0f} Hz in {count} of {len(f0)} "
        "frames: no voice is; look at the mel the vocoder was given, and at the precision of its f0 predictor"
    ]


def _check_mel(mel: Tensor) -> list[str]:
    mean, highest = float(mel.mean()), float(mel.max())
    if mean <= MAX_MEAN_MEL and highest <= MAX_MEL:
        return []
    return [
        f"flow/mel has mean {mean:.2f} and maximum {highest:.2f}: the natural-log mel of speech is near "
        "-6 and 2; is it in log10, normalised, or an ODE that ran away?"
    ]


def _check_wav(wav: Tensor) -> list[str]:
    found = []
    limit = float(wav.abs().max())
    # Clamping leaves many samples at exactly one level; 1e-6 of it is rounding.
    clamped = float((wav.abs() >= limit * (1 - 1e-6)).double().mean())
    if limit > MIN_CLAMP_LEVEL and clamped > MAX_CLAMPED:
        found.append(
            f"hift/wav is pinned to +-{limit:.2f} in {100 * clamped:.1f} % of its samples: it was clamped"
        )
    if float(wav.square().mean().sqrt()) < MIN_RMS:
        found.append(f"hift/wav is silent: its largest sample is {limit:.2g}")
    offset = float(wav.mean())
    if abs(offset) > MAX_OFFSET:
        found.append(f"hift/wav has a DC offset of {offset:.3f}")
    return found


def _check_statistics(field: str, stats: Tensor) -> list[str]:
    """Check the statistics (6,) of one field; a missing one is NaN and passes every check."""
    _, high, mean, _, _, nonfinite = stats.tolist()
    found = [f"{field} has {nonfinite:.0f} NaN or Inf, as the run itself says"] if nonfinite > 0 else []
    if field == "hift/f0" and high > MAX_F0:
        found.append(f"hift/f0 reaches {high:,.0f} Hz: no voice does; look at the mel the vocoder was given")
    if field == "flow/mel" and (mean > MAX_MEAN_MEL or high > MAX_MEL):
        found.append(
            f"flow/mel has mean {mean:.2f} and maximum {high:.2f}: the natural-log mel of speech is near "
            "-6 and 2"
        )
    if field == "hift/wav" and abs(mean) > MAX_OFFSET:
        found.append(f"hift/wav has a DC offset of {mean:.3f}")
    return found


def _check_consistency(field: str, stats: Tensor) -> list[str]:
    """Check that one tensor can have all statistics of an entry, (6,) or (entry, 6); report the first."""
    for k, row in enumerate(stats.reshape(-1, len(STATS)).tolist()):
        low, high, mean, mean_abs, rms, _ = row
        largest = max(abs(low), abs(high)) if low == low and high == high else math.nan
        tolerance = PRINT_TOLERANCE * largest
        # In every tensor min <= mean <= max, and mean_abs <= rms and the largest magnitude. NaN passes.
        excesses = (low - mean, mean - high, mean_abs - largest, mean_abs - rms)
        if any(excess > tolerance for excess in excesses):
            values = ", ".join(f"{name} {x:.4g}" for name, x in zip(STATS, row, strict=True) if x == x)
            where = field if stats.ndim == 1 else f"{field}[{k}]"
            return [f"{where}: {values} cannot be of one tensor; are they of several, or of several runs?"]
    return []


CHECKS: dict[str, Callable[[Tensor], list[str]]] = {
    "flow/mel": _check_mel,
    "hift/f0": _check_f0,
    "hift/wav": _check_wav,
}


# ---- lengths


def inconsistent_lengths(trace: Trace) -> list[str]:
    """Return a sentence for every two fields whose lengths cannot come from one run; empty if all fit.

    A pass of a stream (`attrs["streaming"]`) holds frames back, so that nothing follows from its lengths.

    Velocities dumped from one utterance and a waveform of the next one each look right; only their lengths
    show that they do not belong together.
    """
    if trace.attrs.get("streaming"):
        return []
    # Collect the lengths along each dimension, such as {"frame": {16: ["flow/mu"], 18: ["flow/x"]}}.
    lengths: dict[str, dict[int, list[str]]] = {}
    for name, value in trace.items():
        if not name.endswith(SUFFIX):
            for dim, length in zip(dims_of(name), value.shape, strict=True):
                lengths.setdefault(dim, {}).setdefault(length, []).append(name)

    # Fields that share a dimension must agree on its length.
    problems = []
    known: dict[str, int] = {}  # dimension -> the length on which all its fields agree
    holders: dict[str, str] = {}  # dimension -> names of these fields
    for dim, names_by_length in lengths.items():
        if len(names_by_length) > 1:
            problems.append(_describe_disagreement(dim, names_by_length))
            continue
        for length, names in names_by_length.items():
            known[dim] = length
            holders[dim] = ", ".join(names)
    if "prompt_frames" in trace.attrs:
        known["prompt_frames"] = trace.prompt_frames
        holders["prompt_frames"] = "the attribute prompt_frames"

    # Some lengths follow from others.
    speed = trace.attrs.get("options", {}).get("speed", 1.0)
    is_conversion = "in/source_token" in trace or trace.attrs.get("mode") == "conversion"
    may_be_conversion = is_conversion or not any(name in trace for name in LM_INPUTS)  # as in a dump of one
    for dim, sources, expected, rule in _length_rules(known, speed, may_be_conversion):
        if known[dim] != expected:
            sources_text = " and ".join(holders[source] for source in sources)
            verb = "makes" if len(sources) == 1 else "make"
            problems.append(
                f"{holders[dim]} has {known[dim]} along {dim}, and {sources_text} {verb} {expected} ({rule})"
            )
    return [f"fields are not of one run: {problem}" for problem in problems]


def _describe_disagreement(dim: str, names_by_length: Mapping[int, list[str]]) -> str:
    parts = [f"{length} in {', '.join(names)}" for length, names in names_by_length.items()]
    return f"{dim} is " + ", but ".join(parts)


def _length_rules(
    known: Mapping[str, int], speed: float, may_be_conversion: bool
) -> Iterator[tuple[str, tuple[str, ...], int, str]]:
    """Yield (dimension, dimensions it follows from, expected length, reason) where all of them are known.

    A speed other than 1 stretches the mel after the flow, so that its length follows from nothing before. In
    a voice conversion the last token of the prompt may lack frames: upstream does not trim it there. A trace
    without inputs of the LM may be one.
    """

    def all_known(*dims: str) -> bool:
        return all(dim in known for dim in dims)

    if all_known("knot", "step"):
        yield "knot", ("step",), known["step"] + 1, "one knot more than steps; knot 0 is the noise"
    # A prompt whose mel and tokens do not belong together explains every other misfit of its frames.
    prompt_fits = True
    if all_known("prompt_frame", "flow_prompt"):
        frames = FRAMES_PER_TOKEN * known["flow_prompt"]
        missing = frames - known["prompt_frame"]
        prompt_fits = missing == 0
        if not (may_be_conversion and 0 < missing < 2 * FRAMES_PER_TOKEN):
            yield "prompt_frame", ("flow_prompt",), frames, f"{FRAMES_PER_TOKEN} frames a token of the prompt"
    if all_known("prompt_frame", "prompt_frames"):
        yield "prompt_frame", ("prompt_frames",), known["prompt_frames"], "the prompt's mel"
    if all_known("frame", "flow_prompt", "token"):
        frames = FRAMES_PER_TOKEN * (known["flow_prompt"] + known["token"])
        yield "frame", ("flow_prompt", "token"), frames, f"{FRAMES_PER_TOKEN} frames a token"
    if all_known("target_frame", "token") and speed == 1.0 and prompt_fits:
        frames = FRAMES_PER_TOKEN * known["token"]
        yield "target_frame", ("token",), frames, f"{FRAMES_PER_TOKEN} frames a token"
    if all_known("frame", "prompt_frames", "target_frame") and speed == 1.0 and prompt_fits:
        frames = known["frame"] - known["prompt_frames"]
        yield "target_frame", ("frame", "prompt_frames"), frames, "the frames behind the prompt"
    if all_known("sample", "target_frame"):
        samples = SAMPLES_PER_FRAME * known["target_frame"]
        yield "sample", ("target_frame",), samples, f"{SAMPLES_PER_FRAME} samples a frame"
    if all_known("stft_frame", "target_frame"):
        columns = SAMPLES_PER_FRAME // SAMPLES_PER_COLUMN * known["target_frame"] + 1
        rule = f"a column every {SAMPLES_PER_COLUMN} samples, and one more"
        yield "stft_frame", ("target_frame",), columns, rule
