"""The formulas of the catalogue's elementwise functions as the survey prints them: without care for large numbers.

Source: Kunc and Kléma, 2024, arXiv 2402.09092; uncertain formulas as the catalogue's notes say that they are read.
"""

# ruff: noqa: E741 (l is the name of a parameter in the tables)
from __future__ import annotations

import numpy as np
from numpy import (
    arcsinh,
    arctan,
    clip,
    cos,
    cosh,
    exp,
    log,
    maximum,
    minimum,
    pi,
    sign,
    sin,
    sinh,
    sqrt,
    tanh,
    where,
)  # fmt: skip
from scipy.special import binom, erf, gamma, ndtr

__all__ = ["PRINTED"]


def sig(x):
    return 1 / (1 + exp(-x))


def sp(x):
    return np.logaddexp(0, x)


def sech(x):
    return 1 / cosh(x)


def step(x):
    return where(x >= 0, 1.0, 0.0)


def pos(x):
    return maximum(0, x)


def neg(x):
    return minimum(0, x)


def sinc(x):
    return np.sinc(x / pi)


def gelu(x):
    return x * ndtr(x)


def elu(x, a=1.0):
    return where(x >= 0, x, a * (exp(neg(x)) - 1))


def pelu(x, a, b):
    return where(x >= 0, a / b * x, a * (exp(x / b) - 1))


def leaky(x, a=0.01):
    return where(x >= 0, x, a * x)


def apa(x, l, k):
    return (l * exp(-k * x) + 1) ** (-1 / l)


def huber(x, a):
    return where(abs(x) > a, abs(x) - a / 2, x**2 / (2 * a))


def sqnl(x):
    return where(x > 2, 1, where(x >= 0, x - x**2 / 4, where(x >= -2, x + x**2 / 4, -1)))


def root(t, e):
    return sqrt(t * t + e)


def spocu(x, a, b, g, c):
    def h(t):
        t = minimum(pos(t), c)
        return t**3 * (t**5 - 2 * t**4 + 2)

    return a * h(x / g + b) - a * h(b)


def puaf(x, a, b, c):
    up, down = pos(c + x) ** b, pos(c - x) ** b
    return where(x > c, x**a, where(x >= -c, x**a * up / (up + down), 0))


def kdac(x, a, b, c):
    p, s = a * x, tanh(x)
    q = clip(1 / 2 + (b * x - s) / (2 * c), 0, 1)
    r = where(x > 0, p, b * x * (1 - q) + s * q - c * q * (1 - q))
    h = clip(1 / 2 - (p - r) / (2 * c), 0, 1)
    return p * (1 - h) + r * h + c * h * (1 - h)


def iterated(f, z, n):
    for _ in range(n):
        z = f(z)
    return z


def fractional(x, a, h, N, f):
    return h**-a * sum((-1) ** n * binom(a, n) * f(x - n * h) for n in range(N))


def falu(x, a, b):
    s = sig(b * x)
    g = x * s
    h = g + s * (1 - g)
    return g + a * s * (1 - g) if a <= 1 else h + (a - 1) * s * (1 - 2 * h)


def repsu(x, a, b, c, d, e):
    k = (x - b) * sig(sign(x - c) * abs(x - c) ** d / e)
    return where(x >= b, a * k + (1 - a) * (2 * x - k), 0)


def reltanh(x, a, b):
    t = clip(x, a, b)
    return tanh(t) + (1 - tanh(t) ** 2) * (x - t)


def soft_exponential(x, a):
    return -log(1 - a * (x + a)) / a if a < 0 else (exp(a * x) - 1) / a + a if a > 0 else x


def n_activation(x, a, b):
    low, high = min(a, b), max(a, b)
    return where(x < low, x - 2 * low, where(x > high, x - 2 * high, -x))


PRINTED = {
    "Identity": lambda x: x,
    "Heaviside": step,
    "Sign": lambda x: where(x >= 0, 1.0, -1.0),
    "Window step": lambda x, a, b: where((x >= a) & (x <= b), 1.0, 0.0),
    "Piecewise linear step": lambda x, a, b: clip((x - a) / (b - a), 0, 1),
    "Linear scaled": lambda x, a: a * x,
    "RSign": lambda x, a: where(x - a >= 0, 1.0, -1.0),
    "STE binariser": lambda x: where(x >= 0, 1.0, -1.0),
    "Threshold": lambda x, t, v: where(x > t, x, v),
    "Dead zone": lambda x, a: where(x > a, x, 0),
    "Sigmoid": sig,
    "Tanh": tanh,
    "Bipolar sigmoid": lambda x: (1 - exp(-x)) / (1 + exp(-x)),
    "Shifted scaled sigmoid": lambda x, a, b: sig(a * (x - b)),
    "Variant sigmoid": lambda x, a, b, c: a / (1 + exp(-b * x)) - c,
    "Scaled tanh": lambda x, a, b: a * tanh(b * x),
    "Arctan": arctan,
    "Arctan-GR": lambda x: arctan(x) / (1 + sqrt(2)),
    "Scaled arctan": lambda x: 2 / pi * arctan(pi * x / 2),
    "Erf": erf,
    "Gudermannian": lambda x: 2 * arctan(tanh(x / 2)),
    "Algebraic sigmoid": lambda x: x / sqrt(1 + x * x),
    "Sigmoid-algebraic": lambda x, a: sig(x * (1 + a * abs(x)) / (1 + abs(x) * (1 + a * abs(x)))),
    "Triple-state sigmoid": lambda x, a, b: sig(x) + sig(x - a) + sig(x - b),
    "Improved logistic sigmoid": lambda x, a, b: where(
        x >= b, a * (x - b) + sig(b), where(x <= -b, a * (x + b) + sig(-b), sig(x))
    ),
    "SigLin": lambda x, a: sig(x) + a * x,
    "Penalised tanh": lambda x, a: where(x >= 0, tanh(x), tanh(x) / a),
    "Soft-root-sign": lambda x, a, b: x / (x / a + exp(-x / b)),
    "Soft clipping": lambda x, a: (sp(a * x) - sp(a * (x - 1))) / a,
    "Hexpo": lambda x, a, b, c, d: where(x >= 0, -a * (exp(-x / b) - 1), c * (exp(x / d) - 1)),
    "Softsign": lambda x: x / (1 + abs(x)),
    "Elliott": lambda x: x / (2 * (1 + abs(x))) + 0.5,
    "Smooth step": lambda x, a: where(x <= -a / 2, 0, where(x >= a / 2, 1, -2 * x**3 / a**3 + 3 * x / (2 * a) + 0.5)),
    "Sinc-sigmoid": lambda x: np.sinc(sig(x)),
    "Sigmoid-Gumbel": lambda x: sig(x) * exp(-exp(-x)),
    "New sigmoid": lambda x: (exp(x) - exp(-x)) / sqrt(2 * (exp(2 * x) + exp(-2 * x))),
    "Root2sigmoid": lambda x: (2 ** (x / 2) - 2 ** (-x / 2)) / (2 * sqrt(2) * sqrt(2 * (2**x + 2.0**-x))),
    "LogLog": lambda x: exp(-exp(-x)),
    "Complementary loglog": lambda x: 1 - exp(-exp(x)),
    "Modified cloglog": lambda x: 1 - 2 * exp(-0.7 * exp(x)),
    "SechSig": lambda x: (x + sech(x)) * sig(x),
    "Parametric SechSig": lambda x, a: (x + a * sech(x + a)) * sig(x),
    "TanhSig": lambda x: (x + tanh(x)) * sig(x),
    "Parametric TanhSig": lambda x, a: (x + a * tanh(x + a)) * sig(x),
    "Multistate": lambda x, a, b, n: a + sum(sig(x - b * k) for k in range(n)),
    "Symmetric MSAF": lambda x, a: -1 + sig(x) + sig(x + a),
    "Rootsig": lambda x, a: a * x / (1 + sqrt(1 + a * a * x * x)),
    "Scaled softsign": lambda x, a, b: a * x / (b + abs(x)),
    "SoftTanh": lambda x, a: a * x / sqrt(1 + a * a * x * x),
    "Sigmoid-tanh combination": lambda x: where(x >= 0, sig(x), tanh(x)),
    "ISRU": lambda x, a: x / sqrt(1 + a * x * x),
    "SQNL": sqnl,
    "Log-SQNL": lambda x: (sqnl(x) + 1) / 2,
    "Hard sigmoid v1": lambda x: clip((x + 1) / 2, 0, 1),
    "Hard sigmoid v2": lambda x: clip(0.2 * x + 0.5, 0, 1),
    "Hard sigmoid v3": lambda x: clip((x + 3) / 6, 0, 1),
    "Hard tanh": lambda x, a, b: clip(x, a, b),
    "Shifted hard tanh, horizontal": lambda x, a: clip(x + a, -1, 1),
    "Shifted hard tanh, vertical": lambda x, a: clip(x, -1, 1) + a,
    "Saha-Bora": lambda x, k, a: 1 / (1 + k * x**a * (1 - x) ** (1 - a)),
    "Aranda-Ordaz": lambda x, a: 1 - (1 + a * exp(x)) ** (-1 / a),
    "LogSigmoid": lambda x: log(sig(x)),
    "Dynamic tanh": lambda x, a, g, b: g * tanh(a * x) + b,
    "Generalised logistic": lambda x, L, U, Q, B, v: L + (U - L) / (1 + Q * exp(-B * x)) ** (1 / v),
    "APA": apa,
    "Adaptive-slope sigmoid": lambda x, a: sig(a * x),
    "Slope-varying tanh": lambda x, a: tanh(a * x),
    "Trainable amplitude": lambda x, a, b: a * tanh(x) + b,
    "Generalised hyperbolic tangent": lambda x, a, b: a * (1 - exp(-b * x)) / (1 + exp(-b * x)),
    "Adaptive sigmoid": lambda x, a: (2 / a) * (1 / (1 + exp(-a * x)) - 0.5),
    "PSigmoid": lambda x, a, b: a * sig(b * x),
    "Parametric sigmoid function": lambda x, m: (1 + exp(-x)) ** (-m),
    "STAC-tanh": lambda x, a, b: where(x < -a, tanh(-a) + b * (x + a), where(x > a, tanh(a) + b * (x - a), tanh(x))),
    "LAAF": lambda x, a, n: tanh(n * a * x),
    "PSTanh": lambda x, a, b: a * x * (1 + tanh(b * x)),
    "SSinH": lambda x, a, b: a * sinh(b * x),
    "SExp": lambda x, a, b: a * (exp(b * x) - 1),
    "LAU": lambda x, a, b: x * log(1 + a * sig(b * x)),
    "AGumb": lambda x, a: 1 - (1 + a * exp(x)) ** (-1 / a),
    "TanhSoft": lambda x, a, b, c, d: tanh(a * x + b * exp(c * x)) * log(d + exp(x)),
    "TanhSoft-1": lambda x, a: tanh(a * x) * sp(x),
    "TanhSoft-2": lambda x, b, c: x * tanh(b * exp(c * x)),
    "TanhSoft-3": lambda x, a: log(1 + exp(x) * tanh(a * x)),
    "PSigramp": lambda x, a, b: sig(a) * sig(x) + (1 - sig(a)) * clip(b * x + 0.5, 0, 1),
    "Multiquadratic": lambda x, a, b: sqrt((x - a) ** 2 + b * b),
    "Adaptive RBF": lambda x, a, b: exp(-((x - a) ** 2) / (2 * b * b)),
    "GLN": lambda x, a: sig(a) * sin(x) + (1 - sig(a)) * tanh(x),
    "SiLU": lambda x: x * sig(x),
    "GELU": gelu,
    "GELU (tanh)": lambda x: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2,
    "Quick GELU": lambda x: x * sig(1.702 * x),
    "SiELU": lambda x: x * sig(2 * sqrt(2 / pi) * (x + 0.044715 * x**3)),
    "Symmetric GELU": lambda x, a: a * x * erf(x / sqrt(2)),
    "CaLU": lambda x: x * (arctan(x) / pi + 0.5),
    "LaLU": lambda x: x * where(x >= 0, 1 - exp(-x) / 2, exp(x) / 2),
    "CoLU": lambda x: x / (1 - x * exp(-(x + exp(x)))),
    "GoLU": lambda x: x * exp(-exp(-x)),
    "LogLogish": lambda x: x * (1 - exp(-exp(x))),
    "Mish": lambda x: x * tanh(sp(x)),
    "TanhExp": lambda x: x * tanh(exp(x)),
    "Serf": lambda x: x * erf(sp(x)),
    "Phish": lambda x: x * tanh(gelu(x)),
    "Logish": lambda x: x * log(1 + sig(x)),
    "Smish": lambda x, a, b: a * x * tanh(log(1 + sig(b * x))),
    "Gish": lambda x: x * log(2 - exp(-exp(x))),
    "Triple-state swish": lambda x, a, b: x * sig(x) * (sig(x) + sig(x - a) + sig(x - b)),
    "Generalised swish": lambda x: x * sig(exp(-x)),
    "Exponential swish": lambda x: exp(-x) * sig(x),
    "Derivative of sigmoid": lambda x: exp(-x) * sig(x) ** 2,
    "dSiLU": lambda x: sig(x) * (1 + x * (1 - sig(x))),
    "Double SiLU": lambda x: x * sig(x * sig(x)),
    "Modified SiLU": lambda x: x * sig(x) + exp(-x * x - 1) / 4,
    "TSiLU": lambda x: tanh(x * sig(x)),
    "ASiLU": lambda x: arctan(x * sig(x)),
    "SwAT": lambda x: x * sig(arctan(x)),
    "SelfArctan": lambda x: x * arctan(x),
    "LiSHT": lambda x: x * tanh(x),
    "ReHSec": lambda x: x * sech(x),
    "SinSig": lambda x: x * sin(pi * sig(x) / 2),
    "EANAF": lambda x: x * exp(x) / (exp(x) + 2),
    "Suish": lambda x: maximum(x, x * exp(-abs(x))),
    "TS-ReLU": lambda x: x * tanh(sig(x)),
    "TBS-ReLU": lambda x: x * tanh((1 - exp(-x)) / (1 + exp(-x))),
    "PFLU": lambda x: x * (1 + x / sqrt(1 + x * x)) / 2,
    "FPFLU": lambda x: where(x >= 0, x, x + x * x / sqrt(1 + x * x)),
    "Hard swish": lambda x: x * clip(x + 3, 0, 6) / 6,
    "HardMish": lambda x: x / 2 * clip(x + 2, 0, 2),
    "SC-swish": lambda x: pos(x * sig(x)),
    "CRReLU": lambda x, e: pos(x) + e * x * exp(-x * x / 2),
    "Swish": lambda x, b: x * sig(b * x),
    "E-swish": lambda x, a: a * x * sig(x),
    "AHAF": lambda x, a, b: a * x * sig(b * x),
    "PSSiLU": lambda x, a, b: x * (sig(a * x) - b) / (1 - b),
    "ACON-A": lambda x, b: x * sig(b * x),
    "ACON-B": lambda x, b, p: (1 - p) * x * sig(b * (1 - p) * x) + p * x,
    "ACON-C": lambda x, p1, p2, b: (p1 - p2) * x * sig(b * (p1 - p2) * x) + p2 * x,
    "PSGU": lambda x, a: x * tanh(a * sig(x)),
    "TBSReLU-l": lambda x, a: x * tanh(a * tanh(x / 2)),
    "PATS": lambda x, low, high: x * arctan((low + high) / 2 * pi * sig(x)),
    "AQuLU": lambda x, a, b: where(x >= (1 - b) / a, x, where(x >= -b / a, a * x * x + b * x, 0)),
    "SinLU": lambda x, a, b: (x + a * sin(b * x)) * sig(x),
    "CosLU": lambda x, a, b: (x + a * cos(b * x)) * sig(x),
    "ErfAct": lambda x, a, b: x * erf(a * exp(b * x)),
    "Pserf": lambda x, g, d: x * erf(g * log(1 + exp(d * x))),
    "Swim": lambda x, a: x * (1 + a * x / sqrt(1 + x * x)) / 2,
    "pLogish": lambda x, a, b: a * x * log(1 + sig(b * x)),
    "PGELU": lambda x, a: x * ndtr(x / a),
    "SC-mish": lambda x, a: pos(x * tanh(sp(a * x))),
    "p-swish": lambda x, a, b, c: where(x <= c, a * x * sig(b * x), x),
    "T-swish": lambda x, a, b, c: where(x >= c, x, a * x * sig(b * x)),
    "TeLU (adaptive)": lambda x, a: x * tanh(elu(a * x)),
    "Hard swish, adaptive": lambda x, b: 2 * x * clip(0.2 * b * x + 0.5, 0, 1),
    "PFTS": lambda x, T: where(x >= 0, x * sig(x) + T, T),
    "Flatten-T swish": lambda x, T: where(x >= 0, x * sig(x) + T, T),
    "PFPM": lambda x, p: where(x >= 0, x * tanh(sp(x)) + p, p),
    "AGLU": lambda x, l, k: x * apa(x, l, k),
    "GoLU general": lambda x, a, b, g: x * a * exp(-b * exp(-g * x)),
    "RMAF": lambda x, a, b, c: a * x * (b / (0.25 * (1 + exp(-x)) + 0.75)) ** c,
    "EIS": lambda x, a, b, g, d, t: x * sp(x) ** a / (sqrt(b + g * x * x) + d * exp(-t * x)),
    "EIS-1": lambda x: x * sp(x) / (x + 1.16 * exp(-x)),
    "ReLU": pos,
    "Shifted ReLU": lambda x: maximum(-1, x),
    "LeakyReLU": leaky,
    "Very leaky ReLU": leaky,
    "Optimised leaky ReLU": lambda x, l, u: where(x < 0, x * exp(-(u + l) / (u - l)), x),
    "RReLU": lambda x, l, u: where(x < 0, (l + u) / 2 * x, x),
    "Softsign RReLU": lambda x, l, u: 1 / (1 + x) ** 2 + where(x >= 0, x, (l + u) / 2 * x),
    "Sloped ReLU": lambda x, a: pos(a * x),
    "Noisy ReLU": pos,
    "ReLU6": lambda x, n: minimum(pos(x), n),
    "ReLU-N": lambda x, n: minimum(pos(x), n),
    "Bounded ReLU": lambda x, a: clip(x, 0, a),
    "Bounded leaky ReLU": lambda x, a, b: where(x <= 0, a * x, where(x <= b, x, a * x + (1 - a) * b)),
    "Hardshrink": lambda x, a: where(abs(x) > a, x, 0),
    "Softshrink": lambda x, a: sign(x) * pos(abs(x) - a),
    "Tanhshrink": lambda x: x - tanh(x),
    "V-ReLU": abs,
    "Pan": lambda x, a: pos(abs(x) - a),
    "AbsLU": lambda x, a: where(x >= 0, x, a * abs(x)),
    "Mirrored ReLU": lambda x: minimum(pos(1 - x), pos(1 + x)),
    "LSPTLU": lambda x, a: where(x < 0, 0.2 * x, where(x <= a, x, where(x <= 2 * a, 2 * a - x, 0))),
    "Soft modulus Q": lambda x: where(abs(x) <= 1, x * x * (2 - abs(x)), abs(x)),
    "Soft modulus T": lambda x, a: x * tanh(x / a),
    "SignReLU": lambda x, a: where(x >= 0, x, a * x / (1 + abs(x))),
    "Li-ReLU": lambda x, a: where(x >= 0, (1 + a) * x, a * x),
    "Squared ReLU": lambda x: pos(x) ** 2,
    "StarReLU": lambda x, s, b: s * pos(x) ** 2 + b,
    "ReLU power": lambda x, p: pos(x) ** p,
    "SineReLU": lambda x, a: where(x >= 0, x, a * (sin(x) - cos(x))),
    "Minsin": lambda x: minimum(x, sin(x)),
    "VLU": lambda x, a, b: pos(x) + a * sin(b * x),
    "NLReLU": lambda x, a: log(a * pos(x) + 1),
    "SLU": lambda x, a, b, c: where(x >= 0, a * x, b * sp(x) - c),
    "ReSP": lambda x, a: where(x >= 0, a * x + log(2), sp(x)),
    "PReNU": lambda x, a: where(x >= 0, x - a * log(pos(x) + 1), 0),
    "RT-ReLU": lambda x, s: pos(x),
    "RT-PReLU": lambda x, a, s: where(x >= 0, x, a * x),
    "Elastic ReLU": lambda x, a: pos(x),
    "EPReLU": lambda x, a, b: where(x >= 0, x, b * x),
    "ReLU-Prob": lambda x, s: pos(x),
    "Displaced ReLU": lambda x, a: maximum(x, -a),
    "DLReLU": lambda x, a, q: where(x < 0, a * q * x, x),
    "exp-DLReLU": lambda x, a, q: where(x < 0, a * exp(-q) * x, x),
    "Tent": lambda x, a: pos(a - abs(x)),
    "Hat": lambda x, a: where((x >= 0) & (x <= a / 2), x, where((x >= 0) & (x <= a), a - x, 0)),
    "LS-ReLU": lambda x, a, b: where(
        x <= 0, x / (1 + abs(x)), where(x <= b, x, log(a * pos(x) + 1) + abs(log(a * b + 1) - b))
    ),
    "Piecewise linear unit": lambda x, a, c: maximum(a * (x + c) - c, minimum(a * (x - c) + c, x)),
    "Bi-firing": huber,
    "Bounded bi-firing": lambda x, a, b: minimum(huber(x, a), b),
    "JumpReLU": lambda x, t, e: x * (x > t),
    "REReLU": pos,
    "PReLU": leaky,
    "PReLU+": lambda x, a: where(x >= 0, a * x, 0),
    "Flexible ReLU": lambda x, b: pos(x) + b,
    "ShiLU": lambda x, a, b: a * pos(x) + b,
    "RPReLU": lambda x, a, b, c: where(x > a, x - a + b, c * (x - a) + b),
    "LeLeLU": lambda x, a: where(x >= 0, a * x, 0.01 * a * x),
    "PREU": lambda x, a, b: where(x >= 0, a * x, a * x * exp(b * x)),
    "SMU": lambda x, a, b: ((1 + a) * x + (1 - a) * x * erf(b * (1 - a) * x)) / 2,
    "SMU-1": lambda x, a, b: ((1 + a) * x + sqrt((1 - a) ** 2 * x * x + b * b)) / 2,
    "SAU": lambda x, a, b: (
        exp(-b * b * x * x / 2) * (1 - a) / (b * sqrt(2 * pi)) + x * ((1 + a) + (1 - a) * erf(b * x / sqrt(2))) / 2
    ),
    "AReLU": lambda x, a, b: where(x >= 0, (1 + sig(b)) * x, clip(a, 0.01, 0.99) * x),
    "DPReLU": lambda x, a, b: where(x >= 0, a * x, b * x),
    "Dual line": lambda x, a, b, m: where(x >= 0, a * x, b * x) + m,
    "PiLU": lambda x, a, b, c: where(x >= c, a * x + c * (1 - a), b * x + c * (1 - b)),
    "DPAF": lambda x, a, m: where(x >= 0, a * tanh(x) + m, tanh(x) + m),
    "FPAF": lambda x, a, b: where(x >= 0, a * x, b * tanh(x)),
    "Adaptive hard tanh": lambda x, a, b: clip(a * (x - b), -1, 1),
    "SReLU": lambda x, r, p, l, q: where(x >= r, r + p * (x - r), where(x <= l, l + q * (x - l), x)),
    "N-activation": n_activation,
    "ALiSA": lambda x, p, q: where(x >= 1, p * x - p + 1, where(x >= 0, x, q * x)),
    "PTELU": lambda x, a, b: where(x >= 0, x, a * tanh(b * x)),
    "TReLU (b)": lambda x, b: where(x >= 0, x, tanh(b * x)),
    "TReLU2 (a)": lambda x, a: where(x >= 0, x, a * tanh(x)),
    "TaLU": lambda x, a: where(x >= 0, x, where(x > a, tanh(x), tanh(a))),
    "PTaLU": lambda x, a, b: where(x >= b, x, where(x > a, tanh(x), tanh(a))),
    "TanhLU": lambda x, a, b, c: a * tanh(b * x) + c * x,
    "ReLTanh": reltanh,
    "Bendable linear unit": lambda x, a: a * (sqrt(x * x + 1) - 1) + x,
    "ReBLU": lambda x, a: where(x > 0, a * (sqrt(x * x + 1) - 1) + x, 0),
    "DELU (Pishchik)": lambda x, n: where(x > 0, (n + 0.5) * x + abs(exp(-x) - 1), x * sig(x)),
    "ErfReLU": lambda x, a: where(x >= 0, x, a * erf(x)),
    "FPLUS": lambda x, a, b: a * x * (1 - b * x) ** (step(x) - 1),
    "PFPLUS": lambda x, a, b: a * x * where(x >= 0, 1, 1 / where(x < 0, 1 - b * x, 1)),
    "PVLU": lambda x, a, b: pos(x) + a * sin(b * x),
    "EAPCU": lambda x, a, b: where(x >= 0, b * x, a * x * tanh(sp(a * x))),
    "RePSU": repsu,
    "MMeLU": lambda x, a, b, c: a * pos(b - abs(x - c)) + (1 - a) * pos(x),
    "PolyReLU": lambda x, a0, a1, a2, a3: a0 + a1 * pos(x) + a2 * pos(x) ** 2 + a3 * pos(x) ** 3,
    "xIELU": lambda x, p, n, b: where(
        x > 0, sp(p) * x * x + b * x, (b + sp(n)) * (exp(x) - 1) - (b + sp(n)) * x + b * x
    ),
    "Tailored ReLU": lambda x, a: sqrt(2 / (1 + a * a)) * leaky(x, a),
    "ELU": elu,
    "SELU": lambda x, l, a: l * elu(x, a),
    "CELU": lambda x, a: where(x >= 0, x, a * (exp(x / a) - 1)),
    "PELU": pelu,
    "MPELU": lambda x, a, b: where(x >= 0, x, a * (exp(b * x) - 1)),
    "PDELU": lambda x, a, t: where(x > 0, x, a * (pos(1 + (1 - t) * x) ** (1 / (1 - t)) - 1)),
    "FELU": lambda x, a: where(x > 0, x, a * (2 ** (x / log(2)) - 1)),
    "P+FELU": lambda x, a, b: where(x > 0, x, a * (2 ** (x / log(2)) - 1)) + b,
    "EELU": lambda x, a, b, e: where(x >= 0, x, a * (exp(b * x) - 1)),
    "EDELU": lambda x, a, c, b: where(x >= c, x, (exp(a * x) - 1) / b),
    "Adaptive combination 1": lambda x, a: a * leaky(x) + (1 - a) * elu(x),
    "Adaptive combination 2": lambda x, a, p, q, r: sig(a * x) * leaky(x, p) + (1 - sig(a * x)) * pelu(x, q, r),
    "P-E2-ReLU": lambda x, a, b: a * pos(x) + b * elu(x) + (1 - a - b) * (-elu(-x)),
    "P-E2-Id": lambda x, a: a * x + (1 - a) * (elu(x) - elu(-x)),
    "Soft exponential": soft_exponential,
    "ShELU": lambda x, b: elu(x + b),
    "SvELU": lambda x, b: elu(x) + b,
    "PShELU": lambda x, a, b, c: pelu(x + c, a, b),
    "PSvELU": lambda x, a, b, c: pelu(x, a, b) + c,
    "PSELU": lambda x, a, b: where(x >= 0, a * x, a * b * (exp(x) - 1)),
    "LPSELU": lambda x, a, b, c: where(x >= 0, a * x, a * b * (exp(x) - 1) + c * x),
    "LPSELU-RP": lambda x, a, b, c, m: where(x >= 0, a * x, a * b * (exp(x) - 1) + c * x) + m,
    "Leaky SELU": lambda x, a, b, c: where(x >= 0, a * x, a * b * (exp(x) - 1) + a * c * x),
    "SERLU": lambda x, l, a: where(x >= 0, l * x, l * a * x * exp(x)),
    "Scaled SELU": lambda x, a, b, c: where(x >= 0, a * x, a * b * (exp(c * x) - 1)),
    "RSigELU": lambda x, a: where(x > 1, x * sig(x) * a + x, where(x >= 0, x, a * (exp(x) - 1))),
    "RSigELUD": lambda x, a, b: where(x > 1, x * sig(x) * a + x, where(x >= 0, x, b * (exp(x) - 1))),
    "HardSReLUE": lambda x, a: where(x >= 0, a * x * clip((x + 1) / 2, 0, 1) + x, a * (exp(x) - 1)),
    "ELiSH": lambda x: where(x >= 0, x * sig(x), (exp(x) - 1) * sig(x)),
    "Hard ELiSH": lambda x: where(x >= 0, x * clip((x + 1) / 2, 0, 1), (exp(x) - 1) * clip((x + 1) / 2, 0, 1)),
    "Tanh linear unit": lambda x: where(x >= 0, x, 2 * sig(x) - 1),
    "DiffELU": lambda x, a, b: where(x >= 0, x, a * (x * exp(x) - b * exp(b * x))),
    "PolyLU": lambda x: where(x >= 0, x, 1 / (1 - neg(x)) - 1),
    "IpLU": lambda x, a: where(x >= 0, x, x / (1 + abs(x) ** a)),
    "PoLU": lambda x, a: where(x >= 0, x, (1 - neg(x)) ** (-a) - 1),
    "LELU": lambda x, a, b: where(x >= 0, x, a * (exp(x) - 1) + b * x),
    "ISRLU": lambda x, a: where(x >= 0, x, x / sqrt(1 + a * x * x)),
    "Softplus": lambda x, b: log(1 + exp(b * x)) / b,
    "Parametric softplus": lambda x, a, b: a * (sp(x) - b),
    "Soft++": lambda x, a, b: log(1 + exp(a * x)) + x / b - log(2),
    "Rand softplus": lambda x, a: (1 - a) * pos(x) + a * sp(x),
    "SquarePlus": lambda x, b: (x + sqrt(x * x + b)) / 2,
    "StepPlus": lambda x, e: (1 + x / sqrt(x * x + e)) / 2,
    "BipolarPlus": lambda x, e: x / sqrt(x * x + e),
    "vReLUPlus": lambda x, e: sqrt(x * x + e),
    "LReLUPlus": lambda x, a, e: (x + a * x + root((1 - a) * x, e)) / 2,
    "SoftshrinkPlus": lambda x, a, e: x + (root(x - a, e) - root(x + a, e)) / 2,
    "PanPlus": lambda x, a, e: -a + (root(x - a, e) + root(x + a, e)) / 2,
    "BReLUPlus": lambda x, e: (1 + root(x, e) - root(x - 1, e)) / 2,
    "HardTanhPlus": lambda x, e: (root(x + 1, e) - root(x - 1, e)) / 2,
    "SReLUPlus": lambda x, a, t, e: a * x + (a - 1) * (root(x - t, e) - root(x + t, e)) / 2,
    "HardshrinkPlus": lambda x, a, e: x * (1 + ((x - a) / root(x - a, e) - (x + a) / root(x + a, e)) / 2),
    "TSAFPlus": lambda x, a, b, c, e: (root(x - a + c, e) + root(x - a, e) + root(x + b - c, e) - root(x + b, e)) / 4,
    "ELUPlus": lambda x, a, e: (x + root(x, e)) / 2 + (a * (exp(x) - 1) - root(a * (exp(x) - 1), e)) / 2,
    "SwishPlus": lambda x, e: x * (1 + x / sqrt(x * x + e)) / 2,
    "MishPlus": lambda x, e: x * ((x + sqrt(x * x + e)) / 2) / sqrt(((x + sqrt(x * x + e)) / 2) ** 2 + e),
    "LogishPlus": lambda x, e: x * log(1 + (1 + x / sqrt(x * x + e)) / 2),
    "SoftsignPlus": lambda x, e: x / (1 + root(x, e)),
    "SignReLUPlus": lambda x, e: (x + root(x, e)) / 2 + (x - root(x, e)) / (2 * root(1 - x, e)),
    "SmoothReLU": lambda x, a: where(x <= 0, 0, where(x <= a, x * x / (2 * a), x - a / 2)),
    "SmeLU": lambda x, b: where(x <= -b, 0, where(abs(x) < b, (x + b) ** 2 / (4 * b), x)),
    "GReLU softplus log-base": lambda x, a, b: log(1 + (1 + sp(a)) ** (sp(b) * x)) / (sp(b) * log(1 + sp(a))),
    "UAF": lambda x, A, B, C, D, E: log(1 + exp(A * (x + B) + C * x * x)) - log(1 + exp(D * (x - B))) + E,
    "Square": lambda x: x * x,
    "SQLU": lambda x: where(x > 0, x, where(x >= -2, x + x * x / 4, -1)),
    "Squish": lambda x: where(x > 0, x + x * x / 32, where(x >= -2, x + x * x / 2, 0)),
    "SqREU": lambda x: where(x > 0, x, where(x >= -2, x + x * x / 2, 0)),
    "Square softplus": lambda x: where(x > 0.5, x, where(abs(x) <= 0.5, (x + 0.5) ** 2 / 2, 0)),
    "LinQ": lambda x, a: where(
        x >= 2 - 2 * a,
        a * x + 1 - 2 * a + a * a,
        where(abs(x) < 2 - 2 * a, x * (4 - abs(x)) / 4, a * x - 1 + 2 * a - a * a),
    ),
    "Sqrt": lambda x: sign(x) * sqrt(abs(x)),
    "SSAF": lambda x, a: sign(x) * sqrt(2 * a * abs(x)),
    "NCU": lambda x: x - x**3,
    "Triple": lambda x, a: a * x**3,
    "SQU": lambda x: x * x + x,
    "Bent identity": lambda x: (sqrt(x * x + 1) - 1) / 2 + x,
    "Mishra": lambda x: ((x / (1 + abs(x))) ** 2 + x / (1 + abs(x))) / 2,
    "Symlog": lambda x: sign(x) * log(1 + abs(x)),
    "Symexp": lambda x: sign(x) * (exp(abs(x)) - 1),
    "Exponential": lambda x: exp(-x),
    "Growing exponential": exp,
    "Gaussian": lambda x, a: exp(-x * x / (2 * a * a)),
    "Polyexp": lambda x, a, b, c, d: (a * x * x + b * x + c) * exp(-d * x * x),
    "Wave": lambda x, a: (1 - x * x) * exp(-a * x * x),
    "PMAF": lambda x, a: (
        2 / (sqrt(3) * pi**0.25) * (1 - where(x < 0, x + a, x - a) ** 2) * exp(-(where(x < 0, x + a, x - a) ** 2) / 2)
    ),
    "PRBF": lambda x, a, b: exp(-(where(x >= a, x - 2 * a, where(x <= -a, x + 2 * a, x)) ** 2) / b**2),
    "SPOCU": spocu,
    "PUAF": puaf,
    "KDAC": kdac,
    "SGT": lambda x, a, p, b, q: where(x < 0, -a * abs(x) ** p, b * pos(x) ** q),
    "E-Tanh": lambda x, a: a * exp(x) * tanh(x),
    "Evolved tanh-ReLU": lambda x, a: a * tanh(x * x) + pos(x),
    "Evolved tanh-log-ReLU": lambda x: maximum(tanh(log(abs(x))), pos(x)),
    "max(x, sig x)": lambda x: maximum(x, sig(x)),
    "max(x, tanh x)": lambda x: maximum(x, tanh(x)),
    "Logistic-map chaotic": lambda x, r, n: iterated(lambda c: r * c * (1 - c), r * sig(x) * (1 - sig(x)), n),
    "Fusion chaotic": lambda x, r, a, b, n: iterated(
        lambda z: r * z * (1 - z) + z + a - b / (2 * pi) * sin(2 * pi * z), sig(x), n
    ),
    "Cascade chaotic": lambda x, a, b, n: iterated(lambda z: a * sin(pi * b * sin(pi * z)), tanh(x), n),
    "Cauchy": lambda x, l1, l2, d: (l1 * x + l2) / (x * x + d * d),
    "Sine": lambda x, w: sin(w * x),
    "SIREN": lambda x, w0: sin(w0 * x),
    "Cosine": lambda x: 1 - cos(x),
    "Cosid": lambda x: cos(x) - x,
    "Sinp": lambda x, a: sin(x) - a * x,
    "GCU": lambda x: x * cos(x),
    "ASU": lambda x: x * sin(x),
    "Sinc": sinc,
    "Sinc+x": lambda x: sinc(x) + x,
    "SSU": lambda x: pi * sinc(x - pi),
    "DSU": lambda x: pi / 2 * (sinc(x - pi) - sinc(x + pi)),
    "Snake": lambda x, a: x + sin(a * x) ** 2 / a,
    "x+sin x": lambda x: x + sin(x),
    "Arctid": lambda x: arctan(x) ** 2 - x,
    "x asinh^2": lambda x: x * arcsinh(x) ** 2,
    "Modified arcsinh": lambda x: arcsinh(x) * sqrt(abs(x)) / 12,
    "Hyper-sinh": lambda x: where(x > 0, sinh(x) / 3, x**3 / 4),
    "m-arcsinh": lambda x: arcsinh(x) * sqrt(abs(x)) / 12,
    "Comb-H-sine": lambda x, a: sinh(a * x) + arcsinh(a * x),
    "HcLSH": lambda x: where(x >= 0, log(cosh(x) + abs(x) * cosh(x / 2)), log(cosh(x)) + x),
    "Gabor": lambda x, a, b: exp(-a * x * x) * cos(b * x),
    "HOSC": lambda x, b: tanh(b * sin(x)),
    "WIRE": lambda x, w, s: cos(w * x) * exp(-((s * x) ** 2)),
    "FracReLU": lambda x, a: where(x > 0, pos(x) ** (1 - a) / gamma(2 - a), 0),
    "FracPReLU": lambda x, a, b: where(x > 0, abs(x) ** (1 - a) / gamma(2 - a), -b * abs(x) ** (1 - a) / gamma(2 - a)),
    "FracLReLU": lambda x, a, b: where(x > 0, abs(x) ** (1 - a) / gamma(2 - a), -b * abs(x) ** (1 - a) / gamma(2 - a)),
    "FracSoftplus": lambda x, a, h, N: fractional(x, a, h, N, sp),
    "FracTanh": lambda x, a, h, N: fractional(x, a, h, N, tanh),
    "FALU": falu,
    "FracELU": lambda x, a, h, N: fractional(x, a, h, N, elu),
    "FracSiLU": lambda x, a, h, N: fractional(x, a, h, N, lambda t: t * sig(t)),
    "FracGELU": lambda x, a, h, N: fractional(x, a, h, N, gelu),
    "Rational": lambda x, a0, a1, a2, a3, b0, b1, b2: (a0 + a1 * x + a2 * x**2 + a3 * x**3) / (b0 + b1 * x + b2 * x**2),
    "Derf": lambda x, a, s, g, b: g * erf(a * x + s) + b,
    "Interpolated ReLU-GELU": lambda x, i: (1 - i) * pos(x) + i * gelu(x),
}
