"""A checkpoint folder: configuration, weights, noise and where they came from.

The layout is the released one: `cosyvoice3.yaml`, `llm`, `flow` and `hift` as `.pt` or
`.safetensors`, `CosyVoice-BlankEN/`, the two ONNX front ends. Nothing in a folder is executed.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.errors import WorkbenchError, first_line
from workbench.speech.checkpoint import hyperyaml
from workbench.speech.checkpoint.config_yaml import YAML, config_from_yaml, options_from_yaml
from workbench.speech.checkpoint.files import (
    CAMPPLUS,
    ESTIMATOR,
    LAYOUT,
    NOISE,
    QWEN,
    SPK2INFO,
    STEMS,
    TOKENIZER,
    find_weights,
    has_tokenizer,
    qwen_folder,
    read_json,
    read_speakers,
    replacing,
)
from workbench.speech.checkpoint.template import config_to_yaml, qwen_config
from workbench.speech.checkpoint.weights import (
    EMBED,
    HEAD,
    count_nonfinite,
    fitted,
    hash_weights,
    normalised,
    read_weights,
    unshared,
)
from workbench.speech.config import Config, Options
from workbench.speech.frontend.frontend import Frontend, SpeakerEncoder, SpeechTokenizer
from workbench.speech.frontend.text import TextTokenizer
from workbench.speech.models.flow import Flow
from workbench.speech.models.hift import HiFT
from workbench.speech.models.lm import LM
from workbench.speech.models.noise import Noise

MODELS: dict[str, Callable[[Any], nn.Module]] = {"lm": LM, "flow": Flow, "hift": HiFT}


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """Weights of the three stages with everything they depend on.

    Parameters
    ----------
    name : str
        The folder's name.
    config : Config
        Sizes.
    weights : dict of str to dict of str to Tensor
        State dicts of "lm", "flow" and "hift" under upstream's names, in the type they were stored in.
    noise : Noise
        Start of the flow and excitation noise.
    folder, campplus, speech_tokenizer, tokenizer : Path or None
        Where it was loaded from; the ONNX front ends; the folder of the text tokenizer.
    estimator : Path or None
        The flow's estimator as an ONNX file, see `Options.estimator`; `save` leaves it out, because the
        weights may have changed since.
    spk2info : dict or None
        Upstream's ready-made speakers.
    origin : dict
        File name of each part.
    device : str
        Where `build` puts modules when not told.
    options : Options
        What a run does when it is told nothing else.
    """

    name: str
    config: Config
    weights: dict[str, dict[str, Tensor]]
    noise: Noise
    folder: Path | None = None
    campplus: Path | None = None
    speech_tokenizer: Path | None = None
    tokenizer: Path | None = None
    estimator: Path | None = None
    spk2info: dict[str, Any] | None = None
    origin: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    options: Options = Options()

    @classmethod
    def load(cls, folder: str | Path, lm: str = "auto", device: str = "cpu") -> "Checkpoint":
        """Open a folder in the released layout.

        Parameters
        ----------
        folder : str or Path
            Safetensors are preferred where both kinds are there.
        lm : {"auto", "rl"}
            "rl" takes `llm.rl` instead of `llm`.
        device : str
            Where the modules go. Weights stay in memory-mapped files until then.

        Raises
        ------
        WorkbenchError
            When something is missing, unreadable, or not of the shape that the configuration asks for.
        """
        folder = Path(folder)
        if lm not in ("auto", "rl"):
            raise WorkbenchError(f"lm is {lm!r}; expected 'auto' or 'rl'")
        if not folder.is_dir():
            raise WorkbenchError(f"{folder} is not a folder; expected one with {LAYOUT}")
        qwen = qwen_folder(folder)
        tree = hyperyaml.read(folder / YAML)
        config = config_from_yaml(tree, read_json(qwen / "config.json"))
        options = options_from_yaml(tree)
        stems = STEMS | ({"lm": "llm.rl"} if lm == "rl" else {})
        files = {stage: find_weights(folder, stem) for stage, stem in stems.items()}
        weights = {stage: _load_stage(stage, config, path) for stage, path in files.items()}
        names = (CAMPPLUS, TOKENIZER, ESTIMATOR, NOISE, SPK2INFO)
        present = {name: folder / name if (folder / name).is_file() else None for name in names}
        stored, speakers = present[NOISE], present[SPK2INFO]
        return cls(
            name=folder.resolve().name,
            config=config,
            weights=weights,
            noise=Noise(config, read_weights(stored) if stored else None),
            folder=folder,
            campplus=present[CAMPPLUS],
            speech_tokenizer=present[TOKENIZER],
            tokenizer=qwen if has_tokenizer(qwen) else None,
            estimator=present[ESTIMATOR],
            spk2info=read_speakers(speakers) if speakers else None,
            origin={"config": YAML, **{stage: path.name for stage, path in files.items()}},
            device=device,
            options=options,
        )

    @classmethod
    def random(cls, config: Config, seed: int = 0) -> "Checkpoint":
        """Return untrained weights of the true shapes, for speed and numerics without a download."""
        weights = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for stage, model in MODELS.items():
                weights[stage] = {
                    k: v.detach() for k, v in model(getattr(config, stage)).state_dict().items()
                }
        weights["lm"][HEAD] = weights["lm"][EMBED]
        return cls(
            f"random-{seed}", config, weights, Noise(config), origin={"config": f"random, seed {seed}"}
        )

    def lm(self) -> LM:
        """Build the language model: float32, eval, on `device`."""
        return self.build("lm")

    def flow(self) -> Flow:
        """Build the flow: float32, eval, on `device`."""
        return self.build("flow")

    def hift(self) -> HiFT:
        """Build the vocoder: float32, eval, on `device`."""
        return self.build("hift")

    def frontend(self) -> Frontend:
        """Build what prepares text and recordings.

        Raises
        ------
        WorkbenchError
            When the checkpoint came without the text tokenizer or an ONNX model, as random ones do.
        """
        parts = {
            f"{QWEN}/vocab.json": self.tokenizer,
            TOKENIZER: self.speech_tokenizer,
            CAMPPLUS: self.campplus,
        }
        if missing := [name for name, path in parts.items() if path is None]:
            raise WorkbenchError(
                f"{self.folder or self.name} has no {', '.join(missing)}; expected them for text and "
                "recordings: copy them from the release this checkpoint belongs to"
            )
        return Frontend(
            TextTokenizer.load(self.tokenizer),
            SpeechTokenizer(self.speech_tokenizer, self.device),
            SpeakerEncoder(self.campplus, self.device),
            self.config,
        )

    def build(self, stage: str, device: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """Build a module that may be run but not trained.

        Parameters
        ----------
        stage : {"lm", "flow", "hift"}
            Which one.
        device : str, optional
            Default: the checkpoint's.
        dtype : torch.dtype
            Weights are copied; the checkpoint's own stay as they are.

        Returns
        -------
        nn.Module
        """
        if stage not in MODELS:
            raise WorkbenchError(f"stage is {stage!r}; expected one of {', '.join(MODELS)}")
        module = _on_meta(stage, self.config)
        where = torch.device(self.device if device is None else device)
        ready = {
            key: value.to(where, dtype, copy=True)
            for key, value in self.weights[stage].items()
            if key != HEAD
        }
        if stage == "lm":
            ready[HEAD] = ready[EMBED]
        module.load_state_dict(ready, strict=True, assign=True)
        if stage == "lm":
            module.llm.model.lm_head.weight = module.qwen.embed_tokens.weight
        return module.eval().requires_grad_(False)

    def save(self, folder: str | Path, overwrite: bool = False, noise_seconds: float = 30.0) -> Path:
        """Write the released layout, all of it or nothing.

        Parameters
        ----------
        folder : str or Path
            Made if need be.
        overwrite : bool
            True replaces a checkpoint that is there, with all else in its folder.
        noise_seconds : float
            Length of the excitation noise in `noise.safetensors`; 0 leaves the file out.

        Raises
        ------
        WorkbenchError
            When the folder holds something, or cannot be written.
        """
        folder = Path(folder).resolve()
        with replacing(folder, overwrite) as draft:
            self._write(draft, noise_seconds)
        return folder

    def _write(self, draft: Path, noise_seconds: float) -> None:
        (draft / YAML).write_text(config_to_yaml(self.config, self.options), encoding="utf-8")
        if self.tokenizer is not None:
            shutil.copytree(self.tokenizer, draft / QWEN)
        (draft / QWEN).mkdir(exist_ok=True)
        text = json.dumps(qwen_config(self.config), indent=2)
        (draft / QWEN / "config.json").write_text(text + "\n", encoding="utf-8")
        for name, path in ((CAMPPLUS, self.campplus), (TOKENIZER, self.speech_tokenizer)):
            if path is not None:
                shutil.copyfile(path, draft / name)
        if self.spk2info is not None:
            torch.save(self.spk2info, draft / SPK2INFO)
        for stage, stem in STEMS.items():
            tensors = dict(self.weights[stage])
            if tensors.get(HEAD) is tensors.get(EMBED):
                tensors.pop(HEAD, None)  # `load` puts it back
            save_file(unshared(tensors), draft / f"{stem}.safetensors")
        if noise_seconds > 0:
            n = min(int(noise_seconds * self.config.hift.sampling_rate), self.config.hift.noise_samples)
            noise = self.noise
            tensors = {
                "ode": noise.ode(),
                "initial_phase": noise.initial_phase(),
                "excitation": noise.excitation(n),
            }
            save_file(tensors, draft / NOISE)

    @cached_property
    def content_hash(self) -> str:
        """Hash of the weights, the same whatever kind of file they came from."""
        return hash_weights(self.weights)

    @cached_property
    def nonfinite(self) -> dict[str, int]:
        """How many values of each stage are NaN or Inf."""
        return count_nonfinite(self.weights)

    def _size(self, stage: str) -> tuple[int, str, float]:
        """Elements, types and megabytes, the tied embedding counted once."""
        values = {id(v): v for v in self.weights[stage].values()}.values()
        types = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in values}))
        return sum(v.numel() for v in values), types, sum(v.nbytes for v in values) / 1e6

    def __repr__(self) -> str:
        sizes = [self._size(stage) for stage in self.weights]
        types = ", ".join(sorted({t for _, t, _ in sizes}))
        return f"Checkpoint({self.name!r}, {sum(n for n, _, _ in sizes) / 1e6:.1f} M parameters, {types})"

    def _repr_html_(self) -> str:
        from html import escape

        heads = "".join(f"<th>{h}</th>" for h in ("stage", "file", "parameters", "type", "MB", "NaN or Inf"))
        rows = ""
        for stage in self.weights:
            n, types, mb = self._size(stage)
            cells = (stage, self.origin.get(stage, ""), f"{n:,}", types, f"{mb:.1f}", self.nonfinite[stage])
            rows += "<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in cells) + "</tr>"
        title = (
            f"<b>{escape(self.name)}</b> weights {self.content_hash[:12]}, noise: {escape(repr(self.noise))}"
        )
        return f"<div>{title}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def _on_meta(stage: str, config: Config) -> Any:
    try:
        with torch.device("meta"):
            return MODELS[stage](getattr(config, stage))
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise WorkbenchError(f"{YAML}: the sizes of {stage} make no model ({first_line(error)})") from error


def _load_stage(stage: str, config: Config, path: Path) -> dict[str, Tensor]:
    found = normalised(stage, read_weights(path), path)
    expected = {key: tuple(value.shape) for key, value in _on_meta(stage, config).state_dict().items()}
    return fitted(found, expected, path)
