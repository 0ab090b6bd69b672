"""Section 10 of the catalogue: exponential rectifiers are what they are said to be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError

X = torch.tensor([-37.0, -3.7, -1.6, -0.62, -1e-3, 0.31, 0.93, 1.77, 4.2, 41.0], dtype=torch.float64)


def s(x):
    return 1 / (1 + math.exp(-x))


def f(name, x=X, **parameters):
    return ac.functions.functional(name)(x, **parameters)


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
