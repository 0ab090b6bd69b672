"""What a user says to a concept similarity reasoner: which prototypes do not count, and where in an image to look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["check_feedback", "rejected_prototypes", "weighted_maps", "without_rejected"]

MODES = ("scale", "mask")
REPLACEMENTS = ("zero", "floor", "mean")


def check_feedback(mode: str, replacement: str) -> None:
    """Refuse ways to weigh maps and scores in place of rejected ones that do not exist.

    Raises:
        UnknownNameError: so it is.
    """
    for name, value, known in (("mode", mode, MODES), ("replacement", replacement, REPLACEMENTS)):
        if value not in known:
            raise UnknownNameError(unknown(name, str(value), known))


def rejected_prototypes(
    concepts: Sequence[int], prototypes: Sequence[Sequence[int]], n_concepts: int, n_prototypes: int
) -> Tensor:
    """Mask (K, M) of what is rejected.

    Args:
        concepts: those of which no prototype counts.
        prototypes: others (concept, number) that do not count.
        n_concepts, n_prototypes: K and M.

    Raises:
        InputError: a prototype does not exist.
    """
    out = torch.zeros(n_concepts, n_prototypes, dtype=torch.bool)
    places = [(k, m) for k in concepts for m in range(n_prototypes)] + [tuple(pair) for pair in prototypes]
    for pair in places:
        if len(pair) != 2 or not (0 <= pair[0] < n_concepts and 0 <= pair[1] < n_prototypes):
            raise InputError(f"no prototype {pair}: expected (concept, number) below ({n_concepts}, {n_prototypes})")
        out[pair] = True
    return out


def weighted_maps(maps: Tensor, weights: Tensor, mode: str) -> Tensor:
    """Similarities (b, K, M, H, W) under the importance (b, H, W) of cells; see `predict` for the modes.

    Raises:
        InputError: nothing is left to look at under "mask".
    """
    if mode == "mask" and bool((weights == 0).flatten(1).all(1).any()):
        raise InputError("the boxes leave no cell of an image to look at; draw them smaller, or use mode='scale'")
    weights = weights[:, None, None].to(maps)
    maps = maps * weights
    return maps.masked_fill(weights == 0, -1.0) if mode == "mask" else maps


def without_rejected(scores: Tensor, rejected: Tensor, means: Tensor, replacement: str) -> Tensor:
    """Scores (b, K, M) with others in the place of rejected ones: 0, -1, or the mean (K, M) over training images."""
    instead = {"zero": 0.0 * means, "floor": -torch.ones_like(means), "mean": means}[replacement]
    return torch.where(rejected.to(scores.device), instead, scores)
