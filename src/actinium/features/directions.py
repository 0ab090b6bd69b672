"""Directions of concepts: the difference of two means, and how well a direction tells where a concept is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.rows import as_rows

__all__ = ["as_direction", "concept_detection_score", "difference_in_means"]

# Means whose difference is below this share of their length differ by rounding only.
EQUAL = 1e-6


def difference_in_means(positive: Any, negative: Any) -> Tensor:
    """Unit direction from the mean of some activations to that of others.

    Args:
        positive: (n, d) activations with the concept.
        negative: (m, d) activations without.

    Returns:
        (d,), float64.

    Raises:
        InputError: shapes do not fit, values are not finite, or the means are equal.

    Source: Marks and Tegmark, 2023 (mass-mean direction); a baseline of Shafran, Geiger, Geva, 2025.
    """
    pos = as_rows(positive, "positive activations", dtype=torch.float64)
    neg = as_rows(negative, "negative activations", pos.shape[1], dtype=torch.float64).to(pos.device)
    one, other = pos.mean(0), neg.mean(0)
    difference = one - other
    if float(difference.norm()) <= EQUAL * max(float(one.norm()), float(other.norm())):
        raise InputError("the two means are equal: they give no direction")
    return difference / difference.norm()


def concept_detection_score(direction: Any, activating: Sequence[Any], neutral: Sequence[Any]) -> float:
    """How much nearer to a direction sentences with a concept come than sentences without it.

    A sentence counts with the largest cosine between the direction and the activations of its tokens.

    Args:
        direction: (d,).
        activating: activations (tokens, d) of each sentence with the concept, without special tokens.
        neutral: the same of sentences without it.

    Returns:
        log of the mean of `activating` over the mean of `neutral`: 0 where the direction does not tell them apart.
        Infinite where only one of the means is positive (-inf where it is that of `neutral`), NaN where none is.

    Raises:
        InputError: no sentences, shapes that do not fit, or values that are not finite.

    Source: Shafran, Geiger, Geva, 2025 (concept detection, S_CD).
    """
    unit = as_direction(direction)

    def mean(sentences: Sequence[Any], what: str) -> float:
        if not len(sentences):
            raise InputError(f"there are no {what} sentences")
        rows = [as_rows(s, f"{what} sentences", len(unit)).cpu() for s in sentences]
        cosines = torch.nn.functional.normalize(torch.cat(rows).double(), dim=1) @ unit
        return float(torch.stack([part.max() for part in cosines.split([len(r) for r in rows])]).mean())

    with_it, without = mean(activating, "activating"), mean(neutral, "neutral")
    if with_it > 0 and without > 0:
        return math.log(with_it / without)
    if with_it > 0:
        return math.inf
    return -math.inf if without > 0 else math.nan


def as_direction(direction: Any, width: int | None = None) -> Tensor:
    """A direction (d,) at unit length, float64.

    Raises:
        InputError: another shape or width, values that are not finite, or zero.
    """
    given = torch.as_tensor(direction).detach().double().cpu()
    if given.ndim != 1 or not len(given) or (width is not None and len(given) != width):
        raise InputError(f"expected a direction ({width or 'd'},), got shape {tuple(given.shape)}")
    if not bool(torch.isfinite(given).all()) or not float(given.norm()):
        raise InputError("a direction must be finite and not zero")
    return given / given.norm()
