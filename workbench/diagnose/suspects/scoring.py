"""Score how well sets of faults explain what another implementation of the model recorded.

The *candidate* is a run of the other implementation. A *fault* is a known mistake, such as a wrong sign, that
we can build into our model. An *observation* is one result of the candidate. It has a function that predicts
the result for any set of faults. The prediction is *local* if our model is called once, on the inputs that
the candidate recorded: the velocity of step 3 is computed from the recorded state of step 3. Otherwise a run
of all stages up to the result is simulated: a mel is computed from the text.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from workbench.diagnose.compare.transitions import loop_dimension
from workbench.diagnose.suspects.catalogue.faults import HEALTHY, Fault, Faults
from workbench.diagnose.suspects.observations import Observation
from workbench.diagnose.suspects.other_kernels import OTHER_SUMS
from workbench.diagnose.suspects.random_errors import (
    MIN_COSINE,
    MIN_COSINE_OF_STATISTICS,
    are_statistics_of_draw,
    is_draw,
    is_rounding,
)
from workbench.diagnose.suspects.simulate import RANK
from workbench.trace.schema import BRANCH_VELOCITIES

# A score is the number of decades (powers of ten) by which a distance exceeds what rounding and storage
# explain.
MIN_WRONG_SCORE = 0.15  # a factor of 1.4; a result with a higher score is wrong
MAX_FIT_SCORE = 0.3  # a factor of 2; a fault with a score up to this reproduces the candidate's result
# A fault that rounds values, or draws random numbers, has errors that our model cannot predict one by one.
# We can only test whether the candidate's error looks like such an error: it has the same size and direction,
# or the same distribution. A fault that passes the test gets this score. It is above 0, so that faults whose
# errors are predicted exactly come first.
LIKENESS_SCORE = MIN_WRONG_SCORE
# Two programs in half precision may be so many times as far apart as our model is from itself where it adds
# in another order.
ROUNDING_ALLOWANCE = 2.0
# Decades by which the sizes of two errors of half precision may differ in statistics: a factor of 3. Other
# processors round in other places; a factor of 2.2 was seen.
ROUNDING_SIZE_TOLERANCE = 0.5
# A draw is one run of our model with one set of random numbers.
MIN_DRAWS = 2  # needed to know how far draws are from each other
# `_nearness_without` returns decades. By chance alone a draw may be nearer by one decade than the others are.
MAX_NEARNESS = 1.0
MAX_NEARNESS_COUNTED = 2.0  # stands for infinity, where the candidate's distance is 0
# An evaluation of the estimator costs most, so faults are tried in it at a few steps only. All steps are
# checked for being right.
FAULTY_STEPS = 3


class CausalKey(NamedTuple):
    """Sorting key of an observation: what a run computes first comes first."""

    stage_rank: int  # rank of the field in the order of a run; all fields of the ODE's loop have one rank
    index: int  # number of the token that the LM draws, or of the ODE's step
    field_rank: int  # within one step: first the state, then the velocities computed from it


class Scorer:
    """Score sets of faults by how far the candidate is from our model with these faults; lower is better.

    The score of one observation is 0 if its distance is within what rounding allows, 1 if the distance is ten
    times as large, and 2 if it is a hundred times as large. The total is a sum over fields. A field with
    several observations, such as one for each step, counts with their average, so that long loops do not
    outweigh other fields.

    Predictions and scores are cached, because the search asks for the same ones many times.

    Parameters
    ----------
    observations : list of Observation
        Methods refer to them by their number in this list.
    """

    def __init__(self, observations: list[Observation]) -> None:
        self.observations = observations
        self.predict = functools.cache(self._predict)
        self.score = functools.cache(self._score)
        numbers = range(len(observations))
        self.in_causal_order = sorted(numbers, key=lambda number: causal_key(observations[number]))

    # ---- scores

    def total(self, faults: Faults) -> float:
        """Return the score of a model with these faults over all observations."""
        scores_by_field: dict[str, list[float]] = {}
        for number, observation in enumerate(self.observations):
            scores_by_field.setdefault(observation.field, []).append(self.score(number, faults))
        return sum(sum(scores) / len(scores) for scores in scores_by_field.values())

    def _score(self, number: int, faults: Faults) -> float:
        """Return the score of one observation under these faults.

        It is the distance in decades, with two exceptions for faults that round or draw. If the candidate's
        statistics equal those without the fault, the score is high. If its error looks like an error of the
        fault, the score is low.
        """
        observation = self.observations[number]
        # Drop faults that cannot change this observation: many sets of faults then share one cached score.
        effective = tuple(fault for fault in faults if observation.affects(fault))
        if effective != faults:
            return self.score(number, effective)

        score = _decades_above(observation.allowed, self.distance(number, effective))
        for fault in effective:
            others = tuple(other for other in effective if other is not fault)
            is_random = fault.rounds or bool(fault.redraws)  # the fault rounds, or draws random numbers
            if is_random and observation.is_statistics:
                nearness = self._nearness_without(number, fault, others)
                if nearness > MAX_NEARNESS:
                    return max(self.score(number, others), nearness)
            if is_random and score > MIN_WRONG_SCORE:
                score = min(score, self._score_by_likeness(number, fault, others))
        return score

    def _nearness_without(self, number: int, fault: Fault, others: Faults) -> float:
        """Return whether the candidate lies nearer to our model without a fault than runs with it do.

        The result is log10(a / b), in decades. `a` is the distance between our model with the fault and
        without it; for a fault that draws, the distance of the nearest draw. `b` is the distance between the
        candidate and our model without the fault. A high value shows that the candidate does not have the
        fault, even where rounding would allow both distances.
        """
        observation = self.observations[number]
        without = self.predict(number, others)
        errors = []
        for redraw in (fault, *fault.redraws):
            draw = self.predict(number, (*others, redraw))
            if without is not None and draw is not None and draw.shape == without.shape:
                errors.append(observation.distance(draw, without))
        nearest = min(errors, default=0.0)
        if not nearest:
            return 0.0
        smallest_counted = nearest / 10**MAX_NEARNESS_COUNTED
        found = max(observation.distance(observation.found, without), smallest_counted)
        return math.log10(nearest / found)

    def _score_by_likeness(self, number: int, fault: Fault, others: Faults) -> float:
        """Score a fault by whether the candidate's error looks like one that the fault makes.

        This is for faults that round values (`fault.rounds`), and for faults that draw random numbers
        (`fault.redraws` holds the same fault with further draws).

        Parameters
        ----------
        number : int
        fault : Fault
        others : tuple of Fault
            The rest of the set. The error is measured against a model with these faults, so that what they
            explain is not counted for this one.
        """
        observation = self.observations[number]
        without, with_fault = self.predict(number, others), self.predict(number, (*others, fault))
        score_without = self.score(number, others)
        if without is None or with_fault is None:  # our model fails with these faults
            return score_without
        if without.shape != observation.found.shape or with_fault.shape != observation.found.shape:
            return score_without
        expected_error = observation.distance(with_fault, without)
        if expected_error <= observation.allowed:
            return score_without  # the fault changes nothing that could be seen here

        # If the candidate lacks an error that the fault would make, that speaks against the fault.
        found_error = observation.distance(observation.found, without)
        # In decades: how much larger the expected error is than the one that was found.
        missing_error = _decades_above(max(found_error, observation.allowed), expected_error)
        # `_nearness_without` has already judged the statistics of draws, with a wider tolerance.
        is_judged = observation.is_statistics and bool(fault.redraws)
        if missing_error > MAX_FIT_SCORE and not is_judged:
            return max(score_without, missing_error)

        if fault.redraws:
            predictions = [self.predict(number, (*others, redraw)) for redraw in fault.redraws]
            draws = [prediction for prediction in predictions if prediction is not None]
            if len(draws) < MIN_DRAWS:
                looks_like_it = False
            elif observation.is_statistics:
                looks_like_it = are_statistics_of_draw(observation.found, draws, observation.allowed)
            else:
                looks_like_it = is_draw(observation.found, without, draws, observation.allowed)
        else:
            min_cosine = MIN_COSINE_OF_STATISTICS if observation.is_statistics else MIN_COSINE
            # Most of a rounding error comes from the weights, which every implementation rounds alike.
            looks_like_it = is_rounding(observation.found - without, with_fault - without, min_cosine)
        return min(score_without, LIKENESS_SCORE) if looks_like_it else score_without

    def is_as_large(self, number: int, fault: Fault, others: Faults) -> bool:
        """Whether the candidate's error is about as large as the one that a fault makes."""
        observation = self.observations[number]
        without, with_fault = self.predict(number, others), self.predict(number, (*others, fault))
        if without is None or with_fault is None or without.shape != with_fault.shape:
            return False
        expected = observation.distance(with_fault, without)
        found = observation.distance(observation.found, without)
        return min(expected, found) > 0 and abs(math.log10(expected / found)) <= ROUNDING_SIZE_TOLERANCE

    def distance(self, number: int, faults: Faults) -> float:
        """Return the distance of the candidate's result to the prediction with these faults.

        If our model fails with these faults, the distance is the maximum, `MAX_DISTANCE`.
        """
        observation = self.observations[number]
        return observation.distance(observation.found, self.predict(number, faults))

    def _predict(self, number: int, faults: Faults) -> Tensor | None:
        return self.observations[number].predict(faults)

    def is_wrong(self, number: int, faults: Faults = HEALTHY) -> bool:
        """Whether the candidate differs from a model with these faults at this observation."""
        return self.score(number, faults) > MIN_WRONG_SCORE

    def is_within_rounding(self, number: int, faults: Faults) -> bool:
        """Whether a result differs from a model with these faults as another program's rounding does.

        So it may where one of the faults rounds, such as a stage in half precision: the other program adds in
        another order, and therefore rounds other values up and down. And so may the tokens of a simulated
        run: where two are almost equally likely, rounding decides, and all later tokens follow from that.
        """
        observation = self.observations[number]
        is_rounded = any(fault.rounds and observation.affects(fault) for fault in faults)
        is_decided = observation.field == "lm/drawn_token" and not observation.is_local
        if not is_rounded and not is_decided:
            return False
        ours = self.predict(number, faults)
        spread = 0.0
        for order in OTHER_SUMS:
            other = self.predict(number, (*faults, order))
            if ours is not None and other is not None:
                spread = max(spread, observation.distance(other, ours))
        return self.distance(number, faults) <= ROUNDING_ALLOWANCE * spread

    def is_beyond_prediction(self, number: int, faults: Faults) -> bool:
        """Whether a result is farther from the prediction than rounding of float32 explains.

        A fault that rounds may explain it all the same, by the likeness of the error.
        """
        observation = self.observations[number]
        return _decades_above(observation.allowed, self.distance(number, faults)) > MIN_WRONG_SCORE

    # ---- what the search needs

    def groups(self) -> list[list[int]]:
        """Return groups of observations, in causal order. The search explains one group after another.

        A field with local predictions is a group of its own. In a simulated run, later fields inherit the
        errors of earlier ones: the fields of the ODE's loop are then one group, and each other field is one.
        """
        grouped: dict[tuple, list[int]] = {}
        for number in self.in_causal_order:
            observation = self.observations[number]
            # Fields of the ODE share a rank, and all other fields have one of their own.
            rank = causal_key(observation).stage_rank
            key = observation.field if observation.is_local else rank
            grouped.setdefault((observation.is_local, key), []).append(number)
        return list(grouped.values())

    def alignment(self, fault: Fault, number: int, chosen: Faults) -> float:
        """Return how much a fault changes one result in the direction of the candidate's error, from -1 to 1.

        It is the cosine between `after - before` and `found - before`. Here `before` comes from a model with
        the chosen faults, `after` from a model with this fault too, and `found` from the candidate. Unlike
        the score, the cosine is high also where a second fault adds to the error. The search uses it to
        choose pairs of faults. It is 0 where the fault cannot change the result.
        """
        observation = self.observations[number]
        before, after = self.predict(number, chosen), self.predict(number, (*chosen, fault))
        if before is None or after is None or not observation.affects(fault):
            return 0.0
        if before.shape != observation.found.shape or after.shape != observation.found.shape:
            return 0.0
        return _cosine(after - before, observation.found - before)

    def evidence(self, fault: Fault, numbers: Iterable[int]) -> pd.DataFrame:
        """Return the distances that speak for or against a fault, one row for each of these observations that
        the fault affects.

        Returns
        -------
        DataFrame
            `place`; `healthy` and `faulty`, the distances to a healthy model and to one with this fault;
            `allowed`, the distance that rounding explains; `fits`, whether the fault explains the result.
        """
        rows = []
        for number in numbers:
            observation = self.observations[number]
            if observation.affects(fault):
                rows.append(
                    {
                        "place": observation.name,
                        "healthy": self.distance(number, HEALTHY),
                        "faulty": self.distance(number, (fault,)),
                        "allowed": observation.allowed,
                        "fits": self.score(number, (fault,)) <= MAX_FIT_SCORE,
                    }
                )
        return pd.DataFrame(rows, columns=["place", "healthy", "faulty", "allowed", "fits"])


def causal_key(observation: Observation) -> CausalKey:
    """Return the sorting key of an observation.

    The ODE computes all its fields step by step. Therefore they share the rank of the first of them,
    `flow/t`, and are sorted by step before they are sorted by field.
    """
    # A field in a loop has an entry for each step.
    grows_in_a_loop = loop_dimension(observation.field) is not None
    is_ode = grows_in_a_loop and observation.field.startswith("flow/")  # the LM has a loop as well
    stage_rank = RANK["flow/t"] if is_ode else RANK[observation.field]
    return CausalKey(stage_rank, observation.index or 0, RANK[observation.field])


def _decades_above(allowed: float, distance: float) -> float:
    """Return by how many powers of ten a distance exceeds what is allowed; 0 within it."""
    return math.log10(max(distance, allowed) / allowed)


def _cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two tensors; values that are NaN on either side have no part in it."""
    a, b = a.double().flatten(), b.double().flatten()
    finite = a.isfinite() & b.isfinite()
    a, b = a[finite], b[finite]
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))  # 1e-300: no division by zero


def thinned(observations: list[Observation], scorer: Scorer) -> list[Observation]:
    """Keep the estimator's results of a few steps, spread evenly: wrong ones, and right ones beside them.

    Most faults of the estimator show at every step, and each step costs one evaluation for each fault.
    """
    right_steps: set[int] = set()
    wrong_steps: set[int] = set()
    for number, observation in enumerate(observations):
        if _is_estimator(observation):
            steps = wrong_steps if scorer.is_wrong(number) else right_steps
            steps.add(observation.index)
    right_steps -= wrong_steps  # steps at which only one of the two branches of guidance is wrong
    kept = {*_spread(sorted(wrong_steps)), *_spread(sorted(right_steps))}
    return [one for one in observations if not _is_estimator(one) or one.index in kept]


def _is_estimator(observation: Observation) -> bool:
    return observation.is_local and observation.field in BRANCH_VELOCITIES


def _spread(steps: list[int]) -> list[int]:
    """Return at most `FAULTY_STEPS` of the steps: the first, the last, and others evenly between."""
    if len(steps) <= FAULTY_STEPS:
        return steps
    last = len(steps) - 1
    return [steps[round(k * last / (FAULTY_STEPS - 1))] for k in range(FAULTY_STEPS)]
