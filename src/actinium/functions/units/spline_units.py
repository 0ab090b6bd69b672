"""Splines with learnt control points: cubic, B-splines on an edge of a Kolmogorov-Arnold network, and linear ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.units.array_units import ArrayUnit, Function, member
from actinium.functions.units.b_splines import spline_pieces

__all__ = ["BSplineEdge", "CubicSpline", "LinearSpline"]


def _check_grid(knots: int, least: int, reach: float) -> None:
    if knots < least or not 0 < reach < math.inf:
        raise InputError(f"a spline has {least} knots or more and a positive reach, got {knots} and {reach}")


def _segment(x: Tensor, reach: float, step: float, segments: int) -> Tensor:
    """Number of the segment that holds each value, the first and the last beyond the ends."""
    place = (x.detach().clamp(-reach, reach) + reach) / step
    return place.nan_to_num(0.0).floor().clamp(0, segments - 1).long()


class CubicSpline(ArrayUnit):
    """Catmull-Rom spline through control points on a uniform grid, continued as a line beyond its ends.

    Args:
        step: distance of the knots.
        reach: the spline covers [-reach, reach], which is a whole number of steps.
        start: function whose values the control points have at first, a name of the catalogue or a callable.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: reach is no whole number of steps.

    Source: Vecci et al., 1998; Guarnieri et al., 1999.
    """

    q: Tensor

    def __init__(
        self,
        step: float = 0.2,
        reach: float = 2.0,
        start: str | Function = "tanh",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        self.segments = round(2 * reach / step) if step > 0 else 0
        _check_grid(self.segments + 1, 2, reach)
        if not math.isclose(self.segments * step, 2 * reach, rel_tol=1e-9):
            raise InputError(f"[-reach, reach] is a whole number of steps long, which {2 * reach:g} / {step:g} is not")
        self.step, self.reach = float(step), float(reach)
        knots = torch.arange(-1, self.segments + 2, dtype=torch.float64) * step - reach
        self.learn("q", member(start)(knots))

    def response(self, x: Tensor, q: Tensor) -> Tensor:
        """The spline at x."""
        i = _segment(x, self.reach, self.step, self.segments)
        p0, p1, p2, p3 = (self.pick(self.q, i + k).to(x.dtype) for k in range(4))
        inside = x.clamp(-self.reach, self.reach)
        t = (inside + self.reach) / self.step - i
        first, second, third = p2 - p0, 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * (p1 - p2) + p3 - p0
        value = p1 + t * (first + t * (second + t * third)) / 2
        slope = (first + t * (2 * second + 3 * t * third)) / (2 * self.step)
        return value + (x - inside) * slope


class BSplineEdge(ArrayUnit):
    """w_b SiLU(x) + w_s sum_i c_i B_i(x): the function on one edge of a Kolmogorov-Arnold network.

    B-splines of a uniform grid that is continued by `order` steps on both sides; they are 0 beyond.

    Args:
        grid: intervals of [-reach, reach].
        order: degree of the pieces.
        reach: end of the grid.
        noise: standard deviation of the first coefficients.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there is no interval, the order is below 1, or the noise is negative.

    Source: Liu et al., 2024, eq. 2.10-2.12.
    """

    c: Tensor

    def __init__(
        self,
        grid: int = 5,
        order: int = 3,
        reach: float = 1.0,
        noise: float = 0.1,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        _check_grid(grid + 1, 2, reach)
        if order < 1 or noise < 0:
            raise InputError(f"the order is one or more and noise is not negative, got {order} and {noise}")
        self.grid, self.order, self.reach = grid, order, float(reach)
        self.learn("c", torch.zeros(grid + order))
        nn.init.normal_(self.c, 0.0, noise)
        self.learn("base", torch.ones(()))
        self.learn("scale", torch.ones(()))

    def response(self, x: Tensor, c: Tensor, base: Tensor, scale: Tensor) -> Tensor:
        """The edge at x."""
        return base * functional.silu(x.clamp(min=torch.finfo(x.dtype).min)) + scale * self.spline(x)

    def spline(self, x: Tensor) -> Tensor:
        """sum_i c_i B_i(x)."""
        k, step = self.order, 2 * self.reach / self.grid
        far = self.reach + k * step
        i = _segment(x, far, step, self.grid + 2 * k)
        t = (x.clamp(-far, far) + far) / step - i
        parts = spline_pieces(t, k)
        table = functional.pad(self.c, (k, k))
        return sum(part * self.pick(table, i + m).to(x.dtype) for m, part in enumerate(parts))


class LinearSpline(ArrayUnit):
    """Linear spline through control points on a uniform grid, continued beyond its ends.

    Its training loss has `weight * unit.tv2()` added, which makes neighbouring pieces one line.

    Args:
        knots: how many control points.
        reach: the knots lie on [-reach, reach].
        start: function whose values the control points have at first, a name of the catalogue or a callable.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there are fewer than two knots.

    Source: Bohra et al., 2020.
    """

    c: Tensor

    def __init__(
        self,
        knots: int = 21,
        reach: float = 4.0,
        start: str | Function = "leaky relu",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        _check_grid(knots, 2, reach)
        self.reach, self.step = float(reach), 2 * reach / (knots - 1)
        self.learn("c", member(start)(torch.linspace(-reach, reach, knots, dtype=torch.float64)))

    def response(self, x: Tensor, c: Tensor) -> Tensor:
        """The spline at x."""
        i = _segment(x, self.reach, self.step, self.c.shape[1] - 1)
        left, right = (self.pick(self.c, i + k).to(x.dtype) for k in range(2))
        return left + (x - (i.to(x.dtype) * self.step - self.reach)) * ((right - left) / self.step)

    def tv2(self) -> Tensor:
        """Second-order total variation: the sum of the sizes of all changes of slope, over knots and channels."""
        return self.c.diff(n=2, dim=1).abs().sum() / self.step
