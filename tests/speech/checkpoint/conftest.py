"""A tiny voice, and a copy on disk of what a test module's `saved` wrote."""

import shutil
from pathlib import Path

import pytest

from tests.speech.checkpoint.tiny_voice import TINY
from workbench.speech.checkpoint.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint.random(TINY, seed=3)


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))
