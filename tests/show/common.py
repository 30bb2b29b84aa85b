"""Helpers of the tests in a browser: traces, players, and waiting until a player is drawn."""

import math

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.trace.trace import Trace

LIGHT_AND_DARK = pytest.mark.parametrize("page", ["light", "dark"], indirect=True)


def tone(seconds=4.0, level=0.5, hz=200.0):
    n, frames = int(seconds * 24_000), int(seconds * 50)
    wav = level * torch.sin(2 * math.pi * hz * torch.arange(n) / 24_000)
    mel = torch.linspace(-11, 1, 80 * frames).reshape(80, frames)
    return Trace({"flow/mel": mel, "hift/f0": torch.full((frames,), hz), "hift/wav": wav}, {"text": "tone"})


def found(*starts):
    return pd.DataFrame(
        [("click", at, at + 0.01, 7.0) for at in starts], columns=["kind", "start", "end", "score"]
    )


def two(**more):
    return wb.player(tone(), tone(level=0.25), names=["ten steps", "one step"], **more)


def ready(page, count=1):
    page.locator("canvas.base[aria-label]").nth(count - 1).wait_for()
