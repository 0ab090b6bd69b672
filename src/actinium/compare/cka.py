"""Linear CKA, as it is defined and without the bias that few rows bring."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from actinium.compare.paired_rows import paired
from actinium.core.alignment import linear_cka

__all__ = ["debiased_cka", "linear_cka"]


def debiased_cka(x: Any, y: Any) -> float:
    """Linear CKA from unbiased estimates of the Hilbert-Schmidt independence criterion.

    Plain CKA of unrelated representations is near 1 when there are fewer rows than dimensions; this is near 0 then. No
    (n, n) matrix is made.

    Args:
        x, y: (n, d1) and (n, d2) with n >= 4.

    Returns:
        at most about 1, and negative by chance; NaN where an estimate of a representation with itself is not positive.

    Raises:
        InputError: shapes do not fit, or a representation does not vary.

    Source: Song et al., 2012, eq. 5; Kornblith et al., 2019; Murphy, Zylberberg, Fyshe, 2024 (the bias).
    """
    one, other = (rows - rows.mean(0) for rows in paired(x, y, least=4))
    scale = unbiased_hsic(one, one) * unbiased_hsic(other, other)
    return unbiased_hsic(one, other) / scale**0.5 if scale > 0 else float("nan")


def unbiased_hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of linear kernels x x^T and y y^T, from (n, d1) and (n, d2) in time n d1 d2."""
    n = len(x)
    lengths = x.square().sum(1), y.square().sum(1)
    # Row sums of the kernels without their diagonals.
    sums = x @ x.sum(0) - lengths[0], y @ y.sum(0) - lengths[1]
    trace = (x.T @ y).square().sum() - lengths[0] @ lengths[1]
    means = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
    return float((trace + means - 2 / (n - 2) * (sums[0] @ sums[1])) / (n * (n - 3)))
