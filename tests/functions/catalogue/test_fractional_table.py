"""Fractional order: whole orders give the function and its derivative, and scipy's binomials the sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

import actinium as ac

f = ac.functions.functional
X = torch.linspace(-4, 4, 161, dtype=torch.float64)
BASES = {
    "FracSoftplus": lambda x: np.logaddexp(0, x),
    "FracTanh": np.tanh,
    "FracELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "FracSiLU": lambda x: x * special.expit(x),
    "FracGELU": lambda x: x * special.ndtr(x),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(("a", "h", "n"), [(0.5, 0.1, 5), (0.3, 0.2, 9), (0.9, 0.1, 2)])
def test_the_sum_is_that_with_scipys_binomials(name, a, h, n):
    x = X.numpy()
    wanted = h**-a * sum((-1) ** k * special.binom(a, k) * BASES[name](x - k * h) for k in range(n))
    np.testing.assert_allclose(f(name)(X, a=a, h=h, N=n).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("name", BASES)
def test_order_zero_is_the_function_and_order_one_its_slope(name):
    base = BASES[name]
    x = X.numpy()
    np.testing.assert_allclose(f(name)(X, a=0.0).numpy(), base(x), atol=1e-12)
    slope = (base(x) - base(x - 1e-5)) / 1e-5
    np.testing.assert_allclose(f(name)(X, a=1.0, h=1e-5).numpy(), slope, atol=1e-9)


def test_fractional_relu_follows_the_power_rule():
    x = X[X > 0].numpy()
    for a in (0.0, 0.25, 0.5, 0.9):
        wanted = x ** (1 - a) / special.gamma(2 - a)
        np.testing.assert_allclose(f("fracrelu")(X, a=a)[X > 0].numpy(), wanted, rtol=1e-12)
        np.testing.assert_allclose(f("fracprelu")(-X, a=a, b=0.3)[X > 0].numpy(), -0.3 * wanted, rtol=1e-12)
    assert bool((f("fracrelu")(X)[X <= 0] == 0).all())


def test_two_half_derivatives_of_relu_are_one():
    # By the Grünwald sum over the whole past, an independent definition of the second half derivative.
    h, n = 1e-4, 10000
    y = f("fracrelu")(torch.tensor(1.0, dtype=torch.float64) - h * torch.arange(n, dtype=torch.float64))
    weights = np.cumprod(np.concatenate([[1.0], (np.arange(1, n) - 1.5) / np.arange(1, n)]))
    assert h**-0.5 * float((torch.tensor(weights) * y).sum()) == pytest.approx(1, abs=5e-3)


def test_order_zero_of_fractional_rectifiers_is_prelu():
    torch.testing.assert_close(
        f("fracprelu")(X, a=0.0, b=0.25), torch.nn.functional.prelu(X, torch.tensor(0.25).double())
    )
    torch.testing.assert_close(f("fraclrelu")(X, a=0.0), torch.nn.functional.leaky_relu(X, 0.1))


def test_falu_of_whole_orders_is_silu_and_its_derivatives():
    x = X.clone().requires_grad_()
    silu = torch.nn.functional.silu(x)
    (first,) = torch.autograd.grad(silu.sum(), x)
    torch.testing.assert_close(f("falu")(X, a=0.0), silu.detach())
    torch.testing.assert_close(f("falu")(X, a=1.0), first)
    below, above = f("falu")(X, a=1 - 1e-9), f("falu")(X, a=1 + 1e-9)
    torch.testing.assert_close(below, above, rtol=0, atol=1e-7)
    s = torch.sigmoid(X)
    torch.testing.assert_close(f("falu")(X, a=2.0), first + s * (1 - 2 * first))
    t = torch.sigmoid(2 * X)
    torch.testing.assert_close(f("falu")(X, a=0.4, b=2.0), X * t + 0.4 * t * (1 - X * t))


def test_the_order_is_learnt():
    torch.manual_seed(0)
    x = torch.rand(256, dtype=torch.float64) * 3
    module = ac.functions.get("fracrelu").double()
    wanted = f("fracrelu")(x, a=0.2)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        (module(x) - wanted).square().mean().backward()
        optimiser.step()
    assert float(module.a.detach()) == pytest.approx(0.2, abs=1e-2)


def test_orders_outside_of_the_unit_interval_are_refused():
    with pytest.raises(ac.errors.InputError, match="between 0 and 1"):
        f("fracrelu")(X, a=1.5)
