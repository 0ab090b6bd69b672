"""Ratios of times that hold on a busy machine: runs take turns in one process and are compared round by round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from rich.progress import track

__all__ = ["Disagreement", "Goal", "Ratio", "Row", "agree", "interleave"]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Disagreement(Exception):
    """Two runs that are to be compared did not compute the same."""


@dataclass(frozen=True)
class Ratio:
    """Ratios of paired runs.

    Attributes:
        median: of the ratios.
        low, high: their 10th and 90th percentile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: list[float], below: list[float]) -> Ratio:
        """Ratios of times measured in the same rounds."""
        ratios = np.asarray(above) / np.asarray(below)
        low, median, high = np.percentile(ratios, (10, 50, 90))
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


@dataclass(frozen=True)
class Goal:
    """A bound: "<=" or "<" from above, ">=" from below."""

    sign: str
    bound: float
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value keeps to the bound."""
        if self.sign == ">=":
            return value >= self.bound
        return value <= self.bound if self.sign == "<=" else value < self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured, and which way the ratio goes.
        peer: what it is compared with.
        ratio: measured, or why there is none.
        goal: of the median ratio, or of `value`.
        value: the number that the goal is about where that is not the ratio.
    """

    what: str
    peer: str
    ratio: Ratio | str
    goal: Goal | None = None
    value: float | None = None

    @property
    def met(self) -> str:
        """ "yes", "no", or nothing where there is no goal or no measurement."""
        if self.goal is None or isinstance(self.ratio, str):
            return ""
        return "yes" if self.goal.met(self.ratio.median if self.value is None else self.value) else "no"


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: str = "wall", title: str = ""
) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Each round starts one run later than the round before, and every second round goes backwards, so that none always
    follows the same neighbour. A round before the first is not counted. Garbage is collected between rounds only.

    Args:
        runs: what to time, by name.
        rounds: how many times each runs.
        clock: "wall", or "cpu": processor time of this process, to work on a machine that others use.
        title: shown beside the progress bar.
    """
    now = CLOCKS[clock]
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run()
    for i in track(range(rounds), description=title, transient=True):
        order = names[i % len(names) :] + names[: i % len(names)]
        gc.collect()
        gc.disable()
        try:
            for name in order if i % 2 == 0 else order[::-1]:
                start = now()
                runs[name]()
                times[name].append(now() - start)
        finally:
            gc.enable()
    return times


def agree(what: str, found: object, expected: object, tolerance: float) -> None:
    """Refuse to compare the speed of two computations that differ.

    Args:
        what: named in the message.
        found, expected: tensors or arrays.
        tolerance: of the largest difference, relative to the largest magnitude expected.
    Raises:
        Disagreement: if shapes differ or the difference is beyond the tolerance.
    """
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape:
        raise Disagreement(f"{what}: shapes {a.shape} and {b.shape} differ")
    error = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
    if not error <= tolerance:
        raise Disagreement(f"{what}: numbers differ by {error:.2g} of the largest, tolerance {tolerance:g}")
