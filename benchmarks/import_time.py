"""What `import actinium` takes in a fresh interpreter, beside `import torch`."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np

from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row
from benchmarks.settings import Settings

__all__ = ["rows"]

PROBE = """
from time import {clock} as now
start = now()
import {module}
print(now() - start)
"""


def rows(settings: Settings) -> list[Row]:
    """Seconds of the import statement, in interpreters that take turns."""
    clock = {"wall": "perf_counter", "cpu": "process_time"}[settings.clock]
    ours, torch = (partial(_seconds, module, clock) for module in ("actinium", "torch"))
    # The first interpreters write bytecode and fill the page cache.
    ours(), torch()
    times = [(ours(), torch()) for _ in range(settings.repeats(15))]
    actinium, other = (list(column) for column in zip(*times, strict=True))
    median = float(np.median(actinium))
    ratio = Ratio.of(actinium, other)
    return [Row(f"import actinium, {median:.2g} s: time / peer's", "import torch", ratio, Goal("<", 0.3, " s"), median)]


def _seconds(module: str, clock: str) -> float:
    probe = PROBE.format(module=module, clock=clock)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    alone(rows, __doc__)
