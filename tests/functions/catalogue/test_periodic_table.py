"""Trigonometric and periodic functions: values, closed forms and NumPy's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import actinium as ac

f = ac.functions.functional
X = torch.linspace(-9, 9, 721, dtype=torch.float64)


def test_values_at_one():
    one = torch.ones((), dtype=torch.float64)
    assert float(f("snake")(one)) == pytest.approx(1.7080734183, abs=1e-10)
    assert float(f("gcu")(one)) == pytest.approx(0.5403023059, abs=1e-10)


def test_snake_goes_to_the_identity():
    assert torch.equal(f("snake")(X, a=0.0), X)
    torch.testing.assert_close(f("snake")(X, a=1e-7), X, rtol=0, atol=1e-5)
    for a in (0.3, 5.0):
        torch.testing.assert_close(f("snake")(X, a=a), X + torch.sin(a * X).square() / a)


def test_snake_learns_from_a_frequency_of_zero():
    a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f("snake")(X, a=a).sum(), a)
    assert float(slope) == pytest.approx(float(X.square().sum()))


def test_derivatives_of_sinc_are_right_at_zero():
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = f("sinc")(t)
    for order, wanted in ((1, 0.0), (2, -1 / 3), (3, 0.0), (4, 1 / 5)):
        (value,) = torch.autograd.grad(value, t, create_graph=True)
        assert float(value.detach()) == pytest.approx(wanted, abs=1e-10), order


def test_frequencies_that_overflow_give_a_number():
    top = torch.tensor([torch.finfo(torch.float32).max])
    for name in ("SIREN", "HOSC", "Gabor", "WIRE", "Snake"):
        assert f(name)(top).isfinite().all()
    assert bool(f("Snake")(top / 8, a=100.0).isfinite().all())


@pytest.mark.parametrize("layer", [nn.Linear(64, 64), nn.Conv2d(8, 16, 3)])
def test_siren_weights_keep_the_distribution_of_activations(layer):
    torch.manual_seed(0)
    bias = layer.bias.detach().clone()
    ac.functions.siren_init_(layer, w0=30.0)
    inputs = layer.weight[0].numel()
    assert float(layer.weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / inputs) / 30, rel=0.02)
    assert torch.equal(layer.bias, bias)
    ac.functions.siren_init_(layer, first=True)
    assert float(layer.weight.detach().abs().max()) == pytest.approx(1 / inputs, rel=0.02)


def test_a_deep_sine_network_keeps_its_variance():
    torch.manual_seed(0)
    siren = ac.functions.get("siren")
    x = torch.rand(512, 1) * 2 - 1
    x = siren(ac.functions.siren_init_(nn.Linear(1, 256), first=True)(x))
    spread = []
    for _ in range(5):
        x = siren(ac.functions.siren_init_(nn.Linear(256, 256))(x))
        spread.append(float(x.detach().std()))
    # The arcsine distribution, which the paper proves to be kept, has deviation 1 / sqrt(2).
    assert spread == pytest.approx([math.sqrt(0.5)] * 5, abs=0.06)


def test_siren_refuses_what_has_no_weight_matrix():
    with pytest.raises(ac.errors.InputError, match="weight matrix"):
        ac.functions.siren_init_(nn.ReLU())
    with pytest.raises(ac.errors.InputError, match="w0 is positive"):
        ac.functions.siren_init_(nn.Linear(2, 2), w0=0.0)
