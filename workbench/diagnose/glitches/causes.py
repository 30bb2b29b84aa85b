"""Usual causes of what the detectors find, and whether a trace supports or refutes each of them.

A condition is a function of a trace. It returns True where the trace says that the cause was there, False
where the trace says that it was not, and None where the trace says nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from workbench.trace.trace import Trace

HALF = ("float16", "bfloat16")
FEW_STEPS = 5  # steps of the ODE; the first step that sounds like the tenth on most sentences


class Cause(NamedTuple):
    """One usual cause of a finding."""

    text: str
    condition: Callable[[Trace], bool | None] = lambda trace: None


def is_synthesised(trace: Trace) -> bool | None:
    """Return True where a trace holds more of a run than its waveform; None for a waveform alone."""
    says_so = any(name in trace.attrs for name in ("options", "checkpoint", "seams"))
    return True if says_so or any(name != "hift/wav" for name in trace) else None


def half_lm(trace: Trace) -> bool | None:
    """Whether the LM ran in half precision."""
    return _in_half(trace, "lm_dtype")


def half_flow(trace: Trace) -> bool | None:
    """Whether the flow ran in half precision."""
    return _in_half(trace, "flow_dtype")


def half_vocoder(trace: Trace) -> bool | None:
    """Whether any part of the vocoder but its f0 predictor ran in half precision."""
    answers = [_in_half(trace, name) for name in ("hift_dtype", "source_dtype", "head_dtype")]
    if True in answers:
        return True
    return None if None in answers else False


def half_f0(trace: Trace) -> bool | None:
    """Whether the f0 predictor ran in half precision."""
    return _in_half(trace, "f0_dtype")


def few_steps(trace: Trace) -> bool | None:
    """Whether the ODE had too few steps."""
    steps = _option(trace, "n_timesteps")
    return steps < FEW_STEPS if isinstance(steps, int) else None


def in_chunks(trace: Trace) -> bool | None:
    """Whether the waveform was made in several chunks; `attrs["seams"]` says where they meet."""
    if "seams" in trace.attrs:
        return len(trace.attrs["seams"]) > 0
    return False if "options" in trace.attrs else None  # our own run without seams is in one piece


def explain(causes: tuple[Cause, ...], trace: Trace) -> str:
    """Return the causes that a trace supports; without any, those that it does not refute.

    >>> causes = (Cause("the vocoder in half precision", half_vocoder), Cause("a wrong bias"))
    >>> explain(causes, Trace({}, {"options": {"hift_dtype": "float16"}}))
    'the vocoder in half precision, which the trace confirms'
    >>> single = dict.fromkeys(("hift_dtype", "source_dtype", "head_dtype"), "float32")
    >>> explain(causes, Trace({}, {"options": single}))
    'a wrong bias'
    """
    answers = [(cause.text, cause.condition(trace)) for cause in causes]
    confirmed = [text for text, answer in answers if answer is True]
    if confirmed:
        return f"{', or '.join(confirmed)}, which the trace confirms"
    possible = [text for text, answer in answers if answer is None]
    if possible:
        return ", or ".join(possible)
    refuted = " and ".join(text for text, _ in answers)
    return f"unknown: the trace rules out the usual cause ({refuted})"


def _in_half(trace: Trace, name: str) -> bool | None:
    dtype = _option(trace, name)
    return dtype.removeprefix("torch.") in HALF if isinstance(dtype, str) else None


def _option(trace: Trace, name: str) -> object:
    """Return an entry of the recorded `Options`; None where the trace has none."""
    options = trace.attrs.get("options")
    return options.get(name) if isinstance(options, dict) else None
