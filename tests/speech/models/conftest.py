"""Inputs of upstream's parity files that several tests of a model share."""

import pytest
import torch


@pytest.fixture(scope="module")
def row(lm_golden):
    """The tiny vocabulary keeps <|endofprompt|> (151646) in its last row."""
    eop, to = lm_golden.info["config"]["eop_raw"], lm_golden.info["config"]["eop_row"]
    return lambda ids: torch.where(ids == eop, to, ids)


@pytest.fixture(scope="module")
def text(lm_golden, row):
    return row(lm_golden.data["in.text"][0])


@pytest.fixture(scope="module")
def prompt_text(lm_golden, row):
    return row(lm_golden.data["in.prompt_text"][0])


@pytest.fixture(scope="module")
def prompt_speech(lm_golden):
    return lm_golden.data["in.prompt_speech_token"][0]


@pytest.fixture(scope="module")
def mel(hift_golden):
    return hift_golden.data["in.mel"]


@pytest.fixture(scope="module")
def noise(hift_golden):
    return hift_golden.data["buf.sine_noise_f16"].float()
