"""B-splines: the pieces that are not 0 on a segment, and the whole basis of uniform and of other grids."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["knot_basis", "spline_basis", "spline_pieces"]


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
    step = (knots[:, -1:] - knots[:, :1]) / grid
    beyond = step * torch.arange(1, order + 1, device=knots.device, dtype=knots.dtype)
    whole = torch.cat([knots[:, :1] - beyond.flip(1), knots, knots[:, -1:] + beyond], 1)
    rows = x.detach().flatten(0, -2).T.contiguous()
    segment = (torch.searchsorted(whole, rows, right=True) - 1).clamp(0, grid + 2 * order - 1)
    # Two more knots outside, which only splines that are cut off below touch.
    far = step * torch.arange(1, order + 1, device=knots.device, dtype=knots.dtype)
    whole = torch.cat([whole[:, :1] - far.flip(1), whole, whole[:, -1:] + far], 1)
    near = torch.stack([whole.gather(1, segment + 1 + j) for j in range(2 * order)], -1)
    near = near.transpose(0, 1).reshape(*x.shape, 2 * order)
    # Clamped, a place far away would lie at the end of the last segment, where all that is kept is 0.
    x = torch.minimum(torch.maximum(x, whole[:, order]), whole[:, -order - 1])
    parts = [torch.ones_like(x)]
    for degree in range(1, order + 1):
        left: Tensor | float = 0.0
        raised = []
        for r, part in enumerate(parts):
            after, before = near[..., order + r], near[..., order + r - degree]
            share = part / (after - before)
            raised.append(left + (after - x) * share)
            left = (x - before) * share
        parts = [*raised, left + torch.zeros_like(x)]
    index = segment.T.reshape(x.shape)[..., None] + torch.arange(order + 1, device=x.device)
    out = torch.zeros(*x.shape, grid + 3 * order, dtype=x.dtype, device=x.device)
    return out.scatter(-1, index, torch.stack(parts, -1))[..., order : grid + 2 * order]
