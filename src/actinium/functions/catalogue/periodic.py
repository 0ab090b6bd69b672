"""Trigonometric, hyperbolic and periodic functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import finite, softplus

__all__ = ["FAMILY", "ROWS"]

FAMILY = "trigonometric, periodic"


def _sine(x: Tensor, w: Tensor | float) -> Tensor:
    """sin(w x); a product beyond the largest number counts as that."""
    wide = w * x
    return torch.sin(torch.where(x.isinf(), wide, finite(wide)))


def _sinc(t: Tensor) -> Tensor:
    """sin(t) / t, near 0 by its series, whose derivatives of every order are right there; 0 at infinity."""
    near = t.clamp(-0.5, 0.5).square()
    series = torch.ones_like(t)
    for k in range(8, 0, -1):
        series = 1 - near / (2 * k * (2 * k + 1)) * series
    far = torch.where(t.abs() < 0.5, 1.0, finite(t))
    return torch.where(t.abs() < 0.5, series, torch.sin(far) / far)


def _snake(x: Tensor, a: Tensor | float) -> Tensor:
    """x + sin^2(a x) / a as x + x sin(a x) sinc(a x), which is defined for a = 0."""
    inner = finite(a * x)
    return x + finite(x) * (torch.sin(inner) * _sinc(inner))


def _root(x: Tensor) -> Tensor:
    """sqrt(|x|), whose gradient at 0 is given as 0."""
    return torch.where(x == 0, 0.0, torch.sqrt(torch.where(x == 0, 1.0, x.abs())))


def _asinh(x: Tensor) -> Tensor:
    """asinh with full precision and a finite gradient for every x (PyTorch's gradient squares x)."""
    size = torch.where(x >= 0, x, -x)
    big = size > 1e6
    small = torch.where(big, 1.0, size)
    at = torch.where(big, math.log(2) + torch.log(torch.where(big, size, 1.0)), torch.asinh(small))
    return torch.where(x >= 0, at, -at)


def _root_asinh(x: Tensor) -> Tensor:
    return _asinh(x) * _root(x) / 12


def _hyper_sinh(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.sinh(x.clamp(min=0.0)) / 3, x.clamp(max=0.0).pow(3) / 4)


def _hclsh(x: Tensor) -> Tensor:
    # On the right e^x is taken out of the logarithm; on the left ln cosh x + x is softplus(2x) - ln 2.
    right = x.clamp(min=0.0)
    half = torch.exp(-finite(right) / 2)
    inside = torch.log(1 + half.pow(4) + finite(right) * half * (1 + half.square()))
    return torch.where(x >= 0, right + inside, softplus(2 * x.clamp(max=0.0))) - math.log(2)


def _gabor(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    x = finite(x)
    return torch.exp(-(a * x) * x) * torch.cos(finite(b * x))


def _wire(x: Tensor, w: Tensor | float, s: Tensor | float) -> Tensor:
    t = finite(s * x)
    return torch.exp(-(t * t)) * torch.cos(finite(w * x))


def _wave(range_: float, lipschitz: float, slope: float) -> Properties:
    """Oscillates between -range and range for ever."""
    return Properties((-range_, range_), (math.nan, math.nan), INF, False, lipschitz, slope)


NONE = (math.nan, math.nan)
RISING: dict[str, Any] = {"range": (-INF, INF), "limits": (-INF, INF), "smooth": INF, "monotone": True}
FALLING: dict[str, Any] = {"range": (-INF, INF), "limits": (INF, -INF), "smooth": INF, "monotone": True}
SWINGING = Properties((-INF, INF), NONE, INF, False, INF, 0)
TROUGH, STEEPEST = -0.21723363, 0.43618182
"""Least value and largest slope of sin(x) / x."""
NARROW = (-10.0, 10.0)
END = math.sinh(10)

ROWS = (
    row(
        "Sine", r"\sin(w x)", _sine, "-", _wave(1, 1, 1), {"w": fixed(1.0)}, aliases=("sin",),
        note="The survey has w = pi.",
    ),
    row(
        "SIREN", r"\sin(w_0 x)", lambda x, w0: _sine(x, w0), "Sitzmann 2020", _wave(1, 30, 30), {"w0": fixed(30.0)},
        note="Its layers start from weights that `ac.functions.siren_init_` draws.",
    ),
    row(
        "Cosine", r"1-\cos x", lambda x: 1 - torch.cos(x), "survey",
        Properties((0, 2), NONE, INF, False, 1, 0), confidence="b",
    ),
    row(
        "Cosid", r"\cos(x)-x", lambda x: torch.cos(finite(x)) - x, "Ramachandran 2017",
        Properties(**FALLING, lipschitz=2, slope=-1),
    ),
    row(
        "Sinp", r"\sin(x)-a x", lambda x, a: torch.sin(finite(x)) - a * x, "survey",
        Properties(**FALLING, lipschitz=2, slope=0), {"a": fixed(1.0)}, confidence="b",
    ),
    row(
        "GCU", r"x\cos x", lambda x: x * torch.cos(x), "Noel 2021",
        Properties((-INF, INF), NONE, INF, False, INF, 1), aliases=("growing cosine unit",),
    ),
    row("ASU", r"x\sin x", lambda x: x * torch.sin(x), "Noel 2021", SWINGING, aliases=("amplifying sine unit",)),
    row(
        "Sinc", r"\frac{\sin x}{x}", _sinc, "Ramachandran 2017",
        Properties((TROUGH, 1), (0, 0), INF, False, STEEPEST, 0),
    ),
    row(
        "Sinc+x", r"\frac{\sin x}{x}+x", lambda x: _sinc(x) + x, "Ramachandran 2017",
        Properties(**RISING, lipschitz=1 + STEEPEST, slope=1),
    ),
    row(
        "SSU", r"\pi\frac{\sin(x-\pi)}{x-\pi}", lambda x: math.pi * _sinc(x - math.pi), "Noel 2021",
        Properties((math.pi * TROUGH, math.pi), (0, 0), INF, False, math.pi * STEEPEST, 1),
        aliases=("shifted sinc unit",),
    ),
    row(
        "DSU", r"\tfrac{\pi}{2}\left(\frac{\sin(x-\pi)}{x-\pi}-\frac{\sin(x+\pi)}{x+\pi}\right)",
        lambda x: math.pi / 2 * (_sinc(x - math.pi) - _sinc(x + math.pi)), "Noel 2021",
        Properties((-1.636408, 1.636408), (0, 0), INF, False, 1, 1), aliases=("decaying sine unit",),
    ),
    row(
        "Snake", r"x+\frac{\sin^2(a x)}{a}", _snake, "Ziyin 2020", Properties(**RISING, lipschitz=2, slope=1),
        {"a": trainable(1.0)},
    ),
    row(
        "x+sin x", r"x+\sin x", lambda x: x + torch.sin(finite(x)), "Parascandolo 2017",
        Properties(**RISING, lipschitz=2, slope=2),
    ),
    row(
        "Arctid", r"\arctan(x)^2-x", lambda x: torch.atan(x).square() - x, "Ramachandran 2017",
        Properties(**FALLING, lipschitz=1.823899, slope=-1),
    ),
    row(
        "x asinh^2", r"x\,\mathrm{asinh}(x)^2", lambda x: x * _asinh(x).square(), "Ramachandran 2017",
        Properties(**RISING, lipschitz=INF, slope=0),
    ),
    row(
        "Modified arcsinh", r"\tfrac{1}{12}\mathrm{asinh}(x)\sqrt{|x|}", _root_asinh, "survey",
        Properties((-INF, INF), (-INF, INF), 1, True, 0.097391, 0), confidence="c",
        note="Read with the root of |x|, which makes it m-arcsinh; a secondary source prints |x| without the root.",
    ),
    row(
        "Hyper-sinh", r"\begin{cases}\sinh(x)/3 & x>0\\ x^3/4 & x\le 0\end{cases}", _hyper_sinh, "Parisi 2021",
        Properties((-250, END / 3), (-250, END / 3), 0, True, math.cosh(10) / 3, math.nan, domain=NARROW),
    ),
    row(
        "m-arcsinh", r"\tfrac13\mathrm{asinh}(x)\,\tfrac14\sqrt{|x|}", _root_asinh, "Parisi 2020",
        Properties((-INF, INF), (-INF, INF), 1, True, 0.097391, 0),
    ),
    row(
        "Comb-H-sine", r"\sinh(a x)+\mathrm{asinh}(a x)", lambda x, a: torch.sinh(a * x) + _asinh(a * x), "survey",
        Properties((-END - math.asinh(10), END + math.asinh(10)), (-END, END), INF, True, math.cosh(10) + 101**-0.5, 2,
                   domain=NARROW),
        {"a": fixed(1.0)}, confidence="b",
    ),
    row(
        "HcLSH", r"\begin{cases}\ln(\cosh x+x\cosh\frac x2) & x\ge 0\\ \ln\cosh(x)+x & x<0\end{cases}", _hclsh,
        "survey",
        Properties((-math.log(2), INF), (-math.log(2), INF), 1, True, 1, 1), confidence="c",
        note="Read with x cosh(x/2) inside of the logarithm, so that it grows linearly as its name says; secondary "
        "sources print it outside, where it grows exponentially.",
    ),
    row(
        "Gabor", r"e^{-a x^2}\cos(b x)", _gabor, "-", Properties((-0.827110, 1), (0, 0), INF, False, 4.792885, 0),
        {"a": fixed(0.5, 0.0), "b": fixed(5.0)},
    ),
    row("HOSC", r"\tanh(b\sin x)", lambda x, b: torch.tanh(b * torch.sin(x)), "Serrano 2024",
        _wave(math.tanh(8), 8, 8), {"b": trainable(8.0)}),
    row(
        "WIRE", r"e^{-(s x)^2}\cos(w x)", _wire, "Saragadam 2023",
        Properties((-0.009006, 1), (0, 0), INF, False, 10.850948, 0), {"w": fixed(10.0), "s": fixed(10.0)},
        note="The real part of the complex wavelet.",
    ),
)  # fmt: skip
