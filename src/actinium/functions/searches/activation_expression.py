"""Functions of one variable as expressions: their text, values, modules and formulas.

swish = ac.functions.ActivationExpression.from_string("mul(x, sigmoid(beta*x))")
swish.to_module(64)                       # a module with a trainable beta for each of 64 channels

Source: Ramachandran, Zoph and Le, 2017, arXiv 1710.05941.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.functions.searches.expression_operations import EPS, OPERATIONS, Operation
from actinium.functions.units.channel_units import ChannelUnit

__all__ = ["PRESETS", "ActivationExpression", "ExpressionUnit"]

PROBE = torch.linspace(-5.0, 5.0, 1001, dtype=torch.float64)
KEY_POINTS = torch.linspace(-5.0, 5.0, 101, dtype=torch.float64) * (1 - 1e-3 / math.pi)
"""Off round numbers, so that values do not lie where rounding turns."""
KEY_BETAS = (0.6180339887, 1.4142135624, 0.8862269255, 1.2020569032, 0.5772156649, 1.7320508076)
ORDERED = 3
"""Up to so many betas an expression's key does not depend on the order in which they are written."""


PRESETS: dict[str, str] = {
    "x sigmoid(beta x)": "mul(x, sigmoid(beta*x))",
    "max(x, sigmoid(x))": "max(x, sigmoid(x))",
    "cos(x) - x": "sub(cos(x), x)",
    "min(x, sin(x))": "min(x, sin(x))",
    "atan(x)^2 - x": "sub(square(atan(x)), x)",
    "max(x, tanh(x))": "max(x, tanh(x))",
    "sinc(x) + x": "add(sinc(x), x)",
    "x asinh(x)^2": "mul(x, square(asinh(x)))",
}
"""The best functions that the paper reports."""


@dataclass(frozen=True)
class Node:
    """A function and what it is applied to; the input has the name "input" and no arguments."""

    name: str
    args: tuple[Node, ...] = ()


INPUT = Node("input")


@dataclass(frozen=True)
class ActivationExpression:
    """A function of one variable, written with the functions of the search space.

    Every beta is a parameter of its own. They are numbered in the order of the text, that of a function before those of
    its arguments.

    Args:
        root: its outermost function.
    """

    root: Node

    @classmethod
    def from_string(cls, text: str, safe: bool = False) -> ActivationExpression:
        """Read an expression such as "mul(x, sigmoid(beta*x))" or "x * sigmoid(beta*x)".

        Args:
            text: calls of the functions in UNARY and BINARY; also + - * / (which is `div`), **2, **3, max(..., 0) and
                min(..., 0). `beta*x` is `scale`, `x + beta` is `shift`.
            safe: roots of the absolute value, denominators that keep their distance from 0.

        Raises:
            InputError: the text is no expression.
            UnknownNameError: it has a function or variable that is not in the space.
        """
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{text!r} is no expression: {error}") from None
        return cls(made_safe(_parsed(tree, text)) if safe else _parsed(tree, text))

    def __str__(self) -> str:
        return _text(self.root)

    @functools.cached_property
    def _betas(self) -> tuple[Operation, ...]:
        return tuple(OPERATIONS[n.name] for n in _walk(self.root) if n.name != "input" and OPERATIONS[n.name].beta)

    @property
    def _apart(self) -> tuple[float, ...]:
        """Betas that are no round numbers, and different up to six."""
        return (KEY_BETAS * self.num_betas)[: self.num_betas]

    @property
    def num_betas(self) -> int:
        """How many trainable parameters it has for each channel."""
        return len(self._betas)

    @property
    def starts(self) -> tuple[float, ...]:
        """Initial values of the betas: 1, and 0.5 where two arguments are interpolated."""
        return tuple(op.start for op in self._betas)

    @property
    def positive(self) -> tuple[bool, ...]:
        """Which betas have to stay positive: those inside of exp(-beta ...)."""
        return tuple(op.positive for op in self._betas)

    def __call__(self, x: Tensor, betas: Sequence[Any] | None = None) -> Tensor:
        """The function at x, at its initial betas if none are given.

        Raises:
            InputError: there are not as many betas as the expression has.
        """
        given = self.starts if betas is None else betas
        if len(given) != self.num_betas:
            raise InputError(f"{self} has {self.num_betas} betas, not {len(given)}")
        return _value(self.root, x, iter(given), None)

    def to_module(self, num_channels: int = 1, channel_dim: int = -1) -> ExpressionUnit:
        """A module with trainable betas, one of each for every channel.

        Args:
            num_channels: 1 for betas that all channels share.
            channel_dim: dimension of the channels.
        """
        return ExpressionUnit(self, num_channels, channel_dim)

    def latex(self) -> str:
        """The formula."""
        number = itertools.count(1)
        several = self.num_betas > 1
        return _formula(self.root, lambda: rf"\beta_{next(number)}" if several else r"\beta")[0]

    def sympy(self) -> Any:
        """The expression in sympy, of x and beta_1, beta_2, ... (beta, if there is one)."""
        import sympy

        number = itertools.count(1)
        names = ["beta"] if self.num_betas == 1 else [f"beta_{i + 1}" for i in range(self.num_betas)]
        symbols = {n: sympy.Symbol(n, real=True) for n in ("x", *names)}
        text = _formal(self.root, lambda: names[next(number) - 1])
        return sympy.sympify(text, locals=symbols)

    def canonical_key(self) -> str:
        """A key that expressions share whose values are equal to 1e-6 on -5..5 for all betas.

        Betas are told apart; up to three may be written in any order.
        """
        values = self._apart
        orders = list(itertools.permutations(values)) if self.num_betas <= ORDERED else [values]
        found = []
        for betas in orders:
            y = self(KEY_POINTS, betas).detach().numpy()
            # Adding 0 makes -0 the same bytes as 0.
            found.append((np.round(y, 6) + 0.0).tobytes())
        return hashlib.sha256(min(found)).hexdigest()[:20]

    def problem(self, lo: float = -5.0, hi: float = 5.0) -> str | None:
        """Why the function cannot be used on an interval, in float32: a value or slope that is not finite, or a pole.

        Raises:
            InputError: the interval is empty.
        """
        if not lo < hi:
            raise InputError(f"an interval needs a lower end below the upper one, not {lo:g}..{hi:g}")
        x = torch.cat([torch.linspace(lo, hi, 1001), torch.zeros(1 if lo <= 0 <= hi else 0)]).sort().values
        x.requires_grad_()
        poles: list[Tensor] = []
        with torch.enable_grad():
            y = _value(self.root, x, iter(self.starts), poles)
            slope = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)
        for what, values in (("value", y), ("slope", slope)):
            bad = ~values.isfinite()
            if bool(bad.any()):
                return f"its {what} is not finite at x = {float(x[bad][0].detach()):.3g}"
        for below in poles:
            turn = (below[1:] * below[:-1] <= 0).nonzero()
            if len(turn):
                return f"a denominator is 0 near x = {float(x[turn[0, 0]].detach()):.3g}"
        return None

    def domain_ok(self, lo: float = -10.0, hi: float = 10.0) -> bool:
        """Whether `problem` finds nothing."""
        return self.problem(lo, hi) is None

    def trivial(self) -> str | None:
        """ "identity" or "constant" where the function is one whatever its betas are, else None."""
        values = [self(PROBE, betas).detach() for betas in (self.starts, self._apart)]
        if all(bool(((y - PROBE).abs() <= 1e-6).all()) for y in values):
            return "identity"
        if all(bool(((y - y[0]).abs() <= 1e-6).all()) for y in values):
            return "constant"
        return None


class ExpressionUnit(ChannelUnit):
    """An expression with trainable betas.

    Betas that have to stay positive are trained as the inverse of softplus of their values.

    Args:
        expression: an `ActivationExpression`, or its text.
        num_parameters: 1, or the size of `channel_dim`: betas for each channel.
        channel_dim: dimension of the channels.
    """

    def __init__(self, expression: ActivationExpression | str, num_parameters: int = 1, channel_dim: int = -1) -> None:
        super().__init__(num_parameters, channel_dim)
        self.expression = ActivationExpression.from_string(expression) if isinstance(expression, str) else expression
        pairs = zip(self.expression.starts, self.expression.positive, strict=True)
        starts = [math.log(math.expm1(s)) if positive else s for s, positive in pairs]
        self.raw = nn.ParameterList(nn.Parameter(torch.full((num_parameters,), s)) for s in starts)

    @property
    def betas(self) -> list[Tensor]:
        """The betas, (num_parameters,) each."""
        return [
            functional.softplus(p) if positive else p
            for p, positive in zip(self.raw, self.expression.positive, strict=True)
        ]

    def respond(self, x: Tensor) -> Tensor:
        """The expression at x."""
        return self.expression(x, [self.spread(b, x) for b in self.betas])

    def extra_repr(self) -> str:
        """The expression."""
        return f"{self.expression}, {super().extra_repr()}"


def _walk(node: Node) -> Iterator[Node]:
    """A node and all below it, in the order of the text."""
    yield node
    for arg in node.args:
        yield from _walk(arg)


def _value(node: Node, x: Tensor, betas: Iterator[Any], poles: list[Tensor] | None) -> Tensor:
    if node.name == "input":
        return x
    op = OPERATIONS[node.name]
    own = (next(betas),) if op.beta else ()
    args = [_value(arg, x, betas, poles) for arg in node.args]
    if poles is not None and node.name == "div":
        poles.append(args[1].detach() + EPS)
    return op.function(*args, *own)


def made_safe(node: Node) -> Node:
    """The same expression with the root and the quotient that are defined everywhere."""
    name = {"sqrt": "safe_sqrt", "div": "safe_div"}.get(node.name, node.name)
    return Node(name, tuple(made_safe(arg) for arg in node.args))


def _text(node: Node) -> str:
    if node.name == "input":
        return "x"
    if node.name == "beta":
        return "beta"
    args = [_text(arg) for arg in node.args]
    if node.name in ("scale", "shift"):
        inner = f"({args[0]})" if node.args[0].name in ("scale", "shift") else args[0]
        return f"beta*{inner}" if node.name == "scale" else f"{inner} + beta"
    return f"{node.name}({', '.join(args)})"


def _formula(node: Node, beta: Callable[[], str]) -> tuple[str, int]:
    """LaTeX and how tightly it holds together."""
    if node.name == "input":
        return "x", 4
    op = OPERATIONS[node.name]
    own = beta() if op.beta else ""
    parts = [(*_formula(arg, beta), need) for arg, need in zip(node.args, op.needs, strict=True)]
    return op.latex.format(*(t if level >= need else rf"\left({t}\right)" for t, level, need in parts), b=own), op.level


def _formal(node: Node, beta: Callable[[], str]) -> str:
    if node.name == "input":
        return "x"
    op = OPERATIONS[node.name]
    own = beta() if op.beta else ""
    return op.formal.format(*(f"({_formal(arg, beta)})" for arg in node.args), b=own)


def _parsed(tree: ast.expr, text: str) -> Node:
    """A node of Python's grammar as one of ours."""
    match tree:
        case ast.Name(id="x"):
            return INPUT
        case ast.Name(id="beta"):
            return Node("beta", (INPUT,))
        case ast.Name(id=name):
            raise UnknownNameError(unknown("variable", name, ["x", "beta"]))
        case ast.UnaryOp(op=ast.USub(), operand=arg):
            return Node("neg", (_parsed(arg, text),))
        case ast.BinOp(op=ast.Mult() | ast.Add(), left=ast.Name(id="beta"), right=arg):
            return Node("scale" if isinstance(tree.op, ast.Mult) else "shift", (_parsed(arg, text),))
        case ast.BinOp(op=ast.Mult() | ast.Add(), left=arg, right=ast.Name(id="beta")):
            return Node("scale" if isinstance(tree.op, ast.Mult) else "shift", (_parsed(arg, text),))
        case ast.BinOp(op=ast.Pow(), left=arg, right=ast.Constant(value=2 | 3 as power)):
            return Node("square" if power == 2 else "cube", (_parsed(arg, text),))
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, left=left, right=right):
            names: dict[type, str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
            return Node(names[type(op)], (_parsed(left, text), _parsed(right, text)))
        case ast.Call(
            func=ast.Name(id="max" | "min" as name),
            args=[arg, ast.Constant(value=0)] | [ast.Constant(value=0), arg],
            keywords=[],
        ):
            return Node("relu" if name == "max" else "neg_part", (_parsed(arg, text),))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in OPERATIONS or name in ("x", "beta"):
                raise UnknownNameError(unknown("function", name, [n for n in OPERATIONS if n not in ("x", "beta")]))
            if len(args) != len(OPERATIONS[name].needs):
                raise InputError(f"{name} takes {len(OPERATIONS[name].needs)} arguments, not {len(args)}, in {text!r}")
            return Node(name, tuple(_parsed(arg, text) for arg in args))
    raise InputError(
        f"{ast.unparse(tree)!r} in {text!r} is no part of an expression: x, beta, functions, + - * /, **2 and **3"
    )
