"""Run a command to its end, and write what it took to a file: `python process_cost.py FILE COMMAND ...`.

A script of its own, and a small one: a process inherits the peak of the memory of the one that started it.
"""

import json
import resource
import subprocess
import sys
import time

BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024  # of the kernel's `ru_maxrss`


def run(out: str, command: list[str]) -> int:
    """Write the wall clock's and the CPU's seconds and the peak of the memory; return the exit code."""
    start = time.perf_counter()
    code = subprocess.call(command)
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * BYTES_PER_UNIT,
    }
    with open(out, "w", encoding="utf-8") as file:
        json.dump(cost, file)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
