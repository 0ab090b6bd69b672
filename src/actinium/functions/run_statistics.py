"""Runs of two settings that are not paired: means, deviations, Welch's test, Cohen's d."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from actinium.core.errors import InputError

__all__ = ["welch_comparison"]


def welch_comparison(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Whether the means of two groups of runs differ, where runs are not paired and variances may differ.

    For runs that share weights and batches by seed `paired_comparison` sees smaller differences.

    Args:
        values: of one setting, two runs or more.
        reference: of the other, two runs or more.

    Returns:
        "mean", "sd", "reference_mean", "reference_sd" (n - 1 degrees of freedom), "difference" of the means, "t", "df"
        (Welch-Satterthwaite), "p" (two-sided) and "effect" (Cohen's d: the difference over the pooled deviation). Where
        neither group varies p is 1 for equal means and 0 for others, and t and the effect are 0 or infinite.

    Raises:
        InputError: a group has fewer than two runs, or a value that is not finite.

    Source: Welch, 1947; Cohen, 1988. Misra, 2020, compares 23 runs of each function in this way.
    """
    from scipy import stats

    groups = [np.asarray(g, dtype=float) for g in (values, reference)]
    for g in groups:
        if g.ndim != 1 or len(g) < 2 or not np.isfinite(g).all():
            raise InputError(f"each group is two finite numbers or more, not {g.tolist()}")
    (m1, m2), (v1, v2), (n1, n2) = ([float(f(g)) for g in groups] for f in (np.mean, _variance, len))
    difference, spread = m1 - m2, v1 / n1 + v2 / n2
    pooled = math.sqrt(((n1 - 1) * v1 + (n2 - 1) * v2) / (n1 + n2 - 2))
    if spread == 0:
        far = math.copysign(math.inf, difference) if difference else 0.0
        test = {"t": far, "df": n1 + n2 - 2, "p": 0.0 if difference else 1.0, "effect": far}
    else:
        t = difference / math.sqrt(spread)
        df = spread**2 / ((v1 / n1) ** 2 / (n1 - 1) + (v2 / n2) ** 2 / (n2 - 1))
        test = {"t": t, "df": df, "p": float(2 * stats.t.sf(abs(t), df)), "effect": difference / pooled}
    means = {"mean": m1, "sd": math.sqrt(v1), "reference_mean": m2, "reference_sd": math.sqrt(v2)}
    return means | {"difference": difference} | test


def _variance(group: np.ndarray) -> float:
    return float(group.var(ddof=1))
