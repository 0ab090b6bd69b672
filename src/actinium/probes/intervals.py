"""Intervals for what was measured on held-out rows, of which those of one group are not independent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_interval", "mean_interval"]

Floats = NDArray[np.float64]


def effective_number(right: Floats, groups: NDArray[np.int64]) -> float:
    """How many independent trials a share of grouped rows is worth: between the numbers of groups and of rows.

    Source: Kish, 1965 (design effect), with the variance of a ratio estimator over groups.
    """
    n, count = len(right), int(groups.max()) + 1
    share = float(right.mean())
    if count == n or share in (0.0, 1.0) or count < 2:
        return float(count)
    excess = np.bincount(groups, weights=right - share)
    variance = count / (count - 1) * float((excess**2).sum()) / n**2
    return float(np.clip(share * (1 - share) / variance, count, n)) if variance > 0 else float(n)


def mean_interval(
    values: Floats, groups: NDArray[np.int64], draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean of values (n,), drawing whole groups (n,) numbered from 0."""
    count = int(groups.max()) + 1
    totals, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means = (weights @ totals) / (weights @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def area_interval(
    scores: list[Floats],
    positive: list[NDArray[np.bool_]],
    groups: list[NDArray[np.int64]],
    draws: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap of the mean over folds of the area under the ROC curve, drawing whole groups.

    Args:
        scores: for each fold (n,).
        positive: for each fold (n,).
        groups: for each fold (n,), numbered from 0 over all folds.
        draws: resamples; one that leaves a fold without a class does not count in that fold.
        level: coverage.
        seed: of the draws.
    """
    count = max(int(g.max()) for g in groups) + 1
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    areas = np.stack([_areas(s, p, weights[:, g]) for s, p, g in zip(scores, positive, groups, strict=True)])
    known = np.isfinite(areas)
    usable = known.any(0)
    if not usable.any():
        return float("nan"), float("nan")
    means = np.where(known, areas, 0.0).sum(0)[usable] / known.sum(0)[usable]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _areas(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Areas (draw,) of rows (n,) with weights (draw, n); NaN where a class has no weight."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    up = np.add.reduceat(np.where(positive, weights, 0.0)[:, order], starts, axis=1)
    down = np.add.reduceat(np.where(positive, 0.0, weights)[:, order], starts, axis=1)
    below = np.cumsum(down, 1) - down
    total = up.sum(1) * down.sum(1)
    return np.divide((up * (below + down / 2)).sum(1), total, out=np.full(len(weights), np.nan), where=total > 0)
