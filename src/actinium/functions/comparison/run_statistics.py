"""Runs of two settings, paired by seed or not: intervals, t-tests, effects, and a correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from actinium.core.errors import InputError

__all__ = ["holm", "paired_comparison", "t_interval", "welch_comparison"]


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean; NaN for fewer than two values.

    Raises:
        InputError: the level is not inside of 0..1.
    """
    from scipy import stats

    if not 0 < level < 1:
        raise InputError(f"a level lies between 0 and 1, got {level}")
    v = np.asarray(values, dtype=float)
    if len(v) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v))
    return float(v.mean() - half), float(v.mean() + half)


def paired_comparison(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Mean difference, p of the paired t-test and Cohen's d of the differences; NaN for fewer than two pairs.

    Raises:
        InputError: there are not as many of both.
    """
    from scipy import stats

    if len(values) != len(reference):
        raise InputError(f"{len(values)} values and {len(reference)} of the reference are no pairs")
    d = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    if len(d) < 2:
        return {"difference": float(d.mean()) if len(d) else math.nan, "p": math.nan, "effect": math.nan}
    sd = float(d.std(ddof=1))
    if sd == 0:
        return {
            "difference": float(d.mean()),
            "p": 1.0 if d.mean() == 0 else 0.0,
            "effect": 0.0 if d.mean() == 0 else math.copysign(math.inf, d.mean()),
        }
    p = float(2 * stats.t.sf(abs(d.mean()) / (sd / math.sqrt(len(d))), len(d) - 1))
    return {"difference": float(d.mean()), "p": p, "effect": float(d.mean() / sd)}


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


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's correction of p values (n,); those that are NaN do not count.

    Source: Holm, 1979.
    """
    found = np.full(len(p), math.nan)
    order = [i for i in np.argsort(p, kind="stable") if not math.isnan(p[i])]
    worst = 0.0
    for step, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - step) * float(p[i])))
        found[i] = worst
    return found
