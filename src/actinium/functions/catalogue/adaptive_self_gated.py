"""x times a gate of x, with trained or chosen parameters: Swish and its kin."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from actinium.functions.argument_bounds import LEAST, at_least, at_most, logarithm, tensor_like
from actinium.functions.gates import END, algebraic, apa, capped_exp
from actinium.functions.layers.dynamic_units import MetaACON
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import cdf, finite, floor_at_lowest, hypot, neg, pos, sig, softplus

__all__ = ["FAMILY", "ROWS"]

FAMILY = "adaptive self-gated"


def _swish(x: Tensor, b: Tensor | float) -> Tensor:
    return floor_at_lowest(x) * sig(b * x)


def _pssilu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    b = at_most(b, 0.99)
    return x * ((sig((a * x).clamp(-END, END)) - b) / (1 - b))


def _acon_b(x: Tensor, b: Tensor | float, p: Tensor | float) -> Tensor:
    return (1 - p) * _swish(x, b * (1 - p)) + p * x


def _acon_c(x: Tensor, p1: Tensor | float, p2: Tensor | float, b: Tensor | float) -> Tensor:
    return (p1 - p2) * _swish(x, b * (p1 - p2)) + p2 * finite(x)  # p2 may be 0


def _pats(x: Tensor, low: float, high: float, training: bool = False) -> Tensor:
    a = low + (high - low) * torch.rand_like(x) if training else (low + high) / 2
    return floor_at_lowest(x) * torch.atan(a * (math.pi * sig(x.clamp(min=-END))))


def _aqulu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    a = at_least(a)
    low, high = -b / a, (1 - b) / a
    u = torch.where((x < low) | (x > high), 0.0, x)
    return torch.where(x >= high, x, torch.where(x < low, 0.0, a * u.square() + b * u))


def _wave(x: Tensor, f: Callable[[Tensor], Tensor], a: Tensor | float, b: Tensor | float) -> Tensor:
    return (floor_at_lowest(x) + a * f(finite(b * x))) * sig(x)


def _telu(x: Tensor, a: Tensor | float) -> Tensor:
    u = a * x
    return x * torch.tanh(torch.where(u >= 0, u, torch.expm1(neg(u))))


def _hard_swish(x: Tensor, b: Tensor | float) -> Tensor:
    return floor_at_lowest(x) * (2 * (0.2 * b * x + 0.5).clamp(0.0, 1.0))


def _flat(x: Tensor, T: Tensor | float) -> Tensor:
    return functional.silu(pos(x)) + T


def _aglu(x: Tensor, l: Tensor | float, k: Tensor | float) -> Tensor:  # noqa: E741
    return floor_at_lowest(x) * apa(x, l, k)


def _golu(x: Tensor, a: Tensor | float, b: Tensor | float, g: Tensor | float) -> Tensor:
    return a * (floor_at_lowest(x) * torch.exp(-b * capped_exp(-g * x)))


def _rmaf(x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    # 0.25 (1 + e^-x) + 0.75 is 1 + e^-(x + ln 4).
    gate = torch.exp(c * (logarithm(b) - softplus(-x - math.log(4))))
    return a * (floor_at_lowest(x) * gate)


def _eis(
    x: Tensor, a: Tensor | float, b: Tensor | float, g: Tensor | float, d: Tensor | float, t: Tensor | float
) -> Tensor:
    u = finite(x)
    root = hypot(finite(torch.sqrt(tensor_like(g, x)) * u), torch.sqrt(tensor_like(b, x)).expand_as(u))
    rise = softplus(x).clamp(min=torch.finfo(torch.float32).tiny) ** a
    return u / (root + d * capped_exp(-t * x)) * rise


def _eis_1(x: Tensor) -> Tensor:
    right = x.clamp(min=0.0)
    left = neg(floor_at_lowest(x))
    low = left * torch.exp(left)  # both parts multiplied by e^x
    ratio = torch.where(x >= 0, finite(right) / (finite(right) + 1.16 * torch.exp(-right)), low / (low + 1.16))
    return ratio * softplus(x)


P = Properties
BUMP = -0.278465
"""Minimum of SiLU, -W(1/e)."""
SWISH = P((BUMP, INF), (0, INF), INF, False, 1.099839, 0.5)
HALF_SWISH = P((BUMP, INF), (0, INF), 0, False, 1, math.nan)
FLAT = P((-0.2, INF), (-0.2, INF), 0, True, 1.099839, math.nan, dead=(-INF, 0))
SAME = "SiLU at its default"

ROWS = (
    row("Swish", r"x \sigma(b x)", _swish, "Ramachandran 2017", SWISH, {"b": trainable(1.0)}, note=SAME),
    row("E-swish", r"a x \sigma(x)", lambda x, a: a * functional.silu(floor_at_lowest(x)), "Alcaide 2018",
        P((1.5 * BUMP, INF), (0, INF), INF, False, 1.5 * 1.099839, 0.75), {"a": fixed(1.5, 1.0, 2.0)}),
    row("AHAF", r"a x \sigma(b x)", lambda x, a, b: a * _swish(x, b), "Bodyanskiy 2022", SWISH,
        {"a": trainable(1.0), "b": trainable(1.0)}, confidence="b", note=SAME),
    row("PSSiLU", r"\frac{x (\sigma(a x) - b)}{1 - b}", _pssilu, "survey",
        P((0, INF), (INF, INF), INF, False, 1.199679, 0), {"a": trainable(1.0), "b": trainable(0.5, -INF, 0.99)},
        confidence="b"),
    row("ACON-A", r"x \sigma(b x)", _swish, "Ma 2021", SWISH, {"b": trainable(1.0)},
        note="a smooth maximum of x and 0"),
    row("ACON-B", r"(1 - p) x \sigma(b (1 - p) x) + p x", _acon_b, "Ma 2021",
        P((-INF, INF), (-INF, INF), INF, True, 1.074879, 0.625), {"b": trainable(1.0), "p": trainable(0.25)},
        note="a smooth maximum of x and p x"),
    row("ACON-C", r"(p_1 - p_2) x \sigma(b (p_1 - p_2) x) + p_2 x", _acon_c, "Ma 2021", SWISH,
        {"p1": trainable(1.0), "p2": trainable(0.0), "b": trainable(1.0)},
        note="a smooth maximum of p1 x and p2 x; the authors' code draws both from a normal distribution"),
    row("Meta-ACON", r"(p_1 - p_2) x \sigma(\beta (p_1 - p_2) x) + p_2 x, \beta = \sigma(W_2 W_1 \bar x)", None,
        "Ma 2021", kind="trainable", arity="channels", module=MetaACON, note="get('meta-acon', channels=...)"),
    row("PSGU", r"x \tanh(a \sigma(x))", lambda x, a: floor_at_lowest(x) * torch.tanh(a * sig(x.clamp(min=-END))),
        "Alkhouly 2021", P((-0.747745, INF), (0, INF), INF, False, 1.005355, math.tanh(1.5)), {"a": trainable(3.0)},
        confidence="b"),
    row("TBSReLU-l", r"x \tanh(a \tanh(x / 2))", lambda x, a: x * torch.tanh(a * torch.tanh(x / 2)), "survey",
        P((0, INF), (INF, INF), INF, False, 0.549423, 0), {"a": trainable(0.5)}, confidence="b"),
    row("PATS", r"x \arctan(a \pi \sigma(x)), a \sim U(l, h)", _pats, "Zheng 2020",
        P((-0.518759, INF), (0, INF), INF, False, 1.150189, math.atan(0.3125 * math.pi)),
        {"low": fixed(0.5), "high": fixed(0.75)}, kind="stochastic"),
    row("AQuLU",
        r"x \text{ if } x \ge \frac{1 - b}{a} \text{ else } a x^2 + b x \text{ if } x \ge -\frac b a \text{ else } 0",
        _aqulu, "survey", P((-0.0125, INF), (0, INF), 0, False, 1.9, 0.1, dead=(-INF, -0.5)),
        {"a": trainable(0.2, LEAST), "b": trainable(0.1)}, confidence="b"),
    row("SinLU", r"(x + a \sin(b x)) \sigma(x)", lambda x, a, b: _wave(x, torch.sin, a, b), "Paul 2022",
        P((-0.497371, INF), (0, INF), INF, False, 2.007971, 1), {"a": trainable(1.0), "b": trainable(1.0)}),
    row("CosLU", r"(x + a \cos(b x)) \sigma(x)", lambda x, a, b: _wave(x, torch.cos, a, b), "Pishchik 2023",
        P((-0.289273, INF), (0, INF), INF, False, 2.023791, 0.75), {"a": trainable(1.0), "b": trainable(1.0)}),
    row("ErfAct", r"x \operatorname{erf}(a e^{b x})",
        lambda x, a, b: floor_at_lowest(x) * torch.erf(a * capped_exp(b * x)), "Biswas 2021",
        P((-0.405281, INF), (0, INF), INF, False, 1.091599, math.erf(0.75)),
        {"a": trainable(0.75), "b": trainable(0.75)}),
    row("Pserf", r"x \operatorname{erf}(g \ln(1 + e^{d x}))",
        lambda x, g, d: floor_at_lowest(x) * torch.erf(g * softplus((d * x).clamp(min=-END))), "Biswas 2021",
        P((-0.506007, INF), (0, INF), INF, False, 1.053564, math.erf(1.25 * math.log(2))),
        {"g": trainable(1.25), "d": trainable(0.85)}, confidence="b"),
    row("Swim", r"\frac x 2 (1 + \frac{a x}{\sqrt{1 + x^2}})", lambda x, a: x * ((1 + a * algebraic(x)) / 2),
        "Abdool 2020", P((-INF, INF), (-INF, INF), INF, True, 0.772166, 0.5), {"a": trainable(0.5)}, confidence="b"),
    row("pLogish", r"a x \ln(1 + \sigma(b x))",
        lambda x, a, b: a * (floor_at_lowest(x) * torch.log1p(sig((b * x).clamp(-END, END)))),
        "Zhu 2021", P((-0.0252769, INF), (0, INF), INF, False, 0.746311, math.log(1.5)),
        {"a": fixed(1.0), "b": fixed(10.0)}, confidence="b"),
    row("PGELU", r"x \Phi(x / a)", lambda x, a: floor_at_lowest(x) * cdf(x / at_least(a)), "survey",
        P((-0.169971, INF), (0, INF), INF, False, 1.128904, 0.5), {"a": trainable(1.0, LEAST)}, confidence="b"),
    row("SC-mish", r"\max(x \tanh(\ln(1 + e^{a x})), 0)", lambda x, a: pos(x) * torch.tanh(softplus(a * x)),
        "Mercioni 2020", P((0, INF), (0, INF), 0, True, 1.088498, math.nan, dead=(-INF, 0)), {"a": trainable(0.25)},
        confidence="b"),
    row("p-swish", r"a x \sigma(b x) \text{ if } x \le c \text{ else } x",
        lambda x, a, b, c: torch.where(x <= c, a * _swish(x, b), x), "Mercioni 2021", HALF_SWISH,
        {"a": trainable(1.0), "b": trainable(1.0), "c": trainable(0.0)}, confidence="b",
        note="jumps at c where c is not 0"),
    row("T-swish", r"x \text{ if } x \ge c \text{ else } a x \sigma(b x)",
        lambda x, a, b, c: torch.where(x >= c, x, a * _swish(x, b)), "survey", HALF_SWISH,
        {"a": trainable(1.0), "b": trainable(1.0), "c": trainable(0.0)}, confidence="b",
        note="jumps at c where c is not 0"),
    row("TeLU (adaptive)", r"x \tanh(\operatorname{ELU}(a x))", _telu, "survey",
        P((0, INF), (INF, INF), 2, False, 1.199679, 0), {"a": trainable(1.0)}, aliases=("adaptive TeLU",),
        confidence="b"),
    row("Hard swish, adaptive", r"2 x \min(\max(0.2 b x + 0.5, 0), 1)", _hard_swish, "Avenash 2019",
        P((-0.625, INF), (0, INF), 0, False, 3, 1, dead=(-INF, -2.5)), {"b": trainable(1.0)}, confidence="b"),
    row("PFTS", r"\max(x, 0) \sigma(x) + T", _flat, "Chieng 2020", FLAT, {"T": trainable(-0.2)},
        aliases=("parametric flatten-T swish",)),
    row("Flatten-T swish", r"\max(x, 0) \sigma(x) + T", _flat, "Chieng 2018", FLAT, {"T": fixed(-0.2)},
        aliases=("FTS",)),
    row("PFPM", r"\max(x, 0) \tanh(\ln(1 + e^x)) + p", lambda x, p: functional.mish(pos(x)) + p, "Mondal 2022",
        P((0, INF), (0, INF), 0, True, 1.088498, math.nan, dead=(-INF, 0)), {"p": trainable(0.0)}, confidence="b"),
    row("AGLU", r"x (l e^{-k x} + 1)^{-1 / l}", _aglu, "Alexandridis 2024",
        P((-0.181017, INF), (0, INF), INF, False, 1.105961, 4 / 9),
        {"l": trainable(0.5, 1e-4, drawn=(1e-4, 1.0)), "k": trainable(1.0, drawn=(0.8, 1.2))}),
    row("GoLU general", r"a x e^{-b e^{-g x}}", _golu, "Das 2025",
        P((-0.097260, INF), (0, INF), INF, False, 1.113397, 1 / math.e),
        {"a": fixed(1.0, LEAST), "b": fixed(1.0, LEAST), "g": fixed(1.0, LEAST)}, note="GoLU at its default"),
    row("RMAF", r"a x (\frac{b}{0.25 (1 + e^{-x}) + 0.75})^c", _rmaf, "Yu 2020",
        P((-0.717825, INF), (0, INF), INF, False, 1.030831, 0.8),
        {"a": trainable(1.0), "b": fixed(1.0, LEAST), "c": fixed(1.0)}, confidence="c",
        note="the power is read as that of the whole quotient, of which only the factor a is trained"),
    row("EIS", r"\frac{x \ln(1 + e^x)^a}{\sqrt{b + g x^2} + d e^{-t x}}", _eis, "Biswas 2020",
        P((-0.232155, INF), (0, INF), INF, False, 1.011798, math.log(2)),
        {"a": fixed(1.0, 0.0), "b": fixed(1.0, LEAST), "g": fixed(1.0, LEAST), "d": fixed(0.0, 0.0), "t": fixed(1.0)},
        aliases=("EIS-2",), confidence="b", note="EIS-2 at its default"),
    row("EIS-1", r"\frac{x \ln(1 + e^x)}{x + 1.16 e^{-x}}", _eis_1, "Biswas 2020",
        P((-0.173764, INF), (0, INF), INF, False, 1.064689, math.log(2) / 1.16), confidence="b",
        note="x, not its absolute value, stands below"),
)  # fmt: skip
