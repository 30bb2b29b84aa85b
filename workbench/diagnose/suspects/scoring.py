"""Score how well sets of faults explain what a candidate recorded, and find the faults worth scoring."""

import functools
import math
from collections.abc import Iterable

import pandas as pd
from torch import Tensor

from workbench.diagnose.compare.transitions import loop_dimension
from workbench.diagnose.suspects.faults import HEALTHY, Fault, Faults
from workbench.diagnose.suspects.observations import Observation
from workbench.diagnose.suspects.random_errors import (
    MIN_COSINE,
    MIN_COSINE_OF_STATISTICS,
    are_statistics_of_draw,
    is_draw,
    is_rounding,
)
from workbench.diagnose.suspects.simulate import RANK

# Scores are in decades (powers of ten) above what rounding and storage explain.
MIN_WRONG_SCORE = 0.15  # above it a single observation is wrong
MAX_FIT_SCORE = 0.3  # up to this score a fault fits an observation; 0.3 decades is a factor of 2
# A fault whose error cannot be predicted value by value gets this score where the error is of its kind, so
# that faults that predict every value rank before it.
SAME_KIND_SCORE = 0.15


class Scorer:
    """Score sets of faults by how far the candidate is from a model that has them; lower is better.

    The score of one observation is 0 if its distance is within what rounding allows, 1 if it is ten times as
    large, 2 if a hundred times. The total is the sum over fields; of a field with several entries the average
    counts, so that a loop of many steps does not outweigh other fields.

    Predictions and scores are cached, because the search needs the same ones many times.

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

    def total(self, faults: Faults, numbers: Iterable[int] | None = None) -> float:
        """Return the score of a model with these faults over some observations, or over all for None."""
        scores_by_field: dict[str, list[float]] = {}
        for number in range(len(self.observations)) if numbers is None else numbers:
            field = self.observations[number].field
            scores_by_field.setdefault(field, []).append(self.score(number, faults))
        return sum(sum(scores) / len(scores) for scores in scores_by_field.values())

    def _score(self, number: int, faults: Faults) -> float:
        """Return the score of one observation under these faults."""
        observation = self.observations[number]
        # Drop faults that cannot change this observation: many sets of faults then share one cached score.
        effective = tuple(fault for fault in faults if observation.affects(fault))
        if effective != faults:
            return self.score(number, effective)

        score = _decades_above(observation.allowed, self.distance(number, effective))
        for fault in effective:
            if score > MIN_WRONG_SCORE and (fault.rounds or fault.redraws):
                others = tuple(other for other in effective if other is not fault)
                score = min(score, self._score_of_kind(number, fault, others))
        return score

    def _score_of_kind(self, number: int, fault: Fault, others: Faults) -> float:
        """Return the score of a fault that rounds or draws: is the candidate's error of the same kind?

        The error is measured against a model with all other faults of the set, so that what those explain is
        not counted for this one.
        """
        observation = self.observations[number]
        without, with_fault = self.predict(number, others), self.predict(number, (*others, fault))
        score_without = self.score(number, others)
        shape = observation.found.shape
        if without is None or with_fault is None or not shape == without.shape == with_fault.shape:
            return score_without
        expected_error = observation.distance(with_fault, without)
        if expected_error <= observation.allowed:
            return score_without  # the fault changes nothing that could be seen here

        # An error that the fault would make and the candidate does not have speaks against the fault; not so
        # in statistics of other random numbers, which agree by chance.
        found_error = observation.distance(observation.found, without)
        missing_error = _decades_above(max(found_error, observation.allowed), expected_error)
        may_agree = observation.is_statistics and bool(fault.redraws)
        if missing_error > MAX_FIT_SCORE and not may_agree:
            return max(score_without, missing_error)
        if fault.redraws:
            draws = [self.predict(number, (*others, redraw)) for redraw in fault.redraws]
            drawn = [draw for draw in draws if draw is not None]
            is_one_of = are_statistics_of_draw if observation.is_statistics else is_draw
            fits = len(drawn) > 1 and is_one_of(observation.found, drawn, observation.allowed)
        else:
            min_cosine = MIN_COSINE_OF_STATISTICS if observation.is_statistics else MIN_COSINE
            fits = is_rounding(observation.found - without, with_fault - without, min_cosine)
        return min(score_without, SAME_KIND_SCORE) if fits else score_without

    def distance(self, number: int, faults: Faults) -> float:
        """Return the distance of the candidate's result to that of a model with these faults."""
        observation = self.observations[number]
        return observation.distance(observation.found, self.predict(number, faults))

    def _predict(self, number: int, faults: Faults) -> Tensor | None:
        return self.observations[number].predict(faults)

    def is_wrong(self, number: int, faults: Faults = HEALTHY) -> bool:
        """Whether the candidate differs from a model with these faults at this observation."""
        return self.score(number, faults) > MIN_WRONG_SCORE

    # ---- groups of observations that are explained together

    def groups(self) -> list[list[int]]:
        """Return the observations in causal order, those that one fault makes wrong at once in one group.

        A locally predicted field is a group of its own. Fields that were predicted by simulated runs inherit
        errors from each other; all fields of the ODE's loop are then one group.
        """
        found: dict[tuple, list[int]] = {}
        for number in self.in_causal_order:
            observation = self.observations[number]
            if observation.is_local:
                key = (observation.field, True)
            else:
                key = (causal_key(observation)[0], False)
            found.setdefault(key, []).append(number)
        return list(found.values())

    # ---- which faults are worth scoring

    def alignment(self, fault: Fault, numbers: Iterable[int], chosen: Faults) -> float:
        """Return how much a fault changes results in the direction of the candidate's error, from 0 to 1.

        It is the largest cosine between (faulty - chosen) and (candidate - chosen) over the observations.
        Unlike the score it is high also where a second fault adds to the error, so it finds the faults to try
        in pairs.
        """
        best = 0.0
        for number in numbers:
            observation = self.observations[number]
            if not observation.affects(fault):
                continue
            before, after = self.predict(number, chosen), self.predict(number, (*chosen, fault))
            if before is None or after is None:
                continue
            if before.shape == after.shape == observation.found.shape:
                best = max(best, _cosine(after - before, observation.found - before))
        return best

    # ---- explanation

    def evidence(self, fault: Fault) -> pd.DataFrame:
        """Return the distances behind a suspicion, one row for each observation that the fault affects.

        Returns
        -------
        DataFrame
            `place`; `healthy` and `faulty`, the distances to a healthy model and to one with this fault;
            `allowed`, the distance that rounding explains; `fits`, whether the fault explains the result.
        """
        rows = []
        for number, observation in enumerate(self.observations):
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


def causal_key(observation: Observation) -> tuple[int, int, int]:
    """Return a sorting key for causal order.

    Fields of the ODE loop are sorted by step first, all at the rank of the loop; within a step by their order
    in the schema: the state at a knot, then the velocities computed from it.
    """
    is_ode = loop_dimension(observation.field) and observation.field.startswith("flow/")
    first_ode_field = "flow/t"
    rank = RANK[first_ode_field if is_ode else observation.field]
    return rank, observation.index or 0, RANK[observation.field]


def _decades_above(allowed: float, distance: float) -> float:
    """Return by how many powers of ten a distance exceeds what is allowed; 0 within it."""
    return math.log10(max(distance, allowed) / allowed)


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().nan_to_num().flatten(), b.double().nan_to_num().flatten()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))  # 1e-300: no division by zero
