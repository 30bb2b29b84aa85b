"""Kernels for GPUs, tested on the CPU by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]

HERE = Path(__file__).parent


def test_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    files = [*sorted(HERE.glob("kernels_*.py")), HERE / "test_conv.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *files],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "passed" in run.stdout and "skipped" not in run.stdout, run.stdout
