"""Hostile input ends in a result or in a `WorkbenchError`: no bare traceback, no hang, no flood of memory.

`make test` tries 2,000 cases, `make fuzz` 20,000 (`--fuzz-cases`). Each case has its own seed, which the
failure names: `run_case(target, number, tools)` makes it again.
"""

import resource
import shutil
import signal
import traceback
from random import Random

import pytest

import workbench as wb
from tests.fuzz.mutations import Tools
from tests.fuzz.targets import TARGETS

MAX_SECONDS = 20  # of CPU time, for one case; a search for suspects takes 10 on a busy machine
MAX_GROWTH = 500  # MB that one case may add to the peak of the process
SHOWN = 5  # failures that a message shows in full

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def run_case(target, number, tools):
    """Run one case; return what was wrong with it, or an empty text."""
    shutil.rmtree(tools.folder, ignore_errors=True)
    tools.folder.mkdir()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        TARGETS[target].run(Random(f"{target} {number}"), tools)
    except wb.WorkbenchError as error:
        str(error).encode("utf-8")  # a message that no terminal can show is an error as well
    except BaseException as error:  # a panic of a library is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{target} {number}: " + "".join(traceback.format_exception(error, limit=-6))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    return f"{target} {number}: {growth:.0f} MB more" if growth > MAX_GROWTH else ""


def _too_slow(*_):
    raise TimeoutError(f"more than {MAX_SECONDS} s of CPU time")


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_input_ends_in_a_result_or_in_one_sentence(target, pipe, recorded, tmp_path, request):
    count = max(1, round(request.config.getoption("--fuzz-cases") * TARGETS[target].share))
    tools = Tools(tmp_path / "case", pipe, recorded)
    before = signal.signal(signal.SIGPROF, _too_slow)
    try:
        failures = [found for number in range(count) if (found := run_case(target, number, tools))]
    finally:
        signal.signal(signal.SIGPROF, before)
    assert not failures, f"{len(failures)} of {count}\n" + "\n".join(failures[:SHOWN])
