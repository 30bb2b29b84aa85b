"""The models of a pipeline: each is built once in every precision and way of computing that a run needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.progress import ProgressBar
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.quantised.layers import check_weights
from workbench.speech.config import Options
from workbench.speech.config.formats import rules_of, rules_of_stage, rules_text
from workbench.speech.fast.capability import dtype_on
from workbench.speech.fast.cuda_graphs import CudaGraphPool
from workbench.speech.fast.flow import FastFlow
from workbench.speech.fast.hift import FastHiFT
from workbench.speech.fast.lm import FastLM
from workbench.speech.models.flow import Flow
from workbench.speech.models.numerics import exact_float32, fast_float32
from workbench.speech.models.quantise.modules import quantise_layers
from workbench.speech.onnx.estimator import OnnxEstimator, open_estimator
from workbench.speech.onnx.vocoder import OnnxVocoder, open_vocoder

MAX_QUANTISED = (
    6  # models kept with quantised weights: three stages in two precisions, as `compare` uses them
)
Key = tuple[str | None, ...]


class ModelCache:
    """Builds each model once and keeps it; of those with quantised weights, the last few in use.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : torch.device
    progress : bool
        Show a bar while kernels are compiled for a GPU.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, progress: bool) -> None:
        self.checkpoint, self.device, self.progress = checkpoint, device, progress
        self._eager: dict[Key, nn.Module] = {}
        self._fast: dict[Key, FastLM | FastFlow | FastHiFT] = {}
        self._estimators: dict[str, OnnxEstimator] = {}
        self._vocoders: dict[str, OnnxVocoder] = {}

    def eager(self, name: str, dtype: str, *parts: str, weights: str | None = None) -> nn.Module:
        """Return a model in some precision.

        Parameters
        ----------
        name : {"lm", "flow", "hift"}
        dtype : str
            Of the whole model.
        *parts : str
            Of the vocoder's f0 predictor and source, where they differ.
        weights : str, optional
            As `Options.weights`.
        """
        own = rules_of_stage(rules_text(weights), name)
        key = (name, dtype, *parts, own)
        return _kept(self._eager, key, lambda: self._built(name, dtype, *parts, weights=own))

    def fast_lm(self, options: Options) -> FastLM:
        """Return the LM for `compute` "exact" or "fast"."""
        dtype = self._fast_dtype(options, "lm")
        weights = _without_inputs(options, "lm")
        key = ("lm", options.compute, dtype, weights)

        def build() -> FastLM:
            silent = self.checkpoint.config.silent_tokens
            # Built anew, not the eager one: a fast path takes its model over.
            lm, exact = self._built("lm", dtype, weights=weights), options.compute == "exact"
            return FastLM.consume(lm, silent, self._graphs("LM", options), exact)

        return _kept(self._fast, key, build)

    def fast_flow(self, options: Options) -> FastFlow:
        """Return the flow for `compute` "exact" or "fast"."""
        dtype = self._fast_dtype(options, "flow")
        weights = _without_inputs(options, "flow")
        key = ("flow", options.compute, dtype, weights)

        def build() -> FastFlow:
            flow = self._built("flow", dtype, weights=weights)
            return FastFlow.consume(flow, self._graphs("flow", options))

        return _kept(self._fast, key, build)

    def flow(self, options: Options) -> Flow | FastFlow:
        """Return what computes the conditioning; ONNX may compute the velocity."""
        if options.eager("flow"):
            return self.eager("flow", options.dtype_of("flow"), weights=options.weights)
        return self.fast_flow(options)

    def fast_hift(self, options: Options) -> FastHiFT:
        """Return the vocoder for `compute` "exact" or "fast"."""
        parts = (options.dtype_of("hift"), options.f0_dtype, options.source_dtype)
        weights = _without_inputs(options, "hift")
        key = ("hift", options.compute, *parts, weights)

        def build() -> FastHiFT:
            hift = self._built("hift", *parts, weights=weights)
            return FastHiFT.consume(hift, self.checkpoint.noise.excitation, self._graphs("vocoder", options))

        return _kept(self._fast, key, build)

    def estimator(self, options: Options) -> OnnxEstimator | None:
        """Return the network that replaces the flow's own, if any.

        Raises
        ------
        WorkbenchError
            When it computes in another precision than the options ask for, or cannot be opened.
        """
        which = options.estimator
        if which == "torch":
            return None
        if options.flow_dtype != "float32":
            raise WorkbenchError(
                f"estimator is {which!r}, which computes in float32, and flow_dtype is "
                f"{options.flow_dtype!r}; change one of them"
            )
        _check_unquantised("estimator", which, options.weights_of("flow"))
        if which not in self._estimators:
            self._estimators[which] = open_estimator(self.checkpoint, which, self.device)
        return self._estimators[which]

    def vocoder(self, options: Options) -> OnnxVocoder | None:
        """Return the network that replaces the vocoder's core, if any.

        Raises
        ------
        WorkbenchError
            When it computes in another precision than the options ask for, or cannot be opened.
        """
        which = options.vocoder
        if which == "torch":
            return None
        for name in ("hift_dtype", "head_dtype"):
            if getattr(options, name) != "float32":
                raise WorkbenchError(
                    f"vocoder is {which!r}, which is given float32, and {name} is "
                    f"{getattr(options, name)!r}; change one of them"
                )
        _check_unquantised("vocoder", which, options.weights_of("hift"))
        if which not in self._vocoders:
            self._vocoders[which] = open_vocoder(self.checkpoint, which, self.device)
        return self._vocoders[which]

    def _fast_dtype(self, options: Options, stage: str) -> str:
        return dtype_on(self.device, getattr(options, f"{stage}_dtype"), options.dtype_of(stage))

    def _built(self, name: str, dtype: str, *parts: str, weights: str | None) -> nn.Module:
        # Built wide where parts differ, so that rounding the trunk does not round them first.
        widest = torch.float64 if parts else getattr(torch, dtype)
        if weights is None:
            model = self.checkpoint.build(name, str(self.device), widest)
        else:
            check_weights(self.checkpoint, weights)
            model = self.checkpoint.build(name, str(self.device))
            quantise_layers(model, name, rules_of(weights))
            model.to(widest)
        wanted = dict(zip(("f0_predictor", "m_source"), parts, strict=False))
        for part, module in model.named_children():
            module.to(getattr(torch, wanted.get(part, dtype)))
        return model

    def _graphs(self, name: str, options: Options) -> CudaGraphPool:
        arithmetic = fast_float32 if options.compute == "fast" else exact_float32
        silent = not self.progress or self.device.type != "cuda"

        @contextmanager
        def on_compile() -> Iterator[None]:
            with ProgressBar(
                total=1, desc=f"{name}: made ready for this GPU, once", leave=False, disable=silent
            ):
                yield

        return CudaGraphPool(self.device, arithmetic, on_compile)


def _kept(cache: dict[Key, Any], key: Key, build: Callable[[], Any]) -> Any:
    """Return a model from a cache, or build it; the last part of a key says how weights are quantised."""
    model = cache.get(key)
    if model is None:
        model = cache.setdefault(key, build())
    if key[-1] is not None:
        cache.pop(key, None)
        cache[key] = model  # behind all others
        quantised_keys = [each for each in tuple(cache) if each[-1] is not None]
        for oldest in quantised_keys[:-MAX_QUANTISED]:
            cache.pop(oldest, None)  # another thread may have done so
    return model


def _without_inputs(options: Options, stage: str) -> str | None:
    """Return the formats of a stage's weights for a fast path, which does not quantise inputs."""
    weights = options.weights_of(stage)
    if any("dynamic" in rule.format.details for rule in rules_of(weights)):
        raise WorkbenchError(
            f"weights is {weights!r:.200}, and compute {options.compute!r}: inputs are quantised with "
            "compute='eager' alone. Leave out 'dynamic', or change compute"
        )
    return weights


def _check_unquantised(name: str, which: str, weights: str | None) -> None:
    if weights is not None:
        raise WorkbenchError(
            f"{name} is {which!r}, which has weights of its own, and weights is {weights!r:.200}; change one "
            "of them"
        )
