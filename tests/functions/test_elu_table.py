"""Section 10 of the catalogue: every exponential rectifier is its formula, and is what it is said to be."""

# ruff: noqa: E741 (l is the name of a parameter in the tables)
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.catalogue import elu as table

X = torch.tensor([-37.0, -3.7, -1.6, -0.62, -1e-3, 0.31, 0.93, 1.77, 4.2, 41.0], dtype=torch.float64)
GAINS = {"a": 1.1, "b": 1.4}


def s(x):
    return 1 / (1 + math.exp(-x))


def elu(x, a=1.0):
    return x if x >= 0 else a * (math.exp(x) - 1)


def pelu(x, a, b):
    return a / b * x if x >= 0 else a * (math.exp(x / b) - 1)


def hard(x):
    return min(max((x + 1) / 2, 0), 1)


def scaled(x, a, b, c=1.0):
    return a * x if x >= 0 else a * b * (math.exp(c * x) - 1)


def rsigelu(x, a, b):
    return x * s(x) * a + x if x > 1 else x if x >= 0 else b * (math.exp(x) - 1)


def pdelu(x, a, t):
    return x if x > 0 else a * (max(0, 1 + (1 - t) * x) ** (1 / (1 - t)) - 1)


# The formulas as the survey prints them, one number at a time; parameters away from their defaults.
HELD = {
    "ELU": (elu, {"a": 0.7}),
    "SELU": (lambda x, l, a: l * elu(x, a), {"l": 1.1, "a": 1.4}),
    "CELU": (lambda x, a: x if x >= 0 else a * (math.exp(x / a) - 1), {"a": 1.4}),
    "PELU": (pelu, {"a": 0.8, "b": 1.3}),
    "MPELU": (lambda x, a, b: x if x >= 0 else a * (math.exp(b * x) - 1), {"a": 0.8, "b": 1.3}),
    "PDELU": (pdelu, {"a": 0.8, "t": 0.6}),
    "FELU": (lambda x, a: x if x > 0 else a * (2 ** (x / math.log(2)) - 1), {"a": 0.8}),
    "P+FELU": (lambda x, a, b: (x if x > 0 else a * (2 ** (x / math.log(2)) - 1)) + b, {"a": 0.8, "b": 0.3}),
    "EELU": (lambda x, a, b, e: x if x >= 0 else a * (math.exp(b * x) - 1), {"a": 0.8, "b": 1.3, "e": 0.2}),
    "EDELU": (lambda x, a, c, b: x if x >= c else (math.exp(a * x) - 1) / b, {"a": 0.8, "c": 0.5, "b": 1.3}),
    "Adaptive combination 1": (lambda x, a: a * (x if x >= 0 else 0.01 * x) + (1 - a) * elu(x), {"a": 0.3}),
    "Adaptive combination 2": (
        lambda x, a, p, q, r: s(a * x) * (x if x >= 0 else p * x) + (1 - s(a * x)) * pelu(x, q, r),
        {"a": 0.6, "p": 0.2, "q": 0.8, "r": 1.3},
    ),
    "P-E2-ReLU": (lambda x, a, b: a * max(0, x) + b * elu(x) + (1 - a - b) * -elu(-x), {"a": 0.5, "b": 0.2}),
    "P-E2-Id": (lambda x, a: a * x + (1 - a) * (elu(x) - elu(-x)), {"a": 0.2}),
    "Soft exponential": (lambda x, a: (math.exp(a * x) - 1) / a + a, {"a": 0.3}),
    "ShELU": (lambda x, b: elu(x + b), {"b": 0.4}),
    "SvELU": (lambda x, b: elu(x) + b, {"b": 0.4}),
    "PShELU": (lambda x, a, b, c: pelu(x + c, a, b), {"a": 0.8, "b": 1.3, "c": 0.4}),
    "PSvELU": (lambda x, a, b, c: pelu(x, a, b) + c, {"a": 0.8, "b": 1.3, "c": 0.4}),
    "PSELU": (scaled, GAINS),
    "LPSELU": (lambda x, a, b, c: scaled(x, a, b) + (c * x if x < 0 else 0), GAINS | {"c": 0.2}),
    "LPSELU-RP": (lambda x, a, b, c, m: scaled(x, a, b) + (c * x if x < 0 else 0) + m, GAINS | {"c": 0.2, "m": 0.3}),
    "Leaky SELU": (lambda x, a, b, c: scaled(x, a, b) + (a * c * x if x < 0 else 0), GAINS | {"c": 0.2}),
    "SERLU": (lambda x, l, a: l * x if x >= 0 else l * a * x * math.exp(x), {"l": 1.1, "a": 1.4}),
    "Scaled SELU": (scaled, GAINS | {"c": 0.7}),
    "RSigELU": (lambda x, a: rsigelu(x, a, a), {"a": 0.3}),
    "RSigELUD": (rsigelu, {"a": 0.3, "b": 0.8}),
    "HardSReLUE": (lambda x, a: a * x * hard(x) + x if x >= 0 else a * (math.exp(x) - 1), {"a": 0.3}),
    "ELiSH": (lambda x: elu(x) * s(x), {}),
    "Hard ELiSH": (lambda x: elu(x) * hard(x), {}),
    "Tanh linear unit": (lambda x: x if x >= 0 else 2 * s(x) - 1, {}),
    "DiffELU": (lambda x, a, b: x if x >= 0 else a * (x * math.exp(x) - b * math.exp(b * x)), {"a": 0.4, "b": 0.3}),
    "PolyLU": (lambda x: x if x >= 0 else 1 / (1 - x) - 1, {}),
    "IpLU": (lambda x, a: x if x >= 0 else x / (1 + abs(x) ** a), {"a": 1.4}),
    "PoLU": (lambda x, a: x if x >= 0 else (1 - x) ** -a - 1, {"a": 1.4}),
    "LELU": (lambda x, a, b: x if x >= 0 else a * (math.exp(x) - 1) + b * x, {"a": 0.7, "b": 0.2}),
    "ISRLU": (lambda x, a: x if x >= 0 else x / math.sqrt(1 + a * x * x), {"a": 1.4}),
}


def f(name, x=X, **parameters):
    return ac.functions.functional(name)(x, **parameters)


def test_every_row_has_its_formula_here():
    assert {r.name for r in table.ROWS} == set(HELD)


@pytest.mark.parametrize("name", HELD)
def test_each_row_is_its_formula_with_numbers_and_with_trained_tensors(name):
    formula, parameters = HELD[name]
    expected = torch.tensor([float(formula(x, **parameters)) for x in X.tolist()], dtype=torch.float64)
    torch.testing.assert_close(f(name, **parameters), expected, rtol=1e-9, atol=1e-9)
    tensors = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in parameters.items()}
    torch.testing.assert_close(f(name, **tensors).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, (_, p) in HELD.items() if p])
def test_gradients_of_all_parameters_are_those_of_finite_differences(name):
    spec = ac.functions.spec(name)
    x = torch.tensor([-2.3, -1.31, -0.55, 0.27, 0.83, 1.73, 2.6], dtype=torch.float64)
    names = list(HELD[name][1])
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in HELD[name][1].values()]
    assert torch.autograd.gradcheck(lambda *v: spec.function(x, **dict(zip(names, v, strict=True))), values)


@pytest.mark.parametrize(
    ("name", "parameters", "module"),
    [
        ("ELU", {"a": 0.7}, nn.ELU(0.7)),
        ("SELU", {}, nn.SELU()),
        ("CELU", {"a": 1.5}, nn.CELU(1.5)),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_agree_with_torch(name, parameters, module):
    x = torch.linspace(-20, 20, 4001)
    torch.testing.assert_close(f(name, x, **parameters), module(x), rtol=1e-6, atol=1e-6)


def test_special_cases():
    same = torch.testing.assert_close
    same(f("SELU"), 1.0507009873554805 * f("ELU", a=1.6732632423543772))
    for name in ("CELU", "PELU", "MPELU", "FELU", "P+FELU", "EELU", "EDELU", "ShELU", "SvELU", "PShELU", "PSvELU"):
        same(f(name), f("ELU"))
    same(f("MPELU", a=0.6, b=1.0), f("ELU", a=0.6))
    same(f("FELU", a=0.6), f("ELU", a=0.6))
    same(f("PDELU", t=0.9999), f("ELU"), rtol=1e-3, atol=1e-4)
    same(f("PDELU", t=0.0), torch.where(X > 0, X, X.clamp(min=-1)))
    same(f("P-E2-Id", a=1.0), X)
    same(f("Adaptive combination 1", a=1.0), f("LeakyReLU"))
    same(f("LPSELU", c=0.0), f("PSELU"))
    same(f("Scaled SELU"), f("PSELU"))
    same(f("PoLU", a=1.0), f("PolyLU"))
    same(f("IpLU", a=1.0), f("PolyLU"))
    same(f("Tanh linear unit"), torch.where(X >= 0, X, torch.tanh(X / 2)))


@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("SELU", 1.0, 1.0507009874),
        ("ELU", -1.0, -0.6321205588),
        ("SELU", -1.0, -1.1113307378),
        ("SERLU", -1.0, -1.1524205013),
        ("CELU", -1.0, -0.6321205588),
        ("ELiSH", -1.0, -0.1700034015),
        ("PolyLU", -1.0, -0.5),
        ("ISRLU", -1.0, -0.7071067812),
    ],
)
def test_published_values(name, x, value):
    assert float(f(name, torch.tensor(x, dtype=torch.float64))) == pytest.approx(value, abs=1e-9)


def test_soft_exponential_is_a_logarithm_the_identity_or_an_exponential():
    inside = X[(X > -3) & (X < 3)]
    torch.testing.assert_close(f("Soft exponential", inside, a=-0.3), -torch.log(1 + 0.3 * (inside - 0.3)) / -0.3)
    assert torch.equal(f("Soft exponential", a=0.0), X)
    torch.testing.assert_close(f("Soft exponential", inside, a=1.0), torch.exp(inside))
    torch.testing.assert_close(f("Soft exponential", inside.exp(), a=-1.0), inside)


def test_soft_exponential_and_its_gradients_do_not_jump_where_a_is_zero():
    x = torch.tensor([-2.0, -0.4, 0.7, 3.0], dtype=torch.float64)
    slopes = []
    for a in (-1e-9, 0.0, 1e-9):
        t = torch.tensor(a, dtype=torch.float64, requires_grad=True)
        y = f("Soft exponential", x, a=t)
        torch.testing.assert_close(y.detach(), x, rtol=0, atol=1e-7)
        slopes.append(torch.stack([torch.autograd.grad(v, t, retain_graph=True)[0] for v in y]))
    for slope in slopes:
        torch.testing.assert_close(slope, 1 + x**2 / 2, rtol=1e-6, atol=1e-6)


def test_stretching_of_eelu_is_a_truncated_normal_with_a_random_width():
    torch.manual_seed(0)
    module = ac.functions.get("EELU", e=1.0).train()
    k = module(torch.ones(40000)).detach()
    assert float(k.min()) >= 0 and float(k.max()) <= 2
    assert float(k.mean()) == pytest.approx(1, abs=0.01)
    # Variance of N(1, s^2) in 0..2, averaged over s in 0..1, by Simpson's rule.
    widths = torch.linspace(1e-3, 1, 1001, dtype=torch.float64)
    edge = 1 / widths
    density = torch.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi)
    variance = widths**2 * (1 - 2 * edge * density / torch.erf(edge / math.sqrt(2)))
    assert float(k.var()) == pytest.approx(float(torch.trapezoid(variance, widths)), rel=0.03)
    assert torch.equal(module(torch.tensor([-1.0])), module.eval()(torch.tensor([-1.0])))


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


def test_what_training_pushes_out_of_bounds_stays_finite():
    x = torch.linspace(-5, 5, 11)
    for name, values in (("PELU", {"a": -1.0, "b": -1.0}), ("PDELU", {"t": 1.5}), ("EDELU", {"b": -1.0})):
        module = ac.functions.get(name)
        with torch.no_grad():
            for k, v in values.items():
                getattr(module, k).fill_(v)
        assert module(x).isfinite().all()


def test_bad_parameters_are_refused():
    for name, wrong in (("PELU", {"b": 0.0}), ("CELU", {"a": -1.0}), ("PDELU", {"t": 1.0}), ("ISRLU", {"a": 0.0})):
        with pytest.raises(InputError, match="lies between"):
            f(name, **wrong)
    with pytest.raises(InputError, match="uncertain"):
        ac.functions.get("IpLU")


@pytest.mark.parametrize("name", HELD)
def test_no_row_hides_nan(name):
    assert f(name, torch.tensor([math.nan])).isnan().all()
