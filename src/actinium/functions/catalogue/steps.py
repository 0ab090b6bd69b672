"""Binary, linear and step functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.argument_bounds import between
from actinium.functions.registry import INF, Properties, fixed, row, trainable

__all__ = ["FAMILY", "ROWS"]

FAMILY = "binary, linear, step"


class _SignSTE(torch.autograd.Function):
    """Sign with sign(0) = 1 forward; backward the identity where |x| <= 1."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.where(x.isnan(), x, torch.where(x >= 0, 1.0, -1.0))

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.where(x.abs() <= 1, slope, 0.0)

    @staticmethod
    def vmap(info: object, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _SignSTE.apply(x), in_dims[0]


def _sign(x: Tensor) -> Tensor:
    # torch.sign is 0 at 0 and at NaN; its gradient is zeros, so that a network with steps can be differentiated.
    return torch.where(x.isnan(), x, torch.sign(torch.sign(x) + 0.5))


def _heaviside(x: Tensor) -> Tensor:
    return (_sign(x) + 1) / 2


STRAIGHT = "the gradient is straight-through: that of the identity where |argument| <= 1, else 0"
FLAT = (-INF, INF)
STEP = Properties((0, 1), (0, 1), -1, True, INF, math.nan, dead=FLAT)
SIGN = Properties((-1, 1), (-1, 1), -1, True, INF, math.nan, dead=FLAT)
STEP_WITH_SLOPE = Properties((-1, 1), (-1, 1), -1, True, INF, math.nan, dead=(-INF, -1))
LINE = Properties((-INF, INF), (-INF, INF), INF, True, 1, 1)

ROWS = (
    row("Identity", "x", lambda x: x.clone(), "-", LINE, aliases=("linear",)),
    row("Heaviside", r"\mathbf 1[x \ge 0]", _heaviside, "McCulloch and Pitts 1943", STEP, aliases=("binary step",)),
    row("Sign", r"1 \text{ if } x \ge 0 \text{ else } -1", _sign, "Rosenblatt 1958", SIGN, aliases=("bipolar step",)),
    row("Window step", r"\mathbf 1[a \le x \le b]", lambda x, a, b: _heaviside(x - a) * _heaviside(b - x), "survey",
        Properties((0, 1), (0, 0), -1, False, INF, math.nan, dead=FLAT), {"a": fixed(0.0), "b": fixed(1.0)},
        confidence="b"),
    row("Piecewise linear step", r"\min(\max(\frac{x - a}{b - a}, 0), 1)",
        lambda x, a, b: between((x - a) / (b - a), 0.0, 1.0), "survey",
        Properties((0, 1), (0, 1), 0, True, 0.5, 0.5, dead=(-INF, -1)), {"a": fixed(-1.0), "b": fixed(1.0)},
        note="a is less than b"),
    row("Linear scaled", "a x", lambda x, a: a * x, "-", LINE, {"a": trainable(1.0)}),
    row("RSign", r"\operatorname{sign}(x - a)", lambda x, a: _SignSTE.apply(x - a), "Liu 2020", STEP_WITH_SLOPE,
        {"a": trainable(0.0)}, confidence="b", aliases=("ReAct sign",), note=STRAIGHT),
    row("STE binariser", r"\operatorname{sign}(x)", _SignSTE.apply, "Courbariaux 2016", STEP_WITH_SLOPE, note=STRAIGHT),
    row("Threshold", r"x \text{ if } x > t \text{ else } v", lambda x, t, v: torch.where(x <= t, v, x), "torch",
        Properties((0, INF), (0, INF), 0, True, 1, math.nan, dead=(-INF, 0)), {"t": fixed(0.0), "v": fixed(0.0)}),
    row("Dead zone", r"x \text{ if } x > a \text{ else } 0", lambda x, a: torch.where(x <= a, 0.0, x), "Konda 2014",
        Properties((0, INF), (0, INF), -1, True, INF, 0, dead=(-INF, 1)), {"a": fixed(1.0)}, aliases=("TRec",)),
)  # fmt: skip
