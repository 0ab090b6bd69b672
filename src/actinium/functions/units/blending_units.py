"""Weighted sums of other activation functions: blending units, linear combinations, compound and Rowdy units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from actinium.core.errors import InputError, unknown
from actinium.functions.units.array_units import ArrayUnit, Function, member

__all__ = ["CompoundUnit", "KroneckerUnit", "LinearCombination", "PoolUnit", "RowdyUnit"]

BLENDING_POOL = ("tanh", "elu", "relu", "identity", "swish")
COMBINED_POOL = ("relu", "sigmoid", "tanh", "softsign")
CONSTRAINTS = ("none", "sum1", "abs", "softmax", "clip", "sigmoid", "norm")
LEAST = 1e-12


def constrained(a: Tensor, constraint: str) -> Tensor:
    """Weights (n, ...) as a constraint wants them, over the first dimension.

    "sum1": divided by their sum; "abs": by the sum of their sizes; "norm": by their Euclidean norm; "clip": negative
    ones are 0, the others divided by their sum; "softmax" and "sigmoid" of them; "none".
    """
    if constraint == "sum1":
        total = a.sum(0, keepdim=True)
        return a / torch.where(total.abs() < LEAST, LEAST, total)
    if constraint == "abs":
        return a / a.abs().sum(0, keepdim=True).clamp(min=LEAST)
    if constraint == "norm":
        return a / torch.linalg.vector_norm(a, dim=0, keepdim=True).clamp(min=LEAST)
    if constraint == "clip":
        kept = torch.relu(a)
        return kept / kept.sum(0, keepdim=True).clamp(min=LEAST)
    if constraint == "softmax":
        return torch.softmax(a, dim=0)
    return torch.sigmoid(a) if constraint == "sigmoid" else a


class PoolUnit(ArrayUnit):
    """A pool of functions g_j and, for each, weights.

    Args:
        pool: names of the catalogue, or functions that keep the shape.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: the pool is empty, or holds what is no function.
        UnknownNameError: a name is not in the catalogue.
    """

    def __init__(
        self, pool: Sequence[str | Function] = BLENDING_POOL, num_parameters: int = 1, channel_dim: int = 1
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if isinstance(pool, str) or not len(pool):
            raise InputError(f"a pool holds one function or more, got {pool!r}")
        self.pool = tuple(pool)
        self.functions = tuple(member(g) for g in self.pool)

    def extra_repr(self) -> str:
        """The pool, and shapes of the weights."""
        names = ", ".join(g if isinstance(g, str) else getattr(g, "__name__", type(g).__name__) for g in self.pool)
        return f"[{names}], {super().extra_repr()}"


class LinearCombination(PoolUnit):
    """sum_j a_j g_j(x) + b with learnt a, b: adaptive blending units and their relatives.

    Args:
        pool: names of the catalogue, or functions.
        constraint: on the weights a of each channel: "none"; "sum1", "abs", "clip", "softmax" (Sütfeld's); "norm"
            (NormLinComb); "sigmoid" (gated units).
        start: first value of every a; 1 / n if not given.
        bias: whether there is a b, which starts at 0.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: unknown constraint, empty pool.

    Source: Sütfeld et al., 2020 (ABU, its five normalisations); Pishchik, 2023 (LinComb, NormLinComb); Kunc and Kléma,
    2024 (APAF, GABU).
    """

    def __init__(
        self,
        pool: Sequence[str | Function] = BLENDING_POOL,
        constraint: str = "none",
        start: float | None = None,
        bias: bool = False,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(pool, num_parameters, channel_dim)
        if constraint not in CONSTRAINTS:
            raise InputError(unknown("constraint", constraint, list(CONSTRAINTS)))
        self.constraint = constraint
        n = len(self.functions)
        self.learn("a", torch.full((n,), 1 / n if start is None else float(start)))
        if bias:
            self.learn("b", torch.zeros(()))

    def response(self, x: Tensor, a: Tensor, b: Tensor | None = None) -> Tensor:
        """The sum at x with weights (n, ...)."""
        weights = constrained(a, self.constraint)
        total = sum(w * g(x) for w, g in zip(weights, self.functions, strict=True))
        return total if b is None else total + b


class KroneckerUnit(PoolUnit):
    """sum_j a_j g_j(b_j x), the activation of a deep Kronecker network.

    Args:
        pool: names of the catalogue, or functions.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Source: Jagtap et al., 2022.
    """

    def __init__(
        self, pool: Sequence[str | Function] = BLENDING_POOL, num_parameters: int = 1, channel_dim: int = 1
    ) -> None:
        super().__init__(pool, num_parameters, channel_dim)
        self.learn("a", torch.ones(len(self.functions)))
        self.learn("b", torch.ones(len(self.functions)))

    def response(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The sum at x with weights (n, ...)."""
        return sum(w * g(rate * x) for w, rate, g in zip(a, b, self.functions, strict=True))


class CompoundUnit(PoolUnit):
    """Mean of shifted and scaled functions: (1/k) sum_j f_j(e^(a_j) x + b_j), or with weights e^(w_j).

    Increasing as long as the functions are, so that it can be inverted.

    Args:
        pool: names of the catalogue, or functions.
        weighted: whether the mean has learnt weights e^(w_j) (TCAv2).
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Source: Baggenstoss, 2022 (TCA) and 2023 (TCAv2).
    """

    def __init__(
        self,
        pool: Sequence[str | Function] = BLENDING_POOL,
        weighted: bool = False,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(pool, num_parameters, channel_dim)
        for name in ("a", "b", "w") if weighted else ("a", "b"):
            self.learn(name, torch.zeros(len(self.functions)))

    def response(self, x: Tensor, a: Tensor, b: Tensor, w: Tensor | None = None) -> Tensor:
        """The mean at x with weights (n, ...)."""
        parts = [f(torch.exp(rate) * x + shift) for f, rate, shift in zip(self.functions, a, b, strict=True)]
        if w is None:
            return sum(parts) / len(parts)
        return sum(share * part for share, part in zip(torch.softmax(w, dim=0), parts, strict=True))


class RowdyUnit(ArrayUnit):
    """g(x) + sum_j a_j c sin(j c x): a base function and n waves.

    Args:
        base: name of the catalogue, or a function.
        n: how many waves.
        c: scale of height and frequency, held fixed.
        a: first height of every wave.
        wave: "sin" or "cos".
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: n is below 1, c is not positive, or there is no such wave.

    Source: Jagtap et al., 2022.
    """

    def __init__(
        self,
        base: str | Function = "tanh",
        n: int = 5,
        c: float = 1.0,
        a: float = 0.1,
        wave: str = "sin",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if n < 1 or not 0 < c < math.inf:
            raise InputError(f"a Rowdy unit has one wave or more and a positive scale, got n={n}, c={c}")
        if wave not in ("sin", "cos"):
            raise InputError(unknown("wave", wave, ["sin", "cos"]))
        self.base, self.c, self.wave = member(base), float(c), wave
        self.learn("a", torch.full((n,), float(a)))

    def response(self, x: Tensor, a: Tensor) -> Tensor:
        """The sum at x with heights (n, ...)."""
        largest = torch.finfo(x.dtype).max
        wave = torch.sin if self.wave == "sin" else torch.cos
        total = self.base(x)
        for j, height in enumerate(a, 1):
            total = total + height * self.c * wave((j * self.c * x).clamp(-largest, largest))
        return total
