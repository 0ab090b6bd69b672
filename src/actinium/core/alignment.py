"""How alike two representations of the same inputs are, where their bases may differ."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["linear_cka", "mean_cosine", "orthogonal_map"]


def _paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise InputError(f"expected (n, d1) and (n, d2) with n >= 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    return x.double(), y.double()


def mean_cosine(x: Tensor, y: Tensor) -> float:
    """Cosine of the angle between row i of `x` and row i of `y`, (n, d) each, averaged over rows."""
    x, y = _paired(x, y)
    return float(torch.cosine_similarity(x, y, dim=1).mean())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same n inputs.

    Args:
        x, y: (n, d1) and (n, d2).

    Returns:
        from 0 to 1; 1 where they differ by a rotation, a shift and one scale. NaN where one is constant.

    Raises:
        InputError: shapes do not fit.

    Source: Kornblith et al., 2019, Similarity of neural network representations revisited, section 3.
    """
    x, y = _paired(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def orthogonal_map(x: Tensor, y: Tensor) -> Tensor:
    """The orthogonal matrix R that brings x R nearest to y in squared distance.

    Args:
        x, y: (n, d) each.

    Returns:
        (d, d), float64.

    Raises:
        InputError: shapes do not fit.

    Source: Schönemann, 1966, A generalized solution of the orthogonal Procrustes problem.
    """
    x, y = _paired(x, y)
    if x.shape != y.shape:
        raise InputError(f"an orthogonal map needs equal widths, got {x.shape[1]} and {y.shape[1]}")
    u, _, vh = torch.linalg.svd(x.T @ y)
    turned: Tensor = u @ vh
    return turned
