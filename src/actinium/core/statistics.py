"""Statistics for comparisons: intervals by the bootstrap, permutation tests, false discovery rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["benjamini_hochberg", "bootstrap_interval", "permutation_test", "sign_test", "signed_rank"]

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]
ALTERNATIVES: tuple[Alternative, ...] = get_args(Alternative)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """p values adjusted for the false discovery rate over all of them.

    Args:
        p_values: of any shape; NaN, where there was nothing to test, stays NaN and does not count.

    Returns:
        adjusted p values in the same shape; those below q are discoveries at a false discovery rate of q.

    Raises:
        InputError: a value is below 0 or above 1.

    Source: Benjamini and Hochberg, 1995, section 3.1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(given)
    if ((given[tested] < 0) | (given[tested] > 1)).any():
        raise InputError("p values are from 0 to 1")
    adjusted = np.full(given.shape, np.nan)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(given[tested], method="bh")
    return adjusted


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Floats], Any] | None = None,
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Percentile interval of a statistic over resampled items.

    What belongs to one item (the two numbers of a pair, all layers of a text) stands in one row and is drawn
    together.

    Args:
        values: (item, ...) numbers.
        statistic: from (item, ...) drawn with replacement to a number or an array; the mean over items by default.
        n: number of resamples.
        level: share of the resampled statistics inside the interval.
        seed: of the draw.

    Returns:
        lower and upper end, in the shape of the statistic.

    Raises:
        InputError: fewer than two items, no resamples, or a level outside 0 and 1.

    Source: Efron and Tibshirani, 1993, An introduction to the bootstrap, chapter 13.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim == 0 or len(data) < 2:
        raise InputError(f"the bootstrap needs two items or more, got shape {data.shape}")
    if n < 1 or not 0 < level < 1:
        raise InputError(f"expected n >= 1 resamples and a level between 0 and 1, got n={n}, level={level}")
    source = np.random.default_rng(seed)
    if statistic is None:
        counts = source.multinomial(len(data), np.full(len(data), 1 / len(data)), size=n)
        drawn = np.tensordot(counts / len(data), data, 1)
    else:
        drawn = np.stack([np.asarray(statistic(data[source.integers(len(data), size=len(data))])) for _ in range(n)])
    # Order statistics and not values between them, for a statistic may be infinite.
    ordered, rank = np.sort(drawn, axis=0), (1 - level) / 2 * (n - 1)
    return np.asarray(ordered[math.floor(rank)]), np.asarray(ordered[math.ceil(n - 1 - rank)])


def permutation_test(
    x: ArrayLike,
    y: ArrayLike,
    *,
    paired: bool = False,
    alternative: Alternative = "two-sided",
    n: int = 9999,
    seed: int = 0,
) -> float:
    """p value of the difference of two means, from exchanging labels.

    Every rearrangement is used where there are at most `n`; else `n` random ones, with (count + 1) / (n + 1).

    Args:
        x, y: (item,) numbers; of the same items in the same order if `paired`.
        paired: exchange only within pairs.
        alternative: "two-sided", "greater" (mean of x above that of y) or "less".
        n: number of rearrangements.
        seed: of the draw.

    Returns:
        the p value.

    Raises:
        InputError: samples that are no rows of two or more numbers, or of unequal length if paired.
        UnknownNameError: there is no such alternative.

    Source: Phipson and Smyth, 2010, Permutation p-values should never be zero.
    """
    if alternative not in ALTERNATIVES:
        raise UnknownNameError(unknown("alternative", alternative, ALTERNATIVES))
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or min(len(a), len(b)) < 2 or (paired and len(a) != len(b)):
        raise InputError(
            f"expected two rows of two numbers or more{' and of equal length' if paired else ''}, "
            f"got shapes {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the samples hold NaN or infinite values")

    def difference(one: Floats, other: Floats, axis: int) -> Any:
        return one.mean(axis) - other.mean(axis)

    found: Any = stats.permutation_test(
        (a, b),
        difference,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=n,
        batch=max(1, 2**22 // (len(a) + len(b))),
        alternative=alternative,
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def signed_rank(differences: ArrayLike, alternative: Alternative = "two-sided") -> Floats:
    """p values of Wilcoxon's signed-rank test that differences are symmetric around 0.

    Args:
        differences: (item, ...) numbers; each column is a test.
        alternative: "two-sided", "greater" or "less".

    Returns:
        p values (...); 1 where all differences are 0.

    Raises:
        InputError: no items, or values that are not finite.
        UnknownNameError: there is no such alternative.

    Source: Wilcoxon, 1945; zeros are ranked and their ranks left out (Pratt, 1959).
    """

    def test(column: Floats) -> float:
        return float(stats.wilcoxon(column.tolist(), zero_method="pratt", alternative=alternative).pvalue)

    return _by_column(differences, alternative, test)


def sign_test(differences: ArrayLike, alternative: Alternative = "two-sided") -> Floats:
    """p values of the exact sign test that differences above and below 0 are equally likely.

    Args:
        differences: (item, ...) numbers; each column is a test, in which zeros do not count.
        alternative: "two-sided", "greater" or "less".

    Returns:
        p values (...); 1 where all differences are 0.

    Raises:
        InputError: no items, or values that are not finite.
        UnknownNameError: there is no such alternative.

    Source: Dixon and Mood, 1946.
    """

    def test(column: Floats) -> float:
        above, below = int((column > 0).sum()), int((column < 0).sum())
        return float(stats.binomtest(above, above + below, 0.5, alternative=alternative).pvalue)

    return _by_column(differences, alternative, test)


def _by_column(differences: ArrayLike, alternative: Alternative, test: Callable[[Floats], float]) -> Floats:
    if alternative not in ALTERNATIVES:
        raise UnknownNameError(unknown("alternative", alternative, ALTERNATIVES))
    data = np.asarray(differences, dtype=np.float64)
    if data.ndim == 0 or not len(data) or not np.isfinite(data).all():
        raise InputError(f"expected finite differences (item, ...), got shape {data.shape}")
    columns = data.reshape(len(data), -1)
    values = [test(column) if column.any() else 1.0 for column in columns.T]
    return np.array(values).reshape(data.shape[1:])
