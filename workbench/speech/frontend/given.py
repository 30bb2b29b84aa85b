"""Speech tokens and mels that a caller gives: of any program, as a tensor, an array or a list."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.speech.config import Config


def given_tokens(values: Any, config: Config) -> Tensor:
    """Return speech tokens as a tensor (L,) of whole numbers.

    Parameters
    ----------
    values : Tensor, array or sequence of int
        (L,) or (1, L); whole numbers may be stored as floats.
    config : Config
        How many speech tokens there are.

    Raises
    ------
    WorkbenchError
        When the values are no ids, are not one sequence, or are not speech: ids that stop, and negative ones.
    """
    ids = _tensor(values, "speech tokens")
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or not len(ids):
        raise WorkbenchError(f"the speech tokens have shape {tuple(ids.shape)}; expected (L,), at least one")
    whole = ids.long()
    if not torch.equal(whole.to(ids.dtype), ids):
        raise WorkbenchError("the speech tokens are no whole numbers; expected ids as in lm/speech_token")
    size = config.flow.vocab_size
    wrong = whole[(whole < 0) | (whole >= size)]
    if len(wrong):
        raise WorkbenchError(
            f"the speech tokens hold {int(wrong[0])}; expected ids from 0 to {size - 1}. The ids from {size} "
            "on stop the LM and negative ones fill up a batch: remove both"
        )
    return whole


def given_mel(values: Any, config: Config) -> Tensor:
    """Return a mel as a tensor (1, M, T).

    Parameters
    ----------
    values : Tensor, array or nested list
        (M, T) or (1, M, T), natural-log mel.
    config : Config
        How many mel bins there are.

    Raises
    ------
    WorkbenchError
        When the values have another shape.
    """
    mel = _tensor(values, "mel")
    if mel.ndim == 2:
        mel = mel[None]
    bins = config.mel.n_mels
    if mel.ndim != 3 or mel.shape[:2] != (1, bins) or not mel.shape[2]:
        hint = "; transpose it" if mel.ndim > 1 and mel.shape[-1] == bins else ""
        raise WorkbenchError(
            f"the mel has shape {tuple(mel.shape)}; expected (1, {bins}, T) or ({bins}, T){hint}"
        )
    return mel if mel.is_floating_point() else mel.float()


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"the {name} are {type(values).__name__}; expected numbers: {error}") from error
