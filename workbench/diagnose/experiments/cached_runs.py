"""Runs of one pipeline, each stage kept under a hash of everything that its output depends on."""

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
from workbench.speech.config import FLOW, HIFT, LM, STAGES, Options
from workbench.speech.frontend.frontend import Utterance
from workbench.speech.onnx.interface import hash_model
from workbench.speech.pipeline import Pipeline
from workbench.speech.recording import recorded_inputs, stated_options
from workbench.speech.run import run_part
from workbench.trace.record import NOTHING, Save, as_save
from workbench.trace.trace import Trace

MAX_STAGES = 256  # results in memory: 85 runs of three stages, a few hundred MB when little is recorded
KEY_LENGTH = 32  # hexadecimal digits, 128 bits: enough that no two keys are ever equal by chance
PER_STAGE = ("timings", "rows")  # attributes of a trace that hold one entry for each stage


class CachedRuns:
    """Runs of one pipeline that compute each stage once.

    Runs that differ in an option of the vocoder share their tokens and their mel. Runs that differ in an
    option of the flow share their tokens.

    Parameters
    ----------
    pipe : Pipeline
    save : Save or globs
        What each run records.
    folder : path, optional
        Where stage results are saved too, so that a later Python session finds them.
    max_stages : int
        Number of stage results to hold in memory. The one that was used longest ago is dropped first.

    Examples
    --------
    >>> runs = wb.CachedRuns(pipe)
    >>> options = voice.options.but(n_timesteps=1, max_tokens=8)
    >>> float32 = runs.run(utt, options)
    >>> float16 = runs.run(utt, options.but(head_dtype="float16"))  # the vocoder alone runs again
    >>> bool((float32["flow/mel"] == float16["flow/mel"]).all()), bool((float32.wav == float16.wav).all())
    (True, False)
    """

    def __init__(
        self,
        pipe: Pipeline,
        save: Save | str | Iterable[str] = NOTHING,
        folder: str | os.PathLike | None = None,
        max_stages: int = MAX_STAGES,
    ) -> None:
        self.pipe = pipe
        self.save = as_save(save)
        self.folder = None if folder is None else Path(folder)
        self.max_stages = max_stages
        self._cache: OrderedDict[str, Trace] = OrderedDict()  # stage key -> result, oldest use first
        self._file_hashes: dict[Path, str] = {}

    @cached_property
    def checkpoint_hash(self) -> str:
        """Hash of the checkpoint: weights, sizes and noise."""
        return hash_checkpoint(self.pipe.checkpoint)

    def program_hash(self, options: Options, program: str) -> str | None:
        """Return the hash of the ONNX file that an option names; None if there is no such file.

        Parameters
        ----------
        options : Options
        program : {"estimator", "vocoder"}
            Name of the option.
        """
        which = getattr(options, program)
        if which == "torch":
            return None
        own = self.pipe.checkpoint.estimator if program == "estimator" else None
        path = own if which == "onnx" else Path(which)
        if path is None or not os.path.isfile(path):
            return None
        # A file is hashed once, because the pipeline also opens it once.
        if path not in self._file_hashes:
            self._file_hashes[path] = hash_model(path)
        return self._file_hashes[path]

    def run(self, utt: Utterance, options: Options | None = None, pipe: Pipeline | None = None) -> Trace:
        """Return a run of an utterance; stages that are in the cache are not computed again.

        Parameters
        ----------
        utt : Utterance
        options : Options, optional
            The checkpoint's own by default.
        pipe : Pipeline, optional
            The same pipeline with another progress bar; see `Pipeline.watched`.
        """
        pipe = pipe or self.pipe
        options = self.pipe.options(options)
        inputs, _ = recorded_inputs(utt)
        data: dict[str, Tensor] = {}
        attrs: dict[str, Any] = {name: {} for name in PER_STAGE}
        part: Trace | None = None  # the result of the stage before
        for stage in STAGES:
            part = self._run_stage(stage, utt, inputs, options, part, pipe)
            data |= part.data
            merged = {name: attrs[name] | part.attrs.get(name, {}) for name in PER_STAGE}
            attrs |= part.attrs | merged
        # The cached result of a stage carries all options of the run that computed it, and those of the other
        # stages may differ from this run's.
        attrs.pop("quantised", None)
        attrs |= stated_options(self.pipe, options)
        return Trace(data, attrs)

    def compute_batch(self, utt: Utterance, options: Sequence[Options]) -> None:
        """Compute the runs that are not in the cache as one batch per stage, and keep them.

        Runs with `compute="eager"` cannot be in a batch, and a single run needs none: both are left to `run`.
        """
        inputs, _ = recorded_inputs(utt)
        missing = []
        for chosen in options:
            if chosen.compute != "eager" and chosen not in missing and not self._has(utt, inputs, chosen):
                missing.append(chosen)
        if len(missing) < 2:
            return
        [traces] = self.pipe.synthesise_many([utt], missing, self.save)
        for chosen, trace in zip(missing, traces, strict=True):
            part = None
            for stage in STAGES:
                key = self._stage_key(stage, utt, inputs, chosen, part)
                part = self._keep(key, stage_part(trace, stage))

    def _has(self, utt: Utterance, inputs: Mapping[str, Tensor], options: Options) -> bool:
        """Whether all stages of a run are in the cache."""
        part = None
        for stage in STAGES:
            part = self._find(self._stage_key(stage, utt, inputs, options, part))
            if part is None:
                return False
        return True

    def _run_stage(
        self,
        stage: str,
        utt: Utterance,
        inputs: Mapping[str, Tensor],
        options: Options,
        before: Trace | None,
        pipe: Pipeline,
    ) -> Trace:
        """Return the result of one stage, from the cache or computed now."""
        key = self._stage_key(stage, utt, inputs, options, before)
        found = self._find(key)
        if found is not None and STAGES[stage].output in found:  # else a file that is no result of the stage
            return found
        # The vocoder needs the mel alone. Without the utterance its result does not repeat the inputs, which
        # the results of LM and flow hold already.
        utterance = None if stage == HIFT else utt
        return self._keep(key, run_part(pipe, utterance, options, self.save, stage, stage, before))

    def _stage_key(
        self,
        stage: str,
        utt: Utterance,
        inputs: Mapping[str, Tensor],
        options: Options,
        before: Trace | None,
    ) -> str:
        """Return the key of a stage's result: a hash of everything that the result depends on.

        Parameters
        ----------
        stage : str
        utt : Utterance
        inputs : mapping of str to Tensor
            The utterance's tensors by field.
        options : Options
            Only the options of this stage count.
        before : Trace or None
            The result of the stage before; None for the first.
        """
        needed = STAGES[stage].inputs
        if stage == LM:
            needed += ("in/source_token",)  # a conversion has it in place of a text
        tensors = {name: inputs[name] for name in needed if name in inputs}
        if before is not None:
            tensors |= {name: before[name] for name in needed if name not in inputs}
        # The device belongs to the key, because a GPU rounds in another way than a CPU. `save` decides which
        # fields the result has.
        device = str(self.pipe.device)
        settings = [stage, utt.mode, utt.text, options.of_stage(stage), self.save, device]
        settings.append(self.checkpoint_hash)
        if stage == FLOW:
            settings.append(self.program_hash(options, "estimator"))
        if stage == HIFT:
            settings.append(self.program_hash(options, "vocoder"))
        return content_key(settings, tensors)

    def _find(self, key: str) -> Trace | None:
        """Return a result from memory, or else from the folder; None if it is in neither."""
        if key not in self._cache:
            part = self._load(key)
            if part is None:
                return None
            self._cache[key] = part
        self._cache.move_to_end(key)  # as the one used most recently
        self._drop_oldest()
        return self._cache[key]

    def _keep(self, key: str, part: Trace) -> Trace:
        """Put a result into memory and into the folder."""
        if self.folder is not None:
            part.save(self.folder / f"{key}.trace")
        self._cache[key] = part
        self._drop_oldest()
        return part

    def _drop_oldest(self) -> None:
        while len(self._cache) > self.max_stages:
            self._cache.popitem(last=False)

    def _load(self, key: str) -> Trace | None:
        """Return a result from the folder. A damaged file counts as missing: it will be written again."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.trace"
        try:
            return Trace.load(path) if path.is_file() else None
        except WorkbenchError:  # a truncated file, or one of another version
            return None


def stage_part(trace: Trace, stage: str) -> Trace:
    """Return the part of a complete run that this stage alone would have recorded."""
    prefixes = (f"{stage}/",) if stage == HIFT else ("in/", f"{stage}/")
    data = {name: value for name, value in trace.items() if name.startswith(prefixes)}
    own = {name: {stage: trace.attrs[name][stage]} for name in PER_STAGE}
    return Trace(data, trace.attrs | own)


def content_key(settings: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of JSON values and of tensors: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:KEY_LENGTH]


def hash_checkpoint(checkpoint: Checkpoint) -> str:
    """Return a hash of weights, sizes and noise. Equal checkpoints have equal hashes wherever they lie."""
    stored_noise = checkpoint.noise.stored or {}
    return content_key([checkpoint.content_hash, asdict(checkpoint.config)], stored_noise)
