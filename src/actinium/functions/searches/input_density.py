"""Densities of pre-activations, and monotone curves through points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, unknown

__all__ = ["DENSITIES", "Density", "MonotoneCurve", "kernel_density", "sample_values"]

FAR = 12.0
"""Beyond so many standard deviations a normal density is below 1e-31."""


@dataclass(frozen=True)
class Density:
    """A distribution on an interval.

    Args:
        pdf: its density, of float64 tensors, differentiable.
        cdf: its distribution function.
        lo, hi: the interval.
    """

    pdf: Callable[[Tensor], Tensor]
    cdf: Callable[[Tensor], Tensor]
    lo: float
    hi: float

    def nodes(self, panels: int = 400, order: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Points and weights of Gauss-Legendre integration over panels of the interval."""
        x, w = np.polynomial.legendre.leggauss(order)
        edges = np.linspace(self.lo, self.hi, panels + 1)
        half = np.diff(edges) / 2
        return ((edges[:-1] + half)[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def _bell(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


DENSITIES: dict[str, Density] = {
    "normal": Density(_bell, torch.special.ndtr, -FAR, FAR),
    "half-normal": Density(lambda x: 2 * _bell(x), lambda x: torch.erf(x.clamp(min=0) / math.sqrt(2)), 0.0, FAR),
}
"""The standard normal distribution and that of its absolute value."""


def sample_values(samples: Any) -> Tensor:
    """Samples as a float64 vector.

    Raises:
        InputError: there are fewer than 10, some are not finite, or all are equal.
    """
    values = torch.as_tensor(samples).detach().double().flatten().cpu()
    if len(values) < 10 or not bool(values.isfinite().all()):
        raise InputError(f"samples are 10 finite numbers or more; got {len(values)}, of which some may not be finite")
    if bool((values == values[0]).all()):
        raise InputError(f"all samples are {float(values[0]):g}; they have no density")
    return values


def kernel_density(samples: Any, bandwidth: float | None = None, order: int = 0) -> Density:
    """A density from samples by Gaussian kernels.

    Args:
        samples: numbers of any shape.
        bandwidth: standard deviation of the kernel; if not given, the best one for samples of a normal distribution.
        order: of the derivative of the density that is wanted; the noise of higher ones needs wider kernels.

    Raises:
        InputError: the samples have no density, the bandwidth is not above 0, or the order is negative.

    Source: Chacón, Duong and Wand, 2011 (normal scale bandwidth), with the lesser of standard deviation and quartiles.
    """
    values = sample_values(samples)
    if order < 0:
        raise InputError(f"order is 0 or more, not {order}")
    if bandwidth is None:
        quarter = torch.quantile(values[:: max(1, len(values) // 100_000)], torch.tensor([0.25, 0.75]).double())
        spread = min(float(values.std()), float(quarter[1] - quarter[0]) / 1.34) or float(values.std())
        bandwidth = spread * (4 / ((2 * order + 3) * len(values))) ** (1 / (2 * order + 5))
    if not bandwidth > 0:
        raise InputError(f"a bandwidth is above 0, not {bandwidth}")

    def pdf(x: Tensor) -> Tensor:
        return (_bell((x[..., None] - values) / bandwidth) / bandwidth).mean(-1)

    def cdf(x: Tensor) -> Tensor:
        return torch.special.ndtr((x[..., None] - values) / bandwidth).mean(-1)

    return Density(pdf, cdf, float(values.min()) - 6 * bandwidth, float(values.max()) + 6 * bandwidth)


def density_of(p: Any) -> Density:
    """A density by its name, itself, or from samples.

    Raises:
        UnknownNameError: there is none of that name.
        InputError: samples have no density.
    """
    if isinstance(p, Density):
        return p
    if isinstance(p, str):
        if p not in DENSITIES:
            raise InputError(unknown("density", p, DENSITIES))
        return DENSITIES[p]
    return kernel_density(p)


class MonotoneCurve(nn.Module):
    """A rising, once continuously differentiable curve through points (piecewise cubic, without overshoot).

    Args:
        x, y: (n,) points, both rising.
        flat: whether it is constant beyond the ends; else it goes on as a line.

    Raises:
        InputError: fewer than two points, or they do not rise.

    Source: Fritsch and Butland, 1984.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, flat: bool = False) -> None:
        super().__init__()
        from scipy.interpolate import PchipInterpolator

        if len(x) < 2 or len(x) != len(y) or not ((np.diff(x) > 0).all() and (np.diff(y) >= 0).all()):
            raise InputError("a rising curve goes through two points or more, whose x and y rise")
        slopes = PchipInterpolator(x, y).derivative()(x)
        self.flat = flat
        for name, values in (("x", x), ("y", y), ("slopes", slopes)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    x: Tensor
    y: Tensor
    slopes: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """The curve at numbers of any shape."""
        at = t.double()
        i = torch.searchsorted(self.x, at.detach().contiguous(), right=True).clamp(1, len(self.x) - 1)
        x0, x1, y0, y1 = self.x[i - 1], self.x[i], self.y[i - 1], self.y[i]
        m0, m1 = self.slopes[i - 1] * (x1 - x0), self.slopes[i] * (x1 - x0)
        s = ((at - x0) / (x1 - x0)).clamp(0.0, 1.0)
        inside = y0 + s * (m0 + s * (3 * (y1 - y0) - 2 * m0 - m1 + s * (2 * (y0 - y1) + m0 + m1)))
        if not self.flat:
            below, above = (at - self.x[0]).clamp(max=0.0), (at - self.x[-1]).clamp(min=0.0)
            inside = inside + self.slopes[0] * below + self.slopes[-1] * above
        return inside.to(t.dtype)
