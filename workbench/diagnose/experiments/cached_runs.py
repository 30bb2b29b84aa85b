"""Runs of one pipeline, each stage kept under a hash of all that it depends on."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint.checkpoint import Checkpoint
from workbench.speech.checkpoint.weights import hash_file
from workbench.speech.config import LM, STAGES, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import recorded_inputs
from workbench.speech.run import run_part
from workbench.trace.record import NOTHING, Save, as_save
from workbench.trace.trace import Trace


class CachedRuns:
    """Runs of one pipeline, each stage kept under a hash of all that it depends on.

    Runs that differ in the vocoder share tokens and mel, those that differ in the flow share tokens.

    Parameters
    ----------
    pipe : Pipeline
    save : Save or globs
        What each run records.
    folder : path, optional
        Where stages are kept as well, so that another session need not make them again.
    most : int
        Stages held in memory; those used longest ago go first.
    """

    def __init__(
        self,
        pipe: Pipeline,
        save: Save | str | Iterable[str] = NOTHING,
        folder: str | os.PathLike | None = None,
        most: int = 256,
    ) -> None:
        self.pipe, self.save, self.most = pipe, as_save(save), most
        self.folder = None if folder is None else Path(folder)
        self._kept: OrderedDict[str, Trace] = OrderedDict()
        self._files: dict[Path, str] = {}

    @cached_property
    def voice(self) -> str:
        """Hash of the checkpoint: weights, sizes and noise."""
        return voice_key(self.pipe.checkpoint)

    def estimator(self, options: Options) -> str | None:
        """Hash of the file that `options.estimator` means; None where there is none."""
        which = options.estimator
        path = self.pipe.checkpoint.estimator if which == "onnx" else Path(which)
        if which == "torch" or path is None or not path.is_file():
            return None
        if path not in self._files:  # once, as the pipeline opens it once
            self._files[path] = hash_file(path)
        return self._files[path]

    def run(self, utt: Utterance, options: Options | None = None, pipe: Pipeline | None = None) -> Trace:
        """Speak an utterance, or give what an equal run gave.

        Parameters
        ----------
        utt : Utterance
        options : Options, optional
            The checkpoint's own by default.
        pipe : Pipeline, optional
            The same one under another bar; see `Pipeline.watched`.
        """
        pipe, options = pipe or self.pipe, self.pipe.options(options)
        inputs, _ = recorded_inputs(utt)
        data: dict[str, Tensor] = {}
        attrs: dict[str, Any] = {"timings": {}, "rows": {}}
        leg = None
        for stage in STAGES:
            leg = self._leg(stage, utt, inputs, options, leg, pipe)
            data |= leg.data
            each = {name: attrs[name] | leg.attrs.get(name, {}) for name in ("timings", "rows")}
            attrs |= leg.attrs | each
        attrs["options"] = asdict(options)  # a stage that was kept may have run beside other ones
        return Trace(data, attrs)

    def together(self, utt: Utterance, options: Sequence[Options]) -> None:
        """Make those of several runs that are missing, one batch a stage, and keep them.

        Runs with `compute="eager"`, and one that is alone, are left to `run`.
        """
        inputs, _ = recorded_inputs(utt)
        missing = [o for o in options if o.compute != "eager" and not self._has(utt, inputs, o)]
        missing = list(dict.fromkeys(missing))
        if len(missing) > 1:
            [traces] = self.pipe.synthesise_many([utt], missing, self.save)
            for chosen, trace in zip(missing, traces, strict=True):
                before = None
                for stage in STAGES:
                    key = self._key(stage, utt, inputs, chosen, before)
                    before = self._keep(key, _leg_of(trace, stage))

    def _has(self, utt: Utterance, inputs: Mapping[str, Tensor], options: Options) -> bool:
        leg = None
        for stage in STAGES:
            leg = self._find(self._key(stage, utt, inputs, options, leg))
            if leg is None:
                return False
        return True

    def _leg(
        self,
        stage: str,
        utt: Utterance,
        inputs: Mapping[str, Tensor],
        options: Options,
        before: Trace | None,
        pipe: Pipeline,
    ) -> Trace:
        key = self._key(stage, utt, inputs, options, before)
        found = self._find(key)
        if found is not None:
            return found
        utterance = None if stage == "hift" else utt
        return self._keep(key, run_part(pipe, utterance, options, self.save, stage, stage, before))

    def _key(
        self,
        stage: str,
        utt: Utterance,
        inputs: Mapping[str, Tensor],
        options: Options,
        before: Trace | None,
    ) -> str:
        needed = STAGES[stage].inputs
        if stage == LM:
            needed += ("in/source_token",)  # there for a conversion alone
        given = {name: inputs[name] for name in needed if name in inputs}
        if before is not None:
            given |= {name: before[name] for name in needed if name not in inputs}
        device = str(self.pipe.device)
        about = [stage, utt.mode, utt.text, options.of_stage(stage), self.save, device, self.voice]
        about += [self.estimator(options)] if stage == "flow" else []
        return content_key(about, given)

    def _find(self, key: str) -> Trace | None:
        if key not in self._kept:
            leg = self._opened(key)
            if leg is None:
                return None
            self._kept[key] = leg
        self._kept.move_to_end(key)
        self._forget()
        return self._kept[key]

    def _keep(self, key: str, leg: Trace) -> Trace:
        if self.folder is not None:
            leg.save(self.folder / f"{key}.trace")
        self._kept[key] = leg
        self._forget()
        return leg

    def _forget(self) -> None:
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)

    def _opened(self, key: str) -> Trace | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}.trace"
        try:
            return Trace.load(path) if path.is_file() else None
        except WorkbenchError:  # of another version, or spoiled: made again and written over
            return None


def _leg_of(trace: Trace, stage: str) -> Trace:
    """Cut out of a whole run what one stage alone would have left."""
    rooms = (f"{stage}/",) if stage == "hift" else ("in/", f"{stage}/")
    data = {name: value for name, value in trace.items() if name.startswith(rooms)}
    own = {"timings": {stage: trace.attrs["timings"][stage]}, "rows": {stage: trace.attrs["rows"][stage]}}
    return Trace(data, trace.attrs | own)


def content_key(about: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of what JSON can hold and of tensors with their names, types and shapes."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def voice_key(checkpoint: Checkpoint) -> str:
    """Return a hash of weights, sizes and noise: what two equal voices have in common wherever they lie."""
    stored = checkpoint.noise.stored or {}
    return content_key([checkpoint.content_hash, asdict(checkpoint.config)], stored)
