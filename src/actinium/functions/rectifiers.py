"""Pieces that rectifiers are made of: one branch left of 0 and one right of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.stable import finite, floor_at_lowest, neg, pos

__all__ = [
    "damped",
    "elu",
    "inverse_root_left",
    "leaky",
    "log1p_of",
    "relu_and_sine",
    "size_of",
    "softsign_left",
    "split",
    "tent",
]

Number = Tensor | float


def size_of(p: Number) -> Number:
    """|p| of a parameter."""
    return p.abs() if isinstance(p, Tensor) else abs(p)


def log1p_of(p: Number) -> Number:
    """ln(1 + p) of a parameter."""
    return torch.log1p(p) if isinstance(p, Tensor) else math.log1p(p)


def damped(x: Tensor) -> Tensor:
    """min(0, x), for products with a gate that is 0 at -inf."""
    return neg(floor_at_lowest(x))


def split(x: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """`right` where x >= 0, `left` elsewhere."""
    return torch.where(x >= 0, right, left)


def leaky(x: Tensor, a: Number) -> Tensor:
    """x right of 0, a x left of it."""
    return split(x, x, a * x)


def elu(x: Tensor, a: Number = 1.0) -> Tensor:
    """x right of 0, a (e^x - 1) left of it."""
    return split(x, x, a * torch.expm1(neg(x)))


def tent(x: Tensor, a: Number) -> Tensor:
    """max(0, a - |x|)."""
    return pos(a - x.abs())


def softsign_left(x: Tensor, b: Number = 1.0) -> Tensor:
    """n / (1 - b n) of n = min(0, x): from -1/b at -inf to 0."""
    n = neg(x)
    # Far out the quotient of two huge numbers is the inverse of a sum of small ones.
    near, far = n.clamp(min=-1.0), n.clamp(max=-1.0)
    return torch.where(n > -1, near / (1 - b * near), 1 / (1 / far - b))


def inverse_root_left(x: Tensor, a: Number = 1.0) -> Tensor:
    """n / sqrt(1 + a n^2) of n = min(0, x): from -1/sqrt(a) at -inf to 0."""
    n = neg(x)
    near, far = n.clamp(min=-1.0), n.clamp(max=-1.0)
    return torch.where(n > -1, near * torch.rsqrt(1 + a * near.square()), -torch.rsqrt(far.reciprocal().square() + a))


def relu_and_sine(x: Tensor, a: Number, b: Number) -> Tensor:
    """max(0, x) + a sin(b x)."""
    y = pos(x) + a * torch.sin(finite(b * x))
    # A sine has no limit; the ramp hides that on the right only.
    return torch.where(x == -math.inf, math.nan, y)
