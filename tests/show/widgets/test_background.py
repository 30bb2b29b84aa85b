"""Work in a thread ends with the program that started it: a plain script neither crashes nor waits for all of it."""

import subprocess
import sys
import time

import pytest

from tests.paths import ROOT

SCRIPT = """
import torch
from workbench.show.widgets.background import BackgroundTask
shown = []
x = torch.randn(700, 700)
task = BackgroundTask(lambda result: print("shown"), print, lambda *step: shown.append(step))
task.start(lambda bar: [x @ x for _ in bar(iter(range(1_000_000)), "products", "", None)], pause={pause})
while {waits} and not shown:
    pass
print("end of the script")
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("pause", "waits"), [(0.0, True), (0.5, False)], ids=["in a loop", "not begun"])
def test_a_script_that_ends_while_work_runs_ends_cleanly_and_soon(pause, waits):
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(pause=pause, waits=waits)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end of the script\n", "")
    assert time.monotonic() - start < 240  # all products would take hours
