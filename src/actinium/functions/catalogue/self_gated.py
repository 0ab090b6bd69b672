"""x times a gate of x: SiLU, GELU, Mish and their kin, without trained parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from actinium.functions.gates import END, capped_exp, gelu, silu
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import exp_neg, finite, floor_at_lowest, gumbel, hypot, neg, pos, sig, softplus

__all__ = ["FAMILY", "ROWS"]

FAMILY = "self-gated"
LN2 = math.log(2)
LAST = 100.0
"""Where gates and bells have long been 0 or 1, and powers are still small."""


def _gelu_tanh(x: Tensor) -> Tensor:
    u = x.clamp(-LAST, LAST)
    return floor_at_lowest(x) * sig(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))


def _laplace(x: Tensor) -> Tensor:
    gate = torch.where(x >= 0, 1 - torch.exp(-x.clamp(min=0.0)) / 2, exp_neg(x) / 2)
    return floor_at_lowest(x) * gate


def _calu(x: Tensor) -> Tensor:
    # The gate is the angle of (-x, 1) over pi, which keeps its digits on the left.
    x = floor_at_lowest(x)
    return x * (torch.atan2(torch.ones_like(x), -x) / math.pi)


def _colu(x: Tensor) -> Tensor:
    r = x.clamp(0.0, END)
    right = x / (1 - r * torch.exp(-r - capped_exp(r)))
    u = neg(floor_at_lowest(x))
    t = torch.exp(u + torch.exp(u))  # both parts multiplied by it, so that nothing grows like e^-x
    return torch.where(x >= 0, right, u * t / (t - u))


def _triple_state_swish(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    return silu(x) * (sig(x) + sig(x - a) + sig(x - b))


def _dsilu(x: Tensor) -> Tensor:
    return sig(x) * (1 + finite(x) * sig(-x))


def _rehsec(x: Tensor) -> Tensor:
    # Unlike abs, this has the derivatives from the right at 0, which are those of the even function.
    z = torch.exp(-torch.where(x >= 0, x, -x).clamp(max=END))
    return finite(x) * (2 * z / (1 + z.square()))


def _suish(x: Tensor) -> Tensor:
    u = neg(floor_at_lowest(x))
    return torch.where(x >= 0, x, u * torch.exp(u))


def _bell(x: Tensor) -> Tensor:
    """e^(-x^2); far out it is 0 in every precision, and so that x^2 stays finite the argument ends there."""
    return torch.exp(-x.clamp(-LAST, LAST).square())


def _root_gated(x: Tensor) -> Tensor:
    """x (1 + x / sqrt(1 + x^2)), without the difference of nearly equal numbers on the left."""
    u = finite(x)
    root = hypot(u, torch.ones_like(u))
    return torch.where(x >= 0, x * (1 + u / root), u / root / (root - u.clamp(max=0.0)))


P = Properties
BUMP = -0.278465
"""Minimum of SiLU, -W(1/e)."""

ROWS = (
    row("SiLU", r"x \sigma(x)", silu, "Elfwing 2017", P((BUMP, INF), (0, INF), INF, False, 1.099839, 0.5),
        aliases=("Swish-1", "SiL")),
    row("GELU", r"x \Phi(x)", gelu, "Hendrycks 2016", P((-0.169971, INF), (0, INF), INF, False, 1.128904, 0.5),
        aliases=("GELU (erf)",)),
    row("GELU (tanh)", r"\frac x 2 (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3)))", _gelu_tanh, "Hendrycks 2016",
        P((-0.170041, INF), (0, INF), INF, False, 1.128917, 0.5), aliases=("GELU tanh",)),
    row("Quick GELU", r"x \sigma(1.702 x)", lambda x: floor_at_lowest(x) * sig(1.702 * x), "Hendrycks 2016",
        P((BUMP / 1.702, INF), (0, INF), INF, False, 1.099839, 0.5), aliases=("SiLU scaled 1.702",)),
    row("SiELU", r"x \sigma(2 \sqrt{2 / \pi} (x + 0.044715 x^3))", _gelu_tanh, "survey",
        P((-0.170041, INF), (0, INF), INF, False, 1.128917, 0.5), note="the same function as GELU (tanh)"),
    row("Symmetric GELU", r"a x \operatorname{erf}(x / \sqrt 2)", lambda x, a: a * (x * torch.erf(x * math.sqrt(0.5))),
        "Yu 2019", P((0, INF), (INF, INF), INF, False, 1.257807, 0), {"a": fixed(1.0)}, aliases=("SGELU",)),
    row("CaLU", r"x (\frac{\arctan x}{\pi} + \frac 1 2)", _calu, "survey",
        P((-1 / math.pi, INF), (-1 / math.pi, INF), INF, True, 1, 0.5)),
    row("LaLU", r"x F(x), F = 1 - \frac{e^{-x}}{2} \text{ if } x \ge 0 \text{ else } \frac{e^x}{2}", _laplace, "survey",
        P((-0.5 / math.e, INF), (0, INF), 2, False, 1 + math.exp(-2) / 2, 0.5)),
    row("CoLU", r"\frac{x}{1 - x e^{-(x + e^x)}}", _colu, "Vagerwal 2021",
        P((-0.377159, INF), (0, INF), INF, False, 1.082835, 1)),
    row("GoLU", r"x e^{-e^{-x}}", lambda x: floor_at_lowest(x) * gumbel(x), "Das 2025",
        P((-0.097260, INF), (0, INF), INF, False, 1.113397, 1 / math.e), aliases=("ExpExpish", "x loglog")),
    row("LogLogish", r"x (1 - e^{-e^x})", lambda x: floor_at_lowest(x) * -torch.expm1(-capped_exp(x)), "survey",
        P((-0.312183, INF), (0, INF), INF, False, 1.114878, 1 - 1 / math.e)),
    row("Mish", r"x \tanh(\ln(1 + e^x))", lambda x: functional.mish(floor_at_lowest(x)), "Misra 2019",
        P((-0.308843, INF), (0, INF), INF, False, 1.088498, 0.6)),
    row("TanhExp", r"x \tanh(e^x)", lambda x: floor_at_lowest(x) * torch.tanh(capped_exp(x)), "Liu 2020",
        P((-0.353170, INF), (0, INF), INF, False, 1.061975, math.tanh(1)), aliases=("TeLU",)),
    row("Serf", r"x \operatorname{erf}(\ln(1 + e^x))",
        lambda x: floor_at_lowest(x) * torch.erf(softplus(x.clamp(min=-END))), "Nag 2021",
        P((-0.348402, INF), (0, INF), INF, False, 1.086125, math.erf(LN2))),
    row("Phish", r"x \tanh(x \Phi(x))", lambda x: floor_at_lowest(x) * torch.tanh(gelu(x.clamp(min=-END))),
        "Naveen 2022", P((0, INF), (0, INF), INF, False, 1.298307, 0)),
    row("Logish", r"x \ln(1 + \sigma(x))", lambda x: floor_at_lowest(x) * torch.log1p(sig(x)), "Zhu 2021",
        P((-0.252769, INF), (0, INF), INF, False, 0.746311, math.log(1.5))),
    row("Smish", r"a x \tanh(\ln(1 + \sigma(b x)))",
        lambda x, a, b: a * (floor_at_lowest(x) * torch.tanh(torch.log1p(sig((b * x).clamp(-END, END))))), "Wang 2022",
        P((-0.249994, INF), (0, INF), INF, False, 0.636884, 5 / 13), {"a": fixed(1.0), "b": fixed(1.0)}),
    row("Gish", r"x \ln(2 - e^{-e^x})", lambda x: floor_at_lowest(x) * torch.log1p(-torch.expm1(-capped_exp(x))),
        "Kaytan 2023", P((-0.278159, INF), (0, INF), INF, False, 0.752705, math.log(2 - 1 / math.e)), confidence="b"),
    row("Triple-state swish", r"x \sigma(x) (\sigma(x) + \sigma(x - a) + \sigma(x - b))", _triple_state_swish,
        "Koçak 2021", P((-0.077206, INF), (0, INF), INF, False, 12.525, 0.25), {"a": fixed(20.0), "b": fixed(40.0)},
        confidence="b"),
    row("Generalised swish", r"x \sigma(e^{-x})", lambda x: x * sig(torch.exp(-x.clamp(min=-80.0))), "Koçak 2021",
        P((-INF, INF), (-INF, INF), INF, True, 1.101627, 1 / (1 + math.exp(-1))), confidence="b"),
    row("Exponential swish", r"e^{-x} \sigma(x)", lambda x: sig(-x), "Koçak 2021",
        P((0, 1), (1, 0), INF, True, 0.25, -0.25), confidence="b", note="which is sigmoid of -x"),
    row("Derivative of sigmoid", r"e^{-x} \sigma(x)^2", lambda x: sig(x) * sig(-x), "Koçak 2021",
        P((0, 0.25), (0, 0), INF, False, math.sqrt(3) / 18, 0)),
    row("dSiLU", r"\sigma(x) (1 + x (1 - \sigma(x)))", _dsilu, "Elfwing 2017",
        P((-0.099839, 1.099839), (0, 1), INF, False, 0.5, 0.5)),
    row("Double SiLU", r"x \sigma(x \sigma(x))", lambda x: x * sig(silu(x)), "survey",
        P((-INF, INF), (-INF, INF), INF, True, 1.137651, 0.5)),
    row("Modified SiLU", r"x \sigma(x) + \frac{e^{-x^2 - 1}}{4}", lambda x: silu(x) + _bell(x) / (4 * math.e), "survey",
        P((-0.264269, INF), (0, INF), INF, False, 1.098612, 0.5), aliases=("MSiLU",), confidence="c",
        note="the bump is read as a quarter of e^(-x^2 - 1)"),
    row("TSiLU", r"\tanh(x \sigma(x))", lambda x: torch.tanh(silu(x)), "survey",
        P((math.tanh(BUMP), 1), (0, 1), INF, False, 0.676600, 0.5), confidence="b"),
    row("ASiLU", r"\arctan(x \sigma(x))", lambda x: torch.atan(silu(x)), "survey",
        P((math.atan(BUMP), math.pi / 2), (0, math.pi / 2), INF, False, 0.680769, 0.5), confidence="c",
        note="read as the arctangent of the whole product"),
    row("SwAT", r"x \sigma(\arctan x)", lambda x: x * sig(torch.atan(x)), "survey",
        P((-INF, INF), (-INF, INF), INF, True, 0.829216, 0.5), confidence="b"),
    row("SelfArctan", r"x \arctan x", lambda x: x * torch.atan(x), "survey",
        P((0, INF), (INF, INF), INF, False, math.pi / 2, 0)),
    row("LiSHT", r"x \tanh x", lambda x: x * torch.tanh(x), "Roy 2019",
        P((0, INF), (INF, INF), INF, False, 1.199679, 0)),
    row("ReHSec", r"x \operatorname{sech} x", _rehsec, "survey", P((-0.662743, 0.662743), (0, 0), INF, False, 1, 1),
        confidence="b"),
    row("SinSig", r"x \sin(\frac \pi 2 \sigma(x))",
        lambda x: floor_at_lowest(x) * torch.sin(math.pi / 2 * sig(x.clamp(min=-END))), "survey",
        P((-0.429178, INF), (0, INF), INF, False, 1.058889, math.sqrt(0.5))),
    row("EANAF", r"\frac{x e^x}{e^x + 2}", lambda x: floor_at_lowest(x) * sig(x - LN2), "Chai 2021",
        P((-0.157185, INF), (0, INF), INF, False, 1.163664, 1 / 3), confidence="b"),
    row("Suish", r"\max(x, x e^{-|x|})", _suish, "Ahmed 2021", P((-1 / math.e, INF), (0, INF), 1, False, 1, 1),
        confidence="b"),
    row("TS-ReLU", r"x \tanh(\sigma(x))", lambda x: floor_at_lowest(x) * torch.tanh(sig(x)), "survey",
        P((-0.274243, INF), (0, INF), INF, False, 0.812619, math.tanh(0.5)), confidence="b"),
    row("TBS-ReLU", r"x \tanh(\frac{1 - e^{-x}}{1 + e^{-x}})", lambda x: x * torch.tanh(torch.tanh(x / 2)), "survey",
        P((0, INF), (INF, INF), INF, False, 0.889096, 0), confidence="b"),
    row("PFLU", r"\frac x 2 (1 + \frac{x}{\sqrt{1 + x^2}})", lambda x: _root_gated(x) / 2, "Zhu 2021",
        P((-0.150142, INF), (0, INF), INF, False, 1.044331, 0.5)),
    row("FPFLU", r"x \text{ if } x \ge 0 \text{ else } x + \frac{x^2}{\sqrt{1 + x^2}}",
        lambda x: torch.where(x >= 0, x, _root_gated(neg(x))), "Zhu 2021",
        P((-0.300283, INF), (0, INF), 1, False, 1, 1), confidence="b"),
    row("Hard swish", r"\frac x 6 \min(\max(x + 3, 0), 6)",
        lambda x: floor_at_lowest(x) * ((x + 3).clamp(0.0, 6.0) / 6), "Howard 2019",
        P((-0.375, INF), (0, INF), 0, False, 1.5, 0.5, dead=(-INF, -3))),
    row("HardMish", r"\frac x 2 \min(\max(x + 2, 0), 2)", lambda x: floor_at_lowest(x) * ((x + 2).clamp(0.0, 2.0) / 2),
        "community", P((-0.5, INF), (0, INF), 0, False, 1, 1, dead=(-INF, -2)), confidence="b"),
    row("SC-swish", r"\max(x \sigma(x), 0)", lambda x: functional.silu(pos(x)), "Mercioni 2020",
        P((0, INF), (0, INF), 0, True, 1.099839, math.nan, dead=(-INF, 0)), confidence="b"),
    row("CRReLU", r"\max(x, 0) + e x e^{-x^2 / 2}", lambda x, e: pos(x) + e * (finite(x) * _bell(x * math.sqrt(0.5))),
        "Sun 2024", P((-0.00606531, INF), (0, INF), 0, False, 1.01, math.nan), {"e": trainable(0.01)}),
)  # fmt: skip
