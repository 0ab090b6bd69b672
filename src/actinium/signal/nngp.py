"""The Gaussian process that a wide network with random weights is, and exact inference with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.elementwise_function import Elementwise, elementwise
from actinium.core.errors import InputError
from actinium.core.gaussian_moments import gaussian_mean
from actinium.signal.duals import closed_form, dual_activation, grouped

__all__ = ["NNGPKernel", "monte_carlo_kernel"]

Function = Callable[[Tensor], Tensor]


class NNGPKernel:
    """Covariance of the outputs of an infinitely wide network with random weights.

    The network is h^1 = W^1 x + b^1, h^l = W^l phi(h^(l-1)) + b^l, with weights of variance sw^2 / inputs and biases of
    variance sb^2; its kernel is K^1 = sb^2 + sw^2 <x, x'> / d and K^l = sb^2 + sw^2 E[phi(u) phi(v)] for u, v of
    covariance K^(l-1). ReLU-like functions, erf and linear ones are exact; others have an error of about 1e-8 a layer.

    Args:
        phi: elementwise activation function.
        depth: layers of weights; 1 is linear.
        sw: standard deviation of the weights times the root of the number of inputs.
        sb: standard deviation of the biases.

    Raises:
        InputError: depth below 1, sw not above 0, sb below 0, or `phi` is not elementwise.

    Source: Lee et al., 2018, Deep neural networks as Gaussian processes, section 2.3; Nait Saada, Naderi and Tanner,
    2023, theorem 1 (the same kernel for pseudo-iid weights).
    """

    def __init__(self, phi: Function, depth: int, sw: float, sb: float) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise InputError(f"depth counts the layers of weights, 1 or more, not {depth!r}")
        check_scales(sw, sb)
        self.phi, self.depth, self.sw, self.sb = phi, depth, float(sw), float(sb)
        self._f: Elementwise = elementwise(phi)

    def __repr__(self) -> str:
        return f"NNGPKernel({self._f.name}, depth={self.depth}, sw={self.sw:g}, sb={self.sb:g})"

    def __call__(self, X1: Any, X2: Any = None) -> Tensor:
        """The kernel of the last layer.

        Args:
            X1: inputs (n1, d).
            X2: inputs (n2, d); the first ones if not given.

        Returns:
            (n1, n2) in float64.

        Raises:
            InputError: no rows, widths that differ, NaN, or a variance that leaves float64 on its way.
        """
        return self._run(X1, X2, keep=False)[-1]

    def layers(self, X1: Any, X2: Any = None) -> Tensor:
        """The kernel of each layer, (depth, n1, n2)."""
        return torch.stack(self._run(X1, X2, keep=True))

    def posterior(self, X: Any, y: Any, X_new: Any, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Exact Bayesian regression.

        Args:
            X: inputs (n, d).
            y: targets (n,) or (n, k).
            X_new: inputs (m, d).
            noise: standard deviation of the targets around the function.

        Returns:
            mean (m,) or (m, k), and covariance (m, m) of the function, the same for each of the k.

        Raises:
            InputError: rows differ, or the kernel plus noise is singular (two equal inputs without noise).
        """
        X, X_new = matrix(X, "X"), matrix(X_new, "X_new")
        y = torch.as_tensor(np.asarray(y) if not isinstance(y, Tensor) else y).detach().cpu().double()
        if y.ndim not in (1, 2) or len(y) != len(X) or not bool(y.isfinite().all()):
            raise InputError(f"targets are finite, one to each of {len(X)} inputs, got shape {tuple(y.shape)}")
        if not np.isfinite(noise) or noise < 0:
            raise InputError(f"noise is a standard deviation, 0 or more, not {noise}")
        both = self(torch.cat([X, X_new]))
        n = len(X)
        known, cross, new = both[:n, :n], both[n:, :n], both[n:, n:]
        factor, info = torch.linalg.cholesky_ex(known + noise**2 * torch.eye(n, dtype=torch.float64))
        if int(info) != 0:
            raise InputError(
                "the kernel of the inputs is singular: two of them cannot be told apart at this depth; give some noise"
            )
        half = torch.linalg.solve_triangular(factor, cross.T, upper=False)
        targets = torch.linalg.solve_triangular(factor, y.reshape(n, -1), upper=False)
        return (half.T @ targets).reshape(len(X_new), *y.shape[1:]), new - half.T @ half

    def _run(self, X1: Any, X2: Any, keep: bool) -> list[Tensor]:
        one = matrix(X1, "X1")
        two = one if X2 is None else matrix(X2, "X2")
        if one.shape[1] != two.shape[1]:
            raise InputError(f"inputs have {one.shape[1]} and {two.shape[1]} features")
        scale = self.sw**2 / one.shape[1]
        q1, q2 = (self.sb**2 + scale * (x**2).sum(1) for x in (one, two))
        k = self.sb**2 + scale * one @ two.T
        # Of a symmetric matrix only one half is computed.
        where = torch.triu_indices(len(one), len(one), 1) if X2 is None else None
        out = [k if X2 is not None else _whole(k[where[0], where[1]], q1, where)]
        for _ in range(self.depth - 1):
            if where is None:
                pairs = self._next(q1[:, None], q2[None, :], k)
            else:
                i, j = where
                pairs = self._next(q1[i], q1[j], k[i, j]) if len(i) else torch.zeros(0, dtype=torch.float64)
            q1, q2 = self._variances(q1), (q2 if where is not None else self._variances(q2))
            k = pairs if where is None else _whole(pairs, q1, where)
            out = [*out, k] if keep else [k]
        return out

    def _next(self, q1: Tensor, q2: Tensor, k: Tensor) -> Tensor:
        size = (q1 * q2).sqrt()
        c = torch.where(size > 0, k / size.clamp(min=1e-300), torch.zeros_like(k)).clamp(-1, 1)
        return self.sb**2 + self.sw**2 * dual_activation(self._f, q1, q2, c)

    def _variances(self, q: Tensor) -> Tensor:
        form = closed_form(self._f)
        if form is not None:
            moment = form.product(q, q, torch.ones_like(q))
        else:
            few, index = grouped(q)
            moment = gaussian_mean(self._f, few, power=2)[index]
        found = self.sb**2 + self.sw**2 * moment
        if not bool(found.isfinite().all()):
            raise InputError("the variance of the signal leaves float64 at this depth")
        return found


def _whole(pairs: Tensor, diagonal: Tensor, where: Tensor) -> Tensor:
    """A symmetric matrix from its upper half and its diagonal."""
    out = torch.diag(diagonal)
    out[where[0], where[1]] = pairs
    out[where[1], where[0]] = pairs
    return out


def monte_carlo_kernel(
    phi: Function,
    depth: int,
    sw: float,
    sb: float,
    X: Any,
    *,
    width: int = 1024,
    reps: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The kernel estimated from random networks of finite width: mean over units and networks of h h'.

    Args:
        phi, depth, sw, sb: as `NNGPKernel`.
        X: inputs (n, d).
        width: units of each layer.
        reps: networks.
        generator: of the weights; seeded with 0 if not given.

    Returns:
        (n, n) in float64, for layer `depth`. Its error is of order 1 / sqrt(width * reps), its bias of order
        depth / width.

    Raises:
        InputError: as `NNGPKernel`, or width or reps below 1.
    """
    kernel = NNGPKernel(phi, depth, sw, sb)
    if min(width, reps) < 1:
        raise InputError(f"width and reps are 1 or more, got {width} and {reps}")
    x = matrix(X, "X")
    generator = generator or torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for _ in range(reps):
        h = x
        for layer in range(depth):
            below = kernel._f(h) if layer else h
            weight = normal(below.shape[1], width) * (sw / below.shape[1] ** 0.5)
            h = below @ weight + sb * normal(1, width)
        total += h @ h.T / width
    return total / reps


def check_scales(sw: float, sb: float) -> None:
    """Refuse standard deviations that are none.

    Raises:
        InputError: sw is not above 0, sb is below 0, or one is not finite.
    """
    if not (np.isfinite(sw) and sw > 0):
        raise InputError(f"sw is a standard deviation above 0, not {sw}")
    if not (np.isfinite(sb) and sb >= 0):
        raise InputError(f"sb is a standard deviation, 0 or more, not {sb}")


def matrix(x: Any, name: str) -> Tensor:
    """Inputs as rows (n, d) in float64.

    Raises:
        InputError: not a table of real numbers, no rows or columns, or NaN.
    """
    t = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).detach().cpu()
    if t.ndim != 2 or 0 in t.shape or t.is_complex():
        raise InputError(f"{name} is a table (rows, features) of real numbers, got shape {tuple(t.shape)}")
    t = t.double()
    if not bool(t.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite values")
    return t
