"""Recognise quantised weights: the format of their numbers, and the layers that have it.

Rounding a weight to few bits makes an error in every result behind it. To first order the errors of layers
add up, and two formats round the same weights in unrelated directions. So the direction of a candidate's
error tells the format, also where some layers alone have it. Least squares then tell which layers these are.
Quantised weights are no fault, but they are tried like one: by a run of our model that has them.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence

import torch

from workbench.diagnose.quantisation.units import block_of, weights_of
from workbench.diagnose.suspects.catalogue.faults import Fault, Faults
from workbench.diagnose.suspects.catalogue.kind_makers import (
    FIELDS_OF_PART,
    QUANTISED,
    QUANTISED_SOURCE,
    model_of,
)
from workbench.diagnose.suspects.observations import Observation
from workbench.diagnose.suspects.scoring import Scorer
from workbench.diagnose.suspects.simulate import RANK
from workbench.speech.config import STAGES
from workbench.speech.config.formats import HALF, every_format, fallback, parse_format, with_inputs
from workbench.speech.models.quantise.modules import layers_of
from workbench.speech.models.quantise.quantise import quantise
from workbench.speech.pipeline import Pipeline

# Formats that ports use most: tried first.
COMMON = (
    *("q8_0", "q4_0", "int8:group=32", "int8:channel", "int8:channel,full", *HALF),
    *("q4_k", "q6_k", "q5_k", "mlx4", "mlx8"),
    *("int4:group=128", "int4:group=32", "fp8_e4m3:channel", "nf4:group=64"),
    *("q5_1", "q5_0", "q4_1", "int8:tensor", "int4:channel", "fp8_e4m3:tensor", "fp8_e5m2:channel"),
)
MAX_GROUP = 256  # weights that share a scale, of the formats that are tried
# Those that are tried where each needs a simulated run.
SIMULATED = (
    *("q8_0", "q4_0", "int8:group=32", "int8:channel", "int8:channel,full", "int8:tensor"),
    *("q4_k", "q6_k", "mlx4", "int4:group=128"),
)
# Of 60 formats the wrong ones reach a cosine of 0.25 by chance; programs that add in integers leave 0.6.
MIN_LIKENESS = 0.5
CLEAR_LIKENESS = 0.9  # where others look alike
SURE_LIKENESS = 0.95  # of a format that other parts have
EQUALLY_ALIKE = 0.02  # formats whose likenesses differ by less are all kept
EQUALLY_NEAR = 1.1  # and then those whose distance is at most so many times the smallest
MIN_SHARE = 0.5  # layers have the format where least squares find more than this share of their error
RIDGE = 1e-6  # against groups whose errors are the same
MAX_GROUPS = 24  # of layers, each of which needs a run


def is_format(fault: Fault) -> bool:
    """Whether a "fault" is a format of weights, and so none."""
    return fault.name.startswith(f"{QUANTISED}(")


def where_and_format(fault: Fault) -> tuple[str, str]:
    """Return the part of the model that has a format of weights, and the format."""
    where, _, text = fault.name.removeprefix(f"{QUANTISED}(").removesuffix(")").rpartition(" ")
    return where, text


class FormatSearch:
    """Find formats of weights that explain a wrong result.

    Parameters
    ----------
    pipe : Pipeline
    scorer : Scorer
    """

    def __init__(self, pipe: Pipeline, scorer: Scorer) -> None:
        self.pipe = pipe
        self.scorer = scorer
        self._layers: dict[str, dict[str, tuple[str, ...]]] = {}  # stage -> part -> names of its layers
        self._is_linear: dict[str, bool] = {}
        self._made: dict[tuple[str, tuple[str, ...]], Fault] = {}
        self._text_of: dict[Fault, str] = {}
        self._found: dict[tuple, list[Faults]] = {}

    def formats(self, number: int, base: Faults, tried: tuple[str, ...] = COMMON) -> list[Faults]:
        """Return the formats that explain what remains of one result's error, the best first.

        Parameters
        ----------
        number : int
            Of an observation of the scorer.
        base : tuple of Fault
            What the candidate is taken to have already.
        tried : tuple of str
            Formats to try. If they are `COMMON`, all others are tried after them.

        Returns
        -------
        list of Faults
            Several where nothing tells them apart; empty where no format is in the error. One of them has
            several members where layers have different formats.
        """
        for names in self._scopes(number, base):
            key = (names, base, tried)
            if key not in self._found:
                self._found[key] = self._search(number, base, names, tried)
            if self._found[key]:
                return self._found[key]
        return []

    def _scopes(self, number: int, base: Faults) -> list[tuple[str, ...]]:
        """Return the layers that may have a format: of the result's own stage, then of those before it."""
        observation = self.scorer.observations[number]
        names = self._layers_behind(observation)
        own = tuple(name for name in names if observation.field.startswith(f"{_stage(name)}/"))
        before = self.scorer.predict(number, base)
        # Other lengths tell that an earlier stage differs.
        is_other_length = before is not None and before.shape != observation.found.shape
        scopes = [names, own] if is_other_length else [own, names]
        return [scope for scope in dict.fromkeys(scopes) if scope]

    def _search(
        self, number: int, base: Faults, names: tuple[str, ...], tried: tuple[str, ...]
    ) -> list[Faults]:
        """Return the formats of some of these layers that fit an observation."""
        known = tuple(dict.fromkeys(self._text_of[fault] for fault in base if fault in self._text_of))
        linear = self._linear(names)
        for text in known:  # other parts have it, so that this part may have it too
            for layers in (names, linear):
                is_sure = layers and self._likeness(text, number, base, layers) >= SURE_LIKENESS
                if is_sure or (layers and self._is_exact(text, number, base, layers)):
                    return [(self._fault(text, layers),)]

        # 1. Which format? All layers have it on trial; then those alone that repeat, such as transformer
        # blocks: others may make most of the error where they have the format, and many ports spare them.
        is_local = self.scorer.observations[number].is_local
        inner = _repeated(names)
        scopes = [names, inner] if is_local and inner not in ((), names) else [names]
        likeness: dict[tuple[str, tuple[str, ...]], float] = {}

        def best_of(texts: Iterable[str]) -> str:
            for text in texts:
                for layers in scopes:
                    if (text, layers) not in likeness:
                        likeness[text, layers] = self._likeness(text, number, base, layers)
                    if self._is_exact(text, number, base, layers):
                        return text
            return max(likeness, key=likeness.__getitem__)[0]

        best = best_of((*known, *(tried if is_local else SIMULATED)))
        chosen = names if self._is_exact(best, number, base, names) else ()
        if is_local and tried is COMMON and not chosen:
            best = best_of(every_format(MAX_GROUP))
            best = best_of(refinements(best))

        # 2. Which layers?
        chosen = chosen or self._layers_with(best, number, base, names)
        asked = with_inputs(best)  # kernels that quantise inputs as well may make most of the error by that
        if linear and asked != best and self._likeness(best, number, base, chosen) < SURE_LIKENESS:
            layers = self._layers_with(asked, number, base, names)
            if self._likeness(asked, number, base, layers) > self._likeness(best, number, base, chosen):
                best, chosen = asked, layers
        # Some layers of many, sounds, the vocoder's spectrum, and what another format leaves, fit a wrong one
        # more easily.
        is_plain = is_local and not known and chosen in self._plain(names) and _stage(names[0]) != "hift"
        if self._likeness(best, number, base, chosen) < (MIN_LIKENESS if is_plain else CLEAR_LIKENESS):
            return []

        # 3. Of formats that point the same way, such as q8_0 and int8:group=32, the nearest.
        most = max(likeness.values())
        alike = list(dict.fromkeys(text for (text, _), x in likeness.items() if x >= most - EQUALLY_ALIKE))
        if linear and not self._is_exact(best, number, base, chosen):
            quantised_inputs = list(dict.fromkeys(map(with_inputs, alike)))
            # Where these made most of the error, distances tell little: each rounds up and down by chance.
            alike = quantised_inputs if best == asked else list(dict.fromkeys((*alike, *quantised_inputs)))
        distances = {text: self._distance(text, number, base, chosen) for text in alike}
        nearest = min(distances, key=distances.__getitem__)
        if (literal := fallback(nearest)) and self._is_same(literal, nearest, chosen):
            nearest = literal
            distances[literal] = self._distance(literal, number, base, chosen)
        # A distance that rounding explains is as good as none.
        limit = EQUALLY_NEAR * max(distances[nearest], self.scorer.observations[number].allowed)
        others = [text for text in alike if text != nearest and distances[text] <= limit]
        near = [text for text in others if not self._is_same(text, nearest, chosen)]
        found = [(self._fault(text, chosen),) for text in (nearest, *near)]

        # 4. Have other layers another format?
        rest = tuple(name for name in names if name not in chosen)
        if rest and not self._is_exact(nearest, number, base, chosen):
            further = self._search(number, (*base, *found[0]), rest, tried)
            if further:
                return [(*found[0], *further[0])]
        return found

    # ---- how well a format of some layers fits

    def _likeness(self, text: str, number: int, base: Faults, layers: tuple[str, ...]) -> float:
        """Return 1 where a format makes the candidate's error, near 0 where it makes another.

        It is the cosine of the two errors. Where the candidate has another shape, as after other tokens, no
        error can be told; then it is the share of the result that agrees.
        """
        observation = self.scorer.observations[number]
        before = self.scorer.predict(number, base)
        if before is not None and before.shape != observation.found.shape:
            return max(0.0, 1 - self._distance(text, number, base, layers))
        return self.scorer.alignment(self._fault(text, layers), number, base)

    def _distance(self, text: str, number: int, base: Faults, layers: tuple[str, ...]) -> float:
        return self.scorer.distance(number, (*base, self._fault(text, layers)))

    def _is_exact(self, text: str, number: int, base: Faults, layers: tuple[str, ...]) -> bool:
        return not self.scorer.is_beyond_prediction(number, (*base, self._fault(text, layers)))

    def _is_same(self, text: str, other: str, layers: tuple[str, ...]) -> bool:
        """Whether two formats give the same weights, as those do that leave narrow layers in float16."""
        model = {}
        for stage in dict.fromkeys(map(_stage, layers)):
            model |= layers_of(model_of(self.pipe, stage), stage)
        values = ([quantise(model[name].weight, each).values for name in layers] for each in (text, other))
        return all(torch.equal(a, b) for a, b in zip(*values, strict=True))

    # ---- which layers

    def _layers_with(self, text: str, number: int, base: Faults, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the layers that have a format: a plain choice, or some sorts or blocks of them."""
        tried = self._plain(names)
        for layers in tried:
            if self._is_exact(text, number, base, layers):
                return layers
        if not self.scorer.observations[number].is_local:  # each further trial would need a simulated run
            return self._nearest(tried, text, number, base)
        for first, second in ((sort_of, block_of), (block_of, sort_of)):
            kept = self._by_least_squares(text, number, base, names, first)
            inside = self._by_least_squares(text, number, base, kept, second)
            tried += [layers for layers in (kept, inside) if layers]
        return self._nearest(tried, text, number, base)

    def _nearest(
        self, choices: Sequence[tuple[str, ...]], text: str, number: int, base: Faults
    ) -> tuple[str, ...]:
        return min(choices, key=lambda layers: self._distance(text, number, base, layers))

    def _by_least_squares(
        self, text: str, number: int, base: Faults, names: tuple[str, ...], group_of: Callable[[str], str]
    ) -> tuple[str, ...]:
        """Return the layers of those groups whose own errors make up the candidate's error."""
        groups: dict[str, tuple[str, ...]] = {}
        for name in names:
            groups[group_of(name)] = (*groups.get(group_of(name), ()), name)
        before, found = self.scorer.predict(number, base), self.scorer.observations[number].found
        if not 1 < len(groups) <= MAX_GROUPS or before is None or before.shape != found.shape:
            return ()
        errors, tried = [], []
        for layers in groups.values():
            after = self.scorer.predict(number, (*base, self._fault(text, layers)))
            if after is None or after.shape != before.shape:
                return ()
            change = (after - before).double().flatten()
            if bool(change.isfinite().all()) and float(change.norm()):  # narrow layers may keep their weights
                errors.append(change)
                tried.append(layers)
        error = (found - before).double().flatten()
        if not errors or not bool(error.isfinite().all()):
            return ()
        matrix = torch.stack(errors, dim=1)
        matrix /= matrix.norm(dim=0)
        normal = matrix.T @ matrix + RIDGE * torch.eye(len(errors), dtype=torch.float64)
        sizes = torch.linalg.solve(normal, matrix.T @ error)
        kept = []
        for layers, size, change in zip(tried, sizes.tolist(), errors, strict=True):
            if size > MIN_SHARE * float(change.norm()):
                kept += layers
        return tuple(kept)

    # ---- the layers behind a result, and faults that quantise them

    def _layers_behind(self, observation: Observation) -> tuple[str, ...]:
        """Return the names of the layers whose weights change a result."""
        found: tuple[str, ...] = ()
        stage_of_field = observation.field.partition("/")[0]
        stages = (stage_of_field,) if observation.is_local else observation.follows
        for stage in stages:
            for part, layers in self._parts(stage).items() if stage in STAGES else ():
                if not observation.is_local or observation.field in _fields_of(stage, part):
                    found += layers
        return found

    def _plain(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return what most ports choose: all layers, the linear ones, and either of these in blocks alone."""
        choices = (names, self._linear(names), _repeated(names), _repeated(self._linear(names)))
        return [layers for layers in dict.fromkeys(choices) if layers]

    def _linear(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if self._is_linear[name])

    def _parts(self, stage: str) -> dict[str, tuple[str, ...]]:
        """Return the layers of each part of a stage."""
        if stage not in self._layers:
            layers = layers_of(model_of(self.pipe, stage), stage)
            parts: dict[str, tuple[str, ...]] = {}
            for name, layer in layers.items():
                part = _part_of(name)
                parts[part] = (*parts.get(part, ()), name)
                self._is_linear[name] = isinstance(layer, torch.nn.Linear)
            self._layers[stage] = parts
        return self._layers[stage]

    def _fault(self, text: str, names: tuple[str, ...]) -> Fault:
        """Return the "fault" that these layers have weights in a format."""
        if (text, names) not in self._made:
            fields = {field for name in names for field in _fields_of(_stage(name), _part_of(name))}
            where = self._describe(names)
            fault = Fault(
                f"{QUANTISED}({where} {text})",
                tuple(sorted(fields, key=RANK.__getitem__)),
                f"the weights of {where} ({len(names)} layers) are in {text}, a choice and no fault",
                QUANTISED_SOURCE,
                options={"weights": weights_of((glob, text) for glob in self._globs(names))},
                rounds=True,
            )
            self._made[text, names] = fault
            self._text_of[fault] = text
        return self._made[text, names]

    def _globs(self, names: tuple[str, ...]) -> list[str]:
        """Return globs that match these layers and no others; few are matched faster."""
        globs = []
        for stage in dict.fromkeys(_stage(name) for name in names):
            parts = self._parts(stage)
            if all(name in names for layers in parts.values() for name in layers):
                globs.append(stage)
                continue
            for part, layers in parts.items():
                inside = [name for name in layers if name in names]
                is_whole = part and len(inside) == len(layers)
                globs += [f"{stage}.{part}*"] if is_whole else inside
        return globs

    def _describe(self, names: tuple[str, ...]) -> str:
        """Return short words for some layers."""
        texts = []
        for stage in dict.fromkeys(_stage(name) for name in names):
            parts = self._parts(stage)
            chosen = [name for name in names if _stage(name) == stage]
            every = tuple(itertools.chain(*parts.values()))
            if len(chosen) == len(every):
                texts.append(stage)
                continue
            for part, layers in parts.items():
                inside = tuple(name for name in layers if name in names)
                title = f"{stage}.{part}".rstrip(".") if part or len(parts) == 1 else f"{stage}, the rest"
                if len(inside) == len(layers):
                    texts.append(title)
                elif inside and inside == self._linear(layers):
                    texts.append(f"{title}'s linear layers")
                elif inside:
                    texts.append(f"{len(inside)} of {len(layers)} layers of {title}")
        return ", ".join(texts)


def refinements(text: str) -> list[str]:
    """Return a format of MLX with scales in half precision; for other formats nothing."""
    return [f"{text},{dtype}" for dtype in HALF] if parse_format(text).kind.family == "mlx" else []


def sort_of(layer: str) -> str:
    """Return a layer's name without its numbers: layers of one sort differ in their block alone.

    >>> sort_of("flow.decoder.estimator.transformer_blocks.3.attn.to_q")
    'flow.decoder.estimator.transformer_blocks.*.attn.to_q'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", layer)


def _repeated(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the layers that repeat, such as those of transformer blocks."""
    return tuple(name for name in names if block_of(name) != name)


def _stage(layer: str) -> str:
    return layer.partition(".")[0]


def _part_of(layer: str) -> str:
    """Return the part that holds a layer: its key in `FIELDS_OF_PART`."""
    stage, _, inner = layer.partition(".")
    return next(start for start, _ in FIELDS_OF_PART[stage] if inner.startswith(start))


def _fields_of(stage: str, part: str) -> tuple[str, ...]:
    return dict(FIELDS_OF_PART[stage])[part]
