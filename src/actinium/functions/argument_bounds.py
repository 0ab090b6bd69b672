"""Parameters of activation functions as they come: Python numbers, or tensors that training has moved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LEAST", "at_least", "at_most", "between", "logarithm", "tensor_like"]

LEAST = 1e-6
"""Smallest value of a parameter that has to be positive; training cannot push it below."""


def tensor_like(value: Tensor | float, x: Tensor) -> Tensor:
    """A parameter as a tensor of the device of x, and of its dtype if it was a number."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=x.dtype, device=x.device)


def at_least(value: Tensor | float, low: float = LEAST) -> Tensor | float:
    """A parameter, not below `low`: its domain is checked where it is set, and here once training has moved it."""
    return value.clamp(min=low) if isinstance(value, Tensor) else max(value, low)


def at_most(value: Tensor | float, high: float) -> Tensor | float:
    """A parameter, not above `high`."""
    return value.clamp(max=high) if isinstance(value, Tensor) else min(value, high)


def logarithm(value: Tensor | float) -> Tensor | float:
    """Natural logarithm of a positive parameter."""
    return torch.log(value) if isinstance(value, Tensor) else math.log(value)


def between(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """min(max(x, low), high) for numbers and tensors alike, with the gradient going to the one that is taken."""
    return torch.where(x < low, low, torch.where(x > high, high, x))
