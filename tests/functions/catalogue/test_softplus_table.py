"""Softplus and smooth rectifiers: values, limits of their parameters, and other libraries' numbers."""

from __future__ import annotations

import math

import pytest
import torch

import actinium as ac

f = ac.functions.functional
X = torch.linspace(-8, 8, 321, dtype=torch.float64)
HARD = {
    "vReLUPlus": torch.abs,
    "LReLUPlus": lambda x: torch.nn.functional.leaky_relu(x, 0.01),
    "SoftshrinkPlus": lambda x: torch.nn.functional.softshrink(x, 0.5),
    "PanPlus": lambda x: torch.relu(x.abs() - 0.5),
    "BReLUPlus": lambda x: x.clamp(0, 1),
    "HardTanhPlus": torch.nn.functional.hardtanh,
    "SReLUPlus": lambda x: torch.where(x.abs() <= 1, x, 0.5 * x + 0.5 * x.sign()),
    "HardshrinkPlus": lambda x: torch.nn.functional.hardshrink(x, 0.5),
    "ELUPlus": torch.nn.functional.elu,
    "SwishPlus": torch.relu,
    "LogishPlus": lambda x: math.log(2) * torch.relu(x),
    "MishPlus": torch.relu,
    "SoftsignPlus": torch.nn.functional.softsign,
    "SignReLUPlus": lambda x: torch.where(x >= 0, x, x / (1 - x)),
    "TSAFPlus": lambda x: (x - 0.5).abs() / 2,
}


@pytest.mark.parametrize("name", HARD)
def test_smoothing_that_goes_to_zero_gives_the_function_with_kinks(name):
    away = (X.abs() - 0.5).abs() > 1e-3
    away &= (X.abs() - 1).abs() > 1e-3
    found = f(name)(X, e=1e-12)
    torch.testing.assert_close(found[away], HARD[name](X)[away], rtol=0, atol=3e-6)


def test_values_at_one_and_minus_one():
    one = torch.tensor([1.0, -1.0], dtype=torch.float64)
    plus, minus = f("softplus")(one).tolist()
    assert (plus, minus) == pytest.approx((1.3132616875, 0.3132616875), abs=1e-10)
    assert float(f("squareplus")(one)[0]) == pytest.approx(1.6180339887, abs=1e-10)


def test_softplus_is_pytorchs_and_goes_to_relu():
    for b in (0.5, 1.0, 3.0):
        torch.testing.assert_close(f("softplus")(X, b=b), torch.nn.functional.softplus(X, beta=b, threshold=1e6))
    torch.testing.assert_close(f("softplus")(X, b=1e6), torch.relu(X), rtol=0, atol=1e-6)


def test_squareplus_of_zero_is_relu_with_its_gradients():
    x = X.clone().requires_grad_()
    y = f("squareplus")(x, b=0.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.relu(X))
    torch.testing.assert_close(slope[X != 0], (X > 0).double()[X != 0])


def test_squareplus_keeps_its_relative_precision_far_on_the_left():
    x = torch.tensor([-1e3, -1e6], dtype=torch.float32)
    torch.testing.assert_close(f("squareplus")(x), torch.tensor([1e-3, 1e-6]), rtol=1e-5, atol=0)


def test_smooth_rectifiers_are_quadratic_between_their_ends():
    x = torch.tensor([-0.1, 0.5, 1.0, 3.0])
    assert f("smoothrelu")(x).tolist() == pytest.approx([0, 0.125, 0.5, 2.5])
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 2.0])
    assert f("smelu")(x).tolist() == pytest.approx([0, 0, 0.25, 0.5625, 2])
    assert ac.functions.spec("huber relu") is ac.functions.spec("smoothrelu")


def test_softplus_of_another_base_is_softplus_of_another_rate():
    base, rate = 3.0, 0.7
    raw = {"a": math.log(math.expm1(base - 1)), "b": math.log(math.expm1(rate))}
    wanted = torch.log1p(base ** (rate * X)) / (rate * math.log(base))
    torch.testing.assert_close(f("GReLU softplus log-base")(X, **raw), wanted)


def test_the_universal_function_becomes_others():
    identity = f("uaf")(X, A=1.0, B=0.0, C=0.0, D=-1.0, E=0.0)
    torch.testing.assert_close(identity, X, rtol=0, atol=1e-12)
    softplus = f("uaf")(X, A=1.0, B=0.0, C=0.0, D=0.0, E=math.log(2))
    torch.testing.assert_close(softplus, f("softplus")(X))


def test_rand_softplus_draws_between_relu_and_softplus_while_training():
    module = ac.functions.get("rand softplus")
    x = torch.linspace(-2, 2, 41)
    torch.manual_seed(0)
    drawn = torch.stack([module(x) for _ in range(4000)])
    low, high = torch.relu(x), f("softplus")(x)
    assert bool((drawn >= low - 1e-6).all() and (drawn <= high + 1e-6).all())
    assert float(drawn.std(0)[20]) == pytest.approx(math.log(2) / math.sqrt(12), rel=0.05)
    torch.testing.assert_close(drawn.mean(0), module.eval()(x), rtol=0, atol=0.02)
