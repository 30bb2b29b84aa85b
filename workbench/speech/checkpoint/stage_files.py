"""Load the weights of the three stages from a folder, in whatever files they lie."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.errors import WorkbenchError, first_line
from workbench.speech.checkpoint.config_yaml import YAML
from workbench.speech.checkpoint.files import LAYOUT, RL, STEMS, check_parts, weight_files
from workbench.speech.checkpoint.layouts import FoundStage, find_stage
from workbench.speech.checkpoint.quantised.gguf_weights import check_header, read_gguf
from workbench.speech.checkpoint.weight_names import aliases
from workbench.speech.checkpoint.weights import read_weights, select_weights, tie_embedding
from workbench.speech.config import Config
from workbench.speech.models.flow import Flow
from workbench.speech.models.hift import HiFT
from workbench.speech.models.lm import LM

MODELS: dict[str, Callable[[Any], nn.Module]] = {"lm": LM, "flow": Flow, "hift": HiFT}


class Content(NamedTuple):
    """What a file holds."""

    weights: dict[str, Any]
    header: dict[str, Any]  # of a GGUF file: numbers and texts


class LoadedStages(NamedTuple):
    """The weights of all stages, and where they came from."""

    weights: dict[str, dict[str, Tensor]]
    files: dict[str, str]  # name of each stage's file
    notes: list[str]  # what was changed to read them


def load_stages(folder: Path, config: Config, lm: str = "auto") -> LoadedStages:
    """Load the weights of all stages.

    Parameters
    ----------
    folder : Path
    config : Config
        Sizes that the weights must have.
    lm : {"auto", "rl"}
        "rl" reads `llm.rl` in place of `llm`; "auto" does so where there is no `llm`.

    Raises
    ------
    WorkbenchError
        When a stage's weights are missing, unreadable, ambiguous, or of other shapes.
    """
    files = weight_files(folder)
    expected = {stage: shapes(stage, config) for stage in MODELS}
    contents: dict[str, Content] = {}  # of files that may hold several stages, by name
    loaded = LoadedStages({}, {}, [])
    for stage, stem in STEMS.items():
        stem = RL if stage == "lm" and lm == "rl" else stem
        if stem in files:
            content = _read(files[stem])
            found = find_stage(stage, content.weights, expected[stage], files[stem][0].name)
        else:
            stem, found, content = _find_elsewhere(stage, folder, files, expected, contents, lm)
        check_header(content.header, stage, config, files[stem][0].name)
        tie_embedding(found.weights)
        loaded.weights[stage] = select_weights(found.weights, expected[stage], files[stem][0], found.notes)
        loaded.files[stage] = files[stem][0].name
        loaded.notes.extend(found.notes)
    return loaded


def _find_elsewhere(
    stage: str,
    folder: Path,
    files: dict[str, list[Path]],
    expected: dict[str, dict[str, tuple]],
    contents: dict[str, Content],
    lm: str,
) -> tuple[str, FoundStage, Content]:
    """Find the weights of a stage that has no file of its own: in one for several stages, or in `llm.rl`."""
    names = STEMS | {"lm": RL if lm == "rl" else STEMS["lm"]}
    others = {name for other in MODELS if other != stage for name in aliases(other, expected[other])}
    complete = {}
    unreadable = []
    for stem, paths in files.items():
        if stem in (*STEMS.values(), RL) or names[stage] == RL:
            continue
        try:
            if stem not in contents:
                contents[stem] = _read(paths)
            found = find_stage(stage, contents[stem].weights, expected[stage], paths[0].name, others)
        except WorkbenchError as error:
            unreadable.append(str(error))
            continue
        if found.complete:
            complete[stem] = found
    if len(complete) > 1:
        shown = ", ".join(files[stem][0].name for stem in complete)
        raise WorkbenchError(
            f"{folder} has no {names[stage]}, and its weights in several files: {shown}; rename the one that "
            f"you mean to {names[stage]}, or take the others away"
        )
    if complete:
        stem, found = complete.popitem()
        return stem, found, contents[stem]
    if stage == "lm" and lm == "auto" and RL in files:
        content = _read(files[RL])
        found = find_stage(stage, content.weights, expected[stage], files[RL][0].name)
        found.notes.append(f"{files[RL][0].name} is read, as there is no llm")
        return RL, found, content
    reasons = f" ({'; '.join(unreadable)})" if unreadable else ""
    raise WorkbenchError(
        f"{folder} has neither {names[stage]}.safetensors nor {names[stage]}.pt, nor these weights in "
        f"another file{reasons}; expected {LAYOUT}"
    )


def _read(paths: list[Path]) -> Content:
    """Read a file, or one in several parts."""
    check_parts(paths)
    content = Content({}, {})
    for path in paths:
        weights, header = read_gguf(path) if path.suffix == ".gguf" else (read_weights(path), {})
        content.weights.update(weights)
        content.header.update(header)
    return content


class _WithoutValues(TorchFunctionMode):
    """Leave out what computes the first values of new weights: on the device "meta" they have none.

    torch would import its compiler for such arithmetic, which takes a second.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.init.normal_:
            return kwargs["tensor"] if kwargs else args[0]
        if function is torch.norm_except_dim:  # of weight norm: one norm for each output channel
            weight = args[0]
            return weight.new_empty(len(weight), *[1] * (weight.dim() - 1))
        if function is torch.arange:  # a table that is computed from indices, on the CPU until weights come
            return function(*args, **(kwargs or {}) | {"device": "cpu"})
        return function(*args, **(kwargs or {}))


def on_meta(stage: str, config: Config) -> Any:
    """Build the module of a stage without memory for its weights."""
    try:
        with torch.device("meta"), _WithoutValues():
            return MODELS[stage](getattr(config, stage))
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise WorkbenchError(
            f"{YAML}: no model of {stage} has these sizes ({first_line(error)}); is the file as released?"
        ) from error


@lru_cache(maxsize=16)  # to build a module takes longer than to read its weights
def shapes(stage: str, config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a stage; callers do not change the dict."""
    state_dict = on_meta(stage, config).state_dict()
    return {key: tuple(value.shape) for key, value in state_dict.items()}
