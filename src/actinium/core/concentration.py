"""How unequal sizes are."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["gini"]


def gini(sizes: ArrayLike) -> float:
    """Gini coefficient: 0 where all are equal, (n - 1) / n where one holds everything, NaN where there is nothing.

    Args:
        sizes: (n,) from 0 on.

    Source: Gini, 1912.
    """
    x = np.sort(np.asarray(sizes, dtype=np.float64))
    n, total = len(x), float(x.sum())
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * total)) if total > 0 else float("nan")
