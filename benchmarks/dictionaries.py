"""A training step of a sparse dictionary beside the same step of SAELens, dictionary_learning and sparsify.

Sides begin with the same weights and read the same batches, on a GPU where there is one; `dictionaries_sides` says what
their steps are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.dictionaries_sides import L0, LEARNING, LENS, OURS, SPARSIFY, first, side, sizes, superposed
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.peers import optional
from benchmarks.settings import Settings

__all__ = ["memory", "rows"]

PRODUCT = "the encoder's product alone"
STATE = "weights, gradients and Adam's moments alone"
MODULES = {LENS: "sae_lens", LEARNING: "dictionary_learning", SPARSIFY: "sparsify"}
PEERS = {"TopK": (LENS, LEARNING, SPARSIFY), "JumpReLU": (LENS, LEARNING)}
GOALS = {"TopK": 3.0, "JumpReLU": 2.0}
MEGABYTES = 1 << 20


def rows(settings: Settings) -> list[Row]:
    """How many times faster a step is than each peer's, what was learnt after as many, and the peaks of memory."""
    return [row for architecture in PEERS for row in _speed(settings, architecture)] + memory(settings)


def _named(architecture: str, tiny: bool) -> str:
    d, m, batch = sizes(tiny)
    return f"{architecture}, {d} x {m:,} latents, {batch:,} rows, L0 {L0}"


def _installed(architecture: str) -> list[str]:
    return [name for name in PEERS[architecture] if optional(MODULES[name]) is not None]


def _speed(settings: Settings, architecture: str) -> list[Row]:
    d, m, batch = sizes(settings.tiny)
    data = superposed(d, 4 * m, 8 * batch)
    mine = first(architecture, d, m, data)
    # All take their weights before any of them moves.
    sides = {name: side(name, architecture, mine, data) for name in (OURS, *_installed(architecture))}
    check = data[:batch]
    with torch.no_grad():
        for name, (_, xhat) in sides.items():
            agree(f"{architecture}, {name}, reconstruction", xhat(check).cpu(), sides[OURS][1](check).cpu(), 1e-3)
    steppers: dict[str, Callable[[Tensor], Any]] = {name: step for name, (step, _) in sides.items()}
    steppers[PRODUCT] = partial(torch.matmul, other=mine.W_enc.detach())
    runs = {name: partial(_turn, step, _batches(data, batch)) for name, step in steppers.items()}
    rounds = settings.repeats(4 if settings.tiny else 24)
    times = interleave(runs, rounds, settings.clock, f"{architecture}, {d} x {m}")
    what, goal = f"training step, {_named(architecture, settings.tiny)}", Goal(">=", GOALS[architecture])
    table = []
    for name in PEERS[architecture]:
        found = Ratio.of(times[name], times[OURS]) if name in times else "not installed"
        table.append(Row(f"{what}: times faster", name, found, goal))
    table.append(Row(f"{what}: time / bound", PRODUCT, Ratio.of(times[OURS], times[PRODUCT])))
    for name, (_, xhat) in sides.items():
        with torch.no_grad():
            share = 1 - float((check - xhat(check)).square().sum() / (check - check.mean(0)).square().sum())
        table.append(Row(f"explained variance after these steps, {architecture}", name, f"{share:.3f}"))
    return table


def memory(settings: Settings) -> list[Row]:
    """Peaks of memory during some steps, over that before what they need was made, each in a process of its own."""
    d, m, _ = sizes(settings.tiny)
    table = []
    for architecture, peers in PEERS.items():
        peaks: dict[str, list[float]] = {name: [] for name in (OURS, *_installed(architecture))}
        for _ in range(settings.repeats(3)):
            for name, found in peaks.items():
                found.append(_peak(architecture, name, settings.tiny) / MEGABYTES)
        # Two weights in float32, each with its gradient and two moments; biases are too small to count.
        peaks[STATE] = [2 * d * m * 4 * 4 / MEGABYTES] * len(peaks[OURS])
        what = f"peak memory of training, {_named(architecture, settings.tiny)}: ours / peer's"
        for name in (*peers, STATE):
            if name not in peaks:
                table.append(Row(what, name, "not installed"))
                continue
            ours, theirs = (median(peaks[which]) for which in (OURS, name))
            ratio = Ratio.of(peaks[OURS], peaks[name])
            table.append(Row(f"{what} ({ours:,.0f} / {theirs:,.0f} MB)", name, ratio))
    return table


def _peak(architecture: str, name: str, tiny: bool) -> int:
    arguments = [architecture, name, str(int(tiny)), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dictionaries_memory", *arguments],
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


def _turn(step: Callable[[Tensor], Any], batches: Iterator[Tensor]) -> None:
    step(next(batches))
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _batches(data: Tensor, batch: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(1)
    while True:
        yield from data[torch.randperm(len(data), generator=random)].split(batch)


if __name__ == "__main__":
    alone(rows, __doc__)
