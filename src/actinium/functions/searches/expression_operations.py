"""The unary and binary functions of Swish's search space.

Source: Ramachandran, Zoph and Le, 2017, arXiv 1710.05941, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BINARY", "UNARY"]

EPS = 1e-3
"""What is added in logarithms and denominators."""


@dataclass(frozen=True, eq=False)
class Operation:
    """A function of the space: of one or two tensors, and of beta where it has one.

    How tightly a formula holds together is 0 for a sum, 1 for a product, 2 for "sin x", 3 for a power, 4 for what needs
    no parentheses anywhere. `level` is that of the function's own formula, `needs` what its arguments need at least.
    """

    function: Callable[..., Tensor]
    formal: str
    latex: str
    level: int
    needs: tuple[int, ...]
    beta: bool = False
    positive: bool = False
    start: float = 1.0


def _root(x: Tensor) -> Tensor:
    # The slope at 0 is infinite, which times the slope 0 of what is inside would give NaN.
    return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).sqrt())


def _away_from_zero(x: Tensor) -> Tensor:
    return x + torch.where(x < 0, -EPS, EPS)


def _named(function: Callable[[Tensor], Tensor], formal: str, latex: str) -> Operation:
    return Operation(function, f"{formal}({{0}})", latex + " {0}", 2, (4,))


_UNARY: dict[str, Operation] = {
    "x": Operation(lambda x: x, "{0}", "{0}", 4, (0,)),
    "neg": Operation(torch.neg, "-{0}", "-{0}", 0, (1,)),
    "abs": Operation(torch.abs, "Abs({0})", r"\left|{0}\right|", 4, (0,)),
    "square": Operation(torch.square, "{0}**2", "{0}^2", 3, (4,)),
    "cube": Operation(lambda x: x * x * x, "{0}**3", "{0}^3", 3, (4,)),
    "sqrt": Operation(_root, "sqrt({0})", r"\sqrt{{{0}}}", 4, (0,)),
    "scale": Operation(lambda x, b: b * x, "{b}*{0}", r"{b} {0}", 1, (1,), beta=True),
    "shift": Operation(lambda x, b: x + b, "{0}+{b}", r"{0}+{b}", 0, (0,), beta=True),
    "log": Operation(
        lambda x: torch.log(x.abs() + EPS), f"log(Abs({{0}})+{EPS})", r"\log(\left|{0}\right|+\varepsilon)", 4, (0,)
    ),
    "exp": Operation(torch.exp, "exp({0})", r"e^{{{0}}}", 3, (0,)),
    "sin": _named(torch.sin, "sin", r"\sin"),
    "cos": _named(torch.cos, "cos", r"\cos"),
    "sinh": _named(torch.sinh, "sinh", r"\sinh"),
    "cosh": _named(torch.cosh, "cosh", r"\cosh"),
    "tanh": _named(torch.tanh, "tanh", r"\tanh"),
    "asinh": _named(torch.asinh, "asinh", r"\operatorname{{arsinh}}"),
    "atan": _named(torch.atan, "atan", r"\arctan"),
    # torch.sinc is sin(pi x) / (pi x).
    "sinc": _named(lambda x: torch.sinc(x / math.pi), "sinc", r"\operatorname{{sinc}}"),
    "relu": Operation(torch.relu, "Max({0},0)", r"\max({0},0)", 4, (0,)),
    "neg_part": Operation(lambda x: -torch.relu(-x), "Min({0},0)", r"\min({0},0)", 4, (0,)),
    "sigmoid": Operation(torch.sigmoid, "1/(1+exp(-{0}))", r"\sigma({0})", 4, (0,)),
    "softplus": Operation(functional.softplus, "log(1+exp({0}))", r"\log(1+e^{{{0}}})", 4, (0,)),
    "gauss": Operation(lambda x: torch.exp(-x * x), "exp(-{0}**2)", r"e^{{-{0}^2}}", 3, (4,)),
    "erf": _named(torch.erf, "erf", r"\operatorname{{erf}}"),
    "beta": Operation(lambda x, b: b + torch.zeros_like(x), "{b}", "{b}", 4, (0,), beta=True),
}
_BINARY: dict[str, Operation] = {
    "add": Operation(torch.add, "{0}+{1}", "{0}+{1}", 0, (0, 1)),
    "mul": Operation(torch.mul, "{0}*{1}", r"{0}\,{1}", 1, (3, 1)),
    "sub": Operation(torch.sub, "{0}-{1}", "{0}-{1}", 0, (0, 1)),
    "div": Operation(
        lambda a, b: a / (b + EPS), f"{{0}}/({{1}}+{EPS})", r"\frac{{{0}}}{{{1}+\varepsilon}}", 3, (0, 0)
    ),
    "max": Operation(torch.maximum, "Max({0},{1})", r"\max({0},{1})", 4, (0, 0)),
    "min": Operation(torch.minimum, "Min({0},{1})", r"\min({0},{1})", 4, (0, 0)),
    "gate": Operation(lambda a, b: torch.sigmoid(a) * b, "{1}/(1+exp(-{0}))", r"\sigma({0})\,{1}", 1, (0, 1)),
    "rbf": Operation(
        lambda a, b, beta: torch.exp(-beta * (a - b).square()),
        "exp(-{b}*({0}-{1})**2)", r"e^{{-{b}({0}-{1})^2}}", 3, (0, 1), beta=True, positive=True,
    ),
    "laplace": Operation(
        lambda a, b, beta: torch.exp(-beta * (a - b).abs()),
        "exp(-{b}*Abs({0}-{1}))", r"e^{{-{b}\left|{0}-{1}\right|}}", 3, (0, 1), beta=True, positive=True,
    ),
    # From 1, where the paper's other betas start, the second argument would have no effect.
    "mix": Operation(
        lambda a, b, beta: beta * a + (1 - beta) * b, "{b}*{0}+(1-{b})*{1}", r"{b} {0}+(1-{b}) {1}", 0, (1, 1),
        beta=True, start=0.5,
    ),
}  # fmt: skip
_SAFE: dict[str, Operation] = {
    "safe_sqrt": Operation(lambda x: _root(x.abs()), "sqrt(Abs({0}))", r"\sqrt{{\left|{0}\right|}}", 4, (0,)),
    "safe_div": Operation(
        lambda a, b: a / _away_from_zero(b),
        f"{{0}}/({{1}}+{EPS}*Piecewise((-1,{{1}}<0),(1,True)))", r"\frac{{{0}}}{{{1}\pm\varepsilon}}", 3, (0, 0),
    ),
}  # fmt: skip
OPERATIONS = _UNARY | _BINARY | _SAFE

UNARY: tuple[str, ...] = tuple(_UNARY)
"""Names of the 25 unary functions; "x" is the identity, "beta" a trainable constant."""
BINARY: tuple[str, ...] = tuple(_BINARY)
"""Names of the 10 binary functions."""
