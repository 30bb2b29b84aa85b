"""Search the faults that explain what is wrong in a candidate, a run of a foreign program.

The results of the candidate come in groups, such as all conditional velocities, in causal order. A fault is
named for a group only if our model with this fault gives what the candidate recorded there, and if no other
result speaks against the fault. Each group has its own answer. Of two faults, each is therefore named for the
results that it makes wrong, also where the other is unknown.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from workbench.diagnose.suspects.catalogue.faults import HEALTHY, Fault, Faults
from workbench.diagnose.suspects.catalogue.kinds import kind_of
from workbench.diagnose.suspects.observations import Observation
from workbench.diagnose.suspects.scoring import MAX_FIT_SCORE, Scorer
from workbench.diagnose.suspects.verdict import Verdict
from workbench.speech.config.formats import HALF

# Scores are in decades (powers of ten) above what rounding and storage explain. A fault must lower the
# average score of a group by this much; statistics agree by chance more often than values do.
MIN_GAIN = 0.3  # a factor of 2
MIN_GAIN_OF_STATISTICS = 1.0  # a factor of 10
MAX_SHARE_LEFT = 0.1  # a smaller gain is enough where at most this share of every distance is left
MIN_FITTING = 0.9  # share of a group's wrong results that must fit; a loop may amplify the rounding of some
MAX_TIE = 0.1  # decades; faults whose totals differ by less explain a run equally well
MAX_TIED_DISTANCE = 1.5  # and no farther than so many times the nearest
MAX_PAIRED = 6  # faults of a group that are tried in all pairs: 15 pairs
# Each fault of a pair must change the result in the direction of the error (a cosine), and lower the score of
# the group without the other fault.
MIN_ALIGNMENT = 0.1
MIN_GAIN_OF_MEMBER = 0.02
MIN_ALIGNMENT_BESIDE = 0.5  # of a fault beside a format of weights with what the format leaves
MAX_SHARE_LEFT_BESIDE = 0.5  # of that, by the fault
MAX_BESIDE_FORMAT = 2  # faults beside which formats are looked for; each needs a run for every format
# A simulated run takes long, so the number of faults that are tried in such runs is limited.
MAX_RUNS_OF_KIND = 20
MAX_RUNS = 40  # of all kinds together


class Search:
    """The search for the faults behind one candidate.

    Parameters
    ----------
    scorer : Scorer
    catalogue : sequence of Fault
    of_kinds : callable
        Returns further faults, those of kinds with a parameter, such as "block 5 is left out". They are tried
        only where the catalogue explains nothing.
    formats : callable
        `FormatSearch.formats`: returns the formats of quantised weights that are in what remains of the error
        of a result. They are tried before the kinds.

    Attributes
    ----------
    verdicts : list of Verdict
        One for each group with wrong results, in causal order.
    chosen : tuple of Fault
        All faults that are named.
    shares : dict of Fault to float
        For every fault that was tried: the share of the error that it explains where it was tried.
    tried_at : dict of Fault to set of int
        For every fault that was tried: the numbers of the results that decided on it first.
    """

    def __init__(
        self,
        scorer: Scorer,
        catalogue: Sequence[Fault],
        of_kinds: Callable[[], Sequence[Fault]],
        formats: Callable[..., Sequence[Faults]],
    ) -> None:
        self.scorer = scorer
        self.catalogue = catalogue
        self.formats = formats
        # Asked once: our model's results with a fault are kept by the fault itself, not by its name.
        self.of_kinds = functools.cache(of_kinds)
        self.verdicts: list[Verdict] = []
        self.chosen: Faults = HEALTHY
        self.shares: dict[Fault, float] = {}
        self.tried_at: dict[Fault, set[int]] = {}
        for group in scorer.groups():
            wrong = self._wrong(group, HEALTHY)
            if wrong:
                verdict = self._explain(group, wrong)
                first_steps = self._explain_first_steps(group, wrong) if verdict.reason else None
                if first_steps is not None:
                    self.verdicts.append(first_steps)
                    wrong = [number for number in wrong if scorer.is_wrong(number, self.chosen)]
                    verdict = self._explain(group, wrong)
                    if verdict.reason:
                        verdict = self._verdict(wrong, reason="another fault is in these steps")
                self.verdicts.append(verdict)

    # ---- one group

    def _wrong(self, numbers: list[int], faults: Faults) -> list[int]:
        """Return those results that a model with these faults does not give."""
        wrong = [number for number in numbers if self.scorer.is_wrong(number, faults)]
        return [number for number in wrong if not self.scorer.is_within_rounding(number, faults)]

    def _explain(self, group: list[int], was_wrong: list[int]) -> Verdict:
        """Return what explains a group, and remember the faults that do.

        Parameters
        ----------
        group : list of int
            Numbers of the observations.
        was_wrong : list of int
            Those of them that a healthy model does not give.
        """
        scorer, chosen = self.scorer, self.chosen
        observations = [scorer.observations[number] for number in was_wrong]

        # Faults that were named for an earlier group may explain this one as well.
        wrong = self._wrong(was_wrong, chosen)
        if len(wrong) <= (1 - MIN_FITTING) * len(was_wrong):
            before = tuple(fault for fault in chosen if any(one.affects(fault) for one in observations))
            return self._verdict(was_wrong, before)
        if earlier := self._unexplained_before(observations[0]):
            return self._verdict(was_wrong, reason=f"it may follow from {earlier}, which nothing explains")

        listed = self._candidates(self.catalogue, group, wrong)
        fitting: list[Faults] = [(fault,) for fault in listed if self._explains((fault,), wrong)]
        reason = "the error is too small to tell faults apart"
        average = sum(scorer.score(number, chosen) for number in wrong) / len(wrong)
        if fitting and all(fault.rounds or fault.redraws for (fault,) in fitting):
            # These are judged by likeness. Rounded weights, which come near, are predicted.
            halves = self.formats(wrong[0], chosen, HALF)
            fitting += [formats for formats in halves if self._explains(formats, wrong)]
        if not fitting and average >= MIN_GAIN:
            fitting, reason = self._fitting_beyond_catalogue(listed, group, wrong)
            reason += self._as_large_as_rounding(listed, wrong[0])
        if not fitting:
            return self._verdict(was_wrong, reason=reason)
        totals = {faults: scorer.total((*chosen, *faults)) for faults in fitting}
        # Of faults with one score, such as those whose errors only look alike, the nearest is best.
        best = min(fitting, key=lambda one: (totals[one], scorer.distance(wrong[0], (*chosen, *one))))
        self.chosen = (*chosen, *best)
        ties = []
        nearest = max(scorer.distance(wrong[0], self.chosen), scorer.observations[wrong[0]].allowed)
        for faults in fitting:
            is_single = len(faults) == 1
            is_as_near = scorer.distance(wrong[0], (*chosen, *faults)) <= MAX_TIED_DISTANCE * nearest
            if is_single and faults != best and totals[faults] - totals[best] <= MAX_TIE and is_as_near:
                ties += faults
        return self._verdict(was_wrong, best, tuple(ties))

    def _explain_first_steps(self, group: list[int], wrong: list[int]) -> Verdict | None:
        """Return a fault that gives all results of the first wrong step, where another one sets in later.

        The other one may show in later steps only, such as a time that is wrong from the second step on.
        Only values of a loop, predicted from the candidate's own record, can tell that.
        """
        scorer = self.scorer
        first = scorer.observations[wrong[0]]
        if first.index is None or not first.is_local or first.is_statistics:
            return None
        same_step = [number for number in wrong if scorer.observations[number].index == first.index]
        if len(same_step) == len(wrong):
            return None
        tried: list[Faults] = [(fault,) for fault in self._candidates(self.catalogue, group, same_step)]
        tried += self.formats(same_step[0], self.chosen)
        for faults in tried:
            if self._explains(faults, same_step, group):
                self.chosen = (*self.chosen, *faults)
                explained = [number for number in wrong if not scorer.is_wrong(number, self.chosen)]
                return self._verdict(explained, faults)
        return None

    def _verdict(
        self, wrong: list[int], faults: Faults = HEALTHY, ties: Faults = HEALTHY, reason: str = ""
    ) -> Verdict:
        """Return the verdict on some wrong results."""
        observations = [self.scorer.observations[number] for number in wrong]
        fields = tuple(dict.fromkeys(observation.field for observation in observations))
        return Verdict(fields, tuple(one.name for one in observations), faults, ties, reason)

    def _fitting_beyond_catalogue(
        self, listed: list[Fault], group: list[int], wrong: list[int]
    ) -> tuple[list[Faults], str]:
        """Return faults with a parameter, or pairs of faults, that explain a group, and why none may do."""
        # `is_local`: predicted by one call of our model, not by a simulated run.
        is_local = self.scorer.observations[wrong[0]].is_local
        formats = self._fitting_with_formats(listed, wrong)
        if formats and self._is_nearer(formats[0], HEALTHY, wrong[0]):  # else a kind may be nearer
            return formats, ""
        faults = self._candidates(self.of_kinds(), group, wrong)
        tried = faults if is_local else _affordable(faults)
        reason = "no known fault gives what was recorded"
        if len(tried) < len(faults):
            untried = f"{len(faults) - len(tried)} faults with a parameter, and most formats of weights"
            reason += f" ({untried}, were not tried: each needs a run)"
        fitting = self._fitting_of_kinds(tried, wrong)
        if not fitting and is_local:
            fitting = [pair for pair in self._pairs(listed, wrong) if self._explains(pair, wrong)]
        return fitting or formats, reason

    def _fitting_with_formats(self, listed: list[Fault], wrong: list[int]) -> list[Faults]:
        """Return formats of weights, alone or each beside a fault of the catalogue, that explain a group."""
        scorer, chosen, first = self.scorer, self.chosen, wrong[0]
        fitting = [formats for formats in self.formats(first, chosen) if self._explains(formats, wrong)]
        if fitting and not scorer.is_beyond_prediction(first, (*chosen, *fitting[0])):
            return fitting
        # A port may have a fault beside its format. The larger of the two shows first.
        for formats in fitting:
            for fault in listed:
                both = (*formats, fault)
                is_aligned = scorer.alignment(fault, first, (*chosen, *formats)) >= MIN_ALIGNMENT_BESIDE
                if is_aligned and self._explains(both, wrong) and self._is_nearer(both, formats, first):
                    return [both]
        if fitting or not scorer.observations[first].is_local:
            return fitting
        gains = {
            fault: scorer.score(first, chosen) - scorer.score(first, (*chosen, fault)) for fault in listed
        }
        for fault in sorted(listed, key=gains.__getitem__, reverse=True)[:MAX_BESIDE_FORMAT]:
            if gains[fault] >= MIN_GAIN:
                for formats in self.formats(first, (*chosen, fault)):
                    if self._explains((fault, *formats), wrong):
                        fitting.append((fault, *formats))
        return fitting

    def _is_nearer(self, faults: Faults, than: Faults, number: int) -> bool:
        """Whether these faults leave clearly less of a distance than others do."""
        left = self.scorer.distance(number, (*self.chosen, *faults))
        return left <= MAX_SHARE_LEFT_BESIDE * self.scorer.distance(number, (*self.chosen, *than))

    def _as_large_as_rounding(self, listed: list[Fault], first: int) -> str:
        """Say that an error which only statistics show is as large as that of a stage in half precision.

        Another program rounds other values up and down, so that the statistics cannot tell more than that.
        """
        if not self.scorer.observations[first].is_statistics:
            return ""
        rounding = [fault for fault in listed if fault.rounds]
        alike = [fault.cause for fault in rounding if self.scorer.is_as_large(first, fault, self.chosen)]
        if not alike:
            return ""
        return (
            f"; the error is as large as if {' or '.join(alike)}. Statistics cannot tell that from other "
            "errors: run it in float32, or record values"
        )

    def _unexplained_before(self, observation: Observation) -> str:
        """Return the first place of an earlier group without an explanation, from which this result follows.

        Empty where there is none. A local prediction follows from the candidate's own record, so it has none.
        """
        for verdict in self.verdicts:
            stages = {field.partition("/")[0] for field in verdict.fields}
            if verdict.reason and not stages.isdisjoint(observation.follows):
                return verdict.places[0]
        return ""

    # ---- which faults to try

    def _fitting_of_kinds(self, faults: list[Fault], wrong: list[int]) -> list[Faults]:
        """Return the first fault that explains a group, and the others of its kind that do as well.

        Faults of different kinds seldom give the same result. Faults of one kind may: with this utterance,
        several values of their parameter come to the same.
        """
        first = next((fault for fault in faults if self._explains((fault,), wrong)), None)
        if first is None:
            return []
        akin = [fault for fault in faults if kind_of(fault) == kind_of(first)]
        if len(akin) > MAX_RUNS_OF_KIND:  # each changes another weight, which no other fault imitates
            return [(first,)]
        return [(fault,) for fault in akin if self._explains((fault,), wrong)]

    def _candidates(self, faults: Sequence[Fault], group: list[int], wrong: list[int]) -> list[Fault]:
        """Return the faults that can change a wrong result of a group and are not ruled out by right ones."""
        scorer, chosen = self.scorer, self.chosen
        # Statistics may hide an error, such as a shift by one frame, so only values rule a fault out.
        with_values, wrong_fields = set(), set()
        for number, observation in enumerate(scorer.observations):
            if not observation.is_statistics:
                with_values.add(observation.field)
            if scorer.is_wrong(number):
                wrong_fields.add(observation.field)
        group_fields = {scorer.observations[number].field for number in group}
        is_local = scorer.observations[wrong[0]].is_local
        before = self._right_before(wrong[0])

        found = []
        for fault in faults:
            if fault in chosen or not any(scorer.observations[number].affects(fault) for number in wrong):
                continue
            # A fault shows in its own fields. If all of them were recorded and are right, it is not there.
            if with_values.issuperset(fault.fields) and wrong_fields.isdisjoint(fault.fields):
                continue
            # In simulated runs the error can also have begun in a field whose values were not observed,
            # unless a right result before it shows that the fault is not there.
            is_own_field = not group_fields.isdisjoint(fault.fields)
            may_begin_unobserved = not with_values.issuperset(fault.fields)
            is_denied = any(_denies(observation, fault) for observation in before)
            if is_local or is_own_field or (may_begin_unobserved and not is_denied):
                found.append(fault)
        return found

    def _right_before(self, number: int) -> list[Observation]:
        """Return the right results before one in causal order."""
        right = []
        for other in self.scorer.in_causal_order:
            if other == number:
                break
            if not self.scorer.is_wrong(other, self.chosen):
                right.append(self.scorer.observations[other])
        return right

    def _pairs(self, candidates: list[Fault], wrong: list[int]) -> Iterable[Faults]:
        """Yield pairs of faults that may explain a group together: each of them explains a part alone."""
        first = wrong[0]
        score_before = self.scorer.score(first, self.chosen)
        alignments = {}
        for fault in candidates:
            gain = score_before - self.scorer.score(first, (*self.chosen, fault))
            alignment = self.scorer.alignment(fault, first, self.chosen)
            if gain >= MIN_GAIN_OF_MEMBER and alignment >= MIN_ALIGNMENT:
                alignments[fault] = alignment
        aligned = sorted(alignments, key=alignments.__getitem__, reverse=True)[:MAX_PAIRED]
        return itertools.combinations(aligned, 2)

    # ---- whether faults explain a group

    def _explains(self, faults: Faults, wrong: list[int], no_witness: Sequence[int] = ()) -> bool:
        """Whether faults give what the candidate recorded in a group, and nothing elsewhere denies them.

        `no_witness` are results that may have another fault, so that they deny nothing.
        """
        scorer, chosen = self.scorer, self.chosen
        together = (*chosen, *faults)
        # The first wrong result rules most faults out; the others are asked of the few that are left.
        before, after = scorer.score(wrong[0], chosen), scorer.score(wrong[0], together)
        if len(faults) == 1:
            share = 1 - after / before if before else 0.0
            self.shares[faults[0]] = max(share, self.shares.get(faults[0], 0.0))
            self.tried_at.setdefault(faults[0], set()).add(wrong[0])
        max_misfits = math.floor((1 - MIN_FITTING) * len(wrong))  # 0 in a small group
        if after > MAX_FIT_SCORE and not max_misfits:
            return False
        scores = [scorer.score(number, together) for number in wrong]
        if sum(score > MAX_FIT_SCORE for score in scores) > max_misfits:
            return False
        # Near a small error other faults come by chance. There a fault must remove nearly all of it.
        gains = [scorer.score(number, chosen) - score for number, score in zip(wrong, scores, strict=True)]
        is_statistics = scorer.observations[wrong[0]].is_statistics
        min_gain = MIN_GAIN_OF_STATISTICS if is_statistics else MIN_GAIN
        if sum(gains) / len(gains) < min_gain and not self._removes(together, wrong):
            return False
        return not self._is_contradicted(together, no_witness)

    def _removes(self, together: Faults, wrong: list[int]) -> bool:
        """Whether these faults remove nearly all of the distance to every wrong result.

        Unlike a score, a distance goes on shrinking below what rounding allows.
        """
        for number in wrong:
            before = self.scorer.distance(number, self.chosen)
            if self.scorer.distance(number, together) > MAX_SHARE_LEFT * before:
                return False
        return True

    def _is_contradicted(self, together: Faults, no_witness: Sequence[int]) -> bool:
        """Whether a result fits worse with these faults than with those that were chosen before.

        A wrong result of a simulated run is no witness: it inherits errors, and may change in any way while
        other faults are still unknown.
        """
        for number, observation in enumerate(self.scorer.observations):
            before = self.scorer.score(number, self.chosen)
            if number in no_witness or (before > MAX_FIT_SCORE and not observation.is_local):
                continue
            after = self.scorer.score(number, together)
            is_worse = after > MAX_FIT_SCORE and after > before + MIN_GAIN
            if is_worse and not self.scorer.is_within_rounding(number, together):
                return True
        return False


def _affordable(faults: list[Fault]) -> list[Fault]:
    """Return the faults of small kinds: a simulated run for each weight of a model would take minutes."""
    sizes = Counter(kind_of(fault) for fault in faults)
    return [fault for fault in faults if sizes[kind_of(fault)] <= MAX_RUNS_OF_KIND][:MAX_RUNS]


def _denies(right: Observation, fault: Fault) -> bool:
    """Whether a right result shows that a fault is not there.

    It does if the fault would have changed it. Statistics of flow and vocoder show nothing: they may stay the
    same, such as when all frames are shifted by one.
    """
    is_simulated_lm = right.field.startswith("lm/") and not right.is_local
    is_certain = not right.is_statistics or is_simulated_lm
    return is_certain and right.affects(fault)
