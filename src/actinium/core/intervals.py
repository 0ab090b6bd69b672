"""How sure a measured share is, and the area under the ROC curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from actinium.core.errors import InputError

__all__ = ["area_under_roc", "wilson"]


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share.

    Args:
        share: from 0 to 1.
        n: trials, above 0; may be an effective number.
        level: coverage, above 0 and below 1.

    Raises:
        InputError: a value is out of range.

    Source: Wilson, 1927.
    """
    from scipy.stats import norm

    if not (0 <= share <= 1 and n > 0 and 0 < level < 1):
        raise InputError(f"expected a share from 0 to 1, n above 0 and a level in (0, 1), got {share}, {n}, {level}")
    z = float(norm.ppf((1 + level) / 2))
    centre = share + z * z / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return float(max(low, 0.0)), float(min(high, 1.0))


def area_under_roc(scores: Any, positive: Any) -> float:
    """Share of pairs of a positive and another row in which the positive one scores higher, ties one half.

    Args:
        scores: (n,), of any scale.
        positive: (n,) bool, or 1 for positive rows and another number for the others.

    Raises:
        InputError: a class is missing.
    """
    from scipy.stats import rankdata

    values, up = np.asarray(scores, np.float64), np.asarray(positive) == 1
    n, m = int(up.sum()), int((~up).sum())
    if not n or not m:
        raise InputError("the area under the ROC curve needs both classes")
    return float((rankdata(values)[up].sum() - n * (n + 1) / 2) / (n * m))
