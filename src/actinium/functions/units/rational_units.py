"""Rational functions with learnt coefficients and without poles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.functions.units.array_units import ArrayUnit, Function, fitted_weights

__all__ = ["EnhancedRational"]


class EnhancedRational(ArrayUnit):
    """v x + w + sum_k (c_k x + d_k) / ((x - a_k)^2 + b_k^2 + eps): a rational function in partial fractions.

    Its degree is 2n + 1 over 2n. No denominator is below eps, so there are no poles on the line. At first all a_k are 0
    and b_k go from 1 to 5 by equal factors; the other weights are then those that are nearest to a function on [-5, 5].

    Args:
        n: how many fractions; 2 give degree 5/4.
        eps: least denominator.
        start: function to start from, a name of the catalogue or a callable.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there is no fraction, or eps is not positive.

    Source: Trimmel et al., 2022.
    """

    def __init__(
        self,
        n: int = 2,
        eps: float = 1e-6,
        start: str | Function = "swish",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if n < 1 or not 0 < eps < math.inf:
            raise InputError(f"an enhanced rational has one fraction or more and a positive eps, got {n} and {eps}")
        self.eps = float(eps)
        widths = torch.logspace(0, math.log10(5), n, dtype=torch.float64)
        x = torch.linspace(-5, 5, 2001, dtype=torch.float64)

        def terms(t: Tensor) -> Tensor:
            below = t.square() + widths[:, None].square() + eps
            return torch.cat([t[None], torch.ones_like(t)[None], t / below, 1 / below])

        found = fitted_weights(terms, start, x, torch.ones_like(x))
        self.learn("v", found[0])
        self.learn("w", found[1])
        self.learn("c", found[2 : n + 2])
        self.learn("d", found[n + 2 :])
        self.learn("a", torch.zeros(n))
        self.learn("b", widths)

    def response(self, x: Tensor, v: Tensor, w: Tensor, c: Tensor, d: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The function at x with weights (n, ...)."""
        largest = torch.finfo(x.dtype).max
        inside = x.clamp(-largest, largest)
        total = v * x + w
        for pole, width, slope, level in zip(a, b, c, d, strict=True):
            away = inside - pole
            below = away * away + width.square() + self.eps
            total = total + slope * (inside / below) + level / below
        return total
