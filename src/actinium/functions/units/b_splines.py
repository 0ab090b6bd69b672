"""B-splines: the pieces that are not 0 on a segment, and the whole basis of uniform and of other grids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["knot_basis", "spline_basis", "spline_pieces"]


def _pieces(order: int, first: Tensor, ends: Callable[[int, int], tuple[Tensor, Tensor, Tensor | int]]) -> list[Tensor]:
    """The order + 1 B-splines that are not 0 on a segment, from left to right, by de Boor's recursion.

    Args:
        order: degree of the pieces.
        first: the spline of degree 0, which is 1.
        ends: of piece r of a degree: how far the knot after it lies ahead, how far the one before it behind, and the
            sum of both.
    """
    parts = [first]
    for degree in range(1, order + 1):
        left: Tensor | float = 0.0
        raised = []
        for r, part in enumerate(parts):
            ahead, behind, length = ends(r, degree)
            raised.append(left + ahead * part / length)
            left = behind * part / length
        parts = [*raised, left + torch.zeros_like(first)]
    return parts


def spline_pieces(t: Tensor, order: int) -> list[Tensor]:
    """The order + 1 B-splines that are not 0 on a segment of length 1, from left to right.

    Args:
        t: place within the segment, 0 at its left end and 1 at its right one.
        order: degree of the pieces; knots have distance 1.
    """
    return _pieces(order, torch.ones_like(t), lambda r, degree: (r + 1 - t, t + degree - 1 - r, degree))


def spline_basis(t: Tensor, grid: int, order: int) -> Tensor:
    """All B-splines of a grid of `grid` segments of length 1 from 0, (*t.shape, grid + order).

    The knots go on for `order` segments on both sides, where the splines fade out; they are 0 beyond.
    """
    inside = t.clamp(-order, grid + order)
    segment = inside.detach().floor().clamp(-order, grid + order - 1)
    return _whole(spline_pieces(inside - segment, order), segment.long() + order, grid, order)


def knot_basis(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """All B-splines of a grid of its own for each input, (..., in, grid + order).

    Beyond a range the knots go on for `order` segments of its mean length; the splines are 0 behind these.

    Args:
        x: places (..., in).
        knots: ends of the segments, ascending, (in, grid + 1).
        order: degree of the pieces.

    Source: de Boor, 1978, chapter 10.
    """
    knots = knots.to(x.dtype)
    grid = knots.shape[1] - 1
    # Twice as many knots outside as splines fade over: the outer ones are touched by splines that are cut off alone.
    steps = torch.arange(1, 2 * order + 1, device=knots.device) * ((knots[:, -1:] - knots[:, :1]) / grid)
    whole = torch.cat([knots[:, :1] - steps.flip(1), knots, knots[:, -1:] + steps], 1)
    reached = whole[:, order:-order].contiguous()
    rows = x.detach().flatten(0, -2).T.contiguous()
    segment = (torch.searchsorted(reached, rows, right=True) - 1).clamp(0, grid + 2 * order - 1)
    near = torch.stack([whole.gather(1, segment + 1 + j) for j in range(2 * order)], -1)
    near = near.transpose(0, 1).reshape(*x.shape, 2 * order)
    # A place far away lies at an end, where all that is kept is 0.
    x = torch.minimum(torch.maximum(x, reached[:, 0]), reached[:, -1])

    def ends(r: int, degree: int) -> tuple[Tensor, Tensor, Tensor]:
        after, before = near[..., order + r], near[..., order + r - degree]
        return after - x, x - before, after - before

    return _whole(_pieces(order, torch.ones_like(x), ends), segment.T.reshape(x.shape), grid, order)


def _whole(pieces: list[Tensor], segment: Tensor, grid: int, order: int) -> Tensor:
    """The basis (..., grid + order) of the pieces on the segment, counted from the first outside, of each place."""
    found = torch.stack(pieces, -1)
    index = segment[..., None] + torch.arange(order + 1, device=found.device)
    out = torch.zeros(*segment.shape, grid + 3 * order, dtype=found.dtype, device=found.device)
    return out.scatter(-1, index, found)[..., order : grid + 2 * order]
