"""Sums of bumps with learnt heights: kernel activation functions and mixtures of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.stable import finite
from actinium.functions.units.array_units import ArrayUnit, Function, fitted_weights, member, normal_points

__all__ = ["GaussianMixtureUnit", "KernelUnit"]


def _square(x: Tensor) -> Tensor:
    """x^2 by a product, whose gradient stays a number where twice x is infinite."""
    x = finite(x)
    return x * x


class KernelUnit(ArrayUnit):
    """sum_d a_d e^(-g (x - d)^2) over a fixed grid of points d, with learnt a and g = 1 / (6 step^2).

    Args:
        points: size of the dictionary.
        reach: it is uniform on [-reach, reach].
        start: function to start from by kernel ridge regression; heights from N(0, 0.3) if not given.
        ridge: added to the kernel's diagonal in that regression.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there are fewer than two points, or reach or ridge is not positive.

    Source: Scardapane et al., 2019.
    """

    a: Tensor
    points: Tensor

    def __init__(
        self,
        points: int = 20,
        reach: float = 2.0,
        start: str | Function | None = None,
        ridge: float = 1e-4,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if points < 2 or not 0 < reach < math.inf or not ridge > 0:
            raise InputError(f"two points or more, positive reach and ridge are wanted, got {points}, {reach}, {ridge}")
        grid = torch.linspace(-reach, reach, points, dtype=torch.float64)
        self.rate = (points - 1) ** 2 / (24 * reach**2)
        self.register_buffer("points", grid, persistent=False)
        self.learn("a", torch.zeros(points))
        if start is None:
            nn.init.normal_(self.a, 0.0, 0.3)
        else:
            kernel = torch.exp(-self.rate * (grid[:, None] - grid).square())
            heights = torch.linalg.solve(kernel + ridge * torch.eye(points, dtype=torch.float64), member(start)(grid))
            with torch.no_grad():
                self.a.copy_(heights)

    def response(self, x: Tensor, a: Tensor) -> Tensor:
        """The sum at x with heights (points, ...)."""
        total = torch.zeros_like(x)
        for height, point in zip(a, self.points.tolist(), strict=True):
            total = total + height * torch.exp(-self.rate * _square(x - point))
        return total


class GaussianMixtureUnit(ArrayUnit):
    """sum_j a_j N(x; m_j, s_j^2) with learnt heights a, means m and deviations s, which are kept as logarithms.

    Args:
        n: how many Gaussians; deviations start at 1, means evenly on [-2, 2].
        start: function to which the first heights are nearest in mean square under the standard normal.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: n is below 1.

    Source: Kunc and Kléma, 2024 (MoGU).
    """

    def __init__(
        self, n: int = 3, start: str | Function = "relu", num_parameters: int = 1, channel_dim: int = 1
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if n < 1:
            raise InputError(f"a mixture has one Gaussian or more, not {n}")
        means = torch.linspace(-2, 2, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)

        def densities(t: Tensor) -> Tensor:
            return torch.exp(-(t - means[:, None]).square() / 2) / math.sqrt(2 * math.pi)

        self.learn("a", fitted_weights(densities, start, *normal_points()))
        self.learn("m", means)
        self.learn("log_s", torch.zeros(n))

    def response(self, x: Tensor, a: Tensor, m: Tensor, log_s: Tensor) -> Tensor:
        """The mixture at x with weights (n, ...)."""
        total = torch.zeros_like(x)
        for height, mean, log_deviation in zip(a, m, log_s, strict=True):
            z = (x - mean) * torch.exp(-log_deviation)
            total = total + height * torch.exp(-_square(z) / 2 - log_deviation) / math.sqrt(2 * math.pi)
        return total
