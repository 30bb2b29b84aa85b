"""Usual causes of what the detectors find, and what a trace says for and against each of them.

A waveform does not show which stage made it wrong. So a cause is named only where the run is known to have
had it, such as half precision or few steps of the ODE. Otherwise the cause is not known. What often sounds so
is listed then, less what the trace refutes. Where the mel may be wrong already, no stage behind it is
suspected.

A condition is a function of a trace. It returns True where the run had what the cause names, False where it
had not, and None where the trace says nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from workbench.diagnose.compare.plausibility import implausible
from workbench.trace.schema import SUFFIX
from workbench.trace.trace import Trace

HALF = ("float16", "bfloat16")
FEW_STEPS = 5  # Euler steps of the ODE; the first number that sounds like ten on most sentences
SECOND_ORDER = ("midpoint", "heun")  # solvers whose steps count as two Euler steps


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
    """Whether the ODE had so few steps that the mel may be far from the solution."""
    steps = _count_steps(trace)
    if steps is None:
        return None
    return steps * (2 if _option(trace, "solver") in SECOND_ORDER else 1) < FEW_STEPS


def in_chunks(trace: Trace) -> bool | None:
    """Refute what happens between chunks where the waveform is in one piece, which `attrs["seams"]` says.

    That a run had chunks does not say that one of them went wrong, so this is never True.
    """
    if "seams" in trace.attrs:
        return None if len(trace.attrs["seams"]) else False
    return False if "options" in trace.attrs else None  # our own run without seams is in one piece


def wrong_mel(trace: Trace) -> str:
    """Return why the mel is suspected to be wrong before the vocoder has it; empty without a reason.

    >>> wrong_mel(Trace({}, {"options": {"n_timesteps": 1}}))
    'the ODE had few steps (1)'
    >>> wrong_mel(Trace({}, {"options": {"n_timesteps": 10}}))
    ''
    """
    if few_steps(trace):
        return f"the ODE had few steps ({_count_steps(trace)})"
    fields = {name: trace[name] for name in ("flow/mel",) if name in trace}
    return "flow/mel is unlike speech" if implausible(Trace(fields, {})) else ""


def explain(causes: tuple[Cause, ...], trace: Trace, follows_mel: bool = False) -> str:
    """Return the causes that a run is known to have had; without any, those that the trace does not refute.

    Parameters
    ----------
    causes : tuple of Cause
    trace : Trace
    follows_mel : bool
        Whether a healthy vocoder makes such a sound from a wrong mel.

    Examples
    --------
    >>> causes = (Cause("the vocoder in half precision", half_vocoder), Cause("a wrong bias"))
    >>> explain(causes, Trace({}, {"options": {"hift_dtype": "float16"}}))
    'perhaps the vocoder in half precision, which this run had'
    >>> single = dict.fromkeys(("hift_dtype", "source_dtype", "head_dtype"), "float32")
    >>> explain(causes, Trace({}, {"options": single}))
    'not known; often a wrong bias'
    >>> explain(causes, Trace({}, {"options": single | {"n_timesteps": 1}}), follows_mel=True)
    'perhaps the mel that the vocoder was given: the ODE had few steps (1)'
    """
    answers = [(cause.text, cause.condition(trace)) for cause in causes]
    had = [f"{text}, which this run had" for text, answer in answers if answer is True]
    if follows_mel and (reason := wrong_mel(trace)):
        had.insert(0, f"the mel that the vocoder was given: {reason}")
    if had:
        return f"perhaps {'; or '.join(had)}"
    possible = [text for text, answer in answers if answer is None]
    if follows_mel:
        possible.append("a wrong mel")
    if possible:
        return f"not known; often {', or '.join(possible)}"
    refuted = " and ".join(text for text, _ in answers)
    return f"not known; the trace rules out the usual cause ({refuted})"


def _count_steps(trace: Trace) -> int | None:
    """Return the number of steps of the ODE; None where the trace does not say it."""
    steps = _option(trace, "n_timesteps")
    if isinstance(steps, int):
        return steps
    for name in ("flow/t", "flow/t" + SUFFIX):
        if name in trace and len(trace[name]) > 1:
            first = trace.attrs.get("first_step", 0)
            return first + len(trace[name]) - 1 if isinstance(first, int) else None
    return None


def _in_half(trace: Trace, name: str) -> bool | None:
    dtype = _option(trace, name)
    return dtype.removeprefix("torch.") in HALF if isinstance(dtype, str) else None


def _option(trace: Trace, name: str) -> object:
    """Return an entry of the recorded `Options`; None where the trace has none."""
    options = trace.attrs.get("options")
    return options.get(name) if isinstance(options, dict) else None
