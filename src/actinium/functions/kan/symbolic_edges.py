"""Formulas in the place of learnt functions of one variable: c f(a x + b) + d for an elementary function f."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.units.array_units import member

__all__ = ["ELEMENTARY", "SymbolicEdge", "SymbolicFit", "fit_symbolic"]

ELEMENTARY: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "x": lambda x: x,
        "x^2": torch.square,
        "x^3": lambda x: x**3,
        "x^4": lambda x: x**4,
        "1/x": lambda x: 1 / x,
        "sqrt": torch.sqrt,
        "log": torch.log,
        "exp": torch.exp,
        "sin": torch.sin,
        "tanh": torch.tanh,
        "abs": torch.abs,
        "gaussian": lambda x: torch.exp(-x.square()),
    }
)
"""Functions that are tried where none are named."""


@dataclass(frozen=True)
class SymbolicFit:
    """c f(a x + b) + d for one function f.

    Attributes:
        name: of f.
        r2: share of the variance that it explains.
        a, b, c, d: the numbers.
    """

    name: str
    r2: float
    a: float
    b: float
    c: float
    d: float

    @property
    def formula(self) -> str:
        """As text, of x."""
        return self.in_terms_of("x")

    def in_terms_of(self, x: str) -> str:
        """As text, of something else than x."""
        inner = f"{self.a:.4g} {x} {self.b:+.4g}"
        outer = {"x": f"({inner})", "1/x": f"/({inner})"}.get(self.name)
        if outer is None:
            outer = f"({inner}){self.name[1:]}" if self.name.startswith("x^") else f"{self.name}({inner})"
        return f"{self.c:.4g} {outer} {self.d:+.4g}"


class SymbolicEdge(nn.Module):
    """c f(a x + b) + d with learnt a, b, c and d; NaN or infinite where f is, as the logarithm of what is below 0.

    Args:
        fit: where they start.
    """

    def __init__(self, fit: SymbolicFit) -> None:
        super().__init__()
        self.name = fit.name
        self.function = _function(fit.name)
        self.numbers = nn.Parameter(torch.tensor([fit.a, fit.b, fit.c, fit.d]))

    @classmethod
    def from_name(cls, code: Tensor) -> Self:
        """An edge of the function whose name a state holds."""
        return cls(SymbolicFit(bytes(code.tolist()).decode(), 1.0, 1.0, 0.0, 1.0, 0.0))

    def get_extra_state(self) -> Tensor:
        """The name of the function, as bytes."""
        return torch.tensor(list(self.name.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the function of a state."""
        self.name = bytes(state.tolist()).decode()
        self.function = _function(self.name)

    def forward(self, x: Tensor) -> Tensor:
        """The formula at x."""
        a, b, c, d = self.numbers.to(x.dtype)
        return c * self.function(a * x + b) + d

    @property
    def fit(self) -> SymbolicFit:
        """The formula with the numbers as they are now; its `r2` is not known any more and NaN."""
        return SymbolicFit(self.name, math.nan, *self.numbers.tolist())

    @property
    def formula(self) -> str:
        """As text, with the numbers as they are now."""
        return self.fit.formula


def _function(name: str) -> Callable[[Tensor], Tensor]:
    return ELEMENTARY[name] if name in ELEMENTARY else member(name)


def fit_symbolic(
    x: Tensor,
    y: Tensor,
    functions: tuple[str, ...] | None = None,
    reach: float = 10.0,
    points: int = 41,
    rounds: int = 5,
) -> list[SymbolicFit]:
    """The formulas c f(a x + b) + d that are nearest to values, best first.

    a and b are searched on a grid that is drawn closer around its best point again and again; c and d are then a linear
    problem. Pairs (a, b) where f is not finite at some x are left out, and functions without any others too.

    Args:
        x, y: values (n,), three or more.
        functions: names of `ELEMENTARY` or of the catalogue; all of `ELEMENTARY` if not given.
        reach: a and b lie between -reach and reach at first.
        points: of the grid, along each of the two.
        rounds: how often it is drawn closer.

    Raises:
        InputError: the values are fewer than three, not finite, or x or y is constant.
        UnknownNameError: there is no such function.

    Source: Liu et al., 2024, arXiv 2404.19756, section 2.5.1.
    """
    x, y = (t.detach().double().flatten().cpu() for t in (x, y))
    if len(x) != len(y) or len(x) < 3 or not (x.isfinite().all() and y.isfinite().all()):
        raise InputError(f"a formula is fitted to three finite pairs or more, got {len(x)} x and {len(y)} y")
    if float(x.max() - x.min()) == 0 or float(y.max() - y.min()) == 0:
        raise InputError("x or y is constant: there is no formula to find")
    if points < 3 or rounds < 1 or not reach > 0:
        raise InputError(f"three points, a round and a positive reach are wanted, got {points}, {rounds} and {reach}")
    found = [_fit(name, x, y, reach, points, rounds) for name in (ELEMENTARY if functions is None else functions)]
    return sorted((fit for fit in found if fit is not None), key=lambda fit: -fit.r2)


def _fit(name: str, x: Tensor, y: Tensor, reach: float, points: int, rounds: int) -> SymbolicFit | None:
    f = _function(name)
    # Some 100 places tell the pair; the linear part uses all of them.
    few = torch.linspace(0, len(x) - 1, min(len(x), 100)).round().long()
    seen, target = x[few], y[few] - y[few].mean()
    middle, width = (0.0, 0.0), reach
    if name == "x":
        middle, rounds = (1.0, 0.0), 0
    for _ in range(rounds):
        a, b = (torch.linspace(m - width, m + width, points, dtype=x.dtype) for m in middle)
        values = f(a[:, None, None] * seen + b[:, None])
        off = values - values.mean(-1, keepdim=True)
        norm = off.square().sum(-1)
        r2 = (off @ target).square() / (norm * target.square().sum())
        # A function that is nearly constant explains what rounding made of it.
        usable = values.isfinite().all(-1) & (norm > 1e-12 * (1 + values.square().sum(-1)))
        r2 = torch.where(usable, r2, -1.0)
        best = int(r2.argmax())
        if float(r2.flatten()[best]) < 0:
            return None
        middle = (float(a[best // points]), float(b[best % points]))
        width *= 4 / (points - 1)
    values = f(middle[0] * x + middle[1])
    design = torch.stack([values, torch.ones_like(values)], -1)
    if not values.isfinite().all():
        return None
    c, d = torch.linalg.lstsq(design, y).solution.tolist()
    left = (y - c * values - d).square().sum() / (y - y.mean()).square().sum()
    return SymbolicFit(name, float(1 - left), *middle, c, d)
