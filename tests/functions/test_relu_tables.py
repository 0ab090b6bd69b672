"""Sections 8 and 9 of the catalogue: every rectifier is its formula, and is what it is said to be a special case of."""

# ruff: noqa: E741 (l is the name of a parameter in the tables)
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.catalogue import relu_fixed, relu_trainable

X = torch.tensor([-37.0, -3.7, -1.6, -0.62, -1e-3, 0.31, 0.93, 1.77, 4.2, 41.0], dtype=torch.float64)
INF = math.inf


def s(x):
    return 1 / (1 + math.exp(-x))


def sp(x):
    return math.log1p(math.exp(x))


def sgn(x):
    return math.copysign(1.0, x)


def huber(x, a):
    return abs(x) - a / 2 if abs(x) > a else x * x / (2 * a)


def repsu(x, a, b, c, d, e):
    k = (x - b) / (1 + math.exp(-sgn(x - c) * abs(x - c) ** d / e))
    return a * k + (1 - a) * (2 * x - k) if x >= b else 0.0


def reltanh(x, a, b):
    t = max(min(x, b), a)
    return math.tanh(t) + (1 - math.tanh(t) ** 2) * (x - t)


# The formulas as the survey prints them, one number at a time; parameters away from their defaults.
FIXED = {
    "ReLU": (lambda x: max(0, x), {}),
    "Shifted ReLU": (lambda x: max(-1, x), {}),
    "LeakyReLU": (lambda x, a: x if x >= 0 else a * x, {"a": 0.03}),
    "Very leaky ReLU": (lambda x: x if x >= 0 else x / 3, {}),
    "Optimised leaky ReLU": (lambda x, l, u: x if x >= 0 else x * math.exp(-(u + l) / (u - l)), {"l": 2.0, "u": 7.0}),
    "RReLU": (lambda x, l, u: x if x >= 0 else (l + u) / 2 * x, {"l": 0.1, "u": 0.2}),
    "Softsign RReLU": (lambda x, l, u: (1 + x) ** -2 + (x if x >= 0 else (l + u) / 2 * x), {"l": 0.1, "u": 0.2}),
    "Sloped ReLU": (lambda x, a: max(0, a * x), {"a": 3.0}),
    "Noisy ReLU": (lambda x: max(0, x), {}),
    "ReLU6": (lambda x, n: min(max(0, x), n), {"n": 3.0}),
    "ReLU-N": (lambda x, n: min(max(0, x), n), {"n": 3.0}),
    "Bounded ReLU": (lambda x, a: min(max(0, x), a), {"a": 2.0}),
    "Bounded leaky ReLU": (
        lambda x, a, b: a * x if x <= 0 else x if x <= b else a * x + (1 - a) * b,
        {"a": 0.2, "b": 1.5},
    ),
    "Hardshrink": (lambda x, a: x if abs(x) > a else 0, {"a": 0.7}),
    "Softshrink": (lambda x, a: sgn(x) * max(0, abs(x) - a), {"a": 0.7}),
    "Tanhshrink": (lambda x: x - math.tanh(x), {}),
    "V-ReLU": (abs, {}),
    "Pan": (lambda x, a: max(0, abs(x) - a), {"a": 0.8}),
    "AbsLU": (lambda x, a: x if x >= 0 else a * abs(x), {"a": 0.3}),
    "Mirrored ReLU": (lambda x: min(max(0, 1 - x), max(0, 1 + x)), {}),
    "LSPTLU": (lambda x, a: 0.2 * x if x < 0 else x if x <= a else 2 * a - x if x <= 2 * a else 0, {"a": 1.2}),
    "Soft modulus Q": (lambda x: x * x * (2 - abs(x)) if abs(x) <= 1 else abs(x), {}),
    "Soft modulus T": (lambda x, a: x * math.tanh(x / a), {"a": 0.5}),
    "SignReLU": (lambda x, a: x if x >= 0 else a * x / (1 + abs(x)), {"a": 0.7}),
    "Li-ReLU": (lambda x, a: (1 + a) * x if x >= 0 else a * x, {"a": 0.3}),
    "Squared ReLU": (lambda x: max(0, x) ** 2, {}),
    "StarReLU": (lambda x, s, b: s * max(0, x) ** 2 + b, {"s": 0.7, "b": 0.1}),
    "ReLU power": (lambda x, p: max(0, x) ** p, {"p": 1.5}),
    "SineReLU": (lambda x, a: x if x >= 0 else a * (math.sin(x) - math.cos(x)), {"a": 0.3}),
    "Minsin": (lambda x: min(x, math.sin(x)), {}),
    "VLU": (lambda x, a, b: max(0, x) + a * math.sin(b * x), {"a": 0.4, "b": 3.0}),
    "NLReLU": (lambda x, a: math.log(a * max(0, x) + 1), {"a": 2.0}),
    "SLU": (lambda x, a, b, c: a * x if x >= 0 else b * sp(x) - c, {"a": 1.1, "b": 1.5, "c": 0.2}),
    "ReSP": (lambda x, a: a * x + math.log(2) if x >= 0 else sp(x), {"a": 1.2}),
    "PReNU": (lambda x, a: x - a * math.log(x + 1) if x >= 0 else 0, {"a": 0.6}),
    "RT-ReLU": (lambda x, s: max(0, x), {"s": 0.3}),
    "RT-PReLU": (lambda x, a, s: x if x >= 0 else a * x, {"a": 0.2, "s": 0.3}),
    "Elastic ReLU": (lambda x, a: max(0, x), {"a": 0.3}),
    "EPReLU": (lambda x, a, b: x if x >= 0 else b * x, {"a": 0.3, "b": 0.1}),
    "ReLU-Prob": (lambda x, s: max(0, x), {"s": 0.3}),
    "Displaced ReLU": (lambda x, a: max(x, -a), {"a": 0.4}),
    "DLReLU": (lambda x, a, q: x if x >= 0 else a * q * x, {"a": 0.02, "q": 0.3}),
    "exp-DLReLU": (lambda x, a, q: x if x >= 0 else a * math.exp(-q) * x, {"a": 0.02, "q": 0.3}),
    "Tent": (lambda x, a: max(0, a - abs(x)), {"a": 1.3}),
    "Hat": (lambda x, a: x if 0 <= x <= a / 2 else a - x if 0 <= x <= a else 0, {"a": 3.0}),
    "LS-ReLU": (
        lambda x, a, b: (
            x / (1 + abs(x)) if x <= 0 else x if x <= b else math.log(a * x + 1) + abs(math.log(a * b + 1) - b)
        ),
        {"a": 2.0, "b": 1.5},
    ),
    "Piecewise linear unit": (lambda x, a, c: max(a * (x + c) - c, min(a * (x - c) + c, x)), {"a": 0.3, "c": 0.8}),
    "Bi-firing": (huber, {"a": 1.5}),
    "Bounded bi-firing": (lambda x, a, b: min(huber(x, a), b), {"a": 1.5, "b": 3.0}),
    "JumpReLU": (lambda x, t, e: x if x > t else 0, {"t": 0.6, "e": 0.1}),
    "REReLU": (lambda x: max(0, x), {}),
}
TRAINABLE = {
    "PReLU": (lambda x, a: x if x >= 0 else a * x, {"a": 0.3}),
    "PReLU+": (lambda x, a: a * x if x >= 0 else 0, {"a": 0.7}),
    "Flexible ReLU": (lambda x, b: max(0, x) + b, {"b": 0.2}),
    "ShiLU": (lambda x, a, b: a * max(0, x) + b, {"a": 0.6, "b": 0.2}),
    "RPReLU": (lambda x, a, b, c: x - a + b if x > a else c * (x - a) + b, {"a": 0.4, "b": 0.2, "c": 0.1}),
    "LeLeLU": (lambda x, a: a * x if x >= 0 else 0.01 * a * x, {"a": 1.4}),
    "PREU": (lambda x, a, b: a * x if x >= 0 else a * x * math.exp(b * x), {"a": 1.2, "b": 0.4}),
    "SMU": (lambda x, a, b: ((1 + a) * x + (1 - a) * x * math.erf(b * (1 - a) * x)) / 2, {"a": 0.1, "b": 1.3}),
    "SMU-1": (lambda x, a, b: ((1 + a) * x + math.sqrt((1 - a) ** 2 * x * x + b * b)) / 2, {"a": 0.1, "b": 0.7}),
    "SAU": (
        lambda x, a, b: (
            (1 - a) / (b * math.sqrt(2 * math.pi)) * math.exp(-((b * x) ** 2) / 2)
            + x / 2 * ((1 + a) + (1 - a) * math.erf(b * x / math.sqrt(2)))
        ),
        {"a": 0.1, "b": 1.3},
    ),
    "AReLU": (lambda x, a, b: (1 + s(b)) * x if x >= 0 else min(max(a, 0.01), 0.99) * x, {"a": 1.4, "b": 0.3}),
    "DPReLU": (lambda x, a, b: a * x if x >= 0 else b * x, {"a": 1.1, "b": 0.2}),
    "Dual line": (lambda x, a, b, m: (a * x if x >= 0 else b * x) + m, {"a": 1.1, "b": 0.2, "m": 0.3}),
    "PiLU": (lambda x, a, b, c: a * x + c * (1 - a) if x >= c else b * x + c * (1 - b), {"a": 1.1, "b": 0.2, "c": 0.5}),
    "DPAF": (lambda x, a, m: (a * math.tanh(x) if x >= 0 else math.tanh(x)) + m, {"a": 1.3, "m": 0.2}),
    "FPAF": (lambda x, a, b: a * x if x >= 0 else b * math.tanh(x), {"a": 1.3, "b": 0.6}),
    "Adaptive hard tanh": (lambda x, a, b: min(max(a * (x - b), -1), 1), {"a": 0.5, "b": 0.2}),
    "SReLU": (
        lambda x, r, p, l, q: r + p * (x - r) if x >= r else l + q * (x - l) if x <= l else x,
        {"r": 1.2, "p": 0.4, "l": -0.8, "q": 0.2},
    ),
    "N-activation": (
        lambda x, a, b: x - 2 * min(a, b) if x < min(a, b) else x - 2 * max(a, b) if x > max(a, b) else -x,
        {"a": 0.7, "b": -1.1},
    ),
    "ALiSA": (lambda x, p, q: p * x - p + 1 if x >= 1 else x if x >= 0 else q * x, {"p": 0.6, "q": 0.2}),
    "PTELU": (lambda x, a, b: x if x >= 0 else a * math.tanh(b * x), {"a": 0.8, "b": 0.7}),
    "TReLU (b)": (lambda x, b: x if x >= 0 else math.tanh(b * x), {"b": 0.7}),
    "TReLU2 (a)": (lambda x, a: x if x >= 0 else a * math.tanh(x), {"a": 0.7}),
    "TaLU": (lambda x, a: x if x >= 0 else math.tanh(x) if x > a else math.tanh(a), {"a": -0.8}),
    "PTaLU": (lambda x, a, b: x if x >= b else math.tanh(x) if x > a else math.tanh(a), {"a": -0.9, "b": 0.5}),
    "TanhLU": (lambda x, a, b, c: a * math.tanh(b * x) + c * x, {"a": 0.8, "b": 0.7, "c": 0.2}),
    "ReLTanh": (reltanh, {"a": -1.2, "b": 0.4}),
    "Bendable linear unit": (lambda x, a: a * (math.sqrt(x * x + 1) - 1) + x, {"a": 0.6}),
    "ReBLU": (lambda x, a: a * (math.sqrt(x * x + 1) - 1) + x if x > 0 else 0, {"a": 0.6}),
    "DELU (Pishchik)": (lambda x, n: (n + 0.5) * x + abs(math.exp(-x) - 1) if x > 0 else x * s(x), {"n": 0.3}),
    "ErfReLU": (lambda x, a: x if x >= 0 else a * math.erf(x), {"a": 0.4}),
    "FPLUS": (lambda x, a, b: a * x if x >= 0 else a * x / (1 - b * x), {"a": 1.2, "b": 0.4}),
    "PFPLUS": (lambda x, a, b: a * x if x >= 0 else a * x / (1 - b * x), {"a": 1.2, "b": 0.4}),
    "PVLU": (lambda x, a, b: max(0, x) + a * math.sin(b * x), {"a": 0.4, "b": 3.0}),
    "EAPCU": (lambda x, a, b: b * x if x >= 0 else a * x * math.tanh(sp(a * x)), {"a": 0.7, "b": 1.2}),
    "RePSU": (repsu, {"a": 0.3, "b": 0.2, "c": 0.5, "d": 1.4, "e": 0.8}),
    "MMeLU": (
        lambda x, a, b, c: a * max(0, b - abs(x - c)) + (1 - a) * max(0, x),
        {"a": 0.3, "b": 1.4, "c": 0.6},
    ),
    "PolyReLU": (
        lambda x, a0, a1, a2, a3: a0 + sum(a * max(0, x) ** i for i, a in enumerate((a1, a2, a3), 1)),
        {"a0": 0.1, "a1": 0.5, "a2": -0.3, "a3": 0.2},
    ),
    "xIELU": (
        lambda x, p, n, b: (
            sp(p) * x * x + b * x if x > 0 else (b + sp(n)) * (math.exp(x) - 1) - (b + sp(n)) * x + b * x
        ),
        {"p": 0.3, "n": -0.4, "b": 0.6},
    ),
    "Tailored ReLU": (lambda x, a: math.sqrt(2 / (1 + a * a)) * (x if x >= 0 else a * x), {"a": 0.4}),
}
HELD = FIXED | TRAINABLE


def f(name, x=X, **parameters):
    return ac.functions.functional(name)(x, **parameters)


def test_every_elementwise_row_has_its_formula_here():
    plain = {r.name for r in (*relu_fixed.ROWS, *relu_trainable.ROWS) if r.function is not None}
    assert plain == set(HELD)


@pytest.mark.parametrize("name", HELD)
def test_each_row_is_its_formula_with_numbers_and_with_trained_tensors(name):
    formula, parameters = HELD[name]
    expected = torch.tensor([float(formula(x, **parameters)) for x in X.tolist()], dtype=torch.float64)
    torch.testing.assert_close(f(name, **parameters), expected, rtol=1e-9, atol=1e-9)
    tensors = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in parameters.items()}
    torch.testing.assert_close(f(name, **tensors).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, (_, p) in HELD.items() if p and n not in ("JumpReLU", "PTaLU")])
def test_gradients_of_all_parameters_are_those_of_finite_differences(name):
    spec = ac.functions.spec(name)
    x = torch.tensor([-2.3, -1.31, -0.55, 0.27, 0.83, 1.73, 2.6], dtype=torch.float64)
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in HELD[name][1].values()]
    names = list(HELD[name][1])
    if f(name, x, **dict(zip(names, values, strict=True))).requires_grad:
        assert torch.autograd.gradcheck(lambda *v: spec.function(x, **dict(zip(names, v, strict=True))), values)


@pytest.mark.parametrize(
    ("name", "parameters", "module"),
    [
        ("ReLU", {}, nn.ReLU()),
        ("LeakyReLU", {"a": 0.2}, nn.LeakyReLU(0.2)),
        ("RReLU", {}, nn.RReLU().eval()),
        ("ReLU6", {}, nn.ReLU6()),
        ("Hardshrink", {}, nn.Hardshrink()),
        ("Softshrink", {"a": 0.3}, nn.Softshrink(0.3)),
        ("Tanhshrink", {}, nn.Tanhshrink()),
        ("PReLU", {}, nn.PReLU()),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_agree_with_torch(name, parameters, module):
    x = torch.linspace(-20, 20, 4001)
    torch.testing.assert_close(f(name, x, **parameters), module(x), rtol=1e-6, atol=1e-6)


def test_bi_firing_is_the_huber_loss():
    huber_loss = nn.functional.huber_loss(X, torch.zeros_like(X), reduction="none", delta=1.5)
    torch.testing.assert_close(f("Bi-firing", a=1.5), huber_loss / 1.5)


def test_special_cases():
    same = torch.testing.assert_close
    same(f("PReLU", a=0.01), f("LeakyReLU"))
    same(f("StarReLU", s=1.0, b=0.0), f("ReLU^2"))
    same(f("ReLU power", p=2.0), f("ReLU2"))
    same(f("ReLU power", p=1.0), f("ReLU"))
    same(f("SReLU", r=1e30, l=0.0, q=0.3), f("PReLU", a=0.3))
    same(f("SMU", a=0.2, b=1e9), f("LeakyReLU", a=0.2))
    same(f("SMU-1", a=0.2, b=1e-6), f("LeakyReLU", a=0.2), rtol=1e-6, atol=1e-6)
    same(f("SAU", a=0.2, b=1e9), f("LeakyReLU", a=0.2))
    same(f("BLU", a=0.0), X)
    same(f("BLU", a=1.0), torch.sqrt(X**2 + 1) - 1 + X)
    same(f("TanhLU", a=0.0, c=1.0), X)
    same(f("FPLUS"), f("SignReLU"))
    same(f("JumpReLU", t=0.0), f("ReLU"))
    same(f("RePSU"), f("ReLU"))
    same(f("DPReLU", a=1.0, b=0.1), f("LeakyReLU", a=0.1))
    same(f("Tent"), f("Mirrored ReLU"))
    same(f("PVLU", a=1.0), f("VLU"))
    same(f("ReLTanh", a=-1e3, b=1e3), torch.tanh(X))


@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("StarReLU", 1.0, 0.4472),
        ("SignReLU", -1.0, -0.5),
        ("PolyReLU", 0.5, 0.2916666667),
        ("PolyReLU", 2.0, 4.6666666667),
    ],
)
def test_published_values(name, x, value):
    assert float(f(name, torch.tensor(x, dtype=torch.float64))) == pytest.approx(value, abs=1e-9)


def test_sau_is_leaky_relu_smoothed_by_a_normal_density():
    scipy_integrate = pytest.importorskip("scipy.integrate")

    def smoothed(x):
        density = lambda t: 2 / math.sqrt(2 * math.pi) * math.exp(-2 * t * t)  # noqa: E731
        leaky = lambda v: v if v > 0 else 0.15 * v  # noqa: E731
        return scipy_integrate.quad(lambda t: leaky(x - t) * density(t), -8, 8, points=[x] if abs(x) < 8 else None)[0]

    x = torch.tensor([-2.0, -0.3, 0.0, 0.7, 3.0], dtype=torch.float64)
    expected = torch.tensor([smoothed(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(f("SAU", x, b=2.0), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("a", [0.0, 0.3, 0.9])
def test_tailored_relu_keeps_the_second_moment_of_normal_inputs(a):
    x = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    assert float(torch.trapezoid(f("Tailored ReLU", x, a=a) ** 2 * density, x)) == pytest.approx(1, abs=1e-7)


def test_jump_relu_learns_its_threshold_from_inputs_near_it_only():
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.0, 0.44, 0.46, 0.5, 0.54, 0.56, 2.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], dtype=torch.float64)
    y = f("JumpReLU", x, t=t, e=0.1)
    (y * weight).sum().backward()
    assert float(t.grad) == pytest.approx(-(4 + 8 + 16) * 0.5 / 0.1)
    torch.testing.assert_close(x.grad, torch.where(x.detach() > 0.5, weight, 0.0))
    assert torch.equal(y.detach(), torch.where(x > 0.5, x, 0.0).detach())


def test_jump_relu_has_a_threshold_for_each_unit():
    module = ac.functions.get("jumprelu", num_parameters=3, channel_dim=-1, t=torch.tensor([0.1, 0.5, 0.9]), e=0.2)
    x = torch.tensor([[0.3, 0.45, 0.95], [0.15, 0.52, 0.2]])
    module(x).sum().backward()
    torch.testing.assert_close(module.t.grad, torch.tensor([-0.5, -5.0, -4.5]))


def test_rerelu_has_the_values_of_relu_and_the_gradient_of_gelu():
    x = torch.tensor([-1e30, -60.0, -2.0, -0.5, 0.0, 0.7, 3.0, 60.0, 1e30], requires_grad=True)
    y = f("REReLU", x)
    assert torch.equal(y, torch.relu(x))
    y.sum().backward()
    z = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0], requires_grad=True)
    nn.functional.gelu(z).sum().backward()
    torch.testing.assert_close(x.grad[2:7], z.grad)
    torch.testing.assert_close(x.grad[[0, 1, 7, 8]], torch.tensor([0.0, 0.0, 1.0, 1.0]))


def drawn(name, x, **parameters):
    torch.manual_seed(0)
    return ac.functions.get(name, experimental=True, **parameters).train()(x).detach()


N = 40000


def test_slopes_of_rrelu_are_uniform_between_their_bounds():
    slopes = -drawn("RReLU", torch.full((N,), -1.0))
    assert 1 / 8 <= float(slopes.min()) < 0.126 and 0.332 < float(slopes.max()) <= 1 / 3
    assert float(slopes.mean()) == pytest.approx(11 / 48, abs=2e-3)


def test_noise_of_noisy_relu_has_the_variance_of_the_logistic_function():
    for x in (6.0, 9.0):
        assert float(drawn("Noisy ReLU", torch.full((N,), x)).var()) == pytest.approx(s(x), rel=0.03)


def test_other_random_rows_have_their_moments():
    one = torch.ones(N)
    stretched = drawn("Elastic ReLU", one, a=0.2)
    assert float(stretched.min()) >= 0.8 and float(stretched.max()) <= 1.2
    assert float(stretched.std()) == pytest.approx(0.2 / math.sqrt(3), rel=0.02)
    assert torch.equal(drawn("EPReLU", -one), -0.25 * one)
    assert float(drawn("ReLU-Prob", one, s=0.3).std()) == pytest.approx(0.3, rel=0.02)
    assert float(drawn("RT-ReLU", 9 * one).std()) == pytest.approx(0.75, rel=0.02)
    below = drawn("RT-PReLU", -0.75 * one) < -0.5
    assert float(below.float().mean()) == pytest.approx(0.1587, abs=6e-3)  # one standard deviation to the other side
    assert float(drawn("Softsign RReLU", one).std()) == 0.0


def test_probact_learns_the_size_of_its_noise():
    module = ac.functions.get("ProbAct").train()
    module(torch.ones(50)).square().sum().backward()
    assert module.s.grad.abs() > 0


def test_what_training_pushes_out_of_bounds_stays_finite():
    x = torch.linspace(-5, 5, 11)
    for name, values in (("PFPLUS", {"b": -1.0}), ("RePSU", {"e": -1.0, "d": -1.0}), ("SAU", {"b": 0.0})):
        module = ac.functions.get(name)
        with torch.no_grad():
            for k, v in values.items():
                getattr(module, k).fill_(v)
        assert module(x).isfinite().all()


def test_bad_parameters_are_refused():
    with pytest.raises(InputError, match="l of Optimised leaky ReLU is smaller than u"):
        f("OLReLU", l=8.0, u=3.0)
    with pytest.raises(InputError, match="lies between"):
        f("Bi-firing", a=0.0)
    with pytest.raises(InputError, match="lies between"):
        f("BLU", a=1.5)
    with pytest.raises(InputError, match="uncertain"):
        ac.functions.get("LSPTLU")
    with pytest.raises(InputError, match="floating-point"):
        f("ReLU", torch.tensor([1, 2]))


@pytest.mark.parametrize("name", [n for n, (_, p) in HELD.items() if p])
def test_the_largest_numbers_give_no_nan_away_from_the_defaults(name):
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        x = torch.tensor([-top, -top / 3, -1e20, 1e20, top / 3, top], dtype=dtype, requires_grad=True)
        y = f(name, x, **HELD[name][1])
        assert not y.isnan().any()
        for i in (0, 5):
            if y[i].isfinite():
                (slope,) = torch.autograd.grad(y[i], x, retain_graph=True)
                assert not slope.isnan().any()


def test_xielu_is_that_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    official = activations.XIELUActivation(dtype=torch.float32)
    x = torch.linspace(-8, 8, 1601)
    torch.testing.assert_close(f("xIELU", x), official._xielu_python(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HELD)
def test_no_row_hides_nan(name):
    assert f(name, torch.tensor([math.nan])).isnan().all()
