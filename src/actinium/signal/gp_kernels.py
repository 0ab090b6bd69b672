"""Kernels of Gaussian processes through which gradients go back to the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.rows import as_rows
from actinium.signal.ntk import arc_cosine

__all__ = ["RBF", "ReLUKernel", "UnitDiagonal"]

Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 16


def _inputs(X1: Any, X2: Any) -> tuple[Tensor, Tensor]:
    pair = []
    for values, what in ((X1, "X1"), (X2, "X2")):
        rows = as_rows(values, what, flat=False, dtype=torch.float64)
        pair.append(values.double() if isinstance(values, Tensor) else rows)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise InputError(f"X1 has {pair[0].shape[1]} features and X2 has {pair[1].shape[1]}")
    return pair[0], pair[1]


class RBF:
    """exp(-||x - x'||^2 / (2 length^2)).

    Args:
        length: above 0, in the units of the inputs.

    Raises:
        InputError: length is not above 0.
    """

    def __init__(self, length: float = 1.0) -> None:
        if not (math.isfinite(length) and length > 0):
            raise InputError(f"length is above 0, got {length}")
        self.length = length

    def __repr__(self) -> str:
        return f"RBF({self.length:g})"

    def __call__(self, X1: Any, X2: Any) -> Tensor:
        """Kernel (n1, n2) of inputs (n1, d), (n2, d), in float64."""
        a, b = _inputs(X1, X2)
        # Of centred inputs the difference of squares loses fewer digits.
        centre = b.detach().mean(0)
        a, b = a - centre, b - centre
        square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return torch.exp(-square.clamp(min=0) / (2 * self.length**2))


class ReLUKernel:
    """The kernel of `NNGPKernel(torch.relu, depth, sw, sb)`, with gradients in the inputs.

    Args:
        depth: layers of weights; 1 is linear.
        sw: standard deviation of the weights times the root of the number of inputs.
        sb: standard deviation of the biases.

    Raises:
        InputError: depth below 1, sw not above 0, or sb below 0.

    Source: Cho and Saul, 2009, eq. 6; Lee et al., 2018, section 2.3.
    """

    def __init__(self, depth: int, sw: float = math.sqrt(2), sb: float = 0.0) -> None:
        if depth < 1 or not sw > 0 or not sb >= 0:
            raise InputError(f"expected depth >= 1, sw > 0 and sb >= 0, got {depth}, {sw}, {sb}")
        self.depth, self.sw, self.sb = depth, sw, sb

    def __repr__(self) -> str:
        return f"ReLUKernel({self.depth}, {self.sw:g}, {self.sb:g})"

    def __call__(self, X1: Any, X2: Any) -> Tensor:
        """Kernel (n1, n2) of inputs (n1, d), (n2, d) other than zero, in float64.

        Raises:
            InputError: a row is zero and there are no biases: it has no direction.
        """
        a, b = _inputs(X1, X2)
        bias, weight = self.sb**2, self.sw**2
        k = bias + weight * a @ b.T / a.shape[1]
        p, q = (bias + weight * (x**2).sum(1) / x.shape[1] for x in (a, b))
        if min(float(p.detach().min()), float(q.detach().min())) == 0:
            raise InputError("a row is zero, and without biases the kernel has no gradient there")
        for _ in range(self.depth - 1):
            size = torch.sqrt(p[:, None] * q)
            k = bias + weight / 2 * size * arc_cosine(k / size)[1]
            p, q = bias + weight * p / 2, bias + weight * q / 2
        return k


class UnitDiagonal:
    """K(x, x') / sqrt(K(x, x) K(x', x')): the correlation of a process, which has variance 1 everywhere.

    Args:
        kernel: (n1, d), (n2, d) -> (n1, n2).
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __repr__(self) -> str:
        return f"UnitDiagonal({self.kernel!r})"

    def __call__(self, X1: Tensor, X2: Tensor) -> Tensor:
        """Kernel (n1, n2).

        Raises:
            InputError: the variance of a row is not above 0.
        """
        k = self.kernel(X1, X2)
        if X1 is X2:
            p = q = k.diagonal()
        else:
            p, q = self._variances(X1), self._variances(X2)
        if not bool((p > 0).all() and (q > 0).all()):
            raise InputError("the kernel gives a row no variance, so it has no correlations")
        return k / torch.sqrt(p[:, None] * q)

    def _variances(self, x: Tensor) -> Tensor:
        return torch.cat([self.kernel(rows, rows).diagonal() for rows in x.split(ROWS)])
