"""Gates and exponentials that several tables of the catalogue use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from actinium.functions.argument_bounds import at_least, logarithm
from actinium.functions.stable import cdf, finite, floor_at_lowest, hypot, softplus

__all__ = ["END", "algebraic", "apa", "aranda_ordaz", "capped_exp", "gelu", "silu"]

END = 1000.0
"""Where e^-x is 0 and a sigmoid 1 in every precision. Arguments of gates end there, so that a slope of 0 is never
multiplied by what has overflown."""


def capped_exp(x: Tensor) -> Tensor:
    """e^x up to e^80, which is finite in float32: for what is constant beyond."""
    return torch.exp(x.clamp(-END, 80.0))


def algebraic(x: Tensor) -> Tensor:
    """x / sqrt(1 + x^2)."""
    x = finite(x)
    return x / hypot(x, torch.ones_like(x))


def aranda_ordaz(x: Tensor, a: Tensor | float) -> Tensor:
    """1 - (1 + a e^x)^(-1 / a)."""
    a = at_least(a)
    return -torch.expm1(-softplus(x + logarithm(a)) / a)


def apa(x: Tensor, l: Tensor | float, k: Tensor | float) -> Tensor:  # noqa: E741
    """(l e^(-k x) + 1)^(-1 / l); l is at least 1e-4, below which float32 loses its digits."""
    least = at_least(l, 1e-4)
    return torch.exp(-softplus(logarithm(least) - (k * x).clamp(max=END)) / least)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), 0 at -inf."""
    return functional.silu(floor_at_lowest(x))


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), 0 at -inf; PyTorch's own is NaN at both infinities."""
    return floor_at_lowest(x) * cdf(x)
