"""Helpers of the tests in a browser: traces, players, what the page says, and what a user does."""

import math
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.trace.trace import Trace

SLOW = 60_000  # milliseconds; the machine may be busy
LEFT, RIGHT = 46, 10  # pixels beside the time axis
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


# ---- in the browser

# Keeps the last 1.4 seconds of what reaches the loudspeaker, and counts the sources that start.
RECORD_OUTPUT = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...more) {
  if (to instanceof AudioDestinationNode) {
    window.recorder ??= new AnalyserNode(this.context, { fftSize: 32768 });
    if (window.recorder.context === this.context) connect.call(this, window.recorder);
  }
  return connect.call(this, to, ...more);
};
window.starts = 0;
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...when) { window.starts++; return start.apply(this, when); };
"""
OUTPUT_SAMPLES = (
    "() => { const x = new Float32Array(32768); window.recorder.getFloatTimeDomainData(x); return [...x]; }"
)


def position(page):
    return float(page.locator(".time b").first.inner_text())


def at(page, seconds, length=4.0):
    """Where a time lies on the screen."""
    box = page.locator("canvas.overlay").first.bounding_box()
    span = box["width"] - LEFT - RIGHT
    return box["x"] + LEFT + seconds / length * span, box["y"] + 60


def click(page, seconds):
    page.mouse.click(*at(page, seconds))


def drag(page, start, end):
    page.mouse.move(*at(page, start))
    page.mouse.down()
    page.mouse.move(*at(page, end), steps=4)
    page.mouse.up()


def loop(page):
    """Ends of the loop that is on, as the button says."""
    button = page.locator("[data-action=loop]")
    if button.get_attribute("aria-pressed") != "true":
        return None
    return [float(word) for word in button.inner_text().removeprefix("loop ").removesuffix(" s").split("–")]


def play(page):
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").first.wait_for()


def is_playing(page):
    return page.locator("[data-action=play]").first.get_attribute("aria-label") == "Pause"


@contextmanager
def page_that_stays(browser, prefix, width, height):
    """An empty page with which a request beside `prefix`, or a complaint of the page, fails the test."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(SLOW)
    wrong = []

    def gate(route):
        if route.request.url.startswith((prefix, "data:", "blob:")):
            return route.continue_()
        wrong.append(f"request of {route.request.url}")
        route.abort()

    context.route("**/*", gate)
    page = context.new_page()
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert not wrong
