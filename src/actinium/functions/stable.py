"""Pieces of activation functions that neither overflow nor give NaN, also in the branch that `where` does not take."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "cdf",
    "exp_neg",
    "finite",
    "floor_at_lowest",
    "gamma",
    "gumbel",
    "hypot",
    "log1p_pos",
    "neg",
    "pdf",
    "pos",
    "power",
    "sig",
    "softplus",
]

sig = torch.sigmoid
"""Logistic function 1 / (1 + e^-x)."""

SMALLEST = 1e-30
"""Stands for 0 in a logarithm."""
LANCZOS = (
    *(0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059),
    *(12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7),
)


def pos(x: Tensor) -> Tensor:
    """max(0, x)."""
    return functional.relu(x)


def neg(x: Tensor) -> Tensor:
    """min(0, x)."""
    return -functional.relu(-x)


def exp_neg(x: Tensor) -> Tensor:
    """e^min(0, x): for branches that are taken where x < 0."""
    return torch.exp(neg(x))


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) to full precision for every x (PyTorch's own is x from 20 on)."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def cdf(x: Tensor) -> Tensor:
    """Distribution function of the standard normal, to full relative precision on the left."""
    if torch.compiler.is_exporting():  # ONNX has no erfc
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def hypot(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(a^2 + b^2) without overflow."""
    if not torch.compiler.is_exporting():
        return torch.hypot(a, b)
    # ONNX has no hypot.
    large, small = torch.maximum(a.abs(), b.abs()), torch.minimum(a.abs(), b.abs())
    return large * torch.sqrt(1 + (small / large.clamp(min=torch.finfo(large.dtype).tiny)).square())


def gamma(x: Tensor) -> Tensor:
    """The Gamma function of numbers above 0."""
    if not torch.compiler.is_exporting():
        return torch.exp(torch.lgamma(x))
    # ONNX has no lgamma: Lanczos's series (g = 7, 9 terms; Press et al., 2007, section 6.1).
    total = torch.full_like(x, LANCZOS[0])
    for k, c in enumerate(LANCZOS[1:]):
        total = total + c / (x + k)
    t = x + 6.5
    return math.sqrt(2 * math.pi) * torch.exp((x - 0.5) * torch.log(t) - t) * total


def pdf(x: Tensor) -> Tensor:
    """Density of the standard normal."""
    return torch.exp(-0.5 * x.square()) * (1 / math.sqrt(2 * math.pi))


def gumbel(x: Tensor) -> Tensor:
    """e^(-e^-x); the inner exponential may be infinite, which gives 0, and its gradient 0."""
    # exp(88) is the largest power in float32; beyond it the outer exponential is 0 in every precision.
    return torch.exp(-torch.exp(-x.clamp(min=-80.0)))


def floor_at_lowest(x: Tensor) -> Tensor:
    """x, not below a millionth of the lowest finite number: x * g(x) is then 0 and not NaN where g(-inf) = 0.

    The distance is for gains, by which values and gradients may be multiplied without overflow.
    """
    return x.clamp(min=torch.finfo(x.dtype).min * 1e-6)


def finite(x: Tensor) -> Tensor:
    """x with the largest finite numbers in the place of infinite ones."""
    return x.clamp(torch.finfo(x.dtype).min, torch.finfo(x.dtype).max)


def log1p_pos(x: Tensor) -> Tensor:
    """ln(1 + max(0, x)): for branches that are taken where x > 0."""
    return torch.log1p(pos(x))


def power(x: Tensor, p: Tensor | float) -> Tensor:
    """max(0, x)^p whose gradients with respect to x and p stay finite at 0, and are 0 where it is infinite."""
    size = p * torch.log(x.clamp(min=SMALLEST))
    numbers = torch.finfo(size.dtype)
    over = size > math.log(numbers.max) * (1 - 4 * numbers.eps)
    grown = torch.where(over, math.inf, torch.exp(torch.where(over, 0.0, size)))
    return torch.where(x <= 0, 0.0, grown)
