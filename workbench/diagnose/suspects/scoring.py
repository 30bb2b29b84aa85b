"""Score how well sets of faults explain what a candidate recorded, and find the faults worth scoring."""

import functools
import math
from collections.abc import Iterable

import pandas as pd
from torch import Tensor

from workbench.diagnose.compare.distance import place_name
from workbench.diagnose.compare.transitions import loop_dimension
from workbench.diagnose.suspects.faults import HEALTHY, Fault, Faults
from workbench.diagnose.suspects.observations import MAX_DISTANCE, Observation, distance_of
from workbench.diagnose.suspects.simulate import RANK

# Scores are in decades (powers of ten) above rounding.
MIN_TOTAL_SCORE = 0.3  # a smaller total needs no explanation; 0.3 decades is a factor of 2
MIN_WRONG_SCORE = MIN_TOTAL_SCORE / 2  # above it a single observation is wrong
# A random fault predicts only the size of an error. If the size matches, the observation gets this score
# instead of 0, so that faults that predict every value rank before random faults.
SIZE_MATCH_SCORE = 0.15
SIZE_TOLERANCE = 0.3  # decades by which the size may be off and still match: it varies from draw to draw
MAX_FIT_SCORE = 0.3  # up to this score a fault fits an observation; above SIZE_MATCH_SCORE


class Scorer:
    """Score sets of faults by how far the candidate is from a model that has them; lower is better.

    The score of one observation is 0 if its distance is within rounding, 1 if it is ten times as large as
    rounding allows, 2 if a hundred times. The total is the sum over fields; of a field with several entries
    the average counts, so that a loop of many steps does not outweigh other fields.

    Predictions and scores are cached, because the search needs the same ones many times.

    Parameters
    ----------
    observations : list of Observation
        Methods refer to them by their number in this list.
    """

    def __init__(self, observations: list[Observation]) -> None:
        self.observations = observations
        self.has_local = any(observation.is_local for observation in observations)
        self.predict = functools.cache(self._predict)
        self.score = functools.cache(self._score)

    # ---- scores

    def total(self, faults: Faults) -> float:
        """Return the score of a model with these faults over all observations; lower is better."""
        scores_by_field: dict[str, list[float]] = {}
        for number, observation in enumerate(self.observations):
            scores_by_field.setdefault(observation.field, []).append(self.score(number, faults))
        return sum(sum(scores) / len(scores) for scores in scores_by_field.values())

    def _score(self, number: int, faults: Faults) -> float:
        """Return the score of one observation under these faults."""
        observation = self.observations[number]
        # Drop faults that cannot change this observation: many sets of faults then share one cached score.
        effective = tuple(fault for fault in faults if observation.affects(fault))
        if effective != faults:
            return self.score(number, effective)

        allowed = observation.allowed
        if any(fault.random for fault in effective):
            # The size of error that these faults cause in our model. Within rounding it cannot be recognised.
            expected_error = self._distance_between(number, HEALTHY, effective)
            if expected_error > allowed:
                return self._score_by_size(number, expected_error)
        return _decades_above(allowed, self.distance(number, effective))

    def _score_by_size(self, number: int, expected_error: float) -> float:
        """Return the score of a random fault: is the candidate's error as large as the fault would cause?"""
        found_error = self.distance(number, HEALTHY)
        healthy_score = _decades_above(self.observations[number].allowed, found_error)
        # max: the logarithm of an error of exactly zero is not finite.
        decades_off = abs(math.log10(max(found_error, 1e-12) / expected_error))
        if decades_off <= SIZE_TOLERANCE:
            return min(healthy_score, SIZE_MATCH_SCORE)
        return healthy_score  # the size does not match: the fault explains nothing here

    def distance(self, number: int, faults: Faults) -> float:
        """Return the distance of the candidate's result to that of a model with these faults."""
        observation = self.observations[number]
        return distance_of(observation.found, self.predict(number, faults), observation.is_statistics)

    def _distance_between(self, number: int, faults: Faults, other_faults: Faults) -> float:
        """Return the distance between two predictions of one observation."""
        a, b = self.predict(number, faults), self.predict(number, other_faults)
        if a is None or b is None:
            return MAX_DISTANCE
        return distance_of(b, a, self.observations[number].is_statistics)

    def _predict(self, number: int, faults: Faults) -> Tensor | None:
        return self.observations[number].predict(faults)

    def _is_wrong(self, number: int) -> bool:
        """Whether the candidate differs from a healthy model at this observation."""
        return self.score(number, HEALTHY) > MIN_WRONG_SCORE

    # ---- which faults are worth scoring

    def faults_to_try(self, catalogue: Iterable[Fault]) -> list[Fault]:
        """Return the faults that can change a wrong observation and are not ruled out by right ones."""
        wrong = [one for number, one in enumerate(self.observations) if self._is_wrong(number)]
        wrong_fields = {observation.field for observation in wrong}
        # Statistics may hide an error, such as a shift by one frame, so they rule nothing out.
        fields_with_values = {one.field for one in self.observations if not one.is_statistics}
        found = []
        for fault in catalogue:
            affects_error = any(observation.affects(fault) for observation in wrong)
            # A fault shows in its own fields. If all of them were recorded and are right, it is not there.
            all_recorded = fields_with_values.issuperset(fault.fields)
            all_right = wrong_fields.isdisjoint(fault.fields)
            if affects_error and not (all_recorded and all_right):
                found.append(fault)
        return found

    def faults_of_first_error(self, faults: Iterable[Fault]) -> list[Fault]:
        """Return the faults that can explain the first wrong observation in causal order.

        There are two kinds. Either the first wrong field is one of the fault's own fields. Or one of the
        fault's own fields was not observed, so that the error may have begun there; but then nothing
        observed before the first error may deny the fault.
        """
        order = sorted(range(len(self.observations)), key=lambda k: _causal_key(self.observations[k]))
        before_error = []
        first_wrong_field = ""
        for number in order:
            if self._is_wrong(number):
                first_wrong_field = self.observations[number].field
                break
            before_error.append(self.observations[number])
        observed = {observation.field for observation in self.observations}
        found = []
        for fault in faults:
            is_own_field = first_wrong_field in fault.fields
            may_begin_unobserved = not observed.issuperset(fault.fields)
            is_denied = any(_denies(observation, fault) for observation in before_error)
            if is_own_field or (may_begin_unobserved and not is_denied):
                found.append(fault)
        return found

    def alignment(self, fault: Fault) -> float:
        """Return how much a fault changes results in the direction of the candidate's error, from 0 to 1.

        It is the largest cosine between (faulty - healthy) and (candidate - healthy) over all wrong
        observations. Unlike the score it is high also where a second fault adds to the error, so it finds the
        faults to try in pairs.
        """
        best = 0.0
        for number, observation in enumerate(self.observations):
            if not observation.affects(fault) or not self._is_wrong(number):
                continue
            healthy, faulty = self.predict(number, HEALTHY), self.predict(number, (fault,))
            if healthy is None or faulty is None:
                continue
            if healthy.shape == faulty.shape == observation.found.shape:
                best = max(best, _cosine(faulty - healthy, observation.found - healthy))
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
                        "place": place_name(observation.field, observation.index),
                        "healthy": self.distance(number, HEALTHY),
                        "faulty": self.distance(number, (fault,)),
                        "allowed": observation.allowed,
                        "fits": self.score(number, (fault,)) <= MAX_FIT_SCORE,
                    }
                )
        return pd.DataFrame(rows, columns=["place", "healthy", "faulty", "allowed", "fits"])


def _denies(right: Observation, fault: Fault) -> bool:
    """Whether a right observation shows that a fault is not there.

    It does if the fault would have changed it. Statistics of flow and vocoder show nothing: they may stay the
    same, such as when all frames are shifted by one.
    """
    is_certain = not right.is_statistics or right.field.startswith("lm/")
    return is_certain and right.affects(fault)


def _causal_key(observation: Observation) -> tuple[int, int, int]:
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
