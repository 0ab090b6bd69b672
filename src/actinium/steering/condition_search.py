"""The sites, threshold and side at which a condition tells two kinds of prompts apart best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.probes.site_vectors import site_activations
from actinium.steering.conditions import VectorCondition, condition_scores
from actinium.steering.vector import SteeringVector

__all__ = ["ConditionPoint", "find_condition_point"]

Floats = NDArray[np.float64]
MOST = 1_000_000
"""Sets of sites that one search may look at."""


@dataclass(frozen=True)
class ConditionPoint:
    """What `find_condition_point` found.

    Attributes:
        condition: ready for use.
        f1: of its prediction of the positive prompts that it was searched on.
        alone: {site: the best F1 of that site by itself}.
    """

    condition: VectorCondition
    f1: float
    alone: Mapping[str, float]


def find_condition_point(
    model: Model | None,
    positive: Any,
    negative: Any,
    vector: SteeringVector,
    *,
    most: int = 1,
    thresholds: Sequence[float] | Floats | None = None,
    score: str = "cast",
    read: str = "mean",
    batch_size: int = 64,
    progress: bool = False,
) -> ConditionPoint:
    """Search sets of sites, thresholds and sides for the largest F1.

    The condition is predicted to hold as at run time: where the score at one of the sites lies on the side of the
    threshold. Of equal F1 the first wins, in the order of set size, set, threshold, "below" before "above".

    Args:
        model: that reads the prompts; None where activations are given.
        positive: prompts for which the condition is to hold; or activations, as a Recording or {site: (n, d)}.
        negative: prompts for which it is not.
        vector: the condition's direction at each site that is looked at, for example of `extract` with
            `position="mean"` and `method="pca_pairwise"`.
        most: sites in a set at most.
        thresholds: as they are to be tried, in this order, from -1 to 1; by default the middle between each score and
            the next larger one, for each set of sites, so that no choice of a grid can miss the best.
        score, read: as of `VectorCondition`.
        batch_size: prompts in a pass.
        progress: show a progress bar.

    Raises:
        InputError: one kind of prompts is missing, a threshold is no cosine, there are more than a million sets, or
            every score is the same.
        UnknownNameError: there is no such score or reading.
        SiteError: a site does not exist.

    Source: Lee et al., 2024, CAST, section 3 (grid search). Their code rounds the threshold to three decimals, and
    counts scores equal to it for one of the sides; here nothing is rounded, and both sides are strict.
    """
    sites = [site for site, v in vector.directions.items() if bool((v != 0).any())]
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InputError(f"most: expected a whole number of 1 or more, not {most!r}")
    VectorCondition(vector, 0.0, score=score, read=read)
    total = sum(comb(len(sites), size) for size in range(1, min(most, len(sites)) + 1))
    if total > MOST:
        raise InputError(f"{total} sets of up to {most} of {len(sites)} sites are more than {MOST}; take fewer sites")
    grid = None if thresholds is None else _grid(thresholds)
    if model is not None:
        vector.check(model)
    options = {"batch_size": batch_size, "progress": progress}
    place = "mean" if read == "mean" else -1
    for given, what in ((positive, "positive"), (negative, "negative")):
        if isinstance(given, str) or (isinstance(given, Sequence) and not len(given)):
            raise InputError(f"{what} prompts: give a list of one or more")
    kinds = []
    for given in (positive, negative):
        rows = site_activations(model, given, sites, place, **options)
        kinds.append({site: condition_scores(rows[site], vector[site], score).numpy() for site in sites})
    up, down = kinds
    best, alone = (-1.0, (), 0.0, ""), {}
    sets = (chosen for size in range(1, min(most, len(sites)) + 1) for chosen in combinations(sites, size))
    for chosen in shown(list(sets), "condition points", progress):
        f1, threshold, side = _best_of(chosen, up, down, grid)
        if len(chosen) == 1:
            alone[chosen[0]] = f1
        if f1 > best[0]:
            best = (f1, chosen, threshold, side)
    f1, chosen, threshold, side = best
    if f1 < 0:
        raise InputError("every prompt has the same score at every site: no threshold tells them apart")
    condition = VectorCondition(vector.only(list(chosen)), threshold, side, score=score, read=read)
    return ConditionPoint(condition, f1, alone)


def _grid(thresholds: Any) -> Floats:
    grid = np.asarray(thresholds, dtype=np.float64)
    if grid.ndim != 1 or not len(grid) or not (np.abs(grid) <= 1).all():
        raise InputError("thresholds: expected one or more numbers from -1 to 1")
    return grid


def _best_of(
    chosen: Sequence[str], up: Mapping[str, Floats], down: Mapping[str, Floats], grid: Floats | None
) -> tuple[float, float, str]:
    """The best F1 of one set of sites, with its threshold and side; F1 is -1 where there is no threshold to try."""
    # A score lies below at one site or more exactly where the least one does, and above where the largest does.
    least, largest = (
        [kind(np.stack([side[s] for s in chosen]), 0) for side in (up, down)] for kind in (np.min, np.max)
    )
    if grid is None:
        values = np.unique(np.concatenate([*least, *largest]))
        grid = (values[:-1] + values[1:]) / 2
        if not len(grid):
            return -1.0, 0.0, "above"
    below = [np.searchsorted(np.sort(kind), grid, side="left") for kind in least]
    above = [len(kind) - np.searchsorted(np.sort(kind), grid, side="right") for kind in largest]
    hits, alarms = np.stack([below[0], above[0]], 1), np.stack([below[1], above[1]], 1)
    f1 = 2 * hits / (hits + alarms + len(least[0]))
    at, side = np.unravel_index(int(f1.argmax()), f1.shape)
    return float(f1[at, side]), float(grid[at]), ("below", "above")[side]
