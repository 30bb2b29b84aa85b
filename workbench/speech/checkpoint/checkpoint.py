"""`Checkpoint`: configuration, weights and noise of one voice, loaded from a folder and saved to one.

The layout is the released one: `cosyvoice3.yaml`, `llm`, `flow` and `hift` as `.pt` or
`.safetensors`, `CosyVoice-BlankEN/`, the two ONNX front ends. Nothing in a folder is executed.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files import about_address, atomic_write, check_name, data_path
from workbench.speech.checkpoint import hyperyaml
from workbench.speech.checkpoint.config_yaml import YAML, config_from_yaml, options_from_yaml
from workbench.speech.checkpoint.config_yaml_write import config_to_yaml, qwen_config
from workbench.speech.checkpoint.files import (
    CAMPPLUS,
    ESTIMATOR,
    LAYOUT,
    NOISE,
    QWEN,
    SPK2INFO,
    STEMS,
    TOKENIZER,
    has_tokenizer,
    qwen_folder,
    read_json,
    read_speakers,
    replace_folder,
)
from workbench.speech.checkpoint.stage_files import MODELS, load_stages, on_meta
from workbench.speech.checkpoint.weight_names import EMBED, HEAD
from workbench.speech.checkpoint.weights import (
    count_nonfinite,
    hash_weights,
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

BUNDLED_VOICE = "voices/tiny"  # in data/


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """The weights of the three stages, with everything that they depend on.

    Parameters
    ----------
    name : str
        The folder's name.
    config : Config
        Sizes.
    weights : dict of str to dict of str to Tensor
        State dicts of "lm", "flow" and "hift", with upstream's names and the types of the file.
    noise : Noise
        The noise that the flow starts from, and that of the vocoder's excitation.
    folder, campplus, speech_tokenizer, tokenizer : Path or None
        The folder that it was loaded from; the two ONNX models; the folder of the text tokenizer.
    estimator : Path or None
        The flow's estimator as an ONNX file, see `Options.estimator`. `save` does not copy it, because the
        weights may have changed.
    spk2info : dict or None
        Upstream's ready-made speakers.
    origin : dict
        File name of each part.
    notes : tuple of str
        What was taken out of names, split or cast to read the files; empty for the released layout.
    device : str
        Default device of `build`.
    options : Options
        Default options of a run.

    Examples
    --------
    >>> voice = wb.Checkpoint.load()
    >>> voice
    Checkpoint('tiny', 14.0 M parameters, float16, float32)
    >>> voice.weights["flow"]["decoder.estimator.proj_out.bias"].shape
    torch.Size([80])
    >>> voice.hift().config.hop_length  # samples per mel frame
    480
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
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    options: Options = Options()

    @classmethod
    def load(cls, folder: str | Path | None = None, lm: str = "auto", device: str = "cpu") -> "Checkpoint":
        """Load a folder in the released layout.

        Parameters
        ----------
        folder : str or Path, optional
            Where a weight file is there as .safetensors and as .pt, the first is read. Weights as trainers,
            servers and ports save them are read too; `notes` says what was changed for that. Default: the
            bundled voice.
        lm : {"auto", "rl"}
            "rl" reads `llm.rl` in place of `llm`; "auto" only where there is no `llm`.
        device : str
            Where `build` puts modules. Weights stay in memory-mapped files until then.

        Raises
        ------
        WorkbenchError
            When a part is missing or unreadable, or has other shapes than the configuration states.
        """
        folder = data_path(BUNDLED_VOICE) if folder is None else Path(folder)
        if lm not in ("auto", "rl"):
            raise WorkbenchError(f"lm is {lm!r}; expected 'auto' or 'rl'")
        if not os.path.isdir(folder):  # Path.is_dir raises an OSError for a name that is too long
            raise WorkbenchError(
                f"{folder} is not a folder; expected one with {LAYOUT}{about_address(folder)}"
            )
        qwen = qwen_folder(folder)
        tree = hyperyaml.read(folder / YAML)
        config = config_from_yaml(tree, read_json(qwen / "config.json"))
        options = options_from_yaml(tree)
        stages = load_stages(folder, config, lm)
        names = (CAMPPLUS, TOKENIZER, ESTIMATOR, NOISE, SPK2INFO)
        present = {name: folder / name if (folder / name).is_file() else None for name in names}
        stored, speakers = present[NOISE], present[SPK2INFO]
        return cls(
            name=folder.resolve().name,
            config=config,
            weights=stages.weights,
            noise=Noise(config, read_weights(stored) if stored else None),
            folder=folder,
            campplus=present[CAMPPLUS],
            speech_tokenizer=present[TOKENIZER],
            tokenizer=qwen if has_tokenizer(qwen) else None,
            estimator=present[ESTIMATOR],
            spk2info=read_speakers(speakers) if speakers else None,
            origin={"config": YAML, **stages.files},
            notes=tuple(stages.notes),
            device=device,
            options=options,
        )

    @classmethod
    def random(cls, config: Config, seed: int = 0) -> "Checkpoint":
        """Return a checkpoint with untrained weights, to measure speed and numerics without a download."""
        weights = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for stage, model in MODELS.items():
                module = model(getattr(config, stage))
                weights[stage] = {key: value.detach() for key, value in module.state_dict().items()}
        weights["lm"][HEAD] = weights["lm"][EMBED]
        origin = {"config": f"random, seed {seed}"}
        return cls(f"random-{seed}", config, weights, Noise(config), origin=origin)

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
        """Build the front end, which prepares text and recordings.

        Raises
        ------
        WorkbenchError
            When the checkpoint has no text tokenizer or ONNX models, such as a random one.
        """
        parts = {
            f"{QWEN}/vocab.json": self.tokenizer,
            TOKENIZER: self.speech_tokenizer,
            CAMPPLUS: self.campplus,
        }
        missing = [name for name, path in parts.items() if path is None]
        if missing:
            raise WorkbenchError(
                f"{self.folder or self.name} has no {', '.join(missing)}; expected them for text and "
                "recordings: copy them from the release that this checkpoint belongs to"
            )
        return Frontend(
            TextTokenizer.load(self.tokenizer),
            SpeechTokenizer(self.speech_tokenizer, self.device),
            SpeakerEncoder(self.campplus, self.device),
            self.config,
        )

    def build(self, stage: str, device: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """Build the module of a stage, in eval mode and without gradients.

        Parameters
        ----------
        stage : {"lm", "flow", "hift"}
            Stage to build.
        device : str, optional
            Default: the checkpoint's.
        dtype : torch.dtype
            Type of the module's weights. They are copies: the checkpoint stays as it is.

        Returns
        -------
        nn.Module
        """
        if stage not in MODELS:
            raise WorkbenchError(f"stage is {stage!r}; expected one of {', '.join(MODELS)}")
        module = on_meta(stage, self.config)
        target = torch.device(self.device if device is None else device)
        copies = {}
        for key, value in self.weights[stage].items():
            if key != HEAD:
                copies[key] = value.to(target, dtype, copy=True)
        if stage == "lm":
            copies[HEAD] = copies[EMBED]
        module.load_state_dict(copies, strict=True, assign=True)
        if stage == "lm":  # assigning made two parameters of one tensor; tie them again
            module.llm.model.lm_head.weight = module.qwen.embed_tokens.weight
        return module.eval().requires_grad_(False)

    def save(self, folder: str | Path, overwrite: bool = False, noise_seconds: float = 30.0) -> Path:
        """Write a folder in the released layout; after an error the old folder is unchanged.

        Parameters
        ----------
        folder : str or Path
            Made if it does not exist.
        overwrite : bool
            True replaces a checkpoint in `folder`, with all other files there.
        noise_seconds : float
            Length of the excitation noise in `noise.safetensors`; 0 writes no such file.

        Raises
        ------
        WorkbenchError
            When the folder is not empty, or cannot be written.
        """
        check_name(Path(folder))
        folder = Path(folder).resolve()
        with replace_folder(folder, overwrite) as draft:
            self.write_parts(draft)
            self._write_weights(draft, noise_seconds)
        return folder

    def write_parts(self, draft: Path) -> None:
        """Write all but the weights and the noise into an empty folder."""
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

    def _write_weights(self, draft: Path, noise_seconds: float) -> None:
        for stage, stem in STEMS.items():
            tensors = dict(self.weights[stage])
            if tensors.get(HEAD) is tensors.get(EMBED):
                tensors.pop(HEAD, None)  # `load` adds it again
            _write_tensors(unshared(tensors), draft / f"{stem}.safetensors")
        if noise_seconds > 0:
            n_samples = int(noise_seconds * self.config.hift.sampling_rate)
            n_samples = min(n_samples, self.config.hift.noise_samples)
            tensors = {
                "ode": self.noise.ode(),
                "initial_phase": self.noise.initial_phase(),
                "excitation": self.noise.excitation(n_samples),
            }
            _write_tensors(tensors, draft / NOISE)

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the weights; neither the kind of file nor the type of storage changes it."""
        return hash_weights(self.weights)

    @cached_property
    def nonfinite(self) -> dict[str, int]:
        """Number of NaN and Inf in the weights of each stage."""
        return count_nonfinite(self.weights)

    def _size(self, stage: str) -> tuple[int, str, float]:
        """Return number of weights, types and megabytes; the tied embedding counts once."""
        values = {id(v): v for v in self.weights[stage].values()}.values()  # by id: each tensor once
        types = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in values}))
        return sum(v.numel() for v in values), types, sum(v.nbytes for v in values) / 1e6

    def __repr__(self) -> str:
        sizes = [self._size(stage) for stage in self.weights]
        millions = sum(n for n, _, _ in sizes) / 1e6
        types = sorted({name for _, names, _ in sizes for name in names.split(", ")})
        return f"Checkpoint({self.name!r}, {millions:.1f} M parameters, {', '.join(types)})"

    def _repr_html_(self) -> str:
        from html import escape

        titles = ("stage", "file", "parameters", "type", "MB", "NaN or Inf")
        heads = "".join(f"<th>{title}</th>" for title in titles)
        rows = ""
        for stage in self.weights:
            n, types, mb = self._size(stage)
            cells = (stage, self.origin.get(stage, ""), f"{n:,}", types, f"{mb:.1f}", self.nonfinite[stage])
            rows += "<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in cells) + "</tr>"
        title = (
            f"<b>{escape(self.name)}</b> weights {self.content_hash[:12]}, noise: {escape(repr(self.noise))}"
        )
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        return f"<div>{title}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{notes}</div>"


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with atomic_write(path) as draft:
        save_file(tensors, draft)
