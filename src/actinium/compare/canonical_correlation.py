"""Canonical correlations of two representations, and their summaries SVCCA and PWCCA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.compare.paired_rows import paired
from actinium.core.errors import InputError

__all__ = ["canonical_correlations", "leading_basis", "pwcca", "svcca"]

# Singular values below this share of the largest are rounding.
RANK = 1e-10


def leading_basis(rows: Tensor, variance: float | None = 0.99) -> Tensor:
    """Left singular vectors (n, k) of the centred rows (n, d), enough for a share of the variance.

    Args:
        rows: float64.
        variance: the share that the smallest sufficient number of components has at least; None for all that are not
            rounding.

    Raises:
        InputError: the share is out of range, or as many components as n - 1 are needed, which span every centred
            representation of n rows: correlations with them are 1 whatever the other representation is.
    """
    if variance is not None and not 0 < variance <= 1:
        raise InputError(f"variance is a share above 0 and at most 1, got {variance}")
    left, sizes, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    kept = int((sizes > RANK * sizes[0]).sum())
    if variance is not None:
        share = sizes.square().cumsum(0) / sizes.square().sum()
        # Sums of squares may miss a share of 1 by rounding.
        kept = min(kept, int((share < variance - 1e-12).sum()) + 1)
    if kept >= len(rows) - 1:
        raise InputError(
            f"{kept} components of {len(rows)} rows are kept: they span everything, and every correlation with them is "
            "1; give more rows or keep less variance"
        )
    return left[:, :kept]


def canonical_correlations(x: Any, y: Any, variance: float | None = None) -> NDArray[np.float64]:
    """Correlations of the pairs of combinations of columns that correlate most, each uncorrelated with those before.

    Args:
        x, y: (n, d1) and (n, d2).
        variance: keep only the principal components with this share of the variance first (SVCCA); None for all.

    Returns:
        (k,), largest first, k the smaller rank.

    Raises:
        InputError: shapes do not fit, a representation does not vary, or it spans all n rows.

    Source: Hotelling, 1936; Björck and Golub, 1973 (by singular values).
    """
    one, other = paired(x, y)
    bases = leading_basis(one, variance), leading_basis(other, variance)
    return torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(0, 1).cpu().numpy()


def svcca(x: Any, y: Any, variance: float = 0.99) -> float:
    """Mean canonical correlation of the leading principal components.

    Of unrelated data it is not 0: it grows with the number of components over the number of rows. Compare it with that
    of shuffled rows (`feature_space_similarity`).

    Args:
        x, y: (n, d1) and (n, d2).
        variance: share of the variance that is kept of each.

    Returns:
        from 0 to 1; 1 where they differ by a rotation, a shift and one scale.

    Raises:
        InputError: shapes do not fit, a representation does not vary, or as many components as rows are kept.

    Source: Raghu et al., 2017.
    """
    return float(canonical_correlations(x, y, variance).mean())


def pwcca(x: Any, y: Any) -> float:
    """Mean of the canonical correlations, weighted by how much of `x` each canonical direction explains.

    Args:
        x, y: (n, d1) and (n, d2). The weights are those of x: exchanged, they give another number.

    Returns:
        from 0 to 1.

    Raises:
        InputError: shapes do not fit, a representation does not vary, or it spans all n rows.

    Source: Morcos, Raghu, Bengio, 2018.
    """
    one, other = paired(x, y)
    bases = leading_basis(one, None), leading_basis(other, None)
    left, correlations, _ = torch.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    weights = ((bases[0] @ left).T @ (one - one.mean(0))).abs().sum(1)
    return float((weights * correlations.clamp(0, 1)).sum() / weights.sum())
