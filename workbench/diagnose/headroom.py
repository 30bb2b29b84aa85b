"""How near the values of every module come to the largest number of a dtype."""

import pandas as pd
import torch
from torch import Tensor

from workbench.diagnose.quantisation.measure import eager_model
from workbench.errors import WorkbenchError
from workbench.speech.config import Options
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import taps
from workbench.trace.trace import Trace

# The largest finite number of each dtype.
MAX_FINITE = {name: torch.finfo(getattr(torch, name)).max for name in ("float16", "bfloat16", "float32")}


def headroom(pipe: Pipeline, trace: Trace, dtype: str = "float16") -> pd.DataFrame:
    """Return how often the largest value of every module could double before `dtype` overflows.

    Parameters
    ----------
    pipe : Pipeline
    trace : Trace
        A run with `in/*` and `lm/speech_token`; flow and vocoder run again from there.
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    DataFrame
        One row for each module, step and branch: `stage`, `module`, `step` and `branch` ("cond" or "uncond")
        of the flow, `max_abs`, `doublings`. Below 0 doublings the module overflows; NaN stays NaN.

    Raises
    ------
    WorkbenchError
        When the trace lacks the inputs.

    Examples
    --------
    >>> room = wb.headroom(pipe, trace)
    >>> room["stage"].unique().tolist()
    ['flow', 'hift']
    >>> bool((room["doublings"] > 0).all())  # nothing overflows
    True
    """
    if dtype not in MAX_FINITE:
        raise WorkbenchError(f"dtype is {dtype!r}; expected one of {', '.join(MAX_FINITE)}")
    # The Euler solver calls the estimator once a step, so that calls can be counted as steps.
    options = _eager_options(pipe, trace).but(solver="euler")
    estimator = eager_model(pipe, "flow", options).decoder.estimator
    hift = eager_model(pipe, "hift", options)
    with taps(estimator, "*", keep=_peaks) as flow_peaks, taps(hift, "*", keep=_peaks) as hift_peaks:
        pipe.replay(trace, "flow", options)

    rows = []
    for module, calls in flow_peaks.items():
        for step, peaks in enumerate(calls):  # peaks of the batch: (conditional, unconditional)
            for branch, peak in zip(("cond", "uncond"), peaks, strict=False):
                rows.append(("flow", module, step, branch, float(peak)))
    for module, calls in hift_peaks.items():
        is_weight = "parametrizations" in module  # these modules compute weights, not values of the run
        if calls and not is_weight:
            rows.append(("hift", module, None, None, float(calls[0][0])))
    frame = pd.DataFrame(rows, columns=["stage", "module", "step", "branch", "max_abs"])
    frame["step"] = frame["step"].astype("Int64")
    frame["doublings"] = (MAX_FINITE[dtype] / torch.tensor(frame["max_abs"].to_numpy())).log2().numpy()
    return frame


def _peaks(value: Tensor) -> Tensor:
    """Return the largest magnitude of each row of the batch (B,); NaN stays NaN."""
    return value.detach().abs().flatten(1).amax(1) if value.ndim > 1 else value.detach().abs()


def _eager_options(pipe: Pipeline, trace: Trace) -> Options:
    """Return a run's options for the eager models: fast paths do not call the modules that are tapped."""
    return pipe.checkpoint.options.but(**trace.attrs.get("options", {})).but(compute="eager")
