"""B-splines of a uniform grid: the pieces that are not 0 on a segment, and the whole basis."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spline_basis", "spline_pieces"]


def spline_pieces(t: Tensor, order: int) -> list[Tensor]:
    """The order + 1 B-splines that are not 0 on a segment of length 1, from left to right.

    Args:
        t: place within the segment, 0 at its left end and 1 at its right one.
        order: degree of the pieces; knots have distance 1.
    """
    parts = [torch.ones_like(t)]
    for degree in range(1, order + 1):
        left: Tensor | float = 0.0
        raised = []
        for r, part in enumerate(parts):
            raised.append(left + (r + 1 - t) * part / degree)
            left = (t + degree - 1 - r) * part / degree
        parts = [*raised, left + torch.zeros_like(t)]
    return parts


def spline_basis(t: Tensor, grid: int, order: int) -> Tensor:
    """All B-splines of a grid of `grid` segments of length 1 from 0, (*t.shape, grid + order).

    The knots go on for `order` segments on both sides, where the splines fade out; they are 0 beyond.
    """
    inside = t.clamp(-order, grid + order)
    segment = inside.detach().floor().clamp(-order, grid + order - 1)
    pieces = torch.stack(spline_pieces(inside - segment, order), -1)
    index = (segment.long() + order)[..., None] + torch.arange(order + 1, device=t.device)
    whole = torch.zeros(*t.shape, grid + 3 * order, dtype=t.dtype, device=t.device).scatter(-1, index, pieces)
    return whole[..., order : grid + 2 * order]
