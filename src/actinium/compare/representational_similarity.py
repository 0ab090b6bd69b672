"""Representational similarity analysis: whether the same items are far apart in two representations."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from actinium.compare.paired_rows import paired
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.rows import as_rows

__all__ = ["dissimilarities", "ranked_dissimilarities", "rsa"]

DISTANCES = ("correlation", "cosine", "euclidean")


def dissimilarities(x: Any, distance: str = "correlation") -> Tensor:
    """Distances between every two rows.

    Args:
        x: (n, d).
        distance: "correlation" (1 minus Pearson's over the entries of two rows), "cosine" or "euclidean".

    Returns:
        (n, n), float64, zero on the diagonal.

    Raises:
        InputError: values that are not finite; a row whose entries are all alike (correlation) or zero (cosine).
        UnknownNameError: there is no such distance.

    Source: Kriegeskorte, Mur, Bandettini, 2008.
    """
    if distance not in DISTANCES:
        raise UnknownNameError(unknown("distance", distance, DISTANCES))
    rows = as_rows(x, "values", flat=False, dtype=torch.float64)
    if distance == "euclidean":
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    if distance == "correlation":
        rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    flat = int((length <= 1e-12 * length.max()).sum())
    if flat:
        raise InputError(
            f"{flat} rows have no {distance}: their entries are all {'alike' if distance == 'correlation' else 'zero'}"
        )
    unit = rows / length
    out: Tensor = 1 - (unit @ unit.T).clamp(-1, 1)
    return out.fill_diagonal_(0)


def rsa(x: Any, y: Any, distance: str = "correlation") -> float:
    """Rank correlation of the distances between items in two representations.

    Correlation distances, the published choice, depend on the basis: a rotation of one representation changes them.
    Euclidean and cosine distances do not.

    Args:
        x, y: (n, d1) and (n, d2), n >= 3.
        distance: see `dissimilarities`.

    Returns:
        Spearman's correlation over all pairs of items, from -1 to 1; NaN where all distances of one are equal.

    Raises:
        InputError, UnknownNameError: see `dissimilarities`; different numbers of rows.

    Source: Kriegeskorte, Mur, Bandettini, 2008; Lan et al., 2024.
    """
    one, other = (ranked_dissimilarities(rows, distance) for rows in paired(x, y, least=3))
    return float((one * other).sum() / 2)


def ranked_dissimilarities(x: Tensor, distance: str = "correlation") -> Tensor:
    """Ranks (n, n) of the distances, centred and of unit length over the upper triangle: a product is Spearman's."""
    n = len(x)
    rows, columns = torch.triu_indices(n, n, 1)
    values = dissimilarities(x, distance)[rows, columns].cpu().numpy()
    ranks = torch.from_numpy(stats.rankdata(values)).double()
    ranks = ranks - ranks.mean()
    out = torch.zeros(n, n, dtype=torch.float64)
    out[rows, columns] = ranks / ranks.norm()
    return out + out.T
