"""How alike two clouds of points lie: after the best rotation, by their neighbours, by their nearest directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actinium.compare.paired_rows import paired
from actinium.core.errors import InputError
from actinium.core.rows import as_rows

__all__ = ["knn_jaccard", "mmcs", "neighbours", "procrustes_similarity", "unit_cloud"]


def unit_cloud(rows: Tensor) -> Tensor:
    """Rows (n, d) around 0 with a sum of squares of 1."""
    centred = rows - rows.mean(0)
    return centred / centred.norm()


def procrustes_similarity(x: Any, y: Any) -> float:
    """Sum of products of two representations after centring, scaling to length 1 and the best rotation.

    Args:
        x, y: (n, d1) and (n, d2); the narrower one is turned into the space of the other.

    Returns:
        s, from 0 to 1; the squared distance left is 2 - 2 s, and SciPy's disparity 1 - s^2.

    Raises:
        InputError: shapes do not fit, or a representation does not vary.

    Source: Schönemann, 1966; Williams et al., 2021 (as a distance of representations).
    """
    one, other = (unit_cloud(rows) for rows in paired(x, y))
    return float(torch.linalg.svdvals(one.T @ other).sum().clamp(0, 1))


def neighbours(rows: Tensor, k: int) -> Tensor:
    """For every row of (n, d), which others are its k nearest by cosine: (n, n) of zeros and ones, float64."""
    n = len(rows)
    if not 1 <= k < n - 1:
        raise InputError(f"k must be from 1 to {n - 2} for {n} rows, got {k}")
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return torch.zeros(n, n, dtype=torch.float64, device=rows.device).scatter(1, cosines.topk(k, dim=1).indices, 1.0)


def knn_jaccard(x: Any, y: Any, k: int = 10) -> float:
    """Mean share that the k nearest neighbours of an item in two representations have in common.

    Args:
        x, y: (n, d1) and (n, d2).
        k: neighbours by cosine, without the item itself.

    Returns:
        mean over items of common neighbours over all that are neighbours in one of the two, from 0 to 1.

    Raises:
        InputError: shapes do not fit, or k is below 1 or above n - 2.

    Source: Klabunde et al., 2023 (Jaccard similarity of neighbours).
    """
    one, other = (neighbours(rows, k) for rows in paired(x, y, least=3))
    common = (one * other).sum(1)
    return float((common / (2 * k - common)).mean())


def mmcs(a: Any, b: Any, *, absolute: bool = False) -> float:
    """Mean over the directions of `a` of the largest cosine with one of `b`.

    Args:
        a, b: (m1, d) and (m2, d), directions of one space. Exchanged, they give another number.
        absolute: count a direction and its opposite as the same.

    Returns:
        1 where every direction of a is in b.

    Raises:
        InputError: different widths, or a direction is zero.

    Source: Sharkey, Braun, Millidge, 2022 (mean max cosine similarity).
    """
    given = {"the first directions": a, "the second directions": b}
    one, other = (as_rows(rows, what, flat=False, dtype=torch.float64) for what, rows in given.items())
    if one.shape[1] != other.shape[1]:
        raise InputError(f"cosines need equal widths, got {one.shape[1]} and {other.shape[1]}")
    if not bool((one.norm(dim=1) > 0).all() and (other.norm(dim=1) > 0).all()):
        raise InputError("a direction must not be zero")
    cosines = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).T.to(one.device)
    return float((cosines.abs() if absolute else cosines).amax(1).mean())
