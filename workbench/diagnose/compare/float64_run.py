"""What rounding explains at each place of a run: ten times its distance from the same run in float64.

The run in float64 has the same speech tokens and the same noise. It takes most of the time of a comparison.
So it is made one step of the ODE at a time, and only as far as it decides something: a place that is equal
but for its last bits needs no measurement, nor does one that is far beyond all that was measured before.
"""

import functools

from torch import Tensor

from workbench.diagnose.compare.distance import ALLOWANCE, relative
from workbench.diagnose.compare.rounding import MIN_ALLOWED
from workbench.diagnose.compare.transitions import (
    FLOAT64_PRECISION,
    entry_or_none,
    loop_dimension,
    transitions,
)
from workbench.speech.config import HIFT, LM, STAGES
from workbench.speech.pipeline import Pipeline
from workbench.trace.record import EVERYTHING
from workbench.trace.schema import VELOCITIES
from workbench.trace.trace import Trace

# A difference that is so many times larger than what rounding explained in a velocity before is no rounding,
# although rounding grows from step to step: from the first velocity to the largest 45 times in 64 steps of
# half precision, 27 times in ten steps of Heun's method, less with the usual options.
FAR = 1000.0
NEEDED = ("in/text_token", *STAGES["flow"].inputs)  # of a run, so that it can be made again


class Float64Run:
    """The run of a reference in float64, from its speech tokens on, made as far as it is needed.

    Ask in causal order: a measurement at one place serves those after it.

    Parameters
    ----------
    reference : Trace
        Holds the fields `NEEDED`.
    pipe : Pipeline
        Of the reference's checkpoint.
    """

    def __init__(self, reference: Trace, pipe: Pipeline) -> None:
        self.reference, self.pipe = reference, pipe
        recorded = reference.attrs.get("options", {})
        self.options = pipe.checkpoint.options.but(**(recorded | FLOAT64_PRECISION))
        # A run that begins inside the ODE is made from the state that it begins at, or else from the noise.
        # Then its entries are not those of the run in float64.
        first_step = reference.attrs.get("first_step", 0)
        begins_at_state = "flow/x" in reference and 0 < first_step < self.options.n_timesteps
        self._first_step = first_step if begins_at_state else 0
        self._has_same_entries = self._first_step == first_step
        self._steps: list[Trace] = []  # of the ODE, each a run of this step alone
        self._largest = 0.0  # the most that was measured of a velocity
        self._mel_is_far = False

    def allowed(self, field: str, index: int | None, distance: float) -> float:
        """Return the relative L2 that rounding explains at a place of the reference.

        Parameters
        ----------
        field : str
        index : int or None
            Of the entry, in a field that grows in a loop.
        distance : float
            How far the candidate is there. Rounding is measured only where that is neither tiny nor far
            beyond it.

        Returns
        -------
        float
            Measured; or the least that is always allowed; or, where the candidate is far off, the most that
            was measured of a velocity before.
        """
        if distance <= MIN_ALLOWED:
            return MIN_ALLOWED
        if field.startswith("flow/") and self._largest and distance > FAR * self._largest:
            self._mel_is_far |= field == "flow/mel"
            return self._largest
        return self.measured(field, index)

    def measured(self, field: str, index: int | None) -> float:
        """Measure the relative L2 that rounding explains at a place of the reference."""
        x = entry_or_none(self.reference, field, index)
        exact = None if x is None else self._at(field, index)
        if exact is None or exact.shape != x.shape:
            return MIN_ALLOWED  # nothing could be measured
        allowed = max(MIN_ALLOWED, ALLOWANCE * relative(exact, x))
        if field in VELOCITIES:
            self._largest = max(self._largest, allowed)
        return allowed

    def _at(self, field: str, index: int | None) -> Tensor | None:
        """Return what float64 gives at a place; None where it gives nothing."""
        stage = field.partition("/")[0]
        if stage == "in" or field in ("lm/drawn_token", "lm/speech_token"):  # given
            return entry_or_none(self.reference, field, index)
        if stage == LM:
            return entry_or_none(self._lm, field, index)
        if stage == HIFT:
            # Where the mel is another one, the vocoder's own rounding is all that is asked for.
            return entry_or_none(self._on_own_mel if self._mel_is_far else self._sound, field, index)
        if field == "flow/mel":
            return self._step(self._last_step)[field]
        if index is None:
            return entry_or_none(self._step(0), field, index)
        # Knot k + 1 is where step k ends.
        step = max(0, index - 1) if loop_dimension(field) == "knot" else index
        if not self._has_same_entries or step > self._last_step:
            return None
        return entry_or_none(self._step(step), field, index - step)

    @property
    def _last_step(self) -> int:
        return self.options.n_timesteps - 1 - self._first_step

    def _step(self, number: int) -> Trace:
        """Return the run of one step of the ODE; of the first one that the reference has for 0."""
        while len(self._steps) <= number:
            given = self._steps[-1] if self._steps else self.reference
            place = f"flow/step/{self._first_step + len(self._steps)}"
            step = self.pipe.replay(given, place, self.options, EVERYTHING, stop_after=place)
            self._steps.append(step)
        return self._steps[number]

    @functools.cached_property
    def _sound(self) -> Trace:
        return self.pipe.replay(self._step(self._last_step), "hift", self.options, EVERYTHING)

    @functools.cached_property
    def _on_own_mel(self) -> Trace:
        return self.pipe.replay(self.reference, "hift", self.options, EVERYTHING)

    @functools.cached_property
    def _lm(self) -> Trace:
        """What the LM computes for the recorded tokens. It is not run again: it might draw others."""
        for step in transitions(self.reference):
            if step.outputs == ("lm/logp",) and step.can_recompute(self.reference):
                logp = step.recompute(self.pipe, self.reference, self.options)[0].cpu()
                return Trace({"lm/logp": logp, "lm/entropy": -(logp.exp() * logp).sum(-1)}, {})
        return Trace({}, {})


def float64_run_of(reference: Trace, pipe: Pipeline | None) -> Float64Run | None:
    """Return the run of a reference in float64; None without a pipeline, or where inputs are missing."""
    if pipe is None or any(name not in reference for name in NEEDED):
        return None
    return Float64Run(reference, pipe)
