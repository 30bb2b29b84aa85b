"""Runs of one pipeline, each stage kept under a hash of all that it depends on."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.checkpoint import Checkpoint
from workbench.speech.config import Options
from workbench.speech.frontend import Utterance
from workbench.speech.pipeline import Pipeline
from workbench.speech.run import STAGES, recorded_inputs, run
from workbench.speech.weights import hash_file
from workbench.trace.record import NOTHING, Save, as_save
from workbench.trace.trace import Trace

# Which stage an option changes; those of streaming change no run that is made whole.
STAGE_OF = {
    **dict.fromkeys(("lm_dtype", "top_p", "top_k", "win_size", "tau_r", "seed", "mask_stop_ids"), "lm"),
    **dict.fromkeys(("silent_tokens_repeat", "repetition_fallback", "max_silent_run", "max_tokens"), "lm"),
    **dict.fromkeys(("n_timesteps", "solver", "t_scheduler", "cfg_rate", "temperature"), "flow"),
    **dict.fromkeys(("estimator", "noise_seed", "flow_dtype", "speed"), "flow"),
    **dict.fromkeys(("hift_dtype", "f0_dtype", "source_dtype", "head_dtype"), "hift"),
    "stream_final_offline": None,
}
# What a stage is given beside what the one before it made.
INPUTS = {
    "lm": ("in/text_token", "in/prompt_text_token", "in/lm_prompt_token", "in/source_token"),
    "flow": ("in/flow_prompt_token", "in/prompt_mel", "in/spk_embedding"),
    "hift": (),
}
MADE = {"lm": "lm/speech_token", "flow": "flow/mel"}


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
        attrs: dict[str, Any] = {"timings": {}}
        leg = None
        for stage in STAGES:
            leg = self._leg(stage, utt, inputs, options, leg, pipe)
            data |= leg.data
            timings = attrs["timings"] | leg.attrs["timings"]
            attrs |= leg.attrs | {"timings": timings}
        attrs["options"] = asdict(options)  # a stage that was kept may have run beside other ones
        return Trace(data, attrs)

    def _leg(
        self,
        stage: str,
        utt: Utterance,
        inputs: Mapping[str, Tensor],
        options: Options,
        before: Trace | None,
        pipe: Pipeline,
    ) -> Trace:
        given = {name: inputs[name] for name in INPUTS[stage] if name in inputs}
        if before is not None:
            made = MADE[STAGES[STAGES.index(stage) - 1]]
            given[made] = before[made]
        chosen = {name: value for name, value in asdict(options).items() if STAGE_OF[name] == stage}
        about = [stage, utt.mode, utt.text, chosen, self.save, str(pipe.device), self.voice]
        about += [self.estimator(options)] if stage == "flow" else []
        key = content_key(about, given)
        if key not in self._kept:
            leg = self._opened(key)
            if leg is None:
                utterance = None if stage == "hift" else utt
                leg = run(pipe, utterance, options, self.save, stage, stage, before)
                if self.folder is not None:
                    leg.save(self.folder / f"{key}.trace")
            self._kept[key] = leg
        self._kept.move_to_end(key)
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _opened(self, key: str) -> Trace | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}.trace"
        try:
            return Trace.load(path) if path.is_file() else None
        except WorkbenchError:  # of another version, or spoiled: made again and written over
            return None


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
