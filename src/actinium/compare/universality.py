"""Whether matched features of two models lie alike in their spaces, beyond what chance gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.compare.canonical_correlation import leading_basis
from actinium.compare.geometry import neighbours, unit_cloud
from actinium.compare.paired_rows import paired
from actinium.compare.representational_similarity import ranked_dissimilarities
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["MEASURES", "feature_space_similarity"]

PAPER = "sae-universality"
NULLS = ("pairing", "features")
LEAST = 10


@dataclass(frozen=True)
class _Measure:
    """A similarity of paired rows, cut into what is computed once for each side and what for each pairing."""

    prepare: Callable[[Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    # Whether what was prepared has the items along both dimensions.
    square: bool = False

    def shuffled(self, prepared: Tensor, order: Tensor) -> Tensor:
        out = prepared[order]
        return out[:, order] if self.square else out


def _gram(rows: Tensor) -> Tensor:
    """Centred rows, scaled so that the product of two linear kernels is CKA."""
    centred = rows - rows.mean(0)
    return centred / (centred.T @ centred).norm().sqrt()


def _jaccard(x: Tensor, y: Tensor) -> Tensor:
    common = (x * y).sum(1)
    return (common / (x.sum(1) + y.sum(1) - common)).mean()


MEASURES: dict[str, _Measure] = {
    "svcca": _Measure(leading_basis, lambda x, y: torch.linalg.svdvals(x.T @ y).clamp(0, 1).mean()),
    "rsa": _Measure(ranked_dissimilarities, lambda x, y: (x * y).sum() / 2, square=True),
    "cka": _Measure(_gram, lambda x, y: (x.T @ y).square().sum()),
    "procrustes": _Measure(unit_cloud, lambda x, y: torch.linalg.svdvals(x.T @ y).sum()),
    "knn_jaccard": _Measure(lambda x: neighbours(x, min(10, len(x) - 2)), _jaccard, square=True),
}
"""Measures by name. `mmcs` is none of them: it does not depend on the pairing."""


def feature_space_similarity(
    w_a: Any,
    w_b: Any,
    pairs: Any,
    measures: Sequence[str] = ("svcca", "rsa"),
    *,
    null: str = "pairing",
    n_perm: int = 100,
    seed: int = 0,
) -> Result:
    """Similarity of the directions of matched features, and of directions that are not matched.

    Args:
        w_a: (m_A, d_A) directions of A's features, such as the rows of an SAE's decoder.
        w_b: (m_B, d_B) directions of B's; the widths may differ.
        pairs: (N, 2) numbers of matched features, or the Result of `match_features_by_correlation`.
        measures: keys of `MEASURES`; see the functions of these names (`svcca` keeps 99 % of the variance, `rsa` takes
            correlation distances, `knn_jaccard` 10 neighbours).
        null: "pairing" shuffles which direction of B belongs to which of A, among the matched; "features" draws as many
            features of both at random, which also asks whether matched ones are special.
        n_perm: R, number of draws.
        seed: of the draws.

    Returns:
        Result over measure: `score`, `null_mean`, `null_std`, and `p` = (1 + draws with at least the score) / (R + 1);
        `null` over measure and draw; `pairs`, their number.

    Raises:
        InputError: fewer than 10 pairs, numbers that are no features, values that are not finite, more components than
            pairs for SVCCA, or fewer than one draw.
        UnknownNameError: there is no such measure or null.

    Source: Lan et al., 2024 (their p may be 0, and their program keeps one component of raw decoder rows in SVCCA).
    """
    for name in measures:
        if name not in MEASURES:
            raise UnknownNameError(unknown("measure", name, MEASURES))
    if null not in NULLS:
        raise UnknownNameError(unknown("null", null, NULLS))
    if n_perm < 1 or not len(measures):
        raise InputError(f"expected one draw and one measure or more, got {n_perm} and {list(measures)}")
    given = {"directions of A": w_a, "directions of B": w_b}
    a, b = (as_rows(rows, what, flat=False, dtype=torch.float64).cpu() for what, rows in given.items())
    numbers = _numbers(pairs, len(a), len(b))
    x, y = paired(a[numbers[:, 0]], b[numbers[:, 1]])
    random = torch.Generator().manual_seed(seed)
    n = len(numbers)
    scores = np.empty(len(measures))
    draws = np.empty((len(measures), n_perm))
    prepared = [(MEASURES[name].prepare(x), MEASURES[name].prepare(y)) for name in measures]
    for i, name in enumerate(measures):
        scores[i] = float(MEASURES[name].score(*prepared[i]))
    for r in range(n_perm):
        if null == "pairing":
            order = torch.randperm(n, generator=random)
        else:
            drawn = [rows[torch.randperm(len(rows), generator=random)[:n]] for rows in (a, b)]
        for i, name in enumerate(measures):
            measure = MEASURES[name]
            if null == "pairing":
                draws[i, r] = float(measure.score(prepared[i][0], measure.shuffled(prepared[i][1], order)))
            else:
                draws[i, r] = float(measure.score(*(measure.prepare(rows) for rows in drawn)))
    # Equal up to rounding is equal: a null that reaches the score counts.
    reached = (draws >= scores[:, None] - 1e-12).sum(1)
    values = {
        "score": scores,
        "null_mean": draws.mean(1),
        "null_std": draws.std(1),
        "p": (1 + reached) / (n_perm + 1),
    }
    dataset = xr.Dataset(
        {name: (("measure",), value) for name, value in values.items()}
        | {"null": (("measure", "draw"), draws), "pairs": ((), n)},
        {"measure": list(measures), "draw": np.arange(n_perm)},
        {"plot": {"kind": "bar", "variables": ["score", "null_mean"]}},
    )
    about = provenance(None, [a, b, numbers], seed=seed, measures=list(measures), null=null, n_perm=n_perm)
    return Result(dataset, "feature_space_similarity", PAPER, about)


def _numbers(pairs: Any, m_a: int, m_b: int) -> Tensor:
    """Pairs of numbers of features (N, 2)."""
    if isinstance(pairs, Result):
        pairs = np.column_stack([pairs[name].values for name in "ab"])
    found = torch.as_tensor(np.ascontiguousarray(pairs))
    if found.ndim != 2 or found.shape[1] != 2 or found.is_floating_point() or len(found) < LEAST:
        raise InputError(f"expected pairs of integers (N, 2) with N >= {LEAST}, got {tuple(found.shape)} {found.dtype}")
    found = found.long()
    if bool((found < 0).any()) or int(found[:, 0].max()) >= m_a or int(found[:, 1].max()) >= m_b:
        raise InputError(f"pairs name features that are not there: A has {m_a}, B has {m_b}")
    return found
