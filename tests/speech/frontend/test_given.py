"""Speech tokens and mels of other programs, as they come: lists, arrays, with or without a batch axis."""

import numpy as np
import pytest
import torch

from workbench import WorkbenchError
from workbench.speech.frontend.given import given_mel, given_tokens


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 2],
        (3, 1, 2),
        np.array([3, 1, 2], np.int16),
        np.array([3.0, 1.0, 2.0]),
        torch.tensor([[3, 1, 2]]),
        torch.tensor([3, 1, 2], dtype=torch.int32),
    ],
)
def test_tokens_of_any_kind_are_the_same(values, pipe):
    found = given_tokens(values, pipe.config)
    assert found.dtype == torch.long and found.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3, -1], "hold -1; expected ids from 0 to"),
        ([3, 6561], "hold 6561; expected ids from 0 to"),
        ([3, 6562], "ids from .* on stop the LM"),
        ([1.5], "no whole numbers"),
        ([float("nan")], "no whole numbers"),
        ([], "at least one"),
        ([[1], [2]], r"shape \(2, 1\)"),
        ([[1], [2, 3]], "expected numbers"),
        (["a"], "expected numbers"),
        (None, "expected numbers"),
        ([2**70], "expected numbers"),
    ],
)
def test_what_is_no_speech_is_refused_in_words(values, message, pipe):
    with pytest.raises(WorkbenchError, match=message):
        given_tokens(values, pipe.config)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, list, torch.tensor])
def test_a_mel_of_any_kind_gets_its_batch_axis(kind, pipe):
    mel = np.arange(160.0).reshape(80, 2)
    given = mel.tolist() if kind is list else torch.tensor(mel) if kind is torch.tensor else mel.astype(kind)
    found = given_mel(given, pipe.config)
    assert found.shape == (1, 80, 2) and found.float().numpy().tolist() == mel[None].tolist()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 80, 5), r"expected \(1, 80, T\)"),
        ((7, 80), "transpose it"),
        ((80,), "expected"),
        ((1, 80, 0), "expected"),
    ],
)
def test_a_mel_of_another_shape_is_refused_in_words(shape, message, pipe):
    with pytest.raises(WorkbenchError, match=message):
        given_mel(np.zeros(shape, np.float32), pipe.config)


def test_stages_take_lists_and_arrays(pipe, utt, recorded):
    options = pipe.checkpoint.options.but(n_timesteps=1)
    token = recorded["lm/speech_token"]
    mel = pipe.mel(utt, token.tolist(), options)
    assert torch.equal(mel, pipe.mel(utt, token, options))
    assert torch.equal(pipe.vocode(mel[0].numpy()).wav, pipe.vocode(mel).wav)
