"""Trains one side's dictionary for a few steps in a process of its own, and prints the bytes that it took at most."""

from __future__ import annotations

import copy
import gc
import resource
import sys
from collections.abc import Callable

import torch

from benchmarks.dictionaries_sides import OURS, first, side, sizes, superposed
from benchmarks.store_memory import Peak

STEPS = 3
PAGE = resource.getpagesize()


def trained(name: str, architecture: str, tiny: bool) -> int:
    """Bytes at the peak of making what a side needs and of its steps, over those before."""
    d, m, batch = sizes(tiny)
    data = superposed(d, 4 * m, STEPS * batch)
    begin = first(architecture, d, m, data)

    def run() -> None:
        # All weights are copies: those that are copied stay, so that nobody takes their room.
        mine = copy.deepcopy(begin) if name == OURS else begin
        step, _ = side(name, architecture, mine, data)
        for x in data.split(batch):
            step(x)

    gc.collect()
    return peak(run, data.device)


def peak(run: Callable[[], None], device: torch.device) -> int:
    """Bytes at the peak of a run over those before, of the process or of the GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with Peak() as found:
        run()
    # Less than a page cannot be seen.
    return max(found.most, PAGE)


def main(architecture: str, name: str, tiny: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    # What libraries load when they first run is no memory of a step.
    trained(name, architecture, True)
    print(trained(name, architecture, tiny))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))
